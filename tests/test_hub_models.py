"""Trained models to a loopback Hub and back, by the real clients in a process of their own."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from hf_motive.hub import ModelFacts
from hf_motive.hub.models import published_files, push_model
from tests.hub_client import Client
from tests.hub_models import CAPTIONS, NEVER, a_model, litter
from tests.hub_routes import TOKENS
from tests.hub_server import HubServer
from tests.test_hub import requests, snapshot_of

BASE = "tester/tiny-wan"
SAMPLES = {f"samples/step-{step}/0{n}.mp4" for step in (0, 100) for n in (0, 1)}
EVERY = {".gitattributes", "README.md", "model.json", "weights.json", "card/loss.png", "card/samples.png"} | SAMPLES
WHOLE = {"transformer/config.json", "transformer/diffusion_pytorch_model.safetensors"}


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    """Logged in as `hf auth login` does it. No test may make it say a token, or publish one."""
    home = tmp_path_factory.mktemp("home")
    (home / "token").write_text("hf_test_write")
    started = Client(hub.environment(home, token=None), home / "client.log")
    yield started
    output = started.output
    started.close()
    for token in TOKENS:
        assert token not in output, [line for line in output.splitlines() if token in line][:3]
    for repo in hub._hub.repos.values():
        for commit in repo.commits.values():
            for path, file in commit.files.items():
                assert not any(token.encode() in file.data for token in TOKENS), path


@pytest.fixture(autouse=True)
def no_faults(hub):
    yield
    hub._faults.clear()


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """A folder with models: `lora`, `full` and `pipeline`, the base of both."""
    folder = tmp_path_factory.mktemp("my models")
    for kind in ("lora", "full", "pipeline"):
        a_model(folder / kind, kind)
        litter(folder / kind, kind)
    return folder


@pytest.fixture(scope="module")
def base(client, local):
    """The base model on the Hub, by which cards load the others."""
    client.value("push_model", folder=str(local / "pipeline"), repo_id=BASE)
    return BASE


def card(hub: HubServer, repo_id: str) -> tuple[dict, str]:
    _, header, text = hub.files(repo_id)["README.md"].decode().split("---\n", 2)
    return yaml.safe_load(header), text


# There and back -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["lora", "full", "pipeline"])
def test_the_cards_code_loads_what_was_pushed(hub, client, local, base, kind):
    before = snapshot_of(local)
    repo_id = f"tester/back-{kind}"
    assert client.value("push_model", folder=str(local / kind), repo_id=repo_id) == f"{hub.url}/{repo_id}"
    repo = hub.repo(repo_id, "model")
    assert repo.private and len(repo.commits) == 2  # the Hub's own and ours
    assert snapshot_of(local) == before
    _, text = card(hub, repo_id)
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert f'"{repo_id}"' in code
    there, here = (client.value("generate", code=c) for c in (code, code.replace(repo_id, str(local / kind))))
    assert there == here
    plain = f"from diffusers import WanPipeline\npipe = WanPipeline.from_pretrained({base!r})"
    assert (client.value("generate", code=plain) == there) == (kind != "lora")  # the others are the base's own weights


def test_what_diffusers_looks_for_by_itself(client, local, base):
    client.value("push_model", folder=str(local / "lora"), repo_id="tester/guess")
    load = f"from diffusers import WanPipeline\npipe = WanPipeline.from_pretrained({base!r})\n"
    guessed = client.value("generate", code=load + 'pipe.load_lora_weights("tester/guess")')
    assert guessed == client.value("generate", code=load + f"pipe.load_lora_weights({str(local / 'lora')!r})")


@pytest.mark.parametrize("kind", ["lora", "full", "pipeline"])
def test_nothing_else_is_published(hub, client, local, kind):
    client.value("push_model", folder=str(local / kind), repo_id=f"tester/only-{kind}")
    files = hub.files(f"tester/only-{kind}")
    of_kind = {"lora": {"pytorch_lora_weights.safetensors"}, "full": WHOLE, "pipeline": WHOLE | {"model_index.json"}}
    more = {path for path in files if path.split("/")[0] in ("vae", "scheduler", "text_encoder", "tokenizer")}
    assert set(files) - more == EVERY | of_kind[kind] and bool(more) == (kind == "pipeline")
    assert not set(NEVER) & set(files)
    for path, data in files.items():
        for said in (b"never published", str(local).encode(), str(local.parent).encode(), b"somebody", b"/home"):
            assert said not in data, path
    if kind == "pipeline":
        assert json.loads(files["transformer/config.json"])["_name_or_path"] == "tiny-wan"
        inner = json.loads(files["text_encoder/config.json"])["text_config"]
        assert (inner["_name_or_path"], inner["list"]) == ("tiny-wan", ["x"])
        said = json.loads(files["tokenizer/tokenizer_config.json"])
        assert said["vocab_file"] == "spiece.model" and said["chat_template"] == "{% if '/think' in text %}"
        here = json.loads((local / kind / "tokenizer" / "tokenizer_config.json").read_text())
        assert {name for name in here if said[name] != here[name]} == {
            "tokenizer_file", "special_tokens_map_file", "vocab_file"
        }  # fmt: skip
        for name in files:
            if name.endswith("tokenizer.json"):
                assert files[name] == (local / kind / name).read_bytes()


def test_what_the_header_says(hub, client, local):
    for kind, relation in (("lora", "adapter"), ("full", "finetune")):
        client.value("push_model", folder=str(local / kind), repo_id=f"tester/header-{kind}", license="Apache-2.0")
        said, text = card(hub, f"tester/header-{kind}")
        assert said["base_model"] == BASE and said["base_model_relation"] == relation
        assert said["library_name"] == "diffusers" and said["pipeline_tag"] == "text-to-video"
        assert said["license"] == "apache-2.0" and said["datasets"] == ["tester/best-clips"]
        assert ("lora" in said["tags"]) == (kind == "lora") and "motion-attribution" in said["tags"]
        outputs = [entry["output"]["url"] for entry in said["widget"]]
        assert [entry["text"] for entry in said["widget"]] == list(CAPTIONS)
        files = hub.files(f"tester/header-{kind}")
        assert all(url in files for url in outputs) and "<Gallery />" in text
        for path in re.findall(r"\]\(((?:card|samples)/.*?)\)", text):
            assert path in files


# A second push --------------------------------------------------------------------------------------------------


def test_the_same_again_changes_nothing(hub, client, local):
    for _ in range(2):
        client.value("push_model", folder=str(local / "full"), repo_id="tester/same", commit_message="The first run")
        commits, uploads = len(hub.repo("tester/same").commits), len(hub.uploads)
    assert (commits, uploads) == (2, len(hub.uploads))
    assert hub.repo("tester/same").at("main").title == "The first run"


def test_weights_of_another_kind_and_old_samples_go(hub, client, local, tmp_path):
    push = {"repo_id": "tester/replaced"}
    client.value("push_model", folder=str(local / "lora"), license="mit", **push)
    said, text = card(hub, "tester/replaced")
    theirs = {"language": ["de"], "license": "cc-by-4.0", "extra_gated_prompt": "Do you agree?", "of_ours": 7}
    said |= theirs
    said["tags"] = ["animals", *said["tags"]]
    said["datasets"] = ["tester/theirs", *said["datasets"]]
    said["widget"] = [*said["widget"], {"text": "theirs", "output": {"url": "samples/theirs.mp4"}}]
    files = {"README.md": f"---\n{yaml.safe_dump(said)}---\n{text}\n## Of our own\n"}
    files |= {"samples/theirs.mp4": "a clip", "notes.md": "theirs", "transformer/theirs.txt": "theirs"}
    files |= {"pytorch_lora_weights_theirs.safetensors": "theirs"}
    # What another tool left there would be loaded in place of ours.
    files["transformer/diffusion_pytorch_model.safetensors.index.json"] = '{"weight_map": {"a": "b.safetensors"}}'
    client.value("edit", files=files, kind="model", **push)

    shutil.copytree(local / "full", tmp_path / "full")
    facts = ModelFacts.load(tmp_path / "full")
    (tmp_path / "full" / "samples" / "new.mp4").write_bytes(
        (tmp_path / "full" / facts.samples[0]["after"]).read_bytes()
    )
    facts.samples = [{"caption": "new", "after": "samples/new.mp4"}]
    facts.curated_dataset = "tester/better-clips"
    facts.losses, facts.metrics = [], []
    facts.save(tmp_path / "full")
    client.value("push_model", folder=str(tmp_path / "full"), **push)

    left = set(hub.files("tester/replaced"))
    assert left == (EVERY - SAMPLES - {"card/loss.png"} | WHOLE | {"samples/new.mp4"}) | (set(files) - {
        "transformer/diffusion_pytorch_model.safetensors.index.json"
    })  # fmt: skip
    after, text = card(hub, "tester/replaced")
    assert {name: after[name] for name in theirs} == theirs
    assert after["tags"][0] == "animals" and "lora" not in after["tags"]
    assert after["base_model_relation"] == "finetune"
    assert after["datasets"] == ["tester/better-clips", "tester/theirs"]
    assert [entry["output"]["url"] for entry in after["widget"]] == ["samples/new.mp4", "samples/theirs.mp4"]
    assert "## Of our own" not in text and "Published as `cc-by-4.0`." in text


def test_a_base_that_is_no_longer_on_the_hub(hub, client, local, tmp_path):
    client.value("push_model", folder=str(local / "lora"), repo_id="tester/local-base")
    shutil.copytree(local / "lora", tmp_path / "lora")
    facts = ModelFacts.load(tmp_path / "lora")
    facts.base_model, facts.base_is_hub = "/home/somebody/models/mine", False
    facts.how_to_load = facts.how_to_load.replace(BASE, facts.base_model)
    facts.save(tmp_path / "lora")
    client.value("push_model", folder=str(tmp_path / "lora"), repo_id="tester/local-base")
    said, text = card(hub, "tester/local-base")
    assert "base_model" not in said and "base_model_relation" not in said
    assert 'from_pretrained("mine")' in text and "`mine` was a folder" in text
    assert not any(b"somebody" in data for data in hub.files("tester/local-base").values())
    # A person who knows its id says it, and it stays.
    said |= {"base_model": "tester/mine", "base_model_relation": "adapter"}
    files = {"README.md": f"---\n{yaml.safe_dump(said)}---\n{text}"}
    client.value("edit", repo_id="tester/local-base", files=files, kind="model")
    client.value("push_model", folder=str(tmp_path / "lora"), repo_id="tester/local-base")
    again, _ = card(hub, "tester/local-base")
    assert (again["base_model"], again["base_model_relation"]) == ("tester/mine", "adapter")


# Who may see it -------------------------------------------------------------------------------------------------


def test_private_weights_do_not_go_to_a_public_repository(hub, client, local):
    client.value("push_model", folder=str(local / "lora"), repo_id="tester/seen", private=False)
    assert not hub.repo("tester/seen").private
    before, since = hub.repo("tester/seen").at("main").oid, len(hub.log)
    reply = client("push_model", folder=str(local / "full"), repo_id="tester/seen")
    assert reply["type"] == "ValueError"
    assert (
        "tester/seen exists and is public: nothing was sent." in reply["error"] and "these weights" in reply["error"]
    )
    assert hub.repo("tester/seen").at("main").oid == before
    assert {method for method, _, _ in requests(hub, since)} == {"GET"}


def test_a_model_is_no_dataset(hub, client, local):
    """A dataset of the same name is another repository."""
    assert client.value("settle_model", repo_id="both") == "tester/both"
    assert hub.repo("tester/both", "model").private and ("dataset", "tester/both") not in hub._hub.repos


# Faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "token, repo_id, status, said",
    [
        ("hf_wrong_" + "x" * 20, "tester/denied", 401, "hf auth login"),
        ("hf_test_read", "tester/denied", 403, "write permission"),
        ("hf_test_other", "tester/denied", 403, "choose a namespace of yours"),
        ("hf_test_read", BASE, 403, "write permission"),
    ],
)
def test_tokens_that_may_not(hub, client, local, base, token, repo_id, status, said):
    before, there = snapshot_of(local), hub.files(base)
    reply = client("push_model", folder=str(local / "full"), repo_id=repo_id, token=token, license="mit")
    assert (reply["type"], reply["status"], reply["waited"]) == ("HubError", status, [])
    assert said in reply["error"] and token not in json.dumps(reply)
    command = f"hf-motive push '{local / 'full'}' {repo_id} --license mit"
    assert reply["error"].endswith(
        f"{local / 'full'} is as it was, and nothing of it is lost. To try again: {command}"
    )
    assert snapshot_of(local) == before and hub.files(base) == there


@pytest.mark.parametrize("status", [0, 500])
def test_a_short_fault_of_every_request_costs_nothing_but_time(hub, client, local, status):
    """0: the request is done, and its answer lost."""
    hub._hub._objects.clear()
    repo_id = f"tester/short-{status}"
    for route in ("info", "create", "preupload", "batch", "upload", "verify", "validate", "tree", "commit"):
        if status:
            hub.fail(route, status)
        else:
            hub.drop(route, after_bytes=None)
    reply = client("push_model", folder=str(local / "lora"), repo_id=repo_id)
    assert "error" not in reply, reply["error"]
    assert [fault.route for fault in hub._faults if fault.times] == []
    assert set(hub.files(repo_id)) == EVERY | {"pytorch_lora_weights.safetensors"}
    assert len(hub.repo(repo_id).commits) == 2


@pytest.mark.parametrize("route, status", [("info", 500), ("batch", 403), ("upload", 500), ("commit", 500)])
def test_a_lasting_fault_leaves_the_repository_as_it_was(hub, client, local, route, status):
    push = {"repo_id": f"tester/long-{route}"}
    client.value("push_model", folder=str(local / "lora"), **push)
    before, there = snapshot_of(local), hub.files(push["repo_id"])
    hub._hub._objects.clear()
    hub.fail(route, status, times=10_000, message=f"not for {next(iter(TOKENS))}")
    reply = client("push_model", folder=str(local / "full"), private=False, **push)
    assert (reply["type"], reply["status"], reply["chain"]) == ("HubError", status, "None")
    assert "To try again: hf-motive push" in reply["error"] and reply["error"].endswith("--public")
    assert not any(token in json.dumps(reply) for token in TOKENS)
    assert snapshot_of(local) == before and hub.files(push["repo_id"]) == there


def test_a_card_that_the_hub_does_not_accept(hub, client, local):
    hub.fail("validate", 400, message="the license is unheard of")
    reply = client("push_model", folder=str(local / "lora"), repo_id="tester/licence")
    assert (reply["type"], reply["status"]) == ("HubError", 400)
    assert "does not accept the card's metadata (400)" in reply["error"] and "unheard of" in reply["error"]
    assert "Nothing was sent." in reply["error"] and "To try again: hf-motive push" in reply["error"]
    assert set(hub.files("tester/licence")) == {".gitattributes"}


def test_the_validators_words_are_passed_on(client):
    text = "---\nbase_model: a/b\nbase_model_relation: adapter\n---\n"
    assert client.value("refused", text=text, kind="model") == ""
    wrong = text.replace("adapter", "cousin")
    assert '"base_model_relation" must be one of' in client.value("refused", text=wrong, kind="model")


def test_before_a_training_is_said_that_it_cannot_be_pushed(client):
    reply = client("settle_model", repo_id="other/theirs")
    assert (reply["type"], reply["status"]) == ("HubError", 403)
    assert "pushed at any time: hf-motive push FOLDER REPO_ID" in reply["error"]


# What is wrong is said before anything is sent -------------------------------------------------------------------


def test_folders_that_are_not_whole(local, tmp_path):
    """No Hub is there: a request would fail in another way."""

    def broken(kind: str, name: str) -> Path:
        return Path(shutil.copytree(local / kind, tmp_path / name))

    (broken("lora", "no-facts") / "model.json").unlink()
    (broken("lora", "other-facts") / "model.json").write_text('{"model": "of another tool"}')
    (broken("full", "unfinished") / "weights.json").unlink()
    (broken("lora", "no-lora") / "pytorch_lora_weights.safetensors").unlink()
    (broken("full", "no-weights") / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    cut = broken("full", "cut") / "transformer" / "diffusion_pytorch_model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    index = broken("full", "no-shard") / "transformer" / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "diffusion_pytorch_model-00002-of-00002.safetensors"}}')
    (broken("pipeline", "killed") / "weights.json").unlink()
    (broken("lora", "of-another") / "weights.json").write_bytes((local / "full" / "weights.json").read_bytes())
    for name, part in (("shard", "transformer"), ("frozen-shard", "vae")):
        loose = broken("pipeline", name) / part / "diffusion_pytorch_model.safetensors"
        loose.rename(loose.with_name("diffusion_pytorch_model-00001-of-00002.safetensors"))
    for name, kind, said in (
        ("killed", FileNotFoundError, "no weights.json, which is written last of all"),
        ("of-another", ValueError, "says lora of transformer, and they are full of transformer. Save the model again"),
        ("shard", FileNotFoundError, "00001-of-00002.safetensors is one of several files .* no index"),
        ("frozen-shard", FileNotFoundError, "00001-of-00002.safetensors is one of several files .* no index"),
        ("nowhere", FileNotFoundError, "has no model.json, of which the card is made"),
        ("no-facts", FileNotFoundError, r"give the folder in which a training ended, or write one by .*ModelFacts"),
        ("other-facts", ValueError, 'model.json cannot be read: it is not of "format"'),
        (
            "unfinished",
            FileNotFoundError,
            "no weights.json, which is written last of all",
        ),
        ("no-lora", FileNotFoundError, r"no weights \(.safetensors\) of transformer"),
        ("no-weights", FileNotFoundError, r"no weights \(.safetensors\) of transformer"),
        ("cut", ValueError, "diffusion_pytorch_model.safetensors is not whole .*save the model again"),
        ("no-shard", FileNotFoundError, "names weights that are not there: diffusion_pytorch_model-00002-of-00002"),
    ):
        with pytest.raises(kind, match=said):
            push_model(tmp_path / name, "tester/wrong")


def test_which_files_are_published(local):
    facts = ModelFacts.load(local / "pipeline")
    files = published_files(local / "pipeline", facts)
    assert "tokenizer/tokenizer.json" in files and "scheduler/scheduler_config.json" in files
    assert all(path.is_file() for path in files.values()) and not set(NEVER) & set(files)


# The command ----------------------------------------------------------------------------------------------------


def test_by_the_command(hub, client, local):
    words = ["push", str(local / "full"), "tester/by-command", "--license", "mit"]
    done = client.value("command", words=words)
    assert done["ended"] == ""
    assert f"is a fine-tuned {BASE}; pushing it, private, to tester/by-command" in done["printed"]
    assert done["printed"].endswith(f"{hub.url}/tester/by-command\n")
    assert card(hub, "tester/by-command")[0]["license"] == "mit"
    refused = client.value("command", words=["push", str(local / "lora"), "by-command"], token="hf_test_read")
    assert refused["ended"].startswith("error: ") and "write permission" in refused["ended"]
    assert f"To try again: hf-motive push '{local / 'lora'}' by-command" in refused["ended"]
    for option in (["--index"], ["--split", "test"], ["--video_column", "clip"]):
        wrong = client.value("command", words=["push", str(local / "lora"), "by-command", *option])
        assert f"is a trained model: leave out {option[0]}, which is for rows" in wrong["ended"]


def test_what_inspect_says_of_a_model(client, local):
    said = client.value("command", words=["inspect", str(local / "lora")])["printed"]
    for part in ("a trained model", "a LoRA of transformer of a WanPipeline", "24 of 240: The best tenth", "6 files"):
        assert part in said, part
    facts = json.loads(client.value("command", words=["inspect", str(local / "full"), "--json"])["printed"])
    assert facts["kind"] == "model" and set(facts["files"]) == WHOLE | SAMPLES | {"weights.json"}
    for words in (
        ["inspect", str(local / "full"), str(local / "lora")],
        ["select", str(local / "full"), "--output", "x"],
    ):
        assert "is a trained model" in client.value("command", words=words)["ended"]
