"""Networks that turn frames into features or scores: by id, from a folder, or given.

An encoder takes preprocessed frames (B, 3, H, W) and gives features (B, D).
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Encoder = Callable[[Tensor], Tensor]

LINEAR_HEAD = "sa_0_4_vit_l_14_linear.pth of https://github.com/LAION-AI/aesthetic-predictor (MIT)"


def name_of(network: Any) -> str:
    """What a result calls a network: an id, the name of a folder or of what was given, and where it comes from."""
    if _is_import(network):
        return f"{network.split(':')[1]} (given)"
    if isinstance(network, (str, os.PathLike)):
        text = os.fspath(network)
        is_folder = os.path.isabs(text) or text.startswith((".", "~")) or Path(text).exists()
        return f"{Path(text).name if is_folder else text} (transformers)"
    source = getattr(getattr(network, "config", None), "_name_or_path", None)
    if source:
        return name_of(source)
    named = network if inspect.isroutine(network) else type(network)
    return f"{named.__qualname__} (given)"


def dino(network: Any, device: torch.device, dtype: torch.dtype) -> Encoder:
    """DINO's feature of an image: its class token after the last layer norm.

    Args:
        network: An id or a folder of a transformers `ViTModel`, such a model (which stays where it is), or an encoder.
        device: Of a model that is loaded here, and of what an encoder that is no module is given.
        dtype: Of a model that is loaded here.

    Raises:
        OSError: The weights cannot be had; the message names the remedy.
        TypeError: It is another model of transformers, or, when it runs, gives something else than a tensor.
        ValueError: It is no network, or, when it runs, gives something else than a feature a frame.
    """
    if isinstance(network, (str, os.PathLike)):
        from transformers import ViTModel

        # DINO's layer norms have this epsilon; the configuration that was published with the weights has another.
        network = _loaded(ViTModel, network, device, dtype, add_pooling_layer=False, layer_norm_eps=1e-6)
    if not (_model_type(network) == "vit" and hasattr(network, "embeddings")):
        return _given(network, device, dtype, "ViTModel")

    def encode(frames: Tensor) -> Tensor:
        # Frames are not square, and DINO stretches its position embeddings to them in a way of its own.
        network.embeddings.interpolate_pos_encoding = MethodType(_stretched, network.embeddings)
        try:
            return network(pixel_values=frames, interpolate_pos_encoding=True).last_hidden_state[:, 0]
        finally:
            del network.embeddings.interpolate_pos_encoding

    return _placed(network, encode)


def clip_image(network: Any, device: torch.device, dtype: torch.dtype) -> Encoder:
    """CLIP's feature of an image, projected to where texts are as well.

    Args:
        network: An id or a folder of a transformers CLIP; its `CLIPModel` or `CLIPVisionModelWithProjection` (which
            stays where it is); or an encoder.
        device: Of a model that is loaded here, and of what an encoder that is no module is given.
        dtype: Of a model that is loaded here.

    Raises:
        OSError, TypeError, ValueError: As `dino`.
    """
    if isinstance(network, (str, os.PathLike)):
        from transformers import CLIPVisionModelWithProjection

        network = _loaded(CLIPVisionModelWithProjection, network, device, dtype)
    parts = hasattr(network, "vision_model") and hasattr(network, "visual_projection")
    if not (_model_type(network) in ("clip", "clip_vision_model") and parts):
        return _given(network, device, dtype, "CLIPModel or CLIPVisionModelWithProjection")

    def encode(frames: Tensor) -> Tensor:
        pooled = network.vision_model(pixel_values=frames).pooler_output
        return network.visual_projection(pooled)

    return _placed(network, encode)


def linear_head(head: Any, device: torch.device) -> nn.Module:
    """A linear layer from features to a score.

    Args:
        head: The file of its state dict, the state dict, or the module.

    Raises:
        OSError: The file is not there, or holds no weights; the message says where to get it.
        TypeError: It is none of these.
        ValueError: The state dict is not that of a linear layer with one output.
    """
    if isinstance(head, nn.Module):
        return head.eval()
    if not isinstance(head, (str, os.PathLike, Mapping)):
        raise TypeError(f"head must be a file, its state dict or a module, got {type(head).__name__}")
    state = head if isinstance(head, Mapping) else state_dict(head, f"Pass head= the file {LINEAR_HEAD}")
    shapes = {key: tuple(getattr(value, "shape", ())) for key, value in dict(state).items()}
    if set(shapes) != {"weight", "bias"} or len(shapes["weight"]) != 2 or shapes["weight"][0] != 1:
        raise ValueError(
            "the head must be the state dict of a linear layer with one output, weight (1, D) and bias (1,); "
            f"it holds {', '.join(f'{key} {shape}' for key, shape in shapes.items()) or 'nothing'}"
        )
    weight = state["weight"]
    linear = nn.Linear(weight.shape[1], 1)
    linear.load_state_dict(dict(state))
    return linear.eval().to(device)


def state_dict(file: str | os.PathLike[str], remedy: str) -> dict[str, Any]:
    """The weights that a file holds, on the CPU.

    Args:
        file: What torch.save wrote.
        remedy: What the error says to do.

    Raises:
        OSError: It is not there, or holds none: a page that was saved in the place of a download, say.
    """
    name = Path(file).name
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise OSError(f"the weights {name} cannot be had: there is no such file. {remedy}") from error
    except Exception as error:  # a text fails at whatever its first letters mean to a reader of pickles
        raise OSError(f"the weights {name} cannot be had: the file is no state dict. {remedy}") from error
    if not isinstance(state, Mapping):
        raise OSError(f"the weights {name} cannot be had: the file holds a {type(state).__name__}. {remedy}")
    return dict(state)


def given(network: Any, what: str) -> Callable[..., Any]:
    """A network that the user brings.

    Args:
        network: A callable, or where to import one from, "package.module:name".
        what: What the error says where there is none.

    Raises:
        ValueError: `network` is neither.
    """
    network = imported(network)
    if not callable(network):
        raise ValueError(what)
    return network


def device_of(network: Any, device: torch.device) -> torch.device:
    """Where a network takes its frames: a module where its weights are, everything else on `device`."""
    weights = next(network.parameters(), None) if isinstance(network, nn.Module) else None
    return device if weights is None else weights.device


def imported(network: Any) -> Any:
    """What "package.module:name" names; everything else as it is."""
    if not _is_import(network):
        return network
    module, name = network.split(":")
    return getattr(importlib.import_module(module), name)


def _is_import(network: Any) -> bool:
    # No id and no path has a colon between names.
    return isinstance(network, str) and re.fullmatch(r"\w+(\.\w+)*:\w+", network) is not None


def _loaded(model: Any, network: str | os.PathLike[str], device: torch.device, dtype: torch.dtype, **options: Any):
    from datasets import are_progress_bars_disabled
    from safetensors import SafetensorError
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    if are_progress_bars_disabled():  # one switch for all bars of a metric
        logging.disable_progress_bar()
    logging.set_verbosity_error()  # a table of the weights that are not used: CLIP's text encoder, say
    try:
        # Sizes that do not fit are in the report, which says more than the error would.
        loaded, report = model.from_pretrained(
            network, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise OSError(
            f"the weights of {network} cannot be had: {str(error).splitlines()[0]} Pass network= another id, "
            "a folder that holds them, or the loaded model; or leave the metric out"
        ) from error
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    strange = sorted(key[0] if isinstance(key, tuple) else key for key in report["mismatched_keys"])
    if strange:  # as where config.json is not there
        raise OSError(
            f"the weights of {network} cannot be had: {len(strange)} are of other sizes than its config.json says, or "
            f"it has none, {strange[0]} for one; pass network= an id or a whole folder of a {model.__name__}"
        )
    absent = sorted(report["missing_keys"])
    if absent:  # transformers draws them at random
        raise OSError(
            f"{network} is no {model.__name__}: it lacks {len(absent)} of its weights, {absent[0]} for one; "
            "pass network= an id or a folder of such a model"
        )
    return loaded.to(device).eval()


def _placed(network: nn.Module, encode: Encoder) -> Encoder:
    """An encoder that takes frames on the CPU to where its weights are, and gives float32."""
    network.eval()
    weights = next(network.parameters())
    return lambda frames: _features(encode(frames.to(weights.device, weights.dtype)), len(frames))


def _model_type(network: Any) -> str | None:
    return getattr(getattr(network, "config", None), "model_type", None)


def _features(found: Any, count: int) -> Tensor:
    """What an encoder gave, as float32, if it is a feature a frame: the formulas would take other shapes as well."""
    if not isinstance(found, Tensor):
        raise TypeError(f"the network gave a {type(found).__name__}; expected its features as a tensor (B, D)")
    if found.ndim != 2 or len(found) != count or not found.is_floating_point():
        raise ValueError(
            f"the network gave {found.dtype} of {tuple(found.shape)} for {count} frames; expected features (B, D), "
            f"a row a frame, B = {count}, of floats"
        )
    return found.float()


def _given(network: Any, device: torch.device, dtype: torch.dtype, expected: str) -> Encoder:
    if type(network).__module__.startswith("transformers."):
        raise TypeError(
            f"network is a {type(network).__name__}, which gives no features: pass a {expected}, an id, a folder, "
            "or a callable from frames (B, 3, H, W) to features (B, D)"
        )
    if isinstance(network, nn.Module) and next(network.parameters(), None) is not None:
        return _placed(network, network)
    if not callable(network):
        raise ValueError(
            f"network must be an id, a folder, a model of transformers, or a callable of frames (B, 3, H, W) that "
            f"returns features (B, D); got {type(network).__name__}"
        )
    return lambda frames: _features(network(frames.to(device, dtype)), len(frames))


def _stretched(embeddings: Any, tokens: Tensor, height: int, width: int) -> Tensor:
    """Position embeddings of a grid of patches of any shape, as DINO has them.

    DINO interpolates with the *scale* (n + 0.1) / side, and a scale so stretched moves every sample a little;
    transformers interpolates to the size.

    Args:
        embeddings: The model's embeddings, with `position_embeddings` (1, 1 + side², D) and `patch_size`.
        tokens: (B, 1 + patches, D).
        height: Of the frames, in pixels.
        width: Of the frames, in pixels.
    """
    positions = embeddings.position_embeddings
    side = round((positions.shape[1] - 1) ** 0.5)
    if tokens.shape[1] == positions.shape[1] and height == width:
        return positions
    patch = embeddings.patch_size
    patches = positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)  # (1, D, side, side)
    scale = [(pixels // patch + 0.1) / side for pixels in (height, width)]
    patches = F.interpolate(patches, scale_factor=scale, mode="bicubic")
    return torch.cat([positions[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)
