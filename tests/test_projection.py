"""Fastfood against its explicit matrix, against a dense Gaussian's statistics, and against itself in pieces."""

from __future__ import annotations

import json
import math
import pickle
from itertools import pairwise

import pytest
import torch
from scipy.linalg import hadamard
from torch.utils._python_dispatch import TorchDispatchMode

from hf_motive import projection
from hf_motive.projection import Fastfood


class SmallTables(Fastfood):
    """The same law with tables that are made quickly, for tests that average over seeds."""

    table_bits = 14
    run_bits = 11


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def gradients(sizes: dict[str, int], dtype=torch.float32, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(size, generator=generator).to(dtype) for name, size in sizes.items()}


SIZES = {"blocks.0.weight": 1300, "blocks.0.bias": 7, "blocks.1.weight": 1024, "head": 513, "scale": 1}


@pytest.fixture(scope="module")
def law() -> Fastfood:
    return Fastfood(dim=64, seed=3)


@pytest.mark.parametrize("n", [2, 64, 512, 1024, 2**13])
def test_transform_is_the_sylvester_hadamard_matrix(n):
    x = torch.randn(3, n, dtype=torch.float64)
    expected = x @ torch.from_numpy(hadamard(n)).double()
    factors = projection._hadamard_factors(x)
    assert relative(projection._hadamard_transform(x.clone(), torch.empty_like(x), factors), expected) < 1e-14


@pytest.mark.parametrize("dim, block", [(64, None), (64, 64), (64, 128), (128, None), (512, 512)])
def test_fast_path_equals_the_explicit_matrix(dim, block):
    law = SmallTables(dim, seed=5, block=block)
    matrix = law.matrix(SIZES)
    for dtype, tolerance in ((torch.float64, 1e-7), (torch.float32, 1e-6), (torch.bfloat16, 1e-6)):
        pieces = gradients(SIZES, dtype)
        expected = matrix @ torch.cat([piece.double() for piece in pieces.values()])
        assert relative(law.project(pieces), expected) < tolerance


def test_runs_of_a_large_parameter_follow_the_matrix():
    law = SmallTables(64, seed=1)  # runs of 2048 positions, blocks of 512
    pieces = gradients({"large": 5000, "other": 2048})
    expected = law.matrix({"large": 5000, "other": 2048}) @ torch.cat(list(pieces.values())).double()
    assert relative(law.project(pieces), expected) < 1e-6


def test_rows_of_a_block_have_the_norm_that_s_gives_them(law):
    rows = law.matrix({"weight": 1024})
    for block in (rows[:, :512], rows[:, 512:]):
        assert torch.allclose(block.square().sum(1), torch.full((64,), 512 / 64, dtype=torch.float64))


def test_the_law_does_not_change_unnoticed():
    """Features on disk are only as good as this: a change of these numbers must raise `law` in the settings."""
    law = Fastfood(dim=64, seed=11)
    assert law.settings() == {"kind": "fastfood", "law": 1, "dim": 64, "block": 512, "seed": 11}
    assert law._place("transformer.blocks.0.weight", 3) == FROZEN_PLACE
    vector = law.project({"transformer.blocks.0.weight": torch.arange(1.0, 701.0), "bias": torch.ones(3)})
    assert torch.allclose(vector[:4], torch.tensor(FROZEN_VECTOR), rtol=1e-5, atol=1e-3)


FROZEN_PLACE = (291252, 664575, -1)
FROZEN_VECTOR = [856.0135, -329.2888, -220.6315, -478.7323]


def test_hash_is_the_same_for_integers_and_tensors_and_mixes_every_bit():
    counters = torch.arange(4096)
    key0, key1 = 0xFFFFFFFF, 0x89ABCDEF
    hashed = projection.keyed_hash(counters, key0, key1)
    assert hashed.tolist() == [projection.keyed_hash(i, key0, key1) for i in range(4096)]
    assert hashed.unique().numel() == 4096 and hashed.min() >= 0 and hashed.max() < 2**32
    for bit in range(32):
        flipped = hashed ^ projection.keyed_hash(counters ^ (1 << bit), key0, key1)
        changed = torch.stack([(flipped >> out & 1).double().mean() for out in range(32)])
        assert changed.min() > 0.4 and changed.max() < 0.6 and 0.48 < changed.mean() < 0.52


def test_tables_are_standard(law):
    tables = law._on(torch.device("cpu"))
    size = 2**20
    signs, gaussians = tables.signs[:size].double(), tables.gaussians[:size].double()
    assert abs(signs.mean()) < 5e-3 and set(tables.signs.unique().tolist()) == {-1.0, 1.0}
    moments = [gaussians.pow(k).mean().item() for k in (1, 2, 3, 4)]
    assert moments == pytest.approx([0, 1, 0, 3], abs=0.03)
    for table in (signs, gaussians):
        for lag in (1, 2, 64, 512):
            assert abs((table[lag:] * table[:-lag]).mean()) < 5e-3
    assert abs((signs * gaussians).mean()) < 5e-3
    assert sorted(tables.permutation.tolist()) == list(range(512))


