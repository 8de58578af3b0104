"""Which components of a pipeline denoise, and whether a gradient can reach them."""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from hf_motive.pipelines.error import PipelineError

#: Components that denoise, by name; all others (text encoders, VAE, image encoders) are fixed and get no gradient.
DENOISERS = re.compile(r"transformer(_\w+)?|unet")


def find_denoisers(pipeline: Any) -> dict[str, nn.Module]:
    """Component name -> module that denoises.

    Raises:
        PipelineError: There is none, or its weights are not where a backward pass needs them.
    """
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    denoisers = {name: part for name, part in parts.items() if DENOISERS.fullmatch(name)}
    if not denoisers:
        raise PipelineError(pipeline, f"it has no denoiser: no component is called {DENOISERS.pattern}.")
    if getattr(pipeline, "scheduler", None) is None:
        raise PipelineError(
            pipeline, "it has no scheduler, from which a step reads how a clip is noised and what is predicted."
        )
    for name, part in parts.items():
        if any(parameter.is_meta for parameter in part.parameters()):
            raise PipelineError(
                pipeline,
                f"the weights of its {name} are offloaded one layer at a time (sequential offload), where no gradient "
                "reaches them. Load the pipeline again and call enable_model_cpu_offload(), which moves whole models.",
            )
    for name, part in denoisers.items():
        if getattr(part, "is_cache_enabled", False):
            raise PipelineError(
                pipeline, f"its {name} reuses what it computed before: call {name}.disable_cache() first."
            )
        if any(_is_group_offloaded(module) for module in part.modules()):
            raise PipelineError(
                pipeline,
                f"its {name} is offloaded in groups: its weights leave the device before the backward pass needs "
                "them. Load it again without; text encoders and the VAE may be offloaded so.",
            )
    return denoisers


def _is_group_offloaded(module: nn.Module) -> bool:
    registry = getattr(module, "_diffusers_hook", None)
    return registry is not None and registry.get_hook("group_offloading") is not None
