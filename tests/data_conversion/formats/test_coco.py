"""COCO: where files lie, what an annotation means, what pycocotools sees in what is written, and the way back in."""

from __future__ import annotations

import contextlib
import io
import json
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask
from pycocotools.coco import COCO

from bbu.geometry import enclosing_box, thicken
from data_conversion.base import BadSource, Dropped, ExportObject, ExportPhoto, RawObject, SourceImage
from data_conversion.export import export
from data_conversion.formats import pascal_voc
from data_conversion.formats.coco import iter_records
from data_conversion.formats.coco_segmentation import MASK, SEVERAL_POLYGONS
from data_conversion.formats.coco_writer import photo_place, write_records
from data_conversion.pipeline import convert
from tests.data_conversion.formats.bad_coco import CATEGORIES, annotation, caption, document, good, image
from tests.data_conversion.formats.exporting import (
    convert_or_one_error,
    damaged,
    export_photos,
    in_pixels,
    out_and_in,
    sound_source,
)


def read(source: Any) -> list[SourceImage]:
    """Photos of a source; no item is bad."""
    items = list(iter_records(source.root))
    assert all(isinstance(item, SourceImage) for item in items), items
    return [item for item in items if isinstance(item, SourceImage)]


def one_photo(source: Any, *annotations: Any, categories: Any = CATEGORIES, **changes: Any) -> SourceImage:
    """The photo of a source with these annotations."""
    source.photo("a.jpg")
    source.write("annotations/a.json", document([image("a.jpg", **changes)], list(annotations), categories))
    (item,) = read(source)
    return item


def shapes(item: SourceImage) -> list[tuple[str, tuple[float, ...]]]:
    return [(obj.kind, obj.points) for obj in item.objects if isinstance(obj, RawObject)]


def reasons(item: SourceImage) -> list[str]:
    return [obj.reason for obj in item.objects if isinstance(obj, Dropped)]


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("file", "photo", "split"),
    [
        ("annotations/instances_train2017.json", "train2017/a.jpg", "train"),
        ("annotations/instances_val.json", "images/val/a.jpg", "val"),
        ("annotations/instances_default.json", "images/default/a.jpg", None),
        ("annotations/test-dev2017.json", "images/a.jpg", "test"),
        ("valid/_annotations.coco.json", "valid/a.jpg", "val"),
        ("_annotations.coco.json", "a.jpg", None),
        ("result.json", "images/a.jpg", None),
        ("trainval.json", "deep/er/a.jpg", None),
    ],
)
def test_files_and_photos_lie_where_common_tools_put_them(source: Any, file: str, photo: str, split: str) -> None:
    source.photo(photo)
    source.write(file, document([image("a.jpg")], [annotation()]))
    (item,) = read(source)
    assert (item.image, item.source, item.split, item.size) == (photo, file, split, (80, 60))
    assert item.objects == (RawObject("RBC", "bbox_2d", (10, 10, 30, 20), "annotations[0]"),)


def test_a_name_in_the_folders_of_two_splits_is_two_photos(source: Any) -> None:
    for folder in ("train", "valid"):
        source.photo(f"{folder}/a.jpg")
        source.write(f"{folder}/_annotations.coco.json", document([image("a.jpg")], [annotation()]))
    source.photo("a.jpg")
    *photos, unnamed = iter_records(source.root)
    assert [item.image for item in photos if isinstance(item, SourceImage)] == ["train/a.jpg", "valid/a.jpg"]
    assert isinstance(unnamed, BadSource) and (unnamed.source, unnamed.reason) == ("a.jpg", "no_annotation")


