"""Kandinsky 5: flow matching on latents with the channels last, (1, T, h, w, C), and two kinds of prompt.

The denoiser sees [latents | zeros | mask], 2C + 1 channels, from text alone too. From an image, the first latent frame
is the image's, clean, its mask is 1, and the scheduler steps the frames behind it. What is decoded in the end is
another matter: the first four latent frames are brought to the mean and spread of the next five, which no encode map
can undo (and which are NaN where there is no fifth). That retouches samples and is no part of the model; without it,
`pipe.normalize_first_frame = lambda latents: latents`, the training step is what it is.

The denoiser rounds queries and keys to bf16 whatever its dtype is. There a last bit becomes a thousandth, so that two
steps agree only as far as their inputs are equal to the last bit: the VAE's scale is a power of two here.
"""

from __future__ import annotations

import re
import string
from functools import partial
from typing import Any

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Kandinsky5I2VPipeline,
    Kandinsky5T2VPipeline,
    Kandinsky5Transformer3DModel,
)
from diffusers.models.attention_dispatch import AttentionBackendName
from diffusers.models.transformers.transformer_kandinsky import Kandinsky5Attention
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Split
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from hf_motive.pipelines.call import CALL_SEED
from tests.families.cogvideox_conditioned import sample_posterior
from tests.families.common import Variant, character_tokenizer, finish, posterior_mode, randomise, weighted_mse
from tests.families.hunyuan import POOLED_DIM, TEXT_DIM, tiny_clip_text
from tests.families.hunyuan15 import tiny_qwen

NUM_FRAMES, HEIGHT, WIDTH = 9, 32, 48
LATENTS = (4, 3, 4, 6)  # (C, T, h, w)
LONG, LONG_LATENTS = 17, (4, 5, 4, 6)  # there has to be a fifth latent frame
SCALE_FACTOR = (1.0, 3.16, 3.16)  # of rotary positions; (1, 2, 2) where both sides have 480 to 854 pixels
SPARSE = {
    "attention_type": "nabla",
    "attention_method": "topcdf",
    "attention_P": 0.9,
    "attention_add_sta": True,
    **dict.fromkeys(("attention_wT", "attention_wH", "attention_wW"), 3),
}


class TextProcessor(PreTrainedTokenizerFast):
    """A tokenizer that can be called as a processor of text, images and videos is."""

    def __call__(self, text: Any, images: None = None, videos: None = None, **kwargs: Any) -> Any:
        return super().__call__(text, **kwargs)


def template_tokenizer(template: str) -> TextProcessor:
    """The template's words and marks whole, all other words letter by letter; spaces are dropped."""
    words = r"<\|\w+\|>|\w+|[^\w\s]"
    letters = sorted(set(string.printable) - set(string.whitespace))
    pieces = ["<pad>", "<unk>", *letters, *("##" + letter for letter in letters), *re.findall(words, template)]
    tokenizer = Tokenizer(WordPiece({piece: i for i, piece in enumerate(dict.fromkeys(pieces))}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex(words), "removed", invert=True)
    return TextProcessor(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", padding_side="right")


def build(
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    pipeline: type[DiffusionPipeline] = Kandinsky5T2VPipeline,
    retouched: bool = True,
    sparse: bool = False,
) -> DiffusionPipeline:
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2, scaling_factor=0.5
    )
    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=TEXT_DIM,
        in_text_dim2=POOLED_DIM,
        time_dim=8,
        model_dim=24,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(4, 4, 4),
        visual_cond=True,
        **(SPARSE if sparse else {}),
    )
    pipe = pipeline(
        transformer=randomise(transformer, seed + 3),
        vae=randomise(vae, seed + 2),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
    )
    before, after = pipe.prompt_template.split("{}")
    tokenizer, tokenizer_2 = template_tokenizer(before + after), character_tokenizer(77, bos=True)
    pipe.register_modules(
        tokenizer=tokenizer,
        text_encoder=tiny_qwen(len(tokenizer), seed + 1),
        tokenizer_2=tokenizer_2,
        text_encoder_2=tiny_clip_text(len(tokenizer_2), seed + 4, POOLED_DIM),
    )
    pipe.prompt_template_encode_start_idx = len(tokenizer(before).input_ids)
    if sparse:
        for module in pipe.transformer.modules():  # set_attention_backend would set it for every other model too
            if isinstance(module, Kandinsky5Attention):
                module.processor._attention_backend = AttentionBackendName.FLEX
    if not retouched:
        pipe.normalize_first_frame = lambda latents: latents
    pipe = finish(pipe, dtype)
    for name, module in pipe.transformer.named_modules():  # as from_pretrained does: without, half precision fails
        if name.rpartition(".")[2] in pipe.transformer._keep_in_fp32_modules:
            module.float()
    return pipe