@pytest.mark.parametrize("block", [64, 512])
def test_expectation_of_the_gram_matrix_is_the_identity(block):
    sizes, seeds = {"a": 24, "b": block + 24, "c": 8}, 120
    keep = torch.cat([torch.arange(24), 24 + torch.arange(24), 24 + block + torch.arange(32)])
    mean = torch.zeros(len(keep), len(keep), dtype=torch.float64)
    for seed in range(seeds):
        rows = SmallTables(64, seed, block).matrix(sizes)[:, keep]
        mean += rows.T @ rows / seeds
    deviation = (mean - torch.eye(len(keep))) * math.sqrt(64 * seeds)  # in standard errors of a dense Gaussian
    assert deviation.abs().max() < 5.5
    assert abs(deviation.diagonal().mean()) < 0.5 and abs(deviation.mean()) < 0.1
    assert deviation.square().mean() < 1 + 1.2 * 64 / block  # at the default block of 512: 1.15


def structured_pairs() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    g = torch.Generator().manual_seed(1)
    normal, n = (lambda *shape: torch.randn(*shape, generator=g)), 512
    spike, two, apart = torch.zeros(n), torch.zeros(n), torch.zeros(8 * n)
    spike[37] = 1
    two[[5, 12]] = 1
    apart[[9 + i * n for i in range(8)]] = 1
    low_rank = torch.outer(normal(32), normal(64)).reshape(-1)
    same = normal(n).repeat(8)
    heavy = normal(4 * n) ** 5
    one = normal(n)
    return {
        "all in one block": (one, one),
        "two vectors in one block": (one, 0.5 * one + normal(n)),
        "one position": (spike, spike),
        "two positions": (two, two),
        "the same position in every block": (apart, apart),
        "constant": (torch.ones(4 * n), torch.ones(4 * n)),
        "the same vector in every block": (same, same),
        "low rank": (low_rank, torch.outer(normal(32), normal(64)).reshape(-1)),
        "heavy tailed": (heavy, heavy),
    }


