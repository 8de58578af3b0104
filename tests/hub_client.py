"""A process that pushes and loads with the real clients: requests in, replies out, one JSON object a line.

`Client` starts it with a fresh HF_HOME; `python -m tests.hub_client` is what it starts.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


class Client:
    """The process, for the tests. `output`: all that it wrote: replies, logs and tracebacks."""

    def __init__(self, environment: dict[str, str], log: Path):
        self.log, self.replies = log, ""
        self._stderr = log.open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hub_client"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=environment,
            cwd=Path(__file__).parent.parent,
        )

    def __call__(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Do one thing: {"value", "waited"}, or {"error", "type", "status", "chain", "traceback", "waited"}."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"do": do, "arguments": arguments}) + "\n")
        self._process.stdin.flush()
        reply = self._process.stdout.readline()
        assert reply, f"the client has ended:\n{self.output[-4000:]}"
        self.replies += reply
        return json.loads(reply)

    def value(self, do: str, **arguments: Any) -> Any:
        """Do one thing that must succeed."""
        reply = self(do, **arguments)
        assert "error" not in reply, f"{reply['error']}\n{reply['traceback']}"
        return reply["value"]

    @property
    def output(self) -> str:
        return self.replies + self.log.read_text()

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=20)
        self._process.stdout.close()
        self._stderr.close()


def push_dataset(
    folder: str,
    repo_id: str,
    index: str | None = None,
    whole: str | None = None,
    stream: int = 0,
    split: str | None = None,
    **options: Any,
) -> str:
    from datasets import Dataset

    from hf_motive.hub import push_dataset
    from hf_motive.index import GradientIndex

    dataset = Dataset.from_parquet(folder, split=split)
    return push_dataset(
        dataset.to_iterable_dataset(stream) if stream else dataset,
        repo_id,
        index=None if index is None else GradientIndex.open(index),
        whole=None if whole is None else Dataset.from_parquet(whole),
        **options,
    )


def push_stream(source: str, repo_id: str, **options: Any) -> str:
    """From one repository to another."""
    from datasets import load_dataset

    from hf_motive.hub import push_dataset

    return push_dataset(load_dataset(source, split="train", streaming=True), repo_id, **options)


def push_index(folder: str, repo_id: str, **options: Any) -> str:
    from hf_motive.hub import push_index
    from hf_motive.index import GradientIndex

    return push_index(GradientIndex.open(folder), repo_id, **options)


def load_index(repo_id: str, **options: Any) -> dict[str, Any]:
    from hf_motive.hub import load_index

    index = load_index(repo_id, **options)
    return {"digest": index.digest(), "rows": len(index), "provenances": index.provenances}


def load(repo_id: str, streaming: bool = False, split: str = "train") -> dict[str, Any]:
    """A dataset by its id: its features, and its rows with the clip as name and digest."""
    from datasets import Video, load_dataset

    dataset = load_dataset(repo_id, split=split, streaming=streaming)
    features = dataset.features
    rows = []
    if streaming:
        dataset = dataset.decode(False)
    for row in dataset.cast_column("video", Video(decode=False)):
        video = row["video"]
        if video is not None:
            data = video["bytes"] if video["bytes"] is not None else _read(video["path"])
            row["video"] = [os.path.basename(video["path"]), hashlib.sha256(data).hexdigest()]
        rows.append(row)
    return {"features": repr(dict(features)), "rows": rows}


def push_model(folder: str, repo_id: str, **options: Any) -> str:
    from hf_motive.hub import push_model

    return push_model(folder, repo_id, **options)


def settle_model(repo_id: str, **options: Any) -> str:
    from hf_motive.hub import settle_model

    return settle_model(repo_id, **options)


def command(words: list[str], token: str = "") -> dict[str, str]:
    """A command line: what it prints, and the sentence with which it ends, if it fails."""
    import contextlib
    import io

    from hf_motive.cli import main

    printed, ended = io.StringIO(), ""
    with contextlib.redirect_stdout(printed):
        os.environ["HF_TOKEN"] = token  # empty: that of HF_HOME
        try:
            main(words)
        except SystemExit as error:
            ended = str(error)
        finally:
            del os.environ["HF_TOKEN"]
    return {"printed": printed.getvalue(), "ended": ended}


def generate(code: str) -> str:
    """Digest of the clip that a pipeline makes of a prompt, after the code of a model's card."""
    import torch

    names: dict[str, Any] = {}
    exec(code, names)
    torch.set_num_threads(1)
    clip = names["pipe"](
        "a square goes left",
        num_frames=5,
        height=16,
        width=16,
        num_inference_steps=2,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    ).frames
    return hashlib.sha256(clip.tobytes()).hexdigest()


def edit(repo_id: str, files: dict[str, str], kind: str = "dataset") -> None:
    """What a person does on the Hub's pages."""
    from huggingface_hub import CommitOperationAdd, HfApi

    operations = [CommitOperationAdd(path, text.encode()) for path, text in files.items()]
    HfApi().create_commit(repo_id, operations, repo_type=kind, commit_message="By hand")


def execute(code: str) -> dict[str, int]:
    """The code of a card; how many rows each dataset has that it makes."""
    names: dict[str, Any] = {}
    exec(code, names)
    return {name: len(value) for name, value in names.items() if hasattr(value, "num_rows")}


def refused(text: str, kind: str = "dataset") -> str:
    from hf_motive.hub.repository import _refused

    return _refused(text, kind)


def _read(path: str) -> bytes:
    from datasets.utils.file_utils import xopen

    with xopen(path, "rb") as file:
        return file.read()


def main() -> None:
    import logging
    import time
    import traceback

    logging.basicConfig(level=logging.INFO)
    for name in ("hf_motive", "huggingface_hub", "datasets"):
        logging.getLogger(name).setLevel(logging.DEBUG)
    waited: list[float] = []
    sleep = time.sleep

    def brief(seconds: float) -> None:
        waited.append(seconds)
        sleep(min(seconds, 0.02))

    time.sleep = brief
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is output, not a reply
    for line in sys.stdin:
        request = json.loads(line)
        waited.clear()
        try:
            reply: dict[str, Any] = {"value": globals()[request["do"]](**request["arguments"])}
        except Exception as error:
            reply = {
                "error": str(error),
                "type": type(error).__name__,
                "status": getattr(error, "status", None),
                "chain": repr(error.__cause__ or error.__context__),
                "traceback": traceback.format_exc(),
            }
        # Half a second and more: others are the clients' own threads that poll.
        reply["waited"] = [seconds for seconds in waited if seconds >= 0.5]
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
