"""What a frozen part of a pipeline answered, as tensors and JSON: kept, written, and built anew for each call."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from diffusers.utils import BaseOutput
from torch import Tensor
from transformers.utils import ModelOutput

#: What safetensors writes and reads back bit for bit.
DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
}


class Unwritable(TypeError):
    """A value that is not made of tensors, plain values and outputs of known classes."""


class Answer(NamedTuple):
    """One answer.

    Args:
        tree: JSON values; `{"tensor": 0}` stands for the first tensor, other mappings for other things (`kept`).
        tensors: On the CPU. What the pipeline did not read is None; where it only asked another question with it, what
            stands for it there.
    """

    tree: Any
    tensors: tuple[Tensor | str | None, ...]


class Unread:
    """In the place of what the pipeline did not read when the answer was kept; whoever reads it now is told so."""

    def __init__(self, stands_for: str | None = None):
        self.stands_for = stands_for

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._refuse()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls._refuse()

    @staticmethod
    def _refuse() -> None:
        raise RuntimeError(
            "the pipeline reads a part of an answer that it did not read when the answer was kept: ask for the "
            "answers anew, PipelineStep.answers()"
        )


def kept(value: Any, device: torch.device) -> tuple[Answer, list[Tensor]]:
    """A value as an answer, and the tensors that are in it, in the same order.

    What cannot be written leaves a gap: much of it (a language model's cache of keys and values) is never read.

    Args:
        device: Where the pipeline runs: a tensor on the CPU of a pipeline elsewhere stays there.

    Raises:
        Unwritable: Nothing of it can be written; the message says what it is.
    """
    places: dict[int, int] = {}
    tensors: list[Tensor] = []

    def tree(value: Any) -> Any:
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, Tensor):
            if type(value) not in (Tensor, torch.nn.Parameter) or value.layout != torch.strided:
                return gap(value)
            if value.dtype not in DTYPES or value.is_meta:
                return gap(value)
            if id(value) not in places:
                places[id(value)] = len(tensors)
                tensors.append(value)
            on_host = value.device.type == "cpu" and device.type != "cpu"
            return {"tensor": places[id(value)], **({"host": True} if on_host else {})}
        if type(value) in (list, tuple):
            return {type(value).__name__: [tree(part) for part in value]}
        if type(value) is torch.Size:
            return {"size": list(value)}
        if type(value) is torch.dtype:
            return {"dtype": str(value).removeprefix("torch.")}
        if type(value) is dict:
            return {"dict": named(value)} if all(type(key) is str for key in value) else gap(value)
        name = f"{type(value).__module__}.{type(value).__qualname__}"
        try:
            kind = _class(name)
        except Unwritable:
            return gap(value)
        if kind is not type(value):
            return gap(value)
        fields = value if isinstance(value, Mapping) else vars(value)
        return {"class": name, "fields": named(fields)}

    def named(values: Mapping[str, Any]) -> list[list[Any]]:
        return [[key, tree(part)] for key, part in values.items()]

    def gap(value: Any) -> Any:
        return {"unread": True}

    answer = tree(value)
    if answer == {"unread": True}:
        raise Unwritable(f"{type(value).__module__}.{type(value).__qualname__}")
    copies = tuple(tensor.detach().clone() for tensor in tensors)
    return Answer(answer, copies), tensors


def built(answer: Answer, device: torch.device) -> Any:
    """The value anew, its tensors copies of their own, each on the device where it would have come."""
    made: dict[int, Any] = {}

    def tensor(place: int, on_host: bool) -> Any:
        if place not in made:
            own = answer.tensors[place]
            if not isinstance(own, Tensor):
                made[place] = Unread(own)
            else:
                there = own if on_host else own.to(device)
                made[place] = there.clone() if there is own else there
        return made[place]

    def value(tree: Any) -> Any:
        if not isinstance(tree, dict):
            return tree
        if "tensor" in tree:
            return tensor(tree["tensor"], tree.get("host", False))
        if "list" in tree:
            return [value(part) for part in tree["list"]]
        if "tuple" in tree:
            return tuple(value(part) for part in tree["tuple"])
        if "size" in tree:
            return torch.Size(tree["size"])
        if "dtype" in tree:
            return _dtype(tree["dtype"])
        if "dict" in tree:
            return {key: value(part) for key, part in tree["dict"]}
        if "class" in tree:
            kind = _class(tree["class"])
            fields = {key: value(part) for key, part in tree["fields"]}
            if issubclass(kind, dict):
                return kind(**fields)
            thing = kind.__new__(kind)
            vars(thing).update(fields)
            return thing
        return Unread()

    return value(answer.tree)


def dump(answers: Mapping[str, Answer]) -> tuple[dict[str, Tensor], str]:
    """Answers as tensors for safetensors, and the rest as JSON.

    Returns:
        tensors: Contiguous, on the CPU; named by number.
        text: JSON.
    """
    tensors: dict[str, Tensor] = {}
    entries = []
    for question, answer in answers.items():
        stored: list[dict[str, Any] | str | None] = []
        for tensor in answer.tensors:
            if not isinstance(tensor, Tensor):
                stored.append(tensor)
                continue
            # As it lies in memory: another order of dimensions there may round another way.
            stride = tensor.stride()
            order = sorted(range(tensor.ndim), key=[-step for step in stride].__getitem__)
            moved = tensor if tensor.is_contiguous() else tensor.permute(order)
            stored.append({"name": f"answer.{len(tensors)}"} | ({} if moved is tensor else {"order": order}))
            tensors[f"answer.{len(tensors)}"] = moved.contiguous()
        entries.append({"question": question, "tree": answer.tree, "tensors": stored})
    return tensors, json.dumps(entries, separators=(",", ":"))


def load(tensors: Mapping[str, Tensor], text: str) -> dict[str, Any]:
    """What `dump` wrote.

    Raises:
        ValueError: It is something else.
    """
    answers: dict[str, Any] = {}
    try:
        for entry in json.loads(text):
            read: list[Tensor | str | None] = []
            for stored in entry["tensors"]:
                if not isinstance(stored, dict):
                    read.append(stored)
                    continue
                tensor = tensors[stored["name"]]
                if "order" in stored:
                    order = stored["order"]
                    tensor = tensor.permute([order.index(dim) for dim in range(len(order))])
                read.append(tensor)
            _check(entry["tree"], len(read))
            answers[entry["question"]] = Answer(entry["tree"], tuple(read))
    except (KeyError, TypeError, IndexError, Unwritable, json.JSONDecodeError) as error:
        raise ValueError(
            f"these are not answers of a pipeline that dump() wrote ({type(error).__name__}: {error}): write them anew"
        ) from error
    return answers


def _check(tree: Any, count: int) -> None:
    """What is read from a file names nothing but known classes and tensors that are there."""
    for node in _nodes(tree):
        if "class" in node:
            _class(node["class"])
        if "dtype" in node:
            _dtype(node["dtype"])
        if "tensor" in node and not 0 <= node["tensor"] < count:
            raise IndexError(f"tensor {node['tensor']} of {count}")


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        yield tree
        for part in tree.values():
            yield from _nodes(part)
    elif isinstance(tree, list):
        for part in tree:
            yield from _nodes(part)


def _class(name: str) -> type:
    """An output or a distribution of diffusers or transformers, by its full name.

    Raises:
        Unwritable: It is none of these.
    """
    module, _, own = name.rpartition(".")
    if module.split(".")[0] in ("diffusers", "transformers"):
        try:
            kind = getattr(importlib.import_module(module), own, None)
        except ImportError:
            kind = None
        if isinstance(kind, type):
            if issubclass(kind, (ModelOutput, BaseOutput)):
                return kind
            if kind.__module__ == module and own.endswith("Distribution") and not issubclass(kind, dict):
                return kind
    raise Unwritable(name)


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise Unwritable(f"torch.{name}")
    return found
