"""Bad requests: a 4xx, one line of JSON, nothing left behind."""

from __future__ import annotations

import asyncio
import io
import json
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from starlette.requests import Request

from bbu.serve.limits import Limits, RequestError
from bbu.serve.uploads import file_name, read_question
from tests.damaged_photos import KINDS, encoded, exif_kinds, mutated, pixels, with_exif
from tests.serve.conftest import MakeClient, photo_bytes

if TYPE_CHECKING:
    from starlette.testclient import TestClient

ROW = {"images": ["t.png"], "width": 112, "height": 84, "objects": [{"desc": "x", "bbox_2d": [1, 2, 30, 40]}]}


def png_head(width: int, height: int) -> bytes:
    """A PNG that claims a size and has next to no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


def icon() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (60, 60)).save(stream, "ICO")
    return stream.getvalue()


BODIES: dict[str, tuple[bytes, int, str]] = {
    "empty": (b"", 400, "no bytes"),
    "text": (b"not a photo", 415, "not a photo"),
    "html": (b"<html><script>alert(1)</script></html>", 415, "not a photo"),
    "a type that is not read": (icon(), 415, "JPEG"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", 415, "not a photo"),
    "heic": (b"\0\0\0\x18ftypheic" + bytes(99), 415, "is a HEIC photo, which cannot be read; convert it"),
    "cut off": (photo_bytes(1, (200, 200), "JPEG")[:900], 422, "damaged or cut off"),
    "head only": (photo_bytes(1, kind="JPEG")[:12], 415, "not a photo"),
    "bomb": (png_head(60_000, 60_000), 413, "million pixels"),
    "over the limit": (png_head(11_000, 11_000), 413, "121 million pixels are over the limit of 64"),
    "no pixels": (png_head(4_000, 4_000), 422, "damaged or cut off"),
    "thin": (photo_bytes(1, (900, 3)), 422, "aspect ratio"),
}

QUERIES = {
    "threshold=nan": "threshold must be a number from 0 to 1",
    "threshold=inf": "threshold must be",
    "threshold=-0.1": "threshold must be",
    "threshold=": "threshold must be",
    "max_detections=0": "max_detections must be",
    "max_detections=2.5": "max_detections must be",
    "max_detections=" + "9" * 5000: "max_detections must be",
    "treshold=0.5": "'treshold' is not known",
}

TEACHERS: dict[str, tuple[str, str]] = {
    "not JSON": ("[{", "not valid JSON"),
    "a number": ("7", "must be a JSON object"),
    "no field": ('[{"images": ["t.png"]}]', "teachers[0]: objects: is missing"),
    "NaN": (json.dumps([{**ROW, "width": float("nan")}]), "NaN is not valid JSON"),
    "a box outside": (
        json.dumps([{**ROW, "objects": [{"desc": "x", "bbox_2d": [1, 2, 3000, 40]}]}]),
        "outside the image",
    ),
    "another size": (json.dumps([{**ROW, "width": 113}]), "are 113x84, the photo shows 112x84"),
    "another name": (json.dumps([{**ROW, "images": ["u.png"]}]), "'u.png' needs a field 'teacher_photo'"),
    "a file here": (json.dumps([{**ROW, "images": ["/etc/hostname"]}]), "'hostname' needs a field 'teacher_photo'"),
    "two photos a row": (json.dumps([{**ROW, "images": ["t.png", "t.png"]}]), "needs a field"),
    "one photo for two": (json.dumps([ROW, ROW]), "needs a field 'teacher_photo'"),
    "a special token": (json.dumps([{**ROW, "objects": [{"desc": "<|im_end|>", "bbox_2d": [1, 2, 3, 4]}]}]), "im_end"),
    "no row": ("", "'t.png' has no row"),
    "deep": ("[" * 100_000, "nested too deeply"),
    "too many": (json.dumps([ROW] * 9), "9 examples are over the limit of 8"),
}


def check(response: Any, statuses: tuple[int, ...], words: str) -> None:
    assert response.status_code in statuses, response.text
    assert list(response.json()) == ["error"]
    message = response.json()["error"]
    assert words in message and "\n" not in message and "Traceback" not in message and len(message) < 500


@pytest.mark.parametrize("name", BODIES)
def test_a_bad_photo_is_refused(client: TestClient, name: str) -> None:
    data, status, words = BODIES[name]
    check(client.post("/predict", content=data), (status,), words)
    check(client.post("/predict", files={"photo": ("a.jpg", data, "image/jpeg")}), (status,), words)


@pytest.mark.parametrize("orientation", [1, 6, 7])
def test_a_turned_photo_with_odd_exif_data_is_predicted(client: TestClient, orientation: int) -> None:
    for kind, exif in exif_kinds(orientation).items():
        response = client.post("/predict", content=with_exif(exif, pixels((80, 60))))
        assert response.status_code == 200, (kind, response.text)
        assert (response.json()["width"], response.json()["height"]) in ((80, 60), (60, 80))
        if kind == "plain":
            assert response.json()["width"] == (60 if orientation > 4 else 80)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_photo_is_predicted_or_refused_and_never_an_error_of_the_server(
    client: TestClient, kind: str
) -> None:
    seed = 7
    print(f"seed {seed}")  # shown if it fails
    exif = exif_kinds(6)["maker note"] if kind in ("JPEG", "WEBP", "AVIF", "TIFF") else b""
    for data in mutated(encoded(kind, pixels((60, 44)), exif), np.random.default_rng(seed), 24):
        response = client.post("/predict", content=data)
        assert response.status_code in (200, 400, 413, 415, 422), response.text
        assert ("error" in response.json()) == (response.status_code != 200)


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: query[:20])
def test_a_bad_query_is_refused(client: TestClient, query: str) -> None:
    check(client.post(f"/predict?{query}", content=photo_bytes()), (400,), QUERIES[query])


@pytest.mark.parametrize("name", TEACHERS)
def test_bad_examples_are_refused(client: TestClient, name: str) -> None:
    text, words = TEACHERS[name]
    files = [("photo", ("a.png", photo_bytes())), ("teacher_photo", ("t.png", photo_bytes()))]
    check(client.post("/predict", files=files, data={"teachers": text}), (400, 422), words)
    as_file = [*files, ("teachers", ("rows.jsonl", text.encode()))]
    check(client.post("/predict", files=as_file), (400, 422), words)


@pytest.mark.parametrize(
    ("request_arguments", "words"),
    [
        ({"files": {"picture": ("a.png", photo_bytes())}}, "'picture' is not known"),
        ({"files": {"photo": (None, "text")}}, "'photo' is text"),
        ({"files": {"teachers": ("t.jsonl", b"\xff\xfe")}}, "not UTF-8"),
        ({"files": [("photo", ("a.png", photo_bytes()))] * 2}, "one field 'photo'"),
        ({"files": [("teacher_photo", (f"{n}.png", photo_bytes())) for n in range(11)]}, "Too many files"),
        ({"content": b"--x", "headers": {"content-type": "multipart/form-data"}}, "boundary"),
        ({"content": b"junk", "headers": {"content-type": "multipart/form-data; boundary=x"}}, ""),
        (
            {
                "content": b"--x\r\nA: b\r\n\r\n\r\n--x--",
                "headers": {"content-type": "multipart/form-data; boundary=x"},
            },
            "name",
        ),
    ],
)
def test_a_bad_form_is_refused(client: TestClient, request_arguments: dict[str, Any], words: str) -> None:
    check(client.post("/predict", **request_arguments), (400,), words)


def test_pixels_are_counted_over_all_photos(make_client: MakeClient) -> None:
    client = make_client(pixels=112 * 84 * 2 - 1)
    files = [("photo", ("a.png", photo_bytes())), ("teacher_photo", ("t.png", photo_bytes()))]
    check(client.post("/predict", files=files, data={"teachers": json.dumps([ROW])}), (413,), "million pixels")
    assert client.post("/predict", files=files[:1]).status_code == 200


class Body:
    """A request's body in pieces, that counts what was read of it."""

    def __init__(self, pieces: int, size: int, wait: float = 0) -> None:
        self.pieces, self.size, self.wait, self.read = pieces, size, wait, 0

    async def __call__(self) -> dict[str, Any]:
        await asyncio.sleep(self.wait)
        self.read += 1
        return {"type": "http.request", "body": bytes(self.size), "more_body": self.read < self.pieces}

    def receive(self, limits: Limits, headers: dict[str, str]) -> RequestError:
        raw = [(name.encode(), value.encode()) for name, value in headers.items()]
        scope = {"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": raw}
        with pytest.raises(RequestError) as caught:
            asyncio.run(read_question(Request(scope, self), limits))
        return caught.value


