"""Standard errors over the draws: against the formula by hand, and against draws that were not taken."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.stats import t as student

from hf_motive.draws import quantile, side_by_side, standard_error, without
from hf_motive.index import GradientIndex
from hf_motive.influence import influence
from hf_motive.selection import best, without_worst
from hf_motive.transforms import check_groups, error_column, group_columns, influence_columns
from hf_motive.uncertainty import uncertainty

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import intervals


def drawn(count: int, draws: int, dim: int = 64, noise: float = 0.1, seed: int = 0, shared: float = 0.0):
    """(count, draws, dim) units about fixed directions, and those directions. `shared`: noise that all clips have."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.nn.functional.normalize(
        torch.randn(count, 1, dim, generator=torch.Generator().manual_seed(99)), dim=2
    )
    own = noise * torch.randn(count, draws, dim, generator=generator)
    common = shared * torch.randn(1, draws, dim, generator=generator)
    return torch.nn.functional.normalize(means + own + common, dim=2), means[:, 0]


def test_equal_draws_are_compared():
    units, others = drawn(3, 4)[0], drawn(2, 4, seed=1)[0]
    cosines = torch.einsum("ikd,jkd->ijk", units, others)
    torch.testing.assert_close(side_by_side(units) @ side_by_side(others).T, cosines.mean(2))
    left = cosines[..., [0, 1, 3]].mean(2)
    torch.testing.assert_close(without(units, 2) @ without(others, 2).T, left)
    torch.testing.assert_close(side_by_side(units).norm(dim=1), torch.ones(3))
    assert torch.equal(side_by_side(units[:, :1]), units[:, 0]), "one draw is the feature, bit for bit"
    with pytest.raises(ValueError, match="noise_draws=4"):
        without(units[:, :1], 0)


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    without_each = (values.sum(0) - values) / 6
    torch.testing.assert_close(standard_error(without_each), values.std(0) / 7**0.5)


def test_a_bound_is_students():
    assert quantile(4, 0.9) == pytest.approx(student.ppf(0.9, 3))
    for bad in (0.4, 1.0):
        with pytest.raises(ValueError, match="confidence"):
            quantile(4, bad)


def test_against_influence_computed_without_each_draw():
    clips, _ = drawn(20, 3)
    queries, _ = drawn(6, 3, seed=1)
    found = uncertainty(lambda: iter([clips[:7], clips[7:]]), queries, groups={"a": [0, 2], "b": [1]}, fraction=0.2)
    left = [influence(without(clips, k), without(queries, k), fraction=0.2) for k in range(3)]

    def error(values: list[torch.Tensor]) -> np.ndarray:
        each = np.stack([value.double().numpy() for value in values])
        own = 2 / 3 * ((each - each.mean(0)) ** 2).sum(0)
        return np.sqrt((2 * own + 4 * own.mean()) / 6)

    np.testing.assert_allclose(found.mean, error([one.mean for one in left]), rtol=1e-9)
    np.testing.assert_allclose(found.rank, error([one.rank for one in left]), rtol=1e-9)
    np.testing.assert_allclose(found.groups["a"], error([one.scores[:, [0, 2]].mean(1) for one in left]), rtol=1e-5)
    assert found.draws == 3 and set(found.groups) == {"a", "b"}


def test_intervals_cover_what_other_draws_say():
    """Of four draws, 90 % intervals of the influence hold what four hundred find, nine times in ten or so."""
    inside = []
    for seed in range(12):
        few, _ = drawn(60, 4, seed=seed)
        asked, _ = drawn(5, 4, seed=100 + seed)
        many, many_asked = drawn(60, 400, seed=7)[0], drawn(5, 400, seed=8)[0]
        truth = influence(side_by_side(many), side_by_side(many_asked)).mean
        scores = influence(side_by_side(few), side_by_side(asked)).mean
        error = uncertainty(lambda few=few: iter([few]), asked).mean
        inside.append(((scores - truth).abs() <= quantile(4, 0.95) * error).double().mean().item())
    assert 0.8 < np.mean(inside) < 0.98


def test_what_is_chosen_with_confidence_belongs_there():
    """Of three draws a clip's own error is next to none by chance: alone it would let in one of seven wrongly."""
    many, many_asked = drawn(200, 300, noise=0.1, seed=7)[0], drawn(5, 300, noise=0.1, seed=8)[0]
    truth = influence(side_by_side(many), side_by_side(many_asked)).mean
    top, right, chosen = truth > truth.sort().values[-21], 0, 0
    for seed in range(20):
        few, asked = drawn(200, 3, noise=0.1, seed=seed)[0], drawn(5, 3, noise=0.1, seed=100 + seed)[0]
        scores = influence(side_by_side(few), side_by_side(asked)).mean
        error = uncertainty(lambda few=few: iter([few]), asked).mean
        sure = scores - quantile(3, 0.9) * error > scores.sort().values[-21]
        right, chosen = right + int(top[sure].sum()), chosen + int(sure.sum())
    assert chosen > 40 and right > 0.93 * chosen


