"""Every format: sets without objects are refused, unread labels named, and only exact words are splits."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bbu.errors import UserError
from data_conversion.base import SourceImage, SourceOptions
from data_conversion.formats import FORMATS
from data_conversion.report import LABELS_NEVER_READ, WITHOUT_OBJECTS

BOX = (10, 10, 40, 30)
PHOTO = {"width": 80, "height": 60}

Put = Callable[[Any, str, str, bool], None]  # (source, word of the split, photo, whether it has an object)


def bbu_json(source: Any, word: str, photo: str, labelled: bool) -> None:
    corners = [[10, 10], [40, 10], [40, 30], [10, 30], [10, 10]]
    shape = {"type": "ExtentPolygon", "coordinates": corners}
    feature = {"geometry": shape, "properties": {"contentZh": {"标签": "bolt"}}}
    value = {"info": PHOTO, "markResult": {"features": [feature] * labelled}}
    source.photo(f"{word}/{photo}.jpg")
    source.write(f"{word}/{photo}.json", json.dumps(value))


def labelme(source: Any, word: str, photo: str, labelled: bool) -> None:
    shape = {"label": "bolt", "shape_type": "rectangle", "points": [BOX[:2], BOX[2:]]}
    value = {"shapes": [shape] * labelled, "imagePath": f"{photo}.jpg", "imageWidth": 80, "imageHeight": 60}
    source.photo(f"{word}/{photo}.jpg")
    source.write(f"{word}/{photo}.json", json.dumps(value))


def coco(source: Any, word: str, photo: str, labelled: bool) -> None:
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 30, 20], "iscrowd": 0}
    value = {
        "images": [{"id": 1, "file_name": f"{photo}.jpg", **PHOTO}],
        "annotations": [annotation] * labelled,
        "categories": [{"id": 1, "name": "bolt"}],
    }
    source.photo(f"{word}/{photo}.jpg")
    source.write(f"annotations/instances_{word}.json", json.dumps(value))


def csv(source: Any, word: str, photo: str, labelled: bool) -> None:
    source.photo(f"{photo}.jpg")
    cells = "10,10,40,30,bolt" if labelled else ",,,,"
    source.write(f"{word}.csv", f"image,x1,y1,x2,y2,desc\n{photo}.jpg,{cells}\n")


def cvat(source: Any, word: str, photo: str, labelled: bool) -> None:
    box = '<box label="bolt" xtl="10" ytl="10" xbr="40" ybr="30"/>' * labelled
    image = f'<image id="0" name="{photo}.jpg" subset="{word}" width="80" height="60">{box}</image>'
    source.photo(f"images/{photo}.jpg")
    source.write(f"{word}.xml", f"<annotations><version>1.1</version>{image}</annotations>")


def hf_dataset(source: Any, word: str, photo: str, labelled: bool) -> None:
    objects = {"bbox": [[10, 10, 30, 20]] * labelled, "categories": ["bolt"] * labelled}
    source.photo(f"{word}/{photo}.jpg")
    source.write(f"{word}/metadata.jsonl", json.dumps({"file_name": f"{photo}.jpg", "objects": objects}))


def label_studio(source: Any, word: str, photo: str, labelled: bool) -> None:
    value = {"x": 10, "y": 10, "width": 20, "height": 20, "rotation": 0, "rectanglelabels": ["bolt"]}
    region = {
        "id": "x", "type": "rectanglelabels", "from_name": "label", "to_name": "image", "original_width": 80,
        "original_height": 60, "image_rotation": 0, "value": value,
    }  # fmt: skip
    task = {
        "id": 1,
        "data": {"image": f"/data/local-files/?d={photo}.jpg", "split": word},
        "annotations": [{"id": 1, "result": [region] * labelled}],
    }
    source.photo(f"{photo}.jpg")
    source.write(f"{photo}.json", json.dumps([task]))


def pascal_voc(source: Any, word: str, photo: str, labelled: bool) -> None:
    box = "<bndbox><xmin>11</xmin><ymin>11</ymin><xmax>40</xmax><ymax>30</ymax></bndbox>"
    source.voc(photo, f"<object><name>bolt</name>{box}</object>" * labelled)
    source.write(f"ImageSets/Main/{word}.txt", f"{photo}\n")


def visual_genome(source: Any, word: str, photo: str, labelled: bool) -> None:
    region = {"region_id": 1, "image_id": 1, "x": 10, "y": 10, "width": 30, "height": 20, "phrase": "bolt"}
    source.photo("VG_100K/1.jpg")
    source.write("image_data.json", json.dumps([{"image_id": 1, "url": "http://x/VG_100K/1.jpg", **PHOTO}]))
    source.write("region_descriptions.json", json.dumps([{"id": 1, "regions": [region] * labelled}]))


def yolo(source: Any, word: str, photo: str, labelled: bool) -> None:
    source.write("classes.txt", "bolt\n")
    source.photo(f"{word}/images/{photo}.jpg")
    source.write(f"{word}/labels/{photo}.txt", "0 0.5 0.5 0.25 0.25\n" * labelled)


PUT: dict[str, Put] = {
    "bbu_json": bbu_json, "coco": coco, "csv": csv, "cvat": cvat, "hf_dataset": hf_dataset,
    "label_studio": label_studio, "labelme": labelme, "pascal_voc": pascal_voc, "visual_genome": visual_genome,
    "yolo": yolo,
}  # fmt: skip
WITH_SPLITS = [name for name in PUT if name not in ("pascal_voc", "visual_genome")]  # VOC has fixed file names


def test_the_tables_have_every_format() -> None:
    assert set(PUT) == {name for name, entry in FORMATS.items() if entry.read}


# ---------------------------------------------------------------- no object


@pytest.mark.parametrize("name", PUT)
def test_a_set_without_any_object_is_refused_and_writes_no_rows(name: str, source: Any) -> None:
    PUT[name](source, "train", "a", False)
    with pytest.raises(UserError, match=r"no object in 1 photos: nothing could be learned|could be converted"):
        source.convert(name)
    assert not (source.out / "train.jsonl").exists()


@pytest.mark.parametrize("name", PUT)
def test_one_object_is_enough(name: str, source: Any) -> None:
    PUT[name](source, "train", "a", True)
    assert source.convert(name).objects_written == 1


@pytest.mark.parametrize("name", WITH_SPLITS)
def test_training_photos_without_any_object_are_refused(name: str, source: Any) -> None:
    PUT[name](source, "train", "a", False)
    PUT[name](source, "val", "b", True)
    with pytest.raises(UserError, match=r"no object in 1 training photos \(1 in val\)"):
        source.convert(name)


def test_many_photos_without_objects_are_a_remark(source: Any) -> None:
    for number in range(5):
        yolo(source, "site", f"p{number}", number > 0)
    assert source.convert("yolo").remarks == {WITHOUT_OBJECTS: ["1 of 5 photos in train have no object"]}


# ---------------------------------------------------------------- labels that nobody read


@pytest.mark.parametrize("folder", ["train/labelTxt", "annotations", "train/images"])
def test_labels_in_another_folder_than_the_tool_s_are_named_in_the_error(folder: str, source: Any) -> None:
    source.write("classes.txt", "bolt\n")
    source.photo("train/images/a.jpg")
    source.write(f"{folder}/a.txt", "0 0.5 0.5 0.25 0.25\n")
    with pytest.raises(UserError, match=rf"{folder}/ \(1 .txt\): files with the names of photos that were not read"):
        source.convert("yolo")


@pytest.mark.parametrize("name", [name for name in PUT if name != "visual_genome"])
def test_labels_of_another_tool_beside_those_that_are_read_are_a_remark(name: str, source: Any) -> None:
    PUT[name](source, "train", "a", True)
    source.write("more/a.txt", "0 0.5 0.5 0.25 0.25\n")
    report = source.convert(name)
    assert report.remarks[LABELS_NEVER_READ][0].startswith("more/ (1 .txt): files with the names of photos")
    assert "more/ (1 .txt)" in report.summary() and "more/ (1 .txt)" in json.dumps(report.to_json())


@pytest.mark.parametrize("name", PUT)
def test_what_is_read_is_not_called_unread(name: str, source: Any) -> None:
    PUT[name](source, "train", "a", True)
    source.write("README.txt", "hello")
    assert LABELS_NEVER_READ not in source.convert(name).remarks


# ---------------------------------------------------------------- words of splits


@pytest.mark.parametrize("name", WITH_SPLITS)
@pytest.mark.parametrize(
    ("word", "split"),
    [("test", "test"), ("valid", "val"), ("test_bench", None), ("val_di_sole", None), ("tests", None)],
)
def test_only_an_exact_word_is_a_split(name: str, word: str, split: str | None, source: Any) -> None:
    PUT[name](source, word, "a", True)
    read = FORMATS[name].read
    assert read is not None
    (item,) = read(source.root, SourceOptions())
    assert isinstance(item, SourceImage) and item.split == split


@pytest.mark.parametrize("name", WITH_SPLITS)
def test_photos_of_a_place_called_after_a_split_are_drawn_as_asked(name: str, source: Any) -> None:
    for number in range(3 if name in ("labelme", "bbu_json", "label_studio", "yolo") else 1):
        PUT[name](source, "test_bench", f"t{number}", True)
        PUT[name](source, "yard", f"y{number}", True)
    report = source.convert(name, val_fraction=0.4)
    assert report.splits["val"]["photos"] >= 1 and "test" not in report.splits


def test_a_list_of_training_photos_as_val_is_noted_and_they_stay_in_train(source: Any) -> None:
    source.write("data.yaml", "names: [bolt]\ntrain: images/train\nval: val.txt\n")
    source.write("val.txt", "images/train/a.jpg\n")
    for name in ("a", "b"):
        source.photo(f"images/train/{name}.jpg")
        source.write(f"labels/train/{name}.txt", "0 0.5 0.5 0.25 0.25\n")
    report = source.convert("yolo")
    assert report.splits["train"]["photos"] == 2
    assert report.notes == {"val lists the photos of train; they count as train": 1}


# ---------------------------------------------------------------- sets that users had


@pytest.mark.parametrize(
    ("case", "name", "splits"),
    [
        ("split_from_folder_test_bench_labelme", "labelme", {"train": 14, "val": 4}),
        ("split_from_folder_val_di_sole_yolo", "yolo", {"train": 5, "val": 1}),
        ("split_from_csv_name", "csv", {"train": 5, "val": 1}),
        ("yolo_roboflow_missing_test", "yolo", {"train": 1, "val": 1}),
        ("yolo_coco128_same_folder", "yolo", {"train": 1, "val": 0}),
    ],
)
def test_what_users_met(case: str, name: str, splits: dict[str, int], shared_dir: Path, source: Any) -> None:
    source.root = shared_dir / "data" / "faulty_annotations" / case
    report = source.convert(name, val_fraction=None if "yolo_" in case else 0.2)
    assert {split: counts["photos"] for split, counts in report.splits.items() if split != "teacher"} == splits


def test_an_export_with_oriented_boxes_says_where_its_labels_lie(shared_dir: Path, source: Any) -> None:
    source.root = shared_dir / "data" / "faulty_annotations" / "yolo_roboflow_obb_labelTxt"
    with pytest.raises(UserError, match=r"train/labelTxt/ \(1 .txt\), valid/labelTxt/ \(1 .txt\): .*yolo reads"):
        source.convert("yolo")
