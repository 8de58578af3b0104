"""One clip to one feature: gradients are projected as backward produces them, and freed at once.

Paper: arXiv 2601.08828, the gradient of the motion-weighted loss with respect to the denoiser's parameters, projected.
"""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hf_motive.draws import side_by_side
from hf_motive.errors import ClipError
from hf_motive.factored import Factored, FactoredStream, LinearCalls
from hf_motive.projection import FoldStream, Projection
from hf_motive.sharding import is_part, part_again, units

#: Parts of a parameter's name that wrappers add. Without them a compiled or sharded model has the features of a plain
#: one, whose names choose the projection's randomness.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


class GradientFeature(NamedTuple):
    """A projected gradient.

    Attributes:
        vector: (dim,) float32 on the CPU: P g.
        norm: ‖P g‖, which estimates ‖g‖ with a relative standard deviation of about 1/√(2 dim).
        coverage: Share in [0, 1] of the selected parameters' elements that received a gradient.
        loss: The loss.
    """

    vector: Tensor
    norm: float
    coverage: float
    loss: float


class DrawnFeature(NamedTuple):
    """Projected gradients of one clip at K (timestep, noise) draws.

    Attributes:
        draws: (K, dim) float32 on the CPU: P g of each, brought to norm 1.
        norm: Mean of ‖P g‖.
        coverage: The least of the draws' coverages.
        loss: Mean loss.
    """

    draws: Tensor
    norm: float
    coverage: float
    loss: float

    @property
    def vector(self) -> Tensor:
        """(K·dim,) float32, of norm 1: the draws side by side."""
        return side_by_side(self.draws)


