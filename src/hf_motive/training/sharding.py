"""Training weights that are shared out among the processes, by FSDP2 or DeepSpeed: the whole from its parts."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hf_motive.sharding import whole

if TYPE_CHECKING:
    from .arguments import MotiveTrainingArguments


def sharded_by(args: MotiveTrainingArguments) -> str | None:
    """What a launcher's settings, or the arguments, say of it: "FSDP", "DeepSpeed", or None for neither."""
    if args.deepspeed or _launched_with("ACCELERATE_USE_DEEPSPEED"):
        return "DeepSpeed"
    return "FSDP" if args.fsdp or _launched_with("ACCELERATE_USE_FSDP") else None


def check_sharding(args: MotiveTrainingArguments, denoisers: tuple[str, ...]) -> None:
    """Raise where sharding would fail or hang, before anything is computed.

    Raises:
        ValueError: Several denoisers are to be trained: at one time one process would ask the first and another the
            second, and each would wait for the parts that the other has. Or the first version of FSDP is asked for.
    """
    by = sharded_by(args)
    if by is not None and len(denoisers) > 1 and args.world_size > 1:
        raise ValueError(
            f"{by} shares out one denoiser among the processes, and {' and '.join(denoisers)} are to be trained: "
            f"train one after the other, by denoiser={denoisers[0]!r} and denoiser={denoisers[1]!r}, or launch with "
            "examples/accelerate/multi_gpu.yaml"
        )
    settings = getattr(args, "fsdp_plugin_args", None) or {}
    if by == "FSDP" and int(settings.get("fsdp_version", os.environ.get("FSDP_VERSION", 1))) != 2:
        raise ValueError("of FSDP only the second version is supported: say fsdp_version: 2 in the launcher's config")


def gathered(module: nn.Module, *, trained: bool, keep: bool) -> dict[str, Tensor]:
    """The state of a module of which every process has a part. All must call it; one weight at a time is put together.

    Args:
        trained: Of the weights that require a gradient alone.
        keep: Whether this process wants it; the others get nothing.

    Returns:
        Name -> whole tensor, on the CPU.
    """
    wanted = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    state = {}
    for name, value in module.state_dict().items():
        if trained and name not in wanted:
            continue
        together = whole(value)
        if keep:  # a copy: what was gathered has room for weights that do not divide
            state[name] = together.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return state


def as_placed(tensor: Tensor, place: Tensor) -> Tensor:
    """A tensor as it can be copied into `place`: sharded likewise, if it is, of which each process keeps its part."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(place, DTensor):
        return tensor
    mesh = place.device_mesh
    return distribute_tensor(tensor.to(mesh.device_type), mesh, place.placements, src_data_rank=None)


def _launched_with(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() in ("true", "1")
