"""The BBU annotation files: geometry types, both label schemes, discovery of photos."""

from __future__ import annotations

import json
from typing import Any

import pytest


def geometry(name: str, coordinates: Any) -> dict[str, Any]:
    return {"type": name, "coordinates": coordinates}


BOX_RING = [[10.5, 10], [30, 10], [30, 20], [10.5, 20], [10.5, 10]]
TILTED = [[20, 5], [40, 15], [35, 25], [15, 15]]


@pytest.mark.parametrize(
    ("raw", "kind", "points"),
    [
        (geometry("ExtentPolygon", BOX_RING), "bbox_2d", [10.5, 10, 30, 20]),
        (geometry("ExtentPolygon", [BOX_RING]), "bbox_2d", [10.5, 10, 30, 20]),
        (geometry("Square", BOX_RING[:4]), "bbox_2d", [10.5, 10, 30, 20]),
        (geometry("Square", BOX_RING[3::-1]), "bbox_2d", [10.5, 10, 30, 20]),
        (geometry("Quad", TILTED), "poly", [20, 5, 40, 15, 35, 25, 15, 15]),
        (geometry("Quad", [*TILTED, TILTED[0]]), "poly", [20, 5, 40, 15, 35, 25, 15, 15]),
        (geometry("Polygon", [[10, 10], [30, 10], [20, 30], [10, 10]]), "poly", [10, 10, 30, 10, 20, 30]),
        (geometry("Polygon", BOX_RING), "bbox_2d", [10.5, 10, 30, 20]),
        (geometry("LineString", [[5, 5], [40, 5], [40, 50]]), "line", [5, 5, 40, 5, 40, 50]),
        (geometry("LineString", [[5, 5], [40, 5]]), "line", [5, 5, 40, 5]),
    ],
)
def test_every_geometry_type(source: Any, bbu_object: Any, raw: Any, kind: str, points: list[float]) -> None:
    source.bbu("a", [bbu_object(geometry=raw)])
    source.convert()
    assert source.objects() == [{"desc": "标签/可读", kind: points}]


def test_a_ring_along_the_axes_within_half_a_pixel_is_a_box(source: Any, bbu_object: Any) -> None:
    source.bbu("a", [bbu_object(geometry=geometry("Quad", [[10, 10.3], [30, 10], [30.2, 20], [10, 20]]))])
    source.convert()
    assert source.objects()[0]["bbox_2d"] == [10, 10, 30.2, 20]


@pytest.mark.parametrize(
    ("properties", "desc"),
    [
        ({"contentZh": {"标签": "连接点（螺丝）/BBU安装螺丝/连接正确"}}, "螺丝连接点/BBU安装螺丝/安装正确"),
        (
            {"content": {"label": "connection_point/install_screw/install_screw_true"}, "contentZh": None},
            "螺丝连接点/BBU安装螺丝/安装正确",
        ),
        ({"content": {"label": "connection_point/x"}, "contentZh": {"标签": "挡风板"}}, "挡风板"),
        (
            {
                "content": {
                    "connect_point_type": "地排处螺丝",
                    "connect_point_situation": ["未拧紧", "生锈"],
                    "connect_point_check": "",
                    "special_situation": "被遮挡",
                }
            },
            "螺丝连接点/地排处螺丝/未拧紧,生锈/被遮挡",
        ),
        (
            {"content": {"bbu_brand": "华为", "bbu_stituation": "安装正确", "bbu_equipment": "BBU"}},
            "bbu基带处理单元/华为/安装正确,BBU",
        ),
        ({"content": {"fiber_protection": ["蛇形管", "铠装"], "fiber_bend_radius": "合规"}}, "光纤/蛇形管,铠装/合规"),
        ({"content": {"label": "bbu", "bbu_brand": "中兴"}}, "bbu基带处理单元/中兴"),
        ({"content": {"label": "wire"}}, "线缆"),
    ],
)
def test_both_label_schemes_end_in_the_same_description(
    source: Any, bbu_object: Any, bbu_taxonomy: Any, properties: dict[str, Any], desc: str
) -> None:
    source.bbu("a", [bbu_object(None, **properties)])
    source.convert(taxonomy=bbu_taxonomy)
    assert [item["desc"] for item in source.objects()] == [desc]


def test_english_is_read_when_the_taxonomy_is_english(source: Any, bbu_object: Any) -> None:
    from bbu.taxonomy import Taxonomy

    source.bbu("a", [bbu_object("标签", content={"label": "label/readable"})])
    source.convert(taxonomy=Taxonomy(language="en"))
    assert source.objects()[0]["desc"] == "label/readable"


def test_an_unknown_question_is_dropped_by_name(source: Any, bbu_object: Any) -> None:
    source.bbu("a", [bbu_object(), bbu_object(None, content={"bbu_brand": "华为", "bbu_colour": "白"})])
    report = source.convert()
    assert report.dropped == {("bbu/华为", "unknown_question"): 1}
    assert "bbu_colour" in source.lines("invalid_objects.jsonl")[0]["detail"]


