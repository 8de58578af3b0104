"""What the user can mend is a sentence; what he cannot keeps its traceback."""

from __future__ import annotations

import pytest
import yaml
from datasets.exceptions import DatasetsError
from huggingface_hub.errors import HTTPError

from hf_motive.cli import errors_as_sentences, main
from hf_motive.hub import HubError
from hf_motive.pipelines import PipelineError
from hf_motive.storage import IndexLockedError


@pytest.mark.parametrize(
    "kind", [ValueError, OSError, HubError, PipelineError, IndexLockedError, DatasetsError, HTTPError, yaml.YAMLError]
)
def test_errors_that_users_can_mend(kind):
    with pytest.raises(SystemExit, match="error: .*what happened"), errors_as_sentences():
        raise kind("what happened", "and why") if kind is PipelineError else kind("what happened")


def test_our_own_faults_keep_their_traceback():
    with pytest.raises(ZeroDivisionError), errors_as_sentences():
        raise ZeroDivisionError


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["select", "run", "--output", "x", "--qqqqqq", "1"], "there is no option --qqqqqq. hf-motive select --help"),
        (["select", "run", "--output", "x", "--drop_wrst", "1"], r"--drop_wrst \(did you mean --drop_worst\?\)"),
        (["select", "run", "--config", "a.yaml", "--config", "b.yaml"], "one YAML file at a time"),
        (["select", "run", "--config", "broken.yaml"], "error: (.|\n)*in .broken.yaml., line 1"),
        (["choose"], "no command 'choose'; the commands are score, select, train, push, inspect"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.yaml").write_text("output: [x")
    with pytest.raises(SystemExit, match=said):
        main(arguments)
