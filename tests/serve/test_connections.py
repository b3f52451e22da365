"""Clients that keep the server waiting, over real sockets: others are served, and every refusal is JSON."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bbu.drawing.fonts import cjk_font
from bbu.serve.connections import Connection
from bbu.serve.limits import Limits
from bbu.serve.server import listen
from tests.serve.conftest import photo_bytes

if TYPE_CHECKING:
    from bbu.inference import Inference

HEAD = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n"
Place = tuple[str, int]
Serve = Callable[..., Place]


@pytest.fixture
def serve(inference: Inference) -> Iterator[Serve]:
    """serve(**limits): the address of a server with these limits."""
    import uvicorn

    from bbu.serve.app import create_app

    with ExitStack() as stack:

        def start(**limits: Any) -> Place:
            bounds = Limits(**limits)
            listener = stack.enter_context(closing(listen("127.0.0.1", 0)))
            app = create_app(inference, "tiny/model", limits=bounds)
            config = uvicorn.Config(app, http=partial(Connection, bounds), ws="none", log_level="critical")
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            stack.callback(thread.join)
            stack.callback(setattr, server, "force_exit", True)
            stack.callback(setattr, server, "should_exit", True)
            return listener.getsockname()[:2]

        yield start


@pytest.fixture
def open_many() -> Iterator[Callable[..., list[socket.socket]]]:
    """open_many(place, count, sent): sockets that have sent this much."""
    with ExitStack() as stack:

        def connect(place: Place, count: int, sent: bytes) -> list[socket.socket]:
            some = [stack.enter_context(closing(socket.create_connection(place, timeout=20))) for _ in range(count)]
            for item in some:
                item.sendall(sent)
            return some

        yield connect


def ask(place: Place, path: str = "/health", body: bytes | None = None) -> tuple[int, dict[str, Any]]:
    with closing(http.client.HTTPConnection(*place, timeout=20)) as connection:
        connection.request("POST" if body else "GET", path, body=body)
        response = connection.getresponse()
        return response.status, json.load(response)


def answer(item: socket.socket) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers and JSON of what the server says of itself; it closes the connection then."""
    data = b""
    while piece := item.recv(65_536):
        data += piece
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    assert headers["content-type"] == "application/json"
    return int(first.split()[1]), headers, json.loads(body)


# ---------------------------------------------------------------- number


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET", HEAD, HEAD + b"X-Slow: ", b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET "],
    ids=["nothing", "a word", "half a head", "half a header", "a whole request and half of the next"],
)
def test_three_hundred_half_sent_heads_shut_nobody_out(sent: bytes, serve: Serve, open_many: Any) -> None:
    place = serve()
    open_many(place, 300, sent)
    for _ in range(3):
        start = time.monotonic()
        assert ask(place)[0] == 200
        assert time.monotonic() - start < 3
    assert ask(place, "/predict", photo_bytes())[0] == 200


def test_half_sent_bodies_give_their_places_to_whole_requests(serve: Serve, open_many: Any) -> None:
    place = serve(patience_seconds=0.2)
    slow = open_many(place, 30, HEAD + b"Content-Length: 1000\r\nConnection: close\r\n\r\nabc")
    time.sleep(0.5)
    assert ask(place, "/predict", photo_bytes())[0] == 200
    answers = [answer(item) for item in slow[8:]]  # those that found the queue full of others that had just come
    assert {status for status, _, _ in answers} <= {429, 503}
    assert all("retry-after" in headers for _, headers, _ in answers)


