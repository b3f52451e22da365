"""Malformed Hugging Face image folders: each case adds exactly one bad file or photo to a sound source.

Saved data sets and Parquet shards are damaged in ``test_hf_dataset``: a source is of one form only.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

FORMAT = "hf_dataset"
REMOVE = object()


def row(name: str = "good.jpg", objects: Any = None, **changes: Any) -> dict[str, Any]:
    """One row of metadata: a box from (10, 10) to (30, 20)."""
    objects = {"bbox": [[10, 10, 20, 10]], "categories": ["RBC"]} if objects is None else objects
    value = {"file_name": name, "objects": objects, **changes}
    return {key: item for key, item in value.items() if item is not REMOVE}


def good(source: Any) -> None:
    source.photo("train/good.jpg")
    source.write("train/metadata.jsonl", json.dumps(row()) + "\n")


def text(content: str | bytes, name: str = "metadata.jsonl") -> Callable[[Any], None]:
    """The metadata of another folder is exactly this."""

    def build(source: Any) -> None:
        source.photo("test/bad.jpg")
        source.write(f"test/{name}", content)

    return build


def of_row(**changes: Any) -> Callable[[Any], None]:
    return text(json.dumps(row(**{"name": "bad.jpg", **changes})))


def objects(**columns: Any) -> Callable[[Any], None]:
    """Objects as a mapping of lists."""
    value = {"bbox": [[1, 1, 5, 5], [2, 2, 5, 5]], "categories": ["x", "y"], **columns}
    return of_row(objects={key: cells for key, cells in value.items() if cells is not REMOVE})


def listed(**changes: Any) -> Callable[[Any], None]:
    """Objects as a list of mappings."""
    value = {"bbox": [1, 1, 5, 5], "label": "x", **changes}
    return of_row(objects=[{key: cell for key, cell in value.items() if cell is not REMOVE}])


def a_link_in_a_circle(source: Any) -> None:
    (source.root / "test").mkdir()
    (source.root / "test" / "metadata.jsonl").symlink_to("metadata.jsonl")


BOX = r"line 1.objects.bbox\[1\]"

CASES: dict[str, tuple[Callable[[Any], None], str]] = {
    "a line that is cut off": (text('{"file_name": "ba'), "test/metadata.jsonl: line 1.row: is not valid JSON"),
    "a line that is a list": (text("[]"), "test/metadata.jsonl: line 1: must be a JSON object, is list"),
    "GBK": (text('{"标签": 1}'.encode("gbk")), "test/metadata.jsonl: file: is not UTF-8"),
    "a key twice": (text('{"file_name": 1, "file_name": 2}'), "line 1.file_name: appears twice"),
    "deep nesting": (text("[" * 100_000), "line 1.row: is nested too deeply"),
    "a number of 5,000 digits": (text('{"a": ' + "9" * 5000 + "}"), "line 1.row: is not valid JSON"),
    "no file name": (of_row(file_name=REMOVE), "line 1.image: must name a photo or hold one, is None"),
    "a file name that is a number": (of_row(name=3), "line 1.file_name: must name a photo or hold one, is 3"),
    "no objects": (of_row(objects=REMOVE), "line 1.objects: is missing; a photo with nothing to see"),
    "objects a number": (of_row(objects=3), "line 1.objects: must be a JSON object, is int"),
    "no boxes": (objects(bbox=REMOVE), "line 1.objects.bbox: is missing; keys are categories"),
    "boxes a number": (objects(bbox=1), "line 1.objects.bbox: must be a list, is int"),
    "fewer labels than boxes": (objects(categories=["x"]), "line 1.objects.categories: has 1 entries, bbox 2"),
    "a text that is a number": (of_row(text=3), "line 1.text: must be text, is 3"),
    "a size on its side": (of_row(width=60, height=80), "60x80 is the photo .80x60. on its side"),
    "a photo outside the source": (of_row(name="../../secret.jpg"), "leaves the source folder"),
    "a photo that is not there": (of_row(name="none.jpg"), "no photo at .*/source/none.jpg"),
    "CSV without file names": (text("a,b\n1,2\n", "metadata.csv"), "test/metadata.csv: file_name: is not a column"),
    "CSV with too many cells": (text("file_name\nbad.jpg,1\n", "metadata.csv"), "line 2: has 2 cells, the header 1"),
    "CSV with objects that are no JSON": (
        text("file_name,objects\nbad.jpg,{'bbox': []}\n", "metadata.csv"),
        "test/metadata.csv: line 2.objects: is not valid JSON",
    ),
    "CSV in GBK": (text("file_name\n标签.jpg\n".encode("gbk"), "metadata.csv"), "metadata.csv: file: is not UTF-8"),
    "Parquet that is none": (text("PAR1", "metadata.parquet"), "test/metadata.parquet: file: is damaged or incomplete"),
    "empty Parquet": (text("", "metadata.parquet"), "test/metadata.parquet: file: is damaged or incomplete"),
    "a link in a circle": (a_link_in_a_circle, "test/metadata.jsonl: file: cannot be read"),
}

# Only the object is bad: it is dropped, and the report says this
DROPPED: dict[str, tuple[Callable[[Any], None], str]] = {
    "a box of NaN": (
        objects(bbox=[[1, 1, 5, 5], [1, float("nan"), 3, 4]]),
        BOX + r"\[1\]: must be a pixel coordinate, is nan",
    ),
    "no labels": (objects(categories=REMOVE), r"line 1.objects\[0\]: an object has one of .*; found none"),
    "two labels": (objects(label=["x", "y"]), r"line 1.objects\[0\]: .* found categories and label"),
    "a label without a name": (objects(categories=["x", 1]), r"objects.categories\[1\]: is 1, a class without a name"),
    "a label that is true": (objects(categories=["x", True]), r"objects.categories\[1\]: must be text or the number"),
    "half a surrogate pair": (objects(categories=["x", "\ud83d"]), r"categories\[1\]: holds a broken character"),
    "a box of three numbers": (objects(bbox=[[1, 1, 5, 5], [1, 2, 3]]), BOX + ": needs 4 numbers"),
    "a box of null": (objects(bbox=[[1, 1, 5, 5], [1, None, 3, 4]]), BOX + r"\[1\]: must be a number, is None"),
    "a gigantic box": (objects(bbox=[[1, 1, 5, 5], [1, 10**300, 3, 4]]), BOX + r"\[1\]: must be a pixel coordinate"),
    "a listed object that is text": (of_row(objects=["x"]), r"line 1.objects\[0\]: must be a JSON object, is str"),
    "a listed object without a box": (listed(bbox=REMOVE), r"line 1.objects\[0\].bbox: must be a list, is NoneType"),
    "a listed object without a label": (listed(label=REMOVE), r"line 1.objects\[0\]: an object has one of"),
}

# Harmless: the report counts this note
NOTED: dict[str, tuple[Callable[[Any], None], str]] = {
    "width zero": (of_row(width=0, height=60), "declared_size_unusable"),
    "half a size": (of_row(width=80), "declared_size_unusable"),
}
