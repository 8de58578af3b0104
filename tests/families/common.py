"""What the pages of tests/families share: tiny text models, random weights of a sane scale, the weighted loss.

Every page holds one family of diffusers video pipelines: `build`, which makes a real pipeline of tiny random parts,
and `training_step`, written as a trainer of that family writes it, from the model's own conventions and without a look
at how `hf_motive` reaches the same number.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True)
class Variant:
    """One pipeline as the suite tries it: how it is built, the clip it takes, and the training step written by hand.

    Args:
        name: Unique and short, as in "wan2.1-i2v".
        pipeline: The class, by name.
        build: `build(dtype=torch.float32, seed=0)` returns the pipeline, of tiny random parts.
        training_step: `training_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None)` returns the
            loss, a scalar with its graph, from pixels (F, 3, H, W) in [-1, 1], noise (C, T, h, w) and weight
            (T, h, w) in the VAE's layout, and a timestep as the pipeline's schedule holds it. Only schedules that
            round their timesteps need `sigma`. None where a sibling on the page is the oracle of the same step.
        num_frames, height, width: Of the clip.
        latent_shape: (C, T, h, w) of such a clip, in the VAE's own layout. None where the variant is refused.
        timesteps: At which the oracle is compared, on the 0..1000 scale. With two experts: one on each side.
        denoisers: The components that are trained.
        call_kwargs: How the pipeline is to be called, beside the clip.
        conditioning: As `PipelineStep` takes it, where the common cases do not serve.
        example: Pixels to the row of a dataset that `conditioning` reads, `pixels` apart. It must not need the Hub.
        refused: Regular expression of the reason with which `PipelineStep` refuses the variant.
        half_cosine: How near bf16's gradient comes to that of fp32. Random tiny models that embed guidance near 1000
            in eight bits round much, and their steps by hand do as well.
        no_half: Why bf16 is not compared, or "".
        remark: For the reader of the table: what one needs to know to use the pipeline.
    """

    name: str
    pipeline: str
    build: Callable[..., DiffusionPipeline]
    training_step: Callable[..., Tensor] | None
    num_frames: int
    height: int
    width: int
    latent_shape: tuple[int, int, int, int] | None
    timesteps: tuple[float, ...] = (751.0, 250.0)
    denoisers: tuple[str, ...] = ("transformer",)
    call_kwargs: Mapping[str, Any] = field(default_factory=dict)
    conditioning: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    example: Callable[[Tensor], Mapping[str, Any]] | None = None
    refused: str | None = None
    half_cosine: float = 0.94
    no_half: str = ""
    remark: str = ""

    def row(self, pixels: Tensor) -> dict[str, Any]:
        """The dataset's row of a clip."""
        return {"pixels": pixels, **(self.example(pixels) if self.example else {})}


# -------------------------------------------------------------------------------------------------- tiny text models


def character_tokenizer(max_length: int = 512, bos: bool = False) -> PreTrainedTokenizerFast:
    """One token a character, so that every caption is its own sequence: <pad> 0, then <s>, <unk>, characters, </s>.

    </s> has the largest id, where CLIP's pooling looks for it.
    """
    characters = sorted(set(string.printable) - set("\t\n\r\x0b\x0c"))
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "<unk>", *characters, "</s>"])}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>" if bos else "$A </s>",
        special_tokens=[(token, vocabulary[token]) for token in ("<s>", "</s>")],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=max_length,
        pad_token="<pad>",
        bos_token="<s>",
        unk_token="<unk>",
        eos_token="</s>",
    )


# -------------------------------------------------------------------------------------------------- random weights


def randomise(module: nn.Module, seed: int, gain: float = 1.0) -> nn.Module:
    """Fill every parameter at random, so that no zero-initialised layer hides a wrong input behind a zero gradient.

    Matrices and kernels: normal, variance gain² / fan-in. Norm weights: near 1. Biases and other vectors: small.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim >= 2 and not name.endswith("table"):
                values *= gain / parameter[0].numel() ** 0.5
            elif name.endswith("weight") or name.endswith("gamma"):
                values = 1 + 0.1 * values
            else:
                values *= 0.1
            parameter.copy_(values)
    return module.eval()


def finish(pipe: DiffusionPipeline, dtype: torch.dtype) -> DiffusionPipeline:
    pipe.set_progress_bar_config(disable=True)
    return pipe if dtype == torch.float32 else pipe.to(dtype)


# -------------------------------------------------------------------------------------------------- losses


def weighted_mse(prediction: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over all elements of weight · (prediction − target)², in fp32; both (1, C, T, h, w), weight (T, h, w)."""
    error = (prediction.float() - target.float()) ** 2
    if weight is not None:
        error = error * weight[None, None]
    return error.mean()


def scaled_linear_alphas(beta_start: float = 0.00085, beta_end: float = 0.012) -> Tensor:
    """ᾱ of the 1000 training timesteps of latent diffusion: betas are linear in their square roots. In fp64."""
    betas = torch.linspace(beta_start**0.5, beta_end**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0)


def per_channel(values: Any) -> Tensor:
    """(C,) to (1, C, 1, 1, 1), in fp32."""
    return torch.as_tensor(values, dtype=torch.float32).view(1, -1, 1, 1, 1)


def posterior_mode(vae: nn.Module, pixels: Tensor) -> Tensor:
    """Pixels (F, 3, H, W) to the latents (1, C, T, h, w) of a video VAE, raw, in fp32."""
    with torch.no_grad():
        return vae.encode(pixels.transpose(0, 1)[None].to(vae.dtype)).latent_dist.mode().float()


def posterior_mode_of_frames(vae: nn.Module, pixels: Tensor) -> Tensor:
    """Pixels (F, 3, H, W) to latents (1, C, F, h, w): an image VAE, frame by frame, raw, in fp32."""
    with torch.no_grad():
        return vae.encode(pixels.to(vae.dtype)).latent_dist.mode().float().transpose(0, 1)[None]


def example_pixels(num_frames: int, height: int, width: int, seed: int = 0) -> Tensor:
    """A clip (F, 3, H, W) of 8-bit values in [-1, 1]: a disc crosses a coloured background, with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(height).view(1, 1, height, 1) / height
    x = torch.arange(width).view(1, 1, 1, width) / width
    time = torch.linspace(0, 1, num_frames).view(num_frames, 1, 1, 1)
    disc = ((x - 0.2 - 0.6 * time) ** 2 + (y - 0.5) ** 2 < 0.04).float()
    colour = torch.tensor([0.8, -0.3, -0.7]).view(1, 3, 1, 1)
    ground = torch.tensor([-0.5, 0.2, 0.6]).view(1, 3, 1, 1) * (0.5 + 0.5 * x)
    noise = 0.05 * torch.randn(num_frames, 3, height, width, generator=generator)
    clip = (disc * colour + (1 - disc) * ground + noise).clamp(-1, 1)
    return (clip * 127.5 + 127.5).round() / 127.5 - 1
