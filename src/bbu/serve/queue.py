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

    A request takes its place before its body is read, so bodies in memory count too. If the queue is full, the oldest
    one that is still being received after ``patience_seconds`` gives its place to the next. A job keeps its place until
    it ends, because a prediction cannot be interrupted on a timeout.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.length = 0
        self._seconds = 1.0  # of the last work
        self._lock = threading.Lock()
        self._receiving: dict[asyncio.Timeout, float] = {}  # → when it began, in the event loop's seconds; in order
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")

    async def answer(self, receive: Callable[[], Awaitable[Callable[[], Answer]]]) -> Answer:
        """Take a place, receive the job, wait for its result.

        Raises:
            RequestError: 429 if the queue is full, 503 on a timeout, for a slow upload and when the server stops.
        """
        self._enter()
        try:
            work = await self._received(receive)
            future = self._thread.submit(self._timed, work)
        except BaseException:
            self._leave()
            raise
        future.add_done_callback(lambda _: self._leave())
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self.limits.answer_seconds)
        except asyncio.CancelledError:  # only the server's stop cancels a request
            raise RequestError(503, "the server is being stopped; send it again later", self._retry()) from None
        except TimeoutError:
            raise RequestError(
                503, f"no answer within {self.limits.answer_seconds:g} seconds; try again later", self._retry()
            ) from None

    async def _received(self, receive: Callable[[], Awaitable[Callable[[], Answer]]]) -> Callable[[], Answer]:
        try:
            async with asyncio.timeout(None) as place:
                self._receiving[place] = asyncio.get_running_loop().time()
                return await receive()
        except TimeoutError:
            why = "the upload was slow and gave its place to another request; send it again later"
            raise RequestError(503, why, self._retry()) from None
        finally:
            self._receiving.pop(place, None)

    def _push_out(self) -> bool:
        """End the oldest slow upload; False if there is none."""
        now = asyncio.get_running_loop().time()
        for place, since in self._receiving.items():
            if now - since > self.limits.patience_seconds:
                del self._receiving[place]
                place.reschedule(now)
                return True
        return False

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
            if self.length >= self.limits.queue and not self._push_out():
                raise RequestError(429, f"{self.length} requests are already waiting; try again later", self._retry())
            self.length += 1

    def _leave(self) -> None:
        with self._lock:
            self.length -= 1

    def _retry(self) -> dict[str, str]:
        return {"Retry-After": str(max(1, math.ceil(self._seconds * self.length)))}
