"""Read Pascal VOC: ``Annotations/*.xml``, ``JPEGImages/`` and, if present, ``ImageSets/Main/{train,val,test}.txt``.

Other tools write ``annotations/`` and ``images/`` (Kaggle), each XML beside its photo (labelImg), or that in folders
``train/``, ``valid/`` and ``test/`` (Roboflow), which are the splits: without a folder called annotations at the root
all XML files are read. A photo is looked for under its <filename>, then by the name of its XML, as ``locating`` does.

VOC counts pixels from 1 and includes both corners, so a full image is (1, 1, W, H); as edges in pixels from 0 that is
(xmin - 1, ymin - 1, xmax, ymax). Common tools also keep to [1, W] × [1, H]: in BCCD the smallest corner is 1 (610
boxes, of cells cut by the border), none is 0, and the largest is W or H. Strictly, corners with the same x or y are one
pixel apart; but labelling tools write them for a stray click, so they count as zero area and are dropped.

Description: the name, then the value of each attribute that CVAT writes (``<attributes>``) as a further level, in file
order. CVAT's attribute ``rotation`` (degrees) and roLabelImg's ``<robndbox>`` (radians) turn the box clockwise about
its centre: a ``poly``. Other elements with content (truncated, part, polygon …) are noted.
"""

from __future__ import annotations

import math
import posixpath
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from bbu.errors import RecordError
from bbu.images import IMAGE_SUFFIXES
from bbu.taxonomy import SEPARATOR
from data_conversion.base import (
    SPLITS,
    BadSource,
    Dropped,
    RawObject,
    SourceImage,
    SourceItem,
    SourceNote,
    SourceOptions,
)
from data_conversion.formats.checks import box_of_corners, check_text, declared_size, parse_number
from data_conversion.formats.files import bad_source, read_each, read_text, split_of
from data_conversion.formats.salvage import (
    attribute_levels,
    salvage,
    turned_box,
    unread,
    unread_elements,
    upright,
)
from data_conversion.formats.xml_files import NoDoctype, parse_xml
from data_conversion.locating import Found, PhotoFinder
from data_conversion.source_folder import walk_files

ANNOTATIONS = "annotations"  # name of the folder of XML files, in lower case

ELEMENTS = ("folder", "filename", "path", "source", "owner", "size", "segmented", "object")  # read, or written by rote
OBJECT_ELEMENTS = ("name", "bndbox", "robndbox", "attributes", "type")
ROTATION = "rotation"
NOT_LEVELS = (ROTATION, "occluded", "truncated", "difficult", "keyframe", "track_id")  # what CVAT adds by itself


def iter_records(root: Path, options: SourceOptions = SourceOptions()) -> Iterator[SourceItem]:  # noqa: B008 (frozen)
    """Yield one item for each XML file, by name, then what has no XML file."""
    finder = PhotoFinder(root, options.ignore)
    sets: dict[str, list[Path]] = {}  # base folder → its XML files
    for path in _xml_files(root, options.ignore):
        sets.setdefault(_base(path.relative_to(root).as_posix())[0], []).append(path)
    for base, files in sets.items() or [("", [])]:
        try:
            hints, notes = _read_image_sets(root, base)
        except RecordError as error:
            yield bad_source(error)
            continue
        yield from notes
        used: set[str] = set()
        for item in read_each(root, files, partial(_read_file, finder=finder, hints=hints)):
            if isinstance(item, SourceImage) and not item.missing:
                used.add(item.image)
            yield item
        for stem in sorted(set(hints or {}) - {path.stem for path in files}):
            where = posixpath.join(base, f"ImageSets/Main/{(hints or {})[stem]}.txt")
            yield BadSource(where, stem, f"has no Annotations/{stem}.xml")
        yield from _photos_without_xml(root, base, used, {path.stem for path in files} | set(hints or {}))


