"""What the frozen parts of a pipeline say about each clip, as columns of a dataset: computed once, read ever after.

A clip's latents, its mask and what the text encoder makes of its caption do not change while the denoiser is trained.
`add_encodings` puts them beside the clip; an epoch, or a scoring, then costs the denoiser alone.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cached_property
from types import SimpleNamespace
from typing import Any, NamedTuple

from torch import Tensor, nn

from . import __version__
from .encoded_blob import Encoding, read_encoding, write_encoding
from .encoded_columns import COLUMNS, add_encodings, is_encoded, other_clips
from .encoded_pieces import clip_of
from .errors import ClipError
from .motion.weight import one_at_a_time
from .pipelines import PipelineStep, digest
from .video import ClipStandard, load_clip

__all__ = ["COLUMNS", "ClipEncoder", "Encoding", "add_encodings", "encoding_of", "is_encoded", "read_encoding"]


class PreparedClip(NamedTuple):
    """A clip that only the device has still to see.

    Attributes:
        caption: Checked.
        pixels: (F, 3, H, W) in [-1, 1].
        weight: (T, h, w) in [0, 1]; None without a mask.
        mean_motion: Pixels per frame; None where it is not known.
        mask_status, mask_reason: Why there is no mask, where one was asked for.
    """

    caption: str
    pixels: Tensor
    weight: Tensor | None = None
    mean_motion: float | None = None
    mask_status: str = ""
    mask_reason: str = ""


class ClipEncoder:
    """A row to its encoding.

    Args:
        step: Of the pipeline that encodes.
        standard: What every clip is brought to first: of the step's frames and size.
        weigh: `(pixels, row) -> (weight, mean motion)`, such as `MotionWeight`: the mask is then in the encoding, too.
            None: without a mask.
        weigh_settings: What `weigh` depends on, as JSON values. None: its own `settings()`, or else its code.
        video_column: Column of the video, undecoded.
        caption_column: Column of the caption.
        require_caption: Refuse a clip without a caption. False: encode it with an empty prompt.
        columns: Further columns that `weigh` or the step's `conditioning` reads: where they change, the clip is
            encoded anew. None: all, where there is a `conditioning` or a `weigh` without settings; else none.

    Raises:
        ValueError: `standard` is not of the step's frames and size.
    """

    def __init__(
        self,
        step: PipelineStep,
        standard: ClipStandard,
        *,
        weigh: Callable[[Tensor, Mapping[str, Any]], tuple[Tensor, float]] | None = None,
        weigh_settings: Mapping[str, Any] | None = None,
        video_column: str = "video",
        caption_column: str = "caption",
        require_caption: bool = True,
        columns: Collection[str] | None = None,
    ):
        shape = (standard.num_frames, standard.height, standard.width)
        if shape != (step.num_frames, step.height, step.width):
            raise ValueError(
                f"the standard clip is {shape[0]} frames of {shape[1]}×{shape[2]}, but the step was made for "
                f"{step.num_frames} of {step.height}×{step.width}: give both the same"
            )
        self.step, self.standard = step, standard
        own = getattr(weigh, "settings", None)
        if weigh_settings is None and own is not None:
            weigh_settings = own()
        self.weigh, self.weigh_settings = weigh, weigh_settings
        self.video_column, self.caption_column = video_column, caption_column
        self.require_caption = require_caption
        if columns is None and step._conditioning.given is None and (weigh is None or weigh_settings is not None):
            columns = ()
        self.columns = columns
        self._weighing = one_at_a_time(weigh)
        self._known: dict[str, Any] | None = None
        self._weights: dict[str, tuple[list[Any], dict[str, Any]]] = {}

    # ------------------------------------------------------------------------------------------------- what it is

    @property
    def settings(self) -> dict[str, Any]:
        """What an encoding depends on, its mask aside, as JSON values.

        The denoiser's weights are not among them: encodings outlive its training. Nor is what the clip is conditioned
        on: an answer knows its question, and one that is not found is asked for anew. As they were at the last
        `refresh`, so that a text encoder that is taken away once it is done changes nothing.
        """
        if self._known is None:
            self.refresh()
        return self._known or {}

    def refresh(self) -> None:
        """Look at the frozen parts anew. Digesting weights takes seconds: only those that seem to be others."""
        step = self.step
        for name, part in step.pipeline.components.items():
            if isinstance(part, nn.Module) and name not in step.denoisers:
                witness = digest.witness(part)
                if name not in self._weights or self._weights[name][0] != witness:
                    self._weights[name] = witness, digest.weights(SimpleNamespace(components={name: part}))
        frozen = {name: getattr(step.pipeline, name, None) for name in self._weights}
        configurations = {name: digest.configuration(part) for name, part in frozen.items() if part is not None}
        switches = {name: digest.switches(part) for name, part in frozen.items() if part is not None}
        before = self._known or {"configurations": {}, "switches": {}}
        tools = {
            name: digest.tool(part)
            for name, part in step.pipeline.components.items()
            if part is not None and not isinstance(part, nn.Module) and part is not step.pipeline.scheduler
        }
        own = {k: v for k, v in step.pipeline.config.items() if type(v) in (bool, int, float, str)}
        self._known = {
            "hf-motive": __version__,
            "pipeline": type(step.pipeline).__name__,
            "pipeline_config": {k: v for k, v in own.items() if not k.startswith("_")},
            "weights": {name: value for _, found in self._weights.values() for name, value in found.items()},
            "configurations": {**before["configurations"], **configurations},
            "switches": {**before["switches"], **switches},
            "tools": tools,
            "clip": self.standard.to_dict(),
            "call_kwargs": json.loads(digest.text(step.call_kwargs)),
            "require_caption": self.require_caption,
        }

    @property
    def digest(self) -> str:
        """16 hexadecimal digits of `settings`: equal digests, equal latents and answers."""
        return _digest(self.settings)

    @cached_property
    def mask_digest(self) -> str:
        """16 hexadecimal digits of what the mask depends on; "" without one."""
        if self.weigh is None:
            return ""
        if self.weigh_settings is not None:
            return _digest(json.loads(digest.text(self.weigh_settings)))
        from datasets.fingerprint import Hasher

        return Hasher.hash(self.weigh)

    @property
    def identity(self) -> str:
        """What stands in `encoded_settings`: both digests."""
        return f"{self.digest} {self.mask_digest}".strip()

    def accepts(self, identity: str | None) -> bool:
        """Whether encodings of that identity are what this would give. A mask that is not asked for does no harm."""
        clip, _, mask = (identity or "").partition(" ")
        return clip == self.digest and (self.weigh is None or mask == self.mask_digest)

    # ------------------------------------------------------------------------------------------------------ a row

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The row's columns. What is wrong with its clip is in them: nothing is raised for it."""
        return self.finish(row, self.prepare(row))

    def prepare(self, row: Mapping[str, Any]) -> PreparedClip | ClipError:
        """What needs no device: caption, pixels and mask, or why there are none. For several threads at once."""
        try:
            caption = checked_caption(row[self.caption_column], self.require_caption)
            pixels = load_clip(row[self.video_column], self.standard)
        except ClipError as error:
            return error.with_traceback(None)  # whose frames hold the clip
        if self.weigh is None:
            return PreparedClip(caption, pixels)
        try:
            with self._weighing:
                weight, mean_motion = self.weigh(pixels, row)
        except ClipError as error:
            return PreparedClip(caption, pixels, mask_status=error.status, mask_reason=error.reason)
        return PreparedClip(caption, pixels, weight, None if math.isnan(mean_motion) else float(mean_motion))

    def finish(self, row: Mapping[str, Any], clip: PreparedClip | ClipError) -> dict[str, Any]:
        """The row's columns, of what `prepare` made of it."""
        facts = {"encoded_clip": clip_of(row[self.video_column]), "encoded_settings": self.identity}
        columns: dict[str, Any] = dict.fromkeys(COLUMNS) | facts
        try:
            if isinstance(clip, ClipError):
                raise clip
            encoding = self._encode(row, clip)
        except ClipError as error:
            return columns | {"encoded_status": error.status, "encoded_reason": error.reason}
        mask = encoding.mask_status or ("ok" if encoding.weight is not None else None)
        blob = write_encoding(encoding)
        return columns | {"encoded": blob, "encoded_status": "ok", "encoded_reason": "", "encoded_mask": mask}

    def _encode(self, row: Mapping[str, Any], clip: PreparedClip) -> Encoding:
        latents = self.step.encode(clip.pixels)
        if not latents.isfinite().all():
            raise ClipError(
                "non_finite",
                "its latents hold NaN or infinite values: the VAE overflows on it; load the VAE in float32",
            )
        answers = self.step.answers(clip.caption, {**row, "pixels": clip.pixels})
        return Encoding(
            latents=latents.cpu(),
            answers=answers,
            weight=clip.weight,
            mean_motion=clip.mean_motion,
            digest=self.digest,
            mask_digest=self.mask_digest,
            mask_status=clip.mask_status,
            mask_reason=clip.mask_reason,
            settings=self.settings,
        )