def test_broken_characters_are_spelt_out_in_the_lists(source: Any, bbu_object: Any) -> None:
    unread = bbu_object(None, content={"label": "label/readable", "\ud83d": "x"})
    unknown = bbu_object(None, content={"bbu_brand": "\ud83d", "\ud83d": "x"})
    source.bbu("a", [bbu_object("标签/可读", (40, 10, 60, 20)), unread, unknown], ascii_only=True)
    report = source.convert()
    assert report.notes == {r"content key not read: \ud83d": 2}
    assert report.dropped == {(r"bbu/\ud83d", "unknown_question"): 1}


def test_a_key_beside_a_complete_label_is_noted(source: Any, bbu_object: Any) -> None:
    source.bbu("a", [bbu_object(None, content={"label": "label/readable", "colour": "white"})])
    assert source.convert().notes == {"content key not read: colour": 1}


def test_data_list_holds_two_corners_in_any_direction(source: Any, bbu_object: Any) -> None:
    properties = bbu_object("挡风板")["properties"]
    items = [{"coordinates": [[30, 20], [10, 5.25]], "properties": properties}]
    source.photo("a.jpg")
    source.write("a.json", json.dumps({"dataList": items, "info": {"width": 80, "height": 60}}))
    source.convert()
    assert source.objects() == [{"desc": "挡风板", "bbox_2d": [10, 5.25, 30, 20]}]


def test_photos_are_found_at_any_depth_and_the_first_folder_is_the_split(source: Any, bbu_object: Any) -> None:
    for name in ("train/a", "train/deep/er/b", "val/c", "test/d"):
        source.bbu(name, [bbu_object()])
    report = source.convert()
    assert [row.images for row in source.rows("train")] == [("train/a.jpg",), ("train/deep/er/b.jpg",)]
    assert [row.images for row in source.rows("val")] == [("val/c.jpg",)]
    assert [row.images for row in source.rows("test")] == [("test/d.jpg",)]
    assert report.photos_written == 4


def test_a_photo_in_no_split_folder_goes_to_train_and_is_noted(source: Any, bbu_object: Any) -> None:
    for name in ("extra/a", "val/c"):
        source.bbu(name, [bbu_object()])
    report = source.convert()
    assert [row.images for row in source.rows("train")] == [("extra/a.jpg",)]
    assert report.notes == {"photos_without_split_put_in_train": 1}


def test_a_photo_without_json_is_counted_and_does_not_stop_a_strict_conversion(source: Any, bbu_object: Any) -> None:
    source.bbu("a", [bbu_object()])
    source.photo("lonely.JPEG")
    report = source.convert(on_error="fail")
    assert report.photos_skipped == {"no_annotation": 1}
    assert source.lines("invalid_samples.jsonl")[0]["source"] == "lonely.JPEG"


def test_the_output_may_lie_inside_the_source_and_is_not_read_again(source: Any, bbu_object: Any) -> None:
    source.bbu("a", [bbu_object()])
    source.out = source.root / "converted"
    first = source.convert()
    assert source.convert() == first


def test_hidden_files_are_no_annotations(source: Any, bbu_object: Any) -> None:
    source.bbu("a", [bbu_object()])
    source.write("._a.json", b"\x00\x05\x16\x07")
    source.write(".checkpoints/b.json", "{")
    assert source.convert().photos_read == 1


def test_a_byte_order_mark_and_a_missing_size_are_fine(source: Any, bbu_object: Any, document: Any) -> None:
    source.photo("a.jpg")
    source.write("a.json", b"\xef\xbb\xbf" + json.dumps(document([bbu_object()], size=None)).encode())
    source.convert()
    assert (source.rows()[0].width, source.rows()[0].height) == (80, 60)


def test_an_empty_photo_is_a_row_without_objects(source: Any, bbu_object: Any) -> None:
    source.bbu("a", [])
    source.bbu("b", [bbu_object()])
    source.convert()
    assert [len(row.objects) for row in source.rows()] == [0, 1]


def test_repeated_ids_are_noted_and_exact_copies_dropped(source: Any, bbu_object: Any) -> None:
    source.bbu("a", [bbu_object(objectId=7), bbu_object(objectId=7), bbu_object("挡风板", objectId=7)])
    report = source.convert()
    assert report.notes == {"repeated_object_id": 2}
    assert report.dropped == {("标签/可读", "duplicate"): 1}


def test_other_keys_with_content_are_noted_by_name(source: Any, document: Any, bbu_object: Any) -> None:
    source.photo("a.jpg")
    value = {**document([bbu_object(rotation=30, quality="")]), "remarks": {"text": "old"}}
    value["info"]["rotation"] = 90
    value["markResult"]["features"][0]["title"] = "x"
    value["markResult"]["features"][0]["geometry"]["angle"] = 5
    source.write("a.json", json.dumps(value))
    assert source.convert().notes == {
        "property not read: rotation": 1,
        "feature key not read: title": 1,
        "geometry key not read: angle": 1,
        "file key not read: remarks.text": 1,
        "info key not read: rotation": 1,
    }
