"""Malformed COCO sources: each case adds exactly one bad file or photo to a sound source."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

FORMAT = "coco"
REMOVE = object()
CATEGORIES = [{"id": 1, "name": "RBC", "supercategory": "cell"}, {"id": 2, "name": "screw/loose"}]


def without_removed(value: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if item is not REMOVE}


def image(name: str = "good.jpg", number: Any = 1, **changes: Any) -> dict[str, Any]:
    """One entry of images, of a photo of 80 x 60."""
    return without_removed({"id": number, "file_name": name, "width": 80, "height": 60, **changes})


def annotation(number: Any = 1, image_id: Any = 1, **changes: Any) -> dict[str, Any]:
    """One entry of annotations: a box from (10, 10) to (30, 20)."""
    value = {"id": number, "image_id": image_id, "category_id": 1, "bbox": [10, 10, 20, 10], "area": 200}
    return without_removed({**value, "segmentation": [], "iscrowd": 0, **changes})


def caption(text: Any, number: Any = 1, image_id: Any = 1) -> dict[str, Any]:
    return {"id": number, "image_id": image_id, "caption": text}


def document(images: Any, annotations: Any, categories: Any = CATEGORIES, **changes: Any) -> str:
    value = {"info": {}, "images": images, "annotations": annotations, "categories": categories, **changes}
    return json.dumps(without_removed(value))


def good(source: Any) -> None:
    source.photo("images/good.jpg")
    source.write("annotations/good.json", document([image()], [annotation()]))


def text(content: str | bytes) -> Callable[[Any], None]:
    """bad.json holds exactly this."""

    def build(source: Any) -> None:
        source.photo("images/bad.jpg")
        source.write("annotations/bad.json", content)

    return build


def of_image(**changes: Any) -> Callable[[Any], None]:
    return text(document([image(**{"name": "bad.jpg", **changes})], []))


def of_part(**changes: Any) -> Callable[[Any], None]:
    return text(document([image("bad.jpg")], [annotation(), annotation(2, **changes)]))


def captions(*entries: Any, images: Any = None) -> Callable[[Any], None]:
    """captions.json beside the sound file."""

    def build(source: Any) -> None:
        content = document(images or [image(), image("more.jpg", 2)], list(entries), categories=REMOVE)
        source.write("annotations/captions.json", content)
        source.photo("images/more.jpg")
        source.write("annotations/more.json", document([image("more.jpg")], [annotation()]))

    return build


def mask(**changes: Any) -> Callable[[Any], None]:
    return of_part(segmentation=without_removed({"size": [60, 80], "counts": [4700, 100], **changes}))


def a_link_in_a_circle(source: Any) -> None:
    (source.root / "annotations" / "bad.json").symlink_to("bad.json")


def name_not_utf8(source: Any) -> None:
    source.write("annotations/bad\udcff.json", document([image("bad.jpg")], []))


def a_folder(source: Any) -> None:
    (source.root / "annotations" / "bad.json").mkdir()


SOUND = document([image("bad.jpg")], [annotation()])

CASES: dict[str, tuple[Callable[[Any], None], str]] = {
    "empty file": (text(""), r"annotations/bad.json: file: is empty"),
    "cut off in an annotation": (text(SOUND[:180]), r"annotations\[0\]: is not valid JSON: the file is cut off at"),
    "cut off between lists": (text(SOUND[: SOUND.index('"annotations"')]), "is not valid JSON: Expecting"),
    "two documents": (text(SOUND + SOUND), "more follows after the end"),
    "GBK": (text('{"标签": 1}'.encode("gbk")), "file: is not UTF-8"),
    "a text": (text('"x"'), r"must begin with \{ or \["),
    "a list of detections": (text(json.dumps([annotation()])), "is a list .of detections"),
    "deep nesting": (text('{"images": ' + "[" * 100_000), "nested too deeply"),
    "deep nesting of mappings": (text('{"a": ' * 100_000), "nested too deeply"),
    "a number of 5,000 digits": (text('{"images": [' + "9" * 5000 + "]}"), r"images\[0\]: is not valid JSON"),
    "a key twice": (text(SOUND.replace('"area": 200', '"id": 2')), r"annotations\[0\].id: appears twice"),
    "a list twice": (text(SOUND[:-1] + ', "annotations": []}'), "annotations: appears twice"),
    "a comma too many": (text(SOUND.replace("80", "80,", 1)), r"images\[0\]: is not valid JSON"),
    "no images": (text(document(REMOVE, [])), "images: is missing"),
    "no annotations": (text(document([], REMOVE)), "annotations: is missing"),
    "images a mapping": (text(document({}, [])), "images: must be a list, is dict"),
    "categories a text": (text(document([], [], "x")), "categories: must be a list, is str"),
    "a category without a name": (text(document([], [], [{"id": 1}])), r"categories\[0\].name: must be text"),
    "a category without an id": (
        text(document([], [], [{"name": "x"}])),
        r"categories\[0\].id: must be a whole number",
    ),
    "two categories of one id": (
        text(document([], [], [*CATEGORIES, {"id": 1, "name": "x"}])),
        "id: 1 is also that of 'RBC'",
    ),
    "an image is a text": (text(document(["x"], [])), r"images\[0\]: must be a JSON object, is str"),
    "an image without an id": (of_image(id=REMOVE), r"images\[0\].id: must be a whole number or text"),
    "two images of one id": (
        text(document([image("bad.jpg"), image("other.jpg")], [])),
        r"images\[1\].id: 1 is also the id of images\[0\]",
    ),
    "an image without a file name": (of_image(file_name=REMOVE), r"images\[0\].file_name: must be a path, is None"),
    "a size on its side": (of_image(width=60, height=80), "60x80 is the photo .80x60. on its side"),
    "a photo that is not there": (of_image(name="none.jpg"), "no photo at .*/source/none.jpg"),
    "a photo outside the source": (of_image(name="../../secret.jpg"), "leaves the source folder"),
    "an absolute path": (of_image(name="/etc/passwd"), "leaves the source folder"),
    "a name of 9,000 letters": (of_image(name="x" * 9000), "image: "),
    "half a surrogate pair": (of_image(name="\ud83d.jpg"), "file_name: holds a broken character"),
    "an annotation is a list": (text(document([], [[]])), r"annotations\[0\]: must be a JSON object, is list"),
    "an annotation of no photo": (of_part(image_id=9), r"annotations\[1\].image_id: 9 is the id of no photo"),
    "an image id of another type": (of_part(image_id="x"), r"annotations\[1\].image_id: 'x' is the id of no photo"),
    "an annotation without image id": (of_part(image_id=REMOVE), r"\[1\].image_id: must be the id of a photo, is None"),
    "a caption is a number": (captions(caption(3)), r"captions.json: annotations\[0\].caption: must be text, is 3"),
    "a caption of no photo": (
        captions(caption("x", image_id=5)),
        r"captions.json: annotations\[0\].image_id: 5 is the id",
    ),
    "a link in a circle": (a_link_in_a_circle, "bad.json: file: cannot be read"),
    "a folder called bad.json": (a_folder, "bad.json: file: cannot be read"),
    "file name not UTF-8": (name_not_utf8, r"bad\\udcff.json: file: has a name that is not UTF-8"),
}

# Only the object is bad: it is dropped, and the report says this
DROPPED: dict[str, tuple[Callable[[Any], None], str]] = {
    "a box of NaN": (of_part(bbox=[1, float("nan"), 3, 4]), r"\[1\].bbox\[1\]: must be a pixel coordinate, is nan"),
    "an unknown category": (of_part(category_id=7), r"\[1\].category_id: must be the id of a category, is 7"),
    "no category": (of_part(category_id=REMOVE), r"\[1\].category_id: must be the id of a category, is None"),
    "neither box nor polygon": (of_part(bbox=REMOVE), r"\[1\].bbox: is missing, and so is a segmentation"),
    "a box of three numbers": (of_part(bbox=[1, 2, 3]), r"\[1\].bbox: needs 4 numbers"),
    "a box of text": (of_part(bbox=[1, "2", 3, 4]), r"\[1\].bbox\[1\]: must be a number, is '2'"),
    "a box to infinity": (text(SOUND.replace("[10, 10,", "[10, 1e999,")), r"\[0\].bbox\[1\]: must be a pixel coord"),
    "a box of booleans": (of_part(bbox=[True, 0, 1, 1]), r"\[1\].bbox\[0\]: must be a number, is True"),
    "iscrowd two": (of_part(iscrowd=2), r"\[1\].iscrowd: must be 0 or 1, is 2"),
}

# Harmless: the report counts this note
NOTED: dict[str, tuple[Callable[[Any], None], str]] = {
    "width zero": (of_image(width=0), "declared_size_unusable"),
    "height below zero": (of_image(height=-60), "declared_size_unusable"),
    "half a size": (of_image(width=None), "declared_size_unusable"),
    "two annotations of one id": (of_part(id=1), "repeated_annotation_id"),
    "a polygon of odd length": (
        of_part(segmentation=[[1, 2, 3, 4, 5]]),
        "segmentation_unusable_box_taken",
    ),
    "a polygon not in a list": (of_part(segmentation=[1, 2, 3, 4, 5, 6]), "segmentation_unusable_box_taken"),
    "a polygon with null": (of_part(segmentation=[[1, 2, None, 4, 5, 6]]), "segmentation_unusable_box_taken"),
    "a mask without size": (mask(size=REMOVE), "segmentation_unusable_box_taken"),
    "a mask of another size": (
        mask(size=[80, 60]),
        "segmentation_unusable_box_taken",
    ),
    "a mask of too few pixels": (mask(counts=[1, 2]), "segmentation_unusable_box_taken"),
    "a mask with a run below zero": (mask(counts=[4900, -100]), "segmentation_unusable_box_taken"),
    "a mask with half a run": (mask(counts=[4799.5, 0.5]), "segmentation_unusable_box_taken"),
    "a mask of other letters": (mask(counts="你好"), "segmentation_unusable_box_taken"),
    "a mask that is cut off": (mask(counts="o"), "segmentation_unusable_box_taken"),
    "a mask of endless bits": (mask(counts="o" * 50), "segmentation_unusable_box_taken"),
    "attributes a list": (of_part(attributes=[1]), "annotation key not read: attributes"),
}
