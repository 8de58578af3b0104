"""Features without weight gradients against plain autograd and the explicit matrix, on a real tiny Wan."""

from __future__ import annotations

import functools
import pickle

import pytest
import torch
from accelerate.hooks import ModelHook, SequentialHook, add_hook_to_module
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from hf_motive import MotiveAttributor, factored
from hf_motive.factored import Factored
from hf_motive.gradients import GradientProjector, select_parameters
from hf_motive.projection import Fastfood
from tests.clips import moving_square
from tests.families import wan as wan_family
from tests.families.wan import tiny_transformer
from tests.test_gradients import loss_of, relative, streamed


@pytest.fixture(scope="module")
def law() -> Factored:
    return Factored(dim=64, seed=7, rank=8)


@pytest.fixture
def wan():
    return tiny_transformer(seed=0)


def expected(model, law, pattern=None, loss=loss_of) -> torch.Tensor:
    """P g by the explicit matrix and plain autograd."""
    parameters = select_parameters({"transformer": model}, pattern)
    grads = torch.autograd.grad(loss(model), list(parameters.values()))
    matrix = law.matrix({name: parameter.shape for name, parameter in parameters.items()})
    return matrix @ torch.cat([grad.reshape(-1).double() for grad in grads])


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=str
)
@pytest.mark.parametrize("pattern", [None, r"blocks\.1\.attn1\.", r"bias$"])
def test_the_feature_is_the_matrix_times_the_gradient(wan, law, dtype, tolerance, pattern):
    wan.to(dtype)
    feature = streamed(wan, law, pattern)
    assert feature.vector.shape == (64,) and feature.vector.dtype == torch.float32
    assert relative(feature.vector, expected(wan, law, pattern)) < tolerance
    assert feature.coverage == 1.0
    assert feature.loss == pytest.approx(loss_of(wan).item(), rel=1e-6)


def test_no_weight_gradient_of_a_linear_layer_is_formed(wan, law):
    """The gradients that arrive are those of what is not factored; and fewer products are computed."""
    parameters = select_parameters({"transformer": wan})
    linear = {f"transformer.{n}.weight" for n, m in wan.named_modules() if isinstance(m, nn.Linear)}
    factored = {name for name, p in parameters.items() if law.is_factored(p.shape)}
    assert len(linear & factored) > 10
    arrived = []

    def note(gradient, name):
        if gradient is not None:
            arrived.append(name)

    with GradientProjector(parameters, law, [wan]) as projector:
        for name, parameter in parameters.items():
            parameter.register_hook(functools.partial(note, name=name))
        projector.project(loss_of(wan))
    assert set(arrived) == set(parameters) - (linear & factored)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same(wan, law, use_reentrant):
    plain = streamed(wan, law)
    wan.enable_gradient_checkpointing(functools.partial(checkpoint, use_reentrant=use_reentrant))
    again = streamed(wan, law)
    assert relative(again.vector, plain.vector) < 1e-6 and again.coverage == 1.0


def test_a_gradient_that_is_formed_after_all_gives_the_same(wan, law):
    """By `fold`, of whole gradients; and where a weight is used by more than `F.linear`."""
    parameters = select_parameters({"transformer": wan})
    grads = torch.autograd.grad(loss_of(wan), list(parameters.values()))
    total = sum(law.fold(name, grad) for name, grad in zip(parameters, grads, strict=True))
    assert relative(law.finish(total), streamed(wan, law).vector) < 1e-5

    weight = wan.blocks[0].ffn.net[2].weight

    def twice(model):
        return loss_of(model) + 0.1 * (weight @ weight.T).square().mean()

    assert relative(streamed(wan, law, loss=twice).vector, expected(wan, law, loss=twice)) < 1e-5


def test_under_autocast(wan, law):
    def loss(model):
        with torch.autocast("cpu", torch.bfloat16):
            return loss_of(model)

    assert relative(streamed(wan, law, loss=loss).vector, expected(wan, law, loss=loss)) < 1e-2


def test_offloaded_and_compiled_layers(wan, law):
    """Accelerate fetches the weights around the layer's forward; what is compiled forms its gradients after all."""
    plain = streamed(wan, law).vector
    wan.blocks[1].ffn.compile(backend="eager")
    assert relative(streamed(wan, law).vector, plain) < 1e-6
    compiled = torch.compile(tiny_transformer(seed=0), backend="eager")
    assert relative(streamed(compiled, law).vector, plain) < 1e-6
    offloaded = tiny_transformer(seed=0)
    for layer in offloaded.modules():
        if isinstance(layer, nn.Linear):
            add_hook_to_module(layer, SequentialHook(ModelHook()))
    assert relative(streamed(offloaded, law).vector, plain) < 1e-6


def test_a_lora_and_its_frozen_base(wan):
    from peft import LoraConfig

    law = Factored(dim=64, seed=7, rank=8)
    wan.add_adapter(LoraConfig(r=12, target_modules=["to_q", "to_v"], init_lora_weights=False))
    pattern = "lora_"
    parameters = select_parameters({"transformer": wan}, pattern)
    assert {law.is_factored(p.shape) for p in parameters.values()} == {True}
    assert relative(streamed(wan, law, pattern).vector, expected(wan, law, pattern)) < 1e-5


