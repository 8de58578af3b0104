"""What a pipeline denoises beside the clip: it has no part in the loss, and has to be as noisy as the clip.

Left as the pipeline made them, a second stream (audio) or the latents of a reference image would be pure noise at
every timestep: the denoiser attends to them, and no training step looks like that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hf_motive.pipelines.error import PipelineError
from hf_motive.pipelines.latent_map import LatentMap
from hf_motive.pipelines.observation import Observation, Step


@dataclass(frozen=True)
class Reference:
    """One frame of latents that is denoised with the clip and cut off before `vae.decode`: a reference image.

    Args:
        dim, place: `latents.select(dim, place)` is the frame, in what `prepare_latents` returns.
        order: For each of its elements, the element of the encoded image (C, h, w), flattened.
        scale, bias: From the pipeline's units to the VAE's, for each of its elements.
    """

    dim: int
    place: int
    order: Tensor
    scale: Tensor
    bias: Tensor

    def latents(self, encoded: list[Tensor]) -> Tensor | None:
        """The image's latents in the pipeline's units; None unless exactly one image was encoded."""
        images = [image for image in encoded if image.numel() == self.order.numel()]
        if len(images) != 1:
            return None
        return (images[0].float().flatten()[self.order] - self.bias) / self.scale


@dataclass
class Companions:
    """Second streams, and the frame of a reference image.

    Args:
        spread: Standard deviation of the noise with which the pipeline starts.
        side: What makes the latents of a second stream.
    """

    pipeline: Any
    spread: float
    side: list[str] = field(default_factory=list)
    reference: Reference | None = None

    def side_factors(self, sigma: float) -> dict[str, float]:
        """A second stream is silence (zero latents), noised like the clip."""
        return dict.fromkeys(self.side, sigma / self.spread)

    def fill(self, own: Tensor, seen: Observation, signal: float, sigma: float) -> Tensor:
        """The pipeline's own initial latents, with the reference image in its place, noised like the clip."""
        reference = self.reference
        if reference is None:
            return own
        image = reference.latents(seen.encoded)
        if image is None:
            raise PipelineError(self.pipeline, "it encoded no reference image, or several: give one for every clip.")
        filled = own.clone()
        frame = filled.select(reference.dim, reference.place)
        frame.copy_(signal * image.to(own.device) + sigma / self.spread * frame)
        return filled


def find_side_streams(
    pipeline: Any,
    arguments: Mapping[str, Any],
    steps: list[Step],
    first: Observation,
    at_first: Callable[..., Observation],
) -> list[str]:
    """What makes the latents that are stepped beside the clip: methods, or places in what `prepare_latents` returns.

    Args:
        arguments: Of the call.
        steps: Those of another stream than the clip.
        at_first: `observe` at the first timestep.
    """
    found: list[str] = []
    for step in steps:
        sample = step.sample.float().flatten()
        names = [name for name, own in first.side.items() if torch.equal(own.float().flatten(), sample)]
        if not names:
            raise PipelineError(
                pipeline,
                f"it denoises a second stream of latents {tuple(step.sample.shape)} beside the clip, and where that "
                "comes from is not understood.",
            )
        found += names
    if not found:
        return []
    other = at_first(replay=first.outputs, steps=len(first.steps), seed=1).side
    for name in found:
        is_given = arguments.get(name.removeprefix("prepare_")) is not None
        if is_given or torch.equal(other[name], first.side[name]):
            raise PipelineError(
                pipeline,
                f"the second stream that {name} makes is given, and would need noise of its own. Leave it out: the "
                "stream is then silence (zero latents), noised like the clip.",
            )
    return found


def find_reference(
    pipeline: Any,
    latents: LatentMap,
    clip: Tensor,
    stepped: Tensor,
    first: Observation,
    at_first: Callable[..., Observation],
) -> Reference | None:
    """The frame of latents that starts as noise, is seen and denoised, but never decoded, if there is one.

    Args:
        clip, stepped: bool, like the result of `prepare_latents`: what stands for the clip, and all that is denoised.
        at_first: `observe` at the first timestep.

    Raises:
        PipelineError: There are such latents, and what they stand for is not known.
    """
    undecoded = stepped & ~clip
    if not undecoded.any():
        return None
    steps = len(first.steps)
    other = at_first(replay=first.outputs, steps=steps, seed=1)
    undecoded &= other.initial != first.initial  # the rest is given: conditioning, and no noise
    if not undecoded.any() or not _is_seen(undecoded, first, at_first):
        return None
    reference = _one_frame(latents, clip, undecoded)
    if reference is None or reference.latents(first.encoded) is None:
        raise PipelineError(
            pipeline,
            f"it denoises {int(undecoded.sum())} of {undecoded.numel()} latents that it never decodes, and what they "
            "stand for is not known. If they pad the clip, choose a num_frames that needs none; of reference images, "
            "give one.",
        )
    return reference


def _is_seen(elements: Tensor, first: Observation, at_first: Callable[..., Observation]) -> bool:
    """Whether the denoiser's inputs depend on these latents: some pipelines overwrite them on the way."""
    with_own, with_other = (
        at_first(
            inject=lambda own, seen, shift=shift: own + shift * elements.to(own.dtype),
            replay=first.outputs,
            steps=len(first.steps),
        )
        for shift in (0, 1)
    )
    return any(not torch.equal(a, b) for a, b in zip(with_own.inputs, with_other.inputs, strict=True))


def _one_frame(latents: LatentMap, clip: Tensor, undecoded: Tensor) -> Reference | None:
    """The undecoded latents as one frame like the clip's frames, or None where they are something else."""
    channels, frames, height, width = latents.latent_shape
    element = torch.arange(channels * height * width, device=clip.device).reshape(channels, 1, height, width)
    elements = latents.place(element.expand(latents.latent_shape))
    frame_of = latents.place(torch.arange(frames, device=clip.device).view(1, -1, 1, 1).expand(latents.latent_shape))
    scale, bias = latents.decode.ungather(latents.decode.scale), latents.decode.ungather(latents.decode.bias)
    for dim in range(undecoded.ndim):
        slabs = undecoded.movedim(dim, 0).flatten(1)
        decoded = clip.movedim(dim, 0).flatten(1).all(1)
        if int(slabs.all(1).sum()) != 1 or int(slabs.any(1).sum()) != 1 or not decoded.any():
            continue
        place, like = int(slabs.any(1).int().argmax()), int(decoded.int().argmax())
        if frame_of.select(dim, like).unique().numel() == 1 and slabs.shape[1] == element.numel():
            return Reference(dim, place, elements.select(dim, like), scale.select(dim, like), bias.select(dim, like))
    return None