@pytest.mark.parametrize("case", structured_pairs())
def test_inner_products_are_unbiased_with_the_variance_of_a_dense_gaussian(case):
    x, y = structured_pairs()[case]
    repeats, products = 1200, []
    for seed in range(4):
        law = SmallTables(64, seed)
        for repeat in range(repeats // 4):
            px, py = law.project({f"{repeat}": x}), law.project({f"{repeat}": y})
            products.append(torch.dot(px.double(), py.double()))
    exact = torch.dot(x.double(), y.double())
    dense = (x.double().square().sum() * y.double().square().sum() + exact**2) / 64
    values = torch.stack(products)
    assert abs(values.mean() - exact) < 4.5 * (dense / repeats).sqrt()
    ratio = ((values - exact).square().mean() / dense).item()
    # The law's worst case is 1 + D′/n = 1.125; an estimate from 1200 draws has a standard error of about 0.045.
    assert ratio < 1.3, ratio
    assert ratio > 0.75, ratio


def test_equal_parameters_are_not_correlated(law):
    x, y = torch.randn(700), torch.ones(512)
    for vector in (x, y):
        folds = torch.stack([law.finish(law.fold(f"blocks.{i}.weight", vector)) for i in range(300)]).double()
        folds /= folds.norm(dim=1, keepdim=True)
        cosines = (folds @ folds.T)[*torch.triu_indices(300, 300, offset=1)]
        assert abs(cosines.mean()) < 5 / math.sqrt(64 * len(cosines)) + 1e-3
        assert cosines.std() == pytest.approx(1 / 8, rel=0.1)
        assert cosines.abs().max() < 0.75


def test_no_two_blocks_share_their_randomness(law):
    places = [law._place(f"transformer.blocks.{i}.weight", run) for i in range(300) for run in range(100)]
    assert len({place[:2] for place in places}) == len(places)
    assert abs(sum(place.sign for place in places)) < 5 * math.sqrt(len(places))
    for at in ("signs", "gaussians"):
        offsets = torch.tensor([getattr(place, at) for place in places]).double() / 2**20
        assert abs(offsets.mean() - 0.5) < 0.01 and offsets.std() == pytest.approx(math.sqrt(1 / 12), rel=0.02)


def test_slices_add_up_to_the_whole(law):
    gradient = torch.randn(300_000)
    whole = law.fold("weight", gradient)
    for cuts in ([150_000], [1, 511, 513, 262_143, 262_145], [64, 299_999]):
        edges = [0, *cuts, 300_000]
        parts = [law.fold("weight", gradient[a:b], offset=a) for a, b in pairwise(edges)]
        assert relative(sum(reversed(parts)), whole) < 1e-6
    assert relative(law.fold("weight", gradient[150_000:], offset=0), law.fold("weight", gradient[150_000:])) == 0
    assert relative(law.fold("weight", gradient[150_000:]), parts[-1]) > 0.5


def test_order_grouping_and_threads_change_nothing_but_rounding(law, monkeypatch):
    pieces = gradients({f"p{i}": 5000 + 977 * i for i in range(12)})
    once = law.project(pieces)
    assert torch.equal(once, law.project(pieces))
    assert torch.equal(once, Fastfood(64, seed=3).project(pieces))
    assert relative(law.project(dict(reversed(pieces.items()))), once) < 1e-6
    assert relative(law.finish(sum(law.fold(name, piece) for name, piece in pieces.items())), once) < 1e-6
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert relative(law.project(pieces), once) < 1e-6
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setitem(projection._CHUNK, "cpu", 1024)
    assert relative(law.project(pieces), once) < 1e-6


def test_stream_can_go_on_after_a_total(law):
    pieces = gradients(SIZES)
    stream = law.stream()
    for name, piece in pieces.items():
        stream.add(name, piece)
        total = stream.total()
    assert relative(law.finish(total), law.project(pieces)) < 1e-6


def test_seed_name_and_position_matter(law):
    x = {"weight": torch.randn(700)}
    vector = law.project(x)
    others = [
        Fastfood(64, seed=4).project(x),
        law.project({"weight2": x["weight"]}),
        law.project({"weight": x["weight"].roll(1)}),
    ]
    for other in others:
        assert abs(torch.cosine_similarity(vector, other, dim=0)) < 0.6


def test_shape_layout_and_empty_gradients(law):
    x = torch.randn(30, 41)
    assert torch.equal(law.fold("w", x), law.fold("w", x.reshape(-1)))
    assert torch.equal(law.fold("w", x.T.contiguous().T), law.fold("w", x))
    assert not law.fold("w", torch.zeros(0)).any()


class LargestAllocation(TorchDispatchMode):
    """Notes the bytes of the largest storage that an operation returns."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.bytes = max(self.bytes, out.untyped_storage().nbytes())
        return out


def test_a_large_bfloat16_gradient_is_upcast_in_chunks(law):
    law._on(torch.device("cpu"))
    gradient = torch.randn(2**22).bfloat16()
    with LargestAllocation() as seen:
        stream = law.stream()
        stream.add("weight", gradient)
    assert seen.bytes < 11 * 2**20 < 4 * gradient.numel()  # the tables' own 10 MiB, and no float32 copy
    assert stream._stages[gradient.device, torch.float32].rows.nbytes == 2**20
    assert torch.equal(stream.total(), law.fold("weight", gradient.float()))


def test_autocast_around_it_changes_nothing(law):
    pieces = gradients(SIZES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = law.project(pieces)
    assert torch.equal(inside, law.project(pieces))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_gives_the_same_to_rounding(law):
    pieces = gradients({"large": 3_000_000, **SIZES})
    on_gpu = law.project({name: piece.cuda() for name, piece in pieces.items()})
    assert relative(on_gpu, law.project(pieces)) < 1e-5


def test_pickles_to_its_settings_and_settings_are_json(law):
    law.project(gradients(SIZES))
    blob = pickle.dumps(law)
    assert len(blob) < 200
    assert torch.equal(pickle.loads(blob).project(gradients(SIZES)), law.project(gradients(SIZES)))
    assert json.loads(json.dumps(law.settings())) == law.settings()


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda law: Fastfood(dim=500), "dim must be a power of two from 64 to 16384, got 500; the paper"),
        (lambda law: Fastfood(dim=32), "got 32"),
        (lambda law: Fastfood(dim=512, block=256), "block must be a power of two from dim=512 to 131072, got 256"),
        (
            lambda law: law.fold("w", torch.ones(3), offset=-1),
            "position in the flattened parameter 'w': at least 0, got -1",
        ),
        (
            lambda law: law.fold("w", torch.ones(3, dtype=torch.int32)),
            "the gradient of 'w' must be floating, got torch.int32",
        ),
        (lambda law: law.finish(torch.ones(3)), r"expected the sum of folds, of shape \(64,\), got \(3,\)"),
        (lambda law: law.matrix({"w": 10**8}), "for 100000000 parameters is too large; at most 1048576 parameters"),
    ],
)
def test_errors_say_what_was_expected(law, call, message):
    with pytest.raises(ValueError, match=message):
        call(law)
