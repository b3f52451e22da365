"""Write COCO files.

    annotations/instances_<split>.json      boxes and polygons; ``default`` where a photo has no split
    annotations/captions_<split>.json       if there are summaries
    images/<split>/<image>                  the photos; ``file_name`` is relative to images/<split>

This is the layout of CVAT and Datumaro; pycocotools, torchvision, Detectron2 and MMDetection take the JSON and the
folder of photos as a pair. Category ids count from 1, by name, and are the same in all splits. A polygon becomes a
``segmentation``; a box has none; a score is an extra key of the annotation. COCO has no lines: their boxes are written.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np

from bbu.geometry import polygon_area
from bbu.jsonl import atomic_writer
from bbu.taxonomy import prefix
from data_conversion.base import ExportLosses, ExportObject, ExportPhoto

NO_SPLIT = "default"
DECIMALS = 2  # of a pixel, as in records


def photo_place(image: str, split: str | None) -> str:
    return f"images/{split or NO_SPLIT}/{image}"


def write_records(photos: Iterator[ExportPhoto], folder: Path) -> ExportLosses:
    """Write the JSON files; ids are unique across splits. Memory holds only the category names."""
    losses = ExportLosses()
    names: set[str] = set()
    with ExitStack() as stack:
        # Beside the result, where there is room for it.
        spools = _Spools(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".coco-", dir=folder))), stack)
        annotation_id = 0
        for image_id, photo in enumerate(photos, start=1):
            split = photo.split or NO_SPLIT
            image = {"id": image_id, "file_name": photo.image, "width": photo.width, "height": photo.height}
            spools.add(split, "images", image)
            for item in photo.objects:
                annotation_id += 1
                names.add(item.desc)
                annotation = {"id": annotation_id, "image_id": image_id, "category_id": item.desc}
                spools.add(split, "annotations", {**annotation, **_geometry(item, photo, losses)})
            if photo.summary is not None and photo.summary.strip():
                spools.add(split, "captions", {"id": image_id, "image_id": image_id, "caption": photo.summary})
        _write_files(spools, sorted(names), folder / "annotations")
    return +losses


def _geometry(item: ExportObject, photo: ExportPhoto, losses: ExportLosses) -> dict[str, Any]:
    losses["line written as its box"] += item.kind == "line"
    x1, y1, x2, y2 = (round(value, DECIMALS) for value in photo.box(item))
    area = (x2 - x1) * (y2 - y1)
    polygon: list[list[float]] = []
    if item.kind == "poly":
        polygon = [[round(value, DECIMALS) for value in item.points]]
        area = polygon_area(np.asarray(item.points, dtype=np.float64).reshape(-1, 2))
    value: dict[str, Any] = {
        "bbox": [x1, y1, round(x2 - x1, DECIMALS), round(y2 - y1, DECIMALS)],
        "area": round(area, DECIMALS),
        "segmentation": polygon,
        "iscrowd": 0,
    }
    return value if item.score is None else {**value, "score": round(item.score, 6)}


class _Spools:
    """Temporary files of JSON lines, one for each split and list."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.streams: dict[tuple[str, str], IO[str]] = {}

    def add(self, split: str, name: str, value: dict[str, Any]) -> None:
        if (split, name) not in self.streams:
            stream = (self.folder / f"{name}_{split}").open("w+", encoding="utf-8")
            self.streams[split, name] = self.stack.enter_context(stream)
        self.streams[split, name].write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")

    def values(self, split: str, name: str) -> Iterator[dict[str, Any]]:
        if (split, name) in self.streams:
            stream = self.streams[split, name]
            stream.seek(0)
            yield from map(json.loads, stream)


def _write_files(spools: _Spools, names: list[str], folder: Path) -> None:
    numbers = {name: number for number, name in enumerate(names, start=1)}
    categories = [{"id": number, "name": name, "supercategory": prefix(name, 1)} for name, number in numbers.items()]
    for split in sorted({split for split, _ in spools.streams}) or [NO_SPLIT]:
        annotations = (
            {**value, "category_id": numbers[value["category_id"]]} for value in spools.values(split, "annotations")
        )
        lists = {"images": spools.values(split, "images"), "annotations": annotations, "categories": iter(categories)}
        _write(folder / f"instances_{split}.json", lists)
        if (split, "captions") in spools.streams:
            lists = {"images": spools.values(split, "images"), "annotations": spools.values(split, "captions")}
            _write(folder / f"captions_{split}.json", lists)


def _write(path: Path, lists: dict[str, Iterator[dict[str, Any]]]) -> None:
    """One JSON object of lists, one item per line."""
    with atomic_writer(path) as stream:
        stream.write('{"info": {}, "licenses": []')
        for name, values in lists.items():
            stream.write(f',\n"{name}": [')
            for index, value in enumerate(values):
                stream.write((",\n" if index else "\n") + json.dumps(value, ensure_ascii=False, allow_nan=False))
            stream.write("]")
        stream.write("}\n")
