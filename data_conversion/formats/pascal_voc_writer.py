"""Write Pascal VOC: ``Annotations/*.xml``, ``ImageSets/Main/<split>.txt``, and the photos in ``JPEGImages/``.

VOC is flat, and its tools find a photo by the name of the XML. So a photo is named by its whole path, ``train/a.jpg`` →
``train%2Fa.jpg`` and ``train%2Fa.xml``, which keeps names unique; ``<path>`` holds the path itself.

Edges become inclusive corners that count from 1, (x1 + 1, y1 + 1, x2, y2), with their decimals. A box of one pixel or
less would get two corners at the same place, which readers drop as a stray click, so it is written NARROWEST wide and
counted. For a box of half a pixel this moves each edge by a quarter of a pixel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import IO
from xml.sax.saxutils import escape

from bbu.errors import UserError
from bbu.jsonl import atomic_writer
from data_conversion.base import ExportLosses, ExportObject, ExportPhoto
from data_conversion.formats.files import new_file
from data_conversion.formats.xml_files import NOT_IN_XML

DECIMALS = 4  # of a pixel
NARROWEST = 1.001  # pixels from edge to edge: over one even after rounding
NOT_IN_A_NAME = re.compile(r"^\.|[%/\s\x00-\x1f\x7f]")  # a hidden file; characters that break a path or a line


def photo_place(image: str, split: str | None) -> str:
    """``JPEGImages/<name>``: the photo's path with ``/``, ``%`` and blanks escaped as in a URL."""
    return f"JPEGImages/{NOT_IN_A_NAME.sub(_percent, image)}"


def _percent(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found.group().encode())


def write_records(photos: Iterator[ExportPhoto], folder: Path) -> ExportLosses:
    """Write one XML file per photo, and the image sets; a photo without a split goes to train.

    Lines (at least MIN_BOX_THICKNESS thick) and polygons are written as their boxes, scores and summaries not at all.

    Raises:
        UserError: two photos that differ only in their suffix would share an XML file, or a text holds a character
            that XML cannot hold.
    """
    losses = ExportLosses()
    sets: dict[str, IO[str]] = {}
    with ExitStack() as stack:
        for photo in photos:
            place = PurePosixPath(photo_place(photo.image, photo.split))
            path = new_file(folder, f"Annotations/{place.stem}.xml", photo.image)
            text = _annotation(photo, place.name, losses)
            with atomic_writer(path) as stream:
                stream.write(text)
            split = photo.split or "train"
            if split not in sets:
                sets[split] = stack.enter_context(atomic_writer(folder / "ImageSets" / "Main" / f"{split}.txt"))
            sets[split].write(f"{place.stem}\n")
            losses["photo without a split written to train"] += photo.split is None
            losses["summary not kept"] += photo.summary is not None
    return +losses


def _annotation(photo: ExportPhoto, name: str, losses: ExportLosses) -> str:
    objects = "".join(_object(item, photo, losses) for item in photo.objects)
    return (
        "<annotation>\n  <folder>JPEGImages</folder>\n"
        f"  <filename>{_text(name, photo)}</filename>\n  <path>{_text(photo.image, photo)}</path>\n"
        f"  <size><width>{photo.width}</width><height>{photo.height}</height><depth>3</depth></size>\n"
        f"  <segmented>0</segmented>\n{objects}</annotation>\n"
    )


def _object(item: ExportObject, photo: ExportPhoto, losses: ExportLosses) -> str:
    losses["score not kept"] += item.score is not None
    losses["line written as its box"] += item.kind == "line"
    losses["polygon written as its box"] += item.kind == "poly"
    box = photo.box(item)
    (x1, x2), (y1, y2) = _widen(box[0], box[2], photo.width), _widen(box[1], box[3], photo.height)
    losses["box of one pixel written wider"] += (x1, y1, x2, y2) != box
    corners = zip(("xmin", "ymin", "xmax", "ymax"), (x1 + 1, y1 + 1, x2, y2), strict=True)
    tags = "".join(f"<{tag}>{_number(value)}</{tag}>" for tag, value in corners)
    return (
        f"  <object><name>{_text(item.desc, photo)}</name><pose>Unspecified</pose><truncated>0</truncated>"
        f"<difficult>0</difficult><bndbox>{tags}</bndbox></object>\n"
    )


def _number(value: float) -> str:
    """Whole pixels without a point: many tools read corners as integers."""
    return f"{value:.{DECIMALS}f}".rstrip("0").removesuffix(".")


def _widen(low: float, high: float, limit: int) -> tuple[float, float]:
    """Two edges at least NARROWEST apart, kept inside the photo."""
    if high - low >= NARROWEST:
        return low, high
    start = max(min((low + high - NARROWEST) / 2, limit - NARROWEST), 0.0)
    return start, start + NARROWEST


def _text(text: str, photo: ExportPhoto) -> str:
    found = NOT_IN_XML.search(text)
    if found:
        raise UserError(
            f"{photo.image}: {text!r} has the character {found.group()!r}, which XML cannot hold; remove it"
        )
    return escape(text, {"\r": "&#13;"})
