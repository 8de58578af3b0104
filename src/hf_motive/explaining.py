"""Which second of a clip, and which moving object, teaches a query: its influence, cut into parts that add up to it.

The influence of a clip is a sum over the places of its latent grid, because its gradient is linear in the weight of
the loss (`parts.py`). Here the parts meet the queries: `explain` for a clip, `explain_rows` for the columns of a
dataset. docs/segments.md says what a share means, and what not.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .corpus import clip_name
from .errors import ClipError
from .gradients import GradientProjector
from .index import GradientIndex, IndexMismatchError, _differences, _table
from .parts import Parts, part_vectors, read_parts, write_parts
from .regions import REST, Regions, labelled_regions, moving_regions, whole_frame
from .segments import Segment, rate_of, time_segments, window_starts
from .video import clip_seconds, eight_bits, load_clip

if TYPE_CHECKING:
    from datasets import Dataset

    from .attributor import MotiveAttributor, _Encoded

#: Columns that `MotiveAttributor.segments` adds, in their order.
COLUMNS = (
    "explained_segments",
    "explained_regions",
    "explained_best_start",
    "explained_best_end",
    "explained_influence",
    "explained_status",
    "explained_reason",
    "explained_queries",
)
_PICTURES, _SIDE = 8, 160  # frames kept of a window, and pixels of their longer side


class Queries(NamedTuple):
    """What is asked: Q names, and their features (Q, K·D') of norm 1."""

    names: list[str]
    features: Tensor


@dataclass(frozen=True)
class Cut:
    """How a clip is cut.

    Args:
        seconds: Length of a segment, about; at least a latent frame.
        whole: All of a clip that is longer than the standard, in windows. False: what is scored, its beginning.
        stride: Seconds between the starts of two windows. None: half a window.
        regions: None: the whole frame. "motion": the moving objects (`moving_regions`). Any other name: a column of
            labels (`labelled_regions`).
        objects: How many moving objects at most.
    """

    seconds: float = 0.5
    whole: bool = False
    stride: float | None = None
    regions: str | None = None
    objects: int = 3


@dataclass(frozen=True)
class Window:
    """One standard clip and the queries. Shares add up: `shares.sum((0, 1)) == influence`.

    Attributes:
        parts: Where its parts lie; S segments, R regions.
        shares: (S, R, Q) float32: each part's share of the influence on each query. Each may have either sign, and
            exceed the whole where others pull the other way.
        influence: (Q,) float32 in [-1, 1]: the influence of this window, as a clip of its own.
    """

    parts: Parts
    shares: Tensor
    influence: Tensor


@dataclass(frozen=True)
class Explanation:
    """Which part of a clip says what of each query.

    Attributes:
        name: Of the clip.
        queries: Q names.
        windows: One, of what is scored; or several, which may overlap, over all of a longer clip.
        seconds: About how long its segments are.
    """

    name: str
    queries: list[str]
    windows: list[Window]
    seconds: float

    @property
    def influence(self) -> Tensor:
        """(Q,) float32 in [-1, 1]: of one window what `MotiveAttributor.influence` says of the clip; of several the
        mean of what it would say of each, 0 where nothing moves."""
        return torch.stack([window.influence for window in self.windows]).mean(0)

    def curve(self, query: str | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Influence per second over time; where windows overlap, the mean of those that cover a moment; 0 where
        nothing moves.

        Args:
            query: One of `queries`. None: the mean over them.

        Returns:
            Edges (n + 1,), seconds from the clip's first frame, and values (n,) between them. Over one window the
            values times their durations add up to its influence.
        """
        pieces = [
            (start, end, float(share) / (end - start))
            for window in self.windows
            for (start, end), share in zip(
                window.parts.segments, self._asked(window.shares, query).sum(1), strict=True
            )
        ]
        return _mean_over(pieces)

    def segments(self, query: str | None = None) -> list[dict[str, float]]:
        """Stretches of time, in order: `start` and `end` in seconds, `influence`, its share, and `motion`, the share
        of the loss's weight that lies there, in [0, 1].

        Of one window they are its segments, and add up to its influence, and to 1. Of several they are cut from the
        curve, each of `seconds`, and compare with one another; they add up to nothing that has a name.
        """
        if len(self.windows) == 1:
            parts, shares = self.windows[0].parts, self._asked(self.windows[0].shares, query).sum(1)
            return [
                {"start": start, "end": end, "influence": float(share), "motion": float(motion)}
                for (start, end), share, motion in zip(parts.segments, shares, parts.motion.sum(1), strict=True)
            ]
        curves = [self.curve(query), _mean_over([*self._motion()])]
        end = float(curves[0][0][-1])
        edges = np.minimum(np.arange(round(end / self.seconds - 1e-6) + 1) * self.seconds, end)
        edges[-1] = end  # what is left over at the end goes to the last
        influence, motion = (_integral(*curve, edges) for curve in curves)
        columns = zip(edges[:-1], edges[1:], influence, motion / motion.sum(), strict=True)
        return [dict(zip(("start", "end", "influence", "motion"), map(float, row), strict=True)) for row in columns]

    def regions(self, query: str | None = None) -> list[dict[str, Any]]:
        """Of each window and region, all segments together: `start` and `end` of the window, `region`, `influence`,
        `motion`, and the box in which it stays: `left`, `top`, `right`, `bottom` in [0, 1] of the frame, or None."""
        found = []
        for window in self.windows:
            if not window.parts.motion.any():
                continue
            parts, shares = window.parts, self._asked(window.shares, query).sum(0)
            for region, name in enumerate(parts.regions):
                box = parts.boxes[region] or (None,) * 4
                found.append(
                    {
                        "start": parts.segments[0][0],
                        "end": parts.segments[-1][1],
                        "region": name,
                        "influence": float(shares[region]),
                        "motion": float(parts.motion[:, region].sum()),
                        **dict(zip(("left", "top", "right", "bottom"), box, strict=True)),
                    }
                )
        return found

    def best(self, query: str | None = None) -> tuple[float, float]:
        """Start and end, in seconds, of the segment with the most influence per second."""
        segment = max(self.segments(query), key=lambda row: row["influence"] / (row["end"] - row["start"]))
        return segment["start"], segment["end"]

    def rows(self) -> list[dict[str, Any]]:
        """Every part of every window, for a table: `start`, `end`, `region`, `motion`, `influence` and
        `influence_<query>`."""
        return [
            {
                "clip": self.name,
                "window": window.parts.start,
                "start": start,
                "end": end,
                "region": region,
                "motion": float(window.parts.motion[s, r]),
                "influence": float(window.shares[s, r].mean()),
                **{f"influence_{name}": float(window.shares[s, r, q]) for q, name in enumerate(self.queries)},
            }
            for window in self.windows
            for s, (start, end) in enumerate(window.parts.segments)
            for r, region in enumerate(window.parts.regions)
        ]

    def plot(self, path: str | Path) -> Path:
        """Draw the curve above a strip of frames, and the regions: see `explained_picture.picture`.

        Args:
            path: A name in .png or .svg; its folder must exist.
        """
        from .explained_picture import picture

        path = Path(path)
        if path.suffix not in (".png", ".svg"):
            raise ValueError(f"{path.name}: a picture is written as .png or .svg")
        path.write_bytes(picture(self, path.suffix[1:]))
        return path

    def _asked(self, shares: Tensor, query: str | None) -> Tensor:
        """(S, R) of (S, R, Q): one query's, or the mean over queries."""
        if query is None:
            return shares.double().mean(-1)
        if query not in self.queries:
            raise ValueError(f"there is no query {query!r}; there is {', '.join(self.queries)}")
        return shares[..., self.queries.index(query)].double()

    def _motion(self) -> Iterator[tuple[float, float, float]]:
        for window in self.windows:
            for (start, end), motion in zip(window.parts.segments, window.parts.motion.sum(1), strict=True):
                yield start, end, float(motion) / (end - start)


# One clip -------------------------------------------------------------------------------------------------------


def explain(
    attributor: MotiveAttributor,
    row: Mapping[str, Any],
    queries: Queries,
    cut: Cut,
    kept_in: str | Path | None = None,
) -> Explanation:
    """See `MotiveAttributor.explain`.

    Args:
        kept_in: Folder in which the parts of clips are kept, which know no query. None: nowhere.
    """
    name = clip_name(row[attributor.video_column], "the clip")
    windows = None
    file = None
    if kept_in is not None:
        file = Path(kept_in) / f"{_key(attributor, row, cut)}.safetensors"
        windows = read_parts(file) if file.exists() else None
    if windows is None:
        windows = _windows(attributor, row, cut)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_parts(file, windows)
    return Explanation(name, queries.names, [_asked(parts, queries) for parts in windows], cut.seconds)


def queries_of(
    attributor: MotiveAttributor, queries: Dataset | GradientIndex, kept_at: str | Path | None = None
) -> Queries:
    """The features of what is asked; those that have none are left out.

    Args:
        kept_at: Index in which a dataset's features are kept, with a bar where they are computed. None: nowhere.

    Raises:
        IndexMismatchError: An index of other settings than the attributor's.
        ValueError: None has a feature.
    """
    if isinstance(queries, GradientIndex):
        draws = attributor.config.draws
        ours = {"dim": attributor.projection.dim, "draws": draws, "settings": {"features": attributor.settings()}}
        theirs = {"dim": queries.dim, "draws": queries.draws, "settings": queries.settings}
        differences = _differences(ours, theirs)
        if differences:
            raise IndexMismatchError(
                "the queries were computed with other settings than this attributor's:\n"
                + _table(differences, "the attributor", str(queries.path))
                + "\nCompute them again by MotiveAttributor.index, or make the attributor with their settings.",
                differences,
            )
        names = queries.ids("ok")
        if not names:
            raise ValueError(f"{queries.path} holds no feature of a query: nothing can be asked")
        return Queries(names, queries.features(names).double())
    readable = attributor._readable(queries, "the query dataset")
    kept = None if kept_at is None else attributor.index(queries, kept_at)
    ids = attributor.ids(queries) if kept is not None else []
    names, features, reasons = [], [], []
    for number, row in enumerate(readable):
        try:
            if kept is None:
                found = attributor.feature(row[attributor.video_column], row[attributor.caption_column], row).vector
            else:
                found = _kept(kept, ids[number])
        except ClipError as error:
            reasons.append(f"{error.status}: {error.reason}")
            continue
        name = clip_name(row[attributor.video_column], number)
        names.append(f"{name} ({number})" if name in names else name)
        features.append(found)
    if not features:
        raise ValueError(f"no query has a feature, so there is nothing to ask: {reasons[0]}")
    return Queries(names, torch.stack(features).double())


def _kept(index: GradientIndex, identity: str) -> Tensor:
    """A feature of an index.

    Raises:
        ClipError: It has none.
    """
    row = index.row(identity)
    if row.status != "ok":
        raise ClipError(row.status, row.reason)
    return index.features([identity])[0]


def _starts(attributor: MotiveAttributor, row: Mapping[str, Any], cut: Cut) -> list[float]:
    if not cut.whole:
        return [0.0]
    if attributor.encoded_column is not None or attributor.mask_column is not None:
        raise ValueError(
            "encodings and masks in columns are of the standard clip, its beginning: to explain all of a longer one "
            "(whole=True), make the attributor without encoded_column and mask_column"
        )
    standard = attributor.config.standard
    return window_starts(clip_seconds(row[attributor.video_column], rate_of(standard)), standard, cut.stride)


def _windows(attributor: MotiveAttributor, row: Mapping[str, Any], cut: Cut) -> list[Parts]:
    """A clip's windows. One in which nothing moves has no weight, and so no share; not all may be such."""
    starts = _starts(attributor, row, cut)
    found: list[Parts] = []
    static: list[ClipError] = []
    for start in starts:
        try:
            found.append(_parts(attributor, row, cut, start))
        except ClipError as error:
            if error.status != "static":
                raise
            static.append(error.with_traceback(None))
            found.append(_still(attributor, row, cut, start))
    if len(static) == len(starts):
        raise static[0]
    return found


def _still(attributor: MotiveAttributor, row: Mapping[str, Any], cut: Cut, start: float) -> Parts:
    """A window in which nothing moves."""
    config, grid = attributor.config, attributor.step.latent_shape[1:]
    segments = time_segments(config.standard, grid[0], cut.seconds)
    draws = len(config.timesteps or ()) * config.noise_draws
    pixels = load_clip(row[attributor.video_column], config.standard, start=start)
    frames, times = _pictures(pixels, start, rate_of(config.standard))
    return Parts(
        start=start,
        segments=[(start + segment.start, start + segment.end) for segment in segments],
        regions=[REST],
        boxes=[None],
        vectors=torch.zeros(len(segments), 1, draws * attributor.projection.dim),
        motion=torch.zeros(len(segments), 1),
        masks=torch.ones(1, *grid),
        frames=frames,
        times=times,
    )


def _parts(attributor: MotiveAttributor, row: Mapping[str, Any], cut: Cut, start: float) -> Parts:
    """One window: a forward pass a draw, and a backward pass a draw and part that has weight."""
    standard, grid = attributor.config.standard, attributor.step.latent_shape[1:]
    segments = time_segments(standard, grid[0], cut.seconds)
    video, caption = row[attributor.video_column], row[attributor.caption_column]
    if attributor._sharded:
        raise ValueError("a denoiser that processes share out gives no parts: explain it in one process")
    encoded = attributor._encode(attributor._prepare(video, caption, row, start))
    weight = encoded.clip.weight if attributor.config.motion_weighted else torch.ones(grid)
    regions = _regions(cut, row, video, encoded.clip.weight, attributor, start)
    vectors = _vectors(attributor, encoded, [*_weights(weight, segments, regions)])
    motion = torch.stack([part.double().sum() for part in _weights(weight, segments, regions)]) / weight.double().sum()
    shape = len(segments), len(regions.names)
    frames, times = _pictures(encoded.clip.row.get("pixels"), start, rate_of(standard))
    return Parts(
        start=start,
        segments=[(start + segment.start, start + segment.end) for segment in segments],
        regions=regions.names,
        boxes=regions.boxes(),
        vectors=vectors.float().view(*shape, -1),
        motion=motion.float().view(shape),
        masks=regions.masks,
        frames=frames,
        times=times,
    )


def _weights(weight: Tensor, segments: list[Segment], regions: Regions) -> Iterator[Tensor]:
    """The weight (T, h, w) of each part, segment by segment, in each region by region; they add up to the whole."""
    for segment in segments:
        for mask in regions.masks:
            part = torch.zeros_like(weight)
            frames = slice(segment.latent.start, segment.latent.stop)
            part[frames] = weight[frames] * mask[frames]
            yield part


def _vectors(attributor: MotiveAttributor, encoded: _Encoded, weights: list[Tensor]) -> Tensor:
    """(parts, D') float64, whose sum is the clip's feature."""
    step, config, (clip, latents, answers) = attributor.step, attributor.config, encoded

    def losses(timestep: float, noise: Tensor) -> Iterator[Tensor | None]:
        output = step.loss(
            latents,
            clip.caption,
            noise=noise,
            timestep=timestep,
            example=clip.row,
            answers=answers,
            center=config.center_error,
        )
        for weight in weights:
            yield step.part_loss(output, weight) if weight.any() else None

    draws = [partial(losses, t, noise) for t in config.timesteps for noise in attributor._noises]
    with GradientProjector(attributor.parameters, attributor.projection, step.denoisers.values()) as projector:
        return part_vectors(projector, draws, len(weights))


def _regions(
    cut: Cut, row: Mapping[str, Any], video: Any, weight: Tensor, attributor: MotiveAttributor, start: float
) -> Regions:
    grid = attributor.step.latent_shape[1:]
    if cut.regions is None:
        return whole_frame(grid)
    if cut.regions == "motion":
        return moving_regions(weight, cut.objects)
    if cut.regions not in row:
        raise ValueError(
            f"regions={cut.regions!r} is no column of the row; its columns are {', '.join(row)}. Give the column of "
            'labels, "motion" to find what moves, or None'
        )
    labels = row[cut.regions]
    if labels is None:
        raise ClipError("failed", f"its row has no regions in column {cut.regions!r}")
    try:
        return labelled_regions(labels, video, attributor.config.standard, grid, start)
    except ValueError as error:
        raise ClipError("failed", str(error)) from error


def _asked(parts: Parts, queries: Queries) -> Window:
    shares = parts.vectors.double() @ queries.features.T
    return Window(parts, shares.float(), shares.sum((0, 1)).float())


def _pictures(pixels: Tensor | None, start: float, fps: float) -> tuple[Tensor, list[float]]:
    """A few frames of (F, 3, H, W), small, and their times."""
    if pixels is None:
        return torch.empty(0, 1, 1, 3, dtype=torch.uint8), []
    numbers = np.linspace(0, len(pixels) - 1, min(_PICTURES, len(pixels))).round().astype(int)
    frames = pixels[numbers]
    scale = _SIDE / max(frames.shape[2:])
    if scale < 1:
        size = [max(1, round(side * scale)) for side in frames.shape[2:]]
        frames = F.interpolate(frames, size=size, mode="bilinear", antialias=True, align_corners=False).clamp(-1, 1)
    return eight_bits(frames).permute(0, 2, 3, 1).contiguous(), [start + number / fps for number in numbers.tolist()]


def _key(attributor: MotiveAttributor, row: Mapping[str, Any], cut: Cut) -> str:
    """What the parts of a row depend on, as the name of a file."""
    labels = row.get(cut.regions) if cut.regions not in (None, "motion") else None
    drawn = "" if labels is None else hashlib.sha256(np.asarray(labels).tobytes()).hexdigest()
    said = [attributor.row_id(row), attributor.settings(), asdict(cut), drawn]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]


def _mean_over(pieces: list[tuple[float, float, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Step functions (start, end, value), which may overlap, to one: edges (n + 1,) and the mean (n,) between them."""
    starts, ends, values = np.array(pieces, dtype=np.float64).T
    edges = np.unique(np.round(np.concatenate([starts, ends]), 9))
    middles = (edges[:-1] + edges[1:]) / 2
    covers = (starts <= middles[:, None]) & (middles[:, None] < ends)
    return edges, (covers * values).sum(1) / covers.sum(1)


def _integral(edges: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Of a step function, between each of `wanted` and the next."""
    total = np.concatenate([[0.0], np.cumsum(values * np.diff(edges))])
    return np.diff(np.interp(wanted, edges, total))


# Many clips -----------------------------------------------------------------------------------------------------


def explain_rows(
    attributor: MotiveAttributor,
    dataset: Dataset,
    queries: Dataset | GradientIndex,
    cut: Cut,
    *,
    kept_in: str | Path | None,
    per_query: bool,
    progress: bool,
) -> Dataset:
    """See `MotiveAttributor.segments`."""
    from accelerate.utils import gather_object
    from datasets import Dataset
    from tqdm.auto import tqdm

    from .processes import processes

    if not isinstance(dataset, Dataset):
        raise TypeError(
            "segments explains clips that are on disk, some of the best: a stream is scored first "
            "(MotiveAttributor.influence), and what is wanted of it written by write_videofolder"
        )
    labels = cut.regions if cut.regions not in (None, "motion") else None
    if labels is not None and labels not in dataset.column_names:
        raise ValueError(
            f"the dataset has no column {labels!r} of regions; its columns are {', '.join(dataset.column_names)}. "
            'Give that of labels, or "motion" to find what moves'
        )
    rows = attributor._readable(dataset)
    extra = dataset.with_format(None).select_columns([labels]) if labels and labels not in rows.features else None
    state, asked = processes(), queries_of(attributor, queries)
    mine = range(state.process_index, len(rows), state.num_processes)
    found = []
    for number in tqdm(mine, desc="Explaining", unit="clip", disable=not (progress and state.is_main_process)):
        row = rows[number] if extra is None else {**rows[number], **extra[number]}
        try:
            explanation: Explanation | ClipError = explain(attributor, row, asked, cut, kept_in)
        except ClipError as error:
            explanation = error.with_traceback(None)
        found.append((number, columns_of(explanation, asked.names if per_query else None)))
    columns = [columns for _, columns in sorted(gather_object(found), key=lambda item: item[0])]
    dataset = dataset.remove_columns([name for name in COLUMNS if name in dataset.column_names])
    for name, feature in _features(per_query).items():
        dataset = dataset.add_column(name, [row[name] for row in columns], feature=feature)
    return dataset


def columns_of(explanation: Explanation | ClipError, queries: list[str] | None = None) -> dict[str, Any]:
    """A row's columns; with `queries`, each segment and region has `by_query`, in their order, as well."""
    nothing = {name: None for name in COLUMNS if queries is not None or name != "explained_queries"}
    numbers = dict.fromkeys(("explained_best_start", "explained_best_end", "explained_influence"), float("nan"))
    columns: dict[str, Any] = {**nothing, **numbers}
    if isinstance(explanation, ClipError):
        return columns | {"explained_status": explanation.status, "explained_reason": explanation.reason}
    segments: list[dict[str, Any]] = [*explanation.segments()]
    regions = explanation.regions()
    if queries is not None:
        columns["explained_queries"] = queries
        segments = _by_query(segments, map(explanation.segments, queries))
        regions = _by_query(regions, map(explanation.regions, queries))
    start, end = explanation.best()
    return columns | {
        "explained_segments": segments,
        "explained_regions": regions,
        "explained_best_start": start,
        "explained_best_end": end,
        "explained_influence": float(explanation.influence.double().mean()),
        "explained_status": "ok",
        "explained_reason": "",
    }


def _by_query(parts: list[dict[str, Any]], of_each: Iterable[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    asked = [[part["influence"] for part in of_one] for of_one in of_each]
    return [{**part, "by_query": [of_one[number] for of_one in asked]} for number, part in enumerate(parts)]


def _features(per_query: bool) -> dict[str, Any]:
    from datasets import List, Value

    number, text = Value("float64"), Value("string")
    each = {"by_query": List(number)} if per_query else {}
    part = {"start": number, "end": number, "influence": number, "motion": number, **each}
    box = dict.fromkeys(("left", "top", "right", "bottom"), number)
    features = {
        "explained_segments": List(part),
        "explained_regions": List({**part, "region": text, **box}),
        "explained_best_start": number,
        "explained_best_end": number,
        "explained_influence": number,
        "explained_status": text,
        "explained_reason": text,
        "explained_queries": List(text),
    }
    return {name: feature for name, feature in features.items() if per_query or name != "explained_queries"}
