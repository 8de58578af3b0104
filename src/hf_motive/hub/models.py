"""A trained model to the Hub, with a card: what of its folder is published, and the push."""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .card_text import settings_json
from .model_card import model_card, theirs
from .model_facts import FACTS, ModelFacts
from .published import provenance, without_folders
from .repository import Repository
from .retries import scrub

logger = logging.getLogger(__name__)

WEIGHTS = "weights.json"
_PIPELINE = "model_index.json"
_LORA = "pytorch_lora_weights.safetensors"
_SHARD = re.compile(r"-\d+-of-\d+\.safetensors$")
_INDEX = re.compile(r"\.safetensors\.index(\.\w+)?\.json$")
# Pickles, which run code when they are loaded, and what a training keeps for itself.
_NEVER = re.compile(r"\..*|.*\.(pt|pth|bin|pkl|pickle|ckpt|partial|tmp)|.*\.incomplete", re.IGNORECASE)
# What diffusers and transformers would look for beside, or before, the files that are pushed.
_LOADED = re.compile(r"(diffusion_pytorch_model|pytorch_model|model|pytorch_lora_weights)[\w.-]*")
_NAMED = ("_name_or_path", "name_or_path", "base_model_name_or_path")
_WORDS = re.compile(r"chat_template|added_tokens_decoder|content|\w*_tokens?")


def push_model(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool = True,
    license: str | None = None,
    commit_message: str | None = None,
    token: str | None = None,
) -> str:
    """Push a trained model with a card, in one commit, so that diffusers loads it by its id.

    Published are the weights (a LoRA, denoisers, or a whole pipeline) with their configuration, `weights.json`,
    `model.json`, the samples that the card shows, and the card. Checkpoints, states of optimizers, logs, pickles and
    whatever else lies in the folder stay where they are. Of a folder of this machine, in a configuration or in the
    facts, the last name is published. A second push replaces the card's text and removes the weights and samples of
    the first that are no more; entries of a person in the card's YAML header stay, and so do their files.

    Args:
        folder: Where a training ended: with `model.json` and weights.
        repo_id: `"namespace/name"`; without a namespace, the token's owner's.
        private: Make the repository private. With True, a repository that exists and is public is refused before
            anything is sent. With False, a repository that exists keeps the visibility that it has.
        license: An identifier of the Hub's list, such as "apache-2.0", or the name or address of another licence.
            None: what the repository's card says, or the facts, or `unknown`.
        commit_message: None: "Upload model".
        token: In place of HF_TOKEN and of what `hf auth login` stored.

    Returns:
        The URL of the model.

    Raises:
        FileNotFoundError: The folder, its `model.json` or weights that it should have are not there.
        ValueError: A file of weights is cut short; or the repository is public and `private` is True. Nothing was
            sent.
        HubError: The Hub refused or could not be reached. The folder is as it was; the message has the command that
            tries again.
    """
    from huggingface_hub import CommitOperationAdd

    facts = ModelFacts.load(folder)
    files = published_files(folder, facts)
    command = ["hf-motive", "push", os.fspath(folder), repo_id]
    command += [] if private else ["--public"]
    command += ["--license", license] if license else []
    again = f"{folder} is as it was, and nothing of it is lost. To try again: {shlex.join(command)}"
    repo = Repository(repo_id, token, "model", again)
    repo.settle(private)
    earlier, its_files = _earlier(repo.read(FACTS))
    card = model_card(facts, folder, repo.id, metadata=theirs(repo.card().data.to_dict(), earlier), license=license)
    texts = {path: _published_text(path, file) for path, file in files.items() if path.endswith(".json")}
    listed = sorted({*files, *card.files, FACTS, "README.md"})
    texts[FACTS] = facts.published().to_json(files=listed)
    # Digests of large files are taken once, however often the commit is tried.
    operations = [
        CommitOperationAdd(path, file if text is None else scrub(text, repo.secrets).encode())
        for path, file in (files | {FACTS: Path(folder) / FACTS}).items()
        for text in [texts.get(path)]
    ]
    places = {path.rsplit("/", 1)[0] for path in files if "/" in path} - {
        path.rsplit("/", 1)[0] for path in facts.paths()
    }

    def stale(path: str) -> bool:
        place, _, name = path.rpartition("/")
        beside = place in places and _LOADED.fullmatch(name) is not None
        return path in its_files or beside or path == _LORA  # which a pipeline would load by itself

    repo.push_card(
        card, data=lambda: [copy.copy(operation) for operation in operations], stale=stale, message=commit_message
    )
    return repo.url


def settle_model(repo_id: str, *, private: bool = True, token: str | None = None) -> str:
    """See, before there is a model, that its repository is there and private; it is made if need be.

    Whether the token may write to a repository that exists shows when something is written.

    Args:
        repo_id, private, token: As in `push_model`.

    Returns:
        The id with its namespace.

    Raises:
        ValueError: The repository is public and `private` is True.
        HubError: The Hub refused or could not be reached.
    """
    later = "Nothing was sent. A model that is saved is pushed at any time: hf-motive push FOLDER REPO_ID"
    repo = Repository(repo_id, token, "model", later)
    repo.settle(private)
    return repo.id


