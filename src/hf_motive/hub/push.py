"""Scored datasets and indexes to the Hub and back, each with a card. Private unless told otherwise."""

from __future__ import annotations

import logging
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..index import GradientIndex
from .checks import check_index, check_kind, check_rows, check_whole
from .published import SHARD_BYTES, embedded, provenance, publishable, snapshot, without_decoding
from .repository import Repository
from .retries import HubError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

logger = logging.getLogger(__name__)

__all__ = ["HubError", "load_index", "push_dataset", "push_index"]

_INDEX_FILES = ["index.json", "shard-*"]


def push_dataset(
    dataset: Dataset | IterableDataset,
    repo_id: str,
    *,
    index: GradientIndex | None = None,
    whole: Dataset | None = None,
    corpus: str | None = None,
    revision: str | None = None,
    selection: str | None = None,
    license: str | None = None,
    private: bool = True,
    video: Literal["embedded", "referenced"] = "embedded",
    video_column: str = "video",
    caption_column: str = "caption",
    shard_bytes: int = SHARD_BYTES,
    token: str | None = None,
) -> str:
    """Push a scored corpus, or a selection of it, as a dataset repository with a card.

    The data goes first, then the card, so that a card never speaks of data that is not there. A second push replaces
    the rows of the same split and its files. The text of the card is replaced as a whole, and with it what a person
    wrote there (it stays in the repository's history); of its YAML header the licence, tags and every other entry
    stay, but for what tells of the data (`size_categories`, `dataset_info`, `configs`). Each call to the Hub is tried
    again as `hf_motive.hub.retries.persist` says; what was uploaded is not uploaded again.

    Folders of this machine are not published, whichever `video` is: of each clip's path, of each path in a reason, and
    of each text that is as a whole a path of this machine or below its clip's folder, in lists and structs too, the
    name stays. A path amid another text stays as it is, in a column of your own.

    Args:
        dataset: With the columns of `MotiveAttributor.influence`; map-style or streaming. Its split is kept.
        repo_id: `"namespace/name"`; without a namespace, the token's owner's.
        index: The index that it was scored with, for the card's settings.
        whole: The whole scored corpus where `dataset` is a selection: the card then shows both.
        corpus, revision: What was scored, for the card.
        selection: One sentence of how the rows were chosen, for the card.
        license: An identifier of the Hub's list, such as "cc-by-4.0", or the name or address of another licence.
            None: what the repository's card says, or `unknown`.
        private: Make the repository private. With True, a repository that exists and is public is refused before
            anything is sent. With False, a repository that exists keeps the visibility that it has.
        video: "embedded": parquet files that hold the clips and every column as it is. "referenced": the clips as
            files beside a `metadata.jsonl`, as `hf_motive.export.write_videofolder` writes them; arrays such as
            `motion_mask` are left out, NaN is null.
        video_column: Column of the clip.
        caption_column: Column of the caption.
        shard_bytes: About how many bytes a parquet file gets. One file at a time is in memory, and is sent again
            after a lost connection. A stream keeps its shards instead.
        token: In place of HF_TOKEN and of what `hf auth login` stored.

    Returns:
        The URL of the dataset.

    Raises:
        TypeError: `dataset` or `whole` is several splits.
        ValueError: The dataset has no rows, lacks a column or its scores, or was scored with another index, or for
            other queries than `whole`; or the repository is public and `private` is True, or has another split of
            which the videos are kept in the other way, so that `load_dataset` could read neither. Nothing was sent.
        HubError: The Hub refused or could not be reached. What is here is as it was.
    """
    from .cards import dataset_card

    if video not in ("embedded", "referenced"):
        raise ValueError(f"video must be 'embedded' or 'referenced', got {video!r}")
    digests = check_rows(dataset, video_column, caption_column)
    if index is not None:
        check_index(digests, index)
    if whole is not None:
        check_whole(dataset, whole)
    split = _split(dataset)
    repo = Repository(repo_id, token)
    repo.settle(private)
    check_kind(repo, split, video)
    features, rows, missing = None, dataset, 0
    if video == "embedded":
        features = _push_rows(repo, dataset, split, video_column, shard_bytes)
        stale = rf"{split}/(metadata\.jsonl|clips/\d{{8}}[^/]*)"  # of the other kind, from an earlier push
    else:
        written, missing = _push_folder(repo, dataset, split, video_column, caption_column)
        if missing:
            rows = _these(dataset, written)
        stale = rf"data/{split}-\d{{5}}-of-\d{{5}}\.parquet"
    card = dataset_card(
        rows,
        repo.id,
        settings=None if index is None else index.settings["features"],
        provenance=None if index is None else [provenance(recorded) for recorded in index.provenances],
        corpus=corpus,
        revision=revision,
        selection=selection,
        license=license,
        whole=whole,
        video_column=video_column,
        caption_column=caption_column,
        metadata=_kept(repo.card().data, features),
        nulls=video == "referenced",
        missing=missing,
    )
    repo.push_card(card, stale=lambda path: re.fullmatch(stale, path) is not None)
    return repo.url


