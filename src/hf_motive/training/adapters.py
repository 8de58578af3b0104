"""LoRA of a denoiser: where it goes, what of it is saved, and which of diffusers' loaders will take it back."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn

if TYPE_CHECKING:
    from peft import LoraConfig

#: Classes of attention, whatever else is in their names: an attention, an attention processor with layers, ...
_ATTENTION = re.compile(r"Attention|Attn")
#: The name of the adapter in the denoiser; it is in no file.
ADAPTER = "default"
#: Where an adapter's weights are, if the pipeline or the model reads them.
LORA_FILE = "pytorch_lora_weights.safetensors"
#: And where peft reads them.
_PEFT_FILE = "adapter_model.safetensors"
#: Initialisations that leave the denoiser's own weights as they were: an adapter fits no others.
_KEEPS_BASE = (True, False, "gaussian", "orthogonal")


def lora_targets(denoiser: nn.Module) -> list[str]:
    """Names of the linear layers in the attention of the denoiser's blocks, as a `LoraConfig` takes them.

    They match no other layer, and are as short as that allows (`to_q`), so that a card can show them. A denoiser
    without attention gets a LoRA on all its linear layers.

    Raises:
        ValueError: It has no linear layer.
    """
    linear = [name for name, module in denoiser.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(
            f"{type(denoiser).__name__} has no linear layer for a LoRA: train it in full, with peft_config=None"
        )
    attention = [name for name, module in denoiser.named_modules() if _ATTENTION.search(type(module).__name__)]
    innermost = {name for name in attention if not any(other.startswith(f"{name}.") for other in attention)}
    # The blocks' own, of which there are many, and not one that pools text for the embedding of time.
    innermost = {name for name in innermost if any(map(str.isdigit, name.split(".")))} or innermost
    inside = {name: parent for name in linear if (parent := _parent(name, innermost)) is not None}
    if not inside:
        inside = dict.fromkeys(linear, "")
    others = [name for name, _ in denoiser.named_modules() if name not in inside]
    targets = set()
    for name, parent in inside.items():
        parts = name.split(".")
        shortest = len(parts) - (len(parent.split(".")) if parent else 0)
        for length in range(shortest, len(parts) + 1):
            target = ".".join(parts[-length:])
            if not any(other == target or other.endswith(f".{target}") for other in others):
                break
        targets.add(target)
    return sorted(targets)


def _parent(name: str, modules: set[str]) -> str | None:
    parts = name.split(".")
    return next((parent for n in range(len(parts) - 1, 0, -1) if (parent := ".".join(parts[:n])) in modules), None)


def add_adapter(name: str, denoiser: Any, config: LoraConfig) -> None:
    """Add a LoRA to a denoiser: its weights, and nothing else, require gradients.

    Raises:
        ValueError: It changes what no LoRA file holds, or its targets are nowhere in the denoiser.
    """
    import peft

    unsaved = [key for key in ("modules_to_save", "trainable_token_indices") if getattr(config, key, None)]
    if config.bias != "none":
        unsaved.append("bias")
    if config.init_lora_weights not in _KEEPS_BASE:
        unsaved.append("init_lora_weights")
    if unsaved:
        raise ValueError(
            f"peft_config: {', '.join(f'{key}={getattr(config, key)!r}' for key in unsaved)} trains or changes "
            "weights of the model itself, which diffusers does not load from a LoRA: leave it out, or train in full "
            "with peft_config=None"
        )
    known = lora_targets(denoiser)
    try:
        if hasattr(denoiser, "add_adapter"):
            denoiser.add_adapter(config, ADAPTER)
        else:
            peft.inject_adapter_in_model(config, denoiser, ADAPTER)
    except ValueError as error:
        remove_adapter(denoiser)
        if "arget" not in str(error):
            raise
        raise ValueError(
            f"peft_config.target_modules={config.target_modules!r} does not fit {name} ({error}). Leave it out, or "
            f"choose among {', '.join(known)}"
        ) from error


def remove_adapter(denoiser: Any) -> None:
    """Take adapters off, however much of them there is."""
    from diffusers.utils.peft_utils import recurse_remove_peft_layers

    recurse_remove_peft_layers(denoiser)
    vars(denoiser).pop("peft_config", None)
    if hasattr(denoiser, "_hf_peft_config_loaded"):
        denoiser._hf_peft_config_loaded = False


def adapter_state(denoiser: nn.Module, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The LoRA's weights by the names that they have in a file, from the denoiser's state."""
    from peft import get_peft_model_state_dict

    state = dict(denoiser.state_dict() if state is None else state)
    found = get_peft_model_state_dict(denoiser, state, adapter_name=ADAPTER, save_embedding_layers=False)
    return {key: value.detach().cpu().contiguous() for key, value in found.items()}


