"""Does a pipeline move things as its captions say? `python -m hf_motive.lab.evaluate PIPELINE`.

A classifier that sees optical flow only, never colours, is fitted to simulated clips, whose motion is known, after
they went through the pipeline's VAE, whose blur all generated clips share. On simulated clips that it has not seen it
shows how far it can be trusted; on clips that the pipeline generates from captions it shows what moves as asked.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..motion import DISFlow
from .autoencoder import decode_whole, encode_whole
from .pipeline import GENERATE
from .render import render_clip
from .spec import BACKGROUNDS, COLORS, MODEL_FRAMES, MOTIONS, REST, SHAPES, ClipSpec, balanced_specs

CLASSES = (*MOTIONS, REST)


class Evaluation(NamedTuple):
    """What `evaluate_pipeline` found.

    asked, seen: (N,) indices into `CLASSES`: the motion of the caption, and what the classifier saw.
    motion, real_motion: mean flow magnitude by asked motion, pixels per frame, of generated and of simulated clips.
    accuracy: of the classifier on unseen simulated clips.
    clips: (N, F, 3, H, W) in [-1, 1], the generated clips.
    """

    asked: Tensor
    seen: Tensor
    motion: dict[str, float]
    real_motion: dict[str, float]
    accuracy: float
    clips: Tensor


def flow_features(frames: Tensor) -> Tensor:
    """What moves how, as numbers: for each pair of frames the moving region's size, mean flow, rate of turning,
    growth and shear about its centre. frames: (F, 3, H, W) in [-1, 1]; returns ((F - 1) · 9,)."""
    flow = DISFlow()(frames).flow
    flow = flow - flow.flatten(2).median(-1).values[..., None, None]  # the camera's share, near enough
    size = frames.shape[-1]
    y, x = torch.meshgrid(torch.arange(size) / size - 0.5, torch.arange(size) / size - 0.5, indexing="ij")
    speed = flow.norm(dim=1)
    weight = speed * (speed > 0.3)
    total = weight.sum((1, 2))
    share = weight / (total + 1e-3)[:, None, None]
    mean = (share[:, None] * flow).sum((2, 3))
    cx, cy = (share * x).sum((1, 2)), (share * y).sum((1, 2))
    dx, dy = x - cx[:, None, None], y - cy[:, None, None]
    spread = (share * (dx**2 + dy**2)).sum((1, 2)) + 1e-3
    u, v = flow[:, 0] - mean[:, :1, None], flow[:, 1] - mean[:, 1:, None]

    def moment(value: Tensor) -> Tensor:
        return (share * value).sum((1, 2)) / spread.sqrt()

    columns = [mean[:, 0], mean[:, 1], moment(dx * v - dy * u), moment(dx * u), moment(dy * v)]
    columns += [moment(dx * v + dy * u), total.sqrt() / size, cy, spread.sqrt()]
    return torch.stack(columns, -1).flatten()


class MotionClassifier:
    """A small perceptron on `flow_features`; the side towards which things move is made not to matter."""

    def __init__(self, features: Tensor, labels: Tensor, seed: int = 0, steps: int = 400) -> None:
        mirrored = features.unflatten(1, (-1, 9)) * torch.tensor([-1, 1, -1, 1, 1, -1, 1, 1, 1.0])
        features = torch.cat([features, mirrored.flatten(1)])
        labels = torch.cat([labels, labels])
        self.mean, self.std = features.mean(0), features.std(0) + 1e-3
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = torch.nn.Sequential(
                torch.nn.Linear(features.shape[1], 96),
                torch.nn.GELU(),
                torch.nn.Dropout(0.3),
                torch.nn.Linear(96, len(CLASSES)),
            )
            optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-3, weight_decay=0.05)
            inputs = self._scale(features)
            for _ in range(steps):
                noisy = inputs + 0.2 * torch.randn(inputs.shape)
                loss = F.cross_entropy(self.model(noisy), labels)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        self.model.eval()

    def _scale(self, features: Tensor) -> Tensor:
        return ((features - self.mean) / self.std).clamp(-4, 4)

    @torch.no_grad()
    def __call__(self, features: Tensor) -> Tensor:
        """(N, D) to classes (N,)."""
        return self.model(self._scale(features)).argmax(-1)


def simulated_features(vae: Any, count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features, classes and mean motion (pixels per frame) of simulated clips under a still camera, as a VAE shows
    them."""
    specs = balanced_specs(count, seed, static=1 / len(CLASSES), moving_camera=0, num_frames=MODEL_FRAMES)
    clips = [_through(vae, render_clip(spec).frames) for spec in specs]
    labels = torch.tensor([CLASSES.index(spec.motion) for spec in specs])
    return torch.stack([flow_features(c) for c in clips]), labels, torch.stack([_mean_motion(c) for c in clips])


