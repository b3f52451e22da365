"""Map over many items in several processes: results in order, only a few items in memory."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from typing import TypeVar

from bbu.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

INLINE = 200  # items done in this process first, since starting others takes about a second
CHUNK = 32  # items sent to a process at a time
AHEAD = 3  # pending chunks per process


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[Result, None, None]:
    """``map`` with the function run in ``workers`` processes (0: one per core; 1: this one).

    The function and the items must be picklable. Items are consumed only as results are taken.
    """
    workers = workers or os.cpu_count() or 1
    stream = iter(items)
    yield from map(function, islice(stream, INLINE))
    first = list(islice(stream, 1))
    rest = chain(first, stream)
    yield from map(function, rest) if workers == 1 or not first else _spread(function, rest, workers)


def _spread(function: Callable[[Item], Result], stream: Iterator[Item], workers: int) -> Iterator[Result]:
    spawn = multiprocessing.get_context("spawn")  # a fork would copy the threads of other libraries
    pool = ProcessPoolExecutor(workers, mp_context=spawn, initializer=_leave_interrupts_to_the_parent)
    pending: deque[Future[list[Result]]] = deque()
    try:
        while chunk := list(islice(stream, CHUNK)):
            pending.append(pool.submit(_run, function, chunk))
            if len(pending) >= AHEAD * workers:
                yield from pending.popleft().result()
        while pending:
            yield from pending.popleft().result()
    except BrokenProcessPool:
        raise UserError(
            "a worker process died; out of memory? A script of your own that converts many photos needs "
            "`if __name__ == '__main__':` around its call, or workers=1"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _run(function: Callable[[Item], Result], chunk: list[Item]) -> list[Result]:
    return [function(item) for item in chunk]


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
