"""The lab's Wan VAE, and a way to run it on whole clips at once.

`AutoencoderKLWan` encodes and decodes a clip in pieces of one latent frame, with caches: little memory, many small
operations. `encode_whole` and `decode_whole` compute the same from the same weights in one piece, which trains several
times faster on a CPU. tests/test_lab.py compares the two.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

LATENT_CHANNELS = 8
SPATIAL, TEMPORAL = 4, 4  # compression


def build_vae() -> Any:
    """A small causal `AutoencoderKLWan`: clips (B, 3, 4k+1, H, W) to latents (B, 8, k+1, H/4, W/4)."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=16,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
        scale_factor_temporal=TEMPORAL,
        scale_factor_spatial=SPATIAL,
    )


def encode_whole(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels (B, 3, F, H, W) in [-1, 1] to the posterior's mean and log variance, (B, C, T, h, w) each."""
    with _whole(vae.encoder):
        mean, log_variance = vae.quant_conv(vae.encoder(pixels)).chunk(2, dim=1)
    return mean, log_variance.clamp(-30, 20)


def decode_whole(vae: Any, latents: Tensor) -> Tensor:
    """Raw latents (B, C, T, h, w) to pixels (B, 3, F, H, W), not clamped."""
    with _whole(vae.decoder):
        return vae.decoder(vae.post_quant_conv(latents))


@contextmanager
def _whole(module: Any) -> Iterator[None]:
    """Let the resampling layers work on a whole clip: without a cache, the library's own skip their time axis."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanResample

    layers: list[Any] = [layer for layer in module.modules() if isinstance(layer, WanResample)]
    for layer in layers:
        layer.forward = types.MethodType(_resample_whole, layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _resample_whole(self: Any, x: Tensor, feat_cache: None = None, feat_idx: None = None) -> Tensor:
    """The first frame has no past: it is resampled in space alone. The others go in pairs."""
    if self.mode == "upsample3d" and x.shape[2] > 1:
        later = self.time_conv(x[:, :, 1:]).unflatten(1, (2, -1))  # (B, 2, C, T-1, h, w)
        x = torch.cat([x[:, :, :1], later.permute(0, 2, 3, 1, 4, 5).flatten(2, 3)], dim=2)
    x = self.resample(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (x.shape[0], -1)).transpose(1, 2)
    if self.mode == "downsample3d" and x.shape[2] > 1:
        x = torch.cat([x[:, :, :1], self.time_conv(x)], dim=2)
    return x