def test_the_benchmark_counts_what_is_covered():
    """Noises of one law, so that intervals hold what the other noises say as often as they claim; and too short ones
    would not."""
    assert list(intervals.parts(5, 2)) == [([0, 1], [2, 3, 4]), ([2, 3], [0, 1, 4])]
    clips, queries = (
        drawn(count, 12, noise=0.3, seed=seed)[0].unflatten(1, (3, 4)) for count, seed in ((60, 0), (5, 1))
    )
    counted = intervals.covered(clips, queries, own=2)
    assert all(len(values) == 2 for values in counted.values())
    assert 0.8 < np.mean(counted["influence covered"]) < 0.98
    assert np.mean(counted["error of a rank, said"]) == pytest.approx(np.mean(counted["and found"]), rel=0.5)
    assert 0 < np.mean(counted["best tenth by rank that is so"]) <= 1
    assert np.mean(counted["of them by influence so"]) <= np.mean(counted["chosen by influence with confidence"])


def test_what_a_draw_does_to_all_clips_alike_makes_no_rank_unsure():
    """Clips that only differ by how near they are to the query, and noise that all of them share."""
    query = torch.nn.functional.normalize(torch.randn(1, 1, 64, generator=torch.Generator().manual_seed(3)), dim=2)
    steps = torch.linspace(0.2, 1.0, 9)[:, None, None]
    noise = 0.05 * torch.randn(1, 4, 64, generator=torch.Generator().manual_seed(4))
    clips = torch.nn.functional.normalize(steps * query + noise, dim=2)
    found = uncertainty(lambda: iter([clips]), query.expand(1, 4, 64))
    assert (found.mean > 0).all() and (found.rank == 0).all()


@pytest.fixture(scope="module")
def indexes(tmp_path_factory) -> tuple[GradientIndex, GradientIndex]:
    folder = tmp_path_factory.mktemp("indexes")
    for name, count, seed in (("clips", 30, 0), ("queries", 4, 1)):
        with GradientIndex.create_or_open(folder / name, {"features": {}}, 64, draws=4) as index:
            for row, units in enumerate(drawn(count, 4, seed=seed)[0]):
                index.append(f"{name}{row:02d}", units, mean_motion=1.0)
            if name == "clips":
                index.append("still", None, status="static", reason="nothing moves")
    return GradientIndex.open(folder / "clips"), GradientIndex.open(folder / "queries")


def test_columns(indexes):
    index, queries = indexes
    ids = [*index.ids("ok"), "still"]
    columns = influence_columns(ids, index, queries.ids(), queries, groups=["up", "up", "down", "down"])
    for name in ("influence", "influence_rank", "influence_up", "influence_down"):
        errors = np.array(columns[error_column(name)])
        assert (errors[:-1] > 0).any() and (errors[:-1] >= 0).all() and np.isnan(errors[-1])
    assert columns["influence_draws"] == [4.0] * 31
    assert group_columns(columns) == ["influence_down", "influence_up"]
    with pytest.raises(ValueError, match="cannot be called 'error_up'"):
        check_groups(["error_up"])


def test_one_draw_has_no_such_columns(tmp_path):
    with GradientIndex.create_or_open(tmp_path, {"features": {}}, 64) as index:
        for row, units in enumerate(drawn(3, 1)[0]):
            index.append(f"{row}", units)
    columns = influence_columns(index.ids(), index, index.ids(), index)
    assert not [name for name in columns if "error" in name or "draws" in name]


def test_select_by_confidence(indexes):
    """Certain rows are a part of the selection, and fewer where more certainty is asked for."""
    index, queries = indexes
    scored = Dataset.from_dict(influence_columns(index.ids("ok"), index, queries.ids(), queries))
    every = best(scored, 0.3, by="influence")["influence_id"][:]
    counts = []
    for confidence in (0.5, 0.9, 0.999):
        some = best(scored, 0.3, by="influence", confidence=confidence)["influence_id"][:]
        assert some == [identity for identity in every if identity in some]
        counts.append(len(some))
    assert counts == sorted(counts, reverse=True) and counts[0] == 9 and 0 < counts[1] < 9
    kept = [len(without_worst(scored, 0.3, confidence=confidence)) for confidence in (0.5, 0.9, 0.999)]
    assert kept == sorted(kept) and kept[0] >= 21 and kept[-1] > 21
