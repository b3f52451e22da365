"""Label Studio: percent and rotation, text given to regions, which results count, photos found; and written back."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bbu.geometry import enclosing_box, thicken
from data_conversion.base import BadSource, Dropped, ExportObject, ExportPhoto, SourceImage
from data_conversion.formats.label_studio import iter_records
from data_conversion.formats.label_studio_writer import NOT_IN_XML, write_records

bad = importlib.import_module("tests.data_conversion.formats.bad_label_studio")
ways = importlib.import_module("tests.data_conversion.formats.exporting")
rectangle, task = bad.rectangle, bad.task


@pytest.fixture
def read(source: Any) -> Callable[..., SourceImage]:
    """The only item of one task with these results."""

    def one(*results: Any, **changes: Any) -> SourceImage:
        source.photo("a.jpg")
        source.write("export.json", json.dumps([task("a.jpg", *results, **changes)]))
        (item,) = iter_records(source.root)
        assert isinstance(item, SourceImage), item
        return item

    return one


def words(kind: str, value: Any, **changes: Any) -> dict[str, Any]:
    key = {"textarea": "text"}.get(kind, kind)
    return {"id": "r1", "type": kind, "from_name": kind, "to_name": "image", "value": {key: value}, **changes}


def test_percent_of_the_displayed_photo_become_pixels(read: Any) -> None:
    item = read(rectangle("标签/可读", x=10, y=10, width=25, height=50))
    (found,) = item.objects
    assert (found.desc, found.kind, found.points) == ("标签/可读", "bbox_2d", (8, 6, 28, 36))
    assert (item.displayed, item.size, item.relative, item.image) == (True, (80, 60), False, "a.jpg")
    assert found.field == "[0].annotations[0].result[0].value"


def test_without_a_size_they_are_shares(read: Any) -> None:
    result = {key: value for key, value in rectangle().items() if not key.startswith("original")}
    item = read(result)
    assert (item.size, item.relative) == (None, True)
    assert item.objects[0].points == pytest.approx((0.1, 0.1, 0.35, 0.6))


def test_a_rectangle_turns_clockwise_around_its_top_left_corner(read: Any) -> None:
    (found,) = read(rectangle(x=50, y=0, width=25, height=50, rotation=90)).objects
    # 20 x 30 pixels at (40, 0): the right side comes to lie below.
    assert found.kind == "poly"
    assert found.points == pytest.approx((40, 0, 40, 20, 10, 20, 10, 0))
    (full,) = read(rectangle(rotation=360)).objects
    assert full.kind == "bbox_2d"


@given(angle=st.floats(-720, 720), width=st.floats(1, 100), height=st.floats(1, 100))
def test_turning_keeps_sides_right_angles_and_the_corner(angle: float, width: float, height: float) -> None:
    from data_conversion.formats.label_studio import _rectangle

    value = {"x": 20, "y": 30, "width": width, "height": height, "rotation": angle}
    kind, points = _rectangle(value, (300, 200), "f", "v")
    if kind == "poly":
        a, b, c, d = (complex(points[i], points[i + 1]) for i in (0, 2, 4, 6))
        assert a == 60 + 60j
        assert (abs(b - a), abs(d - a)) == pytest.approx((3 * width, 2 * height))
        assert c - b == pytest.approx(d - a)
        assert (b - a) / abs(b - a) == pytest.approx(
            complex(math.cos(math.radians(angle)), math.sin(math.radians(angle)))
        )


def test_polygons(read: Any) -> None:
    value = {"points": [[0, 0], [50, 0], [50, 100]], "polygonlabels": ["x"], "closed": True}
    (found,) = read({**rectangle(), "type": "polygonlabels", "value": value}).objects
    assert (found.kind, found.points) == ("poly", (0, 0, 40, 0, 40, 60))


def test_words_given_to_a_region_are_further_levels_in_order(read: Any) -> None:
    item = read(
        words("choices", ["loose", "rusty"]),
        rectangle("screw"),
        rectangle("BBU") | {"from_name": "second"},
        words("textarea", ["left of it"]),
        words("choices", ["checked"], id="c9", parentID="r1"),
        words("taxonomy", [["by hand", "twice"]]),
        words("choices", []),
    )
    assert [obj.desc for obj in item.objects] == ["screw/BBU/loose,rusty/left of it/checked/by hand/twice"]
    assert item.summary is None


def test_several_labels_are_attributes_of_one_level(read: Any) -> None:
    assert read(rectangle(rectanglelabels=["loose", " rusty "])).objects[0].desc == "loose,rusty"


def test_a_rectangle_and_its_labels_in_two_results(read: Any) -> None:
    item = read({**rectangle(), "type": "rectangle"}, words("labels", ["x"]))
    assert [obj.desc for obj in item.objects] == ["x"]


def test_words_without_a_region_are_about_the_photo(read: Any) -> None:
    item = read(rectangle(), words("choices", ["blurred"], id="c1"), words("textarea", "dusty", id="c2"))
    assert (item.summary, item.objects[0].desc) == ("blurred; dusty", "label")


def test_what_cannot_be_used_is_dropped_by_name(read: Any) -> None:
    shapes = [
        {**rectangle(identity=kind), "type": kind, "value": {kind: ["x"]}}
        for kind in ("keypointlabels", "brushlabels", "ellipselabels", "ellipse")
    ]
    item = read(
        *shapes,
        rectangle(identity="a", width=0),
        rectangle(identity="b", width=-3),
        rectangle(identity="c", rectanglelabels=[]),
        {
            **rectangle(identity="d"),
            "type": "polygonlabels",
            "value": {"points": [[1, 1], [9, 9]], "polygonlabels": ["x"]},
        },
        {
            **rectangle(identity="e"),
            "type": "polygonlabels",
            "value": {"points": [[1, 1], [9, 9], [1, 9]], "polygonlabels": ["x"], "closed": False},
        },
        {"type": "relation", "from_id": "a", "to_id": "b"},
    )
    assert all(isinstance(obj, Dropped) for obj in item.objects)
    reasons = [obj.reason for obj in item.objects if isinstance(obj, Dropped)]
    assert reasons == [
        *["unsupported_shape"] * 4,
        "zero_area",
        "inverted_box",
        "no_description",
        "zero_area",
        "unsupported_shape",
    ]
    assert item.notes == ("result_not_read: relation",)


def annotation(label: str, **changes: Any) -> dict[str, Any]:
    return {"result": [rectangle(label)], **changes}


@pytest.mark.parametrize(
    ("annotations", "label"),
    [
        (
            [
                annotation("old", updated_at="2024-01-01T00:00:00Z"),
                annotation("new", updated_at="2024-02-01T00:00:00Z"),
            ],
            "new",
        ),
        (
            [
                annotation("new", updated_at="2024-02-01T00:00:00Z"),
                annotation("old", updated_at="2024-01-01T00:00:00Z"),
            ],
            "new",
        ),
        ([annotation("truth", ground_truth=True, updated_at="1"), annotation("new", updated_at="2")], "truth"),
        ([annotation("first"), annotation("last")], "last"),
        ([annotation("timed", updated_at="2024-01-01T00:00:00Z"), annotation("untimed")], "timed"),
        ([annotation("kept", updated_at="1"), annotation("x", was_cancelled=True, updated_at="2")], "kept"),
    ],
)
def test_which_of_several_annotations_counts(read: Any, annotations: list[Any], label: str) -> None:
    item = read(annotations=annotations)
    assert [obj.desc for obj in item.objects] == [label]
    assert ("several_annotations" in item.notes) == (label != "kept")


@pytest.mark.parametrize("annotations", [[], [annotation("x", was_cancelled=True)]])
def test_a_task_that_nobody_labelled_is_counted_and_its_predictions_are_not_labels(
    source: Any, annotations: Any
) -> None:
    source.photo("a.jpg")
    predictions = [{"result": [rectangle()]}]
    source.write("export.json", json.dumps([task("a.jpg", annotations=annotations, predictions=predictions)]))
    first, second = iter_records(source.root)
    assert isinstance(first, BadSource) and first.reason == "no_annotation" and first.field == "[0]"
    assert isinstance(second, BadSource) and (second.source, second.reason) == ("a.jpg", "no_annotation")


def test_predictions_are_read_from_a_file_made_for_import(read: Any) -> None:
    item = read(annotations=None, predictions=[{"result": [rectangle("x")], "score": 0.5}, {"result": []}])
    assert ([obj.desc for obj in item.objects], item.notes) == (["x"], ("predictions_read",))


@pytest.mark.parametrize(
    ("reference", "place"),
    [
        ("/data/upload/3/0123abcd-a.jpg", "x/a.jpg"),
        ("/data/upload/3/89abcdef-89abcdef-b.jpg", "x/89abcdef-b.jpg"),
        ("/data/upload/3/89abcdef-b.jpg", "x/89abcdef-b.jpg"),  # that very name is there
        ("/data/local-files/?d=y/one%20%26%20two.jpg", "y/one & two.jpg"),
        ("/data/local-files/?d=y/one & two.jpg", "y/one & two.jpg"),
        ("/data/local-files/?d=/srv/photos/y/one+%26+two.jpg", "y/one & two.jpg"),
        ("http://host:8080/data/local-files/?d=y%5Cc+d.jpg", "y/c+d.jpg"),
        ("/data/local-files/?d=y/c+d.jpg", "y/c+d.jpg"),
        ("s3://bucket/y/e.jpg", "y/e.jpg"),
        ("https://host/photos/z/e.jpg?sign=a/b.jpg", "z/e.jpg"),
        ("/home/me/photos/z/e.jpg", "z/e.jpg"),
        ("e.jpg", "e.jpg"),  # two of that name: no guess
        ("/data/upload/3/0123abcd-none.jpg", "data/upload/3/0123abcd-none.jpg"),
    ],
)
def test_where_the_photo_is(source: Any, reference: str, place: str) -> None:
    for name in ("x/a.jpg", "x/89abcdef-b.jpg", "y/one & two.jpg", "y/c+d.jpg", "y/e.jpg", "z/e.jpg"):
        source.photo(name)
    source.write("export.json", json.dumps([{**task(""), "data": {"image": reference}}]))
    assert next(iter(iter_records(source.root))).image == place  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "data",
    [
        {"image": "other.jpg", "photo": "a.jpg"},  # the result says $photo
        {"url": "a.jpg", "text": "words"},
    ],
)
def test_under_which_key_the_photo_is(read: Any, data: dict[str, str]) -> None:
    source_key = {"source": "$photo"} if "photo" in data else {}
    assert read({**rectangle(), **source_key}, data=data).image == "a.jpg"


def test_splits_several_files_a_byte_order_mark_and_no_objects(source: Any) -> None:
    for name in ("a", "b"):
        source.photo(f"{name}.jpg")
    first = {**task("a.jpg"), "data": {"image": "a.jpg", "split": "val"}}
    source.write("1.json", b"\xef\xbb\xbf" + json.dumps([first]).encode())
    source.write("2.json", json.dumps([task("b.jpg", rectangle())]))
    report = source.convert("label_studio")
    assert (report.photos_written, report.splits["val"]["photos"]) == (2, 1)
    assert [len(row.objects) for row in source.rows()] == [0, 1]


def test_points_are_of_the_photo_as_the_browser_turns_it(source: Any) -> None:
    source.photo("a.jpg", size=(80, 60), orientation=6)
    turned = {**rectangle(x=0, y=0, width=50, height=50), "original_width": 60, "original_height": 80}
    source.write("export.json", json.dumps([task("a.jpg", turned)]))
    source.convert("label_studio")
    assert source.objects() == [{"desc": "label", "bbox_2d": [0, 0, 30, 40]}]


# ---------------------------------------------------------------- written


def close(found: Any, wanted: Any) -> bool:
    return len(found) == len(wanted) and all(abs(a - b) <= 0.01 for a, b in zip(found, wanted, strict=True))


@settings(max_examples=60, deadline=None)
@given(photos=ways.export_photos())
def test_out_and_in_gives_the_same_objects_splits_and_summaries(photos: list[ExportPhoto]) -> None:
    losses, found = ways.out_and_in("label_studio", photos)
    lines = 0
    for photo in photos:
        item = found[f"images/{photo.image}"]
        objects = ways.in_pixels(item, photo)
        assert (item.split, item.summary, len(objects)) == (photo.split, photo.summary, len(photo.objects))
        for (desc, kind, points), obj in zip(objects, photo.objects, strict=True):
            box = obj.kind == "line"
            lines += box
            wanted = thicken(enclosing_box(obj.points), photo.width, photo.height) if box else obj.points
            assert (desc, kind) == (obj.desc, "bbox_2d" if box else obj.kind)
            assert close(points, wanted)
    assert losses["line written as its box"] == lines
    assert set(losses) <= {"line written as its box"}


AWKWARD = "a & b/<c>/\"d\" 'e'/螺丝\tx"


def one_photo(*objects: ExportObject, **changes: Any) -> ExportPhoto:
    return ExportPhoto("a b/c&d+é.jpg", 80, 60, objects, **changes)


def test_what_label_studio_needs_to_show_it(tmp_path: Path) -> None:
    objects = (
        ExportObject(AWKWARD, "bbox_2d", (8, 6, 28, 36), 0.9),
        ExportObject("x", "poly", (0, 0, 40, 0, 40, 60), 0.5),
    )
    losses = write_records(iter([one_photo(*objects, split="val", summary="dusty")]), tmp_path)
    (written,) = json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))
    address = urlsplit(written["data"]["image"])
    assert (address.path, parse_qs(address.query)) == ("/data/local-files/", {"d": ["images/a b/c&d+é.jpg"]})
    (prediction,) = written["predictions"]
    assert (prediction["model_version"], prediction["score"]) == ("bbu", 0.7)
    box, polygon, text = prediction["result"]
    assert box["value"] == {"x": 10, "y": 10, "width": 25, "height": 50, "rotation": 0, "rectanglelabels": [AWKWARD]}
    assert (box["score"], polygon["score"]) == (0.9, 0.5)
    interface = ElementTree.parse(tmp_path / "label_config.xml").getroot()
    controls = {control.get("name"): control for control in interface}
    assert controls["image"].get("value") == "$image"
    for result in (box, polygon, text):
        # Every result is of a control of the interface, and every label one that it offers.
        control = controls[result["from_name"]]
        assert control.get("toName") == result["to_name"] == "image"
        assert control.tag.lower() == result["type"]
        offered = [label.get("value") for label in control]
        assert set(result["value"].get(result["type"], [])) <= set(offered)
    assert len({result["id"] for result in prediction["result"]}) == 3
    assert not losses


def test_labels_without_scores_are_pre_annotations_too(tmp_path: Path) -> None:
    write_records(iter([one_photo(ExportObject("x", "bbox_2d", (0, 0, 9, 9)))]), tmp_path)
    (written,) = json.loads((tmp_path / "tasks.json").read_text(encoding="utf-8"))
    assert "score" not in written["predictions"][0] and "score" not in written["predictions"][0]["result"][0]
    assert "TextArea" not in (tmp_path / "label_config.xml").read_text(encoding="utf-8")


def test_a_flat_line_becomes_a_box_that_can_be_seen_and_odd_characters_break_nothing(tmp_path: Path) -> None:
    objects = (ExportObject("wire", "line", (10, 30, 70, 30)), ExportObject("a\x01b", "bbox_2d", (0, 0, 9, 9)))
    losses = write_records(iter([one_photo(*objects)]), tmp_path)
    assert NOT_IN_XML.search("a\x01b") and sum(losses.values()) == 2 and losses["line written as its box"] == 1
    ElementTree.parse(tmp_path / "label_config.xml")
    (item,) = (found for found in iter_records(tmp_path) if isinstance(found, SourceImage))
    assert [obj.desc for obj in item.objects if not isinstance(obj, Dropped)] == ["wire", "a\x01b"]
    assert item.objects[0].points == pytest.approx((10, 29, 70, 31), abs=1e-3)  # type: ignore[union-attr]


SOUND = json.dumps(
    [
        task("a.jpg", rectangle("标签"), words("choices", ["可读"]), rectangle(identity="r2", rotation=30)),
        task("b.jpg", annotations=None, predictions=[{"result": [rectangle()]}]),
    ],
    ensure_ascii=False,
)


@settings(max_examples=80, deadline=None)
@given(content=ways.damaged(SOUND.encode()))
def test_a_damaged_export_is_records_or_one_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    root = tmp_path_factory.getbasetemp() / "label_studio"
    write = ways.sound_source(root, {"export.json": SOUND}, ["a.jpg", "b.jpg"])
    write("export.json", content)
    ways.convert_or_one_error("label_studio", root)


def test_meta_and_data_that_are_not_read_are_noted_by_name(source: Any) -> None:
    source.photo("a.jpg")
    value = task("a.jpg", {**rectangle(), "meta": {"text": ["rusty"]}}, meta={"shift": 2})
    value["data"]["site"] = "north"
    source.write("a.json", json.dumps([value]))
    assert source.convert("label_studio").notes == {
        "region key not read: meta.text": 1,
        "task key not read: meta.shift": 1,
        "data key not read: site": 1,
    }


def test_two_shapes_of_one_id_are_both_kept_but_its_choices_belong_to_neither(source: Any) -> None:
    source.photo("a.jpg")
    choice = {"id": "r1", "type": "choices", "value": {"choices": ["loose"]}}
    source.write("a.json", json.dumps([task("a.jpg", rectangle(), rectangle(x=50.0), choice)]))
    report = source.convert("label_studio")
    assert [item["desc"] for item in source.objects()] == ["label", "label"]
    assert report.notes == {"repeated_region_id": 1, "result_not_read: choices of a repeated id": 1}
