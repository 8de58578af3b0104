"""Calls to the Hub: tried again where that helps, and errors that say how to go on and never show a token."""

from __future__ import annotations

import json
import logging
import os
import re
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")

#: How often a call is made before it is given up.
ATTEMPTS = 5
#: Seconds before the second attempt; each further wait is twice as long, up to `LONGEST_WAIT`.
FIRST_WAIT = 1.0
LONGEST_WAIT = 30.0
#: The longest wait, in seconds, that is granted to a server which asks for one by `Retry-After`.
LONGEST_ASKED = 300.0

#: What is worth another attempt: a commit at the same time, a moved parent, too many requests, a server's fault.
_TRANSIENT = {408, 409, 412, 429, 500, 502, 503, 504}
_TOKEN = re.compile(r"\bhf\\?_[A-Za-z0-9]{20,}|(?<=Bearer )[^\s'\",;)]+|(?<=://)[^/\s@]+(?=@)")
# What follows the path of an address: of an upload's it is the signature that lets anybody use it.
_QUERY = re.compile(r"(https?://[^\s'\"?]+)\?[^\s'\"]*")


class HubError(OSError):
    """What the Hub, or the way to it, refused: what happened and how to go on, in a sentence or two, without tokens.

    Attributes:
        status: The HTTP status, or None where there was no answer.
    """

    def __init__(self, message: str, status: int | None = None):
        super().__init__(message)
        self.status = status

    def __reduce__(self):
        return type(self), (self.args[0], self.status)


def secrets_of(token: str | bool | None) -> tuple[str, ...]:
    """Every token that this process might send, longest first: the argument's, the environment's, the stored one."""
    from huggingface_hub import get_token

    names = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
    known = [token if isinstance(token, str) else None, get_token(), *(os.environ.get(name) for name in names)]
    return tuple(sorted({secret.strip() for secret in known if secret and secret.strip()}, key=len, reverse=True))


def scrub(text: str, secrets: Sequence[str]) -> str:
    """The text without the secrets, escaped for Markdown or not, and without whatever else looks like a token."""
    for secret in secrets:
        spelled = "".join(char if char.isalnum() else rf"\\?{re.escape(char)}" for char in secret)
        text = re.sub(spelled, "[token]", text)
    return _TOKEN.sub("[token]", text)


def persist(call: Callable[[], T], doing: str, *, secrets: Sequence[str], go_on: str) -> T:
    """Make a call that may be made again, up to `ATTEMPTS` times.

    Tried again are lost connections, 408, 409, 412, 429 and 5xx, after 1, 2, 4 and 8 seconds, or as `Retry-After` asks
    if that is up to 300 seconds. The client itself tries uploads, downloads and listings six times within 23 seconds
    (and asks the same of `Retry-After`) before that counts as one attempt here; infos, cards and commits it does not.
    So an outage is sat out for 15 seconds at least and about two minutes at most. Each wait is said through
    `logging`. 400, 401, 403 and 404 fail at once.

    Args:
        call: What to do. It must be able to follow on a part of itself.
        doing: What it does, as in "pushing the clips to me/clips".
        secrets: What no message may show.
        go_on: The last sentence of an error: what is safe, and what to do next.

    Raises:
        HubError: the Hub refused, or could not be reached. What else goes wrong is raised as it is.
    """
    began = time.monotonic()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call()
        except HubError:
            raise
        except Exception as error:
            fault = _fault(error)
            if fault is None:
                shown = " ".join(f"{link} {link.args!r}" for link in _chain(error))
                if not any(secret in shown for secret in secrets):
                    raise
                fault = _Fault(None, f"{type(error).__name__}: {_one_line(str(error))}", transient=False)
                if isinstance(error, UnicodeEncodeError):
                    fault.remedy = "the token has a character that no token has: copy it again."
        # Outside of `except`, so that the error carries no chain: a request, with its headers, hangs on it.
        wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1)) if fault.asked is None else fault.asked
        if not fault.transient or attempt == ATTEMPTS or wait > LONGEST_ASKED:
            tried = f" after {attempt} attempts in {time.monotonic() - began:.0f} s" if attempt > 1 else ""
            message = f"{doing} failed{tried}: {fault.sentence(bool(secrets))} {go_on}".rstrip()
            raise HubError(_QUERY.sub(r"\1", scrub(message, secrets)), fault.status)
        what = _QUERY.sub(r"\1", scrub(fault.what, secrets))
        logger.warning("%s: %s. Attempt %d of %d follows in %.0f s", doing, what, attempt + 1, ATTEMPTS, wait)
        time.sleep(wait)
    raise AssertionError("unreachable")


