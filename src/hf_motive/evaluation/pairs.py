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
    """Won, tied and lost pairs, and the win rate with an interval over prompts.

    Args:
        ours, theirs: Prompt -> repeat -> score and frames.
        higher_is_better: Of the metric.
        arguments: Of the job: what is a tie, and the interval's level.

    Returns:
        `win`, `tie`, `loss`: counts. `win_rate`, `low`, `high`: shares, a tie being half of a win.
    """
    sign = 1 if higher_is_better else -1
    counts = {"win": 0, "tie": 0, "loss": 0}
    for prompt, repeats in ours.items():
        for repeat, (score, _) in repeats.items():
            if repeat in theirs.get(prompt, {}):
                apart = sign * (score - theirs[prompt][repeat][0])
                counts["tie" if abs(apart) <= arguments.tie else "win" if apart > 0 else "loss"] += 1
    rate = (counts["win"] + counts["tie"] / 2) / sum(counts.values())
    return {**counts, "win_rate": rate, "low": None, "high": None}
