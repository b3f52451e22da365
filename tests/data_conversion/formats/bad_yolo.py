"""Malformed YOLO sources: each case adds exactly one bad photo, label file or entry to a sound source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

FORMAT = "yolo"
YAML = "names: [RBC, WBC]\ntrain: images/train\n"


def good(source: Any) -> None:
    source.photo("images/train/good.jpg")
    source.write("labels/train/good.txt", "0 0.5 0.5 0.25 0.5\n")
    source.write("data.yaml", YAML)


def label(content: str | bytes) -> Callable[[Any], None]:
    """bad.txt holds exactly this."""

    def build(source: Any) -> None:
        source.photo("images/train/bad.jpg")
        source.write("labels/train/bad.txt", content)

    return build


def entry(line: str, *photos: str) -> Callable[[Any], None]:
    """One more line in data.yaml."""

    def build(source: Any) -> None:
        source.write("data.yaml", YAML + line)
        for photo in photos:
            source.photo(photo)

    return build


def listed(line: str | bytes) -> Callable[[Any], None]:
    """A list of photos with one line."""

    def build(source: Any) -> None:
        source.write("data.yaml", f"{YAML}val: val.txt\n")
        source.write("val.txt", line)

    return build


def link(target: str) -> Callable[[Any], None]:
    def build(source: Any) -> None:
        source.photo("images/train/bad.jpg")
        (source.root / "labels/train/bad.txt").symlink_to(target)

    return build


def folder_as_label(source: Any) -> None:
    source.photo("images/train/bad.jpg")
    (source.root / "labels/train/bad.txt").mkdir()


def two_photos_of_one_name(source: Any) -> None:
    source.photo("images/train/good.png")


def broken_photo(source: Any) -> None:
    source.write("images/train/bad.jpg", b"\xff\xd8\xff\xe0 cut off")


def name_not_utf8(source: Any) -> None:
    source.photo("images/train/bad.jpg").rename(source.root / "images/train/bad\udcff.jpg")


CASES: dict[str, tuple[Callable[[Any], None], str]] = {
    "binary": (label(b"\xff\xd8\xff\xe0"), "bad.txt: file: is not UTF-8"),
    "a label file that is a folder": (folder_as_label, "bad.txt: file: cannot be read .Is a directory"),
    "a label file linked to nowhere": (link("nowhere.txt"), "bad.txt: file: cannot be read .No such file"),
    "a label file linked to itself": (link("bad.txt"), "bad.txt: file: cannot be read .*symbolic links"),
    "one label file, two photos": (
        two_photos_of_one_name,
        "good.txt: file: is beside images/train/good.jpg and good.png",
    ),
    "labels without a photo": (
        lambda source: source.write("labels/train/bad.txt", ""),
        "labels/train/bad.txt: file: has no photo images/train/bad.jpg",
    ),
    "an absolute split": (entry("test: /etc"), "data.yaml: test: '/etc' leaves the source folder"),
    "a split that is a photo": (
        entry("test: images/train/good.jpg"),
        "data.yaml: test: .* must be a folder, or a .txt",
    ),
    "a listed photo that is not there": (
        listed("images/none.jpg"),
        "data.yaml: image: no photo at .*/source/images/none.jpg",
    ),
    "a listed photo outside": (listed("../secret.jpg"), "leaves the source folder"),
    "a listed absolute path": (listed("/etc/passwd"), "leaves the source folder"),
    "a listed null character": (listed("a\x00.jpg"), "no photo at .*a.x00.jpg"),
    "a listed name of 5,000 letters": (listed("x" * 5000), r"no photo at .*xxx\.\.\."),
    "a list in another encoding": (listed("照片.jpg".encode("gbk")), "val.txt: file: is not UTF-8"),
    "a list that names itself": (listed("val.txt"), "val.txt: is not a whole image"),
    "a broken photo": (broken_photo, "bad.jpg: is not a whole image"),
    "a name that is not UTF-8": (name_not_utf8, r"bad\\udcff.jpg: file: has a name that is not UTF-8"),
}

# Only the object is bad: it is dropped, and the report says this
DROPPED: dict[str, tuple[Callable[[Any], None], str]] = {
    "a class in another script": (label("١ .5 .5 .1 .1"), "line 1: must be a class number"),
    "a class without a name": (
        label("0 .5 .5 .1 .1\n2 .5 .5 .1 .1"),
        "bad.txt: line 2: class 2 is none of the 2 names",
    ),
    "a negative class": (label("-1 .5 .5 .1 .1"), "bad.txt: line 1: must be a class number, 0 or above, is '-1'"),
    "half a class": (label("0.5 .5 .5 .1 .1"), "line 1: must be a class number.*'0.5'"),
    "a class by name": (label("RBC .5 .5 .1 .1"), "line 1: must be a class number.*'RBC'"),
    "a class of 5,000 digits": (label("9" * 5000 + " .5 .5 .1 .1"), "line 1: must be a class number.*99..."),
    "a confidence": (label("0 .5 .5 .1 .1 .93"), "line 1: has 5 numbers after the class.*confidence.*save_conf"),
    "a polygon with a confidence": (label("0 .1 .1 .5 .1 .5 .5 .9"), "line 1: has 7 numbers.*confidence"),
    "a truncated row": (label("0 .5 .5 .1"), "line 1: needs cx cy w h.*has 3 numbers"),
    "a class alone": (label("\n\n0"), "line 3: needs cx cy w h.*has 0 numbers"),
    "a word": (label("0 .5 .5 .1 wide"), "line 1: must hold numbers, has 'wide'"),
    "decimal commas": (label("0 0,5 0,5 0,1 0,1"), "line 1: must hold numbers, has '0,5'"),
    "commas between": (label("0,0.5,0.5,0.1,0.1"), "line 1: must be a class number"),
    "NaN": (label("0 .5 .5 .1 nan"), "line 1: must hold fractions of the photo, 0 to 1, has 'nan'"),
    "infinite": (label("0 .5 .5 .1 1e999"), "line 1: must hold fractions of the photo, 0 to 1, has '1e999'"),
    "pixels": (label("0 40 30 20 10"), "line 1: must hold fractions of the photo, 0 to 1, has '40'"),
    "a negative width": (label("0 .5 .5 -.1 .1"), "line 1: width -.1 and height .1 leave no area"),
    "null characters": (label(b"0 .5 .5 .1 .\x001"), r"line 1: must hold numbers, has '.\\x001'"),
}

# Harmless: the report counts this note
NOTED: dict[str, tuple[Callable[[Any], None], str]] = {
    "more than a rounding outside": (label("0 .1 .1 .5 .1 .5 1.01"), "clipped_object"),
    "a split that is not there": (entry("test: images/test"), "does not exist"),
    "a split outside": (entry("test: ../other/images"), "does not exist"),
    "a split of 5,000 letters": (
        entry(f"test: {'x' * 5000}"),
        "does not exist",
    ),
    "a photo in two splits": (
        entry("val: images/train"),
        "val lists the photos of train; they count as train",
    ),
}
