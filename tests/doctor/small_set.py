"""A clean data set of the records format, made on the spot, that tests break in one place at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bbu.config import Config
from bbu.doctor.examination import examine
from bbu.doctor.findings import Finding
from bbu.doctor.report import Report

SIZE = (168, 140)  # width, height: 6 x 5 image tokens
BOXES = ((10, 10, 70, 60), (90, 70, 150, 130))
WORDS = ("screw/tight", "label/legible")
COUNTS = {"train": 12, "val": 3, "test": 3}

Change = Callable[["DataSet"], None]


@dataclass
class DataSet:
    """Photos and rows in a folder, and the config that trains on them."""

    folder: Path
    config: Config
    rows: dict[str, list[Any]] = field(default_factory=dict)

    def photo(self, name: str, seed: int, size: tuple[int, int] = SIZE, **options: Any) -> Path:
        """A photo whose perceptual hash is far from that of every other seed."""
        coarse = np.random.default_rng(seed).integers(0, 256, (7, 8, 3), dtype=np.uint8)
        path = self.folder / name
        Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, **options)
        return path

    def examine(self, **options: Any) -> Report:
        """Write the rows and let the doctor look."""
        for split, rows in self.rows.items():
            lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
            (self.folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
        return examine(self.config, self.folder, str(self.folder), **options)


def row(name: str, size: tuple[int, int] = SIZE, words: tuple[str, ...] = WORDS) -> dict[str, Any]:
    objects = [{"desc": desc, "bbox_2d": list(box)} for desc, box in zip(words, BOXES, strict=False)]
    return {"images": [name], "width": size[0], "height": size[1], "objects": objects}


def the(report: Report, code: str) -> Finding:
    """The one finding of a code."""
    (found,) = [item for item in report.findings if item.code == code]
    return found
