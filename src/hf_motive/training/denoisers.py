"""The module that an optimizer and a trainer are given."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from hf_motive.sharding import blocks


class Denoisers(nn.ModuleDict):
    """The denoisers that are trained, by the names of their components.

    `forward` calls what it is given. Whatever a pipeline does with its denoisers then happens inside the forward of
    this module, as wrappers that gather parameters or synchronise gradients need it.
    """

    def forward(self, task: Callable[[], Any]) -> Any:
        return task()

    @property
    def _no_split_modules(self) -> list[str]:
        """By which Accelerate shards a model, block by block."""
        return sorted({name for part in self.values() for name in blocks(part)})

    @property
    def is_gradient_checkpointing(self) -> bool:
        return any(getattr(part, "is_gradient_checkpointing", False) for part in self.values())

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None) -> None:
        """Compute activations again in the backward pass, for memory.

        Args:
            gradient_checkpointing_kwargs: Of `torch.utils.checkpoint.checkpoint`; `use_reentrant` is False unless
                given, for a reentrant one finds no gradient in a LoRA.

        Raises:
            ValueError: A denoiser cannot.
        """
        part: Any
        again = functools.partial(checkpoint, **{"use_reentrant": False, **(gradient_checkpointing_kwargs or {})})
        for name, part in self.items():
            if not getattr(part, "_supports_gradient_checkpointing", False):
                raise ValueError(
                    f"{name} is a {type(part).__name__}, which has no gradient checkpointing: train without it, by "
                    "gradient_checkpointing=False; a LoRA, fewer frames or a smaller picture save memory too"
                )
            part.enable_gradient_checkpointing(again)

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """The same, by the name that transformers gives it now.

        Raises:
            ValueError: A denoiser cannot, or is asked to choose its layers or to offload: diffusers takes all, and
                keeps them where they are.
        """
        if every_n_layers != 1 or offload:
            raise ValueError("diffusers checkpoints all layers, in place: leave every_n_layers and offload out")
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs)

    def gradient_checkpointing_disable(self) -> None:
        part: Any
        for part in self.values():
            part.disable_gradient_checkpointing()
