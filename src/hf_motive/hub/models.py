"""A trained model to the Hub, with a card: what of its folder is published, and the push."""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from .card_text import settings_json
from .model_card import model_card, theirs
from .model_facts import FACTS, ModelFacts
from .published import provenance
from .repository import Repository
from .retries import scrub

logger = logging.getLogger(__name__)

WEIGHTS = "weights.json"
_PIPELINE = "model_index.json"
_LORA = re.compile(r"pytorch_lora_weights(_\w+)?\.safetensors")
# Pickles, which run code when they are loaded, and what a training keeps for itself.
_NEVER = re.compile(r"\..*|.*\.(pt|pth|bin|pkl|pickle|ckpt|partial|tmp)|.*\.incomplete", re.IGNORECASE)
# What diffusers and transformers would look for beside, or before, the files that are pushed.
_LOADED = re.compile(r"(diffusion_pytorch_model|pytorch_model|model|pytorch_lora_weights)[\w.-]*")
_NAMED = ("_name_or_path", "name_or_path", "base_model_name_or_path")


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
        return path in its_files or beside or _LORA.fullmatch(path) is not None

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
        ValueError: A file of weights is cut short.
    """
    folder = Path(folder)
    if (folder / _PIPELINE).is_file():
        found = {path.name: path for path in (folder / _PIPELINE, folder / WEIGHTS) if path.is_file()}
        index = json.loads((folder / _PIPELINE).read_text(encoding="utf-8"))
        parts = [name for name, value in index.items() if isinstance(value, list) and value and value[0] is not None]
    elif not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(
            f"{folder} has no {WEIGHTS}, which is written last of all: the model in it is not whole. Save it again by "
            "MotiveTrainer.save_model"
        )
    else:
        found = {WEIGHTS: folder / WEIGHTS}
        parts = facts.components
    for part in parts:
        found |= {f"{part}/{path.relative_to(folder / part).as_posix()}": path for path in _below(folder / part)}
    if facts.kind == "lora":
        found |= {path.name: path for path in sorted(folder.glob("*.safetensors")) if _LORA.fullmatch(path.name)}
    weights = [path for path in found if path.endswith(".safetensors")]
    of = {"": [path for path in weights if "/" not in path]}
    of |= {part: [path for path in weights if path.startswith(f"{part}/")] for part in facts.components}
    without = [part for part in facts.components if not of[part]]
    if without and not (facts.kind == "lora" and of[""]):
        raise FileNotFoundError(
            f"{folder} has no weights (.safetensors) of {', '.join(without)}: give the folder in which a training "
            "ended; MotiveTrainer.save_model writes them there"
        )
    for path in weights:
        _check_whole(found[path])
    for path in [path for path in found if path.endswith(".safetensors.index.json")]:
        shards = set(json.loads(found[path].read_text(encoding="utf-8"))["weight_map"].values())
        missing = sorted(shard for shard in shards if f"{path.rsplit('/', 1)[0]}/{shard}" not in found)
        if missing:
            raise FileNotFoundError(f"{found[path]} names weights that are not there: {', '.join(missing)}")
    return found | {path: folder / path for path in facts.paths() if (folder / path).is_file()}


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
    text = file.read_text(encoding="utf-8")
    said = json.loads(text)
    if path == WEIGHTS:
        clean = json.loads(settings_json(said))
    elif isinstance(said, dict):
        clean = said | {
            name: provenance({"pipeline": said[name]})["pipeline"]
            for name in _NAMED
            if isinstance(said.get(name), str)
        }
    else:
        return None
    return None if clean == said else json.dumps(clean, indent=2, ensure_ascii=False) + "\n"


def _earlier(text: str | None) -> tuple[ModelFacts | None, set[str]]:
    """The facts and files of the push before this one."""
    try:
        facts = ModelFacts.from_json(text or "")
        files = json.loads(text or "").get("files", [])
    except (TypeError, ValueError, AttributeError):
        return None, set()
    return facts, {path for path in files if isinstance(path, str)} - {".gitattributes"}
