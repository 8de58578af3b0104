"""HunyuanVideo: flow matching, LLaMA prompts in a chat template, pooled CLIP text, and guidance as an input.

The model is distilled from guidance: its scale is an embedded input, not a second forward. The pipeline's call embeds
its default, 6; so does this step.
"""

from __future__ import annotations

import re
import string

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    PreTrainedTokenizerFast,
)

from tests.families.common import Variant, character_tokenizer, finish, posterior_mode, randomise, weighted_mse

NUM_FRAMES, HEIGHT, WIDTH = 9, 32, 48
LATENTS = (4, 3, 4, 6)  # (C, T, h, w)
TEXT_DIM, POOLED_DIM, GUIDANCE = 16, 8, 6.0


def template_tokenizer() -> PreTrainedTokenizerFast:
    """The template's words whole, so that its first 95 tokens can be cut off; all other words letter by letter."""
    words = re.findall(r"\w+|[^\w\s]+", DEFAULT_PROMPT_TEMPLATE["template"])
    letters = sorted(set(string.printable) - set(string.whitespace))
    pieces = ["<pad>", "<s>", "<unk>", *letters, *("##" + letter for letter in letters), *words]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", unk_token="<unk>", padding_side="right"
    )


def tiny_clip_text(vocabulary: int, seed: int, width: int) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=1,
        eos_token_id=vocabulary - 1,
        pad_token_id=0,
    )
    return randomise(CLIPTextModel(config), seed)


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> HunyuanVideoPipeline:
    tokenizer, tokenizer_2 = template_tokenizer(), character_tokenizer(77, bos=True)
    llama = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_DIM,
        intermediate_size=32,
        num_hidden_layers=3,  # the hidden states taken are those of the last layer but two
        num_attention_heads=2,
        max_position_embeddings=512,
        pad_token_id=0,
    )
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2
    )
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=2,
        guidance_embeds=True,
        text_embed_dim=TEXT_DIM,
        pooled_projection_dim=POOLED_DIM,
        rope_axes_dim=(2, 4, 4),
    )
    pipe = HunyuanVideoPipeline(
        text_encoder=randomise(LlamaModel(llama), seed + 1),
        tokenizer=tokenizer,
        transformer=randomise(transformer, seed + 3),
        vae=randomise(vae, seed + 2),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=tiny_clip_text(len(tokenizer_2), seed + 4, POOLED_DIM),
        tokenizer_2=tokenizer_2,
    )
    return finish(pipe, dtype)


def training_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """σ = t / 1000, x_t = (1 − σ) x0 + σ ε, target ε − x0."""
    model, sigma = pipe.transformer, timestep / 1000
    x0, noise = posterior_mode(pipe.vae, pixels) * pipe.vae.config.scaling_factor, noise[None].float()
    noised = (1 - sigma) * x0 + sigma * noise
    with torch.no_grad():
        embeds, pooled, mask = pipe.encode_prompt(caption, max_sequence_length=256)
    prediction = model(
        hidden_states=noised.to(model.dtype),
        timestep=torch.tensor([timestep]),
        encoder_hidden_states=embeds.to(model.dtype),
        encoder_attention_mask=mask.to(model.dtype),
        pooled_projections=pooled.to(model.dtype),
        guidance=torch.tensor([GUIDANCE * 1000], dtype=model.dtype),
        return_dict=False,
    )[0]
    return weighted_mse(prediction, noise - x0, weight)


VARIANTS = (
    Variant(
        "hunyuanvideo",
        "HunyuanVideoPipeline",
        build,
        training_step,
        NUM_FRAMES,
        HEIGHT,
        WIDTH,
        LATENTS,
        half_cosine=0.8,
    ),
)
