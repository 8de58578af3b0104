"""`influence.py` against loops in float64 and numpy, and the law that no order and no chunk size changes a bit."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hf_motive import influence as module
from hf_motive.influence import Influence, cosine, cutoffs, influence, mean_influence, rank, select, votes

N, Q, D = 2500, 7, 64  # more rows than two internal blocks, and no multiple of one


@pytest.fixture(scope="module")
def corpus() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shared = 0.3 * torch.randn(D, generator=generator)  # a common part, as real gradients have
    features = torch.randn(N, D, generator=generator) + shared
    queries = torch.randn(Q, D, generator=generator) + shared
    return features, queries


def naive(features: torch.Tensor, queries: torch.Tensor, fraction: float) -> dict[str, list]:
    """Sections 3.4 and 3.5 by loops over Python floats."""
    x, q = features.double().tolist(), queries.double().tolist()
    norm = [math.sqrt(math.fsum(v * v for v in row)) for row in x]
    q_norm = [math.sqrt(math.fsum(v * v for v in row)) for row in q]
    scores = [
        [math.fsum(a * b for a, b in zip(x[i], q[j], strict=True)) / (norm[i] * q_norm[j]) for j in range(len(q))]
        for i in range(len(x))
    ]
    taus = [float(np.percentile([row[j] for row in scores], 100 * (1 - fraction))) for j in range(len(q))]
    counts = [sum(row[j] > taus[j] for j in range(len(q))) for row in scores]
    mean = [math.fsum(row) / len(q) for row in scores]
    order = sorted(range(len(x)), key=lambda i: (-counts[i], -mean[i], i))
    ranks = [0] * len(x)
    for place, i in enumerate(order):
        ranks[i] = place
    return {"scores": scores, "mean": mean, "votes": counts, "rank": ranks}


def same(a: Influence, b: Influence) -> bool:
    return all(
        torch.equal(getattr(a, name), getattr(b, name)) for name in ("scores", "cutoffs", "mean", "votes", "rank")
    )


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.07])
def test_agrees_with_loops_in_float64(corpus, fraction):
    features, queries = corpus[0][:300], corpus[1]
    result = influence(features, queries, fraction=fraction)
    expected = naive(features, queries, fraction)
    torch.testing.assert_close(result.scores.double(), torch.tensor(expected["scores"]).double(), rtol=0, atol=6e-8)
    torch.testing.assert_close(result.mean, torch.tensor(expected["mean"], dtype=torch.float64), rtol=0, atol=6e-8)
    assert result.votes.tolist() == expected["votes"]
    assert result.rank.tolist() == expected["rank"]


def test_the_default_cutoff_is_the_selection_percentile(corpus):
    features, queries = corpus
    for fraction in (0.1, 0.07, 0.3):  # 1 - 0.07 and 1 - 0.3 are not what they seem in floating point
        result = influence(features, queries, fraction=fraction)
        above = (result.scores > result.cutoffs).sum(dim=0)
        expected = N - 1 - math.floor(round((N - 1) * (1 - fraction), 6))
        assert above.tolist() == [expected] * Q
    assert same(influence(features, queries), influence(features, queries, percentile=90.0))
    assert influence(features, queries, percentile=50).votes.sum() > influence(features, queries).votes.sum()


@pytest.mark.parametrize("percentile", [0, 10, 50, 90, 99, 99.9])
@pytest.mark.parametrize("n", [1, 2, 10, 101])
def test_votes_are_those_of_numpys_percentile(n, percentile):
    scores = torch.randn(n, 3, generator=torch.Generator().manual_seed(n)).clamp(-1, 1)
    tau = np.percentile(scores.double().numpy(), percentile, axis=0)
    assert votes(scores, cutoffs(scores, percentile)).tolist() == (scores.numpy() > tau).sum(axis=1).tolist()


def test_chunks_change_no_bit(corpus):
    features, queries = corpus
    whole = influence(features, queries)
    for sizes in ([1], [3, 1000], [1024], [2499], [N], [17, 4096]):
        chunks, start, turn = [], 0, 0
        while start < N:
            chunks.append(features[start : start + sizes[turn % len(sizes)]])
            start, turn = start + len(chunks[-1]), turn + 1
        assert same(influence(iter(chunks), queries), whole), sizes


def test_internal_blocks_and_threads_change_no_bit(corpus, monkeypatch):
    features, queries = corpus
    whole = influence(features, queries)
    for block in (1, 100, 5000):
        monkeypatch.setattr(module, "_BLOCK", block)
        assert same(influence(features, queries), whole), block
    torch.set_num_threads(2)
    try:
        assert same(influence(features, queries), whole)
    finally:
        torch.set_num_threads(1)


def test_dot_products_are_exact(corpus):
    """The law itself: what BLAS sums is the integer that Python's own integers give."""
    features, queries = (module._grid_units(v[:50], "clip", 0) for v in corpus)
    got = (features @ queries.T).tolist()
    for i, row in enumerate(features.tolist()):
        for j, query in enumerate(queries.tolist()):
            assert sum(int(a) * int(b) for a, b in zip(row, query, strict=True)) == int(got[i][j])


