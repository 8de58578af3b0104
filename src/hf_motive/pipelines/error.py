"""What every file of this package raises."""

from __future__ import annotations

from typing import Any


class PipelineError(RuntimeError):
    """A pipeline cannot be attributed, or was used in a way that would give a wrong gradient.

    Args:
        pipeline: The pipeline, which the message names by its class.
        reason: What was found, what was expected, and what to do.
    """

    def __init__(self, pipeline: Any, reason: str):
        name = pipeline if isinstance(pipeline, str) else type(pipeline).__name__
        super().__init__(f"{name}: {reason}")
        self.pipeline = name
        self.reason = reason

    def __reduce__(self):
        return type(self), (self.pipeline, self.reason)
