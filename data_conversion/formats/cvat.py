"""Read CVAT's export "CVAT for images 1.1": one or several ``*.xml`` at the root or, if none is there, one folder down.

    <image id name width height [subset]>
      <box label xtl ytl xbr ybr [rotation]>  <polygon label points="x,y;x,y">  <polyline …>  <tag label>
        <attribute name="state">loose</attribute>

Frame: since release 2.1 of 2022 CVAT applies the EXIF orientation and exports the size and pixels of the displayed
photo, so ``displayed`` is set. A box with a rotation (degrees, clockwise around its centre) becomes a ``poly``.

Description: the label, then the value of each attribute as a further level, in file order. A ticked checkbox
(``true``) gives its name, an unticked one (``false``) and ``__undefined__`` nothing. Tags describe the whole photo:
they become its summary. What else a shape says (occluded, group_id) is noted.

Splits: the subset in a project's export (train, validation, test and the like). An ``<image>`` without shapes is a
photo with nothing to see, but CVAT writes photos that nobody has looked at in the same way, so they are noted
(``no_shapes``). Points, ellipses, masks, cuboids, skeletons and all else are dropped as ``unsupported_shape``.

Format: docs.cvat.ai/docs/dataset_management/formats/format-cvat, "XML annotation format", version 1.1.
"""

from __future__ import annotations

import math
import posixpath
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

from bbu.errors import RecordError, shown
from bbu.taxonomy import SEPARATOR
from data_conversion.base import Dropped, RawObject, SourceImage, SourceItem, SourceOptions
from data_conversion.formats.checks import check_text, declared_size, parse_number
from data_conversion.formats.files import declared_split, or_bad_source
from data_conversion.formats.salvage import attribute_levels, salvage, turned_box, unread
from data_conversion.formats.source_photos import read_exports
from data_conversion.formats.xml_files import NoDoctype, open_xml, parse_xml
from data_conversion.locating import PhotoFinder

SHAPES = {"polygon": ("poly", 3), "polyline": ("line", 2)}  # element → kind and fewest points
# Read, or written by rote
IMAGE_ATTRIBUTES = ("id", "name", "width", "height", "subset", "task_id")
SHAPE_ATTRIBUTES = ("label", "source", "z_order", "xtl", "ytl", "xbr", "ybr", "rotation", "points")
MAX_DEPTH = 20  # of nested elements; exports have 5
TAG_SEPARATOR = "; "  # between the tags of a photo
CHOOSE_IMAGES = "export the task again as CVAT for images 1.1"


def iter_records(root: Path, options: SourceOptions = SourceOptions()) -> Iterator[SourceItem]:  # noqa: B008 (frozen)
    """Yield one item for each <image>, file by file, and one for each photo that no <image> names.

    A file that is no such export is one BadSource.
    """
    return read_exports(root, options.ignore, "*.xml", _read_images)


class _Check(NoDoctype):
    """Parser target that keeps nothing: is the file an export for images, from its first tag to its last?"""

    depth = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self.depth += 1
        if self.depth == 1 and tag != "annotations":
            raise RecordError(self.where, tag, f"the root element must be <annotations>; {CHOOSE_IMAGES}")
        if self.depth == 2 and tag == "track":
            raise RecordError(self.where, "track", f"belongs to an export for video; {CHOOSE_IMAGES}")
        if self.depth > MAX_DEPTH:
            raise RecordError(self.where, "file", f"is nested more than {MAX_DEPTH} deep, as no export is")

    def end(self, tag: str) -> None:
        self.depth -= 1


def _read_images(path: Path, where: str, finder: PhotoFinder) -> Iterator[SourceItem]:
    parse_xml(path, _Check(where))  # to its end, before anything is taken from a file that may be cut off
    parents: list[ElementTree.Element] = []  # of the current element, from the root down
    index = 0
    for event, element in _elements(path):
        if event == "start":
            parents.append(element)
            continue
        parents.pop()
        if len(parents) != 1:
            continue
        if element.tag == "image":
            yield _read_image(element, where, f"image[{index}]", finder)
            index += 1
        parents[0].clear()  # otherwise the whole file would collect below the root


def _elements(path: Path) -> Iterator[tuple[str, ElementTree.Element]]:
    with closing(open_xml(path)) as stream:
        yield from ElementTree.iterparse(stream, events=("start", "end"))


