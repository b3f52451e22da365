"""Formats x faults: in every format a bad object costs itself alone, and what is not read is counted by name."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_conversion.formats import FORMATS
from data_conversion.formats.salvage import attribute_levels, has_content, turned_box, unread
from data_conversion.photo_task import SHARES
from data_conversion.placing import REASONS

GONE: Any = object()  # a key that is left out
BOXES = [(10, 12, 30, 24), (40, 12, 60, 36)]  # of the two good objects of every source, in a photo of 80 x 60
Build = Callable[..., None]  # (source, raw objects beside the good ones, size, more keys of the good ones)


def merged(value: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in {**value, **changes}.items() if item is not GONE}


# ---------------------------------------------------------------- sources, each of one photo with two good objects


def bbu_object(**changes: Any) -> dict[str, Any]:
    x1, y1, x2, y2 = changes.pop("box", BOXES[0])
    ring = [[x1, y1], [x2, y1], [x2, y2], [x1, y2]]
    properties = merged({"contentZh": {"标签": "bolt"}}, changes.pop("properties", {}))
    geometry = {"type": "Polygon", "coordinates": ring}
    return merged({"geometry": geometry, "properties": properties}, changes)


def bbu_json(source: Any, *extra: Any, size: Any = (80, 60), more: Any = ()) -> None:
    source.photo("a.jpg")
    features = [bbu_object(box=box, properties=dict(more)) for box in BOXES]
    info = {"width": size[0], "height": size[1]}
    source.write("a.json", json.dumps({"info": info, "markResult": {"features": [*features, *extra]}}))


def voc_object(box: Any = BOXES[0], name: str | None = "bolt", more: Any = (), inner: str | None = None) -> str:
    corners = zip(("xmin", "ymin", "xmax", "ymax"), (box[0] + 1, box[1] + 1, *box[2:]), strict=True)
    tags = "".join(f"<{tag}>{value}</{tag}>" for tag, value in corners)
    head = "" if name is None else f"<name>{name}</name>"
    others = "".join(f"<{key}>{value}</{key}>" for key, value in dict(more).items())
    return f"<object>{head}{f'<bndbox>{tags}</bndbox>' if inner is None else inner}{others}</object>"


def pascal_voc(source: Any, *extra: str, size: Any = (80, 60), more: Any = ()) -> None:
    source.photo("JPEGImages/a.jpg")
    shape = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    objects = "".join([*(voc_object(box, more=more) for box in BOXES), *extra])
    source.write("Annotations/a.xml", f"<annotation><filename>a.jpg</filename>{shape}{objects}</annotation>")


def coco_object(**changes: Any) -> dict[str, Any]:
    x1, y1, x2, y2 = changes.pop("box", BOXES[0])
    value = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0}
    return merged(value, changes)


def coco(source: Any, *extra: Any, size: Any = (80, 60), more: Any = ()) -> None:
    source.photo("a.jpg")
    images = [{"id": 1, "file_name": "a.jpg", "width": size[0], "height": size[1]}]
    objects = [coco_object(box=box, id=number, **dict(more)) for number, box in enumerate(BOXES)]
    value = {"images": images, "annotations": [*objects, *extra], "categories": [{"id": 1, "name": "bolt"}]}
    source.write("annotations.json", json.dumps(value))


def csv_row(box: Any = BOXES[0], desc: str = "bolt", more: Any = ()) -> str:
    return ",".join(map(str, ("a.jpg", *box, desc, *dict(more).values())))


def csv(source: Any, *extra: str, size: Any = (80, 60), more: Any = ()) -> None:
    source.photo("a.jpg")
    keys = {"width": size[0], "height": size[1], **dict(more)}
    empty = "," * len(keys)
    rows = [*(csv_row(box, more=keys) for box in BOXES), *(line + empty for line in extra)]
    source.write("a.csv", "\n".join([",".join(("image", "x1", "y1", "x2", "y2", "desc", *keys)), *rows]))


def cvat_box(box: Any = BOXES[0], **changes: Any) -> str:
    value = merged({"label": "bolt", **dict(zip(("xtl", "ytl", "xbr", "ybr"), box, strict=True))}, changes)
    attributes = " ".join(f'{key}="{item}"' for key, item in value.items())
    return f"<box {attributes}/>"


def cvat(source: Any, *extra: str, size: Any = (80, 60), more: Any = ()) -> None:
    source.photo("a.jpg")
    shapes = "".join([*(cvat_box(box, **dict(more)) for box in BOXES), *extra])
    image = f'<image id="0" name="a.jpg" width="{size[0]}" height="{size[1]}">{shapes}</image>'
    source.write("a.xml", f"<annotations><version>1.1</version>{image}</annotations>")


def hf_object(**changes: Any) -> dict[str, Any]:
    x1, y1, x2, y2 = changes.pop("box", BOXES[0])
    return merged({"bbox": [x1, y1, x2 - x1, y2 - y1], "label": "bolt"}, changes)


def hf_dataset(source: Any, *extra: Any, size: Any = (80, 60), more: Any = ()) -> None:
    source.photo("a.jpg")
    objects = [*(hf_object(box=box, **dict(more)) for box in BOXES), *extra]
    row = {"file_name": "a.jpg", "objects": objects, "width": size[0], "height": size[1]}
    source.write("metadata.jsonl", json.dumps(row))


def region(number: int = 9, size: Any = (80, 60), **changes: Any) -> dict[str, Any]:
    x1, y1, x2, y2 = changes.pop("box", BOXES[0])
    box = {"x": x1 / 0.8, "y": y1 / 0.6, "width": (x2 - x1) / 0.8, "height": (y2 - y1) / 0.6, "rotation": 0}
    value = merged({**box, "rectanglelabels": ["bolt"]}, changes.pop("value", {}))
    frame = {"original_width": size[0], "original_height": size[1], "image_rotation": 0}
    return merged({"id": f"r{number}", "type": "rectanglelabels", "value": value, **frame}, changes)


def label_studio(source: Any, *extra: Any, size: Any = (80, 60), more: Any = ()) -> None:
    source.photo("a.jpg")
    results = [*(region(number, size, box=box, **dict(more)) for number, box in enumerate(BOXES)), *extra]
    task = {"id": 1, "data": {"image": "a.jpg"}, "annotations": [{"id": 1, "result": results}]}
    source.write("project.json", json.dumps([task]))


def shape(**changes: Any) -> dict[str, Any]:
    x1, y1, x2, y2 = changes.pop("box", BOXES[0])
    return merged({"label": "bolt", "points": [[x1, y1], [x2, y2]], "shape_type": "rectangle", "flags": {}}, changes)


def labelme(source: Any, *extra: Any, size: Any = (80, 60), more: Any = ()) -> None:
    source.photo("a.jpg")
    shapes = [*(shape(box=box, **dict(more)) for box in BOXES), *extra]
    value = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": "a.jpg", "imageData": None}
    source.write("a.json", json.dumps({**value, "imageWidth": size[0], "imageHeight": size[1]}))


def phrase(**changes: Any) -> dict[str, Any]:
    x1, y1, x2, y2 = changes.pop("box", BOXES[0])
    return merged({"phrase": "bolt", "x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}, changes)


def visual_genome(source: Any, *extra: Any, size: Any = (80, 60), more: Any = ()) -> None:
    source.photo("VG_100K/1.jpg")
    image = {"image_id": 1, "url": "https://x/VG_100K/1.jpg", "width": size[0], "height": size[1]}
    regions = [*(phrase(box=box, **dict(more)) for box in BOXES), *extra]
    source.write("image_data.json", json.dumps([image]))
    source.write("region_descriptions.json", json.dumps([{"id": 1, "regions": regions}]))


def yolo(source: Any, *extra: str) -> None:
    source.photo("images/a.jpg")
    rows = [f"0 {(a + c) / 160} {(b + d) / 120} {(c - a) / 80} {(d - b) / 60}" for a, b, c, d in BOXES]
    source.write("labels/a.txt", "\n".join([*rows, *extra]))
    source.write("data.yaml", "names: [bolt, nut]\n")


# ---------------------------------------------------------------- the table

# format → (how its source is built, fault → the object beside two good ones)
TABLE: dict[str, tuple[Build, dict[str, Any]]] = {
    "bbu_json": (bbu_json, {
        "no geometry": bbu_object(geometry=GONE),
        "geometry of text": bbu_object(geometry={"type": "Polygon", "coordinates": "x"}),
        "too few numbers": bbu_object(geometry={"type": "Polygon", "coordinates": [[1, 1], [9, 9]]}),
        "empty": bbu_object(geometry={"type": "Polygon", "coordinates": []}),
        "too large": bbu_object(box=(1, 1, 1e300, 9)),
        "no area": bbu_object(box=(10, 10, 10, 20)),
        "an unknown shape": bbu_object(geometry={"type": "Circle", "coordinates": [[1, 1]]}),
        "no label": bbu_object(properties={"contentZh": GONE}),
        "a label of another type": bbu_object(properties={"contentZh": {"标签": 3}}),
        "no object": "x",
    }),
    "pascal_voc": (pascal_voc, {
        "no geometry": voc_object(inner=""),
        "geometry of text": voc_object((1, 1, "wide", 9)),
        "too few numbers": voc_object(inner="<bndbox><xmin>1</xmin></bndbox>"),
        "empty": voc_object(inner="<bndbox/>"),
        "too large": voc_object((1, 1, 1e300, 9)),
        "no area": voc_object((9, 10, 10, 20)),
        "an unknown shape": voc_object(inner="<polygon><x1>1</x1></polygon>"),
        "no label": voc_object(name=None),
        "no object": "<object/>",
        "a turn without a rule": voc_object(more={"angle": "30"}),
    }),
    "coco": (coco, {
        "no geometry": coco_object(bbox=GONE),
        "geometry of text": coco_object(bbox="x"),
        "too few numbers": coco_object(bbox=[1, 2, 3]),
        "empty": coco_object(bbox=[], segmentation=[[]]),
        "too large": coco_object(bbox=[1, 1, 1e300, 1]),
        "no area": coco_object(bbox=[1, 1, 0, 9]),
        "an unknown shape": coco_object(bbox=[20, 20, 9, 9, 30]),
        "no label": coco_object(category_id=GONE),
        "a label of another type": coco_object(category_id=[1]),
        "an unknown class": coco_object(category_id=7),
        "a turn without a rule": coco_object(theta=30),
    }),
    "csv": (csv, {
        "no geometry": csv_row(("", "", "", "")),
        "geometry of text": csv_row((1, 1, "wide", 9)),
        "too few numbers": csv_row((1, 1, "", 9)),
        "too large": csv_row((1, 1, 1e300, 9)),
        "no area": csv_row((1, 1, 1, 9)),
        "no label": csv_row(desc=""),
        "no object": "a.jpg,,,,,",
        "too many cells": csv_row(desc="bolt,loose"),
    }),
    "cvat": (cvat, {
        "no geometry": cvat_box(xtl=GONE, ytl=GONE, xbr=GONE, ybr=GONE),
        "geometry of text": cvat_box(xbr="wide"),
        "too few numbers": '<polygon label="bolt" points="1,1;2,2"/>',
        "empty": '<polygon label="bolt" points=""/>',
        "too large": cvat_box((1, 1, 1e300, 9)),
        "no area": cvat_box((1, 1, 1, 9)),
        "an unknown shape": '<star label="bolt" points="1,1"/>',
        "no label": cvat_box(label=GONE),
    }),
    "hf_dataset": (hf_dataset, {
        "no geometry": hf_object(bbox=GONE),
        "geometry of text": hf_object(bbox="x"),
        "too few numbers": hf_object(bbox=[1, 2, 3]),
        "empty": hf_object(bbox=[]),
        "too large": hf_object(bbox=[1, 1, 1e300, 1]),
        "no area": hf_object(bbox=[1, 1, 0, 9]),
        "no label": hf_object(label=GONE),
        "a label of another type": hf_object(label=["bolt"]),
        "no object": None,
        "a turn without a rule": hf_object(rotation=30),
    }),
    "label_studio": (label_studio, {
        "no geometry": region(value={"x": GONE}),
        "geometry of text": region(value={"x": "10"}),
        "too few numbers": region(type="polygonlabels", value={"points": [[1, 1], [2, 2]], "polygonlabels": ["x"]}),
        "empty": region(type="polygonlabels", value={"points": [], "polygonlabels": ["x"]}),
        "too large": region(value={"x": 1e300}),
        "no area": region(value={"width": 0}),
        "an unknown shape": region(type="brushlabels", value={"brushlabels": ["bolt"]}),
        "no label": region(value={"rectanglelabels": GONE}),
        "a label of another type": region(value={"rectanglelabels": [3]}),
        "no object": "x",
    }),
    "labelme": (labelme, {
        "no geometry": shape(points=GONE),
        "geometry of text": shape(points=[["a", 1], [9, 9]]),
        "too few numbers": shape(shape_type="polygon"),
        "empty": shape(points=[]),
        "too large": shape(points=[[1, 1], [1e300, 9]]),
        "no area": shape(points=[[1, 1], [1, 9]]),
        "an unknown shape": shape(shape_type="cuboid"),
        "no label": shape(label=""),
        "a label of another type": shape(label=3),
        "no object": "x",
        "a turn without a rule": shape(rotation=30),
    }),
    "visual_genome": (visual_genome, {
        "no geometry": phrase(x=GONE),
        "geometry of text": phrase(x="left"),
        "too large": phrase(width=1e300),
        "no area": phrase(width=0),
        "no label": phrase(phrase=GONE),
        "a label of another type": phrase(phrase=["bolt"]),
        "no object": "x",
        "a turn without a rule": phrase(angle=30),
    }),
    "yolo": (yolo, {
        "no geometry": "0",
        "geometry of text": "0 .5 .5 .1 wide",
        "too few numbers": "0 .5 .5 .1",
        "too large": "0 .5 .5 1e300 .1",
        "no area": "0 .5 .5 0 .1",
        "an unknown shape": "0 .5 .5 .1 .1 .9",
        "a label of another type": "bolt .5 .5 .1 .1",
        "an unknown class": "7 .5 .5 .1 .1",
        "in pixels": "0 40 30 20 10",
    }),
}  # fmt: skip
COMMON = ("no geometry", "geometry of text", "too large", "no area")


def good_objects(source: Any) -> None:
    """The two good objects are all that is in the row."""
    objects = [item for item in source.objects() if item["desc"] == "bolt"]
    assert [item["bbox_2d"] for item in objects] == [list(box) for box in BOXES]


def test_every_format_is_in_the_table_with_the_faults_that_all_can_have() -> None:
    assert TABLE.keys() == {name for name, entry in FORMATS.items() if entry.read}
    assert all(set(COMMON) <= faults.keys() for _, faults in TABLE.values())


@pytest.mark.parametrize(
    ("source_format", "fault"), [(name, fault) for name, (_, faults) in TABLE.items() for fault in faults]
)
def test_a_bad_object_is_dropped_and_listed_and_its_photo_stays(source: Any, source_format: str, fault: str) -> None:
    build, faults = TABLE[source_format]
    build(source, faults[fault])
    report = source.convert(source_format)
    good_objects(source)
    assert (report.photos_read, report.photos_written) == (1, 1)
    assert (report.objects_read, report.objects_written, report.objects_dropped) == (3, 2, 1)
    (lost,) = source.lines("invalid_objects.jsonl")
    assert lost["reason"] in REASONS and lost["field"] and lost["detail"] and lost["label"]


SIZED = [name for name in TABLE if name != "yolo"]  # YOLO declares no size


@pytest.mark.parametrize("size", [(0, 0), (0, 60), (-1, -1)])
@pytest.mark.parametrize("source_format", SIZED)
def test_a_declared_size_of_0_is_the_photos_own_and_noted(source: Any, source_format: str, size: Any) -> None:
    TABLE[source_format][0](source, size=size)
    report = source.convert(source_format)
    good_objects(source)
    assert any(note.startswith("declared_size_unusable") for note in report.notes)


@pytest.mark.parametrize("source_format", SIZED)
def test_a_key_with_content_that_nothing_reads_is_counted_by_name(source: Any, source_format: str) -> None:
    TABLE[source_format][0](source, more={"worn_out": "yes"})
    report = source.convert(source_format)
    good_objects(source)
    counted = {note: count for note, count in report.notes.items() if "worn_out" in note}
    assert len(counted) == 1 and "not read" in next(iter(counted))
    assert counted == {next(iter(counted)): 1 if source_format == "csv" else 2}  # a column is one


@pytest.mark.parametrize("source_format", [name for name, entry in FORMATS.items() if entry.shares])
def test_shares_of_the_photo_are_asked_about_and_read_on_demand(
    source: Any, source_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = [(a / 80, b / 60, c / 80, d / 60) for a, b, c, d in BOXES]
    monkeypatch.setattr("tests.data_conversion.test_salvage.BOXES", shares)
    TABLE[source_format][0](source)
    monkeypatch.undo()
    with pytest.raises(Exception, match="are they shares of the photo"):
        source.convert(source_format)
    source.convert(source_format, units="shares")
    good_objects(source)
    assert all(name in SHARES for name, entry in FORMATS.items() if entry.shares)


SCALAR = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3))
JUNK = st.recursive(SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))
# Keys that are about the photo, or name another object, not about the object alone
OF_PHOTO = ("image_id", "image_rotation", "original_width", "original_height", "to_name", "id", "parentID", "source")
OBJECTS: dict[str, Callable[..., dict[str, Any]]] = {
    "bbu_json": bbu_object,
    "coco": coco_object,
    "hf_dataset": hf_object,
    "label_studio": region,
    "labelme": shape,
    "visual_genome": phrase,
}


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all nodes of a JSON value below the root."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, inner in items for found in ((*path, key), *places(inner, (*path, key)))]


@pytest.mark.parametrize("source_format", OBJECTS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_stands_in_an_object_the_others_stay_and_it_is_kept_or_listed(
    source: Any, source_format: str, data: st.DataObject
) -> None:
    value = json.loads(json.dumps(OBJECTS[source_format](box=(1, 2, 7, 9))))
    *parents, last = data.draw(st.sampled_from([path for path in places(value) if path[0] not in OF_PHOTO]))
    node = value
    for key in parents:
        node = node[key]
    node[last] = data.draw(JUNK)
    TABLE[source_format][0](source, value)
    report = source.convert(source_format)
    boxes = [item.get("bbox_2d") for item in source.objects() if item["desc"] == "bolt"]
    assert all(list(box) in boxes for box in BOXES)
    noted = sum(count for note, count in report.notes.items() if note.startswith("result_not_read"))
    pieces = report.notes["further_piece_of_a_line"]
    assert report.objects_written + report.objects_dropped + noted == report.objects_read + noted == 3 + pieces


# ---------------------------------------------------------------- the pieces


def test_what_has_content() -> None:
    assert not any(
        map(
            has_content,
            [None, "", " ", 0, 0.0, False, "0", "0.00", "nan", "False", "__undefined__", [], {}, [0], {"a": []}],
        )
    )
    assert all(map(has_content, ["x", 1, -1, True, "true", [0, 1], {"a": {"b": "x"}}]))
    value = {"meta": {"text": ["rusty"], "empty": ""}, "score": 0.0, "known": 1, "tags": ["a"]}
    assert unread("region key", value, ("known",)) == ["region key not read: meta.text", "region key not read: tags"]


def test_attributes_as_levels() -> None:
    pairs = [("state", " loose "), ("rusty", "True"), ("dusty", "false"), ("x", "__undefined__"), ("y", ""), ("n", "0")]
    assert attribute_levels(pairs) == ["loose", "rusty", "0"]


@pytest.mark.parametrize("degrees", [0, 30, 90, 200, 359, 360, -30])
def test_turning_a_box_keeps_its_centre_and_sides(degrees: float) -> None:
    angle = math.radians(degrees)
    found = turned_box("x", (10, 20, 50, 30), angle, "f")
    if degrees % 360 == 0:
        assert (found.kind, found.points) == ("bbox_2d", (10, 20, 50, 30))
        return
    a, b, c, d = (complex(*found.points[at : at + 2]) for at in (0, 2, 4, 6))
    assert (a + c) / 2 == pytest.approx(complex(30, 25)) == (b + d) / 2
    assert (abs(b - a), abs(d - a)) == pytest.approx((40, 10))
    assert (b - a) / abs(b - a) == pytest.approx(complex(math.cos(angle), math.sin(angle)))