def push_index(
    index: GradientIndex,
    repo_id: str,
    *,
    corpus: str | None = None,
    revision: str | None = None,
    license: str | None = None,
    private: bool = True,
    token: str | None = None,
) -> str:
    """Push an index with a card, in one commit, so that others can ask it their queries: `load_index(repo_id)`.

    What goes is what `index` has read when this is called, whole rows only, though a run may be writing to it. Where
    the pipeline came from a folder of this machine, that folder's last name is published. A second push replaces the
    card's text, as in `push_dataset`.

    Args:
        index: Open for reading or writing.
        repo_id: `"namespace/name"`; without a namespace, the token's owner's. A repository of its own.
        corpus, revision: What was indexed, for the card.
        license: As in `push_dataset`.
        private: As in `push_dataset`.
        token: As in `push_dataset`.

    Returns:
        The URL of the repository.

    Raises:
        ValueError: The index has no rows; or the repository is public and `private` is True.
        HubError: The Hub refused or could not be reached.
    """
    from huggingface_hub import CommitOperationAdd

    from .cards import index_card

    if not len(index):
        raise ValueError(f"{index.path} has no rows to push: fill it with MotiveAttributor.index")
    repo = Repository(repo_id, token)
    repo.settle(private)
    with tempfile.TemporaryDirectory(prefix="hf_motive-") as folder:
        copy = snapshot(index, folder)
        card = index_card(
            copy,
            repo.id,
            corpus=corpus,
            revision=revision,
            license=license,
            metadata=repo.card().data.to_dict(),
        )
        files = sorted(path for path in Path(folder).iterdir() if path.is_file())

        def operations() -> list[Any]:
            return [CommitOperationAdd(path.name, path) for path in files]

        repo.push_card(
            card,
            data=operations,
            stale=lambda path: re.fullmatch(r"shard-[^/]+", path) is not None and not (Path(folder) / path).exists(),
        )
    return repo.url


def load_index(repo_id: str, *, revision: str | None = None, token: str | None = None) -> GradientIndex:
    """Download an index that `push_index` pushed and open it for reading.

    Args:
        repo_id: `"namespace/name"`.
        revision: A branch, tag or commit; None: the newest.
        token: As in `push_dataset`.

    Returns:
        The index, in the Hub's cache. It has the digest of the one that was pushed.

    Raises:
        ValueError: The repository holds no index.
        HubError: The Hub refused or could not be reached, and the cache does not have it.
    """
    repo = Repository(repo_id, token)
    folder = repo.persist(
        lambda: repo.api.snapshot_download(
            repo_id, repo_type="dataset", revision=revision, allow_patterns=_INDEX_FILES
        ),
        f"loading the index {repo_id}",
        "The same call goes on where it stopped.",
    )
    if not (Path(folder) / "index.json").exists():
        raise ValueError(
            f"{repo_id} holds no index (no index.json). A dataset is loaded by datasets.load_dataset({repo_id!r}); "
            "an index is pushed by hf_motive.hub.push_index"
        )
    return GradientIndex.open(folder)


# The data -------------------------------------------------------------------------------------------------------


def _push_rows(repo: Repository, dataset: Any, split: str, video_column: str, shard_bytes: int) -> Any:
    """Parquet files with the clips in them; the features as they were pushed."""
    rows = embedded(dataset, video_column, shard_bytes)
    repo.persist(
        lambda: rows.push_to_hub(
            repo.id, split=split, embed_external_files=False, commit_message="Upload rows", token=repo.token
        ),
        f"pushing the rows to {repo.id}",
    )
    return rows.features


def _push_folder(
    repo: Repository, dataset: Any, split: str, video_column: str, caption_column: str
) -> tuple[list[int], int]:
    """Clips as files and their metadata, in a folder named like the split; the rows that went, how many did not."""
    from ..export import METADATA, not_read, nothing_read, write_rows

    card = repo.card()
    _point_to(card.data, split, f"{split}/**")
    with tempfile.TemporaryDirectory(prefix="hf_motive-") as folder:
        count, left_out = write_rows(
            without_decoding(dataset),
            Path(folder) / split,
            video_column=video_column,
            caption_column=caption_column,
            publish=publishable,
        )
        if count == len(left_out):
            raise ValueError(f"nothing to push to {repo.id}: {nothing_read(left_out)}")
        if left_out:
            logger.warning("%s: %s", repo.id, not_read(left_out, count))
        (Path(folder) / "README.md").write_text(str(card), encoding="utf-8")
        repo.persist(
            lambda: repo.api.upload_folder(
                repo_id=repo.id,
                repo_type="dataset",
                folder_path=folder,
                delete_patterns=[f"{split}/{METADATA}", f"{split}/clips/*"],
                commit_message="Upload clips",
            ),
            f"pushing the clips to {repo.id}",
        )
    return [number for number in range(count) if number not in left_out], len(left_out)


def _these(dataset: Any, numbers: list[int]) -> Any:
    """Rows by their number; of a stream in its order."""
    if hasattr(dataset, "select"):
        return dataset.select(numbers)
    wanted = set(numbers)
    return without_decoding(dataset).filter(lambda _, number: number in wanted, with_indices=True)


def _point_to(data: Any, split: str, path: str) -> None:
    """Write into a card's metadata where a split's files are, and forget what was known of those before."""
    from datasets.utils.metadata import MetadataConfigs

    configs = MetadataConfigs.from_dataset_card_data(data)
    config = configs.get("default", {})
    files = [entry for entry in config.get("data_files", []) if entry["split"] != split]
    configs["default"] = {**config, "data_files": [*files, {"split": split, "path": path}]}
    data.__dict__.pop("configs", None)
    configs.to_dataset_card_data(data)
    data.__dict__.pop("dataset_info", None)


def _kept(data: Any, features: Any) -> dict[str, Any]:
    """The card's entries, by which `datasets` loads the data. Features of an earlier push are not this one's."""
    from datasets.info import DatasetInfosDict

    if features is not None:
        infos = DatasetInfosDict.from_dataset_card_data(data)
        infos["default"].features = features
        data.__dict__.pop("dataset_info", None)
        infos.to_dataset_card_data(data)
    return data.to_dict()


def _split(dataset: Any) -> str:
    """The split's name, which may be an expression (`train[:10%]`) in which its first word counts."""
    found = re.match(r"\w+", str(dataset.split or "train"))
    return found[0] if found else "train"
