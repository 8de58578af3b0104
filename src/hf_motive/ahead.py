"""Work that needs no device, done in threads ahead of the one who waits for it.

Threads, not processes: decoding and flow are PyAV's and OpenCV's, which let other threads run meanwhile, and a clip of
81 frames of 480×832 is 388 MB of pixels, which a thread hands over by a pointer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch

from .processes import threads_of_a_process

Item = TypeVar("Item")
Result = TypeVar("Result")

_END: Any = object()


def idle_threads(device: torch.device) -> int:
    """How many of this process's cores have nothing else to do, at most four.

    Beside a GPU all but the one that feeds it; on the CPU those that torch's own threads leave.
    """
    return max(0, min(4, threads_of_a_process() - (torch.get_num_threads() if device.type == "cpu" else 1)))


def ahead(items: Iterable[Item], prepare: Callable[[Item], Result], workers: int) -> Generator[Result]:
    """`map(prepare, items)`, in order, with up to `workers` results computed ahead of the one that is asked for.

    Args:
        items: Read one after the other, in one thread, which is not this one.
        prepare: Called in several threads at once.
        workers: How many. 0: neither threads nor anything ahead.

    Raises:
        Whatever `items` or `prepare` raises, in its turn.
    """
    if not workers:
        yield from map(prepare, items)
        return
    iterator = iter(items)
    reader, pool = ThreadPoolExecutor(1, "read ahead"), ThreadPoolExecutor(workers, "prepare ahead")

    def prepared(item: Future[Item]) -> Result:
        found = item.result()
        return found if found is _END else prepare(found)

    def begin() -> Future[Result]:
        return pool.submit(prepared, reader.submit(next, iterator, _END))

    waiting = deque(begin() for _ in range(workers))
    try:
        while (result := waiting.popleft().result()) is not _END:
            waiting.append(begin())
            yield result
    finally:
        for executor in (pool, reader):
            executor.shutdown(cancel_futures=True)
