"""What a published dataset or index says of itself: facts to the templates of `hub_cards/`, and the pictures."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .corpus import as_files, clip_name
from .transforms import group_columns, settings_digest
from .video import file_name

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from .index import GradientIndex

#: Clips shown at either end of the ranking.
ENDS = 4
_HISTOGRAM, _CLIPS = "card/influence.png", "card/clips.png"
_LONGEST = 160  # characters of a caption or reason in a table

_MEANINGS = {
    "influence": "mean cosine with the queries, in [−1, 1]; negative: training on the clip works against them",
    "influence_votes": "how many queries have the clip above their cut-off",
    "influence_rank": "0 is the best: by votes, then by influence",
    "influence_status": "`ok`, or why the row is not ranked",
    "influence_reason": "the same, for people",
    "influence_id": "the row's name in the index: a digest of the file's bytes and the caption",
    "influence_settings": "digest of what the row was scored with",
    "influence_queries": "digest of the queries that it was scored for",
    "motion_mean": "mean flow in pixels per frame of the standard clip",
    "motion_mask": "where the clip moves, on the latent grid, 0 to 255",
    "motion_peak": "the flow, in pixels per frame, that one place in a thousand exceeds",
    "motion_camera": "mean of the camera's share of the flow, in pixels per frame",
    "motion_moving": "share of places that move, in [0, 1]",
    "motion_status": "`ok`, or why the clip has no mask",
    "motion_reason": "the same, for people",
    "rival_random": "a number by chance, in [0, 1), to choose by in comparison",
    "rival_whole_clip": "influence without the motion mask",
    "rival_whole_clip_rank": "rank without the motion mask",
}


class Card(NamedTuple):
    """The text of a README.md, YAML header included, and other files by their path in the repository."""

    text: str
    files: dict[str, bytes]


def dataset_card(
    dataset: Dataset | IterableDataset,
    repo_id: str,
    *,
    settings: Mapping[str, Any] | None = None,
    provenance: Sequence[Mapping[str, Any]] | None = None,
    corpus: str | None = None,
    revision: str | None = None,
    selection: str | None = None,
    license: str | None = None,
    whole: Dataset | None = None,
    video_column: str = "video",
    caption_column: str = "caption",
    metadata: Mapping[str, Any] | None = None,
) -> Card:
    """The card of a scored corpus, or of a selection of one. The same input gives the same bytes.

    Args:
        dataset: With the columns of `MotiveAttributor.influence`, or those of them that there are. A stream is read
            twice.
        repo_id: `"namespace/name"`.
        settings: `GradientIndex.settings["features"]`: what a score depends on.
        provenance: `GradientIndex.provenances`: under what it was computed.
        corpus, revision: What was scored.
        selection: One sentence of how the rows were chosen; None where all were kept.
        license: An identifier of the Hub's list, as it is; None says `unknown`.
        whole: The whole scored corpus where `dataset` is a selection.
        video_column: Column of the clip; without it there are no pictures of clips.
        caption_column: Column of the caption.
        metadata: Entries of the YAML header to keep, such as `dataset_info` and `configs`.

    Returns:
        The card, with a histogram where there are scores, and frames of the clips at either end where they decode.
    """
    from . import pictures

    table = _Table(dataset, video_column)
    everything = table if whole is None else _Table(whole, video_column)
    influence = table.numbers("influence")
    ranked = np.flatnonzero(~np.isnan(influence))
    order = ranked[np.argsort(table.numbers("influence_rank", default=-influence)[ranked], kind="stable")]
    first, last = order[:ENDS].tolist(), order[max(ENDS, len(order) - ENDS) :][::-1].tolist()
    videos = table.videos({*first, *last})
    rows = {
        row: {
            "rank": _whole_number(table.numbers("influence_rank")[row]),
            "influence": f"{influence[row]:+.3f}".replace("-", "−"),
            "votes": _whole_number(table.numbers("influence_votes")[row]),
            "clip": markdown(clip_name(videos.get(row), f"{row}")),
            "caption": markdown(table.value(caption_column, row) or ""),
        }
        for row in (*first, *last)
    }

    files: dict[str, bytes] = {}
    of_all = everything.numbers("influence")
    of_all = of_all[~np.isnan(of_all)]
    if len(ranked):
        files[_HISTOGRAM] = pictures.histogram(influence[ranked], None if whole is None else of_all)
    strips = [
        pictures.strips_of(
            (
                videos[row],
                f"rank {rows[row]['rank']}   influence {rows[row]['influence']}   votes {rows[row]['votes']}",
                " ".join(str(table.value(caption_column, row) or "").split()),
            )
            for row in chosen
            if row in videos
        )
        for chosen in (first, last)
    ]
    if any(strips):
        files[_CLIPS] = pictures.filmstrip(list(zip(("Ranked first", "Ranked last"), strips, strict=True)))

    left_out = _left_out(everything)
    kept = dict(metadata or {})
    title = repo_id.rsplit("/", 1)[-1]
    text = _render(
        "dataset.md",
        {
            "license": license or "unknown",
            "pretty_name": title,
            "tags": ["hf_motive", "motion-attribution", "data-attribution", "video", "motion"],
            "task_categories": ["text-to-video"],
            "size_categories": [size_category(len(table))],
            **kept,
        },
        title=markdown(title),
        repo_id=repo_id,
        split=str(dataset.split or "train"),
        opening=_opening(len(table), len(ranked), everything, corpus, selection, whole is not None),
        ranked=len(ranked),
        some=max(1, -(-len(ranked) // 10)),
        video_column=video_column,
        count=f"{len(ranked):,}",
        below=f"{int((influence[ranked] < 0).sum()):,}",
        mean=f"{influence[ranked].mean():+.3f}" if len(ranked) else "",
        spread=_spread(influence[ranked], of_all, whole is not None),
        histogram=_HISTOGRAM if _HISTOGRAM in files else "",
        clips=_CLIPS if _CLIPS in files else "",
        top=[rows[row] for row in first],
        bottom=[rows[row] for row in last],
        left_out=left_out,
        left_out_of=f"{sum(row['count'] for row in left_out):,} of the {len(everything):,} clips"
        f"{' of the corpus' if whole is not None else ''} could not be ranked.",
        whole=whole is not None,
        columns=_columns(table.names, video_column, caption_column),
        facts=[
            *_origin(corpus, revision),
            *_facts(settings, provenance),
            *_digests(table),
        ],
        settings=json.dumps(settings, indent=1, sort_keys=True, ensure_ascii=False) if settings else "",
        licence=_licence(license),
    )
    return Card(text, files)


def index_card(
    index: GradientIndex,
    repo_id: str,
    *,
    corpus: str | None = None,
    revision: str | None = None,
    license: str | None = None,
) -> Card:
    """The card of an index; arguments as of `dataset_card`."""
    features = index.settings["features"]
    title = repo_id.rsplit("/", 1)[-1]
    ok = index.counts().get("ok", 0)
    of = f" of {_code(_published(corpus))}" if corpus else ""
    text = _render(
        "index.md",
        {
            "license": license or "unknown",
            "pretty_name": title,
            "tags": ["hf_motive", "motion-attribution", "data-attribution", "gradient-index"],
            "size_categories": [size_category(len(index))],
            "viewer": False,  # there are no rows that a viewer could show
        },
        title=markdown(title),
        repo_id=repo_id,
        opening=f"A gradient index of {ok:,} clips{of}, for motion attribution.",
        dim=f"{index.dim:,}",
        counts=[(status, f"{count:,}") for status, count in index.counts().items()],
        facts=[
            *_origin(corpus, revision),
            *_facts(features, index.provenances),
            ("Settings digest", _code(settings_digest(index))),
            ("Index digest", _code(index.digest()[:16])),
        ],
        settings=json.dumps(features, indent=1, sort_keys=True, ensure_ascii=False),
        licence=_licence(license),
    )
    return Card(text, {})


def markdown(text: Any) -> str:
    """A text that people wrote, as one line of Markdown that shows it and does nothing else; a long one is cut."""
    line = " ".join(str(text).split())
    line = line if len(line) <= _LONGEST else line[: _LONGEST - 1].rstrip() + "…"
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#|~!$])", r"\\\1", line)


def size_category(rows: int) -> str:
    """The Hub's name for a number of rows."""
    steps = [(10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M")]
    return next((name for limit, name in steps if rows < limit), "n>10M" if rows < 10**8 else "100M<n<1B")


# What the dataset has --------------------------------------------------------------------------------------------


class _Table:
    """A dataset's columns without its videos, on disk or streamed, and of a few rows the video."""

    def __init__(self, dataset: Any, video_column: str):
        from datasets import Dataset

        dataset = dataset.with_format(None)
        if dataset.features is None:
            dataset = dataset._resolve_features()
        self.names = list(dataset.features)
        self.video_column = video_column if video_column in self.names else None
        self.dataset = as_files(dataset, video_column) if self.video_column else dataset
        plain = [name for name in self.names if getattr(dataset.features[name], "dtype", None) in _PLAIN]
        if isinstance(dataset, Dataset):
            self._columns = {name: dataset[name][:] for name in plain}
            self._rows = len(dataset)
        else:
            self._columns = {name: [] for name in plain}
            self._rows = 0
            for row in self.dataset:
                self._rows += 1
                for name in plain:
                    self._columns[name].append(row[name])

    def __len__(self) -> int:
        return self._rows

    def value(self, name: str, row: int) -> Any:
        return self._columns[name][row] if name in self._columns else None

    def column(self, name: str) -> Sequence[Any]:
        return self._columns.get(name, ())

    def numbers(self, name: str, default: np.ndarray | None = None) -> np.ndarray:
        """(rows,) float64, NaN where there is none."""
        if name not in self._columns:
            return np.full(self._rows, np.nan) if default is None else default
        return np.asarray([np.nan if value is None else value for value in self._columns[name]], dtype=np.float64)

    def videos(self, rows: set[int]) -> dict[int, Any]:
        if self.video_column is None or not rows:
            return {}
        if hasattr(self.dataset, "select"):
            return {row: self.dataset[row][self.video_column] for row in rows}
        found = ((place, row) for place, row in enumerate(self.dataset) if place in rows)
        return {place: row[self.video_column] for place, row in found}


_PLAIN = ("string", "large_string", "float64", "float32", "float16", "int64", "int32", "int16", "int8", "bool")


def _left_out(table: _Table) -> list[dict[str, Any]]:
    statuses = table.column("influence_status")
    counts = Counter(status for status in statuses if status is not None and status != "ok")
    examples: dict[str, str] = {}
    for row, status in enumerate(statuses):
        examples.setdefault(status, table.value("influence_reason", row) or "")
    return [
        {"status": status, "count": count, "reason": markdown(_without_folders(examples[status]))}
        for status, count in counts.most_common()
    ]


def _without_folders(text: str) -> str:
    from .published import without_folders

    return without_folders(text)


# What the card says ----------------------------------------------------------------------------------------------


def _opening(rows: int, ranked: int, everything: _Table, corpus: Any, selection: str | None, subset: bool) -> str:
    of = f" of {_code(_published(corpus))}" if corpus else ""
    if subset or selection:
        how = f" {markdown(selection)}" if selection else ""
        total = f" out of {len(everything):,}" if subset else ""
        return f"**{rows:,} clips{of}, chosen{total} by what they teach a video diffusion model of motion.**{how}"
    return f"**{rows:,} clips{of}, {ranked:,} of them ranked by what they teach a video diffusion model of motion.**"


def _spread(influence: np.ndarray, of_all: np.ndarray, subset: bool) -> str:
    def of(values: np.ndarray) -> str:
        low, middle, high = np.quantile(values, [0.1, 0.5, 0.9])
        below = (values < 0).mean()
        text = f"median {middle:+.3f}, a tenth below {low:+.3f}, a tenth above {high:+.3f}; {below:.0%} below zero"
        return text.replace("-", "−")

    if not len(influence):
        return ""
    if not subset or not len(of_all):
        return f"Over {len(influence):,} clips: {of(influence)}."
    here, there = f"{len(influence):,} clips: {of(influence)}", f"{len(of_all):,}: {of(of_all)}"
    return f"In this dataset, {here}. In the whole corpus, {there}."


def _columns(names: Iterable[str], video_column: str, caption_column: str) -> list[tuple[str, str]]:
    names = list(names)
    groups = set(group_columns(names))
    said = {**_MEANINGS, video_column: "the clip", caption_column: "its caption"}
    return [
        (name, said.get(name) or (f"mean influence on {markdown(name.removeprefix('influence_'))}"))
        for name in names
        if name in said or name in groups
    ]


def _origin(corpus: str | None, revision: str | None) -> list[tuple[str, str]]:
    if corpus is None:
        return [("Corpus", "not said")]
    return [("Corpus", _code(_published(corpus)) + (f", revision {_code(revision)}" if revision else ""))]


def _published(corpus: str) -> str:
    """A corpus by its id, or by its folder's own name: where that lies on this machine is nobody's business."""
    return file_name(corpus) if corpus.startswith(("/", "~", ".")) else corpus


def _facts(
    settings: Mapping[str, Any] | None, provenance: Sequence[Mapping[str, Any]] | None
) -> list[tuple[str, str]]:
    """What a reader asks first, of what is recorded."""
    from .published import provenance as publishable

    facts: list[tuple[str, str]] = []
    recorded = [publishable(entry) for entry in provenance or ()]
    said = dict(settings or {})
    pipeline = said.get("pipeline") or {}
    names = [str(entry["pipeline"]) for entry in recorded if entry.get("pipeline") not in (None, "None")]
    model = ", ".join(dict.fromkeys(_code(name) for name in names))
    if pipeline:
        facts.append(("Model", f"{model} ({pipeline.get('pipeline')})" if model else _code(pipeline.get("pipeline"))))
        weights = pipeline.get("weights") or {}
        facts.append(("Weights", ", ".join(f"{part} {_code(digest)}" for part, digest in sorted(weights.items()))))
    if said:
        size = f"{said.get('num_frames')} frames of {said.get('height')}×{said.get('width')}"
        rate = f" at {said['fps']:g} frames per second" if said.get("fps") else ", at their own rate"
        projection = said.get("projection") or {}
        masked = f"by {_code(said.get('estimator'))}" if said.get("motion_weighted") else "none: whole clips"
        facts += [
            ("Standard clip", size + rate),
            ("Motion mask", masked + (", camera compensated" if said.get("compensate_camera") else "")),
            ("Timesteps", ", ".join(f"{step:g}" for step in said.get("timesteps", ())) + " of 1000"),
            ("Noise draws, seed", f"{said.get('noise_draws')}, {said.get('seed')}"),
            ("Projection", f"{projection.get('kind')} to {projection.get('dim')} dimensions"),
            ("Parameters", _code(said["parameters"]) if said.get("parameters") else "all of the denoiser"),
        ]
    versions = dict.fromkeys(
        f"{name} {entry[name]}"
        for entry in recorded
        for name in ("hf-motive", "torch", "diffusers", "transformers")
        if name in entry
    )
    if versions:
        facts.append(("Computed with", ", ".join(versions)))
    return [(name, value) for name, value in facts if value]


def _digests(table: _Table) -> list[tuple[str, str]]:
    facts = []
    for name, label in (("influence_settings", "Settings digest"), ("influence_queries", "Queries digest")):
        found = sorted({value for value in table.column(name) if value})
        if found:
            facts.append((label, ", ".join(_code(value) for value in found)))
    return facts


def _licence(license: str | None) -> str:
    if license is None:
        return "The licence of the clips was not said when this was published."
    return f"Published as {_code(license)}."


def _whole_number(value: float) -> str:
    return "" if np.isnan(value) else f"{int(value):,}"


def _code(text: Any) -> str:
    """A name in code, in which no character ends it."""
    line = " ".join(str(text).replace("`", "'").replace("|", "¦").split())
    return f"`{line}`"


def _render(template: str, metadata: dict[str, Any], **fields: Any) -> str:
    from huggingface_hub import DatasetCard, DatasetCardData

    from . import __version__

    source = (resources.files("hf_motive.hub_cards") / template).read_text(encoding="utf-8")
    text = str(
        DatasetCard.from_template(DatasetCardData(**metadata), template_str=source, version=__version__, **fields)
    )
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"
