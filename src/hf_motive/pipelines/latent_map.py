"""Between a pipeline's latents and the argument of `vae.decode` lies a gather and an affine map: learned and inverted.

Probes are sent through the pipeline with the denoiser stubbed out: zeros give the bias, ones the scale, and the
elements' own indices, in digits small enough to survive half precision, give the gather.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

BASE = 16  # of the digits: 0 … 15 survive bfloat16, its affine map included


class NothingArrivesError(ValueError):
    """The target does not depend on the source at all."""


@dataclass(frozen=True)
class AffineGather:
    """`target[j] = scale[j] · source[index[j]] + bias[j]`, on flattened tensors; index −1: constant, nothing arrives.

    Args:
        source_shape, target_shape: Shapes of the unflattened tensors.
        index: (targets,), int64.
        scale, bias: (targets,), float32.
    """

    source_shape: torch.Size
    target_shape: torch.Size
    index: Tensor
    scale: Tensor
    bias: Tensor

    @staticmethod
    def probes(shape: torch.Size, device: torch.device) -> Iterator[Tensor]:
        """Zeros, ones, then each digit of the elements' indices; float32."""
        yield torch.zeros(shape, device=device)
        yield torch.ones(shape, device=device)
        index = torch.arange(shape.numel(), device=device)
        while True:
            yield (index % BASE).float().reshape(shape)
            index = index // BASE
            if not index.any():
                return

    @classmethod
    def fit(cls, source_shape: torch.Size, answers: Sequence[Tensor]) -> AffineGather:
        """The map from what came back for each of `probes`.

        Raises:
            ValueError: The answers are not those of a gather and an affine map; the message says in what.
        """
        target_shape = answers[0].shape
        zero, one, *digits = (answer.detach().float().flatten() for answer in answers)
        bias, scale = zero, one - zero
        arrives = scale.abs() > 1e-6 * scale.abs().max()
        if not torch.isfinite(scale).all():
            raise ValueError(
                "constant latents come out as NaN, so that it does more to them than a gather and an affine map (a "
                "normalisation, say). If that only retouches samples, replace the method on the pipeline"
            )
        if not arrives.any():
            raise NothingArrivesError("what was put in does not change what arrives")
        index = torch.zeros_like(scale, dtype=torch.int64)
        for place, answer in enumerate(digits):
            digit = torch.where(arrives, (answer - bias) / torch.where(arrives, scale, 1.0), 0.0)
            rounded = digit.round()
            if not (digit - rounded).abs().max() < 0.25 or rounded.min() < 0 or rounded.max() >= BASE:
                raise ValueError("the map is not a gather and a per-element affine map")
            index += rounded.long() * BASE**place
        index = torch.where(arrives, index, -1)
        sources = index[arrives]
        if sources.max() >= source_shape.numel() or sources.unique().numel() != sources.numel():
            raise ValueError("the map is not one to one")
        return cls(source_shape, target_shape, index, torch.where(arrives, scale, 0.0), bias)

    @property
    def covered(self) -> Tensor:
        """bool, source shape: the elements that reach the target."""
        covered = torch.zeros(self.source_shape.numel(), dtype=torch.bool, device=self.index.device)
        covered[self.index[self.index >= 0]] = True
        return covered.reshape(self.source_shape)

    def is_pure(self, elements: Tensor) -> bool:
        """Whether these elements (bool, source shape) arrive as they are: a gather alone."""
        here = self.gather(elements.to(self.index.device)).flatten()
        return bool((self.scale[here] - 1).abs().max() < 1e-3 and self.bias[here].abs().max() < 1e-3)

    def apply(self, source: Tensor) -> Tensor:
        """The target; the bias alone where nothing arrives."""
        return (self.scale * self.gather(source).flatten() + self.bias).reshape(self.target_shape)

    def gather(self, source: Tensor, fill: float = 0.0) -> Tensor:
        """Move source elements to their target places, values unchanged; `fill` where nothing arrives."""
        moved = source.flatten()[self.index.clamp(min=0)]
        return torch.where(self.index >= 0, moved, moved.new_tensor(fill)).reshape(self.target_shape)

    def ungather(self, target: Tensor, fill: float = 0.0) -> Tensor:
        """The inverse of `gather`."""
        arrives = self.index >= 0
        source = target.new_full((self.source_shape.numel(),), fill)
        source[self.index[arrives]] = target.flatten()[arrives]
        return source.reshape(self.source_shape)

    def invert(self, target: Tensor) -> Tensor:
        """The source that the affine gather maps to `target`; zeros where nothing would arrive."""
        scale = torch.where(self.index >= 0, self.scale, 1.0)
        return self.ungather((target.flatten() - self.bias) / scale)


@dataclass(frozen=True)
class LatentMap:
    """How latents in the VAE's layout (C, T, h, w) lie in a pipeline: where it starts, and at `scheduler.step`.

    Args:
        decode: From the result of `prepare_latents` to the argument of `vae.decode`.
        arrive: From the result of `prepare_latents` to the `sample` of `scheduler.step`.
        frame_wise: The VAE takes one image per frame: (T, C, h, w) instead of (1, C, T, h, w).
    """

    decode: AffineGather
    arrive: AffineGather
    frame_wise: bool

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """(C, T, h, w)"""
        first, second, height, width = self.decode.target_shape[-4:]
        return (second, first, height, width) if self.frame_wise else (first, second, height, width)

    def to_vae(self, latents: Tensor) -> Tensor:
        """(C, T, h, w) -> the argument of `vae.decode`."""
        return latents.transpose(0, 1) if self.frame_wise else latents.unsqueeze(0)

    def from_vae(self, latents: Tensor) -> Tensor:
        """The argument of `vae.decode` -> (C, T, h, w)."""
        return latents.transpose(0, 1) if self.frame_wise else latents.squeeze(0)

    def latents(self, latents: Tensor) -> Tensor:
        """Latents in VAE units (C, T, h, w) -> in the pipeline's units and starting layout."""
        return self.decode.invert(self.to_vae(latents))

    def place(self, values: Tensor) -> Tensor:
        """Unitless values (C, T, h, w), such as noise or weights -> the pipeline's starting layout."""
        return self.decode.ungather(self.to_vae(values))

    def over_time(self, values: Tensor, counts: Tensor) -> Tensor:
        """Of values in the layout that arrives, the mean of those of one channel and place, at each of them.

        Args:
            counts: bool, of the same shape: which take part. The others have the mean, too.
        """
        summed, number = (
            self.from_vae(self.decode.gather(self.arrive.ungather(part)))
            .sum(1, keepdim=True)
            .expand(self.latent_shape)
            for part in (torch.where(counts, values, 0.0), counts.to(values.dtype))
        )
        return self.arrive.gather(self.place(summed / number.clamp(min=1)))
