"""Streamed features against plain `torch.autograd.grad` and the explicit projection matrix, on a real tiny Wan."""

from __future__ import annotations

import functools
import math
import weakref

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from hf_motive.errors import ClipError
from hf_motive.gradients import GradientProjector, clip_feature, select_parameters
from hf_motive.projection import Fastfood
from tests.families.wan import tiny_transformer


@pytest.fixture(scope="module")
def law() -> Fastfood:
    return Fastfood(dim=64, seed=7, block=128)


@pytest.fixture
def wan():
    return tiny_transformer(seed=0)


def loss_of(model, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    latents, text = torch.randn(1, 4, 3, 4, 6, generator=g), torch.randn(1, 5, 16, generator=g)
    prediction = model(latents.to(dtype), torch.tensor([751.0]), text.to(dtype), return_dict=False)[0]
    weight = torch.rand(prediction.shape, generator=g)
    return scale * (weight * (prediction.float() - torch.randn(prediction.shape, generator=g)) ** 2).mean()


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def streamed(model, law, pattern=None, loss=loss_of):
    parameters = select_parameters({"transformer": model}, pattern)
    with GradientProjector(parameters, law, [model]) as projector:
        return projector.project(loss(model))


def expected(model, law, pattern=None, loss=loss_of) -> torch.Tensor:
    """P g by the explicit matrix and plain autograd."""
    parameters = select_parameters({"transformer": model}, pattern)
    grads = torch.autograd.grad(loss(model), list(parameters.values()))
    matrix = law.matrix({name: parameter.numel() for name, parameter in parameters.items()})
    return matrix @ torch.cat([grad.reshape(-1).double() for grad in grads])


@pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float64, 1e-6), (torch.float32, 1e-5), (torch.bfloat16, 1e-5)], ids=str
)
@pytest.mark.parametrize("pattern", [None, r"blocks\.1\.attn1\.", r"bias$"])
def test_streamed_feature_is_the_matrix_times_the_gradient(wan, law, dtype, tolerance, pattern):
    wan.to(dtype)
    feature = streamed(wan, law, pattern)
    assert feature.vector.shape == (64,) and feature.vector.dtype == torch.float32
    assert relative(feature.vector, expected(wan, law, pattern)) < tolerance
    assert feature.norm == pytest.approx(feature.vector.norm().item(), rel=1e-5)
    assert feature.coverage == 1.0
    assert feature.loss == pytest.approx(loss_of(wan).item(), rel=1e-6)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_gives_the_same(wan, law, use_reentrant):
    plain = streamed(wan, law)
    wan.enable_gradient_checkpointing(functools.partial(checkpoint, use_reentrant=use_reentrant))
    calls = []
    wan.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    again = streamed(wan, law)
    assert len(calls) == 2  # it was really computed again in backward
    assert relative(again.vector, plain.vector) < 1e-6
    assert again.coverage == 1.0


def test_diffusers_own_checkpointing_works_for_a_subset(wan, law):
    plain = streamed(wan, law, r"blocks\.1\.ffn")
    wan.enable_gradient_checkpointing()
    assert relative(streamed(wan, law, r"blocks\.1\.ffn").vector, plain.vector) < 1e-6


def test_the_order_of_parameters_does_not_matter(wan, law):
    parameters = select_parameters({"transformer": wan})
    features = []
    for ordered in (parameters, dict(reversed(parameters.items()))):
        with GradientProjector(ordered, law, [wan]) as projector:
            features.append(projector.project(loss_of(wan)).vector)
    assert torch.equal(*features)


def test_repeats_bit_for_bit_and_draws_do_not_touch_each_other(wan, law):
    with GradientProjector(select_parameters({"transformer": wan}), law, [wan]) as projector:
        first, other, again = (projector.project(loss_of(wan, seed)).vector for seed in (0, 1, 0))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert torch.equal(streamed(wan, law).vector, first)
    assert abs(torch.cosine_similarity(streamed(wan, Fastfood(64, 8, block=128)).vector, first, dim=0)) < 0.6


def test_threads_change_nothing_but_rounding(wan, law):
    vector, threads = streamed(wan, law).vector, torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert relative(streamed(wan, law).vector, vector) < 1e-5
    finally:
        torch.set_num_threads(threads)


