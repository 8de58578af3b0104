"""What a published dataset or index says of itself: facts to the templates of `hub_cards/`, and the pictures."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..corpus import clip_name
from ..influence import selection_size
from ..transforms import error_column, group_columns, is_error, settings_digest
from .card_table import CardTable
from .card_text import (
    clips,
    code,
    corpus_name,
    facts,
    header,
    license_sentence,
    markdown,
    settings_json,
    signed,
    size_category,
)
from .published import publishable, without_folders

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

    from ..index import GradientIndex

#: Clips shown at either end of the ranking.
ENDS = 4
#: Every picture that a card may have, by its path in the repository.
PICTURES = _HISTOGRAM, _CLIPS = "card/influence.png", "card/clips.png"
_READ = (
    *("influence", "influence_votes", "influence_rank", "influence_status", "influence_reason"),
    *("influence_settings", "influence_queries"),
    *("influence_error", "influence_error_rank", "influence_draws"),
)
_MOST_GROUPS = 12  # rows of the columns' table that the groups of queries may take

_MEANINGS = {
    "influence": "mean cosine with the queries, in [−1, 1]; negative: training on the clip works against them",
    "influence_votes": "how many queries have the clip above their cut-off",
    "influence_rank": "0 is the best: by votes, then by influence",
    "influence_error": "standard error of `influence` over the draws; `influence_error_…` of the column of that name",
    "influence_error_rank": "standard error of the rank",
    "influence_draws": "how many (timestep, noise) draws a score is the mean of",
    "influence_status": "`ok`, or why the row is not ranked",
    "influence_reason": "the same, for people",
    "influence_id": "the row's name in the index: a digest of the file's bytes and the caption",
    "influence_settings": "digest of what the row was scored with",
    "influence_queries": "digest of the queries that it was scored for",
    "influence_model": "digest of the model that it was scored with: scores of another are stale",
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
    nulls: bool = False,
    missing: int = 0,
    template: str | Path | None = None,
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
        license: An identifier of the Hub's list, or the name or address of another licence; None says `unknown`.
        whole: The whole scored corpus where `dataset` is a selection.
        video_column: Column of the clip; without it there are no pictures of clips.
        caption_column: Column of the caption.
        metadata: Entries of the YAML header that are there: all are kept but `size_categories` and, where `license`
            is given, the licence; the card's own tags are added.
        nulls: The rows are published in files that have no NaN. So it is too where a rank is None.
        missing: So many rows more there were, which are not published because their clip cannot be read.
        template: A Jinja2 file of your own in place of `hub_cards/dataset.md`; it may use the names that are there.

    Returns:
        The card, with a histogram where there are scores, and frames of the clips at either end where they decode.
    """
    from . import pictures

    table = CardTable(dataset, video_column, [*_READ, caption_column])
    everything = table if whole is None else CardTable(whole, video_column, _READ)
    influence = table.numbers("influence")
    ranked = np.flatnonzero(~np.isnan(influence))
    order = ranked[np.argsort(table.numbers("influence_rank", default=-influence)[ranked], kind="stable")]
    first, last = order[:ENDS].tolist(), order[max(ENDS, len(order) - ENDS) :][::-1].tolist()
    videos = table.videos({*first, *last})
    errors, rank_errors = (table.numbers(error_column(name)) for name in ("influence", "influence_rank"))

    def caption(row: int) -> Any:
        return publishable({caption_column: table.value(caption_column, row)}, videos.get(row))[caption_column]

    rows = {
        row: {
            "rank": _with_error(_whole_number(table.numbers("influence_rank")[row]), rank_errors[row], "{:.0f}"),
            "influence": _with_error(signed(influence[row]), errors[row], "{:.3f}"),
            "votes": _whole_number(table.numbers("influence_votes")[row]),
            "clip": markdown(clip_name(videos.get(row), f"{row}")),
            "caption": markdown(caption(row) or ""),
        }
        for row in (*first, *last)
    }

    def shown(row: int) -> tuple[Any, str, str]:
        said = (f"{what} {rows[row][what]}" for what in ("rank", "influence", "votes") if rows[row][what])
        return videos[row], "   ".join(said), _drawable(caption(row), clip_name(videos[row], row))

    files: dict[str, bytes] = {}
    of_all = everything.numbers("influence")
    of_all = of_all[~np.isnan(of_all)]
    if len(ranked):
        files[_HISTOGRAM] = pictures.histogram(influence[ranked], None if whole is None else of_all)
    seconds = _seconds(settings)
    strips = [pictures.strips_of((shown(row) for row in ends if row in videos), seconds) for ends in (first, last)]
    if any(strips):
        files[_CLIPS] = pictures.filmstrip(list(zip(("Ranked first", "Ranked last"), strips, strict=True)))

    left_out = _left_out(everything)
    title = repo_id.rsplit("/", 1)[-1]
    entries = header(
        {
            "pretty_name": title,
            "tags": ["hf_motive", "motion-attribution", "data-attribution", "video", "motion"],
            "task_categories": ["text-to-video"],
        },
        {"size_categories": [size_category(len(table))]},
        metadata or {},
        license,
    )
    text = _render(
        template or "dataset.md",
        entries,
        title=markdown(title),
        repo_id=repo_id,
        split=str(dataset.split or "train"),
        opening=_opening(len(table), len(ranked), everything, corpus, selection, whole is not None)
        + (
            f" Of {clips(len(table) + missing)}, {missing:,} could not be read and had to be left out."
            if missing
            else ""
        ),
        ranked=len(ranked),
        some=selection_size(len(ranked), 0.1) if len(ranked) else 0,
        video_column=video_column,
        count=f"{len(ranked):,}",
        below=f"{int((influence[ranked] < 0).sum()):,}",
        mean=signed(influence[ranked].mean()) if len(ranked) else "",
        spread=_spread(influence[ranked], of_all, whole is not None),
        histogram=_HISTOGRAM if _HISTOGRAM in files else "",
        clips=_CLIPS if _CLIPS in files else "",
        certainty=_certainty(everything),
        top=[rows[row] for row in first],
        bottom=[rows[row] for row in last],
        left_out=left_out,
        left_out_of=f"{sum(row['count'] for row in left_out):,} of the {clips(len(everything))}"
        f"{' of the corpus' if whole is not None else ''} could not be ranked.",
        whole=whole is not None,
        chosen=whole is not None or bool(selection),
        nulls=nulls or None in table.column("influence_rank"),
        columns=_columns(table.names, video_column, caption_column),
        own=[code(name) for name in _own(table.names, video_column, caption_column)],
        facts=[
            *_origin(corpus, revision),
            *facts(settings, provenance),
            *_digests(table),
        ],
        settings=settings_json(settings) if settings else "",
        licence=license_sentence(entries),
    )
    return Card(text, files)


