"""How far a candidate's clips, as a set, are from real ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .generate import Clip
from .intervals import Estimate
from .measuring import load_metric
from .specs import Spec

if TYPE_CHECKING:
    from accelerate import PartialState

    from .arguments import EvaluateArguments


@dataclass
class Distance:
    """A metric of sets.

    Args:
        name, backend: Of the metric.
        values: Candidate -> its distance from the references.
        higher_is_better: No.
    """

    name: str
    backend: str
    values: dict[str, Estimate]
    higher_is_better: bool = False

    def apart(self, against: str) -> dict[str, Estimate]:
        """Candidate -> how much farther it is than another."""
        base = self.values[against]
        return {
            name: Estimate(value.value - base.value, None, None, value.prompts, value.videos)
            for name, value in self.values.items()
            if name != against
        }


def measure_distance(
    spec: Spec, clips: Mapping[str, Sequence[Clip]], arguments: EvaluateArguments, state: PartialState
) -> Distance:
    """Compare each candidate's clips with the references."""
    from ..corpus import load_clips

    metric: Any = load_metric(spec, state.device)
    references = load_clips(str(arguments.references), video_column=arguments.video_column)
    values, backend = {}, ""
    for name, of_one in clips.items():
        there = [clip for clip in of_one if clip.file.exists()]
        result = metric.compute(
            predictions=[str(clip.file) for clip in there], references=references[arguments.video_column]
        )
        prompts = len({clip.prompt.key for clip in there})
        values[name] = Estimate(float(result[spec.name]), None, None, prompts, len(there))
        backend = result.get(f"{spec.name}_backend", "")
    return Distance(spec.name, backend, values)