@torch.no_grad()
def _through(vae: Any, frames: Tensor) -> Tensor:
    """Encode and decode a clip (F, 3, H, W)."""
    with torch.autocast("cpu", torch.bfloat16):
        decoded = decode_whole(vae, encode_whole(vae, frames.transpose(0, 1)[None])[0])
    return decoded[0].float().transpose(0, 1).clamp(-1, 1)


def _mean_motion(frames: Tensor) -> Tensor:
    return DISFlow()(frames).flow.norm(dim=1).mean()


def generate(pipe: Any, specs: Sequence[ClipSpec], *, steps: int, guidance: float, seed: int = 0) -> Tensor:
    """Clips (N, F, 3, H, W) in [-1, 1] by the pipeline's ordinary call, clip i from the seed `seed + i`."""
    clips = []
    for i in range(0, len(specs), 4):
        part = specs[i : i + 4]
        video = pipe(
            [spec.caption for spec in part],
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator().manual_seed(seed + i + k) for k in range(len(part))],
            output_type="pt",
            **GENERATE,
        ).frames
        clips.append(video.float().cpu() * 2 - 1)
    return torch.cat(clips).clamp(-1, 1)


def evaluation_specs(per_motion: int, seed: int) -> list[ClipSpec]:
    """Captions to generate from: every motion `per_motion` times, with objects and backgrounds in turn."""
    return [
        ClipSpec(
            motion,
            SHAPES[(i + 2 * k + seed) % len(SHAPES)],
            tuple(COLORS)[(i + k + seed) % len(COLORS)],
            BACKGROUNDS[(2 * i + k + seed) % len(BACKGROUNDS)],
            num_frames=MODEL_FRAMES,
        )
        for i, motion in enumerate(MOTIONS)
        for k in range(per_motion)
    ]


def evaluate_pipeline(
    pipe: Any, *, per_motion: int = 4, steps: int = 20, guidance: float = 3.0, seed: int = 0, simulated: int = 330
) -> Evaluation:
    """Generate `per_motion` clips of each motion and look at them with the classifier."""
    features, labels, _ = simulated_features(pipe.vae, simulated, 900_001)
    classifier = MotionClassifier(features, labels)
    features, labels, motion = simulated_features(pipe.vae, simulated // 3, 900_002)
    accuracy = (classifier(features) == labels).float().mean().item()
    real_motion = {name: motion[labels == k].mean().item() for k, name in enumerate(CLASSES)}

    specs = evaluation_specs(per_motion, seed)
    clips = generate(pipe, specs, steps=steps, guidance=guidance, seed=seed)
    asked = torch.tensor([CLASSES.index(spec.motion) for spec in specs])
    seen = classifier(torch.stack([flow_features(clip) for clip in clips]))
    moved = torch.stack([_mean_motion(clip) for clip in clips])
    generated = {name: moved[asked == k].mean().item() for k, name in enumerate(MOTIONS)}
    return Evaluation(asked, seen, generated, real_motion, accuracy, clips)


def table(result: Evaluation) -> str:
    """The confusion of generated clips, in Markdown: a row a motion asked for, a column a motion seen."""
    lines = ["| asked \\ seen | " + " | ".join(CLASSES) + " | flow, generated | flow, simulated |"]
    lines.append("|---" * (len(CLASSES) + 3) + "|")
    for k, name in enumerate(MOTIONS):
        counts = torch.bincount(result.seen[result.asked == k], minlength=len(CLASSES)).tolist()
        cells = [str(c) if c else "" for c in counts]
        lines.append(f"| {name} | {' | '.join(cells)} | {result.motion[name]:.2f} | {result.real_motion[name]:.2f} |")
    right = (result.asked == result.seen).float().mean().item()
    lines.append("")
    lines.append(f"generated as asked: {right:.0%}; classifier on unseen simulated clips: {result.accuracy:.0%}")
    return "\n".join(lines)


def save_sheet(path: str | Path, clips: Tensor, every: int = 2) -> None:
    """Filmstrips, a row a clip, as PNG."""
    from PIL import Image

    strips = torch.cat([torch.cat(list(clip[::every]), dim=-1) for clip in clips], dim=-2)
    Image.fromarray(((strips + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()).save(path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m hf_motive.lab.evaluate",
        description="Generate clips of every motion with a pipeline and tell, by their flow, what moves as asked.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("pipeline", help="folder of the pipeline")
    parser.add_argument("--per-motion", type=int, default=4, help="clips of each motion")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps")
    parser.add_argument("--guidance", type=float, default=3.0, help="guidance scale")
    parser.add_argument("--seed", type=int, default=0, help="of the initial noise and the objects")
    parser.add_argument("--sheet", help="write the generated clips as filmstrips to this PNG file")
    args = parser.parse_args(arguments)
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(args.pipeline)
    pipe.set_progress_bar_config(disable=True)
    result = evaluate_pipeline(
        pipe, per_motion=args.per_motion, steps=args.steps, guidance=args.guidance, seed=args.seed
    )
    print(table(result))
    if args.sheet:
        save_sheet(args.sheet, result.clips)


if __name__ == "__main__":
    main()
