"""The loopback Hub: the real clients round-trip through it, and every fault that it promises happens."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import subprocess
import sys
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.hub_server import HubServer
from tests.hub_validation import validate

ROUND_TRIPS = """
import json, sys
from pathlib import Path

from datasets import Dataset, load_dataset
from huggingface_hub import CommitOperationCopy, CommitOperationDelete, HfApi, snapshot_download
from huggingface_hub.utils import HfHubHTTPError, RepositoryNotFoundError

api, home = HfApi(), Path(sys.argv[1])
facts = {"me": api.whoami()["name"]}

dataset = Dataset.from_dict({"name": [f"clip {n}" for n in range(40)], "influence": [n / 7 for n in range(40)]})
dataset.push_to_hub("tester/clips", private=True)
facts["private"] = api.dataset_info("tester/clips").private
facts["map"] = load_dataset("tester/clips", split="train").to_dict() == dataset.to_dict()
facts["stream"] = list(load_dataset("tester/clips", split="train", streaming=True)) == list(dataset)
before = api.list_repo_commits("tester/clips", repo_type="dataset")
dataset.push_to_hub("tester/clips", commit_message="again")
facts["commits"] = [len(before), len(api.list_repo_commits("tester/clips", repo_type="dataset"))]
dataset.push_to_hub("tester/clips", revision="draft", split="test")
facts["branches"] = sorted(branch.name for branch in api.list_repo_refs("tester/clips", repo_type="dataset").branches)

api.create_repo("tester/index")
folder = home / "index"
(folder / "shards").mkdir(parents=True)
for n in range(3):
    (folder / "shards" / f"{n}.features").write_bytes(bytes([n]) * 5000)
(folder / "settings.json").write_text("{}")
(folder / "README.md").write_text("---\\nlicense: mit\\n---\\nAn index.\\n")
api.upload_folder(repo_id="tester/index", folder_path=folder)
local = Path(snapshot_download("tester/index"))
facts["same"] = all((local / f.relative_to(folder)).read_bytes() == f.read_bytes() for f in folder.rglob("*.*"))
facts["listed"] = len(list(api.list_repo_tree("tester/index", recursive=True)))
facts["expanded"] = len(list(api.list_repo_tree("tester/index", recursive=True, expand=True)))
facts["paths"] = [(info.path, info.size) for info in api.get_paths_info("tester/index", ["settings.json", "none"])]
copy = CommitOperationCopy("shards/0.features", "shards/3.features")
api.create_commit("tester/index", [copy, CommitOperationDelete("settings.json")], commit_message="a copy, a deletion")
api.update_repo_settings("tester/index", private=True)
try:
    api.create_repo("tester/index")
except HfHubHTTPError as error:
    facts["again"] = error.response.status_code
facts["again, exist_ok"] = api.create_repo("tester/index", exist_ok=True).repo_id
api.create_repo("tester/gone")
api.delete_repo("tester/gone")
try:
    api.model_info("tester/gone")
except RepositoryNotFoundError as error:
    facts["gone"] = error.response.status_code
(folder / "README.md").write_text("---\\nlicense: my own\\n---\\n")
try:
    api.upload_folder(repo_id="tester/index", folder_path=folder)
except ValueError as error:
    facts["card"] = str(error)[:60]