def checked_caption(caption: str | None, required: bool) -> str:
    """The caption, or an empty one where none is required.

    Raises:
        ClipError: `no_caption`.
    """
    if caption and caption.strip():
        return caption
    if required:
        raise ClipError(
            "no_caption",
            "the clip has no caption: write one, or score with an empty prompt by require_caption=False",
        )
    return ""


def encoding_of(row: Mapping[str, Any], encoder: ClipEncoder, column: str = "encoded") -> Encoding:
    """The encoding in a row.

    Args:
        row: With the columns of `add_encodings`.
        encoder: What should have made it.
        column: The column of the blob.

    Raises:
        ClipError: The clip could not be encoded; `encoded_status` and `encoded_reason` say why.
        ValueError: There is no such column, or it holds encodings of other settings; the message names them.
    """
    if column not in row:
        raise ValueError(_no_column(column, row, "the row"))
    if row[column] is None:
        raise ClipError(row.get("encoded_status") or "failed", row.get("encoded_reason") or "its row has no encoding")
    encoding = read_encoding(row[column])
    if encoding.digest != encoder.digest:
        raise ValueError(_other_settings(encoding.settings, encoder, column))
    return encoding


def check_encoded(dataset: Any, encoder: ClipEncoder, column: str = "encoded", name: str = "the dataset") -> None:
    """Raise ValueError where a dataset has no encodings, or others than the encoder's; the message names what differs.

    Args:
        dataset: On disk or in memory; the rows of a stream are checked one by one, by `encoding_of`.
    """
    from datasets import Dataset

    if column not in dataset.features:
        raise ValueError(_no_column(column, dataset.features, name))
    encoder.refresh()
    expected = encoder.digest
    if not isinstance(dataset, Dataset) or "encoded_settings" not in dataset.features:
        return
    found = dataset.with_format(None)
    for row, identity in enumerate(found["encoded_settings"]):
        if (identity or "").partition(" ")[0] != expected and found[row][column] is not None:
            raise ValueError(_other_settings(read_encoding(found[row][column]).settings, encoder, column))
    others = other_clips(dataset, encoder.video_column)
    if others:
        raise ValueError(
            f"{len(others)} rows of {name} hold another clip than was encoded, or one that was away; the first is row "
            f"{others[0]} (encoded_clip {found[others[0]]['encoded_clip']!r}). Encode them: "
            "MotiveAttributor.encode(dataset)"
        )


def _no_column(column: str, columns: Collection[str], name: str) -> str:
    return (
        f"{name} has no column {column!r} with encodings; its columns are {', '.join(columns)}. Add it by "
        "MotiveAttributor.encode(dataset), to the queries too"
    )


def _other_settings(found: Mapping[str, Any], encoder: ClipEncoder, column: str) -> str:
    left, right = dict(_leaves(found)), dict(_leaves(encoder.settings))
    names = sorted(name for name in {**left, **right} if left.get(name) != right.get(name))
    pairs = "; ".join(f"{name} {left.get(name)!r} and not {right.get(name)!r}" for name in names)
    return (
        f"column {column!r} was encoded with other settings ({pairs}). Encode the clips anew: "
        "MotiveAttributor.encode(dataset), or add_encodings"
    )


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _digest(settings: Any) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