def test_clips_and_queries_in_any_order(corpus):
    features, queries = corpus
    whole = influence(features, queries)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    turned = influence(features[order], queries)
    for name in ("scores", "mean", "votes", "rank"):
        assert torch.equal(getattr(turned, name), getattr(whole, name)[order]), name
    assert torch.equal(turned.cutoffs, whole.cutoffs)
    turned = influence(features, queries.flip(0))
    for name in ("mean", "votes", "rank"):
        assert torch.equal(getattr(turned, name), getattr(whole, name)), name


def test_positive_scale_of_a_clip_or_query_cancels(corpus):
    """paper.md, derived: 1/F, mean or sum, and the mask's own scale change nothing in the score."""
    features, queries = corpus
    whole = influence(features, queries)
    powers = torch.randint(-60, 60, (N, 1), generator=torch.Generator().manual_seed(2))
    assert same(influence(features * 2.0**powers, queries * 2.0**-9), whole)  # exact in floating point: bit for bit
    scale = torch.rand(N, 1, generator=torch.Generator().manual_seed(3)) * 1e4 + 1e-4
    scaled = influence(features.double() * scale, queries)
    torch.testing.assert_close(scaled.scores, whole.scores, rtol=0, atol=6e-8)
    assert torch.equal(scaled.votes, whole.votes)
    # The score is odd: a clip and its opposite are equally far from zero, and negative influence stays negative.
    assert torch.equal(cosine(-features, queries), -whole.scores)
    assert whole.scores.min() < 0


def test_extreme_but_valid_values():
    tiny, huge = torch.tensor([[1e-44, -1e-44]]), torch.tensor([[3e38, -3e38]])
    assert cosine(torch.cat([tiny, huge]), huge).tolist() == [[1.0], [1.0]]
    assert cosine(torch.tensor([[1e300, 0.0], [1e-300, 0.0]], dtype=torch.float64), tiny.double()).shape == (2, 1)
    same_direction = torch.randn(40, 512, generator=torch.Generator().manual_seed(4))
    assert cosine(same_direction, same_direction).max() <= 1.0
    assert (cosine(same_direction.bfloat16(), same_direction.bfloat16()).diagonal() == 1).all()


def test_ties():
    # Clips 1 and 3 are equal, and so are 0 and 2: votes tie, means tie, the position decides.
    features = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [-1.0, 0.0]])
    result = influence(features, torch.tensor([[1.0, 0.0]]), percentile=50)
    assert result.scores[:, 0].tolist() == [0, 1, 0, 1, -1]
    assert result.votes.tolist() == [0, 1, 0, 1, 0]
    assert result.rank.tolist() == [2, 0, 3, 1, 4]
    # All clips alike: nobody is above the cut-off, and the order is that of the corpus.
    alike = influence(torch.ones(20, 4), torch.randn(3, 4, generator=torch.Generator().manual_seed(5)))
    assert alike.votes.tolist() == [0] * 20
    assert alike.rank.tolist() == list(range(20))
    # Votes come before the mean.
    assert rank(torch.tensor([1, 2, 1]), torch.tensor([0.9, -0.9, 0.95])).tolist() == [2, 0, 1]


