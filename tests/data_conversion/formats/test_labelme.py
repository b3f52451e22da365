"""LabelMe: every shape, where the photo is, what becomes of flags and texts, and the way out and back in."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bbu.errors import UserError
from data_conversion.base import BadSource, ExportObject, ExportPhoto, SourceImage
from data_conversion.formats.labelme import SHAPES, iter_records, write_records
from tests.data_conversion.formats.bad_labelme import REMOVE, document, shape
from tests.data_conversion.formats.exporting import (
    convert_or_one_error,
    damaged,
    export_photos,
    in_pixels,
    out_and_in,
    sound_source,
)

TILTED = [[20, 5], [40, 15], [35, 25], [15, 15]]


def put(source: Any, *shapes: Any, **changes: Any) -> None:
    """One photo and its file."""
    source.photo("good.jpg")
    source.write("good.json", document(*shapes, **changes))


def only(source: Any) -> SourceImage:
    (item,) = iter_records(source.root)
    assert isinstance(item, SourceImage), item
    return item


def test_attributes_are_levels_between_flags_and_the_description(source: Any) -> None:
    attributes = {"state": "loose", "worn": True, "clean": False, "colours": ["red", "blue"], "note": None, "turns": 3}
    put(source, shape(flags={"old": True}, attributes=attributes, description="by hand", direction=1.5, score=0.9))
    report = source.convert("labelme")
    assert [item["desc"] for item in source.objects()] == ["RBC/old/loose/worn/red,blue/3/by hand"]
    assert report.notes == {"shape key not read: score": 1}


@pytest.mark.parametrize(
    ("shape_type", "points", "kind", "flat"),
    [
        ("rectangle", [[30, 20], [10, 5.25]], "bbox_2d", [10, 5.25, 30, 20]),
        ("rectangle", [[10, 20], [30, 20], [30, 5], [10, 5]], "bbox_2d", [10, 5, 30, 20]),
        ("rectangle", [[10, 20.4], [30, 20], [30, 5], [10.4, 5]], "bbox_2d", [10, 5, 30, 20.4]),
        ("rectangle", TILTED, "poly", [20, 5, 40, 15, 35, 25, 15, 15]),
        ("oriented_rectangle", TILTED, "poly", [20, 5, 40, 15, 35, 25, 15, 15]),
        ("rotation", TILTED, "poly", [20, 5, 40, 15, 35, 25, 15, 15]),
        ("quadrilateral", TILTED, "poly", [20, 5, 40, 15, 35, 25, 15, 15]),
        ("polygon", [[10, 10], [30, 10], [20, 30]], "poly", [10, 10, 30, 10, 20, 30]),
        (None, [[10, 10], [30, 10], [20, 30]], "poly", [10, 10, 30, 10, 20, 30]),
        ("line", [[5, 5], [40, 5]], "line", [5, 5, 40, 5]),
        ("linestrip", [[5, 5], [40, 5], [40, 50]], "line", [5, 5, 40, 5, 40, 50]),
        ("circle", [[30, 30], [33, 34]], "bbox_2d", [25, 25, 35, 35]),
    ],
)
def test_every_shape(source: Any, shape_type: Any, points: Any, kind: str, flat: list[float]) -> None:
    put(source, shape(shape_type=shape_type, points=points))
    report = source.convert("labelme")
    assert source.objects() == [{"desc": "RBC", kind: flat}]
    assert report.notes == ({"circle_read_as_its_box": 1} if shape_type == "circle" else {})


@pytest.mark.parametrize("shape_type", ["point", "points", "mask"])
def test_what_is_no_box_polygon_or_line_is_dropped_by_name(source: Any, shape_type: str) -> None:
    put(source, shape(), shape(label="dot", shape_type=shape_type, points=[[1, 1]]))
    report = source.convert("labelme")
    assert report.dropped == {("dot", "unsupported_shape"): 1}
    assert source.lines("invalid_objects.jsonl")[0]["detail"] == f"{shape_type!r} is no box, polygon or line"


@pytest.mark.parametrize("orientation", range(1, 9))
def test_points_are_displayed_pixels(source: Any, orientation: int) -> None:
    width, height = (60, 80) if orientation > 4 else (80, 60)
    put(source, shape(), imageWidth=width, imageHeight=height)
    source.photo("good.jpg", orientation=orientation)
    source.convert("labelme")
    assert source.objects() == [{"desc": "RBC", "bbox_2d": [10, 10, 30, 20]}]
    assert (source.rows()[0].width, source.rows()[0].height) == (width, height)


@pytest.mark.parametrize(
    ("changes", "desc"),
    [
        ({"label": "screw/M6 "}, "screw/M6"),
        ({"flags": {"loose": True, "rusty": False, "old": True}}, "RBC/loose/old"),
        ({"description": " seen from\nthe left "}, "RBC/seen from the left"),
        ({"description": "第二排/左", "flags": {"未拧紧": True}}, "RBC/未拧紧/第二排/左"),
        ({"description": None, "flags": None}, "RBC"),
    ],
)
def test_the_path_is_label_then_flags_then_text(source: Any, changes: Any, desc: str) -> None:
    put(source, shape(**changes))
    source.convert("labelme")
    assert [obj["desc"] for obj in source.objects()] == [desc]


@pytest.mark.parametrize("label", ["", "  ", None])
def test_a_shape_without_a_label_is_dropped_whatever_else_it_says(source: Any, label: Any) -> None:
    put(source, shape(), shape(label=label, description="x", flags={"y": True}))
    assert source.convert("labelme").dropped == {("(no label)", "no_description"): 1}


def test_what_is_not_read_is_noted(source: Any) -> None:
    put(source, shape(group_id=3), shape(points=[[1, 1], [9, 9]]), flags={"blurred": True, "dark": False})
    assert only(source).notes == ("photo flag not read: blurred", "group_id_not_read")


def test_the_oldest_files_have_no_size_and_no_flags(source: Any) -> None:
    old = {"label": "RBC", "points": [[10, 10], [30, 10], [20, 30]], "line_color": None, "fill_color": None}
    put(source, old, imageWidth=REMOVE, imageHeight=REMOVE, flags=REMOVE, version="3.5.0")
    source.convert("labelme")
    assert source.objects() == [{"desc": "RBC", "poly": [10, 10, 30, 10, 20, 30]}]


def test_a_byte_order_mark_is_accepted(source: Any) -> None:
    source.photo("good.jpg")
    source.write("good.json", b"\xef\xbb\xbf" + document(shape()).encode())
    assert len(only(source).objects) == 1


# ---------------------------------------------------------------- where the photo is


@pytest.mark.parametrize(
    ("json_file", "image_path", "photo", "notes"),
    [
        ("train/a.json", "a.jpg", "train/a.jpg", ()),
        ("valid/x/a.json", "./b.jpg", "valid/x/b.jpg", ()),
        ("train/ann/a.json", "..\\images\\a.jpg", "train/images/a.jpg", ()),
        ("ann/a.json", "train/a.jpg", "train/a.jpg", ("photo_found_in_another_folder",)),
        ("ann/a.json", "a.jpg", "deep/er/a.jpg", ("photo_found_in_another_folder",)),
    ],
)
def test_the_photo_is_found_from_the_folder_of_its_json(
    source: Any, json_file: str, image_path: str, photo: str, notes: tuple[str, ...]
) -> None:
    source.photo(photo)
    source.write(json_file, document(shape(), image=image_path))
    item = only(source)
    assert (item.image, item.notes) == (photo, notes)
    assert item.split == {"train": "train", "valid": "val"}.get(photo.split("/")[0])


def test_of_two_photos_of_one_name_the_one_beside_is_meant(source: Any) -> None:
    source.photo("a.jpg")
    source.photo("x/a.jpg")
    source.write("x/a.json", document(shape(), image="a.jpg"))
    (item, other) = iter_records(source.root)
    assert isinstance(item, SourceImage) and item.image == "x/a.jpg"
    assert isinstance(other, BadSource) and (other.source, other.reason) == ("a.jpg", "no_annotation")


@pytest.mark.parametrize(("image_path", "name"), [("a.jpg", "x/a.jpg"), ("..\\..\\..\\p\\a.jpg", "x/a.jpg")])
def test_a_photo_that_is_only_in_the_json_is_taken_from_it(source: Any, image_path: str, name: str) -> None:
    raw = source.photo("hidden.jpg").read_bytes()
    (source.root / "hidden.jpg").unlink()
    data = base64.encodebytes(raw).decode()  # with line ends, as old versions wrote it
    source.write("x/a.json", document(shape(), image=image_path, imageData=data))
    item = only(source)
    assert (item.image, item.content, item.notes) == (name, raw, ("photo_taken_from_image_data",))


def test_image_data_is_not_looked_at_when_the_photo_is_there(source: Any) -> None:
    put(source, shape(), imageData="%%%")
    assert only(source).content is None


def test_photos_without_a_json_are_counted_and_those_with_a_bad_one_only_once(source: Any) -> None:
    put(source, shape())
    source.photo("lonely.PNG")
    source.photo("bad.jpg")
    source.write("bad.json", "{")
    report = source.convert("labelme", on_error="skip")
    assert report.photos_skipped == {"malformed": 1, "no_annotation": 1}


def test_hidden_files_and_the_output_are_not_read(source: Any) -> None:
    put(source, shape())
    source.write("._good.json", b"\x00")
    source.write(".trash/a.json", "{")
    source.out = source.root / "converted"
    assert source.convert("labelme").photos_read == source.convert("labelme").photos_read == 1


def test_a_photo_with_no_shapes_is_a_row(source: Any) -> None:
    put(source, shape())
    source.photo("empty.jpg")
    source.write("empty.json", document(imagePath="empty.jpg"))
    source.convert("labelme")
    assert [len(row.objects) for row in source.rows()] == [0, 1]


# ---------------------------------------------------------------- writing


@settings(max_examples=60, deadline=None)
@given(export_photos())
def test_what_is_written_is_read_again_exactly(photos: list[ExportPhoto]) -> None:
    losses, found = out_and_in("labelme", photos)
    for photo in photos:
        item = found[photo.image]
        assert (item.size, item.notes) == ((photo.width, photo.height), ())
        assert in_pixels(item, photo) == [(obj.desc, obj.kind, obj.points) for obj in photo.objects]
        if photo.split is None or photo.split == item.split:
            continue
        losses["split not kept"] -= 1
    objects = [obj for photo in photos for obj in photo.objects]
    losses["summary not kept"] -= sum(photo.summary is not None for photo in photos)
    losses["score not kept"] -= sum(obj.score is not None for obj in objects)
    assert not +losses and not -losses


def test_a_written_file_has_the_keys_that_labelme_asks_for(tmp_path: Path) -> None:
    objects = tuple(
        ExportObject(f"螺丝/{kind}", kind, (1, 2, 30.5, 40, 5, 6)[: 4 + 2 * (kind == "poly")]) for kind in SHAPES
    )
    assert not write_records(iter([ExportPhoto("x/a.b.jpg", 80, 60, objects)]), tmp_path)
    text = (tmp_path / "x" / "a.b.json").read_text(encoding="utf-8")
    value = json.loads(text)
    assert "螺丝/bbox_2d" in text
    assert {key: value[key] for key in ("version", "flags", "imagePath", "imageData", "imageHeight", "imageWidth")} == {
        "version": "5.4.1",
        "flags": {},
        "imagePath": "a.b.jpg",
        "imageData": None,
        "imageHeight": 60,
        "imageWidth": 80,
    }
    assert [(item["shape_type"], item["points"]) for item in value["shapes"]] == [
        ("rectangle", [[1, 2], [30.5, 40]]),
        ("polygon", [[1, 2], [30.5, 40], [5, 6]]),
        ("linestrip", [[1, 2], [30.5, 40]]),
    ]


def test_photos_that_would_share_a_json_are_an_error(tmp_path: Path) -> None:
    photos = [ExportPhoto(name, 80, 60, ()) for name in ("x/a.jpg", "x/a.png")]
    with pytest.raises(UserError, match=r"x/a.png: another photo has the annotation file x/a.json already"):
        write_records(iter(photos), tmp_path)


# ---------------------------------------------------------------- damage

CIRCLE = shape(shape_type="circle", flags={"loose": True}, description="大", group_id=1)
SOUND = {
    "a.json": document(shape(), shape(shape_type="polygon", points=TILTED), CIRCLE, image="a.jpg"),
    "b.json": document(shape(shape_type="linestrip", points=TILTED), image="sub\\b.jpg", flags={"dark": True}),
}


@settings(max_examples=100, deadline=None)
@given(name=st.sampled_from(sorted(SOUND)), data=st.data())
def test_whatever_stands_in_a_file_it_is_rows_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    root = tmp_path_factory.getbasetemp() / "damaged_labelme"
    write = sound_source(root, SOUND, ["a.jpg", "sub/b.jpg"])
    write(name, data.draw(damaged(SOUND[name].encode())))
    convert_or_one_error("labelme", root)
