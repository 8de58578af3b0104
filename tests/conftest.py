"""What every test runs under: no network, one thread, warnings of our own code as errors."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    # The filter's last field matches the module that the warning is attributed to: only ours may not warn.
    config.addinivalue_line("filterwarnings", r"error:::hf_motive(\..*)?")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process runs the tests of a file, which share what they build; every variant of a pipeline is on its own."""
    for item in items:
        if item.path.name != "test_conformance.py":
            item.add_marker(pytest.mark.xdist_group(item.path.name))


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Bit-for-bit comparisons need a fixed number of threads; one also shares a small machine fairly."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
