"""Fine-tuning on what was selected: a `transformers.Trainer` for any diffusers video pipeline.

The names below are imported where they are first used.
"""

from __future__ import annotations

from importlib import import_module

_EXPORTS = {"MotiveTrainer": "trainer", "MotiveTrainingArguments": "arguments"}

__all__ = ["MotiveTrainer", "MotiveTrainingArguments"]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)
