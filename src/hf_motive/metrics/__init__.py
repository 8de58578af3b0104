"""Motion and quality of videos as `evaluate` modules; docs/metrics.md has the table of them.

import evaluate
from hf_motive import metrics

metric = metrics.load("subject_consistency", device="cuda")  # evaluate.load(metrics.path("subject_consistency"), …)
metric.compute(predictions=["a.mp4", "b.mp4"])
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .normalisation import normalised

if TYPE_CHECKING:
    from evaluate import EvaluationModule

__all__ = ["NAMES", "load", "normalised", "path"]

#: Every module. The first six measure what VBench measures under these names; the others never go by its name.
NAMES = (
    "subject_consistency",
    "background_consistency",
    "motion_smoothness",
    "dynamic_degree",
    "aesthetic_quality",
    "imaging_quality",
    "flow_dynamic_degree",
    "warp_smoothness",
    "temporal_jitter",
    "object_permanence",
    "flow_statistics_distance",
)


def path(name: str) -> str:
    """The file of a module: what `evaluate.load` and, in a list, `evaluate.combine` take.

    Raises:
        ValueError: There is no such module.
    """
    if name not in NAMES:
        raise ValueError(f"there is no metric {name!r}; there are {', '.join(NAMES)}")
    return str(Path(__file__).with_name(f"{name}.py"))


def load(name: str, **options: Any) -> EvaluationModule:
    """`evaluate.load(path(name), **options)`.

    Args:
        name: One of `NAMES`.
        options: `fps`, `device`, what the module itself takes, and what `evaluate.load` does (`num_process`,
            `process_id`, `experiment_id`, `cache_dir`, …).

    Raises:
        ValueError: There is no such module.
        TypeError: The module has no such option.
    """
    import evaluate

    return evaluate.load(path(name), **options)
