"""Requests → photos, rows and options; a request over a limit is refused as early as possible."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from starlette.datastructures import FormData, UploadFile
from starlette.requests import ClientDisconnect, Request

from bbu.data.photo import Photo
from bbu.errors import ImageError, ImageSizeError, RecordError
from bbu.images import FORMATS, MAX_IMAGE_PIXELS, load_image, open_image
from bbu.jsonl import decode_json
from bbu.records import Row, parse_row
from bbu.serve.limits import MEGABYTE, Limits, RequestError

if TYPE_CHECKING:
    from starlette.types import Message

FIELDS = ("photo", "teachers", "teacher_photo")
OPTIONS = {"threshold": (float, 0, 1), "max_detections": (int, 1, 10_000)}  # of a query: type, least, most
LONGEST_NAME = 200  # characters


@dataclass(frozen=True)
class Upload:
    """A photo's bytes and its file name without folders, as sent."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Question:
    """A whole request.

    Args:
        rows: annotated rows of the worked examples; ``shown`` has a photo with each row's name.
        threshold: lowest score in the answer, in [0, 1].
        max_detections: most objects in the answer, by score; None = all.
    """

    photo: Upload
    rows: tuple[Row, ...] = ()
    shown: tuple[Upload, ...] = ()
    threshold: float = 0.0
    max_detections: int | None = None


# ---------------------------------------------------------------- reading a request


async def read_question(request: Request, limits: Limits) -> Question:
    """Receive a request: multipart with the fields FIELDS, or a photo as the body.

    Raises:
        RequestError: anything wrong that shows without decoding photos; reading stops at the size limit.
        RecordError: rows of examples that break the contract.
    """
    options = _options(request.query_params)
    try:
        async with asyncio.timeout(limits.upload_seconds):
            limited = Request(request.scope, _limited(request, limits))
            if request.headers.get("content-type", "").lower().startswith("multipart/"):
                photo, rows, shown = await _read_form(limited, limits)
            else:
                photo, rows, shown = Upload("photo", await limited.body()), (), ()
    except TimeoutError:
        raise RequestError(408, f"the upload took more than {limits.upload_seconds:g} seconds; send it again") from None
    except ClientDisconnect:
        raise RequestError(400, "the upload broke off; send it again") from None
    if not photo.data:
        raise RequestError(400, "the photo has no bytes; send it as field 'photo' of a form, or as the body")
    return Question(photo, rows, shown, **options)


def _limited(request: Request, limits: Limits):  # type: ignore[no-untyped-def]
    """The request's ``receive``, which stops at the size limit, declared or real, and when nothing comes."""
    too_large = RequestError(
        413,
        f"the upload is over {limits.request_bytes / MEGABYTE:g} MB in all; shrink the photo, show fewer examples, "
        "or start the server with a larger --max-megabytes",
    )
    stalled = RequestError(408, f"no byte of the upload came for {limits.stall_seconds:g} seconds; send it again")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared[:20]) > limits.request_bytes:
        raise too_large
    received = 0

    async def receive() -> Message:
        nonlocal received
        try:
            async with asyncio.timeout(limits.stall_seconds):
                message = await request.receive()
        except TimeoutError:
            raise stalled from None
        received += len(message.get("body", b""))
        if received > limits.request_bytes:
            raise too_large
        return message

    return receive


async def _read_form(request: Request, limits: Limits) -> tuple[Upload, tuple[Row, ...], tuple[Upload, ...]]:
    options = {"max_files": limits.teachers + 2, "max_fields": len(FIELDS), "max_part_size": limits.text_bytes}
    async with request.form(**options) as form:
        unknown = sorted(set(form) - set(FIELDS))
        if unknown:
            raise RequestError(400, f"form field {unknown[0][:60]!r} is not known; known are {', '.join(FIELDS)}")
        rows = parse_rows(await _text(form, limits), limits)
        shown = [await _upload(form, item, "teacher_photo") for item in form.getlist("teacher_photo")]
        return await _upload(form, form.get("photo"), "photo"), rows, tuple(shown)


async def _upload(form: FormData, item: UploadFile | str | None, field: str) -> Upload:
    if not isinstance(item, UploadFile):
        found = "is missing" if item is None else "is text"
        raise RequestError(400, f"form field {field!r} {found}; send a file: curl -F {field}=@a.jpg")
    if len(form.getlist("photo")) > 1:
        raise RequestError(400, "a request has one field 'photo'; examples are 'teacher_photo'")
    return Upload(file_name(item.filename or field), await item.read())