def index_card(
    index: GradientIndex,
    repo_id: str,
    *,
    corpus: str | None = None,
    revision: str | None = None,
    license: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    template: str | Path | None = None,
) -> Card:
    """The card of an index; arguments as of `dataset_card`, and of `metadata` `viewer` is not kept either."""
    features = index.settings["features"]
    title = repo_id.rsplit("/", 1)[-1]
    ok = index.counts().get("ok", 0)
    of = f" of {code(corpus_name(corpus))}" if corpus else ""
    entries = header(
        {"pretty_name": title, "tags": ["hf_motive", "motion-attribution", "data-attribution", "gradient-index"]},
        # There are no rows that a viewer could show.
        {"size_categories": [size_category(len(index))], "viewer": False},
        metadata or {},
        license,
    )
    text = _render(
        template or "index.md",
        entries,
        title=markdown(title),
        repo_id=repo_id,
        opening=f"**A gradient index of {clips(ok)}{of}, for motion attribution.**",
        dim=f"{index.dim:,}",
        counts=[(status, f"{count:,}") for status, count in index.counts().items()],
        facts=[
            *_origin(corpus, revision),
            *facts(features, index.provenances),
            ("Settings digest", code(settings_digest(index))),
            ("Index digest", code(index.digest()[:16])),
        ],
        settings=settings_json(features),
        licence=license_sentence(entries),
    )
    return Card(text, {})


