"""The lab's text-to-video pipeline: a `WanPipeline` of small parts, and the words that it knows."""

from __future__ import annotations

import string
from typing import Any

import torch
from torch import Tensor

from .autoencoder import LATENT_CHANNELS, build_vae
from .spec import BACKGROUNDS, CAMERAS, COLORS, MODEL_FRAMES, MOTIONS, SHAPES, SIZE, ClipSpec

TEXT_LENGTH = 512  # tokens, `WanPipeline.__call__`'s default: zeros after the caption's own
TEXT_DIM = 64
GENERATE: dict[str, Any] = {"num_frames": MODEL_FRAMES, "height": SIZE, "width": SIZE}


def build_tokenizer() -> Any:
    """A T5 tokenizer: the words of the captions as one token each, anything else letter by letter."""
    from transformers import T5Tokenizer

    specs = [
        ClipSpec(motion, SHAPES[0], color, background, camera)
        for motion in (*MOTIONS, "rest")
        for color in COLORS
        for background in BACKGROUNDS
        for camera in CAMERAS
    ]
    words = sorted({word for spec in specs for word in spec.caption.split()} | set(SHAPES))
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{word}", -4.0) for word in words)]
    known = {piece for piece, _ in pieces}
    letters = ["▁", *string.ascii_letters, *string.digits, *string.punctuation]
    pieces += [(letter, -12.0) for letter in letters if letter not in known]
    return T5Tokenizer(vocab=pieces, extra_ids=0, additional_special_tokens=[], model_max_length=TEXT_LENGTH)


def build_text_encoder(vocabulary: int, seed: int) -> Any:
    """A UMT5 encoder of one layer, random and frozen: what it has to do is to keep words apart."""
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=vocabulary, d_model=TEXT_DIM, d_kv=16, d_ff=64, num_layers=1, num_heads=2, pad_token_id=0
    )
    encoder = UMT5EncoderModel(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "norm" in name:
                parameter.fill_(1.0)
            else:
                # Embeddings of unit size; the layer adds a little of a word's neighbours to each.
                size = 1.0 if "shared" in name or "embed_tokens" in name else 0.5 / parameter.shape[-1] ** 0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)
    return encoder.eval().requires_grad_(False)


def build_transformer() -> Any:
    """A `WanTransformer3DModel` of 3.9 M parameters; latents (B, 8, 5, 16, 16) are 320 tokens to it."""
    from diffusers import WanTransformer3DModel

    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=3,
        attention_head_dim=64,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=TEXT_DIM,
        freq_dim=128,
        ffn_dim=768,
        num_layers=6,
        cross_attn_norm=True,
        rope_max_seq_len=64,
    )


def build_pipeline(seed: int = 0) -> Any:
    """An untrained `WanPipeline`, its scheduler as released with Wan2.1-T2V-1.3B."""
    from diffusers import UniPCMultistepScheduler, WanPipeline

    tokenizer = build_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae, transformer = build_vae(), build_transformer()
    return WanPipeline(
        tokenizer=tokenizer,
        text_encoder=build_text_encoder(len(tokenizer), seed),
        vae=vae,
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
        ),
        transformer=transformer,
    )


class TextPadding:
    """Attention as the pipeline computes it, with the padding of a caption folded into one key.

    A caption of n tokens reaches the model followed by 512 - n zero vectors. They are equal, so are their keys and
    values, and attention over them equals attention over one of them whose logit is raised by log(512 - n): the same
    result at a twentieth of the keys. `log_pads` (B,) holds that term; training lowers it at first, for otherwise the
    padding drowns an untrained caption.
    """

    def __init__(self) -> None:
        self.bias: Tensor | None = None  # (B, 1, 1, L): added to the logits of the text's keys

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        rotary_emb: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        text = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query = attn.norm_q(attn.to_q(hidden_states)).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        key = attn.norm_k(attn.to_k(text)).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        value = attn.to_v(text).unflatten(2, (attn.heads, -1)).transpose(1, 2)
        if rotary_emb is not None:
            query, key = (_rotate(x, *rotary_emb) for x in (query, key))
        logits = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
        if encoder_hidden_states is not None and self.bias is not None:
            logits = logits + self.bias
        out = (logits.softmax(-1).to(value.dtype) @ value).transpose(1, 2).flatten(2)
        return attn.to_out[0](out)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, heads, S, D); the tables (1, S, 1, D) hold each angle twice."""
    cos, sin = cos[..., 0::2].transpose(1, 2), sin[..., 1::2].transpose(1, 2)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], -1).flatten(-2).type_as(x)
