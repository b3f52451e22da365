"""Malformed Label Studio exports: each case adds exactly one bad file to a sound source."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

FORMAT = "label_studio"


def rectangle(label: str = "label", identity: str = "r1", **value: Any) -> dict[str, Any]:
    """One result as Label Studio exports it: a rectangle in a photo of 80 x 60."""
    box = {"x": 10.0, "y": 10.0, "width": 25.0, "height": 50.0, "rotation": 0, "rectanglelabels": [label]}
    return {
        "id": identity,
        "type": "rectanglelabels",
        "from_name": "box",
        "to_name": "image",
        "origin": "manual",
        "image_rotation": 0,
        "original_width": 80,
        "original_height": 60,
        "value": {**box, **value},
    }


def task(name: str, *results: Any, **changes: Any) -> dict[str, Any]:
    """One annotated task."""
    annotation = {"id": 7, "was_cancelled": False, "ground_truth": False, "result": list(results)}
    return {"id": 1, "data": {"image": f"/data/upload/1/0123abcd-{name}"}, "annotations": [annotation], **changes}


def good(source: Any) -> None:
    source.photo("good.jpg")
    source.write("good.json", json.dumps([task("good.jpg", rectangle())]))


def text(content: str | bytes) -> Callable[[Any], None]:
    """bad.json holds exactly this."""

    def build(source: Any) -> None:
        source.photo("bad.jpg")
        source.write("bad.json", content)

    return build


def changed(change: Callable[[dict[str, Any]], Any]) -> Callable[[Any], None]:
    """A sound task, changed in place."""

    def build(source: Any) -> None:
        value = task("bad.jpg", rectangle())
        change(value)
        text(json.dumps([value]))(source)

    return build


def result(**changes: Any) -> Callable[[Any], None]:
    return changed(lambda value: value["annotations"][0]["result"][0].update(changes))


def geometry(**changes: Any) -> Callable[[Any], None]:
    return result(value={**rectangle()["value"], **changes})


def polygon(points: Any) -> Callable[[Any], None]:
    return result(type="polygonlabels", value={"points": points, "polygonlabels": ["x"]})


def two_results(second: dict[str, Any]) -> Callable[[Any], None]:
    return changed(lambda value: value["annotations"][0]["result"].append(second))


def photo(reference: Any) -> Callable[[Any], None]:
    return changed(lambda value: value.update(data={"image": reference}))


def link(target: str) -> Callable[[Any], None]:
    return lambda source: (source.root / "bad.json").symlink_to(target)


def annotated_twice(source: Any) -> None:
    source.write("later.json", json.dumps([task("good.jpg", rectangle(x=20.0))]))


JSON_MIN = [{"image": "/data/upload/1/0123abcd-bad.jpg", "label": [rectangle()["value"]], "annotator": 1}]
CUT_OFF = json.dumps([task("a.jpg", rectangle()), task("b.jpg", rectangle())])[:-40]
CASES: dict[str, tuple[Callable[[Any], None], str]] = {
    "empty": (text(""), "bad.json: file: is empty"),
    "cut off after a whole task": (text(CUT_OFF), "bad.json: .*: is not valid JSON: the file is cut off"),
    "GBK": (text('[{"标签": 1}]'.encode("gbk")), "bad.json: file: is not UTF-8"),
    "a key twice": (text('[{"data": {}, "data": {}}]'), r"\[0\].data: appears twice"),
    "deep nesting": (text("[" * 100_000), "nested too deeply"),
    "lists in lists where an annotation should be": (
        text('[{"data": {"image": "bad.jpg"}, "annotations": ' + "[" * 150 + "]" * 150 + "}]"),
        r"annotations\[0\]: must be a JSON object, is list",
    ),
    "a number of 5,000 digits": (text('[{"id": ' + "9" * 5000 + "}]"), "is not valid JSON"),
    "an object at the top": (text('{"images": [], "categories": []}'), "must be a list of tasks; choose the format"),
    "JSON-MIN": (text(json.dumps(JSON_MIN)), r"\[0\].data: is missing: is this the JSON-MIN export\? choose .* JSON "),
    "a task is text": (text('["x"]'), r"\[0\]: must be a JSON object, is str"),
    "data is a list": (changed(lambda value: value.update(data=[])), r"\[0\].data: must be a JSON object"),
    "annotations is a mapping": (changed(lambda value: value.update(annotations={})), "annotations: must be a list"),
    "an annotation is a number": (
        changed(lambda value: value.update(annotations=[5])),
        r"annotations\[0\]: must be a JSON object, is int",
    ),
    "predictions by number": (
        changed(lambda value: value.update(annotations=None, predictions=[12])),
        r"predictions\[0\]: must be a JSON object",
    ),
    "result missing": (
        changed(lambda value: value["annotations"][0].pop("result")),
        r"\[0\].annotations\[0\].result: must be a list, is NoneType",
    ),
    "size on its side": (result(original_width=60, original_height=80), "60x80 is the photo .80x60. on its side"),
    "two sizes": (two_results({**rectangle(identity="r2"), "original_width": 81}), "original_width: differs from"),
    "rotated by hand": (result(image_rotation=90), "image_rotation: is 90: the photo was rotated by hand"),
    "two photos in one task": (
        two_results({**rectangle(identity="r2"), "to_name": "image2"}),
        r"regions on several images \(image, image2\)",
    ),
    "no photo in data": (changed(lambda value: value.update(data={"text": "x"})), "data: names no photo; keys: text"),
    "the photo is a list": (photo(["bad.jpg"]), "data: names no photo; keys: image"),
    "a photo that is not there": (photo("s3://bucket/none.jpg"), "no photo at .*/source/none.jpg"),
    "a photo outside the source": (photo("../../secret.jpg"), "leaves the source folder"),
    "an absolute photo path": (photo("/etc/none/passwd.jpg"), "leaves the source folder"),
    "a local file outside": (photo("/data/local-files/?d=..%2F..%2Fsecret.jpg"), "leaves the source folder"),
    "a photo name without end": (photo("x" * 5000 + ".jpg"), r"no photo at .*xxx\.\.\."),
    "a photo annotated twice": (annotated_twice, r"annotated twice, also by good\.json"),
    "a link to nowhere": (link("nowhere.json"), "bad.json: file: cannot be read"),
    "a link to itself": (link("bad.json"), "bad.json: file: cannot be read"),
}

# Only the object is bad: it is dropped, and the report says this
DROPPED: dict[str, tuple[Callable[[Any], None], str]] = {
    "x is NaN": (geometry(x=float("nan")), "value.x: must be a pixel coordinate, is nan"),
    "a result without a type": (result(type=None), r"result\[0\].type: must be text, is None"),
    "a result without a value": (result(value=None), r"result\[0\].value: must be a JSON object"),
    "x is text": (geometry(x="10"), r"result\[0\].value.x: must be a number, is '10'"),
    "width missing": (geometry(width=None), r"value.width: must be a number, is None"),
    "y is gigantic": (geometry(y=10**400), r"value.y: must be a pixel coordinate"),
    "rotation is true": (geometry(rotation=True), "value.rotation: must be a number, is True"),
    "rotation without a size": (
        result(original_width=None, original_height=None, value={**rectangle()["value"], "rotation": 5}),
        "value.rotation: needs original_width",
    ),
    "a label is a number": (geometry(rectanglelabels=[3]), "value.rectanglelabels: must be text, is 3"),
    "labels are a mapping": (geometry(rectanglelabels={}), "value.rectanglelabels: must be a list, is dict"),
    "half a surrogate pair": (geometry(rectanglelabels=["\ud83d"]), "holds a broken character"),
    "points missing": (polygon(None), r"value.points: must be a list"),
    "a point of three numbers": (polygon([[1, 2, 3]] * 3), r"points\[0\]: must be a point \[x, y\], has 3 numbers"),
    "a point of text": (polygon([[1, "2"]] * 3), r"points\[0\]\[1\]: must be a number, is '2'"),
    "a taxonomy of two paths": (
        two_results({"id": "r1", "type": "taxonomy", "value": {"taxonomy": [["a"], ["b"]]}}),
        "taxonomy: has 2 paths",
    ),
}

# Harmless: the report counts this note
NOTED: dict[str, tuple[Callable[[Any], None], str]] = {
    "size zero": (result(original_width=0), "declared_size_unusable"),
    "half a size": (result(original_height=None), "declared_size_unusable"),
    "one id for two regions": (two_results(rectangle(x=50.0)), "repeated_region_id"),
}
