"""Means and their differences with bootstrap intervals in which the prompt is the unit, not the clip.

Clips of one prompt resemble each other: ten seeds of five prompts tell as much of other prompts as five prompts do.
So prompts are drawn, with all their clips, and the same draws serve every candidate and metric.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import numpy as np

from ..preference.clusters import tails

#: Fewer prompts than this say little of others, whatever the interval.
FEW = 10
#: What a clip counts for: its score, and its number of frames, by which some metrics weigh.
Scored = tuple[float, int]
#: How a metric makes one number of those of its clips.
Mean = Callable[[list[float], list[int]], float]


@dataclass(frozen=True)
class Estimate:
    """A number, and where it would fall with other prompts of the same kind.

    Args:
        value: Of all clips that there are.
        low, high: Ends of the interval; None where there are fewer than two prompts.
        prompts: How many prompts it rests on.
        videos: How many clips (of a difference, how many pairs).
    """

    value: float
    low: float | None
    high: float | None
    prompts: int
    videos: int

    @property
    def is_apart(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def estimate(
    clips: Mapping[str, Sequence[Scored]], mean: Mean, draws: int, level: float, seed: int
) -> Estimate | None:
    """The metric of a candidate.

    Args:
        clips: Prompt -> its clips.
        mean: Of the metric.
        draws: Bootstrap samples.
        level: Of the interval, in (0, 1).
        seed: Of the draws: the same draws for the same number of prompts.

    Returns:
        None where nothing was scored.
    """
    prompts = [list(found) for found in clips.values() if found]
    return _estimate(prompts, lambda drawn: _mean(drawn, mean), draws, level, seed)


def difference(
    clips: Mapping[str, Mapping[int, Scored]],
    base: Mapping[str, Mapping[int, Scored]],
    mean: Mean,
    draws: int,
    level: float,
    seed: int,
) -> Estimate | None:
    """How far a candidate is above another, over the clips that both have: same prompt, same noise.

    Args:
        clips, base: Prompt -> repeat -> what was scored.
        mean, draws, level, seed: As of `estimate`.

    Returns:
        None where they have no clip in common.
    """
    prompts = [
        [(clips[prompt][repeat], base[prompt][repeat]) for repeat in clips[prompt] if repeat in base.get(prompt, {})]
        for prompt in clips
    ]

    def apart(pairs: list[tuple[Scored, Scored]]) -> float:
        return _mean([ours for ours, _ in pairs], mean) - _mean([theirs for _, theirs in pairs], mean)

    return _estimate([pairs for pairs in prompts if pairs], apart, draws, level, seed)


def _mean(clips: Sequence[Scored], mean: Mean) -> float:
    return float(mean([score for score, _ in clips], [frames for _, frames in clips]))


def _estimate(
    prompts: Sequence[list[Any]], statistic: Callable[[list[Any]], float], draws: int, level: float, seed: int
) -> Estimate | None:
    if not prompts:
        return None
    count, everything = len(prompts), [clip for prompt in prompts for clip in prompt]
    value = statistic(everything)
    if count < 2:
        return Estimate(value, None, None, count, len(everything))
    chosen = np.random.default_rng(seed).integers(count, size=(draws, count))
    found = [statistic([clip for i in row for clip in prompts[i]]) for row in chosen.tolist()]
    low, high = map(float, np.quantile(found, tails(level, count)))
    if count < FEW:  # drawn again, they never lie outside of what they are: three of one sign would leave zero out
        wider = jackknife(prompts, statistic, level)
        low, high = min(low, cast(float, wider.low)), max(high, cast(float, wider.high))
    return Estimate(value, low, high, count, len(everything))


def jackknife(prompts: Sequence[Sequence[Any]], statistic: Callable[[list[Any]], float], level: float) -> Estimate:
    """A statistic that is of a set and no mean, with an interval from what it is without each of the prompts.

    Args:
        prompts: The clips of each prompt; at least one.
        statistic: Of any clips.
        level: Of the interval: Student's t with a degree of freedom fewer than there are prompts.
    """
    from scipy.stats import t

    count, everything = len(prompts), [clip for prompt in prompts for clip in prompt]
    value, low, high = statistic(everything), None, None
    if count > 1:
        without = [[clip for i, prompt in enumerate(prompts) if i != out for clip in prompt] for out in range(count)]
        values = np.array([statistic(rest) for rest in without])
        error = math.sqrt((count - 1) / count * ((values - values.mean()) ** 2).sum())
        reach = float(t.ppf((1 + level) / 2, count - 1)) * error
        low, high = value - reach, value + reach
    return Estimate(value, low, high, count, len(everything))
