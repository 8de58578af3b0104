"""HunyuanVideo 1.5: conditioning channels even without an image, three kinds of prompt tokens, and a guider.

The denoiser always sees [noised | given frame and zeros | mask], 2C + 1 channels, all zero where there is no image,
and the tokens of a Qwen chat template, of ByT5 (only what the caption puts in quotation marks) and of SigLIP (zeros
without an image). Guidance is not an argument of the call but a component, `guider`; with it switched off, the one
pass is the conditional one.
"""

from __future__ import annotations

import inspect

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15ImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
)
from torch import Tensor
from transformers import (
    ByT5Tokenizer,
    PreTrainedTokenizerFast,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    T5Config,
    T5EncoderModel,
)

from tests.families.common import Variant, finish, posterior_mode, randomise, weighted_mse
from tests.families.framepack import IMAGE_DIM, tiny_siglip
from tests.families.hunyuan import TEXT_DIM
from tests.families.hunyuan_i2v import chat_tokenizer
from tests.families.svd import first_frame

NUM_FRAMES, HEIGHT, WIDTH = 9, 48, 80  # of 64 × 64 pixels, the size nearest to three by five
LATENTS = (4, 3, 3, 5)  # (C, T, h, w)
TEXT_DIM_2, IMAGE_TOKENS = 8, 4
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    """With a chat template, of which the pipelines cut off 108 tokens: all that stands before the caption."""
    encode = inspect.signature(HunyuanVideo15Pipeline._get_mllm_prompt_embeds)
    system_message = encode.parameters["system_message"].default
    before = f"<|im_start|>system\n{system_message}<|im_end|>\n<|im_start|>user\n"
    tokenizer = chat_tokenizer(before + "assistant", bos=False, spelled=("aspects", "light"))  # or there were 98
    tokenizer.chat_template = CHAT
    assert len(tokenizer(before).input_ids) == 108
    return tokenizer


def tiny_qwen(vocabulary: int, seed: int) -> Qwen2_5_VLTextModel:
    config = Qwen2_5_VLTextConfig(
        vocab_size=vocabulary,
        hidden_size=TEXT_DIM,
        intermediate_size=32,
        num_hidden_layers=3,  # the hidden states taken are those of the last layer but two
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 1, 1]},
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    return randomise(Qwen2_5_VLTextModel(config), seed)


def parts(seed: int) -> dict:
    """What both pipelines have."""
    tokenizer, tokenizer_2 = qwen_tokenizer(), ByT5Tokenizer()
    byt5 = T5Config(
        vocab_size=len(tokenizer_2),
        d_model=TEXT_DIM_2,
        d_kv=4,
        d_ff=16,
        num_layers=1,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
    )
    vae = AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(8,) * 5, layers_per_block=1)
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=2,
        num_refiner_layers=1,
        text_embed_dim=TEXT_DIM,
        text_embed_2_dim=TEXT_DIM_2,
        image_embed_dim=IMAGE_DIM,
        rope_axes_dim=(2, 4, 4),
        target_size=64,
    )
    return {
        "text_encoder": tiny_qwen(len(tokenizer), seed + 1),
        "tokenizer": tokenizer,
        "transformer": randomise(transformer, seed + 3),
        "vae": randomise(vae, seed + 2),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=5.0),
        "text_encoder_2": randomise(T5EncoderModel(byt5), seed + 4),
        "tokenizer_2": tokenizer_2,
        "guider": ClassifierFreeGuidance(guidance_scale=6.0),
    }


def shorten(pipe):
    """Token counts that a tiny transformer can afford: 1000 + 256 + 729 as released."""
    pipe.tokenizer_max_length, pipe.tokenizer_2_max_length = 64, 32
    pipe.vision_num_semantic_tokens = IMAGE_TOKENS
    return pipe


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> HunyuanVideo15Pipeline:
    return finish(shorten(HunyuanVideo15Pipeline(**parts(seed))), dtype)


def build_i2v(dtype: torch.dtype = torch.float32, seed: int = 0) -> HunyuanVideo15ImageToVideoPipeline:
    image_encoder, feature_extractor = tiny_siglip(seed + 5)
    pipe = HunyuanVideo15ImageToVideoPipeline(
        **parts(seed), image_encoder=image_encoder, feature_extractor=feature_extractor
    )
    return finish(shorten(pipe), dtype)


def flow_step(pipe, pixels, caption, noise, timestep, weight, given: Tensor | None, image_embeds: Tensor) -> Tensor:
    """σ = t / 1000, x_t = (1 − σ) x0 + σ ε, target ε − x0; `given`: clean latents (1, C, 1, h, w) of frame 0."""
    model, sigma = pipe.transformer, timestep / 1000
    x0, noise = posterior_mode(pipe.vae, pixels) * pipe.vae.config.scaling_factor, noise[None].float()
    noised = (1 - sigma) * x0 + sigma * noise
    condition, mask = torch.zeros_like(noised), torch.zeros_like(noised[:, :1])
    if given is not None:
        condition[:, :, :1], mask[:, :, 0] = given, 1
    with torch.no_grad():
        embeds, embeds_mask, glyphs, glyphs_mask = pipe.encode_prompt(caption, dtype=model.dtype)
    prediction = model(
        hidden_states=torch.cat([noised, condition, mask], dim=1).to(model.dtype),
        timestep=torch.tensor([timestep], dtype=model.dtype),
        encoder_hidden_states=embeds,
        encoder_attention_mask=embeds_mask,
        encoder_hidden_states_2=glyphs,
        encoder_attention_mask_2=glyphs_mask,
        image_embeds=image_embeds.to(model.dtype),
        return_dict=False,
    )[0]
    return weighted_mse(prediction, noise - x0, weight)


def training_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    no_image = torch.zeros(1, IMAGE_TOKENS, IMAGE_DIM)
    return flow_step(pipe, pixels, caption, noise, timestep, weight, None, no_image)


def training_step_i2v(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    given = posterior_mode(pipe.vae, pixels[:1]) * pipe.vae.config.scaling_factor
    with torch.no_grad():
        processed = pipe.feature_extractor(images=first_frame(pixels), return_tensors="pt")
        embeds = pipe.image_encoder(processed.pixel_values.to(pipe.image_encoder.dtype)).last_hidden_state
    return flow_step(pipe, pixels, caption, noise, timestep, weight, given, embeds)


GLYPHS = (
    "The embedder of quoted text, 98 % of this tiny model, has no gradient where the caption quotes none."  # 2048 wide
)
VARIANTS = (
    Variant(
        "hunyuanvideo-1.5",
        "HunyuanVideo15Pipeline",
        build,
        training_step,
        NUM_FRAMES,
        HEIGHT,
        WIDTH,
        LATENTS,
        remark=GLYPHS,
    ),
    Variant(
        "hunyuanvideo-1.5-i2v",
        "HunyuanVideo15ImageToVideoPipeline",
        build_i2v,
        training_step_i2v,
        NUM_FRAMES,
        HEIGHT,
        WIDTH,
        LATENTS,
        remark="The pipeline chooses the size itself, from the image's shape and the transformer's `target_size`: "
        "clips must have it.",
    ),
)
