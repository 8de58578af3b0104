"""Which weights a feature was computed with: a digest of every component of a pipeline."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn


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
            state = module.state_dict()
            version = tuple((key, tensor.data_ptr(), tensor._version) for key, tensor in state.items())
            if name not in self._known or self._known[name][0] != version:
                digest = hashlib.sha256()
                for key, tensor in state.items():
                    digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
                    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
                self._known[name] = version, digest.hexdigest()[:16]
        return {name: self._known[name][1] for name in modules}
