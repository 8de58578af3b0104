"""Does a pipeline move things as its captions say? `python -m hf_motive.lab.evaluate PIPELINE`.

The classifier (classifier.py) sees optical flow only, never colours, and was fitted to the exact flow of simulated
clips: it owes nothing to the pipeline. On simulated clips that it has not seen, before and after the pipeline's VAE,
it shows how far it can be trusted; on clips that the pipeline generates from captions it shows what moves as asked.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..motion import DISFlow
from .autoencoder import decode_whole, encode_whole
from .classifier import CLASSES, MotionClassifier, clip_features, fit_classifier, flow_features
from .pipeline import GENERATE
from .render import render_clip
from .spec import BACKGROUNDS, COLORS, MODEL_FRAMES, MOTIONS, SHAPES, ClipSpec, balanced_specs

_UNSEEN = 900_002  # seed of the simulated clips that the classifier is tried on


class Evaluation(NamedTuple):
    """What `evaluate_pipeline` found.

    asked, seen: (N,) indices into `CLASSES`: the motion of the caption, and what the classifier saw.
    motion, real_motion: mean flow magnitude by asked motion, pixels per frame, of generated clips and of simulated
        ones after the VAE.
    accuracy: of the classifier on unseen simulated clips.
    clips: (N, F, 3, H, W) in [-1, 1], the generated clips.
    """

    asked: Tensor
    seen: Tensor
    motion: dict[str, float]
    real_motion: dict[str, float]
    accuracy: Accuracy
    clips: Tensor


class Accuracy(NamedTuple):
    """How well the classifier tells unseen simulated clips apart, each a share of 1.

    exact: by their exact flow. estimated: by the DIS flow of their frames. decoded: by the DIS flow of their frames
    after the pipeline's VAE, as all generated clips are seen.
    """

    exact: float
    estimated: float
    decoded: float


def classifier_accuracy(vae: Any, classifier: MotionClassifier, count: int = 110) -> tuple[Accuracy, dict[str, float]]:
    """Try the classifier on `count` simulated clips under a still camera that it was not fitted to.

    Returns:
        How often it is right, and the mean motion (DIS, pixels per frame) of each class after the VAE.
    """
    specs = balanced_specs(count, _UNSEEN, static=1 / len(CLASSES), moving_camera=0, num_frames=MODEL_FRAMES)
    labels = torch.tensor([CLASSES.index(spec.motion) for spec in specs])
    estimate = DISFlow(confidence=False)
    right, motion = [], []
    for spec in specs:
        clip = render_clip(spec)
        decoded = estimate(_through(vae, clip.frames)).flow
        flows = [clip.flow, estimate(clip.frames).flow, decoded]
        right.append(classifier(torch.stack([flow_features(flow) for flow in flows])) == CLASSES.index(spec.motion))
        motion.append(decoded.norm(dim=1).mean())
    shares = torch.stack(right).double().mean(0).tolist()
    moved = torch.stack(motion)
    return Accuracy(*shares), {name: moved[labels == k].mean().item() for k, name in enumerate(CLASSES)}


@torch.no_grad()
def _through(vae: Any, frames: Tensor) -> Tensor:
    """Encode and decode a clip (F, 3, H, W)."""
    with torch.autocast("cpu", torch.bfloat16):
        decoded = decode_whole(vae, encode_whole(vae, frames.transpose(0, 1)[None])[0])
    return decoded[0].float().transpose(0, 1).clamp(-1, 1)


def _mean_motion(frames: Tensor) -> Tensor:
    return DISFlow(confidence=False)(frames).flow.norm(dim=1).mean()


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
    pipe: Any, *, per_motion: int = 4, steps: int = 20, guidance: float = 3.0, seed: int = 0, simulated: int = 110
) -> Evaluation:
    """Generate `per_motion` clips of each motion and look at them with the classifier, which is tried on `simulated`
    clips first."""
    classifier = fit_classifier()
    accuracy, real_motion = classifier_accuracy(pipe.vae, classifier, simulated)
    specs = evaluation_specs(per_motion, seed)
    clips = generate(pipe, specs, steps=steps, guidance=guidance, seed=seed)
    asked = torch.tensor([CLASSES.index(spec.motion) for spec in specs])
    seen = classifier(clip_features(clips))
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
    exact, estimated, decoded = result.accuracy
    lines.append(f"generated as asked: {right:.0%}")
    lines.append("")
    lines.append(
        f"classifier on unseen simulated clips: {exact:.0%} by their exact flow, {estimated:.0%} by DIS, "
        f"{decoded:.0%} by DIS after the VAE"
    )
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
