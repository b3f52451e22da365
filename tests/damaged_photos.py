"""Photo files as they go wrong: EXIF data that cameras and editors get wrong, cut files, flipped bytes, other types."""

from __future__ import annotations

import io
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (40, 24)
ORIENTATION = 0x0112
SHORT, LONG, ASCII, RATIONAL, UNDEFINED, FLOAT, SIGNED, DOUBLE = 3, 4, 2, 5, 7, 11, 9, 12


def tiff(entries: list[tuple[int, int, int, bytes]], order: str = "<", tail: bytes = b"", next_ifd: int = 0) -> bytes:
    """The body of an EXIF block: one directory of (tag, type, count, four bytes of value or offset)."""
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    body = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        body += struct.pack(f"{order}HHI", tag, kind, count) + value.ljust(4, b"\0")
    return b"Exif\0\0" + head + body + struct.pack(f"{order}I", next_ifd) + tail


def exif_kinds(orientation: int) -> dict[str, bytes]:
    """EXIF blocks that say an orientation and are wrong somewhere else, or say it in a wrong way."""
    turn = (ORIENTATION, SHORT, 1, struct.pack("<H", orientation))
    after = struct.pack("<I", 8 + 2 + 2 * 12 + 4)  # offset of ``tail`` behind two entries

    def with_entry(tag: int, kind: int, count: int, value: bytes, tail: bytes = b"") -> bytes:
        return tiff(sorted([turn, (tag, kind, count, value)]), tail=tail)

    return {
        "plain": tiff([turn]),
        "big-endian": tiff([(ORIENTATION, SHORT, 1, struct.pack(">H", orientation))], ">"),
        "as a long": tiff([(ORIENTATION, LONG, 1, struct.pack("<I", orientation))]),
        "as text": tiff([(ORIENTATION, ASCII, 2, str(orientation).encode() + b"\0")]),
        "as a fraction": with_entry(0x9999, SHORT, 1, b"\1\0").replace(
            struct.pack("<HHI", ORIENTATION, SHORT, 1), struct.pack("<HHI", ORIENTATION, RATIONAL, 1)
        ),
        "as two": tiff([(ORIENTATION, SHORT, 2, struct.pack("<HH", orientation, orientation))]),
        "as a float": tiff([(ORIENTATION, FLOAT, 1, struct.pack("<f", orientation))]),
        "as nothing": tiff([(ORIENTATION, SHORT, 0, b"")]),
        "unknown type": with_entry(0x010E, 99, 1, b"abcd"),
        "resolution by zero": with_entry(0x011A, RATIONAL, 1, after, struct.pack("<II", 72, 0)),
        "resolution as a short": with_entry(0x011A, SHORT, 1, b"\x48\0"),
        "resolution as text": with_entry(0x011A, ASCII, 4, b"72\0\0"),
        "size as text": with_entry(0x0100, ASCII, 4, b"abc\0"),
        "number where text belongs": with_entry(0x010F, SHORT, 1, b"\1\0"),
        "fraction where a short belongs": with_entry(0x0103, RATIONAL, 1, after, struct.pack("<II", 1, 3)),
        "too large for its type": with_entry(0x0102, LONG, 1, b"\xff\xff\xff\xff"),
        "negative where none can be": with_entry(0x0102, SIGNED, 1, struct.pack("<i", -5)),
        "not a number": with_entry(0x0103, DOUBLE, 1, after, struct.pack("<d", float("nan"))),
        "infinite": with_entry(0xC4A5, FLOAT, 1, struct.pack("<f", float("inf"))),
        "text that is not ASCII": with_entry(0x010E, ASCII, 4, "ö螺".encode()[:4]),
        "offset behind the end": with_entry(0x010E, ASCII, 400, struct.pack("<I", 90_000)),
        "count of billions": with_entry(0x010E, ASCII, 0xFFFFFFFF, struct.pack("<I", 8)),
        "EXIF directory outside": with_entry(0x8769, LONG, 1, struct.pack("<I", 70_000)),
        "EXIF directory is itself": with_entry(0x8769, LONG, 1, struct.pack("<I", 8)),
        "EXIF directory as text": with_entry(0x8769, ASCII, 4, b"abc\0"),
        "GPS directory outside": with_entry(0x8825, LONG, 1, struct.pack("<I", 0xFFFFFFF0)),
        "GPS directory negative": with_entry(0x8825, SIGNED, 1, struct.pack("<i", -1)),
        "maker note": with_entry(0x927C, UNDEFINED, 300, after, bytes(range(256)) + bytes(44)),
        "twice": tiff([turn, (ORIENTATION, SHORT, 1, b"\1\0")]),
        "directories in a circle": tiff([turn], next_ifd=8),
        "impossible": tiff([(ORIENTATION, SHORT, 1, struct.pack("<H", 9 * orientation))]),
        "entries that are not there": tiff([turn])[:16] + b"\xff\xff" + tiff([turn])[18:],
        "cut off": tiff([turn])[:-9],
        "head alone": b"Exif\0\0II*\0",
        "no head": b"Exif\0\0" + b"\xff" * 30,
        "empty": b"Exif\0\0",
    }


def pixels(size: tuple[int, int] = SIZE, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def encoded(kind: str, image: Image.Image | None = None, exif: bytes = b"") -> bytes:
    """A photo as a file of Pillow's format ``kind``."""
    stream = io.BytesIO()
    (image or pixels()).save(stream, kind, **({"exif": exif} if exif else {}))
    return stream.getvalue()


def with_exif(exif: bytes, image: Image.Image | None = None) -> bytes:
    """A JPEG with this EXIF block, whatever is in it."""
    whole = encoded("JPEG", image)
    return whole[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + whole[2:]


KINDS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF", "AVIF", "JPEG2000", "PPM")
POSTSCRIPT = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(ran) (PROOF) (w) file closefile\nshowpage\n"
)


def mutated(whole: bytes, random: np.random.Generator, count: int) -> Iterator[bytes]:
    """``count`` damaged copies of a file: cut, bytes flipped in the head or anywhere, a piece gone, doubled, zeroed."""
    for number in range(count):
        data = bytearray(whole)
        start, length = int(random.integers(0, len(data))), int(random.integers(1, 200))
        match number % 6:
            case 0:
                del data[start:]
            case 1 | 2:
                reach = min(len(data), 200) if number % 6 == 1 else len(data)
                for place in random.integers(0, reach, int(random.integers(1, 6))):
                    data[place] = int(random.integers(0, 256))
            case 3:
                del data[start : start + length]
            case 4:
                data[start:start] = data[start : start + length]
            case _:
                data[start : start + length] = bytes(len(data[start : start + length]))
        yield bytes(data)


def no_files(folder: Path, name: str) -> dict[str, Path]:
    """Things called like photos that are no files; opening some of them would wait for ever."""
    places = {kind: folder / f"{kind}_{name}" for kind in ("pipe", "socket", "folder", "device", "gone", "loop")}
    os.mkfifo(places["pipe"])
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(folder)  # the path of a socket may have 100 characters
        try:
            listener.bind(places["socket"].name)
        finally:
            os.chdir(here)
    places["folder"].mkdir()
    places["device"].symlink_to("/dev/zero")
    places["gone"].symlink_to("nowhere.jpg")
    places["loop"].symlink_to(places["loop"].name)
    return places
