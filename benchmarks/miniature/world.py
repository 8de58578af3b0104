"""A world in which every answer is known: a model with wrong physics, a corpus of good, bad and idle clips, queries.

The model is the lab's pipeline after further training on clips whose captions are right in all but one thing: the
motion that is shown is drawn without regard to the one that they name (or nothing moves, or the clip shakes, or runs
backwards). It draws objects as before, but has unlearnt which words mean which motion. The corpus can teach it that
again, and also the opposite.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_motive.lab import ClipSpec, render_clip
from hf_motive.lab.corruptions import corrupt
from hf_motive.lab.spec import BACKGROUNDS, COLORS, FPS, MODEL_FRAMES, MOTIONS, REST, SHAPES, balanced_specs
from hf_motive.video import save_clip

CLIP = {"num_frames": MODEL_FRAMES, "height": 64, "width": 64, "fps": float(FPS)}

#: What the corpus is made of, in shares. A fifth teaches what is right; most of the rest is no use, and some is worse.
KINDS = {
    "good": 0.20,
    "swapped": 0.10,  # another motion than the caption names
    "reversed": 0.10,
    "shuffled": 0.15,
    "jittered": 0.15,
    "camera": 0.20,  # an object at rest before a moving camera, and a caption that says so
    "static": 0.10,  # nothing moves at all, and a caption that says so
}
IRRELEVANT = ("camera", "static")
# Apart from the seeds of the lab's own training, corpus and queries.
CORPUS_SEED, QUERY_SEED, BASE_SEED, PROMPT_SEED, REFERENCE_SEED = 61_101, 61_102, 61_003, 61_104, 61_005
#: Of the clips that the base model unlearns with, the share whose motion is, besides being another, also spoilt.
_SPOILT = 0.5


def settings() -> dict[str, Any]:
    """What the world is made by, beside its size."""
    seeds = {"corpus": CORPUS_SEED, "queries": QUERY_SEED, "base": BASE_SEED, "prompts": PROMPT_SEED}
    return {"kinds": KINDS, "seeds": seeds, "spoilt": _SPOILT}


@dataclass(frozen=True)
class WorldClip:
    """A clip, what is said of it and what is so. `spec` is what the caption says, `shown` the motion that is seen."""

    spec: ClipSpec
    kind: str
    shown: str

    def frames(self) -> Tensor:
        """(F, 3, H, W) in [-1, 1]."""
        frames = render_clip(replace(self.spec, motion=self.shown)).frames
        return (
            corrupt(frames, self.kind, self.spec.seed) if self.kind in ("reversed", "shuffled", "jittered") else frames
        )


def corpus_clips(count: int, seed: int = CORPUS_SEED) -> list[WorldClip]:
    """The corpus: of each kind its share, and within each kind of moving clips every motion alike (to within one)."""
    counts = {kind: round(count * share) for kind, share in KINDS.items()}
    counts["good"] += count - sum(counts.values())
    rng = np.random.default_rng(seed)
    clips = []
    for place, (kind, wanted) in enumerate(counts.items()):
        specs = balanced_specs(
            wanted, seed + 10 * place, static=float(kind in IRRELEVANT), moving_camera=0, num_frames=MODEL_FRAMES
        )
        for i, spec in enumerate(specs):
            if kind == "camera":
                spec = replace(spec, camera=("pan", "zoom")[i % 2])
            shown = _another(spec.motion, rng) if kind == "swapped" else spec.motion
            clips.append(WorldClip(spec, kind, shown))
    return [clips[i] for i in rng.permutation(len(clips))]


def query_clips(per_motion: int, seed: int = QUERY_SEED) -> list[WorldClip]:
    """Clips that move as they should, the same number of each motion, before a still camera."""
    specs = balanced_specs(per_motion * len(MOTIONS), seed, static=0, moving_camera=0, num_frames=MODEL_FRAMES)
    return [
        WorldClip(spec, "good", spec.motion) for spec in sorted(specs, key=lambda s: list(MOTIONS).index(s.motion))
    ]


def unlearning_clips(count: int, seed: int = BASE_SEED) -> list[WorldClip]:
    """What the base model is trained on: motions drawn without regard to the caption, half of them spoilt as well."""
    rng = np.random.default_rng(seed)
    clips = []
    for spec in balanced_specs(count, seed, static=0, moving_camera=0.1, num_frames=MODEL_FRAMES):
        spoilt = ("frozen", "jittered", "reversed")[rng.integers(3)] if rng.random() < _SPOILT else "swapped"
        shown = tuple(MOTIONS)[rng.integers(len(MOTIONS))]
        # Frozen is shown as an object at rest: the same pixels, and no need to choose a frame.
        clips.append(
            WorldClip(spec, "swapped" if spoilt == "frozen" else spoilt, REST if spoilt == "frozen" else shown)
        )
    return clips


def prompt_specs(per_motion: int, seed: int) -> list[ClipSpec]:
    """What is asked of the models, motion after motion; objects and backgrounds are drawn anew for each seed."""
    rng = np.random.default_rng([PROMPT_SEED, seed])
    return [
        ClipSpec(
            motion,
            SHAPES[rng.integers(len(SHAPES))],
            tuple(COLORS)[rng.integers(len(COLORS))],
            BACKGROUNDS[rng.integers(len(BACKGROUNDS))],
            num_frames=MODEL_FRAMES,
        )
        for motion in MOTIONS
        for _ in range(per_motion)
    ]


def write_clips(folder: Path, clips: Sequence[WorldClip]) -> None:
    """FOLDER/clips/*.mp4 and FOLDER/metadata.jsonl, once: a finished folder is left alone."""
    if (folder / "metadata.jsonl").exists():
        return
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    lines = []
    for i, clip in enumerate(clips):
        name = f"clips/{i:04d}.mp4"
        save_clip(folder / name, clip.frames(), fps=FPS, crf=20)
        lines.append(
            json.dumps(
                {
                    "file_name": name,
                    "caption": clip.spec.caption,
                    "kind": clip.kind,
                    "shown": clip.shown,
                    **clip.spec.to_dict(),
                }
            )
        )
    partial = folder / "metadata.jsonl.partial"
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    partial.replace(folder / "metadata.jsonl")


def make_base(pipeline: Path, folder: Path, *, clips: int, steps: int, batch: int = 16, lr: float = 5e-4) -> None:
    """Train the lab's pipeline on wrong physics, and save it in FOLDER. All of it, on the CPU; once."""
    if (folder / "model_index.json").exists():
        return
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(pipeline)
    latents, captions = _encoded(pipe, unlearning_clips(clips))
    model = pipe.transformer.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95))
    for step, loss in enumerate(_losses(pipe, latents, captions, steps, batch), start=1):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, step / 20, (steps - step + 1) / max(1, steps // 5))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 25 == 0 or step == steps:
            print(f"base: step {step}/{steps} loss {loss.item():.4f}", flush=True)
    model.eval()
    partial = folder.with_name(f"{folder.name}.partial")
    pipe.save_pretrained(partial)
    partial.rename(folder)


def _losses(pipe: Any, latents: Tensor, captions: Tensor, steps: int, batch: int) -> Iterator[Tensor]:
    """Flow matching, sigma spread by the scheduler's shift; a tenth without caption, which is the last of them."""
    shift = pipe.scheduler.config.flow_shift
    generator = torch.Generator().manual_seed(BASE_SEED)
    for _ in range(steps):
        rows = torch.randint(len(latents), (batch,), generator=generator)
        noise = torch.randn(latents[rows].shape, generator=generator)
        u = (torch.rand(batch, generator=generator) + torch.arange(batch)) / batch  # stratified
        sigma = shift * u / (1 + (shift - 1) * u)
        said = torch.where(torch.rand(batch, generator=generator) < 0.1, len(captions) - 1, rows)
        blend = sigma.view(-1, 1, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            noised = (1 - blend) * latents[rows] + blend * noise
            velocity = pipe.transformer(noised, sigma * 1000, captions[said], return_dict=False)[0]
        yield torch.nn.functional.mse_loss(velocity.float(), noise - latents[rows])


@torch.no_grad()
def _encoded(pipe: Any, clips: Sequence[WorldClip]) -> tuple[Tensor, Tensor]:
    from hf_motive.lab.autoencoder import encode_whole

    config = pipe.vae.config
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (config.latents_mean, config.latents_std))
    latents = []
    for clip in clips:
        with torch.autocast("cpu", torch.bfloat16):
            latents.append(encode_whole(pipe.vae, clip.frames().transpose(0, 1)[None])[0].float())
    captions = [*(clip.spec.caption for clip in clips), ""]
    embeds = [pipe.encode_prompt(caption, do_classifier_free_guidance=False)[0] for caption in captions]
    return (torch.cat(latents) - mean) / std, torch.cat(embeds).float()


def _another(motion: str, rng: np.random.Generator) -> str:
    others = [m for m in MOTIONS if m != motion]
    return others[rng.integers(len(others))]