def test_one_clip_and_one_query():
    result = influence(torch.ones(1, 3), torch.tensor([[-1.0, -1.0, -1.0]]))
    assert (result.scores.item(), result.votes.item(), result.rank.item()) == (-1.0, 0, 0)
    assert result.top(0.1).tolist() == [0]


def test_select_counts_in_decimals():
    for n, fraction, expected in [
        (30, 0.1, 3),
        (100, 0.07, 7),
        (10000, 0.1, 1000),
        (3, 0.1, 1),
        (105, 0.1, 11),
        (8, 1, 8),
    ]:
        assert len(select(torch.arange(n), fraction)) == expected, (n, fraction)
    assert select(torch.tensor([2, 0, 1]), 0.5).tolist() == [1, 2]


def test_mean_is_exact_in_any_order():
    scores = torch.rand(500, 301, generator=torch.Generator().manual_seed(6)) * 2 - 1
    mean = mean_influence(scores)
    assert torch.equal(mean, mean_influence(scores[:, torch.randperm(301)]))
    expected = torch.tensor([math.fsum(row) / 301 for row in scores.double().tolist()], dtype=torch.float64)
    torch.testing.assert_close(mean, expected, rtol=0, atol=2.0**-40)


def test_inputs_are_left_as_they_were(corpus):
    features, queries = corpus[0][:20].double(), corpus[1].double()
    before = features.clone(), queries.clone()
    influence(features, queries)
    assert torch.equal(features, before[0]) and torch.equal(queries, before[1])


@pytest.mark.parametrize(
    ("features", "queries", "message"),
    [
        (torch.ones(4, 3), torch.ones(0, 3), r"queries must be \(Q, D\) with Q >= 1, got \(0, 3\): give at least one"),
        (torch.ones(4, 3), torch.ones(3), r"queries must be \(Q, D\) with Q >= 1, got \(3,\)"),
        (torch.ones(0, 3), torch.ones(2, 3), "there are no clips to score"),
        ([], torch.ones(2, 3), "there are no clips to score"),
        (torch.ones(4, 5), torch.ones(2, 3), r"queries' D = 3, got \(4, 5\): project clips and queries with the same"),
        ([torch.ones(4, 3), torch.ones(3)], torch.ones(2, 3), r"queries' D = 3, got \(3,\)"),
        (torch.tensor([[1.0, 1], [1, math.nan]]), torch.ones(1, 2), "the feature of clip 1 holds NaN or infinity"),
        ([torch.ones(3, 2), torch.tensor([[-math.inf, 1]])], torch.ones(1, 2), "the feature of clip 3 holds NaN"),
        (torch.tensor([[1.0, 1], [0, 0]]).double(), torch.ones(1, 2), "the feature of clip 1 is all zeros and has no"),
        (torch.ones(4, 2), torch.tensor([[1.0, math.nan]]), "the feature of query 0 holds NaN or infinity"),
        (torch.ones(4, 2), torch.zeros(1, 2), "the feature of query 0 is all zeros and has no direction"),
    ],
)
def test_bad_input_says_what_and_where(features, queries, message):
    with pytest.raises(ValueError, match=message):
        influence(features, queries)


def test_bad_percentile_and_fraction():
    for percentile in (100, -1, math.nan):
        with pytest.raises(ValueError, match=r"percentile must be in \[0, 100\), got .*; 90 gives each query a tenth"):
            influence(torch.eye(3), torch.eye(3), percentile=percentile)
    for fraction in (0, 1.5, math.nan):
        with pytest.raises(ValueError, match=r"fraction must be in \(0, 1\], got .*; 0.1 keeps a tenth of the clips"):
            influence(torch.eye(3), torch.eye(3), fraction=fraction)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_bits(corpus):
    features, queries = corpus
    on_gpu = influence(features, queries.cuda())
    whole = influence(features, queries)
    for name in ("scores", "cutoffs", "mean", "votes", "rank"):
        assert torch.equal(getattr(on_gpu, name).cpu(), getattr(whole, name)), name
