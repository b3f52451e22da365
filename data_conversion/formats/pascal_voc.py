"""Read Pascal VOC: ``Annotations/*.xml``, ``JPEGImages/`` and, if present, ``ImageSets/Main/{train,val,test}.txt``.

VOC counts pixels from 1 and includes both corners, so a full image is (1, 1, W, H); as edges in pixels from 0 that is
(xmin - 1, ymin - 1, xmax, ymax). Common tools also keep to [1, W] × [1, H]: in BCCD the smallest corner is 1 (610
boxes, of cells cut by the border), none is 0, and the largest is W or H. Strictly, corners with the same x or y are one
pixel apart; but labelling tools write them for a stray click, so they count as zero area and are dropped.
"""

from __future__ import annotations

import posixpath
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from bbu.errors import RecordError
from bbu.images import IMAGE_SUFFIXES
from data_conversion.base import SPLITS, BadSource, Dropped, RawObject, SourceImage, SourceItem, SourceOptions
from data_conversion.formats.checks import box_of_corners, check_size, check_text, parse_number
from data_conversion.formats.files import bad_source, read_each, read_text
from data_conversion.formats.xml_files import NoDoctype, parse_xml


def iter_records(root: Path, options: SourceOptions = SourceOptions()) -> Iterator[SourceItem]:  # noqa: B008 (frozen)
    """Yield one item for each XML file, by name, then what has no XML file."""
    del options  # VOC has one label per box and fixed folders
    try:
        hints = _read_image_sets(root)
    except RecordError as error:
        yield bad_source(error)
        return
    files = sorted(path for path in (root / "Annotations").glob("*.xml") if not path.name.startswith("."))
    used: set[str] = set()
    for item in read_each(root, files, partial(_read_file, root=root, hints=hints)):
        if isinstance(item, SourceImage):
            used.add(item.image)
        yield item
    for stem in sorted(set(hints or {}) - {path.stem for path in files}):
        yield BadSource(f"ImageSets/Main/{(hints or {})[stem]}.txt", stem, f"has no Annotations/{stem}.xml")
    named = {path.stem for path in files} | set(hints or {})
    for photo in sorted((root / "JPEGImages").glob("*")):
        name = f"JPEGImages/{photo.name}"
        if photo.suffix.lower() in IMAGE_SUFFIXES and photo.stem not in named and name not in used:
            yield BadSource(name, "file", "has no XML in Annotations", reason="no_annotation")


def _read_image_sets(root: Path) -> dict[str, str] | None:
    """Stem → split, or None when the source has no image sets.

    ``trainval.txt`` is the union of two others and is read as train only where both of those are missing.
    """
    folder = root / "ImageSets" / "Main"
    files = {split: folder / f"{split}.txt" for split in SPLITS}
    if not files["train"].is_file() and not files["val"].is_file():
        files["train"] = folder / "trainval.txt"
    hints: dict[str, str] = {}
    found = [(split, file) for split, file in files.items() if file.is_file()]
    for split, file in found:
        where = file.relative_to(root).as_posix()
        for stem in filter(None, map(str.strip, read_text(file, where).splitlines())):
            if hints.setdefault(stem, split) != split:
                raise RecordError(where, stem, f"is in {hints[stem]} and in {split}; keep it in one split")
    return hints if found else None


class _Tree(NoDoctype, ElementTree.TreeBuilder):
    """Parser target that builds the tree."""


def _read_file(path: Path, where: str, root: Path, hints: Mapping[str, str] | None) -> SourceItem:
    if hints is not None and path.stem not in hints:
        return BadSource(where, "ImageSets", "is in none of train.txt, val.txt, test.txt", reason="not_in_image_sets")
    annotation: ElementTree.Element = parse_xml(path, _Tree(where))
    if annotation.tag != "annotation":
        raise RecordError(where, annotation.tag, "the root element must be <annotation>")
    objects = [_read_object(item, where, f"object[{i}]") for i, item in enumerate(annotation.findall("object"))]
    return SourceImage(
        image=_image_name(annotation, path, where, root),
        source=where,
        objects=tuple(objects),
        size=_declared_size(annotation, where),
        split=hints[path.stem] if hints is not None else None,
    )


def _image_name(annotation: ElementTree.Element, path: Path, where: str, root: Path) -> str:
    """``JPEGImages/<filename>``; without a <filename> the photo that has the stem of the XML."""
    name = (annotation.findtext("filename") or "").strip()
    if name:
        return posixpath.normpath(f"JPEGImages/{check_text(name, where, 'filename')}")
    found = sorted(
        item.name for item in (root / "JPEGImages").glob(f"{path.stem}.*") if item.suffix.lower() in IMAGE_SUFFIXES
    )
    if len(found) != 1:
        raise RecordError(where, "filename", f"is missing, and {len(found)} photos are called {path.stem}")
    return f"JPEGImages/{found[0]}"


def _declared_size(annotation: ElementTree.Element, where: str) -> tuple[int, int] | None:
    size = annotation.find("size")
    if size is None:
        return None
    return check_size(_number(size, "width", where, "size"), _number(size, "height", where, "size"), where, "size")


def _number(parent: ElementTree.Element, tag: str, where: str, field: str) -> float:
    return parse_number(parent.findtext(tag), where, f"{field}.{tag}")


def _read_object(item: ElementTree.Element, where: str, field: str) -> RawObject | Dropped:
    label = check_text((item.findtext("name") or "").strip(), where, f"{field}.name")
    box = item.find("bndbox")
    if box is None:
        raise RecordError(where, f"{field}.bndbox", "is missing")
    x1, y1, x2, y2 = (_number(box, tag, where, f"{field}.bndbox") for tag in ("xmin", "ymin", "xmax", "ymax"))
    if not label:
        return Dropped("(no label)", "no_description", "<name> is missing or empty", field)
    found = box_of_corners(label, (x1, y1, x2, y2), f"{field}.bndbox")
    edges = (x1 - 1, y1 - 1, x2, y2)
    return replace(found, points=edges) if isinstance(found, RawObject) else found
