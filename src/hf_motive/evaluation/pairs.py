"""Two candidates' clips of the same prompt and noise: which has the better score, how often?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .intervals import Scored

if TYPE_CHECKING:
    from .arguments import EvaluateArguments


def judged(
    ours: dict[str, dict[int, Scored]],
    theirs: dict[str, dict[int, Scored]],
    higher_is_better: bool,
    arguments: EvaluateArguments,
) -> dict[str, Any]:
    """Won, tied and lost pairs, and the win rate with an interval that counts a prompt's pairs as one cluster.

    Args:
        ours, theirs: Prompt -> repeat -> score and frames; at least one pair is in both.
        higher_is_better: Of the metric.
        arguments: Of the job: what is a tie, and the interval's level.

    Returns:
        As JSON values what `hf_motive.preference.compare` says, and `low` and `high`, the ends of the win rate's
        interval.
    """
    from ..preference import compare, judge_by_metric

    both = [(prompt, repeat) for prompt in ours for repeat in ours[prompt] if repeat in theirs.get(prompt, {})]
    judgements = judge_by_metric(
        [ours[prompt][repeat][0] for prompt, repeat in both],
        [theirs[prompt][repeat][0] for prompt, repeat in both],
        [prompt for prompt, _ in both],
        tie=arguments.tie,
        higher_is_better=higher_is_better,
    )
    found = compare(judgements, level=arguments.level, seed=arguments.seed)
    low, high = found.interval("win_rate")
    return {**found.to_dict(), "low": low, "high": high}
