"""Kandinsky 6: video and audio denoised together, channels last; a given frame is one more, masked frame at the end.

Prompts are Qwen2.5-VL tokens behind a template, and a pooled CLIP embedding. The audio has a scheduler of its own, a
copy of the video's, and is at the video's noise level. Super-resolution starts from its low-resolution clip, by tiles.
"""

from __future__ import annotations

import re
import string

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    Kandinsky6SRPipeline,
    Kandinsky6SRTransformer3DModel,
    Kandinsky6SRVAE,
    Kandinsky6TI2VAPipeline,
    Kandinsky6Transformer3DModel,
    MMAudioVAE,
    MMAudioVocoder,
)
from diffusers.pipelines.kandinsky6.pipeline_kandinsky6_ti2va import _PROMPT_TEMPLATE
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import BatchEncoding, PreTrainedTokenizerFast

from tests.families.common import Variant, character_tokenizer, finish, posterior_mode, randomise, weighted_mse
from tests.families.cosmos2 import QWEN_DIM, images, tiny_qwen_vl
from tests.families.hunyuan import POOLED_DIM, tiny_clip_text

SHAPE = (9, 32, 48, (4, 3, 4, 6))  # frames, height, width; (C, T, h, w)
TEXT_LENGTH = 64
AUDIO = (19, 5)  # latent frames of nine at 24 a second, channels


class Processor:
    """Stands for the Qwen2.5-VL processor, of which the tokenizer is used: the template's words are whole."""

    def __init__(self):
        words = re.findall(r"\w+|[^\w\s]+", _PROMPT_TEMPLATE)
        letters = sorted(set(string.printable) - set(string.whitespace))
        pieces = ["<pad>", "<s>", "<unk>", *letters, *("##" + letter for letter in letters), *words, "</s>"]
        vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
        tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = Whitespace()
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="</s>", padding_side="right"
        )

    def __call__(self, text: list[str], images=None, videos=None, **options) -> BatchEncoding:
        return self.tokenizer(text, **options)


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> Kandinsky6TI2VAPipeline:
    processor, tokenizer_2 = Processor(), character_tokenizer(77, bos=True)
    tokenizer_2.model_input_names = ["input_ids", "attention_mask"]
    vae = randomise(
        AutoencoderKLHunyuanVideo(
            latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2
        ),
        seed + 2,
    )
    with torch.no_grad():  # the given frame is drawn from the posterior: here it has no width
        vae.quant_conv.weight[4:], vae.quant_conv.bias[4:] = 0, -30
    transformer = Kandinsky6Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=QWEN_DIM,
        in_text_dim2=POOLED_DIM,
        time_dim=8,
        model_dim=32,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(4, 6, 6),
        in_audio_dim=AUDIO[1],
        out_audio_dim=AUDIO[1],
        text_token_padding=True,
        ca_rope=True,
        cross_gates=True,
        fix_modulation=True,
        visual_token_type_num_embeddings=2,
    )
    audio_vae = MMAudioVAE(
        mel_bins=8,
        latent_channels=AUDIO[1],
        hidden_channels=8,
        channel_multipliers=(1, 1),
        layers_per_block=1,
        sample_rate=1600,
        n_fft=64,
        hop_length=16,
    )
    vocoder = MMAudioVocoder(
        num_mels=8,
        upsample_initial_channel=8,
        upsample_rates=(4, 4),
        upsample_kernel_sizes=(8, 8),
        resblock_kernel_sizes=(3,),
        resblock_dilation_sizes=((1,),),
    )
    pipe = Kandinsky6TI2VAPipeline(
        transformer=randomise(transformer, seed + 3),
        vae=vae,
        text_encoder=tiny_qwen_vl(len(processor.tokenizer), seed + 1),
        tokenizer=processor,
        text_encoder_2=tiny_clip_text(len(tokenizer_2), seed + 4, POOLED_DIM),
        tokenizer_2=tokenizer_2,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        audio_vae=audio_vae,
        vocoder=vocoder,
    )
    return finish(pipe, dtype)


