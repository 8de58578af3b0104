"""Small networks that VBench's side and ours build from the same numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

DINO = {"width": 48, "heads": 3, "layers": 2, "hidden": 96, "patch": 16}
CLIP = {"width": 128, "heads": 2, "layers": 2, "hidden": 512, "patch": 32, "features": 768}  # 768: LAION's head


def dino_weights() -> dict[str, Tensor]:
    """A state dict by the names of DINO's own code."""
    width, hidden, patch = DINO["width"], DINO["hidden"], DINO["patch"]
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + (224 // patch) ** 2, width),
        "patch_embed.proj.weight": (width, 3, patch, patch),
        "patch_embed.proj.bias": (width,),
    }
    for layer in range(DINO["layers"]):
        shapes |= {
            f"blocks.{layer}.norm1.weight": (width,),
            f"blocks.{layer}.norm1.bias": (width,),
            f"blocks.{layer}.attn.qkv.weight": (3 * width, width),
            f"blocks.{layer}.attn.qkv.bias": (3 * width,),
            f"blocks.{layer}.attn.proj.weight": (width, width),
            f"blocks.{layer}.attn.proj.bias": (width,),
            f"blocks.{layer}.norm2.weight": (width,),
            f"blocks.{layer}.norm2.bias": (width,),
            f"blocks.{layer}.mlp.fc1.weight": (hidden, width),
            f"blocks.{layer}.mlp.fc1.bias": (hidden,),
            f"blocks.{layer}.mlp.fc2.weight": (width, hidden),
            f"blocks.{layer}.mlp.fc2.bias": (width,),
        }
    return _drawn({**shapes, "norm.weight": (width,), "norm.bias": (width,)}, seed=1)


def clip_weights() -> dict[str, Tensor]:
    """A state dict of the part for images, by the names of CLIP's own code."""
    width, hidden, patch = CLIP["width"], CLIP["hidden"], CLIP["patch"]
    shapes = {
        "class_embedding": (width,),
        "positional_embedding": (1 + (224 // patch) ** 2, width),
        "proj": (width, CLIP["features"]),
        "conv1.weight": (width, 3, patch, patch),
        "ln_pre.weight": (width,),
        "ln_pre.bias": (width,),
    }
    for layer in range(CLIP["layers"]):
        block = f"transformer.resblocks.{layer}"
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * width, width),
            f"{block}.attn.in_proj_bias": (3 * width,),
            f"{block}.attn.out_proj.weight": (width, width),
            f"{block}.attn.out_proj.bias": (width,),
            f"{block}.ln_1.weight": (width,),
            f"{block}.ln_1.bias": (width,),
            f"{block}.mlp.c_fc.weight": (hidden, width),
            f"{block}.mlp.c_fc.bias": (hidden,),
            f"{block}.mlp.c_proj.weight": (width, hidden),
            f"{block}.mlp.c_proj.bias": (width,),
            f"{block}.ln_2.weight": (width,),
            f"{block}.ln_2.bias": (width,),
        }
    return _drawn({**shapes, "ln_post.weight": (width,), "ln_post.bias": (width,)}, seed=2)


def head_weights() -> dict[str, Tensor]:
    """LAION's linear head: a state dict."""
    drawn = _drawn({"weight": (1, CLIP["features"]), "bias": (1,)}, seed=3)
    return {"weight": 100 * drawn["weight"], "bias": drawn["bias"] + 5}


