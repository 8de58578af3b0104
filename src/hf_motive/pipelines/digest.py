"""What a feature was computed with, as short digests: the weights of a pipeline, and values given to its call."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from hf_motive.sharding import whole


def weights(pipeline: Any) -> dict[str, str]:
    """Component -> 16 hex digits of sha256 over names, dtypes, shapes and bytes of its state, and its configuration.

    All components count: another VAE or text encoder gives other features too. Scales of LoRA adapters and which of
    them are active stand in no state, and count as well.
    """
    modules = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    digests = {}
    for name, module in modules.items():
        digest = hashlib.sha256(text(_configuration(module)).encode())
        for key, value in module.state_dict().items():
            for inner, tensor in _plain(key, whole(value)):
                digest.update(f"{inner} {tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(_bytes(tensor))
        digest.update("".join(adapters(module)).encode())
        digests[name] = digest.hexdigest()[:16]
    return digests


def denoiser(module: nn.Module) -> str:
    """16 hex digits of a model's weights: names, shapes, and values rounded to bfloat16.

    Unlike `weights`, the same for a checkpoint whether it is loaded in float32 or in bfloat16.
    """
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        for inner, tensor in _plain(key, whole(value)):
            digest.update(f"{inner} {tuple(tensor.shape)}".encode())
            digest.update(_bytes(tensor.to(torch.bfloat16) if tensor.is_floating_point() else tensor))
    digest.update("".join(adapters(module)).encode())
    return digest.hexdigest()[:16]


def model(denoisers: Mapping[str, nn.Module | str]) -> str:
    """16 hex digits of the model that all denoisers of a pipeline are, from the denoisers or from their digests."""
    parts = {name: part if isinstance(part, str) else denoiser(part) for name, part in denoisers.items()}
    return hashlib.sha256(text(parts).encode()).hexdigest()[:16]


def adapters(module: nn.Module) -> list[str]:
    """Of each layer with LoRA adapters: their scales, which of them are active, and whether they are off or merged."""
    return [
        f"{key} {sorted(layer.active_adapters)} {text(layer.scaling)}{_off(layer)}"
        for key, layer in module.named_modules()
        if hasattr(layer, "scaling") and hasattr(layer, "active_adapters")
    ]


def configuration(module: nn.Module) -> dict[str, Any]:
    """What the configuration of a diffusers or transformers model says beside its weights, as JSON values.

    Without what saving and loading changes: where it was kept, by which version, and in which dtype.
    """
    config: Any = getattr(module, "config", None)
    if hasattr(config, "to_dict"):
        config = config.to_dict()
    return json.loads(text(_lasting(config))) if isinstance(config, Mapping) else {}


def _lasting(value: Any) -> Any:
    passing = ("transformers_version", "torch_dtype", "dtype", "architectures", "name_or_path")
    if isinstance(value, Mapping):
        keys = [key for key in value if not str(key).startswith("_") and key not in passing]
        return {str(key): _lasting(value[key]) for key in keys}
    return [_lasting(part) for part in value] if isinstance(value, (list, tuple)) else value


def switches(module: nn.Module) -> dict[str, Any]:
    """What is set on a module itself and stands in no weight, such as the tiling of a VAE, as JSON values."""
    passing = ("training", "gradient_checkpointing")
    return {
        name: value
        for name, value in sorted(vars(module).items())
        if type(value) in (bool, int, float) and not name.startswith("_") and name not in passing
    }


def witness(module: nn.Module) -> list[Any]:
    """Changes, at no cost, with every weight that is written to, exchanged or cast, and with what adapters are on."""
    state = [
        (name, id(whole), part.data_ptr(), -1 if part.is_inference() else part._version, part.dtype)
        for tensors in (module.named_parameters(), module.named_buffers())
        for key, whole in tensors
        for name, part in _plain(key, whole)
    ]
    return [state, adapters(module), text(configuration(module))]


def tool(part: Any) -> str:
    """16 hex digits of a component without weights, a tokenizer or processor: of what it makes of its input."""
    said: dict[str, Any] = {"class": type(part).__name__}
    if hasattr(part, "backend_tokenizer"):
        backend = json.loads(part.backend_tokenizer.to_str())
        said["backend"] = {k: v for k, v in backend.items() if k not in ("padding", "truncation")}  # of its last call
    elif hasattr(part, "to_dict"):
        said["settings"] = {k: v for k, v in part.to_dict().items() if not isinstance(v, str) or "/" not in v}
    for name in ("padding_side", "truncation_side", "model_max_length", "vocab_size", "pad_token_id", "eos_token_id"):
        said[name] = getattr(part, name, None)
    if isinstance(getattr(part, "chat_template", None), (str, dict)):
        said["chat_template"] = part.chat_template
    for name in ("tokenizer", "image_processor", "video_processor"):  # of a processor
        if getattr(part, name, None) is not None:
            said[name] = tool(getattr(part, name))
    return hashlib.sha256(text(said).encode()).hexdigest()[:16]


def _off(layer: Any) -> str:
    """Of an adapter layer: nothing, or how its adapters are out of the way."""
    merged = " ".join(map(str, getattr(layer, "merged_adapters", None) or ()))
    return (" disabled" if getattr(layer, "disable_adapters", False) else "") + (f" merged {merged}" if merged else "")


def text(value: Any) -> str:
    """A value as JSON: the same for equal values in every process. Tensors, arrays and images stand as digests."""
    return json.dumps(value, sort_keys=True, default=_stand_in)


def _configuration(module: nn.Module) -> dict[str, Any]:
    """Of a diffusers model, as a VAE's mean and spread stand there and not in its state; without where it was kept."""
    config = getattr(module, "config", None)
    return {k: v for k, v in config.items() if not k.startswith("_")} if isinstance(config, Mapping) else {}


def _stand_in(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Tensor):
        return f"tensor {value.dtype} {tuple(value.shape)} {hashlib.sha256(_bytes(value)).hexdigest()[:16]}"
    if isinstance(value, np.ndarray):
        return f"array {value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()[:16]}"
    if isinstance(value, Image.Image):
        return f"image {value.mode} {value.size} {hashlib.sha256(value.tobytes()).hexdigest()[:16]}"
    if isinstance(value, (set, frozenset, range)):
        return sorted(value)
    if hasattr(value, "__dataclass_fields__"):
        return {name: getattr(value, name) for name in value.__dataclass_fields__}
    return f"{type(value).__module__}.{type(value).__qualname__}"  # not its address, which is another in each process


def _plain(key: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """A state's entry as plain tensors: quantised weights are made of several, and some states hold no tensors."""
    if not isinstance(value, Tensor):
        return
    if is_traceable_wrapper_subclass(value):
        for part in value.__tensor_flatten__()[0]:
            yield from _plain(f"{key}.{part}", getattr(value, part))
    else:
        yield key, value


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