def _xml_files(root: Path, ignore: Path | None) -> list[Path]:
    """The XML files of a folder called annotations at the root; without one, or if it has none, all of the source."""
    folders = sorted(path for path in root.iterdir() if path.name.lower() == ANNOTATIONS and path.is_dir())
    found = [path for folder in folders for path in walk_files(folder, ignore) if path.suffix.lower() == ".xml"]
    return found or [path for path in walk_files(root, ignore) if path.suffix.lower() == ".xml"]


def _base(where: str) -> tuple[str, str]:
    """The folder of the data set that an XML file belongs to, and the folders below its annotations."""
    folders = where.split("/")[:-1]
    at = next((index for index, name in enumerate(folders) if name.lower() == ANNOTATIONS), None)
    return ("/".join(folders), "") if at is None else ("/".join(folders[:at]), "/".join(folders[at + 1 :]))


def _photos_without_xml(root: Path, base: str, used: set[str], named: set[str]) -> Iterator[BadSource]:
    """One item for each photo, in the folders of a data set's photos, that has no XML file."""
    folders = {posixpath.dirname(image) for image in used} | {posixpath.join(base, "JPEGImages")}
    for folder in sorted(folder for folder in folders if (root / folder).is_dir()):
        for photo in sorted((root / folder).iterdir()):
            name = photo.relative_to(root).as_posix()
            known = photo.stem in named or name in used
            if photo.suffix.lower() in IMAGE_SUFFIXES and photo.name[0] != "." and not known:
                yield BadSource(name, "file", "has no XML in Annotations", reason="no_annotation")


def _read_image_sets(root: Path, base: str) -> tuple[dict[str, str] | None, list[SourceNote]]:
    """Stem → split, or None when the data set in the folder ``base`` has no image sets; and notes.

    A list that equals an earlier one, as tools write it where nothing was split, is left out and noted.

    ``trainval.txt`` is the union of two others and is read as train only where both of those are missing.
    """
    folder = root / base / "ImageSets" / "Main"
    files = {split: folder / f"{split}.txt" for split in SPLITS}
    if not files["train"].is_file() and not files["val"].is_file():
        files["train"] = folder / "trainval.txt"
    hints: dict[str, str] = {}
    found = [(split, file) for split, file in files.items() if file.is_file()]
    lists: dict[frozenset[str], str] = {}
    notes = []
    for split, file in found:
        where = file.relative_to(root).as_posix()
        stems = list(filter(None, map(str.strip, read_text(file, where).splitlines())))
        first = lists.setdefault(frozenset(stems), split)
        if first != split and stems:
            notes.append(SourceNote(where, f"{split} lists the photos of {first}; they count as {first}"))
            continue
        for stem in stems:
            if hints.setdefault(stem, split) != split:
                raise RecordError(where, stem, f"is in {hints[stem]} and in {split}; keep it in one split")
    return (hints if found else None), notes


class _Tree(NoDoctype, ElementTree.TreeBuilder):
    """Parser target that builds the tree."""


def _read_file(path: Path, where: str, finder: PhotoFinder, hints: Mapping[str, str] | None) -> SourceItem:
    if hints is not None and path.stem not in hints:
        return BadSource(where, "ImageSets", "is in none of train.txt, val.txt, test.txt", reason="not_in_image_sets")
    annotation: ElementTree.Element = parse_xml(path, _Tree(where))
    if annotation.tag != "annotation":
        raise RecordError(where, annotation.tag, "the root element must be <annotation>")
    notes = unread_elements("element", annotation, ELEMENTS)
    objects = [
        salvage(partial(_read_object, item, where, place, notes), item.findtext("name") or "", place)
        for place, item in ((f"object[{index}]", item) for index, item in enumerate(annotation.findall("object")))
    ]
    photo = _find_photo(annotation, path, where, finder)
    return SourceImage(
        image=photo.image,
        source=where,
        objects=tuple(objects),
        size=_declared_size(annotation, where, notes),
        split=hints[path.stem] if hints is not None else split_of(where),
        notes=(*notes, *photo.notes),
        missing=photo.missing,
    )


