"""From a dimension's own values to the leaderboard's scale, on which dimensions are averaged."""

from __future__ import annotations

#: The least and the greatest value that VBench's leaderboard takes a dimension to have.
RANGES = {
    "subject_consistency": (0.1462, 1.0),
    "background_consistency": (0.2615, 1.0),
    "motion_smoothness": (0.7060, 0.9975),
    "dynamic_degree": (0.0, 1.0),
    "aesthetic_quality": (0.0, 1.0),
    "imaging_quality": (0.0, 1.0),
}

#: What a dimension counts in the leaderboard's mean of them.
WEIGHTS = {name: 0.5 if name == "dynamic_degree" else 1.0 for name in RANGES}


def normalised(name: str, value: float) -> float:
    """A dimension's value on the leaderboard's scale: 0 at the least value, 1 at the greatest.

    Args:
        name: One of the six dimensions of `RANGES`. Stand-ins have no place on that leaderboard.
        value: The dimension's mean over videos, as `compute` gives it.

    Returns:
        `(value - least) / (greatest - least)`: outside [0, 1] where the value is outside the range.

    Raises:
        ValueError: The leaderboard has no such dimension.
    """
    if name not in RANGES:
        raise ValueError(
            f"VBench's leaderboard has no {name!r}: it has {', '.join(RANGES)}, and a stand-in is none of them"
        )
    least, greatest = RANGES[name]
    return (value - least) / (greatest - least)
