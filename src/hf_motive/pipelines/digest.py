"""Which weights a feature was computed with: a digest of every component of a pipeline."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


class WeightDigests:
    """Component -> digest of its weights; computed again only where a tensor has changed since."""

    def __init__(self, pipeline: Any):
        self._pipeline = pipeline
        self._known: dict[str, tuple[tuple, str]] = {}

    def current(self) -> dict[str, str]:
        """Component -> 16 hex digits of sha256 over names, dtypes, shapes and bytes of its state.

        All components count: another VAE or text encoder gives other features too.
        """
        modules = {name: part for name, part in self._pipeline.components.items() if isinstance(part, nn.Module)}
        for name, module in modules.items():
            state = [pair for key, value in module.state_dict().items() for pair in _plain(key, value)]
            version = tuple((key, tensor.data_ptr(), tensor._version) for key, tensor in state)
            if name not in self._known or self._known[name][0] != version:
                digest = hashlib.sha256()
                for key, tensor in state:
                    digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
                    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
                self._known[name] = version, digest.hexdigest()[:16]
        return {name: self._known[name][1] for name in modules}


def _plain(key: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """A state's entry as plain tensors: quantised weights are made of several, and some states hold no tensors."""
    if not isinstance(value, Tensor):
        return
    if is_traceable_wrapper_subclass(value):
        for part in value.__tensor_flatten__()[0]:
            yield from _plain(f"{key}.{part}", getattr(value, part))
    else:
        yield key, value