def published_files(folder: str | os.PathLike[str], facts: ModelFacts) -> dict[str, Path]:
    """What of a model's folder is published, by its path in the repository; `model.json` and README.md apart.

    Raises:
        FileNotFoundError: There are no weights of a component that was trained, or not all of them.
        ValueError: A file of weights is cut short; or `weights.json` and the facts are not of the same training.
    """
    folder = Path(folder)
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(
            f"{folder} has no {WEIGHTS}, which is written last of all: the model in it is not whole. Save it again by "
            "MotiveTrainer.save_model"
        )
    said = json.loads((folder / WEIGHTS).read_text(encoding="utf-8"))
    if (said["kind"], said["components"]) != (facts.kind, facts.components):
        raise ValueError(
            f"{folder / FACTS} is of another training than the weights beside it: it says {facts.kind} of "
            f"{', '.join(facts.components)}, and they are {said['kind']} of {', '.join(said['components'])}. Save the "
            "model again by MotiveTrainer.save_model"
        )
    # What these weights are, and nothing that another training, or a person, left beside them.
    found = {WEIGHTS: folder / WEIGHTS}
    of = {part: _weights_of(folder, part, said) for part in said["components"]}
    for paths in of.values():
        found |= {path: folder / path for path in paths}
    if said["kind"] == "full" and (folder / _PIPELINE).is_file():
        found[_PIPELINE] = folder / _PIPELINE
        index = json.loads((folder / _PIPELINE).read_text(encoding="utf-8"))
        parts = [name for name, value in index.items() if isinstance(value, list) and value and value[0] is not None]
        for part in set(parts) - of.keys():
            found |= {f"{part}/{path.relative_to(folder / part).as_posix()}": path for path in _below(folder / part)}
    without = [part for part, paths in of.items() if not any(path.endswith(".safetensors") for path in paths)]
    if without:
        raise FileNotFoundError(
            f"{folder} has no weights (.safetensors) of {', '.join(without)}: give the folder in which a training "
            "ended; MotiveTrainer.save_model writes them there"
        )
    _check_shards(found)
    for path in found:
        if path.endswith(".safetensors"):
            _check_whole(found[path])
    return found | {path: folder / path for path in facts.paths() if (folder / path).is_file()}


def _weights_of(folder: Path, part: str, said: Mapping[str, Any]) -> list[str]:
    """The files of a denoiser that was trained, below the folder: as `weights.json` has them, where it does."""
    from ..training import adapters, whole

    if said["kind"] == "full":
        return [f"{part}/{path.name}" for path in whole.files_of(folder / part)]
    written = said.get("files", adapters.files_of(part))
    return [file for file in adapters.files_of(part) if file in written and (folder / file).is_file()]


def _check_shards(found: Mapping[str, Path]) -> None:
    """All files that an index names are there; and none is a part of weights of which there is no index."""
    indexed = set()
    for path in [path for path in found if _INDEX.search(path)]:
        place = path.rpartition("/")[0]
        shards = set(json.loads(found[path].read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(shard for shard in shards if f"{place}/{shard}" not in found)
        if missing:
            raise FileNotFoundError(f"{found[path]} names weights that are not there: {', '.join(missing)}")
        indexed |= {f"{place}/{shard}" for shard in shards}
    loose = [path for path in found if _SHARD.search(path) and path not in indexed]
    if loose:
        raise FileNotFoundError(
            f"{found[loose[0]]} is one of several files of weights, and no index beside it names it: the model is not "
            "whole. Save it again by MotiveTrainer.save_model"
        )


def _below(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        inner = path.relative_to(folder).parts
        if path.is_file() and not any(_NEVER.fullmatch(name) for name in inner):
            yield path


def _check_whole(path: Path) -> None:
    """A file that was copied while it was written, or on a full disk, has a header that promises more."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np"):
            pass
    except SafetensorError as error:
        raise ValueError(f"{path} is not whole ({error}): save the model again before it is pushed") from error


def _published_text(path: str, file: Path) -> str | None:
    """A configuration without folders of this machine; None where it may go as it is."""
    if file.stat().st_size > 2**24 or path.endswith(".safetensors.index.json"):
        return None
    said = json.loads(file.read_text(encoding="utf-8"))
    name = path.rpartition("/")[2]
    if path == WEIGHTS:
        clean = json.loads(settings_json(said))
    elif name.endswith("config.json") or name in (_PIPELINE, "special_tokens_map.json"):
        clean = _without_places(said)
    else:  # a vocabulary, in which a word may look like a path
        return None
    return None if clean == said else json.dumps(clean, indent=2, ensure_ascii=False) + "\n"


def _without_places(value: Any, name: str = "") -> Any:
    """JSON values with the last name of each path, but for what a tokenizer takes by the letter."""
    if _WORDS.fullmatch(name):
        return value
    if isinstance(value, Mapping):
        return {inner: _without_places(said, inner) for inner, said in value.items()}
    if isinstance(value, list):
        return [_without_places(inner, name) for inner in value]
    if not isinstance(value, str):
        return value
    # The name of a model of the Hub, where it was loaded from the Hub's cache.
    return without_folders(str(provenance({"pipeline": value})["pipeline"]) if name in _NAMED else value)


def _earlier(text: str | None) -> tuple[ModelFacts | None, set[str]]:
    """The facts and files of the push before this one."""
    try:
        facts = ModelFacts.from_json(text or "")
        files = json.loads(text or "").get("files", [])
    except (TypeError, ValueError, AttributeError):
        return None, set()
    return facts, {path for path in files if isinstance(path, str)} - {".gitattributes"}
