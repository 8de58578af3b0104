"""hf_motive: which of my clips teach a video diffusion model to move well?

The names below are imported where they are first used, so that `import hf_motive` stays light.
"""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

_EXPORTS = {
    "ClipError": "errors",
    "ClipStandard": "video",
    "load_clip": "video",
    "MotionEstimator": "motion",
    "DISFlow": "motion",
    "MotionFeatures": "motion_columns",
    "add_motion": "motion_columns",
    "PipelineStep": "pipelines",
    "PipelineError": "pipelines",
    "Fastfood": "projection",
    "GradientIndex": "index",
    "MotiveAttributor": "attributor",
    "add_encodings": "encodings",
    "ClipEncoder": "encodings",
    "MotiveTrainer": "training",
    "MotiveTrainingArguments": "training",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__():
    return sorted(__all__)
