"""Malformed CSV tables: each case adds exactly one bad file or photo to a sound source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FORMAT = "csv"
HEADER = "image,x1,y1,x2,y2,desc\n"


def good(source: Any) -> None:
    source.photo("good.jpg")
    source.write("good.csv", HEADER + "good.jpg,10,10,30,20,RBC\n")


def text(content: str | bytes) -> Callable[[Any], None]:
    """bad.csv holds exactly this."""

    def build(source: Any) -> None:
        source.photo("bad.jpg")
        source.write("bad.csv", content)

    return build


def rows(*lines: str, header: str = HEADER) -> Callable[[Any], None]:
    return text(header + "\n".join(lines))


def a_link_in_a_circle(source: Any) -> None:
    (source.root / "bad.csv").symlink_to("bad.csv")


WIDE = HEADER.strip() + ",width,height\n"

CASES: dict[str, tuple[Callable[[Any], None], str]] = {
    "empty file": (text(""), r"bad.csv:1: header: is empty; the first line names the columns image,x1,"),
    "no header": (text("bad.jpg,10,10,30,20,RBC\n"), "bad.csv:1: image: is not a column"),
    "a column misspelt": (text("image,x1,y1,x2,y2,descr\n"), "bad.csv:1: desc: is not a column; did you mean 'descr'"),
    "a column twice": (text(HEADER.strip() + ",x1\n"), "bad.csv:1: x1: is a column twice"),
    "GBK": (text((HEADER + "bad.jpg,1,1,9,9,标签").encode("gbk")), "bad.csv: file: is not UTF-8"),
    "a quote that does not end": (rows('bad.jpg,1,1,9,9,"x'), r"bad.csv:2: row: is not valid CSV"),
    "a field of 200,000 letters": (rows("bad.jpg,1,1,9,9," + "x" * 200_000), "row: is not valid CSV: field larger"),
    "too few cells": (rows("bad.jpg,1,1,9,9"), "bad.csv:2: row: has 5 cells, the header 6"),
    "too many cells": (
        rows("bad.jpg,1,1,9,9,a, b"),
        "bad.csv:2: row: has 7 cells, the header 6; put text that holds separators",
    ),
    "no photo": (rows(",1,1,9,9,x"), "bad.csv:2: image: is empty"),
    "an unknown split": (
        rows("bad.jpg,1,1,9,9,x,bench", header=HEADER.strip() + ",split\n"),
        "bad.csv:2: split: must be",
    ),
    "two splits": (
        rows("bad.jpg,1,1,9,9,x,val", "bad.jpg,1,1,8,8,x,test", header=HEADER.strip() + ",split\n"),
        "bad.csv:3: split: is 'test', but bad.csv:2 says 'val' for the same photo",
    ),
    "a size on its side": (rows("bad.jpg,1,1,9,9,x,60,80", header=WIDE), "60x80 is the photo .80x60. on its side"),
    "a photo outside the source": (rows("../../secret.jpg,1,1,9,9,x"), "leaves the source folder"),
    "a photo that is not there": (rows("none.jpg,1,1,9,9,x"), "no photo at .*/source/none.jpg"),
    "a null character": (rows("b\0d.jpg,1,1,9,9,x"), "no photo at .*x00d.jpg"),
    "a photo in two tables": (rows("good.jpg,1,1,9,9,x"), "annotated twice, also by bad.csv"),
    "a link in a circle": (a_link_in_a_circle, "bad.csv: file: cannot be read"),
    "a folder": (lambda source: (source.root / "bad.csv").mkdir(), "bad.csv: file: cannot be read"),
}

# Only the object is bad: it is dropped, and the report says this
DROPPED: dict[str, tuple[Callable[[Any], None], str]] = {
    "a corner of text": (
        rows("bad.jpg,1,1,9,9,x", "bad.jpg,1,one,9,9,x"),
        "bad.csv: line 3.y1: must be a number, is 'one'",
    ),
    "a decimal comma": (
        rows("bad.jpg;1;1,5;9;9;x", header=HEADER.replace(",", ";")),
        "bad.csv: line 2.y1: must be a number, is '1,5'",
    ),
    "a corner in Python's writing": (rows("bad.jpg,1,1,9,1_0,x"), "bad.csv: line 2.y2: must be a number, is '1_0'"),
    "a corner missing": (rows("bad.jpg,1,1,,9,x"), "bad.csv: line 2.x2: is empty, but the row is not"),
    "only a description": (rows("bad.jpg,,,,,x"), "bad.csv: line 2.x1: is empty, but the row is not"),
    "NaN": (rows("bad.jpg,nan,1,9,9,x"), "bad.csv: line 2.x1: must be a pixel coordinate, is nan"),
    "infinity": (rows("bad.jpg,1,1,1e999,9,x"), "bad.csv: line 2.x2: must be a pixel coordinate, is inf"),
    "a gigantic corner": (rows("bad.jpg,1,1,9," + "9" * 5000 + ",x"), "bad.csv: line 2.y2: must be a pixel coordinate"),
    "nothing to see beside an object": (
        rows("bad.jpg,,,,,", "bad.jpg,1,1,9,9,x"),
        "line 2: says that there is nothing to see",
    ),
}

# Harmless: the report counts this note
NOTED: dict[str, tuple[Callable[[Any], None], str]] = {
    "width zero": (rows("bad.jpg,1,1,9,9,x,0,60", header=WIDE), "declared_size_unusable"),
    "height below zero": (rows("bad.jpg,1,1,9,9,x,80,-60", header=WIDE), "declared_size_unusable"),
    "half a size": (rows("bad.jpg,1,1,9,9,x,80,", header=WIDE), "declared_size_unusable"),
}
