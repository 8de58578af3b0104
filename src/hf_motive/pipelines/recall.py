"""What the frozen parts of a pipeline say is the same at every training step: it is asked once, and kept.

A question is a door's name and a digest of what it is asked with; an answer is what came back. The doors are the
pipeline's own `encode_prompt`, the call of each frozen module, and what encodes to latents. What is asked inside a
door that is answered, or whose answer was kept, is not kept again.

Kept is what is a function of the question alone. What draws random numbers, changes its arguments or leaves something
behind on the pipeline is asked anew, and what it asks in turn is kept in its place.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.overrides import TorchFunctionMode

from hf_motive.pipelines import digest
from hf_motive.pipelines.answers import Answer, Unwritable, built, dump, kept, load

__all__ = ["Answers", "Recall", "closed_doors", "door_of", "dump", "load"]

#: Question -> answer.
Answers = dict[str, Any]

_log = logging.getLogger(__name__)


class Recall:
    """The doors of one call: those that are answered, or those whose answers are kept.

    Args:
        answers: Question -> answer: what is found here is not asked.
        record: Keep what is asked, in `recorded`.
        closed: Doors that are left alone.
    """

    def __init__(
        self,
        answers: Mapping[str, Answer] | None = None,
        *,
        record: bool = False,
        closed: Collection[str] = (),
    ):
        self.answers, self.record, self.closed = answers or {}, record, closed
        self.doors = {door_of(question) for question in self.answers}
        self.recorded: dict[str, Answer] = {}
        self.reads = Reads()
        self._tensors: dict[str, list[Tensor]] = {}  # question -> what was given to the pipeline
        self._unkept: dict[str, str] = {}  # door -> what cannot be written of its answers

    def opens(self, door: str) -> bool:
        """Whether this door is to be watched."""
        return door not in self.closed and (self.record or door in self.doors)

    def ask(self, pipeline: Any, door: str, original: Callable, *args: Any, **kwargs: Any) -> Any:
        """What `original(*args, **kwargs)` returns, asked or recalled."""
        with self.reads.paused():
            question = question_of(door, args, kwargs)
        if question is not None and question in self.answers:
            return built(self.answers[question], pipeline._execution_device)
        if question is None or not self.record:
            return original(*args, **kwargs)
        before, outside = _Surroundings(pipeline, args, kwargs), self.recorded
        self.recorded = {}
        try:
            result = original(*args, **kwargs)
        finally:
            inside, self.recorded = self.recorded, outside
        with self.reads.paused():
            if question_of(door, args, kwargs) == question and before.unchanged():
                try:
                    self.recorded[question], self._tensors[question] = kept(result, pipeline._execution_device)
                    return result
                except Unwritable as error:
                    self._unkept[door] = str(error)
        self.recorded |= inside
        return result

    def finish(self, asked: Any) -> Answers:
        """The answers of a call that is over, without what the pipeline did not read of them.

        Args:
            asked: What it came to: the denoiser's arguments.
        """
        self.reads.note(asked)
        finished: Answers = {}
        for question, answer in self.recorded.items():
            given = self._tensors[question]
            copies = (
                None if copy is None or id(tensor) not in self.reads.seen else copy.cpu()
                for copy, tensor in zip(answer.tensors, given, strict=True)
            )
            finished[question] = Answer(answer.tree, tuple(copies))
        return finished

    def warn(self, pipeline: Any) -> None:
        """Say once what cannot be kept."""
        for door, what in self._unkept.items():
            if not any(door_of(question) == door for question in self.recorded):
                _log.warning(
                    "%s: what its %s answers cannot be kept (it holds a %s); it is asked anew at every step",
                    type(pipeline).__name__,
                    door,
                    what,
                )


def closed_doors(pipeline: Any, asked: Callable[..., Any]) -> frozenset[str]:
    """The doors that have no answer which holds at every timestep: those that are asked something else each time (with
    the noised clip, or with random numbers), and those whose answer from memory changes what the denoiser is asked.

    Args:
        asked: With a `Recall`, to what the denoiser is asked at the first timestep, or at the `last` one, where the
            pipeline also draws other random numbers.
    """
    closed: frozenset[str] = frozenset()
    while True:
        first, last = (Recall(record=True, closed=closed) for _ in range(2))
        answers = first.finish(asked(first))
        expected = asked(last, last=True)
        doors = {door_of(question) for question in answers}
        wrong = doors - {door_of(question) for question in answers.keys() & last.recorded.keys()}
        answers = {question: answer for question, answer in answers.items() if door_of(question) not in wrong}

        def holds(doors: Collection[str], answers: Answers = answers, expected: Any = expected) -> bool:
            mine = {question: answer for question, answer in answers.items() if door_of(question) in doors}
            try:
                return _equal(asked(Recall(mine), last=True), expected)
            except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):
                return False

        right = doors - wrong
        if not holds(right):
            failing = {door for door in right if not holds({door})} or right
            _log.warning(
                "%s: what its %s answers from memory is not what it answers; it is asked anew at every step",
                type(pipeline).__name__,
                " and ".join(sorted(failing)),
            )
            wrong |= failing
        if not wrong:
            return closed
        closed |= wrong


def _equal(one: Any, other: Any) -> bool:
    """Equal bit for bit, as far as it is made of tensors and plain values; what else there is, of one kind."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(_equal(part, other[key]) for key, part in one.items())
    return one == other if type(one) in (bool, int, float, str) else True


class Reads(TorchFunctionMode):
    """Which tensors anything was done with."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[int] = set()
        self._on = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self._on:
            self.note(args)
            self.note(kwargs or {})
        return func(*args, **(kwargs or {}))

    def note(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self.seen.add(id(value))
        elif isinstance(value, (list, tuple)):
            for part in value:
                self.note(part)
        elif isinstance(value, Mapping):
            for part in value.values():
                self.note(part)

    def paused(self) -> _Paused:
        return _Paused(self)


class _Paused:
    def __init__(self, reads: Reads):
        self.reads = reads

    def __enter__(self) -> None:
        self.before, self.reads._on = self.reads._on, False

    def __exit__(self, *error: Any) -> None:
        self.reads._on = self.before


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
    if isinstance(value, (np.ndarray, Image.Image)):
        return value
    if isinstance(value, (torch.device, torch.Generator)):
        return None
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items() if key != "device"}
    raise Unwritable(type(value).__name__)


class _Surroundings:
    """What a question that is asked must leave as it is: random number generators, and the pipeline itself."""

    def __init__(self, pipeline: Any, args: tuple, kwargs: Mapping[str, Any]):
        self._pipeline, self._own = pipeline, dict(vars(pipeline))
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, torch.Generator)]
        self._generators = [torch.default_generator, *given]
        device = torch.device(pipeline._execution_device)
        if device.type == "cuda":
            self._generators.append(torch.cuda.default_generators[device.index or torch.cuda.current_device()])
        self._states = self._drawn()

    def unchanged(self) -> bool:
        now = vars(self._pipeline)
        same = now.keys() == self._own.keys() and all(now[name] is value for name, value in self._own.items())
        return same and self._drawn() == self._states

    def _drawn(self) -> list[bytes]:
        return [generator.get_state().numpy().tobytes() for generator in self._generators]
