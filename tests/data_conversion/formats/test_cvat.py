"""CVAT for images 1.1: shapes, attributes as levels, tags, subsets, photos found."""

from __future__ import annotations

import gc
import importlib
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bbu.geometry import enclosing_box
from data_conversion.base import Dropped, RawObject, SourceImage
from data_conversion.formats.cvat import iter_records

bad = importlib.import_module("tests.data_conversion.formats.bad_cvat")
ways = importlib.import_module("tests.data_conversion.formats.exporting")
export, image, BOX = bad.export, bad.image, bad.BOX


@pytest.fixture
def read(source: Any) -> Callable[..., SourceImage]:
    """The only item of an export of one photo with these shapes."""

    def one(shapes: str, **changes: Any) -> SourceImage:
        source.photo("a.jpg")
        source.write("annotations.xml", export(image("a.jpg", shapes, **changes)))
        (item,) = iter_records(source.root)
        assert isinstance(item, SourceImage), item
        return item

    return one


def attribute(name: str, value: str) -> str:
    return f'<attribute name="{name}">{value}</attribute>'


def test_shapes_in_file_order(read: Any) -> None:
    item = read(f'<polyline label="线缆" points="1.5,2;30,40.25"/>{BOX}<polygon label="x" points="0,0;40,0;40,60"/>')
    assert [(obj.desc, obj.kind, obj.points) for obj in item.objects] == [
        ("线缆", "line", (1.5, 2, 30, 40.25)),
        ("label", "bbox_2d", (8, 6, 28, 36)),
        ("x", "poly", (0, 0, 40, 0, 40, 60)),
    ]
    assert [obj.field for obj in item.objects] == ["image[0].polyline[0]", "image[0].box[0]", "image[0].polygon[0]"]
    assert (item.displayed, item.size, item.summary, item.notes) == (True, (80, 60), None, ())


def test_a_box_turns_clockwise_around_its_centre(read: Any) -> None:
    (found,) = read('<box label="x" xtl="30" ytl="20" xbr="50" ybr="30" rotation="90"/>').objects
    assert found.kind == "poly"
    assert found.points == pytest.approx((45, 15, 45, 35, 35, 35, 35, 15))  # the top left corner is now top right
    (full,) = read('<box label="x" xtl="30" ytl="20" xbr="50" ybr="30" rotation="360"/>').objects
    assert (full.kind, full.points) == ("bbox_2d", (30, 20, 50, 30))


def test_what_is_not_set_is_no_level_and_what_is_not_read_is_noted(read: Any) -> None:
    shape = BOX.replace('occluded="0"', 'occluded="1"').replace(
        "></box>", ">" + attribute("state", "__undefined__") + attribute("colour", "red") + "</box>"
    )
    item = read(shape)
    assert [it.desc for it in item.objects] == ["label/red"]
    assert item.notes == ("shape attribute not read: occluded",)


def test_attributes_are_further_levels(read: Any) -> None:
    shape = BOX.replace(
        "></box>",
        ">"
        + attribute("state", "未拧紧")
        + attribute("rusty", "true")
        + attribute("dusty", "false")
        + attribute("remark", " ")
        + attribute("turns", "3")
        + "</box>",
    )
    assert [obj.desc for obj in read(shape).objects] == ["label/未拧紧/rusty/3"]


def test_tags_are_about_the_photo(read: Any) -> None:
    item = read(f'<tag label="blurred">{attribute("how", "much")}</tag>{BOX}<tag label="night"/>')
    assert (item.summary, len(item.objects)) == ("blurred/much; night", 1)


def test_what_cannot_be_used_is_dropped_by_name(read: Any) -> None:
    item = read(
        '<points label="x" points="1,1;2,2"/>'
        '<ellipse label="x" cx="1" cy="1" rx="1" ry="1"/>'
        '<mask label="x" rle="1, 2" left="0" top="0" width="1" height="1"/>'
        '<cuboid label="x" xtl1="1"/>'
        '<skeleton label="x"><points label="1" points="1,1"/></skeleton>'
        '<box label="x" xtl="9" ytl="1" xbr="1" ybr="9"/>'
        '<box label="x" xtl="9" ytl="1" xbr="9" ybr="9" rotation="30"/>'
        '<polygon label="x" points="1,1;2,2"/>'
        '<polyline label="x" points="1,1"/>'
        '<box xtl="1" ytl="1" xbr="9" ybr="9"><attribute name="state">loose</attribute></box>'
    )
    assert all(isinstance(obj, Dropped) for obj in item.objects)
    assert [obj.reason for obj in item.objects if isinstance(obj, Dropped)] == [
        *["unsupported_shape"] * 5,
        "inverted_box",
        *["zero_area"] * 3,
        "no_description",
    ]


@pytest.mark.parametrize(
    ("subset", "split"),
    [("Train", "train"), ("Validation", "val"), ("Test", "test"), ("default", None), ("", None)],
)
def test_subsets_are_splits(read: Any, subset: str, split: str | None) -> None:
    item = read(BOX, more=f'width="80" height="60" subset="{subset}"')
    assert item.split == split


