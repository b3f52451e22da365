"""Limits of a request, and the error for exceeding them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bbu.errors import UserError

MEGABYTE = 1_000_000
RETRY = "5"  # seconds: Retry-After where nothing better is known


@dataclass(frozen=True)
class Limits:
    """Bounds of memory and time; bytes and pixels count the photo and the examples of a request together.

    The worst case in memory: ``queue`` bodies, and the photos of one request with their copies on the way to the model
    (measured: 14 bytes per pixel, 31 with transparency).
    """

    request_bytes: int = 20 * MEGABYTE
    text_bytes: int = 2 * MEGABYTE  # the rows of the examples
    pixels: int = 64_000_000  # a phone's photo has 12 to 50 million
    teachers: int = 8
    queue: int = 8  # requests being received, waiting or predicted
    upload_seconds: float = 60
    stall_seconds: float = 10  # without a byte of an upload
    patience_seconds: float = 2  # after which a slow upload gives its place to a request that finds the queue full
    answer_seconds: float = 120  # waiting and predicting
    head_seconds: float = 10  # for a request up to its body
    reading_seconds: float = 30  # without a byte of the answer being read
    connections: int = 100
    connections_per_address: int = 50


class RequestError(UserError):
    """A request that is refused.

    Args:
        status: HTTP status.
        message: what is wrong, and the fix.
        headers: to send with it.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}
