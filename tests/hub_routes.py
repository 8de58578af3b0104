"""What the loopback Hub answers, without the HTTP: repositories in memory, and a method for every route.

Access as on the Hub: a private or missing repository is 401 without a token and 404 with another user's; writing is
403 with a token that only reads, or in another's namespace; an unknown token is 401. What goes to the storage is
signed and carries no token. Objects are stored by their digest: a batch gives no upload action for one that is there.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple
from urllib.parse import parse_qs, quote, urlencode

from tests.hub_validation import header as card_header
from tests.hub_validation import validate

#: Token: its user, and whether it may write.
TOKENS = {"hf_test_write": ("tester", True), "hf_test_read": ("tester", False), "hf_test_other": ("other", True)}
#: What goes by git-LFS whatever its size: of the Hub's own .gitattributes, and .features of the project's indexes.
LFS_SUFFIXES = (".parquet", ".arrow", ".mp4", ".webm", ".png", ".jpg", ".npy", ".safetensors", ".bin", ".features")
_REPO = r"(?P<kind>models|datasets)/(?P<repo>[^/]+(?:/[^/]+)?)"
_FILES = r"/(?:(?P<kind>datasets)/)?(?P<repo>[^/]+(?:/[^/]+)?)"
#: Name, method and path of every route; `fail` and `drop` take the name.
ROUTES = [
    ("whoami", "GET", r"/api/whoami-v2"),
    ("create", "POST", r"/api/repos/create"),
    ("delete", "DELETE", r"/api/repos/delete"),
    ("validate", "POST", r"/api/validate-yaml"),
    ("settings", "PUT", rf"/api/{_REPO}/settings"),
    ("refs", "GET", rf"/api/{_REPO}/refs"),
    ("branch", "POST", rf"/api/{_REPO}/branch/(?P<revision>[^/]+)"),
    ("commits", "GET", rf"/api/{_REPO}/commits/(?P<revision>[^/]+)"),
    ("tree", "GET", rf"/api/{_REPO}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?"),
    ("paths", "POST", rf"/api/{_REPO}/paths-info/(?P<revision>[^/]+)"),
    ("preupload", "POST", rf"/api/{_REPO}/preupload/(?P<revision>[^/]+)"),
    ("commit", "POST", rf"/api/{_REPO}/commit/(?P<revision>[^/]+)"),
    ("info", "GET", rf"/api/{_REPO}(?:/revision/(?P<revision>[^/]+))?"),
    ("batch", "POST", rf"{_FILES}\.git/info/lfs/objects/batch"),
    ("resolve", "GET|HEAD", rf"{_FILES}/resolve/(?P<revision>[^/]+)/(?P<path>.+)"),
    ("upload", "PUT", r"/storage/(?P<oid>[0-9a-f]{64})(?:/(?P<part>\d+))?"),
    ("complete", "POST", r"/storage/(?P<oid>[0-9a-f]{64})/complete"),
    ("verify", "POST", r"/storage/(?P<oid>[0-9a-f]{64})/verify"),
]


class Reply(NamedTuple):
    status: int
    body: Any = b""
    headers: dict[str, str] = {}  # noqa: RUF012


class Refused(Exception):
    """Ends a request with an error as the Hub words it: `code` is what the client decides by."""

    def __init__(self, status: int, message: str, code: str | None = None):
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.reply = Reply(status, {"error": message}, headers)


@dataclass
class Call:
    """A request that has arrived, as a route sees it: `parts` are the groups of the route's path."""

    method: str
    parts: dict[str, str | None]
    query: dict[str, str]
    headers: Any
    body: bytes
    user: str | None = None
    writes: bool = False

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class File(NamedTuple):
    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def blob(self) -> str:
        """The id that git gives what it stores: the file, or the pointer to it."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
        stored = pointer.encode() if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.blob


class Commit(NamedTuple):
    oid: str
    parent: str | None
    title: str
    message: str
    date: str
    author: str
    files: dict[str, File]


@dataclass
class Repo:
    """A repository: commits by id, branches by name."""

    id: str
    kind: str
    owner: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, File], title: str, message: str, author: str) -> Commit:
        date = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        made = Commit(secrets.token_hex(20), self.branches.get(branch), title, message, date, author, files)
        self.commits[made.oid] = made
        self.branches[branch] = made.oid
        return made

    def at(self, revision: str | None) -> Commit:
        name = (revision or "main").removeprefix("refs/heads/")
        found = self.commits.get(self.branches.get(name, name))
        if found is None:
            raise Refused(404, f"Invalid rev id: {name}", "RevisionNotFound")
        return found


class Hub:
    """The state of a Hub and its answers. `url`: its address; the other arguments are those of `HubServer`."""

    def __init__(self, url: str, part_size: int | None, page_size: int):
        self.url, self.part_size, self.page_size = url, part_size, page_size
        self.uploads: list[str] = []
        self.repos: dict[tuple[str, str], Repo] = {}
        self._objects: dict[str, bytes] = {}
        self._parts: dict[str, dict[int, bytes]] = {}
        self._signatures: set[str] = set()

    def answer(self, route: str, call: Call) -> Reply:
        try:
            token = re.fullmatch(r"Bearer (.*)", call.headers.get("Authorization") or "")
            if token and token[1] not in TOKENS:
                raise Refused(401, "Invalid credentials in Authorization header")
            call.user, call.writes = TOKENS[token[1]] if token else (None, False)
            if route == "unknown":
                raise Refused(404, "Sorry, we can't find the page you are looking for.")
            return getattr(self, f"_{route}")(call)
        except Refused as refused:
            return refused.reply

    def _find(self, call: Call, write: bool = False) -> Repo:
        """The repository that a request is about, if its sender may see it, and write where it asks to."""
        kind = (call.parts.get("kind") or "models").removesuffix("s")
        repo = self.repos.get((kind, str(call.parts["repo"])))
        if repo is None or (repo.private and repo.owner != call.user):
            if call.user is None:
                raise Refused(401, "Invalid username or password.", "RepoNotFound")
            raise Refused(404, "Repository not found", "RepoNotFound")
        if write:
            self._may_write(call, repo.owner)
        return repo

    def _may_write(self, call: Call, owner: str) -> None:
        if call.user is None:
            raise Refused(401, "Invalid username or password.")
        if not call.writes or call.user != owner:
            raise Refused(403, f"You don't have the rights to write in the namespace {owner!r}")

    def _page(self, call: Call, path: str, items: list[Any], size: int) -> Reply:
        """A page of a list, with the address of the next one."""
        start = int(call.query.get("cursor", 0))
        query = urlencode(call.query | {"cursor": start + size})
        link = f'<{self.url}/api/{quote(path)}?{query}>; rel="next"'
        return Reply(200, items[start : start + size], {"Link": link} if start + size < len(items) else {})

    # Repositories

    def _whoami(self, call: Call) -> Reply:
        if call.user is None:
            raise Refused(401, "Invalid username or password.")
        access = {"displayName": "test", "role": "write" if call.writes else "read"}
        return Reply(200, {"type": "user", "name": call.user, "orgs": [], "auth": {"accessToken": access}})

    def _named(self, call: Call) -> tuple[str, str, str]:
        """Kind, id and owner of the repository that a body names."""
        given = call.json
        owner = given.get("organization") or call.user or ""
        return given.get("type") or "model", f"{owner}/{given['name']}", owner

    def _create(self, call: Call) -> Reply:
        kind, repo_id, owner = self._named(call)
        self._may_write(call, owner)
        url = f"{self.url}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
        if (kind, repo_id) in self.repos:
            error = f"You already created this {kind} repo"
            return Reply(409, {"error": error, "url": url, "id": repo_id}, {"X-Error-Message": error})
        private = call.json.get("visibility") == "private" or bool(call.json.get("private"))
        repo = self.repos[kind, repo_id] = Repo(repo_id, kind, owner, private)
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LFS_SUFFIXES)
        repo.commit("main", {".gitattributes": File(attributes.encode(), False)}, "initial commit", "", owner)
        return Reply(200, {"url": url, "name": repo_id, "id": repo_id, "private": private})

    def _delete(self, call: Call) -> Reply:
        kind, repo_id, _ = self._named(call)
        call.parts.update(kind=f"{kind}s", repo=repo_id)
        self._find(call, write=True)
        del self.repos[kind, repo_id]
        return Reply(200)

    def _settings(self, call: Call) -> Reply:
        repo = self._find(call, write=True)
        if "visibility" in call.json or "private" in call.json:
            repo.private = call.json.get("visibility") == "private" or bool(call.json.get("private"))
        return Reply(200, {"private": repo.private})

    def _info(self, call: Call) -> Reply:
        repo = self._find(call)
        commit = repo.at(call.parts["revision"])
        siblings = []
        for path, file in sorted(commit.files.items()):
            sibling: dict[str, Any] = {"rfilename": path}
            if call.query.get("blobs", "").lower() == "true":
                sibling |= {"size": len(file.data), "blobId": file.blob}
                if file.lfs:
                    sibling["lfs"] = {"size": len(file.data), "sha256": file.sha256, "pointerSize": 130}
            siblings.append(sibling)
        card, _ = card_header(commit.files.get("README.md", File(b"", False)).data.decode(errors="replace"))
        about = {"id": repo.id, "author": repo.owner, "sha": commit.oid, "lastModified": commit.date}
        state = {"private": repo.private, "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": []}
        return Reply(200, about | state | {"siblings": siblings} | ({"cardData": card} if card else {}))

    def _refs(self, call: Call) -> Reply:
        branches = self._find(call).branches.items()
        listed = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid} for name, oid in branches]
        return Reply(200, {"branches": listed, "converts": [], "tags": []})

    def _branch(self, call: Call) -> Reply:
        repo, name = self._find(call, write=True), str(call.parts["revision"])
        if name in repo.branches:
            raise Refused(409, f"Reference already exists: refs/heads/{name}")
        given = call.json if call.body else {}
        repo.branches[name] = repo.at(given.get("startingPoint")).oid
        return Reply(201, {})

    def _commits(self, call: Call) -> Reply:
        repo = self._find(call)
        commit: Commit | None = repo.at(call.parts["revision"])
        commit_id, listed = repo.at(call.parts["revision"]).oid, []
        while commit is not None:
            about = {"id": commit.oid, "title": commit.title, "message": commit.message, "date": commit.date}
            listed.append(about | {"authors": [{"user": commit.author}]})
            commit = repo.commits.get(commit.parent or "")
        return self._page(call, f"{repo.kind}s/{repo.id}/commits/{commit_id}", listed, self.page_size)

    # Files

    def _entries(self, commit: Commit, expand: bool) -> dict[str, dict[str, Any]]:
        """Every file and folder of a commit, by path."""
        entries: dict[str, dict[str, Any]] = {}
        last = {"id": commit.oid, "title": commit.title, "date": commit.date}
        more = {"lastCommit": last, "securityFileStatus": None} if expand else {}
        for path, file in commit.files.items():
            for end in [i for i, letter in enumerate(path) if letter == "/"]:
                oid = hashlib.sha1(path[:end].encode()).hexdigest()
                entries[path[:end]] = {"type": "directory", "oid": oid, "size": 0, "path": path[:end]} | more
            entry = {"type": "file", "oid": file.blob, "size": len(file.data), "path": path} | more
            if file.lfs:
                entry["lfs"] = {"oid": file.sha256, "size": len(file.data), "pointerSize": 130}
            entries[path] = entry
        return dict(sorted(entries.items()))

    def _tree(self, call: Call) -> Reply:
        repo, folder = self._find(call), (call.parts["path"] or "").strip("/")
        expand = call.query.get("expand", "").lower() in ("true", "1")
        commit = repo.at(call.parts["revision"])
        entries = self._entries(commit, expand)
        if folder and entries.get(folder, {}).get("type") != "directory":
            raise Refused(404, f"{folder} does not exist on {call.parts['revision']!r}", "EntryNotFound")
        prefix = f"{folder}/" if folder else ""
        inside = [entry for path, entry in entries.items() if path.startswith(prefix)]
        if call.query.get("recursive", "").lower() not in ("true", "1"):
            inside = [entry for entry in inside if "/" not in entry["path"][len(prefix) :]]
        path = f"{repo.kind}s/{repo.id}/tree/{commit.oid}" + (f"/{folder}" if folder else "")
        return self._page(call, path, inside, min(self.page_size, 50) if expand else self.page_size)

    def _paths(self, call: Call) -> Reply:
        given = parse_qs(call.body.decode())
        entries = self._entries(self._find(call).at(call.parts["revision"]), given.get("expand") == ["true"])
        return Reply(200, [entries[path] for path in given.get("paths", []) if path in entries])

    def _resolve(self, call: Call) -> Reply:
        commit, path = self._find(call).at(call.parts["revision"]), str(call.parts["path"])
        file = commit.files.get(path)
        if file is None:
            raise Refused(404, "Entry not found", "EntryNotFound")
        headers = {"ETag": f'"{file.etag}"', "X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes"}
        if file.lfs:
            headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.data))}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", call.headers.get("Range") or "")
        if asked is None or not any(asked.groups()):
            return Reply(200, file.data, headers)
        size = len(file.data)
        first = int(asked[1]) if asked[1] else max(0, size - int(asked[2]))
        last = min(int(asked[2]), size - 1) if asked[1] and asked[2] else size - 1
        if first > last:
            return Reply(416, b"", {"Content-Range": f"bytes */{size}"})
        return Reply(206, file.data[first : last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{size}"})

    # Commits

    def _validate(self, call: Call) -> Reply:
        errors, warnings = validate(call.json["content"], call.json.get("repoType") or "model")
        if errors and call.headers.get("Accept") == "text/plain":
            return Reply(400, "\n".join(f"- Error: {text}" for text in errors).encode())
        messages = [[{"message": text} for text in texts] for texts in (errors, warnings)]
        return Reply(400 if errors else 200, dict(zip(("errors", "warnings"), messages, strict=True)))

    def _preupload(self, call: Call) -> Reply:
        there = self._find(call, write=True).at(call.parts["revision"]).files
        files = []
        for asked in call.json["files"]:
            path, sample = asked["path"], base64.b64decode(asked.get("sample") or "")
            lfs = path.endswith(LFS_SUFFIXES) or asked["size"] > 10_000_000 or b"\0" in sample
            answer = {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False}
            files.append(answer | ({"oid": there[path].etag} if path in there else {}))
        return Reply(200, {"files": files})

    def _commit(self, call: Call) -> Reply:
        repo, branch = self._find(call, write=True), str(call.parts["revision"])
        if branch not in repo.branches:
            raise Refused(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        before = repo.at(branch)
        files, about = dict(before.files), {}
        for line in call.body.splitlines():
            key, value = (item := json.loads(line))["key"], item["value"]
            if key == "header":
                about = value
                if value.get("parentCommit") not in (None, before.oid):
                    raise Refused(412, "A commit has happened since. Please refresh and try again.")
            elif key == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), False)
            elif key == "lfsFile":
                if value["oid"] not in self._objects:
                    raise Refused(400, f"The LFS object {value['oid']} of {value['path']} was not uploaded")
                files[value["path"]] = File(self._objects[value["oid"]], True)
            elif key == "copyFile":
                files[value["path"]] = repo.at(value.get("srcRevision") or branch).files[value["srcPath"]]
            elif key in ("deletedFile", "deletedFolder"):
                end = "/" if key == "deletedFolder" else ""
                path = value["path"].rstrip("/")
                gone = [name for name in files if name == path or (end and name.startswith(path + end))]
                if not gone:
                    raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
                for name in gone:
                    del files[name]
        if files.get("README.md") != before.files.get("README.md") and "README.md" in files:
            errors, _ = validate(files["README.md"].data.decode(), repo.kind)
            if errors:
                raise Refused(400, "Your push was rejected, the card's metadata is invalid: " + "; ".join(errors))
        made = repo.commit(branch, files, about.get("summary", ""), about.get("description", ""), str(call.user))
        url = f"{self.url}/{'datasets/' if repo.kind == 'dataset' else ''}{repo.id}/commit/{made.oid}"
        return Reply(200, {"success": True, "commitOid": made.oid, "commitUrl": url})

    # Large files

    def _signed(self, path: str) -> str:
        self._signatures.add(signature := secrets.token_hex(8))
        return f"{self.url}/storage/{path}?signature={signature}"

    def _batch(self, call: Call) -> Reply:
        self._find(call, write=True)
        objects = []
        for asked in call.json["objects"]:
            oid, size = asked["oid"], asked["size"]
            answer: dict[str, Any] = {"oid": oid, "size": size}
            if oid not in self._objects:
                upload: dict[str, Any] = {"href": self._signed(oid)}
                if self.part_size is not None and size > self.part_size:
                    count = -(-size // self.part_size)
                    parts = {str(n): self._signed(f"{oid}/{n}") for n in range(1, count + 1)}
                    header = {"chunk_size": str(self.part_size)} | parts
                    upload = {"href": self._signed(f"{oid}/complete"), "header": header}
                answer["actions"] = {"upload": upload, "verify": {"href": f"{self.url}/storage/{oid}/verify"}}
            objects.append(answer)
        return Reply(200, {"transfer": "basic", "objects": objects})

    def _store(self, oid: str, data: bytes) -> None:
        if hashlib.sha256(data).hexdigest() != oid:
            raise Refused(400, f"the bytes that came do not have the digest {oid}")
        self._objects[oid] = data
        self.uploads.append(oid)

    def _upload(self, call: Call) -> Reply:
        oid, part = str(call.parts["oid"]), call.parts["part"]
        if call.query.get("signature") not in self._signatures:
            raise Refused(403, "AccessDenied: the signature is unknown")
        if part is None:
            self._store(oid, call.body)
        else:
            self._parts.setdefault(oid, {})[int(part)] = call.body
        return Reply(200, b"", {"ETag": f'"{hashlib.md5(call.body).hexdigest()}"'})

    def _complete(self, call: Call) -> Reply:
        oid = str(call.parts["oid"])
        if oid in self._objects:  # said before; the answer was lost
            return Reply(200, {})
        parts = self._parts.get(oid, {})
        etags = {n: f'"{hashlib.md5(data).hexdigest()}"' for n, data in parts.items()}
        if {part["partNumber"]: part["etag"] for part in call.json["parts"]} != etags:
            raise Refused(400, "the parts named are not those that were uploaded")
        self._store(oid, b"".join(parts[n] for n in sorted(parts)))
        return Reply(200, {})

    def _verify(self, call: Call) -> Reply:
        if call.user is None:
            raise Refused(401, "Invalid username or password.")
        if len(self._objects.get(call.json["oid"], b"")) != call.json["size"]:
            raise Refused(404, "the object is not there in that size")
        return Reply(200, {})
