"""ChronoEdit: an edit as a clip of five frames, from the image as it is to the image as it should be.

Wan's image-to-video step with another transformer, whose positions set the two latent frames eight apart.
"""

from __future__ import annotations

import torch
from diffusers import ChronoEditPipeline, ChronoEditTransformer3DModel

from tests.families import wan, wan_i2v
from tests.families.common import Variant, character_tokenizer, finish, randomise


def build(dtype: torch.dtype = torch.float32, seed: int = 0) -> ChronoEditPipeline:
    tokenizer = character_tokenizer()
    transformer = ChronoEditTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=12,
        out_channels=4,
        text_dim=wan.TEXT_DIM,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        image_dim=wan_i2v.IMAGE_DIM,
        added_kv_proj_dim=24,
        rope_max_seq_len=32,
        rope_temporal_skip_len=8,
    )
    pipe = ChronoEditPipeline(
        tokenizer=tokenizer,
        text_encoder=wan.tiny_text_encoder(len(tokenizer), seed + 1),
        image_encoder=wan_i2v.tiny_image_encoder(seed + 4),
        image_processor=wan_i2v.image_processor(),
        transformer=randomise(transformer, seed + 3),
        vae=wan.tiny_vae(seed + 2),
        scheduler=wan.scheduler(flow_shift=5.0),
    )
    return finish(pipe, dtype)


VARIANTS = (
    Variant(
        "chronoedit",
        "ChronoEditPipeline",
        build,
        wan_i2v.training_step,
        5,
        wan.HEIGHT,
        wan.WIDTH,
        (4, 2, 4, 6),
        remark="Clips of 5 frames; longer ones (`enable_temporal_reasoning`) are decoded in two parts that overlap, "
        "and refused.",
    ),
)
