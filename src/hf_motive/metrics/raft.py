"""RAFT as VBench runs it: its large network, trained on FlyingChairs and FlyingThings3D, 20 iterations."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .dynamics import PairFlow
from .networks import given, name_of, state_dict

WEIGHTS = "raft_large_C_T_V1"
_ITERATIONS = 20
_LEAST = 128  # pixels that torchvision's RAFT asks of either side
_NETWORK = (
    "network must be the file of the weights of torchvision's raft_large, the loaded module, or a callable from two "
    "frames (1, 3, H, W) in 0..255 to the flow (1, 2, H, W) between them; or leave it out"
)


def raft(network: Any, device: torch.device) -> PairFlow:
    """The flow between two frames.

    Args:
        network: None: torchvision's `raft_large` with the weights `C_T_V1`, which are those of RAFT's authors (in
            their files, and in VBench's: raft-things.pth), fetched by torch. Else a file of such weights, a module of
            torchvision's `RAFT`, or a `PairFlow`: a callable, or where to import one from, "package.module:name".
        device: Of a network that is loaded here.

    Raises:
        ImportError: torchvision is needed, and is not there or not usable.
        OSError: The weights cannot be had. Both messages name the remedy.
        ValueError: `network` is none of these.
    """
    network = _chosen(network)
    if network is None or isinstance(network, str):
        network = _loaded(network, device)
    elif not (isinstance(network, nn.Module) and type(network).__module__.startswith("torchvision.")):
        return network
    return _running(network.eval())


def backend(network: Any) -> str:
    """What a result calls it."""
    network = _chosen(network)
    if network is None or isinstance(network, str):
        return f"{WEIGHTS if network is None else os.path.basename(network)} (torchvision)"
    return name_of(network)


def _chosen(network: Any) -> Any:
    """None, the name of a file, or a callable."""
    if isinstance(network, os.PathLike) or (isinstance(network, str) and ":" not in network):
        return os.fspath(network)
    return None if network is None else given(network, _NETWORK)


def _running(network: Callable[..., Any]) -> PairFlow:
    def flow(before: Tensor, after: Tensor) -> Tensor:
        height, width = before.shape[-2:]
        if min(height, width) < _LEAST:
            raise ValueError(f"RAFT takes frames of at least {_LEAST} x {_LEAST}, got {height} x {width}")
        return network(before / 127.5 - 1, after / 127.5 - 1, num_flow_updates=_ITERATIONS)[-1]

    return flow


def _loaded(file: str | None, device: torch.device) -> nn.Module:
    try:
        from torchvision.models.optical_flow import Raft_Large_Weights, raft_large
    except (ImportError, RuntimeError) as error:  # the second: a torchvision that was built for another torch
        raise ImportError(
            f"dynamic_degree runs torchvision's RAFT, which cannot be imported ({str(error).splitlines()[0]}): "
            'pip install "hf-motive[raft]", pass network= a callable of your own, or take flow_dynamic_degree'
        ) from error
    network = raft_large()
    where = WEIGHTS if file is None else os.path.basename(file)
    remedy = (
        f"Pass network= the file of torchvision's {WEIGHTS} ({Raft_Large_Weights.C_T_V1.url}), or take "
        "flow_dynamic_degree"
    )
    if file is not None:
        state = state_dict(file, remedy)
    try:
        if file is None:
            state = Raft_Large_Weights.C_T_V1.get_state_dict(progress=False, check_hash=True)
        network.load_state_dict(state)
    except (OSError, RuntimeError) as error:
        raise OSError(f"the weights {where} cannot be had: {str(error).splitlines()[0]} {remedy}") from error
    return network.to(device)