def test_lists_may_come_in_any_order_after_a_byte_order_mark_with_any_ids(source: Any) -> None:
    value = {
        "annotations": [
            annotation(1, "b"),
            annotation("one", "a"),
            annotation(2, 7),
            annotation(3, "b", category_id="c"),
        ],
        "more": {"deep": [1, {"x": []}]},
        "categories": [{"id": 1, "name": "RBC"}, {"id": "c", "name": "挡风板"}],
        "images": [image("a.jpg", "a"), image("b.jpg", "b"), image("c.jpg", 7)],
    }
    source.write("x.json", b"\xef\xbb\xbf" + json.dumps(value, indent=1).encode())
    for name in "abc":
        source.photo(f"{name}.jpg")
    assert [(item.image, [obj.field for obj in item.objects]) for item in read(source)] == [
        ("a.jpg", ["annotations[1]"]),
        ("b.jpg", ["annotations[0]", "annotations[3]"]),
        ("c.jpg", ["annotations[2]"]),
    ]


def test_captions_of_a_photo_are_its_summary_one_a_line(source: Any) -> None:
    source.photo("val2017/a.jpg")
    source.photo("val2017/b.jpg")
    images = [image("a.jpg", 5), image("b.jpg", 6)]
    source.write("annotations/instances_val2017.json", document(images, [annotation(1, 5)]))
    said = [caption(" two cells\n", 1, 5), caption("nothing", 2, 6), caption("three", 3, 5), caption(" ", 4, 5)]
    source.write("annotations/captions_val2017.json", document(images, said))
    a, b = read(source)
    assert (a.summary, len(a.objects), b.summary, len(b.objects)) == ("two cells\nthree", 1, "nothing", 0)


def test_a_photo_with_captions_only_is_not_annotated(source: Any) -> None:
    good(source)
    source.photo("images/b.jpg")
    source.write("annotations/captions.json", document([image("b.jpg")], [caption("cells")]))
    _, item = iter_records(source.root)
    assert isinstance(item, BadSource) and (item.reason, item.field) == ("no_annotation", "images[0]")


def test_other_files_of_coco_and_photos_that_no_file_names_are_counted(source: Any) -> None:
    source.photo("images/a.jpg")
    source.photo("images/b.jpg")
    for name in ("instances_x", "person_keypoints_x"):
        source.write(f"annotations/{name}.json", document([image("a.jpg")], [annotation()]))
    report = source.convert("coco")
    assert report.photos_skipped == {"not_read": 1, "no_annotation": 1} and report.photos_written == 1


# ---------------------------------------------------------------- annotations

TRIANGLE = [10, 10, 30, 10, 30, 20]


@pytest.mark.parametrize(
    ("segmentation", "kind", "points"),
    [
        ([], "bbox_2d", (10, 10, 30, 20)),
        (None, "bbox_2d", (10, 10, 30, 20)),
        ([TRIANGLE], "poly", (10, 10, 30, 10, 30, 20)),
        ([[*TRIANGLE, 10, 10]], "poly", (10, 10, 30, 10, 30, 20)),
        ([[10, 10, 30, 10, 30, 20, 10, 20]], "bbox_2d", (10, 10, 30, 20)),
        ([[30, 20, 30, 10, 10, 10, 10, 20]], "bbox_2d", (10, 10, 30, 20)),
        ([[10, 10, 30, 20, 30, 10, 10, 24]], "poly", (10, 10, 30, 20, 30, 10, 10, 24)),
        ([[20, 10, 30, 15, 20, 20, 10, 15]], "poly", (20, 10, 30, 15, 20, 20, 10, 15)),
    ],
    ids=["none", "null", "polygon", "closed", "corners", "corners the other way", "bow tie", "turned square"],
)
def test_one_polygon_is_a_polygon_unless_it_is_a_box(source: Any, segmentation: Any, kind: str, points: Any) -> None:
    item = one_photo(source, annotation(segmentation=segmentation))
    assert shapes(item) == [(kind, points)] and not item.notes


