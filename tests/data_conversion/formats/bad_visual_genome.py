"""Malformed Visual Genome sources: each case adds exactly one bad file or photo to a sound source."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

FORMAT = "visual_genome"
REMOVE = object()


def without_removed(value: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item is not REMOVE}


def image(number: Any = 1, folder: str = "VG_100K", **changes: Any) -> dict[str, Any]:
    """One entry of image_data, of a photo of 80 x 60."""
    url = f"https://cs.stanford.edu/people/rak248/{folder}/{number}.jpg"
    return without_removed({"image_id": number, "url": url, "width": 80, "height": 60, "coco_id": None, **changes})


def region(image_id: Any = 1, **changes: Any) -> dict[str, Any]:
    value = {"region_id": 7, "image_id": image_id, "phrase": "the clock is green"}
    return without_removed({**value, "x": 10, "y": 10, "width": 20, "height": 10, **changes})


def photo(number: Any = 1, *regions: Any, **changes: Any) -> dict[str, Any]:
    """One entry of region_descriptions."""
    return without_removed({"id": number, "regions": list(regions) or [region(number)], **changes})


def good(source: Any) -> None:
    source.photo("VG_100K/1.jpg")
    source.write("image_data.json", json.dumps([image()]))
    source.write("region_descriptions.json", json.dumps([photo()]))


def regions(content: Any) -> Callable[[Any], None]:
    """A second file of regions; photo 2 is there and has its size."""

    def build(source: Any) -> None:
        source.photo("VG_100K/2.jpg")
        source.write("image_data_2.json", json.dumps([image(2)]))
        raw = isinstance(content, str | bytes)
        source.write("region_descriptions_2.json", content if raw else json.dumps(content))

    return build


def images(content: Any, number: Any = 2) -> Callable[[Any], None]:
    """A second file of sizes, with regions for its photo; None: a file that should not be needed."""

    def build(source: Any) -> None:
        raw = isinstance(content, str | bytes)
        source.write("image_data_2.json", content if raw else json.dumps(content))
        if number is not None:
            source.photo("VG_100K/2.jpg")
            source.write("region_descriptions_2.json", json.dumps([photo(number)]))

    return build


def one_region(**changes: Any) -> Callable[[Any], None]:
    return regions([photo(2, region(2), region(**{"image_id": 2, **changes}))])


def a_link_in_a_circle(source: Any) -> None:
    (source.root / "region_descriptions_2.json").symlink_to("region_descriptions_2.json")


CASES: dict[str, tuple[Callable[[Any], None], str]] = {
    "empty regions": (regions(""), "region_descriptions_2.json: file: is empty"),
    "regions cut off": (regions(json.dumps([photo(2)])[:-9]), r"\[0\]: is not valid JSON: the file is cut off"),
    "sizes cut off": (images(json.dumps([image(2)])[:30], None), r"image_data_2.json: \[0\]: is not valid JSON"),
    "an object": (regions('{"regions": []}'), "file: must be a list with one entry per photo"),
    "GBK": (regions('[{"id": "标签"}]'.encode("gbk")), "file: is not UTF-8"),
    "deep nesting": (regions("[" * 100_000), "nested too deeply"),
    "an entry is a number": (regions([3]), r"\[0\]: must be a JSON object, is int"),
    "an entry without an id": (regions([photo(REMOVE)]), r"\[0\].id: must be the number of a photo, is None"),
    "an id of text": (regions([photo("x")]), r"\[0\].id: must be the number of a photo, is 'x'"),
    "a photo twice": (regions([photo(2), photo(2)]), r"\[1\].id: 2 is also the id of \[0\]"),
    "a photo in two files": (
        lambda source: source.write("region_descriptions_2.json", json.dumps([photo(1, region(x=11))])),
        "annotated twice, also by region_descriptions.json",
    ),
    "no size": (regions([photo(3)]), r"region_descriptions_2.json: \[0\].id: 3 is not in image_data"),
    "two sizes": (images([image(2), image(2)]), r"image_data_2.json: \[1\].image_id: 2 is also that of .*: \[0\]"),
    "no address": (images([image(2, url=None)]), r"image_data_2.json: \[0\].url: must be an address, is None"),
    "an address that is none": (images([image(2, url="http://[")]), r"\[0\].url: must be an address, is 'http://\['"),
    "a size entry without an id": (images([image(REMOVE)], None), r"\[0\].image_id: must be the number of a photo"),
    "an address that leaves": (images([image(2, url="http://x/../../none.png")]), "leaves the source folder"),
    "a photo that is not there": (images([image(2, url="http://x/a/9.jpg")]), "no photo at .*/source/a/9.jpg"),
    "regions a mapping": (regions([photo(2, regions={})]), r"\[0\].regions: must be a list, is dict"),
    "regions missing": (regions([photo(2, regions=REMOVE)]), r"\[0\].regions: must be a list, is NoneType"),
    "a link in a circle": (a_link_in_a_circle, "region_descriptions_2.json: file: cannot be read"),
}

# Only the object is bad: it is dropped, and the report says this
DROPPED: dict[str, tuple[Callable[[Any], None], str]] = {
    "x is NaN": (one_region(x=float("nan")), r"regions\[1\].x: must be a pixel coordinate, is nan"),
    "a region is text": (regions([photo(2, "x")]), r"\[0\].regions\[0\]: must be a JSON object, is str"),
    "a region of another photo": (one_region(image_id=1), r"regions\[1\].image_id: is 1 in the entry of photo 2"),
    "no phrase": (one_region(phrase=REMOVE), r"regions\[1\].phrase: must be text, is None"),
    "half a surrogate pair": (one_region(phrase="\ud83d"), r"regions\[1\].phrase: holds a broken character"),
    "x missing": (one_region(x=REMOVE), r"regions\[1\].x: must be a number, is None"),
    "width of text": (one_region(width="20"), r"regions\[1\].width: must be a number, is '20'"),
    "y overflows": (one_region(y=10**300), r"regions\[1\].y: must be a pixel coordinate"),
}

# Harmless: the report counts this note
NOTED: dict[str, tuple[Callable[[Any], None], str]] = {
    "size zero": (images([image(2, width=0)]), "declared_size_unusable"),
    "size missing": (images([image(2, height=REMOVE)]), "declared_size_unusable"),
}
