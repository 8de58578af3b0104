"""Whether a dataset's scores are about the model that is to be trained."""

from __future__ import annotations

import logging
from typing import Any

logger = logging.getLogger(__name__)

_DIGESTS = ("influence_settings", "influence_queries", "influence_model")
_REMEDY = "MotiveAttributor(pipe).influence(dataset, index, queries)"


def check_scores(dataset: Any, model_digest: str, *, strict: bool = False) -> None:
    """Say so where a dataset was scored with another model than the one that is trained on it.

    Influence is about one model: what teaches an earlier checkpoint may teach this one nothing.

    Args:
        dataset: Rows that a selection is to be made from by their scores; one split, no stream that hides its columns.
        model_digest: Of the denoisers that are trained, `TrainedWeights.base["model"]`.
        strict: Raise rather than warn where the scores are another model's.

    Raises:
        ValueError: There are no scores; or, with `strict`, they are not known to be this model's.
    """
    names = list(dataset.column_names or next(iter(dataset), {}))
    if "influence" not in names and "influence_rank" not in names:
        raise ValueError(
            f"the dataset has no influence columns to select by; its columns are {', '.join(names)}. Score it first, "
            f"by {_REMEDY}, or train on all of it without a selection"
        )
    found = _different(dataset, "influence_model") if "influence_model" in names else []
    others = [digest for digest in found if digest != model_digest]
    if others:
        stale = (
            f"the scores are stale: they were computed with another model ({', '.join(others)}) than the one that is "
            f"trained ({model_digest}). Score the dataset again with this one, by {_REMEDY}"
        )
    elif not found:
        stale = (
            "it cannot be told whether the scores are of the model that is trained: the dataset names none in a "
            f"column influence_model. Score it again, by {_REMEDY}"
        )
    else:
        return
    if strict:
        raise ValueError(stale)
    logger.warning(stale)


def digests_of(dataset: Any) -> dict[str, str] | None:
    """What a dataset was scored with, for a card: digests by `settings`, `queries` and `model`. None: not scored.

    Where rows of several scorings are together, each digest is there, with commas between.
    """
    names = [name for name in _DIGESTS if name in (dataset.column_names or ())]
    found = {name.removeprefix("influence_"): ", ".join(_different(dataset, name)) for name in names}
    return {name: digests for name, digests in found.items() if digests} or None


def _different(dataset: Any, column: str) -> list[str]:
    """The values of a text column, null apart, each once; of a stream those of its first row, for all have one."""
    if hasattr(dataset, "unique"):
        values = dataset.select_columns([column]).unique(column)  # alone, or a selection's videos are copied
    else:
        values = [row[column] for row in dataset.select_columns([column]).take(1)]
    return sorted({value for value in values if value})
