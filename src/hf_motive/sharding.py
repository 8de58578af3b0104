"""Denoisers whose weights are shared out among processes, by FSDP2: where to cut, and the parameters of the parts.

A block's weights come together while it computes and part again. Of all weights each of N processes holds 1/N, and of
the activations its own: each computes another clip.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def blocks(denoiser: nn.Module) -> list[str]:
    """Names of the classes of the denoiser's blocks, which are the modules with weights in its own lists.

    Lists deeper down are of small parts, and the class of one may be all over the blocks.
    """
    found, lists = set(), [child for child in denoiser.children() if isinstance(child, nn.ModuleList)]
    while lists:
        for child in lists.pop():
            if isinstance(child, nn.ModuleList):
                lists.append(child)
            elif any(True for _ in child.parameters()) and not type(child).__module__.startswith("torch.nn."):
                found.add(type(child).__name__)
    return sorted(found)


def launched_sharded() -> bool:
    """Whether `accelerate launch` was told to use FSDP.

    Raises:
        ValueError: In a way in which scores would be wrong, or those of another model; the message says which.
    """
    if not _said("ACCELERATE_USE_FSDP"):
        return False
    if int(os.environ.get("FSDP_VERSION", "1")) != 2:
        raise ValueError("of FSDP only the second version is supported: say fsdp_version: 2 in the launcher's config")
    if _said("FSDP_CPU_RAM_EFFICIENT_LOADING"):
        raise ValueError(
            "the launcher's config has one process load all weights, and the text encoder of the others stays empty: "
            "say fsdp_cpu_ram_efficient_loading: false (examples/accelerate/fsdp.yaml does)"
        )
    if os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no":
        raise ValueError(
            'clips are scored in the precision that the pipeline is loaded in: say mixed_precision: "no" in the '
            "launcher's config, and --dtype to the job"
        )
    return True


def share_out(denoisers: Mapping[str, nn.Module]) -> None:
    """Share the denoisers' weights out among the processes, as `accelerate launch` was told; each part on its device.

    All processes must call it. The denoisers may be on the CPU and larger than any device: they get there in parts.
    """
    from accelerate import Accelerator
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    accelerator = Accelerator()  # `prepare` would want an optimizer beside the model
    plugin = accelerator.state.fsdp_plugin
    told = plugin.transformer_cls_names_to_wrap
    for denoiser in denoisers.values():
        plugin.transformer_cls_names_to_wrap = told or blocks(denoiser)
        fsdp2_prepare_model(accelerator, denoiser)


def is_shared_out(module: nn.Module) -> bool:
    """Whether processes hold parts of it, so that every pass needs all of them."""
    return any(isinstance(part, FSDPModule) for part in module.modules())


def part_again(module: nn.Module) -> None:
    """Let every process hold its parts only, under the names of the whole parameters.

    After a pass without a backward FSDP leaves the outermost module's own weights together.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def is_part(parameter: Tensor) -> bool:
    """Whether a parameter is this process's part of one."""
    return isinstance(parameter, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from its parts, where it has any: all processes must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def units(modules: Iterable[nn.Module]) -> Iterator[tuple[nn.Module, list[tuple[nn.Module, str]]]]:
    """Each module whose weights come together at once, when it is called, and where they are: (owner, name).

    There stands this process's part, and while the module computes the whole, one object at every pass.
    """
    for module in modules:
        for unit in module.modules():
            if isinstance(unit, FSDPModule):
                yield unit, [(owner, name) for owner in _without_units(unit) for name in owner._parameters]


def _without_units(module: nn.Module) -> Iterator[nn.Module]:
    """A module and what is in it, without what comes together by itself."""
    yield module
    for child in module.children():
        if not isinstance(child, FSDPModule):
            yield from _without_units(child)


def _said(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1")
