"""Influence columns from two small indexes: what is not there in one of them is a row without a score, no more."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch

from hf_motive.index import GradientIndex
from hf_motive.transforms import Rivals, influence_columns

DIM = 8


def index_of(path: Path, rows: dict[str, int | None], settings: int = 0) -> GradientIndex:
    """An index of unit vectors, each along one axis; None is a clip that nothing moves in."""
    settings = {"features": {"seed": settings}, "provenance": {}}
    with GradientIndex.create_or_open(path, settings, DIM) as index:
        for name, axis in rows.items():
            if axis is None:
                index.append(name, None, status="static", reason="nothing moves")
            else:
                index.append(name, torch.eye(DIM)[axis], mean_motion=float(axis))
    return GradientIndex.open(path)


def test_a_rival_that_lacks_a_clip_or_a_query(tmp_path):
    ids, asked = ["a", "b", "c", "a", "gone"], ["p", "q"]
    index = index_of(tmp_path / "index", {"a": 0, "b": 1, "c": None})
    queries = index_of(tmp_path / "queries", {"p": 0, "q": 1})
    rivals = Rivals(
        index_of(tmp_path / "whole", {"a": None, "b": 0}, 1), index_of(tmp_path / "whole-q", {"p": 0, "q": None}, 1)
    )
    columns = influence_columns(ids, index, asked, queries, groups=["left", "right"], rivals=rivals)
    assert columns["influence_status"] == ["ok", "ok", "static", "duplicate", "failed"]
    assert "as row 0" in columns["influence_reason"][3] and "not in the index" in columns["influence_reason"][4]
    nan = math.nan
    np.testing.assert_array_equal(columns["influence_left"], [1, 0, nan, nan, nan])
    np.testing.assert_array_equal(columns["influence"], [0.5, 0.5, nan, nan, nan])
    np.testing.assert_array_equal(columns["motion_mean"], [0, 1, nan, 0, nan])
    np.testing.assert_array_equal(columns["rival_whole_clip"], [nan, 1, nan, nan, nan])
    np.testing.assert_array_equal(columns["rival_whole_clip_rank"], [nan, 0, nan, nan, nan])
    assert np.isnan(columns["rival_random"]).tolist() == [False, False, True, True, True]
    other = influence_columns(["b", "a"], index, asked, queries, rivals=rivals)
    assert other["rival_random"] == columns["rival_random"][1::-1], "a number of the clip, not of its row"