def config_of(denoiser: Any) -> LoraConfig:
    return denoiser.peft_config[ADAPTER]


def described(config: LoraConfig) -> dict[str, Any]:
    """The configuration as JSON values."""
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    return json.loads(json.dumps(plain, default=str))


# ------------------------------------------------------------------------------------------------------------- files


class Place(NamedTuple):
    """Where the adapter of one denoiser is kept, and who reads it there.

    Attributes:
        loader: `pipeline`, by its `load_lora_weights`; the `model`, by its `load_lora_adapter`; or `peft`.
        file: Of the weights, within the folder.
        prefix: What the file puts before the name of a weight.
    """

    loader: str
    file: str
    prefix: str

    @property
    def stem(self) -> str:
        """The denoiser as the pipeline's `save_lora_weights` calls it."""
        return self.prefix.removesuffix(".")


def place_of(pipeline: Any, name: str, denoiser: nn.Module) -> Place:
    """The place of the adapter of the denoiser `name`.

    Of several denoisers a pipeline's loader takes the first, and another where its signature or its code has a word
    for that one.
    """
    if not hasattr(denoiser, "load_lora_adapter"):
        return Place("peft", f"{name}/{_PEFT_FILE}", "base_model.model.")
    save = getattr(pipeline, "save_lora_weights", None)
    known = inspect.signature(save).parameters if save else {}
    first = name.partition("_")[0]
    file = files_of(name)[0]
    if f"{name}_lora_layers" in known:
        return Place("pipeline", file, f"{name}.")
    if f"{first}_lora_layers" in known and f"load_into_{name}" in inspect.getsource(type(pipeline).load_lora_weights):
        return Place("pipeline", file, f"{first}.")
    return Place("model", f"{name}/{LORA_FILE}", "")


def files_of(name: str) -> tuple[str, ...]:
    """Every file that an adapter of the denoiser `name` may be in, whoever loads it; with its configuration."""
    root = LORA_FILE if name == name.partition("_")[0] else LORA_FILE.replace(".", f"_{name}.")
    return root, f"{name}/{LORA_FILE}", f"{name}/{_PEFT_FILE}", f"{name}/adapter_config.json"


def save_adapter(
    pipeline: Any, name: str, denoiser: nn.Module, folder: Path, state: Mapping[str, Tensor] | None = None
) -> None:
    """Write an adapter as its loader reads it; with its configuration, without which its alpha would be lost."""
    from safetensors.torch import save_file

    place, layers = place_of(pipeline, name, denoiser), adapter_state(denoiser, state)
    config = described(config_of(denoiser))
    path = folder / place.file
    path.parent.mkdir(parents=True, exist_ok=True)
    if place.loader == "pipeline":
        layers_and_config = {
            f"{place.stem}_lora_layers": layers,
            f"{place.stem}_lora_adapter_metadata": config,
        }
        pipeline.save_lora_weights(str(folder), weight_name=place.file, **layers_and_config)
    elif place.loader == "model":
        text = json.dumps(config, indent=2, sort_keys=True)
        save_file(layers, path, {"format": "pt", "lora_adapter_metadata": text})
    else:
        config_of(denoiser).save_pretrained(str(path.parent))
        save_file({place.prefix + key: value for key, value in layers.items()}, path, {"format": "pt"})


def read_adapter(path: Path, prefix: str) -> dict[str, Tensor]:
    """An adapter's weights, without what the file puts before their names."""
    from safetensors.torch import load_file

    return {key.removeprefix(prefix): value for key, value in load_file(path).items()}


def set_adapter(denoiser: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put an adapter's weights in the place of those that are there."""
    from peft import set_peft_model_state_dict

    set_peft_model_state_dict(denoiser, dict(state), adapter_name=ADAPTER)
