"""A dataset repository on the Hub: opened, read and committed to, never public by mistake."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .retries import HubError, persist, scrub, secrets_of

if TYPE_CHECKING:
    from .cards import Card

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SAFE = "Nothing on this machine was changed; the same call goes on where it stopped."


class Repository:
    """A dataset repository on the Hub. Every call to it goes through `persist`."""

    def __init__(self, repo_id: str, token: str | None):
        from huggingface_hub import HfApi

        self.token = token.strip() if token else None
        self.api = HfApi(token=self.token)
        self.secrets = secrets_of(token)
        self.id = repo_id

    @property
    def url(self) -> str:
        return f"{self.api.endpoint}/datasets/{self.id}"

    def persist(self, call: Callable[[], T], doing: str, go_on: str = _SAFE) -> T:
        return persist(call, doing, secrets=self.secrets, go_on=go_on)

    def settle(self, private: bool) -> None:
        """See that the repository is there, and is not public where it should be private."""
        if "/" not in self.id:
            self.id = f"{self.persist(self.api.whoami, 'asking for the name of the token')['name']}/{self.id}"
        is_private = self.persist(lambda: self._make(private), f"opening {self.id}")
        if private and not is_private:
            raise ValueError(
                f"{self.id} exists and is public: nothing was sent. Say private=False (on the command line --public) "
                "if everybody may see these clips, or name another repository"
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
            return self.api.repo_info(self.id, repo_type="dataset").private is True
        except RepositoryNotFoundError as error:
            if error.response.status_code == 401:  # the Hub says of a repository that it shows nobody, too
                raise
        self.api.create_repo(self.id, repo_type="dataset", private=private)
        return private

    def card(self) -> Any:
        """The card that is there now, never one from the cache."""
        from huggingface_hub import DatasetCard
        from huggingface_hub.errors import EntryNotFoundError

        def read() -> Any:
            commit = self.api.repo_info(self.id, repo_type="dataset").sha
            try:
                path = self.api.hf_hub_download(self.id, "README.md", repo_type="dataset", revision=commit)
            except EntryNotFoundError:
                return DatasetCard("---\n{}\n---\n")
            return DatasetCard(Path(path).read_text(encoding="utf-8"), ignore_metadata_errors=True)

        return self.persist(read, f"reading the card of {self.id}")

    def push_card(
        self,
        card: Card,
        *,
        data: Callable[[], list[Any]] = list,
        stale: Callable[[str], bool] = lambda path: False,
    ) -> None:
        """The card, its pictures and some data in one commit, which removes what is stale of an earlier push."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        from .cards import PICTURES

        text = scrub(card.text, self.secrets)
        refused = self.persist(lambda: _refused(text), f"checking the card of {self.id}")
        if refused:
            message = f"the Hub does not accept the card's metadata (400): {refused} What was sent is at {self.url}"
            raise HubError(scrub(message, self.secrets), 400)

        def commit() -> None:
            there = set(self.api.list_repo_files(self.id, repo_type="dataset"))
            additions = [*data(), CommitOperationAdd("README.md", text.encode())]
            additions += [CommitOperationAdd(path, content) for path, content in card.files.items()]
            kept = {addition.path_in_repo for addition in additions}
            gone = [path for path in sorted(there - kept) if stale(path) or path in PICTURES]
            self.api.create_commit(
                self.id,
                [*additions, *(CommitOperationDelete(path) for path in gone)],
                repo_type="dataset",
                commit_message="Upload card" if data is list else "Upload index",
            )

        self.persist(commit, f"pushing the {'card' if data is list else 'index'} to {self.id}")


def _refused(text: str) -> str:
    """Why the Hub's validator does not accept a card; empty if it does."""
    from huggingface_hub import DatasetCard

    try:
        DatasetCard(text).validate()
    except ValueError as error:
        return " ".join(str(error).split()).rstrip(".") + "."
    return ""
