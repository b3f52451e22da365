"""Signals that ask a process to stop: in training a request that the step honours, elsewhere an exception.

The exit status is 128 + the signal's number, as shells have it: 129 SIGHUP, 130 SIGINT, 138 SIGUSR1, 143 SIGTERM.
A signal that is ignored when the process starts (nohup) stays ignored.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # SIGUSR1: what schedulers send before they take a machine away
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))
AGAIN = 1.0  # seconds
LOADER_GRACE = 60  # seconds that a photo loader outlives SIGTERM, so that the step under way can end


class Stopped(KeyboardInterrupt):
    """The process was asked to stop.

    Args:
        signum: number of the signal.
        where: what stopped where, and how to go on; empty: nothing to say.
    """

    def __init__(self, signum: int, where: str = "") -> None:
        self.signum, self.where = signum, where
        super().__init__(signum)

    @property
    def status(self) -> int:
        """Exit status of the process."""
        return 128 + self.signum

    def __str__(self) -> str:
        name = signal.Signals(self.signum).name
        return f"stopped by {name}" + (f": {self.where}" if self.where else "")


Handler = Callable[[int, FrameType | None], Any]


@contextmanager
def _handling(handler: Handler) -> Iterator[None]:
    """Context with a handler for SIGNALS; only the main thread of a process may have one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def raising() -> Iterator[None]:
    """Context in which a signal raises Stopped, so that files are closed or removed on the way out."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    with _handling(stop):
        yield


class StopRequest:
    """Context in which the first signal is only noted, in ``signum``; a second Ctrl-C raises Stopped at once.

    A scheduler's signal often comes twice, to the group and forwarded by a parent, and so may one Ctrl-C: what comes
    within AGAIN seconds is the same request.
    """

    def __init__(self) -> None:
        self.signum, self._since = 0, 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen while the block runs."""
        with _handling(self._note):
            yield

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.signum:
            self.signum, self._since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > AGAIN:
            raise Stopped(number, "at the second time, without a checkpoint of this step")


class LoaderShield:
    """Lets photo loaders outlive signals that reach the whole process group, until the step under way has ended.

    Used as a DataLoader's ``worker_init_fn``.
    """

    def __init__(self) -> None:
        self._lifted = multiprocessing.RawValue("b", 0)  # without a lock, which a handler must not wait for

    def lift(self) -> None:
        """The training has ended: SIGTERM ends the loaders again, as the main process does when it exits."""
        self._lifted.value = 1

    def __call__(self, worker: int) -> None:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._terminate)

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        if self._lifted.value:
            os._exit(0)
        signal.alarm(LOADER_GRACE)
