"""Write YOLO: ``data.yaml``, ``labels/<split>/….txt``, and the photos in ``images/<split>/…``. See yolo.py."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bbu.geometry import cxcywh_to_xyxy, xyxy_to_cxcywh
from bbu.jsonl import atomic_writer
from data_conversion.base import SPLITS, ExportLosses, ExportObject, ExportPhoto
from data_conversion.formats.files import new_file
from data_conversion.formats.yolo import label_place
from data_conversion.source_folder import walk_files

DIGITS = 8  # 0.0002 pixels in a photo of 20,000


def photo_place(image: str, split: str | None) -> str:
    """``images/<split>/<image>``; a photo without a split goes to train.

    A folder ``images`` inside the photo's own path would be mistaken for the one that becomes ``labels``, so it is
    written as ``images_`` (and ``images_`` as ``images__``, which keeps paths unique).
    """
    parts = (f"{part}_" if re.fullmatch("images_*", part) else part for part in image.split("/"))
    return f"images/{split or 'train'}/{'/'.join(parts)}"


def write_records(photos: Iterator[ExportPhoto], folder: Path) -> ExportLosses:
    """Write ``data.yaml`` and ``labels/<split>/….txt``; a photo without objects gets an empty file.

    Classes are numbered by first use. Ultralytics wants boxes or polygons, never both: it reads a box row among
    polygons as two points. So if any object is a polygon, every box is written as its four corners, and counted. A
    line is written as its box, at least MIN_BOX_THICKNESS thick; scores and summaries are not written.

    Raises:
        UserError: two photos that differ only in their suffix would share a label file.
    """
    losses = ExportLosses()
    classes: dict[str, int] = {}
    splits: set[str] = set()
    polygons = False
    for photo in photos:
        place = photo_place(photo.image, photo.split)
        rows = (_write_row(item, photo, classes, losses) for item in photo.objects)
        with atomic_writer(new_file(folder, label_place(place), photo.image)) as stream:
            stream.writelines(f"{row}\n" for row in rows if row)
        polygons = polygons or any(item.kind == "poly" for item in photo.objects)
        splits.add(photo.split or "train")
        losses["photo without a split written to train"] += photo.split is None
        losses["summary not kept"] += photo.summary is not None
    if polygons:
        files = walk_files(folder / "labels")
        losses["box written as a polygon of four corners"] += sum(_boxes_to_polygons(path) for path in files)
    _write_yaml(folder, splits, classes)
    return +losses


def _write_row(item: ExportObject, photo: ExportPhoto, classes: dict[str, int], losses: ExportLosses) -> str | None:
    """One object as a line, or None if nothing of it lies inside the photo."""
    losses["score not kept"] += item.score is not None
    losses["line written as its box"] += item.kind == "line"
    points = item.points if item.kind == "poly" else photo.box(item)
    # A record may lie half a pixel outside, for which Ultralytics would refuse the whole file.
    sides = (photo.width, photo.height)
    fractions = [min(max(value / sides[index % 2], 0.0), 1.0) for index, value in enumerate(points)]
    if item.kind != "poly":
        fractions = xyxy_to_cxcywh(np.array(fractions)).tolist()
        if min(fractions[2:]) < 10**-DIGITS:
            losses["object without area inside the photo not written"] += 1
            return None
    return _row(str(classes.setdefault(item.desc, len(classes))), fractions)


def _row(number: str, fractions: list[float]) -> str:
    return " ".join((number, *(f"{fraction:.{DIGITS}f}" for fraction in fractions)))


def _boxes_to_polygons(path: Path) -> int:
    """Rewrite the box rows of a label file as polygons of four corners; returns their number."""
    rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    boxes = sum(len(row) == 5 for row in rows)
    if boxes:
        with atomic_writer(path) as stream:
            stream.writelines(f"{_as_polygon(row) if len(row) == 5 else ' '.join(row)}\n" for row in rows)
    return boxes


def _as_polygon(row: list[str]) -> str:
    x1, y1, x2, y2 = cxcywh_to_xyxy(np.array(row[1:], dtype=np.float64)).tolist()
    return _row(row[0], [x1, y1, x2, y1, x2, y2, x1, y2])


def _write_yaml(folder: Path, splits: set[str], classes: Iterable[str]) -> None:
    import yaml

    value: dict[str, Any] = {split: f"images/{split}" for split in SPLITS if split in splits}
    value["names"] = dict(enumerate(classes))
    with atomic_writer(folder / "data.yaml") as stream:
        yaml.safe_dump(value, stream, allow_unicode=True, sort_keys=False, width=float("inf"))
