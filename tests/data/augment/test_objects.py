"""Objects at a border of a view: dropped if too little remains, otherwise clipped to the canvas."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageDraw

from bbu.data.augment.objects import place_objects, share_inside
from bbu.geometry import IDENTITY, Affine
from bbu.records import BOUNDS_TOLERANCE, ObjectRow

SIZE = (100, 60)


def make_object(kind: str, *points: float) -> ObjectRow:
    return ObjectRow("object", kind, points)


@pytest.mark.parametrize(
    ("item", "share", "cut"),
    [
        (make_object("bbox_2d", 60, 10, 160, 20), 0.4, (60, 10, 100, 20)),
        (make_object("bbox_2d", -30, -10, 10, 10), 0.125, (0, 0, 10, 10)),
        (make_object("poly", 90, 10, 110, 10, 110, 30, 90, 30), 0.5, (100, 30, 90, 30, 90, 10, 100, 10)),
        (make_object("line", 50, 20, 50, 80, 90, 80), 0.4, (50, 20, 50, 60)),
        (make_object("line", 80, 10, 120, 10, 120, 30, 70, 30), 0.45454545, (100, 30, 70, 30)),  # the longest piece
    ],
)
def test_an_object_is_clipped_or_dropped_by_its_visible_fraction(
    item: ObjectRow, share: float, cut: tuple[float, ...]
) -> None:
    kept = place_objects([item], IDENTITY, SIZE, share - 0.001)
    assert len(kept) == 1 and (kept[0].desc, kept[0].kind) == (item.desc, item.kind)
    if item.kind == "poly":  # a ring may start anywhere
        assert {*zip(kept[0].points[::2], kept[0].points[1::2], strict=True)} == {
            *zip(cut[::2], cut[1::2], strict=True)
        }
    else:
        assert kept[0].points == cut
    assert place_objects([item], IDENTITY, SIZE, share + 0.001) == ()


def test_an_object_outside_is_dropped_even_if_min_visible_is_0() -> None:
    outside = [
        make_object("bbox_2d", 100, 0, 120, 9),
        make_object("line", 0, 61, 90, 61),
        make_object("poly", -9, 0, -1, 0, -1, 9),
    ]
    assert place_objects(outside, IDENTITY, SIZE, 0.0) == ()


def test_half_a_pixel_outside_is_tolerated_and_no_loss() -> None:
    kept = place_objects([make_object("bbox_2d", -0.5, 10, 100.5, 60.4)], IDENTITY, SIZE, 1.0)
    assert kept == (make_object("bbox_2d", 0, 10, 100, 60),)


def test_a_rotated_box_is_measured_by_its_own_corners_not_by_the_box_around_them() -> None:
    eighth_turn: Affine = (0.7071067811865476, -0.7071067811865476, 0.0, 0.7071067811865476, 0.7071067811865476, 0.0)
    on_a_corner = make_object("bbox_2d", 0, 0, 40, 40)  # turned, it is a diamond whose left half is outside
    (kept,) = place_objects([on_a_corner], eighth_turn, SIZE, 0.45)
    np.testing.assert_allclose(kept.points, (0, 0, 28.284271, 56.568542), atol=1e-5)
    assert place_objects([on_a_corner], eighth_turn, SIZE, 0.55) == ()


def test_a_window_gives_pixels_of_the_larger_canvas() -> None:
    (kept,) = place_objects([make_object("bbox_2d", -10, 10, 10, 20)], IDENTITY, SIZE, 0.5, (200, 300))
    assert kept.points == (200, 310, 210, 320)


rings = hnp.arrays(np.float64, (3, 2), elements=st.floats(-60, 160, width=16))


@given(rings, st.tuples(st.integers(-30, 60), st.integers(-30, 40)))
def test_the_fraction_inside_a_window_is_that_of_painted_pixels(ring: np.ndarray, corner: tuple[int, int]) -> None:
    canvas = Image.new("L", (260, 260))
    ImageDraw.Draw(canvas).polygon([(float(x) + 60, float(y) + 60) for x, y in ring], fill=1)
    light = np.asarray(canvas)
    if light.sum() < 2000:
        return
    x, y = corner[0] + 60, corner[1] + 60
    seen = light[y : y + SIZE[1], x : x + SIZE[0]].sum() / light.sum()
    share = share_inside(make_object("poly", *ring.ravel().tolist()), corner, SIZE)
    assert share == pytest.approx(seen, abs=0.08)


@given(
    hnp.arrays(np.float64, st.tuples(st.integers(2, 7), st.just(2)), elements=st.floats(-60, 160, width=16)),
    st.floats(0, 1),
)
def test_a_kept_line_never_runs_along_the_border_unless_it_did(line: np.ndarray, share: float) -> None:
    def along(points: np.ndarray, near: float) -> bool:
        low, high = np.minimum(points[1:], points[:-1]), np.maximum(points[1:], points[:-1])
        return bool(((np.abs(low) <= near) & (high <= near)).any() or (low >= np.array(SIZE) - near).any())

    kept = place_objects([make_object("line", *line.ravel().tolist())], IDENTITY, SIZE, share)
    assert len(kept) <= 1, "packs are planned with the number of objects"
    for item in kept:
        assert len(item.points) <= line.size
        assert not along(np.reshape(item.points, (-1, 2)), 0.0) or along(line, BOUNDS_TOLERANCE)
