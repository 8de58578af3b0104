"""What is looked at before anything is sent: are there scored rows, do they fit the index and the repository."""

from __future__ import annotations

from typing import Any

from ..corpus import check_columns
from ..index import GradientIndex
from .published import without_decoding
from .repository import Repository

_DIGESTS = {"influence_settings": "settings", "influence_queries": "queries"}


def check_rows(dataset: Any, video_column: str, caption_column: str) -> dict[str, set[str]]:
    """Raise where there are no scored rows to push; else the digests that they have."""
    if isinstance(dataset, dict):
        raise TypeError(f"push one split, push_dataset(dataset[{next(iter(dataset), 'train')!r}], ...), or each")
    # Of a stream one row is looked at: all were scored in one call.
    rows = dataset if hasattr(dataset, "num_rows") else _first(dataset)
    if not len(rows):
        raise ValueError("the dataset has no rows: nothing to push")
    names = dataset.column_names or list(rows[0])
    check_columns(names, video_column, caption_column)
    if "influence" not in names:
        raise ValueError(
            f"the dataset has no column 'influence'; its columns are {', '.join(names)}. Score it first "
            "(MotiveAttributor.influence); datasets without scores are pushed by their own push_to_hub"
        )
    return _digests(dataset, rows)


def _digests(dataset: Any, rows: Any = None) -> dict[str, set[str]]:
    """Column -> the digests in it, of those columns that are there."""
    if hasattr(dataset, "unique"):
        found = {
            name: dataset.select_columns([name]).unique(name) for name in _DIGESTS if name in dataset.column_names
        }
    else:
        rows = _first(dataset) if rows is None else rows
        found = {name: [row[name] for row in rows if name in row] for name in _DIGESTS}
    return {name: set(filter(None, digests)) for name, digests in found.items()}


def _first(stream: Any) -> list[dict[str, Any]]:
    return list(without_decoding(stream.with_format(None)).take(1))


def check_whole(dataset: Any, whole: Any) -> None:
    """Raise where a corpus is not the one, as it was scored then, that a selection is of.

    Args:
        dataset: The selection.
        whole: The corpus.

    Raises:
        TypeError: `whole` is several splits.
        ValueError: `whole` has no scores, or those of another scoring.
    """
    if isinstance(whole, dict):
        raise TypeError(f"whole= is one split: name it, whole[{next(iter(whole), 'train')!r}]")
    names = whole.column_names
    if names is not None and "influence" not in names:
        raise ValueError(
            f"whole= has no column 'influence'; its columns are {', '.join(names)}: give the scored corpus"
        )
    of_all = _digests(whole)
    for column, digests in _digests(dataset).items():
        others = of_all.get(column)
        if digests and others and digests != others:
            raise ValueError(
                f"the rows were scored with {_DIGESTS[column]} {', '.join(sorted(digests))}, and the whole corpus "
                f"with {', '.join(sorted(others))}: it was scored again after the rows were chosen. Choose again, "
                "or leave out whole="
            )


def check_index(digests: dict[str, set[str]], index: GradientIndex) -> None:
    """Raise ValueError where the rows say that they were scored with another index."""
    from ..transforms import settings_digest

    found, expected = digests.get("influence_settings", set()), settings_digest(index)
    if found - {expected}:
        raise ValueError(
            f"the rows were scored with an index of settings {', '.join(sorted(found))}, and {index.path} has "
            f"{expected}: give the index that they were scored with, or none"
        )


def check_kind(repo: Repository, split: str, video: str) -> None:
    """Raise ValueError where `load_dataset`, which reads one format a repository, could then read no split."""
    from datasets.utils.metadata import MetadataConfigs

    config = MetadataConfigs.from_dataset_card_data(repo.card().data).get("default", {})
    for entry in config.get("data_files", []):
        other, path = (entry.get("split"), entry.get("path")) if isinstance(entry, dict) else (None, None)
        kinds = {f"data/{other}-*": "embedded", f"{other}/**": "referenced"}  # as they are pushed below
        kind = kinds.get(path[0] if isinstance(path, list) and path else str(path), video)
        if other != split and kind != video:
            raise ValueError(
                f"{repo.id} has a split {other!r} with video={kind!r}, and load_dataset reads one kind a repository: "
                f"push {split!r} with video={kind!r} too, or to another repository. Nothing was sent"
            )
