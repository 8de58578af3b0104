"""One experiment as tensors: the base model, the clips of a corpus, the queries and the model's own clips for their
captions, as a training step takes them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from miniature import world
from torch import Tensor

from hf_motive import MotiveAttributor
from hf_motive.corpus import load_clips
from hf_motive.encoded_blob import Encoding, read_encoding

from . import crossed
from .failures import write_samples


class Clips(NamedTuple):
    """N clips that have a mask: those in which nothing moves are left out, because no contender can rank them.

    Attributes:
        latents: (N, C, T, h, w), normalised as the denoiser sees them.
        captions: (N, L, E), the text encoder's.
        weights: (N, T, h, w) in [0, 1], the motion masks.
        facts: Of each clip what world.write_clips knows, or write_samples, and `mean_motion` in pixels a frame.
        rows: Of the dataset, with their encodings: what `MotiveAttributor` reads.
    """

    latents: Tensor
    captions: Tensor
    weights: Tensor
    facts: list[dict[str, Any]]
    rows: Any

    def __len__(self) -> int:
        return len(self.latents)

    def part(self, start: int, stop: int) -> Clips:
        rows = self.rows.select(range(start, min(stop, len(self))))
        return Clips(*(values[start:stop] for values in self[:-1]), rows)

    def labels(self, name: str) -> np.ndarray:
        return np.array([clip[name] for clip in self.facts])


class Case(NamedTuple):
    """What every run needs.

    Attributes:
        base: Folder of the checkpoint that all of them start from.
        corpus, queries: Clips.
        samples: What the base makes of the queries' captions.
    """

    base: Path
    corpus: Clips
    queries: Clips
    samples: Clips

    def pipeline(self) -> Any:
        """The base, on a GPU where there is one. The case itself is made on the CPU, to be the same anywhere."""
        return pipeline(self.base).to("cuda" if torch.cuda.is_available() else "cpu")


def pipeline(base: Path) -> Any:
    from diffusers import WanPipeline

    pipe = WanPipeline.from_pretrained(base)
    pipe.set_progress_bar_config(disable=True)
    return pipe


WORLDS = ("curation", "crossed", "lab")


def make(
    kind: str,
    lab: Path,
    output: Path,
    *,
    corpus: int,
    queries: int,
    motions: Sequence[str],
    base_clips: int,
    base_steps: int,
    lr: float,
    sampling_steps: int,
    fitted_to: int,
) -> Case:
    """One of `WORLDS`, made once and kept in a folder.

    Args:
        kind: "curation": the world of benchmarks/curation.py. "crossed": its base, with a corpus in which motions have
            looks (crossed.py). "lab": the lab's own pipeline, as it is, its corpus and its queries, all of them.
        lab: Folder of the lab.
        output: The folder.
        corpus: How many clips; of "lab" the first so many.
        queries: Clips of each of these motions; of "lab" the first so many in all.
        base_clips, base_steps, lr: Of the training in which the base unlearns.
        sampling_steps, fitted_to: As write_samples has them.
    """
    base, folders = lab / "pipeline", [lab / "corpus", lab / "queries"]
    if kind != "lab":
        base, folders = output / "base", [output / "corpus", output / "queries"]
        world.make_base(lab / "pipeline", base, clips=base_clips, steps=base_steps, lr=lr)
        source = {"curation": world, "crossed": crossed}[kind]
        world.write_clips(folders[0], source.corpus_clips(corpus))
        world.write_clips(folders[1], [clip for clip in source.query_clips(queries) if clip.shown in motions])
    pipe = pipeline(base)
    asked = queries * len(motions)
    write_samples(pipe, folders[1], output / "samples", steps=sampling_steps, fitted_to=fitted_to, count=asked)
    attributor = MotiveAttributor(pipe, **world.CLIP)
    every = [
        attributor.encode(rows.select(range(min(count, len(rows)))))
        for rows, count in zip(map(load_clips, [*folders, output / "samples"]), (corpus, asked, asked), strict=True)
    ]
    made = Case(base, *(_clips(pipe.vae.config, rows) for rows in every))
    if kind == "crossed":
        for clip in (*made.corpus.facts, *made.queries.facts):
            clip["look"] = crossed.look(clip)
    return made


def _clips(vae: Any, rows: Any) -> Clips:
    mean, std = (torch.tensor(values).view(-1, 1, 1, 1) for values in (vae.latents_mean, vae.latents_std))
    encodings = [read_encoding(blob) for blob in rows["encoded"]]
    rows = rows.select(np.flatnonzero([encoding.weight is not None for encoding in encodings]))
    encodings = [encoding for encoding in encodings if encoding.weight is not None]
    facts = [dict(row) for row in rows.remove_columns(["video", "encoded"])]
    for clip, encoding in zip(facts, encodings, strict=True):
        clip["mean_motion"] = encoding.mean_motion
        clip.setdefault("shown", clip["motion"])
    return Clips(
        torch.stack([(encoding.latents - mean) / std for encoding in encodings]),
        torch.stack([_caption(encoding) for encoding in encodings]),
        torch.stack([encoding.weight for encoding in encodings]),
        facts,
        rows,
    )


def _caption(encoding: Encoding) -> Tensor:
    """What the text encoder said: the one answer of a pipeline whose one frozen part it is."""
    (answer,) = encoding.answers.values()
    return answer.tensors[0][0]


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write what is to lie at PATH: there it is whole or not at all, whoever else writes it."""
    partial = path.with_name(f"{path.stem}.{os.getpid()}.partial{path.suffix}")
    yield partial
    partial.replace(path)


def check(output: Path, settings: dict[str, Any]) -> None:
    """A folder holds one experiment: another must not be mixed into its table."""
    text, path = json.dumps(settings, indent=1), output / "settings.json"
    if path.exists() and path.read_text("utf-8") != text:
        raise SystemExit(f"{path} is of another experiment: give another --output, or delete {output}")
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