def _drawn(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Random, of sizes that make the features of two frames as unlike as a trained network's: little bias, attention
    that chooses."""
    random = np.random.RandomState(seed)  # its numbers are the same in every version of numpy
    weights = {}
    for name, shape in shapes.items():
        values = random.standard_normal(shape)
        if name in ("cls_token", "class_embedding", "pos_embed", "positional_embedding") or name.endswith("bias"):
            values *= 0.1
        elif len(shape) == 1:  # of a norm
            values = 1 + 0.1 * values
        else:
            values *= (4.0 if "qkv" in name or "in_proj" in name else 1.5) / np.sqrt(np.prod(shape[1:]))
        weights[name] = torch.from_numpy(values.astype(np.float32))
    return weights


# Our side: as published on the Hub ------------------------------------------------------------------------------


def save_dino(folder: Path) -> Path:
    """The same DINO as transformers reads it: names and configuration as in facebook/dino-vitb16."""
    weights = dino_weights()
    state = {
        "embeddings.cls_token": weights["cls_token"],
        "embeddings.position_embeddings": weights["pos_embed"],
        "embeddings.patch_embeddings.projection.weight": weights["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": weights["patch_embed.proj.bias"],
        "layernorm.weight": weights["norm.weight"],
        "layernorm.bias": weights["norm.bias"],
    }
    for layer in range(DINO["layers"]):
        theirs, ours = f"blocks.{layer}", f"encoder.layer.{layer}"
        for kind in ("weight", "bias"):
            parts = weights[f"{theirs}.attn.qkv.{kind}"].chunk(3)
            for name, part in zip(("query", "key", "value"), parts, strict=True):
                state[f"{ours}.attention.attention.{name}.{kind}"] = part.clone()
            for source, target in {
                "attn.proj": "attention.output.dense",
                "norm1": "layernorm_before",
                "norm2": "layernorm_after",
                "mlp.fc1": "intermediate.dense",
                "mlp.fc2": "output.dense",
            }.items():
                state[f"{ours}.{target}.{kind}"] = weights[f"{theirs}.{source}.{kind}"]
    config = {
        "architectures": ["ViTModel"], "model_type": "vit", "hidden_act": "gelu", "hidden_size": DINO["width"],
        "image_size": 224, "intermediate_size": DINO["hidden"], "layer_norm_eps": 1e-12, "num_attention_heads":
        DINO["heads"], "num_channels": 3, "num_hidden_layers": DINO["layers"], "patch_size": DINO["patch"],
        "qkv_bias": True,
    }  # fmt: skip
    return _saved(folder, state, config)


def save_clip(folder: Path) -> Path:
    """The same CLIP as transformers reads it: names and configuration as in openai/clip-vit-base-patch32."""
    weights = clip_weights()
    state = {
        "vision_model.embeddings.class_embedding": weights["class_embedding"],
        "vision_model.embeddings.position_embedding.weight": weights["positional_embedding"],
        "vision_model.embeddings.patch_embedding.weight": weights["conv1.weight"],
        "visual_projection.weight": weights["proj"].T.contiguous(),
    }
    for kind in ("weight", "bias"):
        state[f"vision_model.pre_layrnorm.{kind}"] = weights[f"ln_pre.{kind}"]
        state[f"vision_model.post_layernorm.{kind}"] = weights[f"ln_post.{kind}"]
    for layer in range(CLIP["layers"]):
        theirs, ours = f"transformer.resblocks.{layer}", f"vision_model.encoder.layers.{layer}"
        for kind in ("weight", "bias"):
            parts = weights[f"{theirs}.attn.in_proj_{kind}"].chunk(3)
            for name, part in zip(("q", "k", "v"), parts, strict=True):
                state[f"{ours}.self_attn.{name}_proj.{kind}"] = part.clone()
            for source, target in {
                "attn.out_proj": "self_attn.out_proj",
                "ln_1": "layer_norm1",
                "ln_2": "layer_norm2",
                "mlp.c_fc": "mlp.fc1",
                "mlp.c_proj": "mlp.fc2",
            }.items():
                state[f"{ours}.{target}.{kind}"] = weights[f"{theirs}.{source}.{kind}"]
    vision = {
        "model_type": "clip_vision_model", "hidden_act": "quick_gelu", "hidden_size": CLIP["width"], "image_size": 224,
        "intermediate_size": CLIP["hidden"], "num_attention_heads": CLIP["heads"], "num_hidden_layers": CLIP["layers"],
        "patch_size": CLIP["patch"], "projection_dim": CLIP["features"],
    }  # fmt: skip
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": CLIP["features"],
        "vision_config": vision,
    }
    return _saved(folder, state, config)


def _saved(folder: Path, state: dict[str, Tensor], config: dict) -> Path:
    from safetensors.torch import save_file

    folder.mkdir(parents=True)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# In place of RAFT, AMT and MUSIQ ---------------------------------------------------------------------------------


def flow(before: Tensor, after: Tensor) -> Tensor:
    """A flow (1, 2, H, W) that is none: large where two frames in 0..255 differ, padding and all."""
    difference = after - before
    return torch.stack([difference.mean(dim=1), difference[:, 1]], dim=1) / 16


def between(before: Tensor, after: Tensor) -> Tensor:
    """A frame (1, 3, H, W) from two in [0, 1]: blurred across the padding, and out of [0, 1] in places."""
    mean = 0.25 * before + 0.75 * after
    return 1.5 * F.avg_pool2d(mean, 5, stride=1, padding=2) - 0.2 + 0.1 * before.flip(1)


def mark(frame: Tensor) -> Tensor:
    """A mark in 0..100 of a frame (1, 3, H, W) in [0, 1], which depends on every pixel and where it is."""
    height, width = frame.shape[-2:]
    ramp = torch.linspace(0, 1, height)[:, None] * torch.linspace(0.5, 1, width)
    edges = (frame[..., 1:] - frame[..., :-1]).abs().mean()
    return 60 * (frame * ramp).mean() + 100 * edges
