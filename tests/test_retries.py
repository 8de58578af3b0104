"""What is tried again, for how long, and what an error says: on real responses of the real HTTP library."""

from __future__ import annotations

import logging
import time
from email.utils import formatdate

import pytest

from hf_motive.hub import retries
from hf_motive.hub.retries import HubError, persist, scrub

TOKEN = "hf_" + "Secret" * 5


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """The seconds that are waited, without waiting."""
    seconds: list[float] = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


def answer(status: int, **headers: str):
    """Raise what the client raises on a reply of the Hub."""
    from huggingface_hub import errors
    from huggingface_hub.utils import hf_raise_for_status

    library = __import__(errors.HTTPError.__module__.split(".")[0])
    request = library.Request("GET", "https://huggingface.co/api/datasets/me/x", headers={"authorization": TOKEN})
    said = {name.replace("_", "-"): value for name, value in headers.items()}
    hf_raise_for_status(library.Response(status, headers=said, json={"error": f"no {TOKEN}"}, request=request))


def attempt(call, secrets=(TOKEN,)):
    return persist(call, "pushing", secrets=secrets, go_on="Go on.")


def failing(times: int, status: int, **headers: str):
    calls = []

    def call():
        calls.append(status)
        if len(calls) <= times:
            answer(status, **headers)
        return "done"

    call.calls = calls
    return call


@pytest.mark.parametrize("status", [408, 409, 412, 429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(status, waits, caplog):
    with caplog.at_level(logging.WARNING):
        assert attempt(failing(4, status)) == "done"
    assert waits == [1, 2, 4, 8]
    assert len(caplog.records) == 4 and f"pushing: {status}" in caplog.text
    assert "Attempt 2 of 5 follows in 1 s" in caplog.text and TOKEN not in caplog.text


@pytest.mark.parametrize(
    "status, said",
    [
        (400, "not acceptable"),
        (401, "hf auth login"),
        (403, "write permission"),
        (404, "check the id"),
        (418, "refuse"),
    ],
)
def test_what_stays_is_not(status, said, waits):
    call = failing(9, status)
    with pytest.raises(HubError, match=said) as caught:
        attempt(call)
    assert caught.value.status == status and not waits and len(call.calls) == 1
    assert str(caught.value).endswith("Go on.")


def test_it_is_given_up_after_five_attempts(waits):
    call = failing(9, 503)
    with pytest.raises(HubError, match="pushing failed after 5 attempts in .* s: 503 .*the fault is the Hub's"):
        attempt(call)
    assert len(call.calls) == retries.ATTEMPTS == 5 and waits == [1, 2, 4, 8]


def test_the_server_says_how_long_to_wait(waits):
    attempt(failing(1, 429, Retry_After="7"))
    attempt(failing(1, 503, Retry_After=formatdate(time.time() + 100, usegmt=True)))
    attempt(failing(1, 429, RateLimit='"api";r=0;t=55'))
    attempt(failing(1, 429, RateLimit='"api";r=3;t=55'))
    assert waits[0] == 7 and 98 <= waits[1] <= 100 and waits[2:] == [56, 1]
    with pytest.raises(HubError, match="wait 3600 s"):
        attempt(failing(1, 429, Retry_After="3600"))


def test_wrapped_faults_are_understood():
    """The client raises RuntimeError about an upload, and "not in the cache" about a lost connection."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    def upload():
        try:
            answer(403)
        except OSError as error:
            raise RuntimeError("Error while uploading") from error

    with pytest.raises(HubError) as caught:
        attempt(upload)
    assert caught.value.status == 403

    def download():
        try:
            raise ConnectionResetError("reset by peer")
        except OSError as error:
            raise LocalEntryNotFoundError("check your connection") from error

    with pytest.raises(HubError, match="no connection .*reset by peer.* check the network"):
        attempt(download)


def test_offline_mode_is_not_waited_for(waits):
    from huggingface_hub.errors import OfflineModeIsEnabled

    def call():
        raise OfflineModeIsEnabled("offline")

    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        attempt(call)
    assert not waits


def test_other_errors_are_raised_as_they_are():
    for error in (ValueError("no column"), OSError(28, "No space left on device"), KeyError("x")):

        def call(error=error):
            raise error

        with pytest.raises(type(error)) as caught:
            attempt(call)
        assert caught.value is error


def test_a_token_in_an_error_of_any_kind_is_cut_out():
    """Such as that of the HTTP library about a token that was read with its newline."""
    from huggingface_hub import errors

    library = __import__(errors.HTTPError.__module__.split(".")[0])

    def header():
        raise library.LocalProtocolError(f"Illegal header value b'Bearer {TOKEN}\\n'")

    def other():
        try:
            raise KeyError(TOKEN)
        except KeyError as error:
            raise ValueError("no such thing") from error

    for call in (header, other, lambda: answer(403)):
        with pytest.raises(HubError) as caught:
            attempt(call)
        error = caught.value
        assert TOKEN not in str(error) and error.__cause__ is None and error.__context__ is None


@pytest.mark.parametrize(
    "text, cut",
    [
        ("Bearer abc.def, said the log", "Bearer [token], said the log"),
        (f"as {TOKEN}, twice {TOKEN}", "as [token], twice [token]"),
        ("https://user:pass@host/x", "https://[token]@host/x"),
        (f"hf_{'a' * 20}, in Markdown hf\\_{'b' * 20}", "[token], in Markdown [token]"),
        ("my-own, in Markdown my\\-own", "[token], in Markdown [token]"),
        ("hf_motive and hf_transfer stay", "hf_motive and hf_transfer stay"),
    ],
)
def test_tokens_are_cut_out_of_texts(text, cut):
    assert scrub(text, [TOKEN, "my-own"]) == cut


def test_signatures_of_addresses_are_cut_off(caplog):
    def call():
        raise ConnectionResetError("reset by https://storage.example/object?X-Amz-Signature=abc, once")

    with pytest.raises(HubError) as caught:
        attempt(call)
    assert "reset by https://storage.example/object once" in str(caught.value)
    assert "X-Amz" not in str(caught.value) + caplog.text


def test_hub_errors_cross_processes():
    import pickle

    error = pickle.loads(pickle.dumps(HubError("refused", 403)))
    assert (str(error), error.status) == ("refused", 403) and isinstance(error, OSError)


def test_a_token_with_a_letter_that_no_header_holds():
    def call():
        f"Bearer {TOKEN}ä".encode("ascii")

    with pytest.raises(HubError, match="the token has a character that no token has: copy it again. Go on.$") as error:
        attempt(call, secrets=(TOKEN + "ä", TOKEN))
    assert TOKEN not in str(error.value)
