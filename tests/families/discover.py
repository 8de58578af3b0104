"""Every video pipeline class that the installed diffusers exports, found by what its call takes and gives."""

from __future__ import annotations

import inspect
import re

import diffusers

#: An argument of a call by which it shows that it makes or takes a video.
VIDEO_ARGUMENT = re.compile(r"(num_|conditioning_)?frames|video_length|segment_frame_length|(\w+_)?video")


def video_pipelines() -> list[str]:
    """Names, sorted. Private bases, and pipelines of images, audio or 3-D alone, are not among them."""
    found = []
    for name in dir(diffusers):
        kind = getattr(diffusers, name, None) if name.endswith("Pipeline") else None
        bases = (diffusers.DiffusionPipeline, diffusers.ModularPipeline)
        if inspect.isclass(kind) and issubclass(kind, bases) and _makes_video(name, kind):
            found.append(name)
    return sorted(found)


def _makes_video(name: str, kind: type) -> bool:
    return "Video" in name or any(VIDEO_ARGUMENT.fullmatch(argument) for argument in _arguments(kind))


def _arguments(kind: type) -> set[str]:
    """What a call takes; of a modular pipeline, what its blocks take and leave behind."""
    if not issubclass(kind, diffusers.ModularPipeline):
        return set(inspect.signature(kind.__call__).parameters)
    if kind.default_blocks_name is None:
        return set()
    blocks = getattr(diffusers.modular_pipelines, kind.default_blocks_name)()
    return {part.name for part in (*blocks.inputs, *blocks.intermediate_outputs) if part.name}