def test_the_same_name_in_two_subsets_is_two_photos_and_several_files_are_read(source: Any) -> None:
    for name in ("images/Train/a.jpg", "images/Test/a.jpg", "images/b c.jpg", "images/unused.jpg"):
        source.photo(name)
    sized = 'width="80" height="60"'
    source.write(
        "1.xml",
        b"\xef\xbb\xbf"
        + export(*(image("a.jpg", more=f'{sized} subset="{subset}"') for subset in ("Train", "Test"))).encode(),
    )
    source.write("2.xml", export(image("b c.jpg", "")))
    report = source.convert("cvat")
    assert [row.images[0] for row in source.rows()] == ["images/Test/a.jpg", "images/Train/a.jpg", "images/b c.jpg"]
    assert {name: split["photos"] for name, split in report.splits.items() if split["photos"]} == {
        "train": 2,
        "test": 1,
    }
    assert report.notes["no_shapes"] == 1 and report.photos_skipped == {"no_annotation": 1}


def test_points_are_of_the_photo_as_cvat_turns_it(source: Any) -> None:
    source.photo("a.jpg", size=(80, 60), orientation=6)
    source.write("annotations.xml", export(image("a.jpg", BOX, 'width="60" height="80"')))
    source.convert("cvat")
    assert source.objects() == [{"desc": "label", "bbox_2d": [8, 6, 28, 36]}]


def test_memory_does_not_grow_with_the_file(source: Any) -> None:
    source.write("annotations.xml", export(*(image(f"{number}.jpg", BOX * 10) for number in range(1101))))
    held: list[int] = []
    tracemalloc.start()
    try:
        for number, item in enumerate(iter_records(source.root)):
            assert isinstance(item, SourceImage)
            if number in (600, 1100):  # the first hundreds fill caches of fixed size
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert held[1] - held[0] < 500 * 50  # bytes: less than a name for each of 500 photos


@st.composite
def shapes(draw: st.DrawFn) -> tuple[str, RawObject]:
    """An element, and what it means."""
    number = st.integers(0, 6000).map(lambda hundredths: hundredths / 100)
    label = draw(st.text(st.sampled_from("螺丝 a,/&<>\"'"), min_size=1, max_size=6))
    kind, tag, fewest = draw(st.sampled_from([("bbox_2d", "box", 2), ("poly", "polygon", 3), ("line", "polyline", 2)]))
    count = 2 if kind == "bbox_2d" else draw(st.integers(fewest, 6))
    points = tuple(draw(number) for _ in range(2 * count))
    text = label.translate({ord(letter): f"&#{ord(letter)};" for letter in "&<>\"'"})
    if kind == "bbox_2d":
        points = enclosing_box(points)
        sides = zip(("xtl", "ytl", "xbr", "ybr"), points, strict=True)
        attributes = " ".join(f'{name}="{value}"' for name, value in sides)
    else:
        attributes = 'points="' + ";".join(f"{x},{y}" for x, y in zip(points[::2], points[1::2], strict=True)) + '"'
    return f'<{tag} label="{text}" {attributes}/>', RawObject(label.strip(), kind, points, "")


@settings(max_examples=60, deadline=None)
@given(objects=st.lists(shapes(), max_size=6))
def test_whatever_cvat_writes_is_read_as_it_is(tmp_path_factory: pytest.TempPathFactory, objects: list[Any]) -> None:
    root = tmp_path_factory.getbasetemp() / "cvat_shapes"
    root.mkdir(exist_ok=True)
    (root / "annotations.xml").write_text(
        export(image("a.jpg", "".join(text for text, _ in objects))), encoding="utf-8"
    )
    (item,) = iter_records(root)
    assert isinstance(item, SourceImage) and len(item.objects) == len(objects)
    for found, (_, wanted) in zip(item.objects, objects, strict=True):
        if isinstance(found, Dropped):
            x1, y1, x2, y2 = enclosing_box(wanted.points)
            assert not wanted.desc or (found.reason == "zero_area" and (x1 == x2 or y1 == y2))
        else:
            assert (found.desc, found.kind, found.points) == (wanted.desc, wanted.kind, wanted.points)


SOUND = export(
    image("a.jpg", f'{BOX}<polygon label="标签" points="1,1;9,1;9,9">{attribute("x", "true")}</polygon>'),
    image("b.jpg", '<tag label="t"/><polyline label="y" points="1,1;9,9"/>', 'width="80" height="60" subset="val"'),
)


@settings(max_examples=80, deadline=None)
@given(content=ways.damaged(SOUND.encode()))
def test_a_damaged_export_is_records_or_one_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    root = tmp_path_factory.getbasetemp() / "cvat"
    write = ways.sound_source(root, {"annotations.xml": SOUND}, ["a.jpg", "b.jpg"])
    write("annotations.xml", content)
    ways.convert_or_one_error("cvat", root)