@or_bad_source
def _read_image(image: ElementTree.Element, where: str, place: str, finder: PhotoFinder) -> SourceItem:
    name = check_text(image.get("name", "").strip(), where, f"{place}.name")
    if not name:
        raise RecordError(where, f"{place}.name", "is missing")
    notes = unread("image attribute", image.attrib, IMAGE_ATTRIBUTES)
    width, height = (
        _number(image, side, where, place) if side in image.attrib else None for side in ("width", "height")
    )
    size = declared_size(width, height, where, place, notes)
    objects, tags = _read_shapes(image, where, place, notes)
    subset = image.get("subset", "")
    split, unknown = declared_split(subset)
    folder = posixpath.dirname(where)
    photo = finder.find(name, *(posixpath.join(folder, at) for at in (f"images/{subset}", "images", "")))
    return SourceImage(
        image=photo.image,
        source=where,
        objects=tuple(objects),
        size=size,
        displayed=True,
        split=split,
        summary=TAG_SEPARATOR.join(tags) or None,
        notes=(*notes, *unknown, *(() if objects else ("no_shapes",)), *photo.notes),
        missing=photo.missing,
    )


def _read_shapes(
    image: ElementTree.Element, where: str, place: str, notes: list[str]
) -> tuple[list[RawObject | Dropped], list[str]]:
    """Objects in file order, and the text of the tags."""
    objects: list[RawObject | Dropped] = []
    tags: list[str] = []
    counts: Counter[str] = Counter()
    for shape in image:
        here = f"{place}.{shape.tag}[{counts[shape.tag]}]"
        counts[shape.tag] += 1
        if shape.tag == "tag":
            tags += filter(None, [_describe(shape, where, here)])
        else:
            objects.append(salvage(partial(_read_shape, shape, where, here), shape.get("label", ""), here))
            if isinstance(objects[-1], RawObject):
                notes += unread("shape attribute", shape.attrib, SHAPE_ATTRIBUTES)
    return objects, tags


def _describe(shape: ElementTree.Element, where: str, place: str) -> str:
    """The label, then its attributes, as a path."""
    attributes = [(item.get("name", ""), item.text or "") for item in shape.iterfind("attribute")]
    levels = [shape.get("label", "").strip(), *attribute_levels(attributes)]
    return check_text(SEPARATOR.join(filter(None, levels)), where, f"{place}.attribute")


def _read_shape(shape: ElementTree.Element, where: str, place: str) -> RawObject | Dropped:
    desc = _describe(shape, where, place)
    if shape.tag not in ("box", *SHAPES):
        return Dropped(desc or "(no label)", "unsupported_shape", f"<{shape.tag}> is no box, polygon or line", place)
    if shape.tag == "box":
        x1, y1, x2, y2 = (_number(shape, name, where, place) for name in ("xtl", "ytl", "xbr", "ybr"))
        angle = _number(shape, "rotation", where, place) if "rotation" in shape.attrib else 0.0
        found = turned_box(desc, (x1, y1, x2, y2), math.radians(angle), place)
    else:
        kind, fewest = SHAPES[shape.tag]
        points = _points(shape, where, place)
        short = len(points) < 2 * fewest
        detail = f"a {shape.tag} of {len(points) // 2} points has no extent"
        found = Dropped(desc, "zero_area", detail, place) if short else RawObject(desc, kind, points, place)
    if not shape.get("label", "").strip():
        return Dropped("(no label)", "no_description", "the label is missing or empty", place)
    return found


def _points(shape: ElementTree.Element, where: str, place: str) -> tuple[float, ...]:
    """The flat coordinates in ``points="x,y;x,y"``."""
    numbers: list[float] = []
    for index, pair in enumerate(filter(None, shape.get("points", "").split(";"))):
        name = f"{place}.points[{index}]"
        parts = pair.split(",")
        if len(parts) != 2:
            raise RecordError(where, name, f"must be x,y, is {shown(pair)}")
        numbers += (parse_number(part, where, name) for part in parts)
    return tuple(numbers)


def _number(element: ElementTree.Element, name: str, where: str, place: str) -> float:
    return parse_number(element.get(name), where, f"{place}.{name}")
