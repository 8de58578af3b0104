"""What one watched call of a pipeline showed."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Step(NamedTuple):
    """One call of `scheduler.step`: its arguments, bound by its signature, and a copy of the scheduler as it was."""

    bound: inspect.BoundArguments
    scheduler: Any

    @property
    def arguments(self) -> dict[str, Any]:
        return self.bound.arguments

    @property
    def sample(self) -> Tensor:
        return self.arguments["sample"]

    @property
    def model_output(self) -> Tensor:
        return self.arguments["model_output"]


@dataclass
class Observation:
    """What one watched call showed, in the pipeline's own layouts. A door that was not reached has shown nothing."""

    initial: Tensor = field(init=False)  # what prepare_latents, or the block in its place, made
    steps: list[Step] = field(default_factory=list)  # of the one timestep: several where the latents come in parts
    decoded: Tensor = field(init=False)  # the argument of vae.decode
    shown: Tensor | None = None  # the video that the pipeline was about to turn into pixels
    inputs: list[Tensor] = field(default_factory=list)  # the tensors that denoisers were given
    asked: tuple[str, tuple, dict[str, Any]] = field(init=False)  # the denoiser's name and arguments, where it ended
    encoded: list[Tensor] = field(default_factory=list)  # modes of what vae.encode returned
    side: dict[str, Tensor] = field(default_factory=dict)  # method -> latents of a second stream, perhaps
    outputs: dict[str, Any] = field(default_factory=dict)  # denoiser name -> what it returned
    reached: set[str] = field(default_factory=set)  # the doors, by name


def joined(parts: list[Tensor]) -> Tensor:
    """The only part as it is; several (frames one by one, or video and audio) flattened, one after the other."""
    return parts[0] if len(parts) == 1 else torch.cat([part.flatten() for part in parts])
