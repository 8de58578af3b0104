"""Folders of trained models, as a training leaves them: real weights of a tiny pipeline, mp4 files, facts."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline

from hf_motive.hub.model_card import ModelFacts
from hf_motive.video import save_clip
from tests.clips import moving_square
from tests.families.registry import page

#: What never leaves the machine, with something in it that a test would find.
NEVER = (
    *("checkpoint-2/optimizer.pt", "checkpoint-2/transformer/diffusion_pytorch_model.safetensors"),
    *("runs/log/events.out.tfevents", "optimizer.pt", "training_args.bin", "trainer_state.json", "rng_state_0.pth"),
    *("ema.safetensors", "samples/step-0/samples.json", "samples/index.html", "notes.txt", ".hidden", "cache.arrow"),
    *("encodings/data.safetensors", "transformer/weights.pt", "transformer/.partial"),
    # Weights of other trainings, and of a person.
    *("pytorch_lora_weights_transformer_2.safetensors", "pytorch_lora_weights_mine.safetensors"),
    *("transformer_2/config.json", "transformer_2/diffusion_pytorch_model.safetensors", "unet/adapter_config.json"),
    *("unet/adapter_model.safetensors", "transformer/adapter_model.safetensors", "diffusers.safetensors"),
    *("transformer/model.fp16.safetensors", "old/model.safetensors"),
)
CAPTIONS = ("a square goes left", "a square goes | right")


@cache
def tiny() -> DiffusionPipeline:
    """A Wan pipeline of tiny random parts."""
    return page("wan")[0].build()


def a_model(folder: Path, kind: str = "lora", base: str | None = None, base_is_hub: bool = True) -> ModelFacts:
    """Write the folder of a model: `kind` "lora", "full", or "pipeline", the whole of it."""
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    base = base or "tester/tiny-wan"
    pipe = tiny()
    how = f'from diffusers import WanPipeline\n\npipe = WanPipeline.from_pretrained("{base}")\n'
    if kind == "lora":
        pipe.transformer.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=["to_q", "to_v"]))
        fill = torch.Generator().manual_seed(0)
        for name, parameter in pipe.transformer.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0, 0.5, generator=fill)
        layers = get_peft_model_state_dict(pipe.transformer)
        metadata = _collate_lora_metadata({"transformer": pipe.transformer})
        pipe.save_lora_weights(folder, transformer_lora_layers=layers, **metadata)
        pipe.unload_lora_weights()
        how += 'pipe.load_lora_weights("{repo_id}")'
    elif kind == "full":
        pipe.transformer.save_pretrained(folder / "transformer")
        how = (
            "from diffusers import WanPipeline, WanTransformer3DModel\n\n"
            'transformer = WanTransformer3DModel.from_pretrained("{repo_id}", subfolder="transformer")\n'
            f'pipe = WanPipeline.from_pretrained("{base}", transformer=transformer)'
        )
    else:
        pipe.save_pretrained(folder)
        how = 'from diffusers import WanPipeline\n\npipe = WanPipeline.from_pretrained("{repo_id}")'
        place = "/home/somebody/models/tiny-wan"  # as a loaded one says it
        for path, more in {
            "model_index.json": {"_name_or_path": place},
            "transformer/config.json": {"_name_or_path": place},
            "text_encoder/config.json": {"text_config": {"_name_or_path": place, "list": [f"{place}/x"]}},
            "tokenizer/tokenizer_config.json": {
                "tokenizer_file": f"{place}/tokenizer/tokenizer.json",
                "special_tokens_map_file": f"{place}/special_tokens_map.json",
                "vocab_file": f"{place}/spiece.model",
                "chat_template": "{% if '/think' in text %}",
            },
        }.items():
            (folder / path).write_text(json.dumps(json.loads((folder / path).read_text()) | more, indent=2))
    weights = {"kind": kind if kind == "lora" else "full", "components": ["transformer"], "base": {"transformer": "0"}}
    weights["files"] = ["pytorch_lora_weights.safetensors" if kind == "lora" else "transformer"]
    (folder / "weights.json").write_text(json.dumps(weights))
    facts = some_facts(
        base_model=base, base_is_hub=base_is_hub, kind="lora" if kind == "lora" else "full", how_to_load=how
    )
    for place, sample in enumerate(facts.samples):
        for end, speed in (("before", 0.5), ("after", 3.0)):
            (folder / sample[end]).parent.mkdir(parents=True, exist_ok=True)
            save_clip(folder / sample[end], moving_square(place, speed=speed), fps=16)
    facts.save(folder)
    return facts


#: What is left of a training of another kind, by the kind of the model that is there.
LEFT = {
    "lora": ("model_index.json", "vae/config.json", "vae/diffusion_pytorch_model.safetensors",
             "transformer/diffusion_pytorch_model.safetensors", "transformer/config.json"),
    "full": ("pytorch_lora_weights.safetensors", "vae/config.json", "vae/diffusion_pytorch_model.safetensors"),
    "pipeline": ("pytorch_lora_weights.safetensors",),
}  # fmt: skip


def litter(folder: Path, kind: str) -> None:
    """What a training leaves beside its model, and what others have left."""
    for name in LEFT[kind]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"never published")
    for name in NEVER:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"never published")


def some_facts(**more: Any) -> ModelFacts:
    losses = [[step, 0.2 + 0.5 / (1 + step / 10) + 0.05 * ((step * 7919) % 13 - 6) / 6] for step in range(1, 101)]
    given: dict[str, Any] = {
        "base_model": "tester/tiny-wan",
        "base_is_hub": True,
        "pipeline_class": "WanPipeline",
        "kind": "lora",
        "components": ["transformer"],
        "how_to_load": 'pipe.load_lora_weights("{repo_id}")',
        "corpus": "tester/all-clips",
        "clips": 24,
        "clips_of": 240,
        "selection": "The best tenth, by rank.",
        "curated_dataset": "tester/best-clips",
        "scores": {"settings": "0123456789abcdef", "queries": "f" * 16, "model": "abcd" * 4},
        "training": {
            "Optimizer steps": 100,
            "Clips seen": 400,
            "Learning rate": 1e-4,
            "LoRA rank, alpha": [4, 8],
            "Precision": "bf16",
            "Processes": 1,
            "Seed": 0,
        },
        "metrics": [
            {"step": 0, "validation loss": 0.52, "validation loss, moving": 0.61},
            {"step": 50, "validation loss": 0.44, "validation loss, moving": 0.5},
            {"step": 100, "validation loss": 0.4, "validation loss, moving": 0.43},
        ],
        "losses": losses,
        "samples": [
            {"caption": caption, "before": f"samples/step-0/0{n}.mp4", "after": f"samples/step-100/0{n}.mp4"}
            for n, caption in enumerate(CAPTIONS)
        ],
        "versions": {"torch": "2.13.0", "diffusers": "0.42.1"},
    }
    return ModelFacts(**(given | more))