def select_parameters(denoisers: Mapping[str, nn.Module], pattern: str | None = None) -> dict[str, nn.Parameter]:
    """The parameters that attribution differentiates, by name.

    Args:
        denoisers: Component name → module, such as `PipelineStep.denoisers`.
        pattern: Regular expression that a full name must contain (`re.search`): `r"lora_"` for LoRA weights,
            `r"\\.attn1\\."` for self-attention. None: every floating-point parameter, as in the paper.

    Returns:
        {"transformer.blocks.0.attn1.to_q.weight": parameter, …}. A parameter with several names (tied, or shared by
        two denoisers) stands once, under its first.

    Raises:
        ValueError: The pattern is not a regular expression, nothing matches (the message shows names that exist), or
            the denoiser is sharded in another way than by FSDP2.
    """
    try:
        matches = re.compile(pattern or "").search
    except re.error as error:
        raise ValueError(
            f"parameters={pattern!r} is not a regular expression ({error}); for example r'\\.attn1\\.' or r'lora_'"
        ) from error
    names: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for component, module in denoisers.items():
        part_again(module)
        for inner, parameter in module.named_parameters():
            if id(parameter) in seen or not parameter.is_floating_point():
                continue
            if hasattr(parameter, "_fsdp_flattened") or hasattr(parameter, "ds_id"):
                raise ValueError(
                    f"the weights of {component} were taken apart by the first version of FSDP or by DeepSpeed, which "
                    "leave no parameter as it was: share them out by FSDP2 (examples/accelerate/fsdp.yaml)"
                )
            seen.add(id(parameter))
            parts = (part for part in inner.split(".") if part not in _WRAPPERS)
            names[".".join((component, *parts))] = parameter
    selected = {name: parameter for name, parameter in names.items() if matches(name)}
    if not selected:
        some = list(names)[:: max(1, len(names) // 6)][:6]
        raise ValueError(
            f"no parameter of {sorted(denoisers)} matches {pattern!r}; "
            + (f"there are {len(names)}, such as {', '.join(some)}" if names else "there are none that are floating")
        )
    return selected


class GradientProjector:
    """Turns losses into projected gradients; beyond model and activations it holds one parameter's gradient.

    A context manager. Inside, exactly the given parameters require a gradient; outside, everything is as it was:

        with GradientProjector(select_parameters(step.denoisers), Fastfood(), step.denoisers.values()) as projector:
            feature = projector.project(loss)

    Each parameter's gradient is projected by a post-accumulate hook and dropped before backward computes the next;
    the sum is in float64, so the order in which they arrive does not show at float32. Works with gradient
    checkpointing of either kind, in bfloat16 and float32, for parameters that are used several times or not at all,
    and for a denoiser that FSDP2 has shared out among processes, of which each may compute another clip.
    (Reentrant checkpointing gives no gradient inside a segment none of whose inputs has one: a subset that starts
    within such a segment needs `use_reentrant=False`, diffusers' default. The coverage shows it.)

    Args:
        parameters: Name → parameter, as from `select_parameters`. The names choose the projection's randomness.
        projection: Such as `Fastfood(dim=512, seed=0)`.
        modules: Modules all of whose other parameters are frozen meanwhile, so that backward spends neither time nor
            memory on their gradients: the denoisers.

    Raises:
        ValueError: No parameters, one that is not floating or stands under two names, or (on entry) one that already
            holds a gradient, which would be lost or counted.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], projection: Projection, modules: Iterable[nn.Module] = ()
    ):
        self.parameters = dict(parameters)
        self.projection = projection
        self._modules = tuple(modules)
        if not self.parameters:
            raise ValueError("no parameters to differentiate; take them from select_parameters(step.denoisers)")
        names: dict[int, str] = {}
        for name, parameter in self.parameters.items():
            if not parameter.is_floating_point():
                raise ValueError(f"{name!r} is {parameter.dtype}: only floating-point parameters have a gradient")
            if id(parameter) in names:
                raise ValueError(f"{names[id(parameter)]!r} and {name!r} are one shared parameter; keep one of them")
            names[id(parameter)] = name
        self._numel = sum(parameter.numel() for parameter in self.parameters.values())
        self._lock = threading.Lock()  # backward calls hooks from one thread per device
        self._stream: FoldStream | None = None
        self._checks: list[tuple[str, Tensor]] = []
        self._restore: list[tuple[nn.Parameter, bool]] = []
        self._wholes: dict[int, nn.Parameter] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._calls: AbstractContextManager[Any] = nullcontext()

    def __enter__(self) -> GradientProjector:
        if self._hooks:
            raise RuntimeError("this GradientProjector is already entered")
        for name, parameter in self.parameters.items():
            if parameter.grad is not None:
                raise ValueError(
                    f"{name!r} already holds a gradient; call zero_grad(set_to_none=True) on its module first, "
                    "after the optimizer has used it"
                )
        for module in self._modules:
            part_again(module)
        every = {id(p): p for module in self._modules for p in module.parameters() if p.is_floating_point()}
        every.update((id(p), p) for p in self.parameters.values())
        chosen = {id(p) for p in self.parameters.values()}
        self._restore = [(p, p.requires_grad) for p in every.values()]
        for parameter in every.values():
            parameter.requires_grad_(id(parameter) in chosen)
        for name, parameter in self.parameters.items():
            if not is_part(parameter):
                self._hooks.append(parameter.register_post_accumulate_grad_hook(self._hook(name)))
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        for unit, places in units(self._modules):
            selected = [
                (owner, attribute, names[id(owner._parameters[attribute])])
                for owner, attribute in places
                if id(owner._parameters[attribute]) in names
            ]
            self._hooks.append(unit.register_forward_pre_hook(partial(self._hook_wholes, selected)))
        self._calls = self._linear_calls()
        self._calls.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._calls.__exit__(*error)
        for hook in self._hooks:
            hook.remove()
        for parameter, required in self._restore:
            parameter.requires_grad_(required)
        self._hooks, self._restore, self._wholes = [], [], {}

    def _hook_wholes(self, places: list[tuple[nn.Module, str, str]], *_: Any) -> None:
        """When the parts of sharded parameters have come together: their gradient is this process's clip's alone.

        It is taken before FSDP would mix it with those of the other processes, which then has nothing to do.
        """
        for owner, attribute, name in places:
            parameter = owner._parameters[attribute]
            if parameter is not None and not is_part(parameter) and id(parameter) not in self._wholes:
                self._wholes[id(parameter)] = parameter
                self._hooks.append(parameter.register_post_accumulate_grad_hook(self._hook(name)))

    def _hook(self, name: str) -> Callable[[Tensor], None]:
        def project_and_free(parameter: Tensor) -> None:
            gradient, parameter.grad = parameter.grad, None
            if gradient is None or self._stream is None:
                return
            with self._lock, torch.no_grad():
                gradient = gradient.to_dense() if gradient.is_sparse else gradient
                self._check(name, self._stream.add(name, gradient))

        return project_and_free

    def _take(self, name: str, inputs: Tensor, output_gradient: Tensor) -> None:
        """What stands for a linear layer's weight gradient, in backward."""
        if isinstance(self._stream, FactoredStream):
            with self._lock:
                self._check(name, self._stream.add_factors(name, inputs, output_gradient))

    def _check(self, name: str, projected: Tensor) -> None:
        # Not read before backward is over: on a GPU reading would wait for it, once a parameter.
        self._checks.append((name, torch.linalg.vector_norm(projected, dtype=_norm_dtype(projected))))

    def _linear_calls(self) -> AbstractContextManager[Any]:
        """Of a factored projection: no gradient is formed of the weights of linear layers."""
        law = self.projection
        if not isinstance(law, Factored):
            return nullcontext()
        names = {id(p): name for name, p in self.parameters.items() if law.is_factored(p.shape)}
        return LinearCalls(self._modules, names, law.inputs, self._take)

    def project(self, loss: Tensor, retain_graph: bool = False) -> GradientFeature:
        """Runs backward and returns the projected gradient, not normalised.

        Args:
            loss: A finite scalar with its graph, which is freed.
            retain_graph: Keep the graph, for another loss of the same forward pass.

        Raises:
            ClipError: "non_finite": the loss is, or a gradient is (the message names the first, in the order of
                backward). "failed": the gradient is zero everywhere.
            ValueError: The loss is not a scalar, or has no graph.
            RuntimeError: Outside of the context, or no selected parameter received a gradient.
        """
        if not self._hooks:
            raise RuntimeError("project() works inside the context: with GradientProjector(...) as projector: ...")
        if loss.numel() != 1:
            raise ValueError(f"the loss must be a scalar, got shape {tuple(loss.shape)}; reduce it with .mean()")
        value = loss.item()
        if not loss.requires_grad:
            raise ValueError(
                "the loss has no graph: compute it inside the context, with gradients enabled, "
                "so that the selected parameters require a gradient"
            )
        stream, self._checks = self.projection.stream(), []
        self._stream = stream
        try:
            # Even where the loss is not finite: other processes may wait for this one's part of a sharded denoiser.
            # Casts belong to the forward pass; under autocast the backward's own products would be rounded as well.
            with torch.autocast(loss.device.type, enabled=False):
                loss.backward(retain_graph=retain_graph)
        finally:
            self._stream = None
            checks, self._checks = self._checks, []
            for parameter in (*self.parameters.values(), *self._wholes.values()):
                parameter.grad = None
        if not math.isfinite(value):
            raise ClipError(
                "non_finite", f"the loss is {value}; the clip, its latents or its caption overflow the model"
            )
        if not checks:
            some = ", ".join(list(self.parameters)[:3])
            raise RuntimeError(
                f"none of the {len(self.parameters)} selected parameters ({some}, …) received a gradient: they take "
                "no part in this loss. With two denoisers, select the one that is active at this timestep"
            )
        norms = torch.stack([norm.cpu().double() for _, norm in checks])
        if not norms.isfinite().all():
            bad = [name for (name, _), norm in zip(checks, norms.tolist(), strict=True) if not math.isfinite(norm)]
            raise ClipError(
                "non_finite",
                f"the gradient of {bad[0]} is not finite ({len(bad)} of {len(checks)} are not); loss {value:.6g}",
            )
        vector = self.projection.finish(stream.total())
        norm = vector.double().norm().item()
        if norm == 0:
            raise ClipError(
                "failed",
                f"the gradient is zero in all {len(checks)} parameters; loss {value:.6g}. (An untrained LoRA has "
                "B = 0, and with it no gradient in A: select lora_B or the base weights.)",
            )
        reached = {name for name, _ in checks}
        coverage = sum(self.parameters[name].numel() for name in reached) / self._numel
        return GradientFeature(vector, norm, coverage, value)


def clip_feature(projector: GradientProjector, losses: Iterable[Callable[[], Tensor]]) -> DrawnFeature:
    """One clip's feature over one or several (timestep, noise) draws.

    Each draw's projected gradient is brought to norm 1, and put beside those of the others: a dot product of two
    features is then the mean over the draws of their cosines (the paper's, with one draw: its shared timestep and
    noise).

    Args:
        projector: Entered.
        losses: A function per draw that computes the loss with its graph; called one after the other, so that one
            graph is alive at a time.

    Raises:
        ClipError: As `GradientProjector.project`, with the draw's number where there are several.
        ValueError: No draws.
    """
    losses, draws = list(losses), []
    if not losses:
        raise ValueError("clip_feature needs the loss of at least one (timestep, noise) draw, got none")
    failed: tuple[int, ClipError] | None = None
    for number, loss in enumerate(losses):
        try:
            draws.append(projector.project(loss()))
        except ClipError as error:  # the others are drawn all the same, for processes that share the denoiser
            failed = failed or (number, error)
    if failed is not None:
        number, reason = failed
        if len(losses) == 1:
            raise reason
        raise ClipError(reason.status, f"draw {number} of {len(losses)}: {reason.reason}") from reason
    units = torch.nn.functional.normalize(torch.stack([draw.vector.double() / draw.norm for draw in draws]), dim=-1)
    return DrawnFeature(
        units.float(),
        sum(draw.norm for draw in draws) / len(draws),
        min(draw.coverage for draw in draws),
        sum(draw.loss for draw in draws) / len(draws),
    )


def _norm_dtype(gradient: Tensor) -> torch.dtype:
    return torch.float64 if gradient.dtype == torch.float64 else torch.float32
