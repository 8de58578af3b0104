"""Judges that are no people: a metric's scores, or any model that looks at two videos."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from .judgements import Judgements

#: (prompt, video, another video) -> "a" for the first, "b" for the second, "tie"; or a number, above 0 for the first.
Model = Callable[[Any, Any, Any], "str | float"]


def judge_by_metric(
    a_scores: Sequence[float | None],
    b_scores: Sequence[float | None],
    prompts: Sequence[Any] | None = None,
    *,
    tie: float = 0.0,
    higher_is_better: bool = True,
) -> Judgements:
    """Of each pair, the video with the better score.

    Args:
        a_scores, b_scores: A score a video, in the same order (`<metric>_per_video`). None and NaN (what could not be
            scored) cost their row.
        prompts: What each pair was made from. Pairs of one prompt are one cluster, so give it where a prompt has
            several seeds. None: every pair has its own.
        tie: Scores that differ by this or less are a tie, in units of the metric.
        higher_is_better: False for a metric like temporal_jitter.

    Raises:
        ValueError: The lists are not of one length, `tie` is negative, or no pair has two scores.
    """
    prompts = range(len(a_scores)) if prompts is None else prompts
    _same_length(a_scores=a_scores, b_scores=b_scores, prompts=prompts)
    _checked_tie(tie)
    found = Judgements()
    for row, (prompt, a, b) in enumerate(zip(prompts, a_scores, b_scores, strict=True)):
        missing = [name for name, score in (("a", a), ("b", b)) if score is None or math.isnan(score)]
        if missing:
            found.failed[row] = f"no score of {' and '.join(missing)}"
            continue
        assert a is not None and b is not None
        found.append({"prompt": prompt, "choice": _choice(a - b if higher_is_better else b - a, tie), "row": row})
    return _some(found, len(a_scores))


def judge_by_model(
    model: Model, a: Sequence[Any], b: Sequence[Any], prompts: Sequence[Any], *, tie: float = 0.0
) -> Judgements:
    """Of each pair, the video that a model prefers, asked in both orders.

    Many models prefer what they are shown first. Each pair is shown both ways; a model that then contradicts itself
    sees no difference: a tie, with `"consistent": False` in its row.

    Args:
        model: Called with (prompt, video, video). It returns "a" where the first is better, "b" where the second is,
            "tie"; or a number, above 0 where the first is better.
        a, b: Videos, whatever the model takes, in the order of the prompts.
        prompts: What each pair was made from.
        tie: Numbers whose magnitude is this or less are a tie.

    Returns:
        A row a pair that could be judged; `failed` has the others with the reason. A pair the model fails at costs
        its row alone.

    Raises:
        ValueError: The lists are not of one length, `tie` is negative, or the model failed at every pair.
    """
    _same_length(a=a, b=b, prompts=prompts)
    _checked_tie(tie)
    found = Judgements()
    for row, (prompt, one, other) in enumerate(zip(prompts, a, b, strict=True)):
        try:
            first = _answer(model(prompt, one, other), tie)
            second = {"a": "b", "b": "a", "tie": "tie"}[_answer(model(prompt, other, one), tie)]
        except Exception as error:  # anything a user's model raises
            found.failed[row] = f"{type(error).__name__}: {error}"
            continue
        choice = first if first == second else "tie"
        found.append({"prompt": prompt, "choice": choice, "row": row, "consistent": first == second})
    return _some(found, len(prompts))


def _answer(said: Any, tie: float) -> str:
    if said in ("a", "b", "tie"):
        return str(said)
    if (isinstance(said, Real) and not isinstance(said, bool)) or hasattr(said, "item"):
        number = float(said)
        if not math.isnan(number):
            return _choice(number, tie)
    raise ValueError(f'a judge answers "a", "b", "tie" or a number (above 0: the first is better), got {said!r}')


def _choice(difference: float, tie: float) -> str:
    return "tie" if abs(difference) <= tie else "a" if difference > 0 else "b"


def _checked_tie(tie: float) -> None:
    if not tie >= 0:
        raise ValueError(f"tie is the largest difference that counts as none, 0 or more, got {tie}")


def _same_length(**lists: Sequence[Any]) -> None:
    if len({len(values) for values in lists.values()}) > 1:
        lengths = ", ".join(f"{len(values)} {name}" for name, values in lists.items())
        raise ValueError(f"pairs are matched by their place, so the lists must be of one length; got {lengths}")


def _some(found: Judgements, count: int) -> Judgements:
    if not found:
        reason = f"; the first: {next(iter(found.failed.values()))}" if found.failed else ""
        raise ValueError(f"none of {count} pairs could be judged{reason}")
    return found