def test_outside_everything_is_as_it_was(wan, law):
    before = torch.autograd.grad(loss_of(wan), list(wan.parameters()))
    streamed(wan, law)
    after = torch.autograd.grad(loss_of(wan), list(wan.parameters()))
    assert all(map(torch.equal, before, after))
    with pytest.raises(RuntimeError), GradientProjector(select_parameters({"t": wan}), law, [wan]):
        raise RuntimeError
    assert not any("forward" in vars(module) for module in wan.modules())


@pytest.mark.parametrize("shapes", [{"a": (96, 80)}, {"a": (40, 24), "b": (24, 3, 2, 4), "c": (7, 30), "d": (33,)}])
def test_inner_products_are_kept(shapes, monkeypatch):
    """Over many seeds: E[PᵀP] = I, and the spread is hardly more than that of a dense Gaussian projection."""
    monkeypatch.setattr(factored, "_TABLE", 2**14)  # or most of the time goes into tables
    monkeypatch.setattr(Fastfood, "table_bits", 14)
    monkeypatch.setattr(Fastfood, "run_bits", 12)
    g = torch.Generator().manual_seed(0)
    shapes = {name: torch.Size(shape) for name, shape in shapes.items()}
    x, y = ({n: torch.randn(s, generator=g) for n, s in shapes.items()} for _ in range(2))
    mixed = {n: 0.6 * x[n] + 0.8 * y[n] for n in shapes}
    flat = [torch.cat([v[n].flatten() for n in shapes]) for v in (x, mixed)]
    truth = torch.cosine_similarity(*flat, dim=0)
    found = []
    for seed in range(60):
        law = Factored(dim=64, seed=seed, rank=20)
        px, pm = (law.finish(sum(law.fold(n, v[n]) for n in shapes)) for v in (x, mixed))
        found.append(px @ pm / flat[0].norm() / flat[1].norm())
    found = torch.stack(found)
    assert abs(found.mean() - truth) < 4 * found.std() / 60**0.5
    assert found.std() < 1.5 * ((1 + truth**2) / 64) ** 0.5


def test_signs_are_signs_and_names_have_their_own(law):
    a, b = (law.right(name, 500, torch.device("cpu"), torch.float32) for name in ("x", "y"))
    assert a.shape == (500, 8) and set(a.unique().tolist()) == {-1.0, 1.0} and not torch.equal(a, b)
    assert abs(a.mean()) < 0.1
    again = pickle.loads(pickle.dumps(law))
    assert torch.equal(again.right("x", 500, torch.device("cpu"), torch.float64), a.double())
    assert not torch.equal(Factored(64, 8, 8).right("x", 500, torch.device("cpu"), torch.float32), a)


def test_what_is_wrong_is_said():
    with pytest.raises(ValueError, match="rank must be a whole number of at least 8, got 4"):
        Factored(rank=4)
    with pytest.raises(ValueError, match="dim must be a power of two"):
        Factored(dim=500)
    with pytest.raises(ValueError, match="give it whole"):
        Factored(64, rank=8).fold("w", torch.ones(20, 20), offset=20)


def test_backward_is_the_gradient_of_the_inputs_alone():
    """By torch's own count of operations, of one wide layer."""
    layer, x = nn.Linear(300, 200), torch.randn(50, 300, requires_grad=True)
    with GradientProjector(dict(layer.named_parameters()), Factored(dim=64, rank=8), [layer]) as projector:
        loss = layer(x).square().sum()
        with FlopCounterMode(display=False) as seen:
            projector.project(loss)
    thin = 2 * 50 * 200 * 8 + 2 * 50 * 8 * 8
    assert seen.get_flop_counts()["Global"][torch.ops.aten.mm] < 2 * 50 * 300 * 200 + thin + 10_000


def test_the_attributor_takes_it_by_name():
    pipe = wan_family.build()
    settings = {"num_frames": wan_family.NUM_FRAMES, "height": wan_family.HEIGHT, "width": wan_family.WIDTH}
    one, other = (MotiveAttributor(pipe, **settings, projection=kind) for kind in ("fastfood", "factored"))
    assert isinstance(other.projection, Factored) and other.projection.dim == one.projection.dim == 512
    differ = {name for name, value in one.settings().items() if other.settings()[name] != value}
    assert differ == {"projection"}  # so that indexes of the two refuse to be compared
    other.projection = Factored(rank=8)
    pixels = moving_square(0, frames=9, height=32, width=48)
    features = [a.feature(pixels, "a square moves").vector for a in (one, other)]
    assert all(feature.norm() == pytest.approx(1, abs=1e-5) for feature in features)
    assert abs(features[0] @ features[1]) < 0.3  # maps of their own
    with pytest.raises(ValueError, match="projection must be 'fastfood' or 'factored', got 'dense'"):
        MotiveAttributor(pipe, **settings, projection="dense")
