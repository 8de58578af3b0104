"""A projection for which no weight gradient is ever formed: a linear layer's input and output gradient are enough.

The idea of projecting both sides of a linear layer is LoGra's (Choe et al., arXiv 2405.13954); here it is folded into
the same D′ numbers as Fastfood, with nothing of the model's size stored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .projection import Fastfood, FastfoodStream, digest_keys, keyed_hash

#: A window of signs starts in the first half of the table and ends in it.
_TABLE = 2**22


class Factored:
    """Signs on both sides of every matrix, then Fastfood.

    **The law.** A parameter of two or more dimensions is a matrix (o, m): its first dimension by all others. Where
    both sides exceed the rank r, its gradient G becomes r × r numbers,

        K = 1/r · Bᵀ G A,      A ∈ {±1}^{m×r},  B ∈ {±1}^{o×r},

    and K, under the parameter's name, is what Fastfood projects. All other parameters (norms, biases, tables, narrow
    matrices) go to Fastfood as they are. So P = F · diag(…, (B_l ⊗ A_l)ᵀ/r, …): linear in the gradient, and
    summed in any order. (Shards of a matrix could be summed as well; that is not built, and they are refused.
    `GradientProjector` sees the whole gradients of a sharded denoiser.)

    **Why.** Of a linear layer G = Σ_t dY_tᵀ X_t over its tokens, so K = 1/r · (dY B)ᵀ (X A): thin products in place of
    the third of a training step's matrix products that makes G, and X A to be kept for backward in place of X. Where
    a matrix is used in another way, or inside of what cannot be seen (a compiled module), its gradient is formed after
    all, and gives the same K.

    **Randomness.** A and B are windows of one table of signs, the hash of (seed, position); where a parameter's
    windows start is the hash of (seed, its name). Nothing is stored but the table.

    **Properties.** E[PᵀP] = I. To Fastfood's variance the signs add, for one matrix of rank one, about 4/r of ‖G‖⁴;
    less for a higher rank, and less by the number of matrices that share the norm, as their errors are independent.

    Args:
        dim: D′, a power of two from 64 to 16384.
        seed: Any integer.
        rank: r, at least 8. K has r² numbers.

    Raises:
        ValueError: `dim` or `rank` is not such a number.
    """

    def __init__(self, dim: int = 512, seed: int = 0, rank: int = 64):
        if not isinstance(rank, int) or rank < 8:
            raise ValueError(f"rank must be a whole number of at least 8, got {rank}; leave it out for the default 64")
        # A block that is larger than K would be filled up with zeros.
        largest = 2 ** (rank**2).bit_length() // 2
        self.law = Fastfood(dim, seed, block=max(dim, min(8 * dim, largest)))
        self.dim, self.seed, self.rank = dim, int(seed), rank
        self._signs: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __repr__(self) -> str:
        return f"Factored(dim={self.dim}, seed={self.seed}, rank={self.rank})"

    def __reduce__(self):
        return type(self), (self.dim, self.seed, self.rank)

    def settings(self) -> dict:
        """What features must share to be comparable: JSON values."""
        return {**self.law.settings(), "kind": "factored", "rank": self.rank}

    def is_factored(self, shape: torch.Size) -> bool:
        """Whether a parameter of this shape is projected from both sides."""
        if len(shape) < 2:
            return False
        o, m = shape[0], math.prod(shape[1:])
        return self.rank < min(o, m) and max(o, m) * self.rank <= _TABLE // 2

    def fold(self, name: str, gradient: Tensor, offset: int = 0) -> Tensor:
        """See `Fastfood.fold`."""
        stream = self.stream()
        stream.add(name, gradient, offset)
        return stream.total().to(gradient.device)

    def stream(self) -> FactoredStream:
        """A running sum of folds."""
        return FactoredStream(self)

    def finish(self, total: Tensor) -> Tensor:
        """See `Fastfood.finish`."""
        return self.law.finish(total)

    def left(self, name: str, rows: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """B: (rows, r) of ±1."""
        return self._window(f"left/{name}", rows, device, dtype)

    def right(self, name: str, columns: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """A: (columns, r) of ±1."""
        return self._window(f"right/{name}", columns, device, dtype)

    def inputs(self, name: str, x: Tensor) -> Tensor:
        """X A of a linear layer's inputs X (..., m): (..., r)."""
        return x @ self.right(name, x.shape[-1], x.device, x.dtype)

    def matrix(self, shapes: Mapping[str, torch.Size]) -> Tensor:
        """The explicit P, (dim, number of elements) float64, multiplied out from the law: for tests."""
        of_law = self.law.matrix(
            {name: self.rank**2 if self.is_factored(shape) else math.prod(shape) for name, shape in shapes.items()}
        )
        columns, start = [], 0
        for name, shape in shapes.items():
            if self.is_factored(shape):
                b, a = self._sides(name, shape, torch.device("cpu"), torch.float64)
                part = of_law[:, start : start + self.rank**2]
                columns.append(part @ torch.kron(b, a).T / self.rank)
                start += self.rank**2
            else:
                columns.append(of_law[:, start : start + math.prod(shape)])
                start += math.prod(shape)
        return torch.cat(columns, dim=1)

    def _sides(self, name: str, shape: torch.Size, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        rows, columns = shape[0], math.prod(shape[1:])
        return self.left(name, rows, device, dtype), self.right(name, columns, device, dtype)

    def _window(self, purpose: str, rows: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        a, b, _, _ = digest_keys(f"{self.seed}/window/{purpose}")
        start = keyed_hash(0, a, b) % (_TABLE // 2)
        key = device, dtype
        if key not in self._signs:
            self._signs[key] = self._table.to(device, dtype)
        return self._signs[key][start : start + rows * self.rank].view(rows, self.rank)

    @cached_property
    def _table(self) -> Tensor:
        """(_TABLE,) int8 of ±1: the bits of the hash of a counter."""
        a, b, _, _ = digest_keys(f"{self.seed}/factors")
        bits = keyed_hash(torch.arange(_TABLE // 32), a, b)[:, None] >> torch.arange(32) & 1
        return (1 - 2 * bits).to(torch.int8).view(-1)


class FactoredStream:
    """A running sum of `Factored` folds."""

    def __init__(self, projection: Factored):
        self._projection = projection
        self._rest: FastfoodStream = projection.law.stream()

    @torch.no_grad()
    def add(self, name: str, gradient: Tensor, offset: int = 0) -> Tensor:
        """Adds the fold of a gradient that was formed after all, in its parameter's own shape.

        Returns:
            What went to Fastfood: the gradient, or its K.

        Raises:
            ValueError: A matrix has an `offset`: it is needed whole.
        """
        projection = self._projection
        if not projection.is_factored(gradient.shape):
            self._rest.add(name, gradient, offset)
            return gradient
        if offset:
            raise ValueError(f"{name!r}: a shard of a matrix is not projected from both sides; give it whole")
        flat = gradient.reshape(len(gradient), -1)
        left, right = projection._sides(name, gradient.shape, flat.device, flat.dtype)
        with torch.autocast(flat.device.type, enabled=False):
            return self._add(name, left.T @ (flat @ right))

    @torch.no_grad()
    def add_factors(self, name: str, inputs: Tensor, output_gradient: Tensor) -> Tensor:
        """Adds the fold of a linear layer's weight gradient, without forming it.

        Args:
            name: Of the weight, (o, m).
            inputs: X A, (..., r): the layer's inputs, projected.
            output_gradient: dY, (..., o).

        Returns:
            K, (r, r).
        """
        rows = output_gradient.shape[-1]
        left = self._projection.left(name, rows, output_gradient.device, output_gradient.dtype)
        with torch.autocast(output_gradient.device.type, enabled=False):
            theirs = (output_gradient.reshape(-1, rows) @ left).to(_exact(output_gradient))
            ours = inputs.reshape(-1, inputs.shape[-1]).to(theirs.dtype)
            return self._add(name, theirs.T @ ours)

    def _add(self, name: str, both: Tensor) -> Tensor:
        reduced = both.to(_exact(both)) / self._projection.rank
        self._rest.add(name, reduced)
        return reduced

    def total(self) -> Tensor:
        """See `FastfoodStream.total`."""
        return self._rest.total()


class LinearCalls:
    """While it is entered, linear layers keep X A, and hand it over in backward with dY; no weight gradient is formed.

    Those are the layers whose forward is nn.Linear's, a LoRA's among them. Layers that something else wraps, and those
    of a compiled module, which cannot be seen from here, are left alone. (A `TorchFunctionMode` would see every call
    of `F.linear`, but not those of a block that gradient checkpointing computes again within backward.)

    Args:
        modules: Where the layers are.
        names: Of the weights, by `id`.
        project: (name, X) -> X A.
        take: Called in backward with (name, X A, dY).
    """

    def __init__(
        self,
        modules: Iterable[nn.Module],
        names: Mapping[int, str],
        project: Callable[[str, Tensor], Tensor],
        take: Callable[[str, Tensor, Tensor], None],
    ):
        self._layers = [
            (layer, names[id(layer.weight)])
            for module in modules
            for layer in _visible(module)
            if isinstance(layer, nn.Linear) and type(layer).forward is nn.Linear.forward and id(layer.weight) in names
        ]
        self._project, self._take = project, take
        self._entered = ExitStack()

    def __enter__(self) -> LinearCalls:
        for layer, name in self._layers:
            # Accelerate's hooks, which fetch offloaded weights, call what they keep under this name.
            place = "_old_forward" if "_old_forward" in vars(layer) else "forward"
            if place == "forward" and place in vars(layer):
                continue
            before = vars(layer).get(place)
            setattr(layer, place, partial(self._forward, layer, name))
            undo = partial(delattr, layer, place) if before is None else partial(setattr, layer, place, before)
            self._entered.callback(undo)
        return self

    def __exit__(self, *_: object) -> None:
        self._entered.close()

    def _forward(self, layer: nn.Linear, name: str, input: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return F.linear(input, layer.weight, layer.bias)
        return _Linear.apply(input, layer.weight, layer.bias, name, self._project, self._take)


def _visible(module: nn.Module) -> Iterator[nn.Module]:
    """A module and what is in it, without what is compiled."""
    if isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None:
        return
    yield module
    for child in module.children():
        yield from _visible(child)


class _Linear(torch.autograd.Function):
    """`F.linear`, whose backward passes X A and dY on instead of multiplying them."""

    @staticmethod
    def forward(ctx, x, weight, bias, name, project, take):
        ctx.save_for_backward(project(name, x), weight)
        ctx.name, ctx.take = name, take
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx, gradient):
        projected, weight = ctx.saved_tensors
        ctx.take(ctx.name, projected, gradient)
        to_input, _, to_bias = ctx.needs_input_grad[:3]
        return (
            gradient @ weight.to(gradient.dtype) if to_input else None,
            None,
            gradient.reshape(-1, gradient.shape[-1]).sum(0) if to_bias else None,
            None,
            None,
            None,
        )


def _exact(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
