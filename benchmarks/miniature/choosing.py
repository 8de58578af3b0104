"""Who chooses: each method ranks the same clips, by its own measure, for the same queries."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hf_motive import MotiveAttributor
from hf_motive.encoded_blob import read_encoding
from hf_motive.influence import influence

FRACTION = 0.1
GENERALIST = "all ten"
#: The methods in the order of the table. The first two are not trained, and "full" chooses nothing.
METHODS = ("unspoilt", "base", "full", "random", "magnitude", "VAE similarity", "whole clip", "Motive", "worst")
UNTRAINED = ("unspoilt", "base")
CHOOSING = METHODS[3:]
#: Those whose choice depends on the queries.
ASKING = ("VAE similarity", "whole clip", "Motive", "worst")


class Choices:
    """What every method would choose from one corpus.

    Only clips that all of them can rank are chosen from: one in which nothing moves has no mask, and leaving it out is
    nobody's merit. (The whole corpus, which "full" trains on, holds it.)

    Args:
        corpus, queries: Encoded rows of `world.write_clips`.
        features: By "Motive" and "whole clip": features of the corpus (N, D), NaN where there is none, and of the
            queries (Q, D).
        motion: (N,) mean flow of each clip in pixels a frame.
    """

    def __init__(self, corpus: Any, queries: Any, features: dict[str, tuple[Tensor, Tensor]], motion: np.ndarray):
        self.asked = np.array(queries["motion"])
        both = [corpus_features for corpus_features, _ in features.values()]
        self.ranked = np.flatnonzero(np.isfinite(motion) & ~np.any([f.isnan().any(1).numpy() for f in both], axis=0))
        self.motion = motion
        pictures, asked = (_pictures(rows["encoded"]) for rows in (corpus, queries))
        centre = pictures[self.ranked].mean(0)
        self.features = {**features, "VAE similarity": (pictures - centre, asked - centre)}

    def ranking(self, method: str, target: str, seed: int) -> np.ndarray:
        """Rows of the corpus, the first to be chosen first.

        Args:
            method: One of `METHODS` that chooses.
            target: A motion, whose queries are asked with, or `GENERALIST`: all queries, by their votes.
            seed: Of "random".
        """
        if method == "random":
            return np.random.default_rng([seed, 7]).permutation(self.ranked)
        if method == "magnitude":
            return self.ranked[np.argsort(-self.motion[self.ranked], kind="stable")]
        of_corpus, of_queries = self.features["Motive" if method == "worst" else method]
        rows = slice(None) if target == GENERALIST else torch.from_numpy(self.asked == target)
        rank = influence(of_corpus[self.ranked], of_queries[rows], fraction=FRACTION).rank.numpy()
        order = self.ranked[np.argsort(rank)]
        return order[::-1] if method == "worst" else order

    def chosen(self, method: str, target: str, seed: int, of: int) -> np.ndarray:
        """The tenth of the corpus's `of` clips that a method trains on; all of them for "full"."""
        if method == "full":
            return np.arange(of)
        return np.sort(self.ranking(method, target, seed)[: round(FRACTION * of)])


def encoded(pipe: Any, clip: dict[str, Any], folders: Sequence[Path]) -> list[Any]:
    """The clips of each folder with their encodings, which both scoring and training read."""
    from hf_motive.corpus import load_clips

    attributor = MotiveAttributor(pipe, **clip)
    return [attributor.encode(load_clips(folder)) for folder in folders]


def choices(pipe: Any, clip: dict[str, Any], corpus: Any, queries: Any, folder: Path, **settings: Any) -> Choices:
    """Compute what all methods go by; features are kept in FOLDER, and a stopped run goes on."""
    masked = MotiveAttributor(pipe, preset="paper", **clip, encoded_column="encoded", **settings)
    begin, new = time.monotonic(), not folder.exists()
    features, motion = {}, None
    for name, attributor in (("Motive", masked), ("whole clip", masked.without_mask())):
        found = []
        for rows, part in ((corpus, "corpus"), (queries, "queries")):
            index = attributor.index(rows, folder / f"{name.replace(' ', '_')}_{part}")
            ids = attributor.ids(rows)
            ok = [index.status(i) == "ok" for i in ids]
            matrix = torch.full((len(ids), attributor.projection.dim), float("nan"))
            matrix[torch.tensor(ok)] = index.features([i for i, fine in zip(ids, ok, strict=True) if fine])
            found.append(matrix)
            if motion is None:
                facts = {row.id: row.facts for row in index.rows(dict.fromkeys(ids))}
                motion = np.array([facts[i].get("mean_motion") or np.nan for i in ids])
        features[name] = (found[0], found[1])
    assert motion is not None
    if new:  # of a run that was stopped and went on it would be too little
        seconds = {"gradients": round(time.monotonic() - begin), "clips": len(corpus) + len(queries)}
        (folder / "seconds.json").write_text(json.dumps(seconds), encoding="utf-8")
    return Choices(corpus, queries, features, motion)


def _pictures(blobs: Sequence[bytes]) -> Tensor:
    """(N, D): what a clip looks like and how that changes, as the pipeline's own VAE has it."""
    return torch.stack([read_encoding(blob).latents.flatten() for blob in blobs])
