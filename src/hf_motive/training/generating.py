"""Around a generating call: what it changes and takes back, and what its result looks like."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from diffusers import BaseGuidance, ModularPipeline, SchedulerMixin
from torch import Tensor, nn

#: Where a call's result holds its frames, by the names that pipelines give it.
RESULTS = ("videos", "frames", "video", "images")

_VAE = {"encode", "decode"}


def frames(result: Any) -> Tensor:
    """The result of a call to (F, 3, H, W) in [-1, 1]: tensors and arrays in [0, 1], or images, in lists or not."""
    values = result.values if isinstance(getattr(result, "values", None), dict) else result  # of a modular pipeline
    found = next((value for name in RESULTS if (value := values.get(name)) is not None), None)
    if isinstance(found, list | tuple) and found:
        inner = found[0]
        several = isinstance(inner, list | tuple) or getattr(inner, "ndim", 3) > 3
        found = inner if several else np.stack([np.asarray(frame) for frame in found])
        if isinstance(found, list | tuple):
            found = np.stack([np.asarray(frame) for frame in found])
    if not isinstance(found, Tensor | np.ndarray):
        raise ValueError(f"the pipeline's result holds no video under {', '.join(RESULTS)}")
    clip = torch.as_tensor(found).detach().cpu()
    clip = clip.float() / 255 if clip.dtype == torch.uint8 else clip.float()
    clip = clip[0] if clip.ndim == 5 else clip
    if clip.ndim == 4 and clip.shape[1] != 3 and clip.shape[-1] == 3:
        clip = clip.permute(0, 3, 1, 2)
    if clip.ndim != 4 or clip.shape[1] != 3:
        raise ValueError(f"the pipeline generated {tuple(np.shape(found))}, which is no video of three colours")
    if not clip.isfinite().all():
        raise ValueError("the pipeline generated values that are not finite: the training may have diverged")
    return (2 * clip - 1).clamp(-1, 1).contiguous()


@contextmanager
def evaluating(pipeline: Any) -> Iterator[None]:
    parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    before = [(module, module.training) for part in parts for module in part.modules()]
    for part in parts:
        part.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


@contextmanager
def unchanged(pipeline: Any) -> Iterator[None]:
    """Schedulers and guiders remember a call: copies take it. And no progress bar within that of the training."""
    kept = {n: part for n, part in vars(pipeline).items() if isinstance(part, SchedulerMixin | BaseGuidance)}
    bars = [(thing, vars(thing).get("_progress_bar_config")) for thing in _with_bars(pipeline)]
    vars(pipeline).update({name: copy.deepcopy(part) for name, part in kept.items()})
    for thing, _ in bars:
        vars(thing)["_progress_bar_config"] = {"disable": True}
    try:
        yield
    finally:
        vars(pipeline).update(kept)
        for thing, bar in bars:
            if bar is None:
                del vars(thing)["_progress_bar_config"]
            else:
                vars(thing)["_progress_bar_config"] = bar


def _with_bars(pipeline: Any) -> Iterator[Any]:
    """The pipeline, or the blocks of a modular one."""
    waiting = [vars(pipeline)["_blocks"]] if isinstance(pipeline, ModularPipeline) else [pipeline]
    while waiting:
        thing = waiting.pop()
        if hasattr(thing, "progress_bar"):
            yield thing
        waiting += (getattr(thing, "sub_blocks", None) or {}).values()


@contextmanager
def one_precision(pipeline: Any, denoisers: Mapping[str, nn.Module], device: torch.device) -> Iterator[None]:
    """Autocast, where a denoiser in float32 meets parts in half precision; a VAE in float32 stays in it regardless."""
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    half = [_dtype(part) for name, part in parts.items() if name not in denoisers and _dtype(part).itemsize == 2]
    mixed = bool(half) and any(_dtype(denoiser).itemsize > 2 for denoiser in denoisers.values())
    vae: Any = parts.get("vae")
    with ExitStack() as stack:
        if (mixed or torch.is_autocast_enabled(device.type)) and vae is not None and _dtype(vae) == torch.float32:
            stack.callback(vars(vae).update, {name: vars(vae)[name] for name in _VAE & vars(vae).keys()})
            for name in _VAE:
                stack.callback(vars(vae).pop, name)
                vars(vae)[name] = _precisely(getattr(vae, name), device)
        if mixed:
            stack.enter_context(torch.autocast(device.type, half[0]))
        yield


def _precisely(method: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    @functools.wraps(method)
    def precise(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device.type, enabled=False):
            return method(tensor.float(), *args, **kwargs)  # every pipeline gives it first, and by place

    return precise


def _dtype(module: nn.Module) -> torch.dtype:
    """That of most parameters: some models keep a few in another precision, and so does an adapter."""
    sizes: dict[torch.dtype, int] = {}
    for parameter in module.parameters():
        if parameter.is_floating_point():
            sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
    return max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)