def _find_photo(annotation: ElementTree.Element, path: Path, where: str, finder: PhotoFinder) -> Found:
    """The photo that <filename> names, or that has the name of the XML."""
    name = check_text((annotation.findtext("filename") or "").strip(), where, "filename")
    base, below = _base(where)
    beside = posixpath.dirname(where)
    names = ("JPEGImages", "images")
    folders = [posixpath.join(base, at, inner) for at in names for inner in dict.fromkeys((below, ""))]
    if base == beside:
        folders.insert(0, beside)
    if name:
        return finder.find(name, *folders, others=[path.stem], home=folders[0])
    found = finder.find(path.stem, *folders)
    if found.missing:
        raise RecordError(where, "filename", f"is missing, and by the name of the XML: {found.missing}")
    return found


def _declared_size(annotation: ElementTree.Element, where: str, notes: list[str]) -> tuple[int, int] | None:
    size = annotation.find("size")
    if size is None:
        return None
    width, height = (
        _number(size, tag, where, "size") if (size.findtext(tag) or "").strip() else None for tag in ("width", "height")
    )
    return declared_size(width, height, where, "size", notes)


def _number(parent: ElementTree.Element, tag: str, where: str, field: str) -> float:
    return parse_number(parent.findtext(tag), where, f"{field}.{tag}")


def _read_object(item: ElementTree.Element, where: str, field: str, notes: list[str]) -> RawObject | Dropped:
    name = check_text((item.findtext("name") or "").strip(), where, f"{field}.name")
    attributes = _attributes(item, where, f"{field}.attributes")
    levels = attribute_levels((key, value) for key, value in attributes if key not in NOT_LEVELS)
    found = _geometry(item, dict(attributes), SEPARATOR.join([name, *levels]), where, field)
    if not name:
        return Dropped("(no label)", "no_description", "<name> is missing or empty", field)
    notes += unread_elements("object element", item, OBJECT_ELEMENTS)
    notes += unread("attribute", dict(attributes), {*dict(attributes)} - {*NOT_LEVELS} | {ROTATION})
    return found


def _attributes(item: ElementTree.Element, where: str, field: str) -> list[tuple[str, str]]:
    """(name, value) of CVAT's ``<attribute>`` elements; the plain text of LabelMe's old tool has no name."""
    parent = item.find("attributes")
    if parent is None:
        return []
    if not len(parent):
        return [("", check_text(parent.text or "", where, field))]
    pairs = ((it.findtext("name") or "", it.findtext("value") or "") for it in parent.iterfind("attribute"))
    return [(check_text(name.strip(), where, field), check_text(value.strip(), where, field)) for name, value in pairs]


def _geometry(
    item: ElementTree.Element, attributes: Mapping[str, str], desc: str, where: str, field: str
) -> RawObject | Dropped:
    """The box as edges in pixels from 0; a turned one is the polygon of its corners."""
    turned = item.find("robndbox")
    if turned is not None and item.find("bndbox") is None:
        cx, cy, width, height, angle = (
            _number(turned, tag, where, f"{field}.robndbox") for tag in ("cx", "cy", "w", "h", "angle")
        )
        if abs(angle) > math.tau:
            raise RecordError(where, f"{field}.robndbox.angle", f"must be in radians, up to 2 pi, is {angle:g}")
        corners = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
        return turned_box(desc, corners, angle, f"{field}.robndbox")
    box = item.find("bndbox")
    if box is None:
        raise RecordError(where, f"{field}.bndbox", "is missing")
    x1, y1, x2, y2 = (_number(box, tag, where, f"{field}.bndbox") for tag in ("xmin", "ymin", "xmax", "ymax"))
    found = box_of_corners(desc, (x1, y1, x2, y2), f"{field}.bndbox")
    if isinstance(found, Dropped):
        return found
    degrees = parse_number(attributes.get(ROTATION) or "0", where, f"{field}.attributes.{ROTATION}")
    found = turned_box(desc, (x1 - 1, y1 - 1, x2, y2), math.radians(degrees), f"{field}.bndbox")
    return upright(found, {child.tag: child.text for parent in (item, box) for child in parent}, field)