def image_latents(pipe, frame: Tensor, shape: torch.Size) -> Tensor:
    """A sample of the image's posterior, (1, C, 1, h, w), which the pipeline draws after noise for the whole clip."""
    generator = torch.Generator().manual_seed(CALL_SEED)
    torch.randn(shape, generator=generator, dtype=pipe.transformer.dtype)
    return sample_posterior(pipe.vae, frame, generator)


def training_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None, *, given: int = 0) -> Tensor:
    """σ = t / 1000, x_t = (1 − σ) x0 + σ ε, target ε − x0; `given` latent frames are the image's, and not scored."""
    model, scale = pipe.transformer, pipe.vae.config.scaling_factor
    if sigma is None:
        sigma = timestep / 1000
    assert abs(sigma - timestep / 1000) < 1e-7  # the same but for a last bit
    x0, noise = posterior_mode(pipe.vae, pixels) * scale, noise[None].float()
    noised, mask = (1 - sigma) * x0 + sigma * noise, torch.zeros_like(x0[:, :1])
    if given:
        noised[:, :, :given], mask[:, :, :given] = image_latents(pipe, pixels[0], noise.shape) * scale, 1
    with torch.no_grad():
        embeds, pooled, _ = pipe.encode_prompt(caption)
    frames, height, width = noise.shape[2:]
    prediction = model(
        hidden_states=torch.cat([noised, torch.zeros_like(x0), mask], dim=1).movedim(1, -1).to(model.dtype),
        encoder_hidden_states=embeds.to(model.dtype),
        pooled_projections=pooled.to(model.dtype),
        timestep=torch.tensor([timestep], dtype=model.dtype),
        visual_rope_pos=[torch.arange(frames), torch.arange(height // 2), torch.arange(width // 2)],
        text_rope_pos=torch.arange(embeds.shape[1]),
        scale_factor=SCALE_FACTOR,
        return_dict=False,
    ).movedim(-1, 1)
    weight = None if weight is None else weight[given:]
    return weighted_mse(prediction[:, :, given:], (noise - x0)[:, :, given:], weight)


VARIANTS = (
    Variant(
        "kandinsky5-t2v",
        "Kandinsky5T2VPipeline",
        build,
        training_step,
        NUM_FRAMES,
        HEIGHT,
        WIDTH,
        LATENTS,
    ),
    Variant(
        "kandinsky5-t2v-sparse",
        "Kandinsky5T2VPipeline",
        partial(build, sparse=True),
        None,
        NUM_FRAMES,
        128,  # tokens in blocks of 64, 8 × 8 a frame
        128,
        None,
        refused="no backward",
        remark="The `nabla` attention of ten-second models is FlexAttention, which has no backward on a CPU.",
    ),
    Variant(
        "kandinsky5-i2v",
        "Kandinsky5I2VPipeline",
        partial(build, pipeline=Kandinsky5I2VPipeline),
        None,
        LONG,
        HEIGHT,
        WIDTH,
        None,
        refused="cannot be followed to vae.decode",
        remark="It retouches its first frames before decoding; see the next row.",
    ),
    Variant(
        "kandinsky5-i2v-unretouched",
        "Kandinsky5I2VPipeline",
        partial(build, pipeline=Kandinsky5I2VPipeline, retouched=False),
        partial(training_step, given=1),
        LONG,
        HEIGHT,
        WIDTH,
        LONG_LATENTS,
        remark="With `pipe.normalize_first_frame = lambda latents: latents`.",
    ),
)