def test_one_gradient_is_alive_at_a_time(wan, law):
    parameters = select_parameters({"transformer": wan})
    alive, arrived = [], []

    def observe(parameter):  # registered before the projector's own hook, so it sees each gradient first
        alive.append(sum(p.grad is not None for p in parameters.values()))
        alive.append(1 + sum(reference() is not None for reference in arrived))
        arrived.append(weakref.ref(parameter.grad))

    for parameter in parameters.values():
        parameter.register_post_accumulate_grad_hook(observe)
    with GradientProjector(parameters, law, [wan]) as projector:
        projector.project(loss_of(wan))
        assert all(parameter.grad is None for parameter in parameters.values())
    assert len(arrived) == len(parameters) and max(alive) == 1


def peak_bytes(work) -> int:
    """Most bytes that `work` held at once, of what it allocated, from the allocator's own events."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    held = peak = 0
    for event in sorted(seen.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def test_memory_is_one_gradient_and_a_constant(law):
    model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(24)))  # 24 gradients of 1 MiB
    x = torch.randn(2, 512)
    law.project({"warm": torch.ones(1)})

    with GradientProjector(select_parameters({"m": model}), law, [model]) as projector:
        projector.project(model(x).square().mean())
        peak = peak_bytes(lambda: projector.project(model(x).square().mean()))
    plain = peak_bytes(lambda: model(x).square().mean().backward())
    assert plain > 24 * 2**20
    assert peak < 5 * 2**20  # two buffers of 1 MiB, and the gradient of one layer


def test_requires_grad_is_exact_inside_and_restored_outside(wan, law):
    for number, parameter in enumerate(wan.parameters()):
        parameter.requires_grad_(number % 3 == 0)
    before = [parameter.requires_grad for parameter in wan.parameters()]
    parameters = select_parameters({"transformer": wan}, r"attn2")
    with pytest.raises(KeyError), GradientProjector(parameters, law, [wan]) as projector:
        inside = {name for name, parameter in wan.named_parameters() if parameter.requires_grad}
        assert inside == {name.removeprefix("transformer.") for name in parameters}
        projector.project(loss_of(wan))
        assert all(parameter.grad is None for parameter in wan.parameters())
        raise KeyError
    assert [parameter.requires_grad for parameter in wan.parameters()] == before
    wan.requires_grad_(True)
    loss_of(wan).backward()
    assert all(parameter.grad is not None for parameter in wan.parameters())  # no hook is left behind


class Shared(nn.Module):
    """A weight under two names, one that is used twice, and one that is not used."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.twice, self.unused = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 7)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(torch.tanh(self.twice(torch.tanh(self.twice(self.a(x))))))


@pytest.mark.parametrize("use_reentrant", [None, False, True])
def test_shared_reused_and_unused_parameters(law, use_reentrant):
    torch.manual_seed(0)
    model, x = Shared(), torch.randn(5, 6, requires_grad=True)

    def plain(module):
        return module(x).square().mean()

    def run(module):
        if use_reentrant is None:
            return plain(module)
        h = module.a(x)
        for _ in range(2):
            h = checkpoint(lambda h: torch.tanh(module.twice(h)), h, use_reentrant=use_reentrant)
        return module.b(h).square().mean()

    parameters = select_parameters({"transformer": model})
    assert "transformer.a.weight" in parameters and "transformer.b.weight" not in parameters
    feature = streamed(model, law, loss=run)
    total = sum(parameter.numel() for parameter in parameters.values())
    assert feature.coverage == pytest.approx(1 - 49 / total)
    x.grad = None
    used = r"transformer\.(a|b|twice)\."
    names = {name for name in parameters if not name.startswith("transformer.unused")}
    assert set(select_parameters({"transformer": model}, used)) == names
    assert relative(feature.vector, expected(model, law, used, plain)) < 1e-5


def test_two_denoisers_and_one_weight_between_them(law):
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    assert list(select_parameters({"transformer": first, "transformer_2": second})) == [
        "transformer.weight",
        "transformer.bias",
        "transformer_2.bias",
    ]


def test_lora_weights_alone(wan, law):
    from peft import LoraConfig

    torch.manual_seed(0)
    wan.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    wan.requires_grad_(True)
    parameters = select_parameters({"transformer": wan}, r"lora_")
    assert len(parameters) == 2 * 2 * 2 * 2  # blocks × attentions × targets × (A, B)
    feature = streamed(wan, law, r"lora_")
    assert feature.coverage == 1.0
    assert relative(feature.vector, expected(wan, law, r"lora_")) < 1e-5
    assert all(parameter.grad is None for parameter in wan.parameters())