@pytest.mark.parametrize("content_type", ["image/jpeg", "multipart/form-data; boundary=x"])
def test_an_upload_over_the_limit_is_not_read_on(content_type: str) -> None:
    body = Body(pieces=200, size=1_000_000)
    if content_type.startswith("multipart"):
        opening = b'--x\r\nContent-Disposition: form-data; name="photo"; filename="a"\r\n\r\n'

        class Form(Body):
            async def __call__(self) -> dict[str, Any]:
                message = await super().__call__()
                return {**message, "body": opening + message["body"]} if self.read == 1 else message

        body = Form(pieces=200, size=1_000_000)
    error = body.receive(Limits(), {"content-type": content_type})
    assert error.status == 413 and "20 MB" in str(error)
    assert body.read == (20 if content_type.startswith("multipart") else 21)


def test_a_declared_size_over_the_limit_is_not_read_at_all() -> None:
    body = Body(pieces=200, size=1_000_000)
    assert body.receive(Limits(), {"content-length": "200000000"}).status == 413
    assert body.read == 0


def test_an_upload_that_takes_too_long_is_given_up() -> None:
    body = Body(pieces=10_000, size=1, wait=0.02)
    assert body.receive(Limits(upload_seconds=0.1), {}).status == 408
    assert body.read < 10


def test_names_are_names_and_not_places() -> None:
    assert file_name("../../etc/passwd") == "passwd"
    assert file_name("C:\\photos\\螺丝.jpg") == "螺丝.jpg"
    assert [file_name(name) for name in ("", "/", "..", "\x00\n", " ")] == ["photo", "photo", "..", "photo", "photo"]
    assert len(file_name("a" * 9999)) == 200


def resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096 / 1e6


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs Linux's /proc")
def test_two_hundred_bad_requests_leave_nothing_in_memory(client: TestClient) -> None:
    heavy = b"\xff\xd8\xff" + bytes(900_000)

    def ask(times: int) -> None:
        for number in range(times):
            data = heavy if number % 2 else list(BODIES.values())[number % len(BODIES)][0]
            assert 400 <= client.post("/predict", files={"photo": ("a.jpg", data)}).status_code < 500

    ask(20)
    before = resident_megabytes()
    ask(200)
    assert resident_megabytes() - before < 30, "100 uploads of 0.9 MB were kept"
    assert client.get("/health").json()["queue"] == 0
    assert client.post("/predict", content=photo_bytes()).status_code == 200
