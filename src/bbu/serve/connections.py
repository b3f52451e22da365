"""Connections that keep the server waiting give way to new ones, and what never gets to the application is JSON too.

A client that sends half a request and no more (slow loris), or reads no answer, costs nothing but its own connection.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from enum import IntEnum
from typing import Any

import h11
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from bbu.serve.limits import RETRY, Limits

LINGER = 1.0  # seconds


class Waits(IntEnum):
    """What the server waits for; the lower ones give way first."""

    HEAD = 0  # of a first or next request
    READING = 1  # of the answer
    BODY = 2


class Connection(H11Protocol):
    """uvicorn's HTTP/1.1 connection with limits of time and number.

    Args:
        limits: ``connections``, ``connections_per_address``, ``head_seconds``, ``reading_seconds``. Beyond a number, a
            new connection takes the place of the one that keeps the server waiting longest, of the same address if
            that has too many, else of the address with most. Only where all are being answered, the new one gets 503.
        uvicorn: what uvicorn gives a connection.
    """

    def __init__(self, limits: Limits, **uvicorn: Any) -> None:
        super().__init__(**uvicorn)
        self.limits = limits
        self.since = self.loop.time()  # when what the server waits for changed last
        self.timer: asyncio.TimerHandle | None = None
        self.deaf = False  # whether what the client still sends is read and dropped

    @property
    def waits(self) -> Waits | None:
        """What the server waits for; None: nothing, it is at work."""
        if self.flow.write_paused or self.transport.get_write_buffer_size():
            return Waits.READING
        if self.cycle is None or self.cycle.response_complete:
            return Waits.HEAD
        if self.cycle.response_started:  # a file, at the client's pace; other answers are sent at once
            return Waits.READING
        return Waits.BODY if self.cycle.more_body else None

    @property
    def address(self) -> str:
        return self.client[0] if self.client else ""

    # ------------------------------------------------------------ events

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()
        self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self.deaf:
            super().data_received(data)

    def handle_events(self) -> None:
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:  # a request has begun
            self._watch()

    def on_response_complete(self) -> None:
        self._watch()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        self._answer(400, "the request is not valid HTTP/1.1")
        self._close_softly()

    def shutdown(self) -> None:
        try:
            super().shutdown()
        except h11.LocalProtocolError:  # an answer broke off
            self.transport.close()

    # ------------------------------------------------------------ time

    def _watch(self) -> None:
        self._stop_watching()
        self.since = self.loop.time()
        waits = self.waits
        if waits is Waits.BODY or waits is None:  # the application limits these
            return
        seconds = self.limits.head_seconds if waits is Waits.HEAD else self.limits.reading_seconds
        self.timer = self.loop.call_later(seconds, self._late)

    def _stop_watching(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _late(self) -> None:
        self._close(408, f"no whole request came within {self.limits.head_seconds:g} seconds; send it again")

    # ------------------------------------------------------------ number

    def _make_room(self) -> None:
        """Close another connection if there are too many; if none can be, refuse this one's requests."""
        others = [item for item in self.connections if isinstance(item, Connection) and item.is_open]
        count = Counter(item.address for item in others)
        if count[self.address] > self.limits.connections_per_address:
            crowd = self.address
        elif len(others) > self.limits.connections:
            crowd = count.most_common(1)[0][0]
        else:
            return
        idle = [item for item in others if item is not self and item.address == crowd and item.waits is not None]
        if idle:
            first = min(idle, key=lambda item: (item.waits, item.since))
            first._close(503, "gave way to a new connection, because there are too many; send it again")
        else:
            self.app = _busy

    @property
    def is_open(self) -> bool:
        return not (self.deaf or self.transport.is_closing())

    def _close(self, status: int, why: str) -> None:
        flood = len(self.connections) > 2 * self.limits.connections  # most of them being closed softly
        if flood or not self.is_open or self.waits is Waits.READING:
            self.transport.abort()  # what is not read would keep it open
            return
        self._answer(status, why)
        self._close_softly()

    def _close_softly(self) -> None:
        """Read for a moment what is on its way: closing on unread bytes would cost the client the answer."""
        if self.cycle is not None:
            self.cycle.disconnected = True  # the application's own answer, if any, goes nowhere
            self.cycle.message_event.set()
        self.transport.write_eof()
        self.deaf = True
        self.transport.resume_reading()
        self._stop_watching()
        self._unset_keepalive_if_required()
        self.loop.call_later(LINGER, self.transport.abort)

    def _answer(self, status: int, why: str) -> None:
        body = json.dumps({"error": why}).encode()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
            *([("retry-after", RETRY)] if status == 503 else []),
        ]
        try:
            head = h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status])
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:  # an answer has begun, or is over
            pass


async def _busy(scope: Any, receive: Any, send: Any) -> None:
    error = {"error": "all connections are being answered; try again later"}
    await JSONResponse(error, 503, {"Retry-After": RETRY, "Connection": "close"})(scope, receive, send)
