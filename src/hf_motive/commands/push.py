"""A run, a selection, an index or a model to the Hub: `hf-motive push`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from .sources import (
    COLUMN_HELP,
    Source,
    columns_of,
    find,
    job_of,
    load_scored,
    published_name,
    read_selection,
    selected_from,
)


@dataclass
class PushArguments:
    """What to publish, as what, and who may see it."""

    source: str = field(
        metadata={
            "help": "The output folder of `hf-motive score`, what `hf-motive select` wrote, an index, or the folder "
            "in which a training ended."
        }
    )
    repo_id: str = field(
        metadata={
            "help": "namespace/name of the dataset or model repository; it is made if need be. Of one that exists the "
            "rows of this split, or the model, and the card's text are replaced; what a person wrote into the card's "
            "YAML header stays."
        }
    )
    index: bool = field(default=False, metadata={"help": "Of a run: its index too, as REPO_ID-index."})
    public: bool = field(default=False, metadata={"help": "Everybody may see it. Without: private."})
    video: Literal["embedded", "referenced"] = field(
        default="embedded",
        metadata={"help": "'embedded': the clips in Parquet files. 'referenced': files beside a metadata.jsonl."},
    )
    corpus: str | None = field(
        default=None, metadata={"help": "What was scored, for the card. None: what the run says, without its folders."}
    )
    revision: str | None = field(default=None, metadata={"help": "Revision of the corpus, for the card."})
    license: str | None = field(
        default=None, metadata={"help": "As the Hub names it, e.g. cc-by-4.0. None: what the repository's card says."}
    )
    selection: str | None = field(
        default=None,
        metadata={"help": "A sentence on how the rows were chosen, for the card. None: what select left."},
    )
    split: str = field(default="train", metadata={"help": "Split of a source that has several."})
    video_column: str | None = field(
        default=None, metadata={"help": f"Column of the video. {COLUMN_HELP.format('video')}", "metavar": "COLUMN"}
    )
    caption_column: str | None = field(
        default=None, metadata={"help": f"Column of the caption. {COLUMN_HELP.format('caption')}", "metavar": "COLUMN"}
    )


def push(arguments: PushArguments) -> list[str]:
    """Push what the source is and print where it lies. Returns the URLs.

    Raises:
        HubError: The Hub refused or could not be reached. What is here is as it was.
        ValueError: The source cannot be pushed so.
    """
    import datasets
    from datasets import Video

    from ..hub import push_dataset, push_index
    from ..index import GradientIndex

    datasets.logging.set_verbosity_error()  # it says how many processes it would have used
    source = find(arguments.source)
    if source.kind == "hub":
        raise FileNotFoundError(
            f"{arguments.source} does not exist: push publishes a run, a selection, an index or a model of this "
            "machine"
        )
    if source.kind == "model":
        return [_push_model(arguments)]
    if arguments.index and source.index is None:
        raise ValueError(f"{arguments.source} has no index to push: --index is for the folder of a run")
    said = read_selection(source) or {}
    corpus = arguments.corpus or published_name(said.get("corpus") or job_of(source).get("corpus"))
    common: dict[str, Any] = {
        "corpus": corpus,
        "revision": arguments.revision,
        "license": arguments.license,
        "private": not arguments.public,
    }
    index = None if source.index is None else GradientIndex.open(source.index)
    seen = "public" if arguments.public else "private"
    urls = []
    if source.kind == "index":
        assert index is not None
        print(
            f"{arguments.source} is an index of {len(index)} clips; pushing it, {seen}, to {arguments.repo_id}",
            flush=True,
        )
        urls.append(push_index(index, arguments.repo_id, **common))
        print(urls[-1])
    else:
        columns = columns_of(source, arguments.video_column, arguments.caption_column)
        dataset = load_scored(source, arguments.split, columns)
        if dataset.features.get(columns["video_column"]) == Video(decode=False):  # so only because we need no decoder
            dataset = dataset.cast_column(columns["video_column"], Video())
        selection, whole = arguments.selection or said.get("selection"), None
        if said:
            whole, index = _whole(source, said, arguments.split, dataset)
        what = "a selection" if selection else "a run" if source.kind == "run" else "a scored dataset"
        rows = f" of {len(dataset)} clips" if hasattr(dataset, "select") else ", a stream"
        print(f"{arguments.source} is {what}{rows}; pushing it, {seen}, to {arguments.repo_id}", flush=True)
        if selection:
            print(f"How they were chosen: {selection}")
        urls.append(
            push_dataset(
                dataset,
                arguments.repo_id,
                index=index,
                whole=whole,
                selection=selection,
                video=arguments.video,
                **common,
                **columns,
            )
        )
        print(urls[-1])
        if arguments.index:
            assert index is not None
            print(f"and its index of {len(index)} clips to {arguments.repo_id}-index")
            urls.append(push_index(index, f"{arguments.repo_id}-index", **common))
            print(urls[-1])
    return urls


def _push_model(arguments: PushArguments) -> str:
    """The folder in which a training ended."""
    from ..hub import ModelFacts, push_model

    for_models = ("source", "repo_id", "public", "license")
    others = [
        f"--{option.name}"
        for option in fields(arguments)
        if option.name not in for_models and getattr(arguments, option.name) != option.default
    ]
    if others:
        raise ValueError(f"{arguments.source} is a trained model: leave out {', '.join(others)}, which is for rows")
    folder = Path(arguments.source).expanduser()
    facts = ModelFacts.load(folder)
    what = "a LoRA for" if facts.kind == "lora" else "a fine-tuned"
    print(
        f"{arguments.source} is {what} {facts.base_model}; pushing it, {'public' if arguments.public else 'private'}, "
        f"to {arguments.repo_id}",
        flush=True,
    )
    url = push_model(folder, arguments.repo_id, private=not arguments.public, license=arguments.license)
    print(url)
    return url


def _whole(source: Source, said: dict[str, Any], split: str, dataset: Any) -> tuple[Any, Any]:
    """The corpus that was selected from and its index, where they still are as they were then."""
    from datasets import Dataset

    from ..hub.checks import check_whole
    from ..index import GradientIndex

    try:
        origin = find(selected_from(source, said))
        while earlier := read_selection(origin):  # a selection of a selection
            origin = find(selected_from(origin, earlier))
        whole = load_scored(origin, split, columns_of(origin))
        check_whole(dataset, whole)
    except (OSError, ValueError) as error:
        print(f"The card will not show the whole corpus: {error}")
        return None, None
    index = None if origin.index is None else GradientIndex.open(origin.index)
    return whole if isinstance(whole, Dataset) else None, index
