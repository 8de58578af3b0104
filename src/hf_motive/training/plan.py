"""What a checkpoint was on its way to: going on with other clips or another order would mix two trainings unseen."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

#: In a checkpoint.
PLAN = "plan.json"


def write_plan(folder: str | Path, plan: Mapping[str, Any]) -> None:
    """Put a plan, of JSON values, into a checkpoint."""
    (Path(folder) / PLAN).write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")


def check_plan(folder: str | Path, plan: Mapping[str, Any]) -> None:
    """Raise where a checkpoint has another plan. One without a plan is taken as it is.

    Raises:
        ValueError: The plans differ; the message says in what.
    """
    path = Path(folder) / PLAN
    if not path.exists():
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    differ = [name for name in plan if found.get(name) != plan[name]]
    if differ:
        pairs = ", ".join(f"{name} {found.get(name)} there and {plan[name]} now" for name in differ)
        raise ValueError(
            f"{folder} is a checkpoint of another training ({pairs}): go on with the same clips and settings, or "
            "start anew in another output_dir"
        )


def last_checkpoint(folder: str | Path) -> str | None:
    """The latest checkpoint in an output folder that is whole; None where there is none.

    What a kill left half-written is said and passed over: the training's state is written last.
    """
    found = [path for path in Path(folder).glob("checkpoint-*") if path.name.partition("-")[2].isdigit()]
    for path in sorted(found, key=lambda path: int(path.name.partition("-")[2]), reverse=True):
        if (path / "trainer_state.json").is_file() and (path / "weights.json").is_file():
            return str(path)
        logger.warning("%s is not whole, as a kill leaves it: an earlier one is taken", path)
    return None
