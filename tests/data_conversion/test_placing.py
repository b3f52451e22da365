"""What happens to one object: cut to the image, dropped with a reason, put in reading order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbu.geometry import IDENTITY, clip_line, clip_polygon, line_length, polygon_area
from bbu.records import Row, parse_row
from bbu.taxonomy import Taxonomy
from data_conversion.base import Dropped, RawObject
from data_conversion.placing import REASONS, place_objects

WIDTH, HEIGHT = 100, 50


def place(kind: str, *points: float, desc: str = "object", taxonomy: Taxonomy | None = None) -> Any:
    """The kept object or the Dropped one."""
    raw = RawObject(desc, kind, points, "field")
    kept, dropped, _ = place_objects((raw,), taxonomy or Taxonomy(), IDENTITY, (WIDTH, HEIGHT))
    return (kept or dropped)[0]


@pytest.mark.parametrize(
    ("kind", "points", "cut"),
    [
        ("bbox_2d", (-5, -5, 10, 10), (0, 0, 10, 10)),
        ("bbox_2d", (90, 40, 200, 90), (90, 40, 100, 50)),
        ("bbox_2d", (30, 20, 10, 5), (10, 5, 30, 20)),
        ("poly", (-10, 10, -10, -10, 10, -10, 10, 10), (0, 10, 0, 0, 10, 0, 10, 10)),
        ("poly", (50, -20, 140, 25, 50, 70), None),
        ("line", (-10, 10, 10, 10), (0, 10, 10, 10)),
    ],
)
def test_geometry_is_cut_to_the_image(kind: str, points: tuple[float, ...], cut: Any) -> None:
    item = place(kind, *points)
    if cut is not None:
        assert item.points == cut
    parse_row(Row(("a.jpg",), (item,), WIDTH, HEIGHT).to_json(), "row")


def test_a_line_that_leaves_the_photo_and_comes_back_is_an_object_for_each_piece() -> None:
    raw = RawObject("cable", "line", (90, 10, 110, 30, 110, 60, 90, 10), "field")
    kept, dropped, notes = place_objects((raw,), Taxonomy(), IDENTITY, (WIDTH, HEIGHT))
    assert [(item.desc, item.points) for item in kept] == [
        ("cable", (90, 10, 100, 20)),
        ("cable", (100, 35, 90, 10)),
    ]
    assert (dropped, notes) == ([], ["clipped_object", "further_piece_of_a_line"])


def test_a_piece_of_a_line_under_a_pixel_is_no_object() -> None:
    raw = RawObject("cable", "line", (50, 10, 110, 10, 110, 20, 99.5, 20), "field")
    kept, _, notes = place_objects((raw,), Taxonomy(), IDENTITY, (WIDTH, HEIGHT))
    assert [item.points for item in kept] == [(50, 10, 100, 10)]
    assert notes == ["clipped_object"]


@pytest.mark.parametrize(
    ("kind", "points", "reason"),
    [
        ("bbox_2d", (10, 10, 10, 20), "zero_area"),
        ("bbox_2d", (110, 10, 120, 20), "outside_image"),
        ("bbox_2d", (-20, 10, 0, 20), "outside_image"),
        ("bbox_2d", (10, 10, 10.5, 20), "too_small"),
        ("bbox_2d", (-20, 10, 0.5, 20), "too_small"),
        ("poly", (10, 10, 20, 20, 30, 30), "zero_area"),
        ("poly", (-30, 10, -20, 20, -30, 30), "outside_image"),
        ("poly", (10, 10, 10.5, 10, 10, 10.5), "too_small"),
        ("line", (10, 10, 10, 10), "zero_area"),
        ("line", (10, 60, 90, 60), "outside_image"),
        ("line", (10, 10, 10.5, 10), "too_small"),
    ],
)
def test_what_cannot_be_used_is_dropped_with_a_reason(kind: str, points: tuple[float, ...], reason: str) -> None:
    item = place(kind, *points)
    assert isinstance(item, Dropped)
    assert item.reason == reason
    assert item.reason in REASONS
    assert item.label == "object"


def test_words_are_mapped_before_the_hierarchy_is_asked() -> None:
    taxonomy = Taxonomy(tokens={"螺钉": "螺丝", "无": ""}, hierarchy={"螺丝": None})
    assert place("bbox_2d", 1, 1, 9, 9, desc="螺钉/无", taxonomy=taxonomy).desc == "螺丝"
    assert place("bbox_2d", 1, 1, 9, 9, desc="无", taxonomy=taxonomy).reason == "no_description"
    dropped = place("bbox_2d", 1, 1, 9, 9, desc="螺母/松", taxonomy=taxonomy)
    assert (dropped.label, dropped.reason) == ("螺母/松", "outside_hierarchy")
    assert "'螺母' is not in the hierarchy" in dropped.detail


def test_objects_are_in_reading_order_of_their_written_numbers() -> None:
    boxes = [(50, 10.004, 60, 20), (10, 10.001, 20, 20), (0, 2, 5, 9)]
    raw = tuple(RawObject(str(index), "bbox_2d", box, "f") for index, box in enumerate(boxes))
    kept, _, _ = place_objects(raw, Taxonomy(), IDENTITY, (WIDTH, HEIGHT))
    assert [item.desc for item in kept] == ["2", "1", "0"], "10.004 and 10.001 are both written 10"


def test_only_a_cut_of_more_than_rounding_is_noted() -> None:
    raw = (RawObject("a", "bbox_2d", (-0.4, 0, 9, 9), "f"), RawObject("b", "bbox_2d", (-4, 0, 9, 9), "f"))
    assert place_objects(raw, Taxonomy(), IDENTITY, (WIDTH, HEIGHT))[2] == ["clipped_object"]


COORDINATE = st.floats(-150, 250, allow_nan=False)


@given(
    st.sampled_from(["bbox_2d", "poly", "line"]),
    st.lists(st.tuples(COORDINATE, COORDINATE), min_size=3, max_size=6),
)
def test_every_object_is_kept_in_the_contract_or_dropped_by_name(kind: str, points: list[Any]) -> None:
    flat = [number for point in (points[:2] if kind == "bbox_2d" else points) for number in point]
    item = place(kind, *flat)
    if isinstance(item, Dropped):
        assert item.reason in REASONS
    else:
        parse_row(Row(("a.jpg",), (item,), WIDTH, HEIGHT).to_json(), "row")


@given(st.lists(st.tuples(st.floats(1, 99), st.floats(1, 49)), min_size=3, max_size=6))
def test_what_lies_inside_is_not_changed_by_the_cut(points: list[tuple[float, float]]) -> None:
    inside = np.array(points)
    assert (clip_polygon(inside, WIDTH, HEIGHT) == inside).all()
    assert sum(map(line_length, clip_line(inside, WIDTH, HEIGHT))) == pytest.approx(line_length(inside))


def test_areas_and_lengths_of_a_cut() -> None:
    diamond = np.array([[50.0, -25.0], [100.0, 25.0], [50.0, 75.0], [0.0, 25.0]])
    assert polygon_area(diamond) == 5000
    assert polygon_area(clip_polygon(diamond, WIDTH, HEIGHT)) == pytest.approx(5000 - 2 * 625)
    (piece,) = clip_line(np.array([[-30.0, 20.0], [130.0, 20.0]]), WIDTH, HEIGHT)
    assert line_length(piece) == 100
