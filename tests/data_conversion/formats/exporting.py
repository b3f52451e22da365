"""For the tests of writers and readers: photos to export, the way out and back in, and damaged files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st
from PIL import Image

from bbu.errors import UserError
from bbu.geometry import polygon_area
from bbu.taxonomy import join_path, split_path
from data_conversion.base import ExportLosses, ExportObject, ExportPhoto, RawObject, SourceImage, SourceOptions
from data_conversion.formats import FORMATS
from data_conversion.pipeline import convert

FOLDERS = ("a", "train", "val", "images", "images_", "labels", "x%2Fy", "照片", "two words", "a.b")
# Nothing that a line, a path or XML cannot hold: no controls, halves of pairs and unassigned characters.
LETTERS = st.characters(exclude_categories=("Cc", "Cs", "Cn"))
AWKWARD = (
    "yes",
    "007",
    "1e3",
    "null",
    "#1: x",
    "螺丝连接点/BBU安装螺丝/安装正确",
    "a,b/c & <d> \"e\" 'f'",
    "- x",
    "😀/{y}",
)
SPLITS = st.sampled_from([None, "train", "val", "test"])
LEAST_AREA = 0.5  # square pixels; less is read as nothing, and rounding may leave none


@st.composite
def descriptions(draw: st.DrawFn) -> str:
    """Slash paths as conversion leaves them: tidy blanks, no empty level."""
    levels = draw(st.lists(st.text(LETTERS, min_size=1, max_size=8), min_size=1, max_size=3))
    return draw(st.sampled_from(AWKWARD)) if draw(st.booleans()) else join_path(split_path("/".join(levels))) or "x"


@st.composite
def objects(draw: st.DrawFn, width: int, height: int, kinds: tuple[str, ...]) -> ExportObject:
    """An object inside the photo; a box is at least half a pixel wide and high, and a polygon has an area."""
    kind = draw(st.sampled_from(kinds))
    x, y = st.floats(0, width), st.floats(0, height)
    if kind == "bbox_2d":
        x1, y1 = draw(st.floats(0, width - 0.5)), draw(st.floats(0, height - 0.5))
        points = [x1, y1, draw(st.floats(x1 + 0.5, width)), draw(st.floats(y1 + 0.5, height))]
    else:
        count = draw(st.integers(3 if kind == "poly" else 2, 6))
        points = [draw(value) for _ in range(count) for value in (x, y)]
        assume(kind == "line" or polygon_area(np.reshape(points, (-1, 2))) > LEAST_AREA)
    score = draw(st.none() | st.floats(0, 1))
    return ExportObject(draw(descriptions()), kind, tuple(points), score)


@st.composite
def export_photos(
    draw: st.DrawFn, kinds: tuple[str, ...] = ("bbox_2d", "poly", "line"), largest: int = 120
) -> list[ExportPhoto]:
    """A few photos in awkward folders, no two of which share a stem."""
    photos = []
    for number in range(draw(st.integers(1, 4))):
        folders = draw(st.lists(st.sampled_from(FOLDERS), max_size=3))
        width, height = draw(st.integers(1, largest)), draw(st.integers(1, largest))
        drawn = draw(st.lists(objects(width, height, kinds), max_size=4))
        image = "/".join([*folders, f"p {number}.{draw(st.sampled_from(['jpg', 'PNG', 'rf.7.jpeg']))}"])
        summary = draw(st.none() | st.just("words"))
        photos.append(ExportPhoto(image, width, height, tuple(drawn), draw(SPLITS), summary))
    return photos


def out_and_in(name: str, photos: list[ExportPhoto]) -> tuple[ExportLosses, dict[str, SourceImage]]:
    """What writing loses, and what is read again: place of the photo → item."""
    entry = FORMATS[name]
    assert entry.write is not None and entry.read is not None
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        losses = entry.write(iter(photos), root)
        for photo in photos:
            path = root / entry.photo_place(photo.image, photo.split)
            path.parent.mkdir(parents=True, exist_ok=True)
            suffix = "PNG" if path.suffix == ".PNG" else "JPEG"
            Image.new("RGB", (photo.width, photo.height)).save(path, format=suffix)
        items = list(entry.read(root, SourceOptions()))
    assert all(isinstance(item, SourceImage) for item in items), items
    found = {item.image: item for item in items if isinstance(item, SourceImage)}
    assert sorted(found) == sorted(entry.photo_place(photo.image, photo.split) for photo in photos)
    return losses, found


def in_pixels(item: SourceImage, photo: ExportPhoto) -> list[tuple[str, str, tuple[float, ...]]]:
    """(description, kind, points in displayed pixels) of every object; none may have been dropped."""
    assert all(isinstance(obj, RawObject) for obj in item.objects), item.objects
    sides = (photo.width, photo.height) if item.relative else (1, 1)
    read = [obj for obj in item.objects if isinstance(obj, RawObject)]
    return [(p.desc, p.kind, tuple(v * sides[i % 2] for i, v in enumerate(p.points))) for p in read]


@st.composite
def damaged(draw: st.DrawFn, sound: bytes) -> bytes:
    """A file cut off at a random byte, or with junk at a random place."""
    place = draw(st.integers(0, len(sound) - 1))
    if draw(st.booleans()):
        return sound[:place]
    telling = [b"nan", b"-1", b"1e999", b"9" * 5000, b"\xff", b"\n", b"/", b'"', b"[" * 3000, b"../", b"\x00"]
    junk = draw(st.sampled_from(telling) | st.binary(max_size=5))
    return sound[:place] + junk + sound[place + draw(st.integers(0, 4)) :]


def convert_or_one_error(name: str, root: Path) -> None:
    """Convert leniently: everything that was read is counted, or there is one error in one line."""
    try:
        report: Any = convert(name, root, root / "out", taxonomy=None, on_error="skip", val_fraction=0.0, workers=1)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert report.objects_read == report.objects_written + report.objects_dropped
        assert report.photos_read == report.photos_written + report.photos_skipped.total()


def sound_source(folder: Path, files: dict[str, str], photos: list[str]) -> Callable[[str, bytes], None]:
    """Make a source; the function returned makes it sound again but for one file."""

    def write(name: str, content: bytes) -> None:
        for other, text in files.items():
            path = folder / other
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if other == name else text.encode())

    for name in photos:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (80, 60)).save(folder / name, comment=name)
    return write
