"""ConsisID: CogVideoX from an image, and a face that is kept: every other block attends to its embeddings.

The embeddings come from face models that diffusers leaves outside of the pipeline, so a row of the data set holds
them: `id_cond` and five `id_vit_hidden`; and, for a denoiser with `is_kps`, the five key points of the face, which the
pipeline draws and gives as the second frame beside the noised latents.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import ConsisIDPipeline, ConsisIDTransformer3DModel
from diffusers.pipelines.consisid.pipeline_consisid import draw_kps
from torch import Tensor

from hf_motive.pipelines.call import CALL_SEED
from tests.families import cogvideox
from tests.families.cogvideox import HEAD_DIM, HEIGHT, LATENTS, NUM_FRAMES, TEXT_DIM, TEXT_LENGTH, WIDTH, rotary
from tests.families.cogvideox_conditioned import padded_in_time, pil_frames, sample_posterior, velocity_step
from tests.families.common import Variant, finish, randomise

ID_DIM, VIT_DIM, VIT_TOKENS = 12, 8, 3


def build(dtype: torch.dtype = torch.float32, seed: int = 0, key_points: bool = False) -> ConsisIDPipeline:
    parts = cogvideox.build(seed=seed, large=True).components
    transformer = ConsisIDTransformer3DModel(
        num_attention_heads=3,  # the face has two thirds of the width
        attention_head_dim=HEAD_DIM,
        in_channels=8,
        out_channels=4,
        time_embed_dim=8,
        text_embed_dim=TEXT_DIM,
        num_layers=2,
        sample_width=6,
        sample_height=4,
        sample_frames=NUM_FRAMES,
        max_text_seq_length=TEXT_LENGTH,
        use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=True,
        is_train_face=True,
        is_kps=key_points,
        cross_attn_interval=2,
        cross_attn_dim_head=8,
        cross_attn_num_heads=2,
        LFE_id_dim=ID_DIM,
        LFE_vit_dim=VIT_DIM,
        LFE_depth=5,
        LFE_dim_head=8,
        LFE_num_heads=2,
        LFE_num_id_token=2,
        LFE_num_querie=4,
        LFE_output_dim=32,
        LFE_ff_mult=2,
    )
    parts["transformer"] = randomise(transformer, seed + 3)
    return finish(ConsisIDPipeline(**parts), dtype)


def face(pixels: Tensor) -> dict[str, Any]:
    """What a row holds of the face. Face models would read it from the first frame; here it hangs on its colours."""
    generator = torch.Generator().manual_seed(7)
    red, height, width = float(pixels[0, 0].mean()), *pixels.shape[-2:]
    points = np.array([[0.3, 0.3], [0.6, 0.3], [0.5, 0.5], [0.35, 0.75], [0.6, 0.7]]) * [width, height]
    return {
        "id_cond": red + torch.randn(1, ID_DIM, generator=generator),
        "id_vit_hidden": [red + torch.randn(1, VIT_TOKENS, VIT_DIM, generator=generator) for _ in range(5)],
        "kps_cond": points.tolist(),
    }


def conditioning(example: Any) -> dict[str, Any]:
    return {
        "image": pil_frames(example["pixels"][:1])[0],
        **{name: example[name] for name in ("id_cond", "id_vit_hidden", "kps_cond")},
    }


def training_step(pipe, pixels, caption, noise, timestep, weight=None, sigma=None) -> Tensor:
    """Beside the noised latents: the image and the drawn key points, each a sample of its posterior; then zeros."""
    config, row = pipe.transformer.config, face(pixels)
    frames = [pixels[0]]
    if config.is_kps:
        drawing = np.array(draw_kps(pil_frames(pixels[:1])[0], row["kps_cond"]))
        frames.append(torch.from_numpy(drawing).permute(2, 0, 1) / 127.5 - 1)
    generator = torch.Generator().manual_seed(CALL_SEED)
    latents = torch.cat([sample_posterior(pipe.vae, frame, generator) for frame in frames], dim=2)
    return velocity_step(
        pipe,
        pixels,
        caption,
        noise,
        timestep,
        weight,
        padded_in_time(latents * pipe.vae.config.scaling_factor, noise.shape[1]),
        image_rotary_emb=rotary(config, *noise.shape[1:]),
        id_cond=row["id_cond"],
        id_vit_hidden=row["id_vit_hidden"],
    )


VARIANTS = tuple(
    Variant(
        name,
        "ConsisIDPipeline",
        partial(build, key_points=key_points),
        training_step,
        NUM_FRAMES,
        HEIGHT,
        WIDTH,
        LATENTS,
        conditioning=conditioning,
        example=face,
        remark=remark,
    )
    for name, key_points, remark in (
        ("consisid", False, "The face's `id_cond` and `id_vit_hidden` are columns of the data set."),
        ("consisid-key-points", True, "As above, with the face's five points as `kps_cond`."),
    )
)