print(json.dumps(facts))
"""


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


def ask(
    hub: HubServer,
    method: str,
    path: str,
    body: Any = None,
    token: str | None = "hf_test_write",
    headers: dict[str, str] | None = None,
) -> tuple[int, dict[str, str], bytes]:
    """One request by the plain client of the standard library."""
    connection = http.client.HTTPConnection(urlsplit(hub.url).netloc, timeout=10)
    sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    given = ({} if token is None else {"Authorization": f"Bearer {token}"}) | (headers or {})
    try:
        connection.request(method, path, sent, given)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def create(hub: HubServer, name: str = "clips", **options: Any) -> int:
    return ask(hub, "POST", "/api/repos/create", {"name": name, "type": "dataset", **options})[0]


def commit(hub: HubServer, *lines: tuple[str, dict[str, Any]], **header: str) -> int:
    """A commit to the dataset tester/clips; each line is a key and a value of the ndjson."""
    items = [("header", {"summary": "a commit", **header}), *lines]
    body = b"\n".join(json.dumps({"key": key, "value": value}).encode() for key, value in items)
    return ask(hub, "POST", "/api/datasets/tester/clips/commit/main", body)[0]


def batch(hub: HubServer, data: bytes) -> dict[str, Any]:
    """What the batch says about an object of the dataset tester/clips."""
    objects = [{"oid": hashlib.sha256(data).hexdigest(), "size": len(data)}]
    answer = ask(hub, "POST", "/datasets/tester/clips.git/info/lfs/objects/batch", {"objects": objects})
    return json.loads(answer[2])["objects"][0]


def put(hub: HubServer, data: bytes) -> int:
    """Upload an object that is not there yet."""
    return ask(hub, "PUT", batch(hub, data)["actions"]["upload"]["href"].removeprefix(hub.url), data, None)[0]


def test_the_real_clients_round_trip(tmp_path):
    with HubServer(part_size=4000, page_size=3) as hub:
        command = [sys.executable, "-c", ROUND_TRIPS, str(tmp_path)]
        done = subprocess.run(command, env=hub.environment(tmp_path / "home"), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        facts = json.loads(done.stdout.splitlines()[-1])
        assert facts == {
            "me": "tester",
            "private": True,
            "map": True,
            "stream": True,
            "commits": [2, 2],  # pushed again, nothing had changed
            "branches": ["draft", "main"],
            "same": True,
            "listed": 7,
            "expanded": 7,
            "paths": [["settings.json", 2]],
            "again": 409,
            "again, exist_ok": "tester/index",
            "gone": 404,
            "card": facts["card"],
        }
        assert facts["card"].startswith("Invalid metadata in README.md.")
        held = hub.files("tester/index")
        assert held["shards/3.features"] == held["shards/0.features"] == bytes(5000)
        assert "settings.json" not in held
        assert hub.repo("tester/index").private and hub.repo("tester/clips").private
        assert len(hub.uploads) == 4  # the rows once, pushed three times; three shards; the copy is none
        assert len(hub.arrivals("complete")) == 3  # the shards came in parts, the rows whole
        assert {request.status for request in hub.log} <= {200, 201, 206, 400, 404, 409}
        assert not any("hf_test" in request.path for request in hub.log)


def test_access(hub):
    assert create(hub, private=True) == 200
    info = "/api/datasets/tester/clips"
    assert {token: ask(hub, "GET", info, token=token)[0] for token in ("hf_test_write", "hf_test_read")} == {
        "hf_test_write": 200,
        "hf_test_read": 200,
    }
    status, headers, _ = ask(hub, "GET", info, token=None)
    assert (status, headers["X-Error-Code"]) == (401, "RepoNotFound")
    status, headers, _ = ask(hub, "GET", info, token="hf_test_other")
    assert (status, headers["X-Error-Code"]) == (404, "RepoNotFound")
    status, headers, _ = ask(hub, "GET", info, token="hf_test_wrong")
    assert (status, headers.get("X-Error-Code")) == (401, None)
    for name, owner, token in [("a", None, "hf_test_read"), ("a", "tester", "hf_test_other")]:
        body = {"name": name, "type": "dataset", "organization": owner}
        assert ask(hub, "POST", "/api/repos/create", body, token)[0] == 403
    assert ask(hub, "PUT", info + "/settings", {"visibility": "public"}, "hf_test_read")[0] == 403
    assert ask(hub, "PUT", info + "/settings", {"visibility": "public"})[0] == 200
    assert ask(hub, "GET", info, token=None)[0] == 200
    assert ask(hub, "POST", info + "/commit/main", b"", "hf_test_other")[0] == 403


def test_objects_are_stored_by_their_digest(hub):
    create(hub)
    data = os.urandom(3000)
    oid = hashlib.sha256(data).hexdigest()
    href = batch(hub, data)["actions"]["upload"]["href"].removeprefix(hub.url)
    assert ask(hub, "PUT", href, b"something else", None)[0] == 400
    assert ask(hub, "PUT", href.split("?")[0], data, None)[0] == 403  # unsigned
    assert commit(hub, ("lfsFile", {"path": "clip.mp4", "algo": "sha256", "oid": oid})) == 400  # not there yet
    assert ask(hub, "PUT", href, data, None)[0] == 200
    assert "actions" not in batch(hub, data)
    assert hub.uploads == [oid]
    verify = f"/storage/{oid}/verify"
    assert ask(hub, "POST", verify, {"oid": oid, "size": 3000})[0] == 200
    assert ask(hub, "POST", verify, {"oid": oid, "size": 2999})[0] == 404
    assert commit(hub, ("lfsFile", {"path": "clip.mp4", "algo": "sha256", "oid": oid})) == 200
    assert hub.files("tester/clips")["clip.mp4"] == data


def test_parts():
    with HubServer(part_size=1000) as hub:
        create(hub)
        data = os.urandom(2500)
        upload = batch(hub, data)["actions"]["upload"]
        paths = {key: url.removeprefix(hub.url) for key, url in upload["header"].items() if key.isdigit()}
        assert (upload["header"]["chunk_size"], sorted(paths)) == ("1000", ["1", "2", "3"])
        complete = upload["href"].removeprefix(hub.url)
        etags = [
            ask(hub, "PUT", paths[str(n + 1)], data[n * 1000 : (n + 1) * 1000], None)[1]["ETag"] for n in range(3)
        ]
        parts = [{"partNumber": n + 1, "etag": etag} for n, etag in enumerate(etags)]
        assert ask(hub, "POST", complete, {"parts": parts[:2]}, None)[0] == 400
        for _ in range(2):  # again, as a client does whose answer was lost
            assert ask(hub, "POST", complete, {"parts": parts}, None)[0] == 200
        assert hub.uploads == [hashlib.sha256(data).hexdigest()]
        assert "actions" not in batch(hub, data)


def test_resolve(hub):
    create(hub)
    data = bytes(range(200))
    put(hub, data)
    commit(hub, ("lfsFile", {"path": "a b/clip.mp4", "oid": hashlib.sha256(data).hexdigest()}))
    path = "/datasets/tester/clips/resolve/main/a%20b/clip.mp4"
    status, headers, body = ask(hub, "HEAD", path)
    assert (status, body, headers["Content-Length"]) == (200, b"", "200")
    assert headers["ETag"] == headers["X-Linked-Etag"] == f'"{hashlib.sha256(data).hexdigest()}"'
    assert headers["X-Repo-Commit"] == hub.repo("tester/clips").at("main").oid
    ranges = {"bytes=0-9": data[:10], "bytes=190-": data[190:], "bytes=-5": data[-5:], "bytes=195-999": data[195:]}
    for asked, expected in ranges.items():
        assert ask(hub, "GET", path, headers={"Range": asked})[::2] == (206, expected)
    status, headers, _ = ask(hub, "GET", path, headers={"Range": "bytes=200-"})
    assert (status, headers["Content-Range"]) == (416, "bytes */200")
    for wrong, code in (("main/none", "EntryNotFound"), ("v9/a", "RevisionNotFound")):
        status, headers, _ = ask(hub, "GET", f"/datasets/tester/clips/resolve/{wrong}")
        assert (status, headers["X-Error-Code"]) == (404, code)


def test_commits(hub):
    create(hub)
    first = hub.repo("tester/clips").at("main").oid
    file = {"path": "a/x.txt", "content": "aGk=", "encoding": "base64"}
    assert commit(hub, ("file", file), parentCommit=first) == 200
    assert commit(hub, ("file", file), parentCommit=first) == 412  # another commit came between
    assert commit(hub, ("copyFile", {"path": "y.txt", "srcPath": "a/x.txt", "srcRevision": "main"})) == 200
    assert commit(hub, ("deletedFile", {"path": "none"})) == 404
    assert commit(hub, ("deletedFolder", {"path": "a/"})) == 200
    assert set(hub.files("tester/clips")) == {".gitattributes", "y.txt"}
    readme = {"path": "README.md", "content": "LS0tCmxpY2Vuc2U6IHgKLS0tCg==", "encoding": "base64"}
    assert commit(hub, ("file", readme)) == 400


def test_what_goes_by_lfs(hub):
    create(hub)
    files = [
        {"path": name, "size": 3, "sample": ""} for name in ("a.parquet", "b.mp4", "c.png", "d.features", "e.json")
    ]
    files += [{"path": "f.txt", "size": 10**8, "sample": ""}, {"path": "g", "size": 2, "sample": "AAA="}]
    body = ask(hub, "POST", "/api/datasets/tester/clips/preupload/main", {"files": files})[2]
    modes = {file["path"]: file["uploadMode"] for file in json.loads(body)["files"]}
    assert [path for path, mode in modes.items() if mode == "regular"] == ["e.json"]


@pytest.mark.parametrize("status", [401, 403, 404, 409, 429, 500, 503])
def test_a_route_fails_as_often_as_asked(hub, status):
    create(hub)
    hub.fail("info", status, times=2, headers={"Retry-After": "1"})
    answers = [ask(hub, "GET", "/api/datasets/tester/clips") for _ in range(3)]
    assert [answer[0] for answer in answers] == [status, status, 200]
    assert answers[0][1]["Retry-After"] == "1"
    assert [request.status for request in hub.log if request.method == "GET"] == [status, status, 200]
    assert len(hub.arrivals("info")) == 3


def test_what_failed_was_not_done(hub):
    hub.fail(lambda method, path: path.startswith("/api/repos"), 503)
    assert create(hub) == 503
    with pytest.raises(KeyError, match="0 repositories are called tester/clips"):
        hub.repo("tester/clips")
    assert create(hub) == 200
    assert hub.repo("tester/clips").kind == "dataset"


@pytest.mark.parametrize("chunked", [False, True])
def test_an_upload_breaks_off(hub, chunked):
    create(hub)
    data = os.urandom(3_000_000)
    href = batch(hub, data)["actions"]["upload"]["href"].removeprefix(hub.url)
    hub.drop("upload", after_bytes=100_000, times=2)
    for _ in range(2):
        connection = http.client.HTTPConnection(urlsplit(hub.url).netloc, timeout=10)
        with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
            connection.request("PUT", href, iter([data]) if chunked else data, encode_chunked=chunked)
            connection.getresponse()
        connection.close()
    assert hub.uploads == []
    assert [request[2:] for request in hub.log if request.method == "PUT"] == [(0, 100_000)] * 2
    assert ask(hub, "PUT", href, data, None)[0] == 200
    assert hub.log[-1].received == len(data) and len(hub.uploads) == 1


@pytest.mark.parametrize("after_bytes", [None, 0])
def test_an_answer_is_lost(hub, after_bytes):
    hub.drop("create", after_bytes=None)
    with pytest.raises(ConnectionError):
        create(hub)
    assert hub.repo("tester/clips").id == "tester/clips"  # done all the same
    assert create(hub) == 409
    hub.drop("resolve", after_bytes=after_bytes)
    with pytest.raises(ConnectionError):
        ask(hub, "HEAD", "/datasets/tester/clips/resolve/main/.gitattributes")
    assert [request.status for request in hub.log] == [0, 409, 0]


def test_a_download_breaks_off(hub):
    create(hub)
    data = os.urandom(100_000)
    put(hub, data)
    commit(hub, ("lfsFile", {"path": "clip.mp4", "oid": hashlib.sha256(data).hexdigest()}))
    hub.drop("resolve", after_bytes=40_000)
    with pytest.raises(http.client.IncompleteRead) as broken:
        ask(hub, "GET", "/datasets/tester/clips/resolve/main/clip.mp4")
    assert broken.value.partial == data[:40_000]


def test_the_environment_has_nothing_of_the_caller(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_caller")
    environment = hub.environment(tmp_path, token=None)
    assert "HF_TOKEN" not in environment and environment["HF_HUB_OFFLINE"] == "0"
    assert environment["HF_ENDPOINT"] == hub.url and environment["HF_HOME"] == str(tmp_path)


@pytest.mark.parametrize(
    ("kind", "header", "expected"),
    [
        ("dataset", "license: mit", None),
        ("dataset", "license: [mit, cc-by-4.0]", None),
        ("dataset", "license: MIT", '"license" must be one of'),
        ("dataset", "license: other", 'needs a "license_name"'),
        ("dataset", "license: other\nlicense_name: my-license-1.0\nlicense_link: LICENSE", None),
        ("dataset", "language: [en, zh, yue, multilingual]", None),
        ("dataset", "language: [en, zh-CN]", r'"language\[1\]" must only contain lowercase characters'),
        ("dataset", "language: python", 'value "python" is not valid'),
        ("dataset", "size_categories: [n<1K]", None),
        ("dataset", "size_categories: [1K]", r'"size_categories\[0\]" must be one of'),
        ("dataset", "tags: video", '"tags" must be an array'),
        ("dataset", "tags: [video, 3]", r'"tags\[1\]" must be a string'),
        ("dataset", "pretty_name: 3", '"pretty_name" must be a string'),
        ("dataset", "configs: [{config_name: a, data_files: [{split: train, path: data/*}]}]", None),
        ("dataset", "configs: [{config_name: a, data_files: [{split: a-b, path: data/*}]}]", "must match"),
        ("dataset", "configs: {config_name: a}", '"configs" must be an array'),
        ("dataset", "dataset_info: {features: [{name: a, dtype: string}], splits: [{name: train}]}", None),
        ("dataset", "dataset_info: {features: [a]}", '"dataset_info.features" must be an array'),
        ("dataset", "license: [", "bad YAML"),
        ("dataset", "- a", "must be a mapping"),
        ("model", "base_model: Wan-AI/Wan2.1-T2V-1.3B-Diffusers\ndatasets: [tester/clips]", None),
        ("model", "base_model: /scratch/wan", '"base_model" with value "/scratch/wan" is not valid'),
        ("model", "datasets: [my clips]", r'"datasets\[0\]" with value "my clips" is not valid'),
        ("model", "model-index: [{name: a, results: [{task: {type: x}}]}]", 'no "dataset" with "type" and "name"'),
    ],
)
def test_a_card(kind, header, expected):
    errors, warnings = validate(f"---\n{header}\n---\n# Text\n", kind)
    assert warnings == []
    if expected is None:
        assert errors == []
    else:
        with pytest.raises(AssertionError, match=expected):
            raise AssertionError("; ".join(errors))


def test_warnings_of_a_card():
    assert validate("# Text\n", "dataset") == ([], ["empty or missing yaml metadata in repo card"])
    errors, warnings = validate("---\ntask_categories: [text-to-video, motion]\n---\n", "dataset")
    assert errors == [] and len(warnings) == 1 and warnings[0].startswith('The task_categories "motion" is not in')


def test_the_client_reads_what_is_wrong_with_a_card(hub):
    card = {"content": "---\nlicense: x\n---\n", "repoType": "dataset"}
    status, _, body = ask(hub, "POST", "/api/validate-yaml", card)
    assert status == 400 and json.loads(body)["errors"][0]["message"].startswith('"license" must be one of')
    status, _, body = ask(hub, "POST", "/api/validate-yaml", card, headers={"Accept": "text/plain"})
    assert status == 400 and body.startswith(b'- Error: "license" must be one of')
