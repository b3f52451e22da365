"""CVAT: the export "CVAT for images 1.1", one or several ``*.xml`` at the root, read.

    <image id name width height [subset]>
      <box label xtl ytl xbr ybr [rotation]>  <polygon label points="x,y;x,y">  <polyline …>  <tag label>
        <attribute name="state">loose</attribute>

Frame: CVAT shows the photo turned as its EXIF tag says (since release 2.1 of 2022) and gives that size and those
pixels, so ``displayed`` is set. A box with a rotation (degrees, clockwise around its centre) becomes ``poly``.

Labels: the label, then the value of each attribute as a further level, in file order. A checkbox is its name where
it is ticked (``true``) and nothing where it is not (``false``). Tags are about the photo: its summary.

Splits: the subset of a project's export (train, validation, test and the like). An ``<image>`` without shapes is a
photo with nothing to see; CVAT writes photos that nobody has looked at in the same way, so they are noted
(``no_shapes``). Points, ellipses, masks, cuboids and skeletons are dropped by name.

Format: docs.cvat.ai/docs/dataset_management/formats/format-cvat, "XML annotation format", version 1.1.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from bbu.errors import RecordError
from bbu.taxonomy import SEPARATOR
from data_conversion.base import (
    BadSource,
    Dropped,
    RawObject,
    SourceImage,
    SourceItem,
    SourceOptions,
    check_number,
    check_size,
    check_text,
    readable,
)
from data_conversion.formats.grouping import Shelves, named_split
from data_conversion.formats.source_photos import find_photo, unnamed_photos
from data_conversion.locating import PhotoFinder

SHAPES = {"polygon": ("poly", 3), "polyline": ("line", 2)}  # element → kind and fewest points
OTHER_SHAPES = ("points", "ellipse", "mask", "cuboid", "skeleton")
MAX_DEPTH = 20  # of nested elements; exports have 5
TAG_SEPARATOR = "; "  # between the tags of a photo
CHOOSE_IMAGES = "export the task again as CVAT for images 1.1"


def iter_records(root: Path, options: SourceOptions = SourceOptions()) -> Iterator[SourceItem]:  # noqa: B008 (frozen)
    """Yield one item for each <image>, file by file, and one for each photo that no <image> names.

    A file that is not such an export is one BadSource.
    """
    with Shelves() as named:
        for item in _read_files(root):
            if isinstance(item, SourceImage):
                named.put("photos", item.image)
            yield item
        yield from unnamed_photos(root, options.ignore, named, "photos")


def _read_files(root: Path) -> Iterator[SourceItem]:
    finder = PhotoFinder(root)
    for path in sorted(root.glob("*.xml")):
        if path.name.startswith(".") or path.is_dir():
            continue
        if readable(path.name) != path.name:
            yield BadSource(readable(path.name), "file", "has a name that is not UTF-8; rename it")
            continue
        try:
            _check_file(path, path.name)
            yield from _read_images(path, path.name, finder)
        except RecordError as error:
            yield BadSource(error.where, error.field, error.why)
        except OSError as error:
            yield BadSource(path.name, "file", f"cannot be read ({error.strerror or error})")


class _Sound:
    """Target of a parser that keeps nothing: is the file an export for images, from its first tag to its last?"""

    def __init__(self, where: str) -> None:
        self.where, self.depth = where, 0

    def doctype(self, name: str, public_id: str | None, system_id: str | None) -> None:
        """Entities, and with them files that explode in memory, can only be declared there."""
        raise RecordError(self.where, "DOCTYPE", "is refused; remove the DOCTYPE and its entities")

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


def _check_file(path: Path, where: str) -> None:
    """Read the file to its end before anything is taken from it.

    Raises:
        RecordError: it cannot be read exactly.
    """
    parser = ElementTree.XMLParser(target=_Sound(where))
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 16):
                parser.feed(chunk)
        parser.close()
    except RecordError:
        raise
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise RecordError(where, "file", f"is not valid XML: {error}") from None


def _read_images(path: Path, where: str, finder: PhotoFinder) -> Iterator[SourceItem]:
    parents: list[ElementTree.Element] = []  # of the element at hand, from the root down
    index = 0
    for event, element in ElementTree.iterparse(path, events=("start", "end")):
        if event == "start":
            parents.append(element)
            continue
        parents.pop()
        if len(parents) != 1:
            continue
        if element.tag == "image":
            yield _read_image(element, where, f"image[{index}]", finder)
            index += 1
        parents[0].clear()  # else the whole file gathers below the root


def _read_image(image: ElementTree.Element, where: str, place: str, finder: PhotoFinder) -> SourceItem:
    try:
        name = check_text(image.get("name", "").strip(), where, f"{place}.name")
        if not name:
            raise RecordError(where, f"{place}.name", "is missing")
        size = check_size(_number(image, "width", where, place), _number(image, "height", where, place), where, place)
        objects, tags = _read_shapes(image, where, place)
        subset = image.get("subset", "")
        return SourceImage(
            image=find_photo(finder, name, f"images/{subset}", "images"),
            source=where,
            objects=tuple(objects),
            size=size,
            displayed=True,
            split=named_split(subset),
            summary=TAG_SEPARATOR.join(tags) or None,
            notes=() if objects else ("no_shapes",),
        )
    except RecordError as error:
        return BadSource(error.where, error.field, error.why)


def _read_shapes(image: ElementTree.Element, where: str, place: str) -> tuple[list[RawObject | Dropped], list[str]]:
    """Objects in file order, and what the tags say."""
    objects: list[RawObject | Dropped] = []
    tags: list[str] = []
    counts: dict[str, int] = {}
    for shape in image:
        number = counts.setdefault(shape.tag, 0)
        counts[shape.tag] += 1
        here = f"{place}.{shape.tag}[{number}]"
        desc = _describe(shape, where, here)
        if shape.tag == "tag":
            tags += [desc] if desc else []
        else:
            objects.append(_read_shape(shape, desc, where, here))
    return objects, tags


def _describe(shape: ElementTree.Element, where: str, place: str) -> str:
    """The label, then its attributes, as a path."""
    levels = [shape.get("label", "")]
    for index, attribute in enumerate(shape.iterfind("attribute")):
        value = (attribute.text or "").strip()
        ticked = {"true": attribute.get("name", ""), "false": ""}
        levels.append(check_text(ticked.get(value.lower(), value), where, f"{place}.attribute[{index}]"))
    return SEPARATOR.join(level.strip() for level in levels if level.strip())


def _read_shape(shape: ElementTree.Element, desc: str, where: str, place: str) -> RawObject | Dropped:
    if shape.tag == "box":
        kind, points = _box(shape, where, place)
    elif shape.tag in SHAPES:
        kind, points = SHAPES[shape.tag][0], _points(shape, where, place)
    elif shape.tag in OTHER_SHAPES:
        return Dropped(desc or "(no label)", "unsupported_shape", f"<{shape.tag}> is no box, polygon or line", place)
    else:
        raise RecordError(where, place, f"is no shape of {', '.join(('box', *SHAPES, *OTHER_SHAPES))}")
    if not shape.get("label", "").strip():
        return Dropped("(no label)", "no_description", "the label is missing or empty", place)
    if shape.tag in SHAPES and len(points) < 2 * SHAPES[shape.tag][1]:
        return Dropped(desc, "zero_area", f"a {shape.tag} of {len(points) // 2} points has no extent", place)
    if kind == "bbox_2d":
        x1, y1, x2, y2 = points
        corners = f"({x1:g}, {y1:g}, {x2:g}, {y2:g})"
        if x2 < x1 or y2 < y1:
            return Dropped(desc, "inverted_box", f"corners {corners} are swapped", place)
        if x2 == x1 or y2 == y1:
            return Dropped(desc, "zero_area", f"corners {corners} coincide", place)
    return RawObject(desc, kind, points, place)


def _box(shape: ElementTree.Element, where: str, place: str) -> tuple[str, tuple[float, ...]]:
    """Kind and points: a rotated box is a polygon of its four corners."""
    x1, y1, x2, y2 = (_number(shape, name, where, place) for name in ("xtl", "ytl", "xbr", "ybr"))
    angle = math.radians(_number(shape, "rotation", where, place) if "rotation" in shape.attrib else 0.0)
    if not angle % math.tau or x2 <= x1 or y2 <= y1:
        return "bbox_2d", (x1, y1, x2, y2)
    cos, sin = math.cos(angle), math.sin(angle)
    (cx, cy), (dx, dy) = ((x1 + x2) / 2, (y1 + y2) / 2), ((x2 - x1) / 2, (y2 - y1) / 2)
    around = ((-dx, -dy), (dx, -dy), (dx, dy), (-dx, dy))
    # y goes down, so this turns clockwise on the screen.
    return "poly", tuple(n for x, y in around for n in (cx + x * cos - y * sin, cy + x * sin + y * cos))


def _points(shape: ElementTree.Element, where: str, place: str) -> tuple[float, ...]:
    """``points="x,y;x,y"``, flat."""
    numbers: list[float] = []
    for index, pair in enumerate(shape.get("points", "").split(";")):
        name = f"{place}.points[{index}]"
        parts = pair.split(",")
        if len(parts) != 2:
            raise RecordError(where, name, f"must be x,y, is {pair[:60]!r}")
        numbers += (_decimal(part, where, name) for part in parts)
    return tuple(numbers)


def _number(element: ElementTree.Element, name: str, where: str, place: str) -> float:
    text = element.get(name)
    if text is None:
        raise RecordError(where, f"{place}.{name}", "is missing")
    return _decimal(text, where, f"{place}.{name}")


def _decimal(text: str, where: str, name: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise RecordError(where, name, f"must be a number, is {text[:60]!r}") from None
    return check_number(number, where, name)
