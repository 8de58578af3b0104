"""Generate for a list of prompts with several candidates, measure, compare.

The names below are imported where they are first used.
"""

from __future__ import annotations

from importlib import import_module

_EXPORTS = {"EvaluateArguments": "arguments", "Report": "report", "evaluate": "job", "load_report": "report"}

__all__ = ["EvaluateArguments", "Report", "evaluate", "load_report"]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
