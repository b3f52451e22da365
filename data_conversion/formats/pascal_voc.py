"""Pascal VOC: ``Annotations/*.xml``, ``JPEGImages/`` and, if there, ``ImageSets/Main/{train,val,test}.txt``.

VOC numbers pixels from 1 and includes both corners, so a full image is (1, 1, W, H). As edges in pixels from
0 that is (xmin - 1, ymin - 1, xmax, ymax). Common tools keep to [1, W] × [1, H] too: in BCCD the smallest
corner is 1 (610 boxes, cells cut by the border), none is 0, and the largest is W or H. Two corners with the same
x or y would be one pixel wide by the letter of the rule; labelling tools write them for a stray click, so
they count as zero area and are dropped.
"""

from __future__ import annotations

import posixpath
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from bbu.errors import RecordError
from data_conversion.base import (
    IMAGE_SUFFIXES,
    SPLITS,
    BadSource,
    Dropped,
    RawObject,
    SourceImage,
    SourceItem,
    SourceOptions,
    check_number,
    check_size,
    check_text,
    read_each,
    readable,
)


def iter_records(root: Path, options: SourceOptions = SourceOptions()) -> Iterator[SourceItem]:  # noqa: B008 (frozen)
    """Yield one item for each XML file, by name; photos that the image sets leave out are passed over."""
    del options  # VOC has one label a box and fixed folders
    try:
        hints = _read_image_sets(root)
    except RecordError as error:
        yield BadSource(error.where, error.field, error.why)
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
            yield BadSource(readable(name), "file", "has no XML in Annotations", reason="no_annotation")


def _read_image_sets(root: Path) -> dict[str, str] | None:
    """Stem → split, or None when the source has no image sets.

    ``trainval.txt`` is only the union of two others and is read as train where neither of them is there.
    """
    folder = root / "ImageSets" / "Main"
    files = {split: folder / f"{split}.txt" for split in SPLITS}
    if not files["train"].is_file() and not files["val"].is_file():
        files["train"] = folder / "trainval.txt"
    hints: dict[str, str] = {}
    found = [(split, file) for split, file in files.items() if file.is_file()]
    for split, file in found:
        for stem in _read_stems(file, file.relative_to(root).as_posix()):
            if hints.setdefault(stem, split) != split:
                where = file.relative_to(root).as_posix()
                raise RecordError(where, stem, f"is in {hints[stem]} and in {split}; keep it in one split")
    return hints if found else None


def _read_stems(file: Path, where: str) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecordError(where, "file", f"is not UTF-8 ({error.reason}); save it as UTF-8") from None
    return [line.strip() for line in text.splitlines() if line.strip()]


class _NoDoctype(ElementTree.TreeBuilder):
    """Entities, and with them files that explode in memory, can only be declared in a DOCTYPE: refuse it."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def doctype(self, name: str, public_id: str | None, system_id: str | None) -> None:
        raise RecordError(self.where, "DOCTYPE", "is refused; remove the DOCTYPE and its entities")


def _parse_xml(path: Path, where: str) -> ElementTree.Element:
    parser = ElementTree.XMLParser(target=_NoDoctype(where))
    try:
        parser.feed(path.read_bytes())
        return parser.close()
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError(where, "file", f"is not valid XML: {error}") from None


def _read_file(path: Path, where: str, root: Path, hints: Mapping[str, str] | None) -> SourceItem:
    if hints is not None and path.stem not in hints:
        return BadSource(where, "ImageSets", "is in none of train.txt, val.txt, test.txt", reason="not_in_image_sets")
    annotation = _parse_xml(path, where)
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
    """``JPEGImages/<filename>``; without a <filename> the photo with the stem of the XML."""
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
    text = parent.findtext(tag)
    name = f"{field}.{tag}"
    if text is None:
        raise RecordError(where, name, "is missing")
    try:
        number = float(text)
    except ValueError:
        raise RecordError(where, name, f"must be a number, is {text!r}") from None
    return check_number(number, where, name)


def _read_object(item: ElementTree.Element, where: str, field: str) -> RawObject | Dropped:
    label = check_text((item.findtext("name") or "").strip(), where, f"{field}.name")
    box = item.find("bndbox")
    if box is None:
        raise RecordError(where, f"{field}.bndbox", "is missing")
    x1, y1, x2, y2 = (_number(box, tag, where, f"{field}.bndbox") for tag in ("xmin", "ymin", "xmax", "ymax"))
    corners = f"({x1:g}, {y1:g}, {x2:g}, {y2:g})"
    if not label:
        return Dropped("(no label)", "no_description", "<name> is missing or empty", field)
    if x2 < x1 or y2 < y1:
        return Dropped(label, "inverted_box", f"corners {corners} are swapped", f"{field}.bndbox")
    if x2 == x1 or y2 == y1:
        return Dropped(label, "zero_area", f"corners {corners} coincide", f"{field}.bndbox")
    return RawObject(label, "bbox_2d", (x1 - 1, y1 - 1, x2, y2), f"{field}.bndbox")