def _left_out(table: CardTable) -> list[dict[str, Any]]:
    statuses = table.column("influence_status")
    counts = Counter(status for status in statuses if status is not None and status != "ok")
    examples: dict[str, str] = {}
    for row, status in enumerate(statuses):
        examples.setdefault(status, table.value("influence_reason", row) or "")
    return [
        {"status": status, "count": count, "reason": markdown(without_folders(examples[status]))}
        for status, count in counts.most_common()
    ]


# What the card says ----------------------------------------------------------------------------------------------


def _opening(rows: int, ranked: int, everything: CardTable, corpus: Any, selection: str | None, subset: bool) -> str:
    of = f" of {code(corpus_name(corpus))}" if corpus else ""
    if subset or selection:
        how = f" {markdown(without_folders(selection))}" if selection else ""
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


def _certainty(table: CardTable) -> str:
    """How many of the best tenth are there for certain; nothing where there was one draw."""
    from datasets import Dataset

    from ..selection import best

    columns = ("influence", error_column("influence"), "influence_draws")
    numbers = Dataset.from_dict({name: table.numbers(name).tolist() for name in columns})
    draws = table.numbers("influence_draws")
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return ""
    certain, of = (len(best(numbers, 0.1, by="influence", confidence=confidence)) for confidence in (0.9, None))
    return (
        f"±: one standard error over {int(draws[0])} draws of timestep and noise. Of the {of} clips of the best tenth "
        f"by influence, {certain} would be in it by other draws with 90 % confidence each."
    )


def _with_error(score: str, error: float, form: str) -> str:
    return score if np.isnan(error) or not score else f"{score} ± {form.format(error)}"


def _columns(names: Sequence[str], video_column: str, caption_column: str) -> list[tuple[str, str]]:
    """(name or names, meaning) of the columns that are hf_motive's business, in the dataset's order."""
    groups = group_columns(names)
    said = {**_MEANINGS, video_column: "the clip", caption_column: "its caption"}
    found = [(code(name), said[name]) for name in names if name in said]
    if len(groups) > _MOST_GROUPS:
        some = f"{code(groups[0])} … {code(groups[-1])}"
        return [*found, (some, f"mean influence on one of {len(groups)} queries or groups of queries each")]
    return found + [(code(name), f"mean influence on {markdown(name.removeprefix('influence_'))}") for name in groups]


def _own(names: Sequence[str], video_column: str, caption_column: str) -> list[str]:
    """The columns that the corpus came with."""
    others = {*_MEANINGS, *group_columns(names), video_column, caption_column}
    return [name for name in names if name not in others and not is_error(name)]


def _seconds(settings: Mapping[str, Any] | None) -> float:
    """How much of a clip was scored; where that is not known, what is enough to see what it shows."""
    if settings and settings.get("fps") and settings.get("num_frames"):
        return (settings["num_frames"] - 1) / settings["fps"]
    return 5.0


def _drawable(caption: Any, name: str) -> str:
    """What stands below a clip's rank in a picture: its caption, or its file's name where the font lacks a letter."""
    from .pictures import can_show

    line = " ".join(str(caption or "").split())
    return next((text for text in (line, name) if text and can_show(text)), "")


def _origin(corpus: str | None, revision: str | None) -> list[tuple[str, str]]:
    if corpus is None:
        return [("Corpus", "not said")]
    return [
        ("Corpus", code(corpus_name(corpus)) + (f", revision {code(without_folders(revision))}" if revision else ""))
    ]


def _digests(table: CardTable) -> list[tuple[str, str]]:
    facts = []
    for name, label in (("influence_settings", "Settings digest"), ("influence_queries", "Queries digest")):
        found = sorted({value for value in table.column(name) if value})
        if found:
            facts.append((label, ", ".join(code(value) for value in found)))
    return facts


def _whole_number(value: float) -> str:
    return "" if np.isnan(value) else f"{int(value):,}"


def _render(template: str | Path, metadata: dict[str, Any], **fields: Any) -> str:
    from huggingface_hub import DatasetCard, DatasetCardData

    from .. import __version__

    own = resources.files("hf_motive.hub_cards") / str(template)
    source = (own if template in ("dataset.md", "index.md", "model.md") else Path(template)).read_text(
        encoding="utf-8"
    )
    text = str(
        DatasetCard.from_template(DatasetCardData(**metadata), template_str=source, version=__version__, **fields)
    )
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"