def test_wrappers_do_not_rename_parameters(wan):
    class Wrapper(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self._orig_mod = inner

    assert list(select_parameters({"t": Wrapper(wan)})) == list(select_parameters({"t": wan}))


def test_draws_are_brought_to_norm_1_and_put_side_by_side(wan, law):
    draws = [lambda s=seed, k=scale: loss_of(wan, s, k) for seed, scale in ((0, 1.0), (1, 1e-3), (2, 50.0))]
    with GradientProjector(select_parameters({"transformer": wan}), law, [wan]) as projector:
        each = [projector.project(draw()) for draw in draws]
        feature = clip_feature(projector, draws)
        one = clip_feature(projector, iter(draws[:1]))
    units = torch.stack([f.vector / f.vector.norm() for f in each])
    torch.testing.assert_close(feature.draws, units, atol=1e-6, rtol=0)
    torch.testing.assert_close(feature.vector, units.flatten() / 3**0.5, atol=1e-6, rtol=0)
    assert feature.norm == pytest.approx(sum(f.norm for f in each) / 3)
    assert feature.loss == pytest.approx(sum(f.loss for f in each) / 3)
    assert torch.allclose(one.vector, each[0].vector / each[0].vector.norm(), atol=1e-6)
    assert one.norm == each[0].norm


def test_positive_scale_of_the_loss_cancels_in_the_feature(wan, law):
    with GradientProjector(select_parameters({"transformer": wan}), law, [wan]) as projector:
        features = [clip_feature(projector, [lambda k=k: loss_of(wan, 0, k)]).vector for k in (1.0, 1e-4, 4096.0)]
    for other in features[1:]:
        assert relative(other, features[0]) < 1e-5


def test_autocast_around_backward_leaves_the_projection_in_float32(wan, law):
    plain = streamed(wan, law)
    with GradientProjector(select_parameters({"transformer": wan}), law, [wan]) as projector:
        loss = loss_of(wan)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = projector.project(loss)
    assert torch.equal(inside.vector, plain.vector)


class Poison(torch.autograd.Function):
    """The identity, whose gradient is not finite."""

    @staticmethod
    def forward(ctx, x, value):
        ctx.value = value
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        grad = grad.clone()
        grad.view(-1)[0] = ctx.value
        return grad, None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_non_finite_gradient_costs_the_clip_and_names_the_parameter(law, value):
    model = nn.ModuleDict({"early": nn.Linear(4, 4), "late": nn.Linear(4, 4)})
    x = torch.randn(3, 4)
    with GradientProjector(select_parameters({"m": model}), law, [model]) as projector:
        with pytest.raises(
            ClipError, match=r"the gradient of m\.early\.\w+ is not finite \(2 of 4 are not\); loss"
        ) as info:
            projector.project(model["late"](Poison.apply(model["early"](x), value)).square().mean())
        assert info.value.status == "non_finite"
        after = projector.project(model["late"](model["early"](x)).square().mean())  # the next clip is not touched
    assert after.vector.isfinite().all()
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_non_finite_loss_costs_the_clip(wan, law, value):
    with (
        GradientProjector(select_parameters({"transformer": wan}), law, [wan]) as projector,
        pytest.raises(ClipError, match=f"the loss is {value}") as info,
    ):
        projector.project(loss_of(wan) * value)
    assert info.value.status == "non_finite"


def test_what_fails_makes_every_pass_all_the_same(wan, law):
    """Processes that share a denoiser wait for each other's passes, whatever becomes of their clips."""
    backwards = []

    def loss(factor: float) -> torch.Tensor:
        value = loss_of(wan)
        value.register_hook(lambda gradient: backwards.append(factor))
        return value * factor

    with (
        GradientProjector(select_parameters({"transformer": wan}), law, [wan]) as projector,
        pytest.raises(ClipError, match="draw 0 of 3: the loss is inf"),
    ):
        clip_feature(projector, [lambda: loss(math.inf), lambda: loss(1.0), lambda: loss(2.0)])
    assert backwards == [math.inf, 1.0, 2.0]


def test_several_draws_say_which_one_failed(wan, law):
    draws = [lambda: loss_of(wan), lambda: loss_of(wan) * math.nan]
    with (
        GradientProjector(select_parameters({"transformer": wan}), law, [wan]) as projector,
        pytest.raises(ClipError, match="draw 1 of 2: the loss is nan") as info,
    ):
        clip_feature(projector, draws)
    assert info.value.status == "non_finite"


def test_zero_gradients_fail(wan, law):
    with GradientProjector(select_parameters({"transformer": wan}), law, [wan]) as projector:
        with pytest.raises(ClipError, match=r"the gradient is zero in all \d+ parameters; loss 0") as info:
            projector.project(loss_of(wan) * 0)
        assert info.value.status == "failed"


def test_a_failing_backward_leaves_no_gradient(wan, law):
    def fail(grad):
        raise MemoryError("out of memory")

    with GradientProjector(select_parameters({"transformer": wan}), law, [wan]) as projector:
        wan.patch_embedding.register_full_backward_pre_hook(lambda module, grad: fail(grad))
        with pytest.raises(MemoryError):
            projector.project(loss_of(wan))
        wan.patch_embedding._backward_pre_hooks.clear()
        assert all(parameter.grad is None for parameter in wan.parameters())
        again = projector.project(loss_of(wan))
    assert torch.equal(again.vector, streamed(wan, law).vector)


def test_misuse_is_explained(wan, law):
    parameters = select_parameters({"transformer": wan})
    projector = GradientProjector(parameters, law, [wan])
    with pytest.raises(RuntimeError, match=r"inside the context: with GradientProjector"):
        projector.project(loss_of(wan))
    with projector:
        with pytest.raises(RuntimeError, match="already entered"):
            projector.__enter__()
        with pytest.raises(ValueError, match=r"must be a scalar, got shape \(2,\); reduce it with .mean\(\)"):
            projector.project(torch.ones(2))
        with pytest.raises(ValueError, match="no graph: compute it inside the context"):
            projector.project(torch.tensor(1.0))
        with pytest.raises(ValueError, match="at least one"):
            clip_feature(projector, [])
        other = nn.Linear(2, 2)
        with pytest.raises(RuntimeError, match=r"none of the \d+ selected parameters \(transformer\..*two denoisers"):
            projector.project(other(torch.ones(2)).sum())
    with pytest.raises(ValueError, match="no parameters to differentiate"):
        GradientProjector({}, law)
    weight = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="'a' and 'b' are one shared parameter"):
        GradientProjector({"a": weight, "b": weight}, law)
    with pytest.raises(ValueError, match=r"'a' is torch\.int8: only floating-point"):
        GradientProjector({"a": nn.Parameter(torch.ones(3, dtype=torch.int8), requires_grad=False)}, law)
    weight.grad = torch.ones(3)
    with (
        pytest.raises(ValueError, match=r"'a' already holds a gradient; call zero_grad"),
        GradientProjector({"a": weight}, law),
    ):
        pass
    assert torch.equal(weight.grad, torch.ones(3))


