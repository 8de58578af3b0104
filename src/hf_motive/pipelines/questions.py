"""What a frozen part is asked: where its door is, what tells one question from another, and what asking may not do."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hf_motive.pipelines import digest
from hf_motive.pipelines.answers import Unread, Unwritable

#: The door that is before all others, where a pipeline has it.
PROMPT_DOOR = "encode_prompt"

#: How deep below a component a call may ask a part of it: `text_encoder.model.layers` is two deep.
PART_DEPTH = 2


def frozen_doors(pipeline: Any, denoisers: Mapping[str, nn.Module]) -> Iterator[str]:
    """`encode_prompt`; modules and their parts, as some calls ask a part of one; and `encode`.

    What decodes is called for nothing else.
    """
    if callable(getattr(pipeline, PROMPT_DOOR, None)):
        yield PROMPT_DOOR
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module) and name not in denoisers:
            if hasattr(part, "encode"):
                yield f"{name}.encode"
            if not hasattr(part, "decode"):
                inner = (key for key, _ in part.named_modules() if key.count(".") < PART_DEPTH)
                yield from (f"{name}.{key}" if key else name for key in inner)


def place_of(pipeline: Any, door: str) -> tuple[Any, str]:
    """Where a door is: the object, and the name of its method."""
    *path, last = door.split(".")
    thing = functools.reduce(lambda part, name: getattr(part, name, None), path, pipeline)
    part = getattr(thing, last, None)
    if not isinstance(part, nn.Module):
        return thing, last
    return part, "forward" if part._compiled_call_impl is None else "_compiled_call_impl"


class Reads(TorchFunctionMode):
    """Which tensors anything was done with, by id."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()
        self._on = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._on:
            self.seen.update(id(tensor) for tensor in tensors_in((args, kwargs)))
        return func(*args, **(kwargs or {}))

    def paused(self) -> _Paused:
        return _Paused(self)


class _Paused:
    def __init__(self, reads: Reads):
        self.reads = reads

    def __enter__(self) -> None:
        self.before, self.reads._on = self.reads._on, False

    def __exit__(self, *error: Any) -> None:
        self.reads._on = self.before


def tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)


def door_of(question: str) -> str:
    return question.rpartition(" ")[0]


def question_of(door: str, args: tuple, kwargs: Mapping[str, Any]) -> str | None:
    """A door's name and a digest of its arguments; None where they cannot be told from others of their kind.

    Devices and generators do not count, dtypes do.
    """
    try:
        asked = digest.text([_plain(args), _plain(kwargs)])
    except Unwritable:
        return None
    return f"{door} {hashlib.sha256(asked.encode()).hexdigest()[:32]}"


def _plain(value: Any) -> Any:
    """What `digest.text` takes, and tells apart."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Tensor):
        if value.is_meta or value.layout != torch.strided:
            raise Unwritable(type(value).__name__)
        return value
    if isinstance(value, Image.Image):
        return value.convert("RGBA") if value.mode == "P" else value  # whose palette is not among its bytes
    if isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            raise Unwritable(str(value.dtype))
        return value
    if isinstance(value, (torch.device, torch.Generator)):
        return None
    if isinstance(value, Unread) and value.stands_for is not None:
        return value.stands_for
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items() if key != "device"}
    raise Unwritable(type(value).__name__)


class Surroundings:
    """What a question that is asked must leave as it is: random number generators, and the pipeline itself."""

    def __init__(self, pipeline: Any, device: torch.device, args: tuple, kwargs: Mapping[str, Any]):
        self._pipeline, self._own = pipeline, dict(vars(pipeline))
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Generator)]
        self._generators = [torch.default_generator, *given]
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            self._generators.append(torch.cuda.default_generators[index])
        self._states = self._drawn()

    def unchanged(self) -> bool:
        now = vars(self._pipeline)
        same = now.keys() == self._own.keys() and all(now[name] is value for name, value in self._own.items())
        return same and self._drawn() == self._states

    def _drawn(self) -> list[bytes]:
        return [generator.get_state().numpy().tobytes() for generator in self._generators]
