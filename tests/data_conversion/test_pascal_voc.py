"""Pascal VOC: the 1-based corners, the image sets, and the whole of a real data set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_conversion.pipeline import convert

BCCD = Path(__file__).parents[3] / "shared" / "data" / "bccd_voc"


def test_a_full_image_is_one_to_width_and_becomes_zero_to_width(source: Any, voc_object: Any) -> None:
    source.voc("a", voc_object("RBC", (1, 1, 80, 60)))
    source.convert("pascal_voc")
    assert source.objects() == [{"desc": "RBC", "bbox_2d": [0, 0, 80, 60]}]


def test_image_sets_are_the_splits(source: Any, voc_object: Any) -> None:
    for name in ("a", "b", "c", "unused"):
        source.voc(name, voc_object())
    source.write("ImageSets/Main/train.txt", "a\n")
    source.write("ImageSets/Main/val.txt", "b\r\n\n")
    source.write("ImageSets/Main/test.txt", "\ufeffc")
    report = source.convert("pascal_voc")
    assert {name: part["photos"] for name, part in report.splits.items()} == {
        "train": 1,
        "val": 1,
        "test": 1,
        "teacher": 0,
    }
    assert report.photos_skipped == {"not_in_image_sets": 1}


def test_trainval_is_train_where_there_is_nothing_finer(source: Any, voc_object: Any) -> None:
    source.voc("a", voc_object())
    source.write("ImageSets/Main/trainval.txt", "a")
    source.convert("pascal_voc")
    assert len(source.rows("train")) == 1


def test_stray_clicks_swapped_corners_and_empty_names_are_dropped_by_reason(source: Any, voc_object: Any) -> None:
    bad = voc_object(box=(5, 5, 5, 9)) + voc_object(box=(9, 5, 5, 9)) + voc_object(name=" ")
    source.voc("a", voc_object() + bad)
    report = source.convert("pascal_voc")
    assert report.dropped_by_reason() == {"inverted_box": 1, "no_description": 1, "zero_area": 1}


def test_a_photo_without_xml_is_counted(source: Any, voc_object: Any) -> None:
    source.voc("a", voc_object())
    source.photo("JPEGImages/b.jpg")
    assert source.convert("pascal_voc").photos_skipped == {"no_annotation": 1}


def test_the_file_name_element_names_the_photo(source: Any, voc_object: Any) -> None:
    source.voc("a", voc_object(), filename="other.jpg")
    source.photo("JPEGImages/other.jpg")
    source.convert("pascal_voc")
    assert source.rows()[0].images == ("JPEGImages/other.jpg",)


def test_without_a_file_name_the_stem_does(source: Any, voc_object: Any) -> None:
    source.voc("a", voc_object(), filename=" ")
    source.convert("pascal_voc")
    assert source.rows()[0].images == ("JPEGImages/a.jpg",)


@pytest.mark.skipif(not BCCD.is_dir(), reason=f"the BCCD data set is not at {BCCD}")
def test_the_real_bccd_data_set_loses_only_its_two_empty_boxes(tmp_path: Path) -> None:
    report = convert("pascal_voc", BCCD, tmp_path / "out", taxonomy=None)
    assert report.photos_read == report.photos_written == 364
    assert {name: part["photos"] for name, part in report.splits.items()} == {
        "train": 205,
        "val": 87,
        "test": 72,
        "teacher": 0,
    }
    assert (report.objects_read, report.objects_written) == (4888, 4886)
    assert report.dropped == {("RBC", "zero_area"): 2}
    assert "dropped  2 x RBC: zero_area" in report.summary()
    vocabulary = json.loads((tmp_path / "out" / "label_vocabulary.json").read_text(encoding="utf-8"))
    assert vocabulary["all"] == {"RBC": 4153, "WBC": 372, "Platelets": 361}
    merged = {"train": "train+val", "test": "test"}
    again = convert("pascal_voc", BCCD, tmp_path / "merged", taxonomy=None, splits=merged, max_teachers=4)
    assert {name: part["photos"] for name, part in again.splits.items()} == {
        "train": 288,
        "val": 0,
        "test": 72,
        "teacher": 4,
    }
