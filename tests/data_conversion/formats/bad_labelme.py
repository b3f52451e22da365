"""Malformed LabelMe sources: each case adds exactly one bad file to a sound source."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

FORMAT = "labelme"
REMOVE = object()


def shape(**changes: Any) -> dict[str, Any]:
    """One rectangle, as LabelMe 5 writes it."""
    value = {"label": "RBC", "points": [[10, 10], [30, 20]], "group_id": None, "description": "", "flags": {}}
    return {**value, "shape_type": "rectangle", "mask": None, **changes}


def document(*shapes: Any, image: str = "good.jpg", **changes: Any) -> str:
    """A file of LabelMe 5; a key that is to be REMOVEd is left out."""
    value = {"version": "5.4.1", "flags": {}, "shapes": list(shapes), "imagePath": image, "imageData": None}
    value = {**value, "imageHeight": 60, "imageWidth": 80, **changes}
    return json.dumps({key: item for key, item in value.items() if item is not REMOVE})


def good(source: Any) -> None:
    source.photo("good.jpg")
    source.write("good.json", document(shape()))


def text(content: str | bytes) -> Callable[[Any], None]:
    """bad.json holds exactly this."""

    def build(source: Any) -> None:
        source.photo("bad.jpg")
        source.write("bad.json", content)

    return build


def file(**changes: Any) -> Callable[[Any], None]:
    return text(document(shape(), **{"image": "bad.jpg", **changes}))


def second_shape(**changes: Any) -> Callable[[Any], None]:
    return text(document(shape(), shape(**changes), image="bad.jpg"))


def photo(content: bytes | None, **changes: Any) -> Callable[[Any], None]:
    """bad.jpg holds these bytes, or is not there."""

    def build(source: Any) -> None:
        file(**changes)(source)
        (source.root / "bad.jpg").unlink()
        if content is not None:
            source.write("bad.jpg", content)

    return build


def link(target: str) -> Callable[[Any], None]:
    def build(source: Any) -> None:
        source.photo("bad.jpg")
        (source.root / "bad.json").symlink_to(target)

    return build


def annotated_twice(source: Any) -> None:
    source.write("zz.json", document(shape(label="WBC")))


CASES: dict[str, tuple[Callable[[Any], None], str]] = {
    "empty file": (text(""), "bad.json: row: is not valid JSON"),
    "truncated JSON": (text(document(shape())[:-20]), "is not valid JSON"),
    "two documents": (text("{} {}"), "is not valid JSON"),
    "GBK": (text('{"shapes": ["螺丝"]}'.encode("gbk")), "file: is not UTF-8"),
    "binary": (text(b"\xff\xd8\xff\xe0"), "file: is not UTF-8"),
    "a list at the top": (text("[]"), "file: must be a JSON object, is list"),
    "deep nesting": (text("[" * 100_000), "nested too deeply"),
    "a key twice": (text('{"shapes": [], "shapes": []}'), "shapes: appears twice"),
    "another tool's file": (text('{"markResult": {"features": []}}'), "shapes: is missing; is this a LabelMe file"),
    "shapes a mapping": (file(shapes={}), "shapes: must be a list, is dict"),
    "shapes null": (file(shapes=None), "shapes: must be a list, is NoneType"),
    "a number of 5,000 digits": (text('{"shapes": [' + "9" * 5000 + "]}"), "is not valid JSON"),
    "a size on its side": (file(imageWidth=60, imageHeight=80), "60x80 is the photo .80x60. on its side"),
    "imagePath missing": (file(imagePath=REMOVE), "imagePath: is missing or empty"),
    "imagePath a number": (file(imagePath=7), "imagePath: must be text, is int"),
    "a photo outside the source": (photo(None, image="../../secret.jpg"), "leaves the source folder"),
    "a Windows path outside": (photo(None, image="..\\..\\secret.jpg"), "leaves the source folder"),
    "an absolute photo path": (photo(None, image="/etc/passwd"), "leaves the source folder"),
    "a null character in the path": (photo(None, image="a\x00.jpg"), "no photo at .*a.x00.jpg"),
    "a path of 5,000 letters": (photo(None, image="x" * 5000), r"no photo at .*xxx\.\.\."),
    "the JSON as its own photo": (file(image="bad.json"), "bad.json: is not a whole image"),
    "a photo that is not there": (photo(None), "image: no photo at .*/source/bad.jpg"),
    "a broken photo": (photo(b"<html>404</html>"), "bad.jpg: is not a whole image"),
    "imageData is not base64": (photo(None, imageData="%%%"), "imageData: is not base64 .*the photo is missing"),
    "imageData is a list": (photo(None, imageData=[1]), "imageData: must be text, is list"),
    "imageData is no photo": (photo(None, imageData="aGVsbG8="), "is not a whole image"),
    "a photo annotated twice": (annotated_twice, "good.jpg is annotated twice, also by good.json"),
    "a link to nowhere": (link("nowhere.json"), "bad.json: file: cannot be read .No such file"),
    "a link to itself": (link("bad.json"), "bad.json: file: cannot be read .*symbolic links"),
}

# Only the object is bad: it is dropped, and the report says this
DROPPED: dict[str, tuple[Callable[[Any], None], str]] = {
    "a coordinate is NaN": (
        second_shape(points=[[float("nan"), 1], [9, 9]]),
        r"points\[0\]\[0\]: must be a pixel coordinate, is nan",
    ),
    "a shape is text": (file(shapes=["x"]), r"shapes\[0\]: must be a JSON object, is str"),
    "a label is a number": (second_shape(label=3), r"shapes\[1\].label: must be text, is int"),
    "half a surrogate pair": (second_shape(label="\ud83d"), r"shapes\[1\].label: holds a broken character"),
    "a description is a list": (second_shape(description=["x"]), r"shapes\[1\].description: must be text, is list"),
    "flags a list": (second_shape(flags=["x"]), r"shapes\[1\].flags: must be a JSON object, is list"),
    "a flag is text": (second_shape(flags={"loose": "yes"}), r"shapes\[1\].flags.loose: must be true or false, is str"),
    "an unknown shape": (
        second_shape(shape_type="cuboid"),
        "'cuboid' is no box, polygon or line",
    ),
    "a shape type is a list": (second_shape(shape_type=["line"]), "shape_type: must be text"),
    "points missing": (second_shape(points=None), r"shapes\[1\].points: must be a list, is NoneType"),
    "a rectangle of one point": (second_shape(points=[[1, 1]]), "a rectangle needs 2 or 4 points, has 1"),
    "a rectangle of three points": (
        second_shape(points=[[1, 1], [9, 1], [9, 9]]),
        "a rectangle needs 2 or 4 points, has 3",
    ),
    "a circle of three points": (
        second_shape(shape_type="circle", points=[[1, 1], [9, 1], [9, 9]]),
        "a circle needs 2 points, has 3",
    ),
    "a polygon of two points": (second_shape(shape_type="polygon"), "a polygon needs at least 3 points, has 2"),
    "a line of one point": (second_shape(shape_type="line", points=[[1, 1]]), "a line needs at least 2 points, has 1"),
    "a point of three numbers": (
        second_shape(points=[[1, 1, 1], [9, 9]]),
        r"points\[0\]: must be a point \[x, y\], has 3",
    ),
    "a point is a number": (second_shape(points=[1, 9]), r"points\[0\]: must be a list, is int"),
    "a coordinate is text": (second_shape(points=[["1", 1], [9, 9]]), r"points\[0\]\[0\]: must be a number, is '1'"),
    "a coordinate is true": (second_shape(points=[[True, 1], [9, 9]]), r"points\[0\]\[0\]: must be a number, is True"),
    "a coordinate overflows": (
        second_shape(points=[[1, 1], [9, 10**400]]),
        r"points\[1\]\[1\]: must be a pixel coordinate",
    ),
}

# Harmless: the report counts this note
NOTED: dict[str, tuple[Callable[[Any], None], str]] = {
    "a width of zero": (file(imageWidth=0), "declared_size_unusable"),
    "half a size": (file(imageHeight=None), "declared_size_unusable"),
}