def test_selection_errors_show_names_that_exist(wan):
    with pytest.raises(
        ValueError, match=r"no parameter of \['transformer'\] matches 'lora_'; there are \d+, such as transformer\."
    ):
        select_parameters({"transformer": wan}, "lora_")
    with pytest.raises(ValueError, match=r"is not a regular expression .*for example r'\\.attn1"):
        select_parameters({"transformer": wan}, "(")
    with pytest.raises(ValueError, match="none that are floating"):
        select_parameters({"transformer": nn.ReLU()})


@pytest.mark.parametrize("mark", ["_fsdp_flattened", "ds_id"])
def test_weights_without_their_own_shape_are_refused(mark):
    """Projected as they are, they would be other features than those of the whole denoiser."""
    linear = torch.nn.Linear(4, 4)
    setattr(linear.weight, mark, 1)
    with pytest.raises(ValueError, match="transformer were taken apart.*FSDP2"):
        select_parameters({"transformer": linear})


def test_two_losses_of_one_forward_pass(wan, law):
    """What is asked of one graph in turn is what two passes give, and the graph is gone after the last."""

    def prediction(model) -> torch.Tensor:
        g = torch.Generator().manual_seed(0)
        latents, text = torch.randn(1, 4, 3, 4, 6, generator=g), torch.randn(1, 5, 16, generator=g)
        return model(latents, torch.tensor([751.0]), text, return_dict=False)[0]

    def losses(model) -> list[torch.Tensor]:
        output = prediction(model)
        return [(output[:, :, :1] ** 2).mean(), (output[:, :, 1:] ** 2).mean()]

    with GradientProjector(select_parameters({"transformer": wan}), law, [wan]) as projector:
        first, second = losses(wan)
        together = [projector.project(first, retain_graph=True).vector, projector.project(second).vector]
        with pytest.raises(RuntimeError, match="second time"):
            projector.project(first)
    for number, vector in enumerate(together):
        apart = streamed(wan, law, loss=lambda model, number=number: losses(model)[number]).vector
        torch.testing.assert_close(vector, apart, rtol=1e-5, atol=1e-6)
