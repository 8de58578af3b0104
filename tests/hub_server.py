"""A loopback Hugging Face Hub, for the real clients (huggingface_hub, datasets) in a process of their own.

    with HubServer() as hub:
        subprocess.run([sys.executable, "-c", code], env=hub.environment(tmp_path / "home"), check=True)
        hub.files("tester/clips")["README.md"]

It keeps everything in memory and implements, for datasets and models: whoami, create, delete, settings, info, refs,
branches, commits, tree, paths-info, preupload, commit, resolve with ranges, git-LFS batch, upload (whole and in parts)
and verify (`tests.hub_routes`, which also says who may do what), and validate-yaml (`tests.hub_validation`). Here are
the HTTP, the faults and the log.

Not here: Xet, Spaces, pull requests, tags, gated repositories, .gitignore, organizations, limits of rate, the dataset
viewer; a large file is served by `resolve` itself, where the Hub redirects to a CDN.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_routes import ROUTES, Call, Hub, Refused, Repo


class Request(NamedTuple):
    """A request: its path with the query, status 0 where the connection was dropped, bytes of the body that came."""

    method: str
    path: str
    status: int
    received: int


@dataclass
class _Fault:
    """What happens to the next `times` requests of a route."""

    route: str | Callable[[str, str], bool]
    times: int
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    message: str = ""
    after_bytes: int | None = None

    def meets(self, name: str, method: str, path: str) -> bool:
        if self.times <= 0:
            return False
        return self.route(method, path) if callable(self.route) else self.route == name


class HubServer:
    """The Hub, while the context is open.

    Args:
        part_size: objects of more bytes are uploaded in parts of that size; None: never.
        page_size: entries of a page of `tree` and `commits` (the Hub: 1000, and 50 with `expand`).

    Attributes:
        url: its address.
        log: every request, in the order in which they ended.
        uploads: digests of the objects that were stored, in order.
    """

    def __init__(self, *, part_size: int | None = None, page_size: int = 1000):
        self.log: list[Request] = []
        self._arrivals: list[tuple[str, float]] = []
        self._faults: list[_Fault] = []
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_of": self}))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._hub = Hub(self.url, part_size, page_size)
        self.uploads = self._hub.uploads

    def __enter__(self) -> HubServer:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: str | os.PathLike[str], token: str | None = "hf_test_write") -> dict[str, str]:
        """What a process runs under whose clients talk to this server alone. `home`: a fresh folder, for HF_HOME."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        switches = {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "0"}
        given = {} if token is None else {"HF_TOKEN": token}
        return kept | {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1"} | switches | given

    def repo(self, repo_id: str, kind: str | None = None) -> Repo:
        """The repository of that id; `kind` ("dataset" or "model") where both have it."""
        found = [repo for (k, i), repo in self._hub.repos.items() if i == repo_id and kind in (None, k)]
        if len(found) != 1:
            raise KeyError(f"{len(found)} repositories are called {repo_id}; there are {sorted(self._hub.repos)}")
        return found[0]

    def files(self, repo_id: str, kind: str | None = None, revision: str = "main") -> dict[str, bytes]:
        """What a repository holds, by path."""
        return {path: file.data for path, file in self.repo(repo_id, kind).at(revision).files.items()}

    def fail(
        self,
        route: str | Callable[[str, str], bool],
        status: int,
        times: int = 1,
        headers: dict[str, str] | None = None,
        message: str = "a fault of the test",
    ) -> None:
        """Refuse the next `times` requests of a route (its name, or a predicate of method and path), undone."""
        self._faults.append(_Fault(route, times, status, headers or {}, message))

    def drop(self, route: str | Callable[[str, str], bool], after_bytes: int | None = 0, times: int = 1) -> None:
        """Close the connection of the next `times` requests of a route.

        `after_bytes`: of the request's body, or of the answer's where the request has none. None, or no body at all:
        the request is done and its answer lost.
        """
        self._faults.append(_Fault(route, times, after_bytes=after_bytes))

    def arrivals(self, route: str) -> list[float]:
        """When the requests of a route came (time.monotonic): how many, and how long a client waited between."""
        return [at for name, at in self._arrivals if name == route]

    def _arrived(self, route: str, method: str, path: str) -> _Fault | None:
        """Note a request; what is to go wrong with it."""
        with self._lock:
            self._arrivals.append((route, time.monotonic()))
            fault = next((fault for fault in self._faults if fault.meets(route, method, path)), None)
            if fault is not None:
                fault.times -= 1
            return fault


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that went away is no fault of the server
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """HTTP alone: reads a request, asks the Hub, writes its answer, and breaks connections as the faults say."""

    server_of: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def _body(self, most: int | None) -> bytes:
        """The request's body, or its first bytes."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            length = int(self.headers.get("Content-Length") or 0)
            return self.rfile.read(length if most is None else min(most, length))
        data = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            if most is not None and len(data) + size > most:
                return data + self.rfile.read(most - len(data))
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _serve(self) -> None:
        url = urlsplit(self.path)
        route, parts = _route(self.command, url.path)
        fault = self.server_of._arrived(route, self.command, url.path)
        dropped = fault is not None and not fault.status
        has_body = "Content-Length" in self.headers or "Transfer-Encoding" in self.headers
        cut = fault.after_bytes if fault is not None else None
        body = self._body(cut if has_body else None)
        if dropped and has_body and cut is not None:
            return self._hang_up(body, b"")
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        if fault is not None and fault.status:
            reply = Refused(fault.status, fault.message).reply
            reply = reply._replace(headers=reply.headers | fault.headers)
        else:
            with self.server_of._lock:
                reply = self.server_of._hub.answer(route, Call(self.command, parts, query, self.headers, body))
        raw = isinstance(reply.body, bytes)
        data = reply.body if raw else json.dumps(reply.body).encode()
        headers = {"Content-Type": "application/octet-stream" if raw else "application/json; charset=utf-8"}
        headers |= {"Content-Length": str(len(data)), "X-Request-Id": secrets.token_hex(4)} | reply.headers
        head = f"HTTP/1.1 {reply.status} {self.responses.get(reply.status, ('',))[0]}\r\n"
        head += "".join(f"{key}: {value}\r\n" for key, value in headers.items()) + "\r\n"
        sent = b"" if self.command == "HEAD" else data
        if dropped:
            return self._hang_up(body, head.encode() + sent[:cut] if cut is not None and sent else b"")
        self.server_of.log.append(Request(self.command, self.path, reply.status, len(body)))
        self.wfile.write(head.encode() + sent)

    def _hang_up(self, body: bytes, said: bytes) -> None:
        """Say what was to be said, and close: with a reset where nothing was said, so that no client waits."""
        self.server_of.log.append(Request(self.command, self.path, 0, len(body)))
        self.wfile.write(said)
        if not said:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve


def _route(method: str, path: str) -> tuple[str, dict[str, str | None]]:
    """The name of the route of a request, and the parts of its path."""
    for name, methods, pattern in ROUTES:
        found = re.fullmatch(pattern, path)
        if found and method in methods.split("|"):
            return name, {key: value and unquote(value) for key, value in found.groupdict().items()}
    return "unknown", {}
