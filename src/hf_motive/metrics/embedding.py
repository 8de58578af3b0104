"""`EmbeddingMetric`: a metric that looks at frames through the features of a network."""

from __future__ import annotations

from abc import abstractmethod
from numbers import Integral
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .module import VideoMetric
from .networks import Encoder, imported, name_of


class EmbeddingMetric(VideoMetric):
    """The part that modules with an image encoder share.

    Args:
        network: The encoder, in place of the module's own: an id, a folder, a loaded model of transformers, or a
            callable from frames (B, 3, H, W), preprocessed, to features (B, D), also as "package.module:name".
        dtype: Of weights that are loaded here: "float32", "float16", "bfloat16" or torch's.
        batch_size: Frames at a time. It decides about memory, not about the result.
        options: Of `VideoMetric`.

    Raises:
        ValueError: `dtype` is not that of a number with a fraction, or `batch_size` is below 1.
    """

    NETWORK: ClassVar[str]

    def __init__(
        self, *, network: Any = None, dtype: str | torch.dtype = "float32", batch_size: int = 16, **options: Any
    ):
        kind = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if not isinstance(kind, torch.dtype) or not kind.is_floating_point:
            raise ValueError(f"dtype must be float32, float16 or bfloat16, got {dtype!r}")
        size: Any = batch_size  # a text, from the command line or a file
        if not isinstance(size, Integral) or isinstance(size, bool) or size < 1:
            raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
        super().__init__(**options)
        self.network = self.NETWORK if network is None else imported(network)
        self.dtype = kind
        self.batch_size = batch_size
        self._encoder: Encoder | None = None

    @abstractmethod
    def encoder(self) -> Encoder:
        """The network, ready."""

    @abstractmethod
    def transform(self, frames: Tensor) -> Tensor:
        """Frames (B, 3, H, W) uint8 as the network takes them."""

    @property
    def backend(self) -> str:
        weights = next(self.network.parameters(), None) if isinstance(self.network, nn.Module) else None
        dtype = self.dtype if weights is None else weights.dtype
        return name_of(self.network) + (f", {str(dtype).removeprefix('torch.')}" if dtype != torch.float32 else "")

    def prepare(self) -> None:
        if self._encoder is None:
            self._encoder = self.encoder()

    @torch.no_grad()
    def embed(self, clip: Tensor) -> Tensor:
        """The features of all frames: (F, 3, H, W) uint8 to (F, D) float32, where the network is."""
        self.prepare()
        assert self._encoder is not None
        return torch.cat([self._encoder(self.transform(frames)) for frames in clip.split(self.batch_size)])
