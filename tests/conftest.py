"""What every test runs under: no network, one thread, warnings of our own code as errors."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# On some processors MKL rounds a matrix product by where in memory its factors lie: no two are equal bit for bit.
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")

import pytest
import torch
import torch.distributed as dist


def pytest_configure(config: pytest.Config) -> None:
    # The filter's last field matches the module that the warning is attributed to: only ours may not warn.
    config.addinivalue_line("filterwarnings", r"error:::hf_motive(\..*)?")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process runs the tests of a file, which share what they build; every variant of a pipeline is on its own."""
    for item in items:
        if item.path.name != "test_conformance.py":
            item.add_marker(pytest.mark.xdist_group(item.path.name))


def pytest_collection_finish(session: pytest.Session) -> None:
    """pytest-xdist 3.8 groups by a name that pytest 9.2 does not read: then each process builds what a file shares."""
    grouped = [item for item in session.items if item.get_closest_marker("xdist_group")]
    if getattr(session.config.option, "loadgroup", False) and grouped and "@" not in grouped[0].nodeid:
        raise pytest.UsageError("pytest-xdist does not group tests by file: pip install -c constraints.txt pytest")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Bit-for-bit comparisons need a fixed number of threads; one also shares a small machine fairly."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def process_group(tmp_path_factory):
    """A world of one process: what is shared out is DTensors all the same."""
    place = tmp_path_factory.mktemp("group") / "rendezvous"
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()
