"""A repository on the Hub, of a dataset or a model: opened, read and committed to, never public by mistake."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from .retries import HubError, persist, scrub, secrets_of

if TYPE_CHECKING:
    from .cards import Card

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SAFE = "Nothing on this machine was changed; the same call goes on where it stopped."


class Repository:
    """A repository on the Hub. Every call to it goes through `persist`.

    Args:
        repo_id: `"namespace/name"`; without a namespace `settle` adds the token's owner's.
        token: In place of the stored one.
        kind: Of what.
        go_on: The last sentence of each error: what is safe, and what to do next.
    """

    def __init__(
        self, repo_id: str, token: str | None, kind: Literal["dataset", "model"] = "dataset", go_on: str = _SAFE
    ):
        from huggingface_hub import HfApi

        self.token = token.strip() if token else None
        self.api = HfApi(token=self.token)
        self.secrets = secrets_of(token)
        self.id = repo_id
        self.kind = kind
        self.go_on = go_on

    @property
    def url(self) -> str:
        return f"{self.api.endpoint}/{'datasets/' if self.kind == 'dataset' else ''}{self.id}"

    def persist(self, call: Callable[[], T], doing: str, go_on: str | None = None) -> T:
        return persist(call, doing, secrets=self.secrets, go_on=self.go_on if go_on is None else go_on)

    def settle(self, private: bool) -> None:
        """See that the repository is there, and is not public where it should be private."""
        if "/" not in self.id:
            self.id = f"{self.persist(self.api.whoami, 'asking for the name of the token')['name']}/{self.id}"
        is_private = self.persist(lambda: self._make(private), f"opening {self.id}")
        if private and not is_private:
            these = "clips" if self.kind == "dataset" else "weights"
            raise ValueError(
                f"{self.id} exists and is public: nothing was sent. Say private=False (on the command line --public) "
                f"if everybody may see these {these}, or name another repository"
            )
        if not private and is_private:
            logger.warning(
                "%s is private and stays so: private=False says so of a new repository only. "
                "Its visibility is changed on %s/settings",
                self.id,
                self.url,
            )

    def _make(self, private: bool) -> bool:
        """Whether the repository is private; made if there is none."""
        from huggingface_hub.errors import RepositoryNotFoundError

        try:
            return self.api.repo_info(self.id, repo_type=self.kind).private is True
        except RepositoryNotFoundError as error:
            if error.response.status_code == 401:  # the Hub says of a repository that it shows nobody, too
                raise
        self.api.create_repo(self.id, repo_type=self.kind, private=private)
        return private

    def card(self) -> Any:
        """The card that is there now, never one from the cache."""
        text = self.read("README.md")
        kind = _card_of(self.kind)
        return kind("---\n{}\n---\n") if text is None else kind(text, ignore_metadata_errors=True)

    def read(self, path: str) -> str | None:
        """The text of a file as it is now, never from the cache; None where there is none."""
        from huggingface_hub.errors import EntryNotFoundError

        def read() -> str | None:
            commit = self.api.repo_info(self.id, repo_type=self.kind).sha
            try:
                file = self.api.hf_hub_download(self.id, path, repo_type=self.kind, revision=commit)
            except EntryNotFoundError:
                return None
            return Path(file).read_text(encoding="utf-8")

        return self.persist(read, f"reading {'the card' if path == 'README.md' else path} of {self.id}")

    def push_card(
        self,
        card: Card,
        *,
        data: Callable[[], list[Any]] = list,
        stale: Callable[[str], bool] = lambda path: False,
        message: str | None = None,
    ) -> None:
        """The card, its pictures and some data in one commit, which removes what is stale of an earlier push."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        from .cards import PICTURES

        drawn = PICTURES if self.kind == "dataset" else ()
        text = scrub(card.text, self.secrets)
        refused = self.persist(lambda: _refused(text, self.kind), f"checking the card of {self.id}")
        if refused:
            sent = f"What was sent is at {self.url}" if data is list else f"Nothing was sent. {self.go_on}"
            raise HubError(
                scrub(f"the Hub does not accept the card's metadata (400): {refused} {sent}", self.secrets), 400
            )
        what = "card" if data is list else "index" if self.kind == "dataset" else "model"

        def commit() -> None:
            there = set(self.api.list_repo_files(self.id, repo_type=self.kind))
            additions = [*data(), CommitOperationAdd("README.md", text.encode())]
            additions += [CommitOperationAdd(path, content) for path, content in card.files.items()]
            kept = {addition.path_in_repo for addition in additions}
            gone = [path for path in sorted(there - kept) if stale(path) or path in drawn]
            self.api.create_commit(
                self.id,
                [*additions, *(CommitOperationDelete(path) for path in gone)],
                repo_type=self.kind,
                commit_message=message or f"Upload {what}",
            )

        self.persist(commit, f"pushing the {what} to {self.id}")


def _card_of(kind: str) -> Any:
    from huggingface_hub import DatasetCard, ModelCard

    return DatasetCard if kind == "dataset" else ModelCard


def _refused(text: str, kind: str = "dataset") -> str:
    """Why the Hub's validator does not accept a card; empty if it does."""
    try:
        _card_of(kind)(text).validate()
    except ValueError as error:
        return " ".join(str(error).split()).rstrip(".") + "."
    return ""
