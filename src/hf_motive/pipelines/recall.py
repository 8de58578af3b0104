"""What the frozen parts of a pipeline say is the same at every training step: it is asked once, and kept.

A question is a door's name and a digest of what it is asked with; an answer is what came back. The doors are the
pipeline's own `encode_prompt`, the call of each frozen module, and what encodes to latents. What is asked inside a
door that is answered, or whose answer was kept, is not kept again.

Kept is what is a function of the question alone. What draws random numbers, changes its arguments or leaves something
behind on the pipeline is asked anew, and what it asks in turn is kept in its place.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hf_motive.pipelines import digest
from hf_motive.pipelines.answers import Answer, Unwritable, built, dump, kept, load
from hf_motive.pipelines.questions import PROMPT_DOOR, Reads, Surroundings, door_of, question_of, tensors_in

__all__ = ["Answers", "LearntDoors", "Recall", "dump", "learn_doors", "load"]

#: Bytes of the largest answer that is kept, for one clip: asking a text encoder again is cheaper than reading more.
LARGEST = 2**28

#: Question -> answer.
Answers = dict[str, Any]

_log = logging.getLogger(__name__)


class Recall:
    """The doors of one call: those that are answered, or those whose answers are kept.

    Args:
        answers: Question -> answer: what is found here is not asked.
        record: Keep what is asked, for `finish`.
        closed: Doors that are left alone.
    """

    def __init__(
        self,
        answers: Mapping[str, Answer] | None = None,
        *,
        record: bool = False,
        closed: frozenset[str] = frozenset(),
    ):
        self.answers, self.record, self.closed = answers or {}, record, closed
        self.doors = {door_of(question) for question in self.answers}
        self.recorded: dict[str, Answer] = {}
        self.unkept: dict[str, str] = {}  # door -> why its answers are not kept
        self.reads = Reads()
        self._given: dict[str, list[Tensor]] = {}  # question -> the tensors that the pipeline was given
        self._held: set[int] = set()  # their ids
        self._passed_on: dict[int, str] = {}  # id -> stand-in of those that another question was asked with
        self._in_module = False

    def is_open(self, door: str) -> bool:
        """Whether neither this door nor that of the module that it is a part of is closed."""
        path = door.split(".")
        return self.closed.isdisjoint(".".join(path[: depth + 1]) for depth in range(len(path)))

    def ask(
        self, pipeline: Any, device: torch.device, door: str, original: Callable, /, *args: Any, **kwargs: Any
    ) -> Any:
        """What `original(*args, **kwargs)` returns, asked or recalled."""
        if self._in_module:  # its parts draw what it draws, and keep what it keeps
            return original(*args, **kwargs)
        with self.reads.paused():
            question = question_of(door, args, kwargs)
        if question is not None and question in self.answers:
            return built(self.answers[question], device)
        if question is None or not self.record:
            return original(*args, **kwargs)
        before, seen, outside = Surroundings(pipeline, device, args, kwargs), set(self.reads.seen), self.recorded
        self.recorded, self._in_module = {}, door != PROMPT_DOOR
        try:
            result = original(*args, **kwargs)
        finally:
            inside, self.recorded, self._in_module = self.recorded, outside, False
        with self.reads.paused():
            if question_of(door, args, kwargs) != question or not before.unchanged():
                self.recorded |= inside
                return result
            try:
                self.recorded[question], self._given[question] = kept(result, device)
            except Unwritable as error:
                self.recorded |= inside
                if not inside:
                    self.unkept[door] = f"it holds a {error}"
                return result
            # What was read on the way to a kept answer is not read again.
            given = {id(tensor) for tensor in self._given[question]}
            self.reads.seen = seen - (given - self._held)
            self._held |= given
            for tensor in tensors_in((args, kwargs)):
                if id(tensor) in self._held:
                    self._passed_on[id(tensor)] = json.loads(digest.text(tensor))
        return result

    def finish(self, asked: Any, *, whole: bool = False) -> Answers:
        """The answers of a call that is over.

        Args:
            asked: What it came to: the denoiser's arguments.
            whole: Keep also what the pipeline did not read of them.
        """
        self.reads.seen |= {id(tensor) for tensor in tensors_in(asked)}
        finished: Answers = {}
        for question, answer in self.recorded.items():
            tensors: list[Tensor | str | None] = []
            for copied, given in zip(answer.tensors, self._given[question], strict=True):
                read = whole or id(given) in self.reads.seen
                tensors.append(copied if read else self._passed_on.get(id(given)))
            size = sum(tensor.nbytes for tensor in tensors if isinstance(tensor, Tensor))
            if size > LARGEST:
                self.unkept[door_of(question)] = f"it takes {size / 2**20:.0f} MiB, more than {LARGEST / 2**20:.0f}"
                continue
            own = tuple(tensor.cpu() if isinstance(tensor, Tensor) else tensor for tensor in tensors)
            finished[question] = Answer(answer.tree, own)
        return finished


class LearntDoors(NamedTuple):
    """Of which doors answers hold at every timestep.

    Args:
        closed: Those of which they do not.
        whole: What a call did not read of its answers may still be looked at.
    """

    closed: frozenset[str]
    whole: bool


def learn_doors(pipeline: Any, asked: Callable[..., Any]) -> LearntDoors:
    """Close the doors that are asked something else each time (with the noised clip, or with random numbers), and
    those whose answer from memory changes what the denoiser is asked.

    Args:
        asked: With a `Recall`, to what the denoiser is asked at the first timestep, or at the `last` one, where the
            pipeline also draws other random numbers.
    """
    closed: frozenset[str] = frozenset()
    while True:
        first, last = (Recall(record=True, closed=closed) for _ in range(2))
        arrived, expected = asked(first), asked(last, last=True)
        doors = {door_of(question) for question in first.recorded}
        changing = doors - {door_of(question) for question in first.recorded.keys() & last.recorded.keys()}
        if changing:  # what they ask in turn may be the same each time
            closed |= changing
            continue

        def holds(answers: Answers, expected: Any = expected) -> bool:
            try:
                return _equal(asked(Recall(answers), last=True), expected)
            except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):
                return False

        for whole in (False, True):
            answers = first.finish(arrived, whole=whole)
            if holds(answers):
                return LearntDoors(closed, whole)
        alone = {door: {q: answer for q, answer in answers.items() if door_of(q) == door} for door in doors}
        failing = {door for door, own in alone.items() if not holds(own)} or doors
        _log.warning(
            "%s: what its %s answers from memory is not what it answers; it is asked anew at every step",
            type(pipeline).__name__,
            " and ".join(sorted(failing)),
        )
        closed |= failing


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