async def _text(form: FormData, limits: Limits) -> str:
    parts = form.getlist("teachers")
    if len(parts) > 1:
        raise RequestError(400, "form field 'teachers' occurs twice; send all rows in one")
    part = parts[0] if parts else ""
    if isinstance(part, str):
        return part
    if (part.size or 0) > limits.text_bytes:
        raise RequestError(413, f"form field 'teachers' is over {limits.text_bytes / MEGABYTE:g} MB")
    try:
        return (await part.read()).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(400, f"form field 'teachers' is not UTF-8 ({error.reason})") from None


def file_name(sent: str) -> str:
    """A file name without folders and control characters; it names the photo in answers and is never opened."""
    name = PurePosixPath(sent.replace("\\", "/")).name
    return "".join(letter for letter in name if letter.isprintable())[:LONGEST_NAME].strip() or "photo"


def _options(query: Mapping[str, str]) -> dict[str, Any]:
    """The OPTIONS that a query sets, by name."""
    unknown = sorted(set(query) - set(OPTIONS))
    if unknown:
        raise RequestError(400, f"query {unknown[0][:60]!r} is not known; known are {', '.join(OPTIONS)}")
    options = {}
    for name in query:
        kind, low, high = OPTIONS[name]
        try:
            value = kind(query[name])
        except ValueError:
            value = math.nan
        if not low <= value <= high:  # NaN compares false
            raise RequestError(400, f"query {name} must be a number from {low:g} to {high:g}, is {query[name][:60]!r}")
        options[name] = value
    return options


def parse_rows(text: str, limits: Limits) -> tuple[Row, ...]:
    """Rows of worked examples: a JSON list, or JSON lines.

    Raises:
        RecordError: names the row and field.
        RequestError: too many.
    """
    if text.lstrip().startswith("["):
        values = decode_json(text, "teachers")
        rows = tuple(parse_row(value, f"teachers[{number}]") for number, value in enumerate(values))
    else:
        lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
        rows = tuple(parse_row(decode_json(line, f"teachers:{n}"), f"teachers:{n}") for n, line in lines)
    if len(rows) > limits.teachers:
        raise RequestError(400, f"{len(rows)} examples are over the limit of {limits.teachers}; show fewer")
    return rows


# ---------------------------------------------------------------- pixels


def open_photos(question: Question, limits: Limits) -> tuple[Photo, list[Photo]]:
    """The photo, and the worked examples in the order of their rows.

    Raises:
        RequestError: not a photo (415), too many pixels (413), a row without its photo or of another size (422).
        ImageError: a photo that is damaged.
    """
    pairs = _pairs(question)
    uploads = [question.photo, *(upload for _, upload in pairs)]
    pixels = sum(_pixels(upload) for upload in uploads)
    if pixels > min(limits.pixels, MAX_IMAGE_PIXELS):
        raise RequestError(
            413, f"{pixels / 1e6:.0f} million pixels are over the limit of {limits.pixels / 1e6:.0f}; shrink the photos"
        )
    images = [load_image(upload.data, upload.name) for upload in uploads]
    teachers = []
    for (row, upload), image in zip(pairs, images[1:], strict=True):
        if image.size != (row.width, row.height):
            raise RecordError(
                f"teachers: {row.images[0][:LONGEST_NAME]}",
                "width, height",
                f"are {row.width}x{row.height}, the photo shows {image.width}x{image.height} (after EXIF)",
            )
        teachers.append(Photo(image, upload.name, row.objects))
    return Photo(images[0], question.photo.name), teachers


def _pairs(question: Question) -> list[tuple[Row, Upload]]:
    """Each row with its photo, by file name."""
    by_name = {upload.name: upload for upload in question.shown}
    if len(by_name) < len(question.shown):
        raise RequestError(422, "two example photos have the same file name; rename one, and its row")
    pairs = []
    for row in question.rows:
        name = file_name(row.images[0])
        if len(row.images) != 1 or name not in by_name:
            sent = ", ".join(by_name) or "none"
            raise RequestError(422, f"example {name!r} needs a field 'teacher_photo' with that file name; sent: {sent}")
        pairs.append((row, by_name.pop(name)))
    if by_name:
        raise RequestError(422, f"example photo {next(iter(by_name))!r} has no row in 'teachers'")
    return pairs


def _pixels(upload: Upload) -> int:
    """Width × height from the file's header; the type is told by content, not by name."""
    try:
        with open_image(upload.data, upload.name) as image:
            return image.width * image.height
    except ImageSizeError:
        return MAX_IMAGE_PIXELS + 1
    except ImageError as error:
        why = str(error).removeprefix(f"{upload.name}: ")
        raise RequestError(
            415, f"{upload.name}: is not a photo that can be read ({', '.join(FORMATS)}): it {why}"
        ) from None