def training_step(
    pipe, pixels, caption, noise, timestep, weight=None, sigma=None, image: bool = False, audio: bool = False
) -> Tensor:
    """x_t = (1 − σ) x0 + σ ε with σ = t / 1000, target ε − x0, for the video; channels: [clip | zeros | is given]."""
    model, sigma = pipe.transformer, timestep / 1000
    scale, count = pipe.vae.config.scaling_factor, noise.shape[1]
    x0, noise = posterior_mode(pipe.vae, pixels) * scale, noise[None].float()
    frames = ((1 - sigma) * x0 + sigma * noise).permute(0, 2, 3, 4, 1)  # (1, T, h, w, C)
    given, extra = torch.zeros(1, count, *frames.shape[2:4], 1), {}
    if image:
        first = (posterior_mode(pipe.vae, pixels[:1]) * scale).permute(0, 2, 3, 4, 1)
        frames = torch.cat([frames, first], dim=1)
        given = torch.cat([given, torch.ones_like(given[:, :1])], dim=1)
        positions = torch.tensor([*range(count), 0]), torch.arange(x0.shape[3] // 2), torch.arange(x0.shape[4] // 2)
        extra = {"visual_rope_pos": positions, "visual_token_type_ids": torch.tensor([[0] * count + [1]])}
    if audio:  # silence, as far as anybody knows, with the noise that the pipeline draws after the video's
        generator = torch.Generator().manual_seed(0)
        torch.randn(frames.shape, generator=generator)
        extra["audio_hidden_states"] = sigma * torch.randn(1, *AUDIO, generator=generator).to(model.dtype)
    with torch.no_grad():
        embeds, pooled, mask, *_ = pipe.encode_prompt(
            caption, do_classifier_free_guidance=False, max_sequence_length=TEXT_LENGTH, dtype=model.dtype
        )
    prediction = model(
        hidden_states=torch.cat([frames, torch.zeros_like(frames), given], dim=-1).to(model.dtype),
        encoder_hidden_states=embeds,
        pooled_projections=pooled,
        timestep=torch.tensor([timestep]),
        encoder_attention_mask=mask,
        return_dict=False,
        **extra,
    )[0]
    return weighted_mse(prediction[:, :count].permute(0, 4, 1, 2, 3), noise - x0, weight)


def image_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    return training_step(pipe, pixels, caption, noise, timestep, weight, image=True)


def audio_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    return training_step(pipe, pixels, caption, noise, timestep, weight, audio=True)


def build_sr(dtype: torch.dtype = torch.float32, seed: int = 0) -> Kandinsky6SRPipeline:
    vae = Kandinsky6SRVAE(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        layers_per_block=1,
    )
    transformer = Kandinsky6SRTransformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        time_dim=8,
        model_dim=32,
        ff_dim=32,
        num_visual_blocks=1,
        axes_dims=(4, 6, 6),
        tile_sizes=((64, 64),),
    )
    pipe = Kandinsky6SRPipeline(
        transformer=randomise(transformer, seed + 3),
        vae=randomise(vae, seed + 2),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
    )
    return finish(pipe, dtype)


TEXT = {"max_sequence_length": TEXT_LENGTH}
VARIANTS = (
    Variant(
        "kandinsky6-video",
        "Kandinsky6TI2VAPipeline",
        build,
        training_step,
        *SHAPE,
        call_kwargs={**TEXT, "sample_audio": False},
        remark="sample_audio=False leaves the audio out; with it, the loss is the video's all the same.",
    ),
    Variant(
        "kandinsky6-image",
        "Kandinsky6TI2VAPipeline",
        build,
        image_step,
        *SHAPE,
        call_kwargs={**TEXT, "sample_audio": False},
        conditioning=lambda example: {"image": images(example["pixels"])[0]},
    ),
    Variant(
        "kandinsky6-audio",
        "Kandinsky6TI2VAPipeline",
        build,
        audio_step,
        *SHAPE,
        call_kwargs=TEXT,
        no_half="The audio's noise is drawn in the model's dtype, and is another one in bf16.",
    ),
    Variant(
        "kandinsky6-sr",
        "Kandinsky6SRPipeline",
        build_sr,
        None,  # refused
        9,
        64,
        64,
        None,
        refused="no prepare_latents",
        remark="It denoises from the low-resolution clip, tile by tile: there is no noised clip to put in.",
    ),
)
