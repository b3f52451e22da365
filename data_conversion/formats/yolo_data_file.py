"""Read the data.yaml of a YOLO source: class names, folders of the splits, key points."""

from __future__ import annotations

import math
import os
import posixpath
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from bbu.errors import RecordError, shown
from data_conversion.formats.checks import check_text
from data_conversion.formats.files import read_text
from data_conversion.formats.salvage import unread

SPLIT_KEYS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
NOTHING = ("", "~", "null")  # an empty entry
TASKS = ("", "detect", "segment", "obb", "pose")
# Of data.yaml, read or written by rote
YAML_KEYS = ("names", "nc", "path", *SPLIT_KEYS, "kpt_shape", "flip_idx", "download", "roboflow", "task")


def yaml_file(root: Path) -> str | None:
    """Name of data.yaml, or of the only other YAML file; None without any.

    Raises:
        RecordError: there are several others.
    """
    names = sorted(path.name for path in root.iterdir() if path.suffix in (".yaml", ".yml") and path.name[0] != ".")
    if "data.yaml" in names:
        return "data.yaml"
    if len(names) > 1:
        raise RecordError(names[0], "file", f"is one of {', '.join(names)}; call the one to read data.yaml")
    return names[0] if names else None


def read_yaml(root: Path, where: str) -> dict[str, Any]:
    """What data.yaml says of a source: names, base, entries, keypoints, polygons, notes.

    Raises:
        RecordError: file, key and what is wrong.
    """
    value = _load_yaml(read_text(root / where, where), where)
    if not isinstance(value, dict):
        raise RecordError(where, "file", "must hold names, train and val as key: value")
    task = value.get("task", "")
    if task not in TASKS:
        raise RecordError(where, "task", f"must be one of {', '.join(filter(None, TASKS))}, is {shown(task)}")
    names = _class_names(value.get("names"), where)
    if value.get("nc", str(len(names))) != str(len(names)):
        raise RecordError(where, "nc", f"is {shown(value['nc'])}, but names has {len(names)}; correct one of them")
    entries = [(key, entry) for key in SPLIT_KEYS for entry in _entries(value.get(key, ""), where, key)]
    return {
        "names": names,
        "base": _base_folder(root, value.get("path", ""), where),
        "entries": tuple(entries),
        "keypoints": _keypoints(value.get("kpt_shape", []), where),
        "polygons": task in ("segment", "obb"),
        "notes": tuple(unread("data.yaml key", value, YAML_KEYS)),
    }


def _keypoints(value: Any, where: str) -> int:
    """``kpt_shape: [points, numbers of each]`` → their product, 0 without key points."""
    numbers = value if isinstance(value, list) else [value]
    if not all(isinstance(number, str) and re.fullmatch("[0-9]{1,4}", number) for number in numbers):
        raise RecordError(where, "kpt_shape", f"must be [points, 2 or 3], is {shown(value)}")
    return math.prod(map(int, numbers)) if numbers else 0


def _load_yaml(text: str, where: str) -> Any:
    """One YAML document with every scalar as text: a class may be called no, 007 or 1e3."""
    import yaml

    def mapping(loader: Any, node: Any, deep: bool = False) -> Any:
        keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for index, key in enumerate(keys) if key in keys[:index]), None)
        if twice is not None:
            raise RecordError(where, shown(twice), "appears twice in one mapping; remove one of the two")
        return yaml.BaseLoader.construct_mapping(loader, node, deep)

    try:
        return yaml.load(text, Loader=type("UniqueKeys", (yaml.BaseLoader,), {"construct_mapping": mapping}))
    except yaml.YAMLError as error:
        raise RecordError(where, "file", f"is not valid YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise RecordError(where, "file", "is nested too deeply to be a data.yaml") from None


def _class_names(value: Any, where: str) -> dict[int, str]:
    """``[a, b]`` or ``{0: a, 1: b}`` → number → name."""
    if isinstance(value, list):
        value = {str(index): name for index, name in enumerate(value)}
    if not isinstance(value, dict):
        raise RecordError(where, "names", "must be a list of class names, or number: name")
    names = {}
    for key, name in value.items():
        place = f"names.{shown(key)}"
        if not isinstance(name, str):
            raise RecordError(where, place, f"must be text, is {type(name).__name__}")
        names[class_number(key, where, place)] = check_text(name, where, place)
    if len(names) != len(value):
        raise RecordError(where, "names", "has one number twice")
    return names


def class_number(text: str, where: str, place: str) -> int:
    """The number of a class, also as ``0.0``.

    Raises:
        RecordError: it is none.
    """
    if not re.fullmatch("[0-9]{1,9}", text):
        with suppress(ValueError):  # NumPy and pandas write 0.0 and 0.000e+00
            if text.isascii() and float(text).is_integer() and 0 <= float(text) < 1e9:
                return int(float(text))
        raise RecordError(where, place, f"must be a class number, 0 or above, is {shown(text)}")
    return int(text)


def _entries(value: Any, where: str, key: str) -> list[str]:
    items = value if isinstance(value, list) else [value]
    for item in items:
        if not isinstance(item, str):
            raise RecordError(where, key, f"must be a folder, a list of folders or a .txt, is {type(item).__name__}")
    return [check_text(item, where, key).replace("\\", "/") for item in items if item.lower() not in NOTHING]


def _base_folder(root: Path, value: Any, where: str) -> str:
    """``path`` relative to the root; one that does not exist is on another machine, so the root is used."""
    (entry, *_) = [*_entries(value, where, "path"), ""]
    folder = inside(root, entry)
    if folder is None and os.path.isdir(root / entry):
        why = f"{shown(entry)} leaves the source folder; convert that folder, or remove the line"
        raise RecordError(where, "path", why)
    return folder if folder is not None and os.path.isdir(root / folder) else ""


def inside(root: Path, name: str) -> str | None:
    """A path relative to the root, None if it leaves the root; links are checked when a photo is opened."""
    if name.startswith("/"):
        try:
            return Path(name).resolve().relative_to(root.resolve()).as_posix()
        except (ValueError, OSError, RuntimeError):  # elsewhere, or links in a circle
            return None
    name = posixpath.normpath(name) if name else ""
    return None if name == ".." or name.startswith("../") else name
