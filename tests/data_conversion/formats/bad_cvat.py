"""Malformed CVAT exports: each case adds exactly one bad file to a sound source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FORMAT = "cvat"
BOX = '<box label="label" source="manual" occluded="0" xtl="8" ytl="6" xbr="28" ybr="36" z_order="0"></box>'


def export(*images: str) -> str:
    """The document around <image> elements, with a task's usual meta data."""
    meta = "<version>1.1</version><meta><task><id>4</id><mode>annotation</mode></task></meta>"
    return f'<?xml version="1.0" encoding="utf-8"?>\n<annotations>{meta}{"".join(images)}</annotations>'


def image(name: str, shapes: str = BOX, more: str = 'width="80" height="60"') -> str:
    return f'<image id="0" name="{name}" {more}>{shapes}</image>'


def good(source: Any) -> None:
    source.photo("images/good.jpg")
    source.write("annotations.xml", export(image("good.jpg")))


def text(content: str | bytes) -> Callable[[Any], None]:
    """bad.xml holds exactly this."""

    def build(source: Any) -> None:
        source.photo("images/bad.jpg")
        source.write("bad.xml", content)

    return build


def shape(element: str) -> Callable[[Any], None]:
    """bad.xml has this one shape."""
    return text(export(image("bad.jpg", element)))


def box(**changes: str | None) -> Callable[[Any], None]:
    """A box with changed attributes; None takes one away."""
    values = {"label": "x", "xtl": "1", "ytl": "1", "xbr": "9", "ybr": "9", **changes}
    attributes = " ".join(f'{key}="{value}"' for key, value in values.items() if value is not None)
    return shape(f"<box {attributes}/>")


def photo(name: str) -> Callable[[Any], None]:
    return text(export(image(name)))


def size(attributes: str) -> Callable[[Any], None]:
    return text(export(image("bad.jpg", more=attributes)))


def link(target: str) -> Callable[[Any], None]:
    return lambda source: (source.root / "bad.xml").symlink_to(target)


VIDEO = '<annotations><track id="0" label="x"><box frame="0" xtl="1" ytl="1" xbr="9" ybr="9"/></track></annotations>'
ENTITY = '<!DOCTYPE annotations [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotations>&x;</annotations>'
CASES: dict[str, tuple[Callable[[Any], None], str]] = {
    "empty": (text(""), "bad.xml: file: is not valid XML"),
    "cut off after a whole image": (
        text(export(image("a.jpg"), image("b.jpg"))[:-30]),
        "bad.xml: file: is not valid XML: unclosed token",
    ),
    "two documents": (text("<annotations/><annotations/>"), "file: is not valid XML"),
    "GBK": (text("<annotations>标签</annotations>".encode("gbk")), "file: is not valid XML"),
    "an encoding nobody knows": (text("<?xml version='1.0' encoding='x-y'?><annotations/>"), "is not valid XML"),
    "DOCTYPE with an entity": (text(ENTITY), "DOCTYPE: is refused"),
    "DOCTYPE in UTF-16": (text("<!DOCTYPE a><annotations/>".encode("utf-16")), "DOCTYPE: is refused"),
    "another root": (text("<annotation/>"), "annotation: the root element must be <annotations>"),
    "an export for video": (text(VIDEO), "track: belongs to an export for video; export the task again as CVAT for im"),
    "deep nesting": (text("<annotations>" + "<a>" * 99 + "</a>" * 99 + "</annotations>"), "nested more than 20 deep"),
    "an image without a name": (text(export("<image width='80' height='60'/>")), r"image\[0\].name: is missing"),
    "size NaN": (size('width="nan" height="60"'), r"image\[0\].width: must be a pixel coordinate, is nan"),
    "size on its side": (size('width="60" height="80"'), "60x80 is the photo .80x60. on its side"),
    "a photo that is not there": (photo("none.jpg"), "no photo at .*/source/none.jpg"),
    "a photo outside the source": (photo("../../secret.jpg"), "leaves the source folder"),
    "an absolute photo path": (photo("/etc/passwd"), "leaves the source folder"),
    "a photo name without end": (photo("x" * 5000 + ".jpg"), r"no photo at .*xxx\.\.\."),
    "the export as its own photo": (photo("../bad.xml"), "bad.xml: is not a whole image"),
    "a photo annotated twice": (
        lambda source: source.write("later.xml", export(image("good.jpg", ""))),
        r"annotated twice, also by annotations\.xml",
    ),
    "a link to nowhere": (link("nowhere.xml"), "bad.xml: file: cannot be read"),
    "a link to itself": (link("bad.xml"), "bad.xml: file: cannot be read"),
}

# Only the object is bad: it is dropped, and the report says this
DROPPED: dict[str, tuple[Callable[[Any], None], str]] = {
    "a corner missing": (box(ybr=None), r"image\[0\].box\[0\].ybr: is missing"),
    "a corner is text": (box(xtl="left"), r"box\[0\].xtl: must be a number, is 'left'"),
    "a corner is NaN": (box(xtl="nan"), r"box\[0\].xtl: must be a pixel coordinate, is nan"),
    "a corner is gigantic": (box(xbr="9" * 5000), r"box\[0\].xbr: must be a pixel coordinate, is inf"),
    "rotation is infinite": (box(rotation="inf"), r"box\[0\].rotation: must be a pixel coordinate"),
    "points missing": (shape('<polygon label="x"/>'), "a polygon of 0 points has no extent"),
    "a point of three numbers": (
        shape('<polygon label="x" points="1,1;2,2,2;3,3"/>'),
        r"polygon\[0\].points\[1\]: must be x,y, is '2,2,2'",
    ),
    "a point of text": (shape('<polyline label="x" points="1,1;2,b"/>'), r"polyline\[0\].points\[1\]: must be a num"),
    "a shape nobody knows": (shape('<star label="x"/>'), "<star> is no box, polygon or line"),
}

# Harmless: the report counts this note
NOTED: dict[str, tuple[Callable[[Any], None], str]] = {
    "an image without a size": (size('width="80"'), "declared_size_unusable"),
    "size zero": (size('width="0" height="60"'), "declared_size_unusable"),
}
