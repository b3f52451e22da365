"""Pascal VOC: the 1-based corners, the image sets, and the whole of a real data set."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bbu.errors import UserError
from bbu.geometry import enclosing_box, thicken
from data_conversion.base import ExportObject, ExportPhoto, RawObject, SourceImage
from data_conversion.formats.pascal_voc import iter_records
from data_conversion.formats.pascal_voc_writer import photo_place, write_records
from data_conversion.pipeline import convert
from tests.data_conversion.formats.exporting import (
    convert_or_one_error,
    damaged,
    export_photos,
    in_pixels,
    out_and_in,
    sound_source,
)


@pytest.fixture
def bccd(shared_dir: Path) -> Path:
    folder = shared_dir / "data" / "bccd_voc"
    if not folder.is_dir():
        pytest.skip(f"the BCCD data set is not at {folder}")
    return folder


def test_a_full_image_is_one_to_width_and_becomes_zero_to_width(source: Any, voc_object: Any) -> None:
    source.voc("a", voc_object("RBC", (1, 1, 80, 60)))
    source.convert("pascal_voc")
    assert source.objects() == [{"desc": "RBC", "bbox_2d": [0, 0, 80, 60]}]


def test_attributes_are_further_levels_and_other_elements_are_noted(source: Any, voc_object: Any) -> None:
    pairs = [("state", "loose"), ("rusty", "true"), ("x", "__undefined__"), ("occluded", "True"), ("rotation", "0.0")]
    items = "".join(f"<attribute><name>{name}</name><value>{value}</value></attribute>" for name, value in pairs)
    more = f"<attributes>{items}</attributes><pose>Unspecified</pose><truncated>0</truncated><difficult>1</difficult>"
    source.voc("a", voc_object("bolt").replace("</object>", f"{more}<part><name>head</name></part></object>"))
    report = source.convert("pascal_voc")
    assert [item["desc"] for item in source.objects()] == ["bolt/loose/rusty"]
    assert report.notes == {
        "attribute not read: occluded": 1,
        "object element not read: difficult": 1,
        "object element not read: part": 1,
    }


def test_the_plain_text_of_attributes_is_a_level_too(source: Any, voc_object: Any) -> None:
    source.voc("a", voc_object("bolt").replace("</object>", "<attributes>rusty,old</attributes></object>"))
    source.convert("pascal_voc")
    assert [item["desc"] for item in source.objects()] == ["bolt/rusty,old"]


def test_a_turned_box_is_a_polygon_by_the_rule_of_its_tool(source: Any, voc_object: Any) -> None:
    rotation = "<attributes><attribute><name>rotation</name><value>90</value></attribute></attributes>"
    turned = "<robndbox><cx>40</cx><cy>30</cy><w>20</w><h>10</h><angle>1.5707963267948966</angle></robndbox>"
    in_degrees = turned.replace("1.5707963267948966", "90")
    cvat = voc_object("cvat", (31, 26, 50, 35)).replace("</object>", f"{rotation}</object>")
    source.voc(
        "a", f"{cvat}<object><name>roLabelImg</name>{turned}</object><object><name>x</name>{in_degrees}</object>"
    )
    source.convert("pascal_voc")
    polygon = [45, 20, 45, 40, 35, 40, 35, 20]
    assert source.objects() == [{"desc": "cvat", "poly": polygon}, {"desc": "roLabelImg", "poly": polygon}]
    (lost,) = source.lines("invalid_objects.jsonl")
    assert (lost["label"], lost["detail"]) == ("x", "must be in radians, up to 2 pi, is 90")


def test_image_sets_are_the_splits(source: Any, voc_object: Any) -> None:
    for name in ("a", "b", "c", "unused"):
        source.voc(name, voc_object())
    source.write("ImageSets/Main/train.txt", "a\n")
    source.write("ImageSets/Main/val.txt", "b\r\n\n")
    source.write("ImageSets/Main/test.txt", "\ufeffc")
    report = source.convert("pascal_voc")
    assert {name: split["photos"] for name, split in report.splits.items()} == {
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


def test_the_real_bccd_data_set_loses_only_its_two_empty_boxes(bccd: Path, tmp_path: Path) -> None:
    report = convert("pascal_voc", bccd, tmp_path / "out", taxonomy=None)
    assert report.photos_read == report.photos_written == 364
    assert {name: split["photos"] for name, split in report.splits.items()} == {
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
    again = convert("pascal_voc", bccd, tmp_path / "merged", taxonomy=None, splits=merged, max_teachers=4)
    assert {name: split["photos"] for name, split in again.splits.items()} == {
        "train": 288,
        "val": 0,
        "test": 72,
        "teacher": 4,
    }


# ---------------------------------------------------------------- writing


@settings(max_examples=60, deadline=None)
@given(export_photos())
def test_what_is_written_is_read_again_as_boxes(photos: list[ExportPhoto]) -> None:
    losses, found = out_and_in("pascal_voc", photos)
    for photo in photos:
        item = found[photo_place(photo.image, photo.split)]
        assert (item.split, item.size) == (photo.split or "train", (photo.width, photo.height))
        again = in_pixels(item, photo)
        assert [desc for desc, _, _ in again] == [obj.desc for obj in photo.objects]
        for (_, kind, points), obj in zip(again, photo.objects, strict=True):
            box = enclosing_box(obj.points)
            box = thicken(box, photo.width, photo.height) if obj.kind == "line" else box
            narrow = max(0.0, 1.001 - min(box[2] - box[0], box[3] - box[1]))
            assert kind == "bbox_2d"
            assert points == pytest.approx(box, abs=narrow + 1e-3)
            if obj.kind == "bbox_2d":  # which the strategy makes half a pixel wide and more
                assert points == pytest.approx(obj.points, abs=0.502)
    objects = [obj for photo in photos for obj in photo.objects]
    assert losses["line written as its box"] == sum(obj.kind == "line" for obj in objects)
    assert losses["polygon written as its box"] == sum(obj.kind == "poly" for obj in objects)
    assert losses["score not kept"] == sum(obj.score is not None for obj in objects)
    assert losses["summary not kept"] == sum(photo.summary is not None for photo in photos)
    assert losses["photo without a split written to train"] == sum(photo.split is None for photo in photos)


def corners(path: Path) -> list[list[str | None]]:
    """The numbers of every box of an XML file, as they are written."""
    boxes = ElementTree.parse(path).getroot().findall("object/bndbox")
    return [[box.findtext(tag) for tag in ("xmin", "ymin", "xmax", "ymax")] for box in boxes]


def test_corners_count_from_one_and_keep_their_fractions(tmp_path: Path) -> None:
    boxes = [(0, 0, 80, 60), (10.25, 0.5, 30.123456, 20), (9, 9, 10, 10), (79.2, 59, 80, 60)]
    objects = tuple(ExportObject("x", "bbox_2d", box) for box in boxes)
    losses = write_records(iter([ExportPhoto("a.jpg", 80, 60, objects, "train")]), tmp_path)
    assert corners(tmp_path / "Annotations" / "a.xml") == [
        ["1", "1", "80", "60"],
        ["11.25", "1.5", "30.1235", "20"],
        ["9.9995", "9.9995", "10.0005", "10.0005"],
        ["79.999", "59.999", "80", "60"],
    ]
    assert losses == {"box of one pixel written wider": 2}


def test_a_photo_in_a_folder_gets_a_flat_name_and_keeps_its_path(tmp_path: Path) -> None:
    photos = [ExportPhoto(name, 80, 60, (), "val") for name in ("x/a.jpg", "x%2Fa.jpg", "y/a 1.jpg", ".a.jpg")]
    write_records(iter(photos), tmp_path)
    places = ["x%2Fa.jpg", "x%252Fa.jpg", "y%2Fa%201.jpg", "%2Ea.jpg"]
    assert [photo_place(photo.image, None) for photo in photos] == [f"JPEGImages/{place}" for place in places]
    stems = [place.removesuffix(".jpg") for place in places]
    assert sorted(path.stem for path in (tmp_path / "Annotations").iterdir()) == sorted(stems)
    assert (tmp_path / "ImageSets" / "Main" / "val.txt").read_text().splitlines() == stems
    annotation = ElementTree.parse(tmp_path / "Annotations" / "x%2Fa.xml").getroot()
    assert (annotation.findtext("filename"), annotation.findtext("path")) == ("x%2Fa.jpg", "x/a.jpg")


def test_photos_that_would_share_an_xml_file_are_an_error_and_leave_no_image_sets(tmp_path: Path) -> None:
    photos = [ExportPhoto(name, 80, 60, (), "train") for name in ("x/a.jpg", "x/a.png")]
    with pytest.raises(UserError, match=r"x/a.png: another photo has the annotation file Annotations/x%2Fa.xml"):
        write_records(iter(photos), tmp_path)
    assert list((tmp_path / "ImageSets" / "Main").iterdir()) == []


@pytest.mark.parametrize("text", ["a\x00b", "a\x1bb", "a\ufffe", "\ud83d"])
def test_what_xml_cannot_hold_is_an_error_that_names_the_photo(tmp_path: Path, text: str) -> None:
    photo = ExportPhoto("a.jpg", 80, 60, (ExportObject(text, "bbox_2d", (0, 0, 8, 6)),))
    with pytest.raises(UserError, match=r"a.jpg: .* which XML cannot hold; remove it"):
        write_records(iter([photo]), tmp_path)
    assert not list(tmp_path.rglob("*.xml"))


def objects_of(item: SourceImage) -> list[RawObject]:
    return [obj for obj in item.objects if isinstance(obj, RawObject)]


def test_the_real_bccd_data_set_written_and_read_again_is_the_same(bccd: Path, tmp_path: Path) -> None:
    items = {item.image: item for item in iter_records(bccd) if isinstance(item, SourceImage)}
    photos = (
        ExportPhoto(
            item.image.removeprefix("JPEGImages/"),
            *(item.size or (640, 480)),
            tuple(ExportObject(obj.desc, obj.kind, obj.points) for obj in objects_of(item)),
            item.split,
        )
        for item in items.values()
    )
    assert not write_records(photos, tmp_path)
    again = {item.image: item for item in iter_records(tmp_path) if isinstance(item, SourceImage)}
    assert list(again) == list(items) and len(items) == 364
    for image, item in items.items():
        assert (again[image].split, again[image].size) == (item.split, item.size)
        assert [(p.desc, p.points) for p in objects_of(again[image])] == [(p.desc, p.points) for p in objects_of(item)]
    assert sum(len(item.objects) for item in again.values()) == 4888 - 2


# ---------------------------------------------------------------- damage

BOX = "<bndbox><xmin>11</xmin><ymin>11</ymin><xmax>30</xmax><ymax>20</ymax></bndbox>"
SIZE = "<size><width>80</width><height>60</height></size>"
SOUND = {
    "Annotations/a.xml": f"<annotation>{SIZE}<object><name>大</name>{BOX}</object></annotation>",
    "Annotations/b.xml": f"<annotation><filename>b.jpg</filename><object><name>x</name>{BOX}</object></annotation>",
    "ImageSets/Main/train.txt": "a\n",
    "ImageSets/Main/val.txt": "b\n",
}


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(sorted(SOUND)), data=st.data())
def test_whatever_stands_in_a_file_it_is_rows_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    root = tmp_path_factory.getbasetemp() / "damaged_voc"
    write = sound_source(root, SOUND, ["JPEGImages/a.jpg", "JPEGImages/b.jpg"])
    write(name, data.draw(damaged(SOUND[name].encode())))
    convert_or_one_error("pascal_voc", root)
