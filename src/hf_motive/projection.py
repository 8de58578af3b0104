"""From parameter space to D′ dimensions: a random projection that a seed, a name and a position determine.

Paper: arXiv 2601.08828, P = (1/(ξ√D′)) S H G Π H B; Fastfood: Le, Sarlós and Smola, ICML 2013.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

Integers = TypeVar("Integers", int, Tensor)

_MASK = 0xFFFFFFFF
#: Elements that a stream gathers before it projects them: small enough for a core's cache, large enough for a GPU.
_CHUNK = {"cpu": 2**18}
_CHUNK_ELSEWHERE = 2**22


class FoldStream(Protocol):
    """Collects the partial sums of one gradient, piece by piece, in any order."""

    def add(self, name: str, gradient: Tensor, offset: int = 0) -> Tensor: ...

    def total(self) -> Tensor: ...


class Projection(Protocol):
    """A linear map of named parameters to `dim` numbers, evaluated piece by piece.

    `finish(sum of all folds)` is the projected vector: sums over parameters, shards and processes may be taken in any
    order. A `stream()` computes the same sum of folds in one pass and is what gradients are streamed into.
    """

    dim: int

    def settings(self) -> dict: ...

    def fold(self, name: str, gradient: Tensor, offset: int = 0) -> Tensor: ...

    def stream(self) -> FoldStream: ...

    def finish(self, total: Tensor) -> Tensor: ...


class Fastfood:
    """Blocked Fastfood: a structured stand-in for a dense Gaussian projection, without anything of the model's size.

    **The law.** A parameter is flattened and cut into blocks of n = `block` positions (the last one zero-padded).
    P = [P₁ | P₂ | …] has one independent D′ × n factor a block, D′ = `dim`:

        P_b = 1/√(D′n) · S_b H′ G_b Π H B_b

    - H is the n × n Sylvester-Hadamard matrix of ±1; H′ is its first D′ rows, which are H_D′ repeated n/D′ times.
    - B_b: n random signs. G_b: n Gaussians. Both are windows of two circular tables of 2²⁰ numbers. The blocks of a
      run (2¹⁸ consecutive positions of the parameter) read disjoint windows, one after the other; where a run starts
      in either table is its own.
    - Π: one random permutation of n, the same for all blocks of a seed.
    - S_b = ε_b √n/‖G_b‖ · I: a random sign (one a run) and the factor that makes the norm of every row of √D′·P_b
      exactly √n. In the paper (and in Fastfood) S is a diagonal that redraws row norms from a chi distribution. One
      scalar a block keeps what S is for, rows of the right norm; removes the part of the variance that comes from
      ‖G‖; and commutes with H′, so that the last Hadamard can be shared by all blocks. ξ = 1.

    G's diagonal is numbered by the output of the first Hadamard, G_b Π = Π G′_b with G′_b a window, so that Π too is
    applied once, to the sum of all blocks. With z_b = B_b x_b:

        P x = 1/√(D′n) · H_D′ · fold(Π · Σ_b ε_b √n/‖G_b‖ · (G′_b ∘ H z_b)),    fold: sum of the n/D′ pieces.

    **Randomness.** The places in the tables and ε are a counter-based hash of (seed, parameter name, run number), in
    exact integer arithmetic; the tables are the same hash of (seed, position), turned into Gaussians by Box-Muller in
    float64 on the CPU and rounded to float32. No generator has a state, so nothing depends on order of arrival,
    number of processes or device: the random numbers are bit-identical, the sums agree to rounding (float32 within a
    chunk, float64 between chunks; float64 throughout for float64 gradients).

    **Properties.** E[PᵀP] = I. ‖P x‖² has the variance 2/D′ of a dense Gaussian projection times at most about
    1 + D′/n when all of x lies in one block (12.5 % at the default n = 8 D′), times 1 + D′/(nK) over K equal blocks,
    plus some D′/2²⁰ for the finite tables. Two blocks of different runs share both windows with probability 2⁻⁴⁰ a
    pair; blocks that share one of the two are uncorrelated by the other and by ε.

    Args:
        dim: D′, a power of two from 64 to 16384. The paper uses 512.
        seed: Any integer. Another seed is another projection; features are comparable only under one seed.
        block: n, a power of two, at least `dim` and at most 2¹⁷. Default 8 × `dim`.

    Raises:
        ValueError: `dim` or `block` is not such a number.
    """

    # Part of the law. Tests shrink them to see what they cost.
    table_bits = 20
    run_bits = 18

    def __init__(self, dim: int = 512, seed: int = 0, block: int | None = None):
        block = 8 * dim if block is None else block
        if not _is_power_of_two(dim) or not 64 <= dim <= 16384:
            raise ValueError(
                f"dim must be a power of two from 64 to 16384, got {dim}; the paper's is Fastfood(dim=512)"
            )
        if not _is_power_of_two(block) or not dim <= block <= 2**17:
            raise ValueError(
                f"block must be a power of two from dim={dim} to {2**17}, got {block}; "
                f"leave it out for the default, {8 * dim}"
            )
        self.dim, self.seed, self.block = dim, int(seed), block
        self._tables: dict[torch.device, _Tables] = {}

    def __repr__(self) -> str:
        return f"Fastfood(dim={self.dim}, seed={self.seed}, block={self.block})"

    def __reduce__(self):
        return type(self), (self.dim, self.seed, self.block)

    def settings(self) -> dict:
        """What features must share to be comparable: JSON values. `law` counts changes of the formula above."""
        return {"kind": "fastfood", "law": 1, "dim": self.dim, "block": self.block, "seed": self.seed}

    def fold(self, name: str, gradient: Tensor, offset: int = 0) -> Tensor:
        """The contribution of a slice of one parameter, before the last Hadamard.

        Args:
            name: The parameter's name: it chooses the randomness.
            gradient: Any shape and floating dtype, read in memory order (`reshape(-1)`). Upcast in chunks.
            offset: Position of the slice's first element in the flattened parameter; an FSDP shard passes its own.

        Returns:
            (dim,) float64 on the gradient's device. Folds of all slices and parameters add up to what `finish` takes.

        Raises:
            ValueError: `offset` is negative, or the gradient is not floating.
        """
        stream = self.stream()
        stream.add(name, gradient, offset)
        return stream.total().to(gradient.device)

    def stream(self) -> FastfoodStream:
        """A running sum of folds that gathers small parameters and projects them together."""
        return FastfoodStream(self)

    def finish(self, total: Tensor) -> Tensor:
        """Sum of folds (dim,) → projected vector (dim,) float32: the last Hadamard and the scale 1/√(D′n)."""
        if total.shape != (self.dim,):
            raise ValueError(f"expected the sum of folds, of shape ({self.dim},), got {tuple(total.shape)}")
        row = total.double().reshape(1, -1).clone()
        out = _hadamard_transform(row, torch.empty_like(row), _hadamard_factors(row))
        return (out[0] / math.sqrt(self.dim * self.block)).float()

    def project(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """{name: gradient} → P g, (dim,) float32 on the CPU."""
        stream = self.stream()
        for name, gradient in gradients.items():
            stream.add(name, gradient)
        return self.finish(stream.total())

    def matrix(self, sizes: Mapping[str, int]) -> Tensor:
        """The explicit P for parameters of the given element counts, multiplied out factor by factor from the law.

        It shares only the random numbers with the fast path, and is what tests compare that with.

        Args:
            sizes: {name: number of elements}; columns follow this order.

        Returns:
            (dim, sum of sizes) float64.

        Raises:
            ValueError: More than 2²⁶ entries, or blocks above 4096, would be needed.
        """
        n, total = self.block, sum(sizes.values())
        if total * self.dim > 2**26 or n > 4096:
            raise ValueError(
                f"the explicit matrix of {self!r} for {total} parameters is too large; "
                f"at most {2**26 // self.dim} parameters and block=4096"
            )
        tables, hadamard, eye = self._on(torch.device("cpu")), _sylvester(n), torch.eye(n, dtype=torch.float64)
        permute, in_run = eye[tables.permutation], 2**self.run_bits // n
        columns = []
        for name, size in sizes.items():
            blocks = [torch.zeros(self.dim, 0, dtype=torch.float64)]
            for block in range(-(-size // n)):
                place = self._place(name, block // in_run)
                signs_at, gaussians_at = (at + block % in_run * n for at in (place.signs, place.gaussians))
                b = torch.diag(tables.signs[signs_at : signs_at + n].double())
                window = tables.gaussians[gaussians_at : gaussians_at + n].double()
                g = torch.diag(window[tables.permutation])
                s = place.sign * math.sqrt(n) / window.norm()
                blocks.append(s * hadamard[: self.dim] @ g @ permute @ hadamard @ b / math.sqrt(self.dim * n))
            columns.append(torch.cat(blocks, dim=1)[:, :size])
        return torch.cat(columns, dim=1)

    def _place(self, name: str, run: int) -> _Place:
        """The randomness of one run of one parameter."""
        a, b, c, d = digest_keys(f"{self.seed}/parameter/{name}")
        first = keyed_hash(run, a, b)
        second = keyed_hash(first, c, d)
        shift = 32 - self.table_bits
        return _Place(first >> shift, second >> shift, 1 - 2 * (second & 1))

    def _on(self, device: torch.device) -> _Tables:
        """The tables on a device: made once, on the CPU, and copied."""
        if device not in self._tables:
            tables = self._tables.get(torch.device("cpu")) or _Tables.make(self)
            self._tables[torch.device("cpu")] = tables
            self._tables[device] = _Tables(*(table.to(device) for table in tables))
        return self._tables[device]


class FastfoodStream:
    """A running sum of Fastfood folds. Its memory is a constant: some chunks of 2¹⁸ elements (2²² off the CPU).

    Gradients are copied (and upcast) into rows of one block each; a full chunk of rows is projected at once, so that
    a hundred small parameters cost what one large one does.
    """

    def __init__(self, law: Fastfood):
        self._law = law
        self._stages: dict[tuple[torch.device, torch.dtype], _Stage] = {}

    def add(self, name: str, gradient: Tensor, offset: int = 0) -> Tensor:
        """Adds the fold of one slice; see `Fastfood.fold`. The gradient is not kept, and returned as it is."""
        if not gradient.is_floating_point():
            raise ValueError(f"the gradient of {name!r} must be floating, got {gradient.dtype}")
        if offset < 0:
            raise ValueError(f"offset is a position in the flattened parameter {name!r}: at least 0, got {offset}")
        dtype = torch.float64 if gradient.dtype == torch.float64 else torch.float32
        key = gradient.device, dtype
        if key not in self._stages:
            self._stages[key] = _Stage(self._law, *key)
        self._stages[key].add(name, gradient.detach().reshape(-1), offset)
        return gradient

    def total(self) -> Tensor:
        """The sum so far: (dim,) float64, on the CPU. More may be added afterwards."""
        return sum((stage.total() for stage in self._stages.values()), torch.zeros(self._law.dim, dtype=torch.float64))


class _Place(NamedTuple):
    signs: int  # where a run starts in the table of signs
    gaussians: int  # where it starts in the table of Gaussians
    sign: int  # ε


class _Waiting(NamedTuple):
    row: int
    rows: int
    gaussians: int  # where the first row's window starts
    sign: int


class _Stage:
    """The rows that wait on one device in one dtype, and the sum of those that went before."""

    def __init__(self, law: Fastfood, device: torch.device, dtype: torch.dtype):
        self.law, self.tables = law, law._on(device)
        self.capacity = max(1, _CHUNK.get(device.type, _CHUNK_ELSEWHERE) // law.block)
        self.rows = torch.empty(self.capacity, law.block, device=device, dtype=dtype)
        self.spare = torch.empty_like(self.rows)
        self.hadamards = _hadamard_factors(self.rows)
        self.sum = torch.zeros(law.block, device=device, dtype=torch.float64)
        self.filled = 0
        self.waiting: list[_Waiting] = []

    @torch.no_grad()
    def add(self, name: str, flat: Tensor, offset: int) -> None:
        """Copies a slice, times its signs, into rows of one block each; zeros stand for what is not in the slice."""
        n, run_size, done = self.law.block, 2**self.law.run_bits, 0
        while done < flat.numel():
            run, start = divmod(offset + done, run_size)
            first, lead = divmod(start, n)
            size = min(flat.numel() - done, run_size - start, (self.capacity - self.filled) * n - lead)
            count = -(-(lead + size) // n)
            place = self.law._place(name, run)
            rows = self.rows[self.filled : self.filled + count].view(-1)
            piece, signs = rows[lead : lead + size], self.tables.signs[place.signs + start :][:size]
            if lead:
                rows[:lead].zero_()
            if lead + size < len(rows):
                rows[lead + size :].zero_()
            torch.mul(flat[done : done + size], signs, out=piece)
            self.waiting.append(_Waiting(self.filled, count, place.gaussians + first * n, place.sign))
            self.filled += count
            done += size
            if self.filled == self.capacity:
                self.flush()

    @torch.no_grad()
    def flush(self) -> None:
        """Σ_b ε_b √n/‖G_b‖ · (G′_b ∘ H B_b x_b) over the waiting rows, added to the sum."""
        if not self.filled:
            return
        n, tables = self.law.block, self.tables
        weights = []
        # An autocast region around the backward pass must not turn these products into bfloat16.
        with torch.autocast(self.rows.device.type, enabled=False):
            y = _hadamard_transform(self.rows[: self.filled], self.spare[: self.filled], self.hadamards)
            for row, count, at, sign in self.waiting:
                y[row : row + count].view(-1).mul_(tables.gaussians[at : at + count * n])
                weights.append(tables.scale[at : at + count * n : n] * sign)
            self.sum += torch.cat(weights).to(y) @ y
        self.filled = 0
        self.waiting.clear()

    def total(self) -> Tensor:
        self.flush()
        return self.sum[self.tables.permutation].view(-1, self.law.dim).sum(0).cpu()


class _Tables(NamedTuple):
    """Circular tables of T = 2^table_bits entries: those that a run may read beyond T stand again at the end."""

    signs: Tensor  # (T + run,) float32, ±1
    gaussians: Tensor  # (T + run,) float32
    scale: Tensor  # (T + run,) float64: √n/‖the n Gaussians from here on‖
    permutation: Tensor  # (n,) int64: (Π y)_j = y[permutation[j]]

    @classmethod
    def make(cls, law: Fastfood) -> _Tables:
        n, size, run = law.block, 2**law.table_bits, 2**law.run_bits
        if not n <= run <= size:
            raise ValueError(f"a run ({run}) must hold a block ({n}) and fit the tables ({size})")
        position = torch.arange(size)
        signs = (1 - 2 * (_table_hash(f"{law.seed}/signs", position)[0] & 1)).float()
        u, v = (h.double().add_(0.5).div_(2**32) for h in _table_hash(f"{law.seed}/gaussians", position))
        gaussians = u.log_().mul_(-2).sqrt_().mul_(v.mul_(2 * math.pi).cos_()).float()
        squares = torch.cat([torch.zeros(1), gaussians, gaussians[:n]]).double().square_().cumsum(0)
        scale = (n / (squares[n : n + size] - squares[:size])).sqrt_()
        # Sorting the hash orders without ties: for fixed keys it is a bijection of 32-bit counters.
        permutation = _table_hash(f"{law.seed}/permutation/{n}", torch.arange(n))[0].argsort()
        signs, gaussians, scale = (torch.cat([table, table[:run]]) for table in (signs, gaussians, scale))
        return cls(signs, gaussians, scale, permutation)


def _table_hash(purpose: str, position: Tensor) -> tuple[Tensor, Tensor]:
    a, b, c, d = digest_keys(purpose)
    first = keyed_hash(position, a, b)
    return first, keyed_hash(first, c, d)


@lru_cache(maxsize=4096)
def digest_keys(text: str) -> tuple[int, int, int, int]:
    """Four 32-bit keys from a text. SHA-256, because Python's own hash of a string differs from run to run."""
    digest = hashlib.sha256(f"hf_motive/fastfood/{text}".encode()).digest()
    a, b, c, d = (int.from_bytes(digest[4 * i : 4 * i + 4], "little") for i in range(4))
    return a, b, c, d


