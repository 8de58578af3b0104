"""The processes that Accelerate launched, on GPUs or CPUs."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import PartialState


def processes() -> PartialState:
    """Accelerate's state of this process: its index, their number, its device.

    Accelerate leaves processes without an accelerator apart, each taking itself for the only one, unless it is told
    that they run on the CPU; this tells it. The processes wait for each other only when all clips are done, so the
    10 or 30 minutes after which a collective gives up would end a run in which one process has the longer clips.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return PartialState(cpu=cpu, timeout=timedelta(days=14))
    return PartialState(cpu=cpu)


def threads_of_a_process() -> int:
    """How many of this machine's cores, at least one, fall to each of the processes that Accelerate launched on it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
