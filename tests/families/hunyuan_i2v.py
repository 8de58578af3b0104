"""HunyuanVideo from an image, in three ways: frame 0 replaced, the image beside the noised latents, and SkyReels V1.

- `token_replace` (HunyuanVideo-I2V): latent frame 0 is the image itself, at a timestep of its own, zero; the scheduler
  never sees it, and it is out of the loss.
- `latent_concat` (HunyuanVideo-I2V-33ch): [noised | image and zeros | mask], 2C + 1 channels; all frames are denoised.
- SkyReels-V1-I2V: [noised | image and zeros], 2C channels, with the prompt of text-to-video, which has no image in it.

The first two also show the image to the language model, LLaVA, inside the chat template: 576 tokens, of which every
fourth (every second for `latent_concat`) goes to the transformer.
"""

from __future__ import annotations

import functools
import re
import string
from collections.abc import Collection

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMatchEulerDiscreteScheduler,
    HunyuanSkyreelsImageToVideoPipeline,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_image2video import DEFAULT_PROMPT_TEMPLATE
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from hf_motive.pipelines.call import CALL_SEED
from tests.families.common import Variant, character_tokenizer, finish, posterior_mode, randomise, weighted_mse
from tests.families.hunyuan import POOLED_DIM, TEXT_DIM, template_tokenizer, tiny_clip_text
from tests.families.svd import first_frame

NUM_FRAMES, HEIGHT, WIDTH = 9, 32, 48
LATENTS = (4, 3, 4, 6)  # (C, T, h, w)
GUIDANCE = 1.0  # the default of these pipelines, embedded where the model takes it
WORDS = r"<\|\w+\|>|<image>|\n+|\w+|[^\w\s]"  # of a chat template, its marks whole


def chat_tokenizer(template: str, bos: bool = True, spelled: Collection[str] = ()) -> PreTrainedTokenizerFast:
    """The template's words and marks whole but for the `spelled`, all others letter by letter; spaces are dropped."""
    letters = sorted(set(string.printable) - set(string.whitespace))
    words = [word for word in re.findall(WORDS, template) if word not in spelled]
    pieces = ["<pad>", "<s>", "<unk>", *letters, *("##" + letter for letter in letters), *words]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(WordPiece(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Split(Regex(WORDS), "removed", invert=True)
    if bos:
        tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", unk_token="<unk>", padding_side="right"
    )


def tiny_llama(vocabulary: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=TEXT_DIM,
        intermediate_size=32,
        num_hidden_layers=3,  # the hidden states taken are those of the last layer but two
        num_attention_heads=2,
        max_position_embeddings=2048,
        pad_token_id=0,
    )


def tiny_llava(vocabulary: int, image_token: int, seed: int) -> LlavaForConditionalGeneration:
    vision = CLIPVisionConfig(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=336,
        patch_size=14,  # 24 × 24 = 576 tokens, which the template reckons with
    )
    config = LlavaConfig(
        vision_config=vision, text_config=tiny_llama(vocabulary), image_token_index=image_token, pad_token_id=0
    )
    return randomise(LlavaForConditionalGeneration(config), seed)


def tiny_vae(seed: int) -> AutoencoderKLHunyuanVideo:
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2
    )
    return randomise(vae, seed)


def tiny_transformer(
    seed: int, channels: int, guidance: bool, condition: str | None
) -> HunyuanVideoTransformer3DModel:
    transformer = HunyuanVideoTransformer3DModel(
        in_channels=channels,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=2,
        guidance_embeds=guidance,
        text_embed_dim=TEXT_DIM,
        pooled_projection_dim=POOLED_DIM,
        rope_axes_dim=(2, 4, 4),
        image_condition_type=condition,
    )
    return randomise(transformer, seed)