def keyed_hash(counter: Integers, key0: int, key1: int) -> Integers:
    """Keyed bijection of 32-bit counters, the same for int and int64: with multipliers < 2³¹ no product overflows."""
    x = (counter & _MASK) ^ key0
    for key in (key1, key0):
        x = x ^ (x >> 16)
        x = (x * 0x21F0AAAD) & _MASK
        x = x ^ (x >> 15)
        x = (x * 0x735A2D97) & _MASK
        x = x ^ (x >> 15)
        x = (x + key) & _MASK
    return x ^ (x >> 16)


def _hadamard_factors(like: Tensor) -> list[Tensor]:
    """Sylvester matrices whose Kronecker product is H_n for rows of n = like.shape[1]: dtype and device of `like`."""
    return [_sylvester(factor).to(like) for factor in _factors(like.shape[1])]


def _hadamard_transform(x: Tensor, spare: Tensor, factors: list[Tensor]) -> Tensor:
    """Unnormalised Sylvester-Hadamard transform of the rows of x (K, n); x and spare are both overwritten.

    One matrix product a Kronecker factor, which a core or a GPU does at full rate.
    """
    stride = 1
    for h in factors:
        if stride == 1:
            torch.mm(x.view(-1, len(h)), h, out=spare.view(-1, len(h)))
        else:
            groups = x.view(-1, len(h), stride)
            torch.bmm(h.expand(len(groups), -1, -1), groups, out=spare.view_as(groups))
        x, spare, stride = spare, x, stride * len(h)
    return x


def _factors(n: int, largest: int = 5) -> list[int]:
    """n as powers of two of nearly equal size, none above 2^largest."""
    bits = n.bit_length() - 1
    parts = max(1, -(-bits // largest))
    return [2 ** (bits // parts + (i < bits % parts)) for i in range(parts)]


def _sylvester(n: int) -> Tensor:
    """H_n: (n, n) float64 of ±1, H_2m = [[H, H], [H, -H]]."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while len(h) < n:
        h = torch.cat([torch.cat([h, h], dim=1), torch.cat([h, -h], dim=1)])
    return h


def _is_power_of_two(n: int) -> bool:
    return isinstance(n, int) and n > 0 and n & (n - 1) == 0
