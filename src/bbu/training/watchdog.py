"""Notices a run that no longer moves: a rank that is frozen, a loader or a collective that waits for ever."""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from bbu.training.distributed import rank

STUCK = 124  # exit status, as of timeout(1)
FOLDER = "stacks"
GRACE = 5.0  # seconds
POLL = 1.0  # seconds


class Watchdog:
    """Ends the process if ``beat`` is not called for some time, after writing the stacks of all its threads.

    Every rank has one. Ranks that wait for a frozen one stand still too, so each writes its own stacks:
    ``<folder>/rank-N.txt``. A rank that cannot write any more (stopped, or its machine is gone) is the one without.
    The first rank to write ends the others too: left alone, they would fail in a collective without their stacks.

    Args:
        seconds: longest time without a beat; 0 = no watchdog.
        folder: of the stacks.
    """

    def __init__(self, seconds: float, folder: Path) -> None:
        self.seconds, self.folder = seconds, folder
        self._last, self._doing = time.monotonic(), "the first step"
        self._ended = threading.Event()
        self._older: dict[Path, int] = {}  # stacks of earlier runs, with their times

    def beat(self, doing: str) -> None:
        """The run moves; ``doing`` says with what it goes on."""
        self._last, self._doing = time.monotonic(), doing

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch while the block runs."""
        if not self.seconds:
            yield
            return
        self.beat("the first step")
        self._ended.clear()
        self._older = self._written()
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(max(0.05, min(POLL, self.seconds / 10))):
            if time.monotonic() - self._last > self.seconds:
                self._end(f"has waited {self.seconds:g} s (training.step_timeout)")
            elif self._written() != self._older:
                self._end("ends with a rank that no longer moves")

    def _written(self) -> dict[Path, int]:
        """The files of stacks, with the time of each in nanoseconds."""
        found = {}
        for path in self.folder.glob("rank-*.txt"):
            with suppress(OSError):  # a rank that has just replaced it
                found[path] = path.stat().st_mtime_ns
        return found

    def _end(self, why: str) -> None:
        path = self.folder / f"rank-{rank()}.txt"
        line = (
            f"bbu: error: rank {rank()} {why} in {self._doing}; stacks of each rank: {path.with_name('rank-*.txt')}; "
            "a rank without a file is the frozen one"
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8") as stream:
                self._write(stream, line)
        except OSError:
            self._write(sys.stderr, line)
        print(line, file=sys.stderr, flush=True)
        time.sleep(min(self.seconds / 2, GRACE))  # when one rank exits, the others' collectives fail: first all write
        os._exit(STUCK)  # the main thread may never return: nothing that has to wait for it

    def _write(self, stream: IO[str], line: str) -> None:
        print(line, file=stream, flush=True)
        faulthandler.dump_traceback(stream, all_threads=True)