def test_an_object_in_several_pieces_is_its_box_and_noted(source: Any) -> None:
    item = one_photo(source, annotation(segmentation=[TRIANGLE, [50, 5, 60, 5, 60, 15]], bbox=[10, 5, 50, 15]))
    assert (shapes(item), item.notes) == ([("bbox_2d", (10, 5, 60, 20))], (SEVERAL_POLYGONS,))


@settings(max_examples=50, deadline=None)
@given(data=st.data(), compressed=st.booleans())
def test_a_mask_is_the_box_of_its_pixels(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, compressed: bool
) -> None:
    width, height = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    bits = data.draw(st.lists(st.booleans(), min_size=width * height, max_size=width * height))
    pixels_HW = np.array(bits, dtype=np.uint8).reshape(height, width)
    pixels_HW[height // 2, width // 2] = 1  # one at least
    coded: Any = mask.encode(np.asfortranarray(pixels_HW))
    edges = np.flatnonzero(np.diff(pixels_HW.ravel("F"), prepend=0, append=2))
    counts = coded["counts"].decode() if compressed else np.diff(edges, prepend=0).tolist()
    root = tmp_path_factory.getbasetemp() / "masks"
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    obj = annotation(segmentation={"size": [height, width], "counts": counts})
    (root / "annotations" / "a.json").write_text(document([image("a.jpg", width=width, height=height)], [obj]))
    (item,) = iter_records(root)
    assert isinstance(item, SourceImage) and item.notes == (MASK,)
    y, x = np.nonzero(pixels_HW)
    assert shapes(item) == [("bbox_2d", (x.min(), y.min(), x.max() + 1, y.max() + 1))]


def test_crowds_and_boxes_without_extent_are_dropped_by_reason(source: Any) -> None:
    crowd = {"size": [60, 80], "counts": [0, 4800]}
    item = one_photo(
        source,
        annotation(1),
        annotation(2, iscrowd=1, segmentation=crowd),
        annotation(3, bbox=[5, 5, 0, 9]),
        annotation(4, bbox=[5, 5, -5, 9]),
        annotation(5, category_id=2),
        categories=[{"id": 1, "name": "RBC"}, {"id": 2, "name": " "}],
    )
    assert reasons(item) == ["crowd", "zero_area", "inverted_box", "no_description"] and len(shapes(item)) == 1


def test_what_is_not_read_of_an_annotation_is_noted_by_name(source: Any) -> None:
    attributes = {"occluded": True, "state": "loose", "outside": False}
    item = one_photo(source, annotation(attributes=attributes, keypoints=[1], caption="x", score=0))
    assert item.summary is None and item.notes == (
        "annotation key not read: keypoints",
        "annotation key not read: caption",
        "attribute not read: occluded",
        "attribute not read: state",
    )


@pytest.mark.parametrize("segmentation", [[[]], [[20, 30]], [[10, 10, 30, 20]], [[1, 1, 2, 2, 3, 3]], [[10, 10, None]]])
def test_the_box_stands_in_for_a_segmentation_that_cannot_be_used(source: Any, segmentation: Any) -> None:
    item = one_photo(source, annotation(segmentation=segmentation))
    assert shapes(item) == [("bbox_2d", (10, 10, 30, 20))]
    assert len(item.notes) == 1 and "segmentation" in item.notes[0]


def test_a_polygon_stands_in_for_a_box_that_cannot_be_used_and_empty_pieces_do_not_count(source: Any) -> None:
    item = one_photo(source, annotation(segmentation=[TRIANGLE, [], [1, 1]], bbox=[None, 1]))
    assert shapes(item) == [("poly", tuple(TRIANGLE))]


def test_a_rotation_turns_the_box_and_one_of_no_known_rule_is_refused(source: Any) -> None:
    box = [[10, 10, 30, 10, 30, 20, 10, 20]]
    item = one_photo(source, annotation(attributes={"rotation": 90.0}, rotation=90, segmentation=box))
    ((kind, points),) = shapes(item)
    assert kind == "poly" and points == pytest.approx((25, 5, 25, 25, 15, 25, 15, 5)) and not item.notes
    (dropped,) = one_photo(source, annotation(angle=30)).objects
    assert (dropped.reason, dropped.field) == ("rotated_box", "annotations[0].angle")


@pytest.mark.parametrize("ids", [(1.0, 1.0), ("1", "1"), (1, "1")])
def test_ids_written_as_floats_or_text_are_the_same_numbers(source: Any, ids: Any) -> None:
    item = one_photo(source, annotation(image_id=ids[0], category_id=ids[1]))
    assert [it.desc for it in item.objects] == ["RBC"]


@pytest.mark.parametrize(("size", "box"), [((80, 60), [40, 10, 50, 30]), ((60, 80), [10, 10, 30, 20])])
def test_the_declared_size_says_whether_boxes_are_on_the_turned_photo(source: Any, size: Any, box: Any) -> None:
    source.photo("a.jpg", orientation=6)
    declared = image("a.jpg", width=size[0], height=size[1])
    source.write("a.json", document([declared], [annotation()]))
    source.convert("coco")
    assert source.objects() == [{"desc": "RBC", "bbox_2d": box}]


# ---------------------------------------------------------------- writing


def load(path: Path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


@settings(max_examples=60, deadline=None)
@given(photos=export_photos())
def test_out_and_in_again(photos: list[ExportPhoto]) -> None:
    losses, found = out_and_in("coco", photos)
    lines = 0
    for photo in photos:
        item = found[photo_place(photo.image, photo.split)]
        assert (item.split, item.summary, item.size) == (photo.split, photo.summary, (photo.width, photo.height))
        read_again = [obj for obj in in_pixels(item, photo)]
        assert [desc for desc, _, _ in read_again] == [obj.desc for obj in photo.objects]
        for obj, (_, kind, points) in zip(photo.objects, read_again, strict=True):
            box = enclosing_box(obj.points)
            lines += obj.kind == "line"
            if obj.kind == "line":
                box = thicken(box, photo.width, photo.height)
            assert enclosing_box(points) == pytest.approx(box, abs=0.02)
            # Four points at the corners of a box are a box.
            assert kind == ("poly" if obj.kind == "poly" else "bbox_2d") or len(obj.points) == 8
            if kind == "poly":
                assert points == pytest.approx(obj.points, abs=0.01)
    assert losses == (Counter({"line written as its box": lines}) if lines else Counter())


PHOTOS = [
    ExportPhoto("x/a.jpg", 80, 60, (ExportObject("b/c", "bbox_2d", (1, 2, 31, 42), 0.25),), "train", "dusty"),
    ExportPhoto("b.jpg", 80, 60, (ExportObject("a,b/挡", "poly", (0, 0, 40, 0, 40, 30)),), "val"),
    ExportPhoto("c.jpg", 80, 60, (), "val"),
    ExportPhoto("d.jpg", 80, 60, (ExportObject("b/c", "line", (10, 30, 70, 30)),)),
]


def test_pycocotools_opens_what_is_written(tmp_path: Path) -> None:
    losses = write_records(iter(PHOTOS), tmp_path)
    names = ["captions_train", "instances_default", "instances_train", "instances_val"]
    assert sorted(path.stem for path in (tmp_path / "annotations").iterdir()) == names
    assert [path.name for path in tmp_path.iterdir()] == ["annotations"] and losses == {"line written as its box": 1}
    train, val, rest = (load(tmp_path / f"annotations/instances_{name}.json") for name in ("train", "val", "default"))
    categories = [
        {"id": 1, "name": "a,b/挡", "supercategory": "a,b"},
        {"id": 2, "name": "b/c", "supercategory": "b"},
    ]
    assert train.dataset["categories"] == val.dataset["categories"] == rest.dataset["categories"] == categories
    (box,), (polygon,), (line,) = (data.loadAnns(data.getAnnIds()) for data in (train, val, rest))
    assert (box["bbox"], box["area"], box["score"], box["segmentation"]) == ([1, 2, 30, 40], 1200, 0.25, [])
    assert (polygon["bbox"], polygon["area"]) == ([0, 0, 40, 30], 600) and "score" not in polygon
    assert mask.area(val.annToRLE(polygon)) == pytest.approx(polygon["area"], abs=40)  # whole pixels on its rim
    assert line["bbox"] == [10, 29, 60, 2]
    assert train.getAnnIds(areaRng=[1199, 1201]) == [1] and val.getCatIds(catNms=["a,b/挡"]) == [1]
    assert [entry["file_name"] for entry in val.loadImgs(val.getImgIds())] == ["b.jpg", "c.jpg"]
    (said,) = load(tmp_path / "annotations/captions_train.json").loadAnns([1])
    assert said["caption"] == "dusty"
    assert photo_place("x/a.jpg", "train") == "images/train/x/a.jpg" and photo_place("a", None) == "images/default/a"


def test_nothing_written_still_opens(tmp_path: Path) -> None:
    assert not write_records(iter([]), tmp_path)
    assert load(tmp_path / "annotations/instances_default.json").getImgIds() == []


def test_boxes_of_real_photos_are_the_same_for_pycocotools(shared_dir: Path, tmp_path: Path) -> None:
    voc = shared_dir / "data" / "bccd_voc"
    convert("pascal_voc", voc, tmp_path / "rows", taxonomy=None)
    export("coco", tmp_path / "rows", tmp_path / "coco", image_root=voc, photos="none")
    seen: dict[str, list[Any]] = {}
    for split in ("train", "val", "test"):
        data = load(tmp_path / f"coco/annotations/instances_{split}.json")
        for number, entry in data.imgs.items():
            found = data.loadAnns(data.getAnnIds(imgIds=number))
            assert all(obj["area"] == obj["bbox"][2] * obj["bbox"][3] for obj in found)
            boxes = [(data.cats[obj["category_id"]]["name"], *obj["bbox"]) for obj in found]
            seen[entry["file_name"]] = sorted((name, x, y, x + w, y + h) for name, x, y, w, h in boxes)
    expected = {
        item.image: sorted((obj.desc, *obj.points) for obj in item.objects if isinstance(obj, RawObject))
        for item in pascal_voc.iter_records(voc)
        if isinstance(item, SourceImage)
    }
    assert len(seen) == 364 and sum(map(len, seen.values())) == 4886 and seen == expected


def test_the_writer_keeps_no_photo(tmp_path: Path) -> None:
    given: list[weakref.ref[ExportPhoto]] = []

    def photos() -> Iterator[ExportPhoto]:
        for number in range(50):
            photo = ExportPhoto(f"{number}.jpg", 80, 60, PHOTOS[0].objects, "train", "words")
            given.append(weakref.ref(photo))
            yield photo
            del photo
            assert sum(kept() is not None for kept in given) <= 1  # the one that the writer's loop still names

    write_records(photos(), tmp_path)
    assert len(load(tmp_path / "annotations/instances_train.json").getAnnIds()) == 50


SOUND = document(
    [image("a.jpg"), image("b.jpg", 2)],
    [
        annotation(),
        annotation(2, segmentation=[TRIANGLE]),
        annotation(3, 2, segmentation={"size": [60, 80], "counts": [4700, 100]}),
        annotation(4, 2, segmentation={"size": [60, 80], "counts": "P5T2P5"}),
    ],
)


@settings(max_examples=60, deadline=None)
@given(content=damaged(SOUND.encode()))
def test_a_damaged_file_is_records_or_one_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    root = tmp_path_factory.getbasetemp() / "coco"
    write = sound_source(root, {"annotations/a.json": SOUND}, ["images/a.jpg", "images/b.jpg"])
    write("annotations/a.json", content)
    convert_or_one_error("coco", root)