def test_answers_that_nobody_reads_shut_nobody_out(serve: Serve, open_many: Any) -> None:
    place = serve(reading_seconds=1)
    many = open_many(place, 60, b"GET /glyphs HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 2)
    assert 200 in (ask(place)[0] for _ in range(50))  # 503 only while none of them has anything to read yet
    time.sleep(4)
    assert ask(place)[0] == 200
    received, patient = 0, many[-1]
    with contextlib.suppress(ConnectionError):
        while piece := patient.recv(1 << 20):
            received += len(piece)
    assert received < 2 * Path(str(cjk_font(16).path)).stat().st_size, "cut off, not kept"


def test_one_address_takes_no_place_from_another(serve: Serve, open_many: Any) -> None:
    place = serve(connections=20, connections_per_address=10)
    with socket.socket() as other:
        other.bind(("127.0.0.2", 0))
        other.connect(place)
        other.sendall(HEAD)
        open_many(place, 60, HEAD)
        assert ask(place)[0] == 200
        other.sendall(b"Content-Length: 3\r\n\r\nabc")
        assert answer_of_kept(other) == 415


def answer_of_kept(item: socket.socket) -> int:
    item.settimeout(20)
    return int(item.recv(100).split()[1])


def test_where_all_are_being_answered_a_new_one_gets_json_and_retry_after(
    serve: Serve, open_many: Any, inference: Inference, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = serve(connections=2, connections_per_address=2)
    begun, go_on = threading.Event(), threading.Event()
    real = inference.predictor.predict_photos

    def slowly(*arguments: Any) -> Any:
        begun.set()
        go_on.wait(20)
        return real(*arguments)

    monkeypatch.setattr(inference.predictor, "predict_photos", slowly)
    photo = photo_bytes()
    whole = HEAD + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(photo) + photo
    working = open_many(place, 2, whole)
    assert begun.wait(20)
    time.sleep(0.2)
    (third,) = open_many(place, 1, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    status, headers, body = answer(third)
    assert (status, headers["retry-after"]) == (503, "5") and "try again" in body["error"]
    go_on.set()
    assert [answer(item)[0] for item in working] == [200, 200]


# ---------------------------------------------------------------- time


@pytest.mark.parametrize("sent", [b"", b"GET / HTT", HEAD])
def test_a_head_that_does_not_come_is_told_so(sent: bytes, serve: Serve, open_many: Any) -> None:
    (item,) = open_many(serve(head_seconds=0.3), 1, sent)
    start = time.monotonic()
    status, _, body = answer(item)
    assert status == 408 and "send it again" in body["error"] and time.monotonic() - start < 5


def test_a_head_that_comes_letter_by_letter_has_no_more_time(serve: Serve, open_many: Any) -> None:
    (item,) = open_many(serve(head_seconds=0.6), 1, b"")
    start = time.monotonic()
    with pytest.raises(ConnectionError):
        while time.monotonic() - start < 10:
            item.sendall(b"G")
            time.sleep(0.05)
    assert time.monotonic() - start < 5


def test_a_body_that_stops_is_told_so(serve: Serve, open_many: Any) -> None:
    (item,) = open_many(serve(stall_seconds=0.3), 1, HEAD + b"Content-Length: 9\r\nConnection: close\r\n\r\nab")
    status, _, body = answer(item)
    assert status == 408 and "no byte of the upload came for 0.3 seconds" in body["error"]


def test_a_body_that_comes_slowly_is_read_while_there_is_room(serve: Serve, open_many: Any) -> None:
    photo = photo_bytes()
    head = HEAD + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(photo)
    (item,) = open_many(serve(head_seconds=0.3, patience_seconds=0.1), 1, head)
    step = len(photo) // 10 + 1
    for first in range(0, len(photo), step):
        item.sendall(photo[first : first + step])
        time.sleep(0.1)
    assert answer(item)[0] == 200


# ---------------------------------------------------------------- every error is JSON


@pytest.mark.parametrize(
    ("request_bytes", "statuses"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(60) + b"\r\n\r\n", {400}),  # TLS
        (b"nonsense\r\n\r\n", {400}),
        (b"GET /\xff HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", {400}),
        (b"GET / HTTP/1.1\r\n\r\n", {400}),
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 200_000 + b"\r\n\r\n", {400}),
        (HEAD + b"Content-Length: x\r\n\r\n", {400}),
        (HEAD + b"Content-Length: 99999999999999999999\r\nConnection: close\r\n\r\n", {413}),
        (HEAD + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\nZZ\r\n", {400}),
        (b"GET /nowhere HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", {404}),
        (b"DELETE /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", {405}),
        (b"GET http://elsewhere/ HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", {404}),
        (b"GET / HTTP/1.1\r\nHost: elsewhere\r\nConnection: close\r\n\r\n", {403}),
        (b"GET / HTTP/1.0\r\n\r\n", {403}),
        (HEAD + b"Content-Type: multipart/form-data\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc", {400}),
        (
            HEAD + b"Content-Type: multipart/form-data; boundary=x; charset=no-such\r\nContent-Length: 3\r\n"
            b"Connection: close\r\n\r\nabc",
            {400},
        ),
    ],
)
def test_whatever_is_wrong_with_a_request_the_answer_is_json(
    request_bytes: bytes, statuses: set[int], serve: Serve, open_many: Any
) -> None:
    (item,) = open_many(serve(), 1, request_bytes)
    status, _, body = answer(item)
    assert status in statuses and set(body) == {"error"} and body["error"]
