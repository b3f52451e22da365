"""One model thread with a short queue."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from bbu.serve.limits import Limits, RequestError

Answer = TypeVar("Answer")


class PredictionQueue:
    """Runs one job at a time, so an answer does not depend on other requests.

    A request takes its place before its body is read, so bodies in memory count too. It keeps the place until its job
    ends, because a prediction cannot be interrupted on a timeout.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.length = 0
        self._seconds = 1.0  # of the last work
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def answer(self, receive: Callable[[], Awaitable[Callable[[], Answer]]]) -> Answer:
        """Take a place, receive the job, wait for its result.

        Raises:
            RequestError: 429 if the queue is full, 503 on a timeout.
        """
        self._enter()
        try:
            work = await receive()
            future = self._thread.submit(self._timed, work)
        except BaseException:
            self._leave()
            raise
        future.add_done_callback(lambda _: self._leave())
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.limits.answer_seconds)
        except TimeoutError:
            raise RequestError(
                503, f"no answer within {self.limits.answer_seconds:g} seconds; try again later", self._retry()
            ) from None

    def close(self) -> None:
        """Finish the running job and drop the waiting ones."""
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _timed(self, work: Callable[[], Answer]) -> Answer:
        start = time.perf_counter()
        try:
            return work()
        finally:
            self._seconds = time.perf_counter() - start

    def _enter(self) -> None:
        with self._lock:
            if self.length >= self.limits.queue:
                raise RequestError(429, f"{self.length} requests are already waiting; try again later", self._retry())
            self.length += 1

    def _leave(self) -> None:
        with self._lock:
            self.length -= 1

    def _retry(self) -> dict[str, str]:
        return {"Retry-After": str(max(1, math.ceil(self._seconds * self.length)))}