def build(condition: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> HunyuanVideoImageToVideoPipeline:
    tokenizer = chat_tokenizer(DEFAULT_PROMPT_TEMPLATE["template"])
    tokenizer_2 = character_tokenizer(77, bos=True)
    replaces = condition == "token_replace"
    pipe = HunyuanVideoImageToVideoPipeline(
        text_encoder=tiny_llava(len(tokenizer), tokenizer.convert_tokens_to_ids("<image>"), seed + 1),
        tokenizer=tokenizer,
        transformer=tiny_transformer(seed + 3, 4 if replaces else 9, guidance=replaces, condition=condition),
        vae=tiny_vae(seed + 2),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=tiny_clip_text(len(tokenizer_2), seed + 4, POOLED_DIM),
        tokenizer_2=tokenizer_2,
        image_processor=CLIPImageProcessorPil(size=336, crop_size=336),
    )
    return finish(pipe, dtype)


def build_skyreels(dtype: torch.dtype = torch.float32, seed: int = 0) -> HunyuanSkyreelsImageToVideoPipeline:
    tokenizer, tokenizer_2 = template_tokenizer(), character_tokenizer(77, bos=True)
    pipe = HunyuanSkyreelsImageToVideoPipeline(
        text_encoder=randomise(LlamaModel(tiny_llama(len(tokenizer))), seed + 1),
        tokenizer=tokenizer,
        transformer=tiny_transformer(seed + 3, 8, guidance=True, condition=None),
        vae=tiny_vae(seed + 2),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=tiny_clip_text(len(tokenizer_2), seed + 4, POOLED_DIM),
        tokenizer_2=tokenizer_2,
    )
    return finish(pipe, dtype)


def predict(model, hidden_states: Tensor, timestep: float, text: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    embeds, pooled, mask = (part.to(model.dtype) for part in text)
    guidance = torch.tensor([GUIDANCE * 1000], dtype=model.dtype) if model.config.guidance_embeds else None
    return model(
        hidden_states=hidden_states.to(model.dtype),
        timestep=torch.tensor([timestep]),
        encoder_hidden_states=embeds,
        encoder_attention_mask=mask,
        pooled_projections=pooled,
        guidance=guidance,
        return_dict=False,
    )[0]


def noise_clip(pipe, pixels: Tensor, noise: Tensor, timestep: float) -> tuple[Tensor, Tensor]:
    """x_t = (1 − σ) x0 + σ ε with σ = t / 1000, and the target ε − x0; both (1, C, T, h, w)."""
    sigma = timestep / 1000
    x0, noise = posterior_mode(pipe.vae, pixels) * pipe.vae.config.scaling_factor, noise[None].float()
    return (1 - sigma) * x0 + sigma * noise, noise - x0


def step_token_replace(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    noised, target = noise_clip(pipe, pixels, noise, timestep)
    given = posterior_mode(pipe.vae, pixels[:1]) * pipe.vae.config.scaling_factor  # (1, C, 1, h, w)
    with torch.no_grad():
        text = pipe.encode_prompt(first_frame(pixels), caption, image_embed_interleave=4)
    prediction = predict(pipe.transformer, torch.cat([given, noised[:, :, 1:]], dim=2), timestep, text)
    return weighted_mse(prediction[:, :, 1:], target[:, :, 1:], None if weight is None else weight[1:])


def step_latent_concat(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    noised, target = noise_clip(pipe, pixels, noise, timestep)
    condition, mask = torch.zeros_like(noised), torch.zeros_like(noised[:, :1])
    condition[:, :, :1] = posterior_mode(pipe.vae, pixels[:1]) * pipe.vae.config.scaling_factor
    mask[:, :, 0] = 1
    with torch.no_grad():
        text = pipe.encode_prompt(first_frame(pixels), caption, image_embed_interleave=2)
    prediction = predict(pipe.transformer, torch.cat([noised, condition, mask], dim=1), timestep, text)
    return weighted_mse(prediction, target, weight)


def step_skyreels(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """The image's latents are a sample of the posterior, the first number that the pipeline draws."""
    noised, target = noise_clip(pipe, pixels, noise, timestep)
    with torch.no_grad():
        image = pipe.vae.encode(pixels[:1].transpose(0, 1)[None].to(pipe.vae.dtype)).latent_dist
        sample = image.sample(torch.Generator().manual_seed(CALL_SEED)).float()
        text = pipe.encode_prompt(caption)
    condition = torch.zeros_like(noised)
    condition[:, :, :1] = sample * pipe.vae.config.scaling_factor
    prediction = predict(pipe.transformer, torch.cat([noised, condition], dim=1), timestep, text)
    return weighted_mse(prediction, target, weight)


VARIANTS = (
    Variant(
        "hunyuanvideo-i2v",
        "HunyuanVideoImageToVideoPipeline",
        functools.partial(build, "token_replace"),
        step_token_replace,
        NUM_FRAMES,
        HEIGHT,
        WIDTH,
        LATENTS,
        remark="The first latent frame is the image: it is out of the loss.",
    ),
    Variant(
        "hunyuanvideo-i2v-33ch",
        "HunyuanVideoImageToVideoPipeline",
        functools.partial(build, "latent_concat"),
        step_latent_concat,
        NUM_FRAMES,
        HEIGHT,
        WIDTH,
        LATENTS,
        remark="All frames are in the loss, though the pipeline cuts the first four off what it has decoded.",
    ),
    Variant(
        "skyreels-v1-i2v",
        "HunyuanSkyreelsImageToVideoPipeline",
        build_skyreels,
        step_skyreels,
        NUM_FRAMES,
        HEIGHT,
        WIDTH,
        LATENTS,
    ),
)