@dataclass
class _Fault:
    """What went wrong between us and the Hub. `asked`: the seconds that the server asks to wait, if it does."""

    status: int | None
    what: str
    transient: bool
    asked: float | None = None
    said: str = ""
    remedy: str = "check the network and HF_ENDPOINT."

    def sentence(self, has_token: bool) -> str:
        said = f" ({self.said})" if self.said else ""
        if self.status == 401 and not has_token:
            return f"the Hub asks for a login{said}: run `hf auth login`, set HF_TOKEN, or pass token=."
        remedies = {
            400: "what was sent is not acceptable to it.",
            401: "the token is invalid, or it is missing: run `hf auth login`, set HF_TOKEN, or pass token=.",
            403: "the token lacks the permission, write permission for a push: give it at "
            "https://huggingface.co/settings/tokens, or choose a namespace of yours.",
            404: "there is no such repository or revision, or the token may not see it: check the id, its namespace "
            "and the revision.",
            409: "the repository is being changed by another commit: wait until that has ended.",
            412: "the repository was changed by another commit meanwhile.",
            429: "too many requests"
            + (f": wait {self.asked:.0f} s." if self.asked is not None else ": wait some minutes."),
        }
        if self.status is None:
            return f"{self.what}: {self.remedy}"
        remedy = remedies.get(self.status)
        if remedy is None:
            remedy = "the fault is the Hub's: try later." if self.status >= 500 else "the Hub refuses it."
        return f"{self.what}{said}: {remedy}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and those that led to it: clients wrap what happened, in RuntimeError or in "not found"."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _fault(error: BaseException) -> _Fault | None:
    """What of the chain concerns the network; None if nothing does."""
    from huggingface_hub.errors import HfHubHTTPError, HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    for link in _chain(error):
        if isinstance(link, OfflineModeIsEnabled):
            return _Fault(
                None, "offline mode is set (HF_HUB_OFFLINE=1)", transient=False, remedy="unset it to go there."
            )
        if isinstance(link, LocalTokenNotFoundError):
            return _Fault(401, "401 Unauthorized", transient=False)
        response = getattr(link, "response", None)
        if isinstance(link, HfHubHTTPError) and response is not None:
            status = int(response.status_code)
            # Of a refused card the client says more in the error that it raises than in the one that it got.
            said = _one_line(str(error) if isinstance(error, ValueError) else link.server_message or "")
            what = f"{status} {getattr(response, 'reason_phrase', '')}".strip()
            return _Fault(status, what, status in _TRANSIENT, _asked(response.headers), said)
        # Any other error of the HTTP library: there was no answer. What our side did wrong stays wrong.
        if isinstance(link, HTTPError) and response is None:
            ours = type(link).__name__ in ("LocalProtocolError", "UnsupportedProtocol", "TooManyRedirects")
            return _Fault(None, f"no connection ({type(link).__name__}: {_one_line(str(link))})", transient=not ours)
        if isinstance(link, (ConnectionError, TimeoutError)):
            return _Fault(None, f"no connection ({type(link).__name__}: {_one_line(str(link))})", transient=True)
        if isinstance(link, json.JSONDecodeError) and _raised_in(link, "huggingface_hub"):
            return _Fault(None, "the answer was not JSON, which is how a gateway reports a fault", transient=True)
        # hf_xet, which is not written in Python, says all in the text of a RuntimeError.
        if isinstance(link, RuntimeError) and re.search(r"CAS service|[Rr]eqwest|Network [Ee]rror", str(link)):
            return _Fault(None, f"no connection ({_one_line(str(link))})", transient=True)
    return None


def _raised_in(error: BaseException, package: str) -> bool:
    frames = traceback.walk_tb(error.__traceback__)
    return any(str(frame.f_globals.get("__name__", "")).split(".")[0] == package for frame, _ in frames)


def _asked(headers: Any) -> float | None:
    """The seconds that the server asks to wait, by Retry-After (seconds or a date) or the Hub's own rate limit."""
    limit = re.search(r"\br\s*=\s*0\s*;\s*t\s*=\s*(\d+)", headers.get("RateLimit") or "")
    if limit is not None:
        return float(limit[1]) + 1
    value = (headers.get("Retry-After") or "").strip()
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):
        return None


def _one_line(text: str, length: int = 300) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
