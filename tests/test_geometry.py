"""Box formats, overlaps, EXIF maps, smart_resize, and the way of a box from a stored photo to the model and back."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import ExifTags, Image, ImageOps

from bbu.config import AugmentConfig
from bbu.data.augment import Augmenter
from bbu.data.photo import Photo
from bbu.families.photo_plan import plan_resize, smart_resize
from bbu.families.prompts import boxes_from_text, text_boxes
from bbu.geometry import (
    IDENTITY,
    MIN_BOX_THICKNESS,
    Affine,
    box_area,
    clip_line,
    clip_polygon,
    compose,
    cxcywh_to_xyxy,
    displayed_size,
    enclosing_box,
    exif_affine,
    giou,
    invert,
    iou,
    iou_matrix,
    line_length,
    polygon_area,
    thicken,
    transform_boxes,
    transform_points,
    xyxy_to_cxcywh,
)
from bbu.records import ObjectRow

UPRIGHT = AugmentConfig(0.5, 0.5, True, scale=0.3, crop=0.4, object_crop=0.3)  # all that keeps a box a box
ALL_VIEWS = AugmentConfig(0.5, 0.5, True, rotate=15, scale=0.3, crop=0.4, object_crop=0.3)

coordinate = st.floats(-1e4, 1e4, width=32)
orientations = st.integers(1, 8)
sides = st.integers(1, 5000)


def giou_matrix(a: Any, b: Any) -> Any:
    """(n, 4) and (m, 4) xyxy → (n, m) generalised IoU."""
    return giou(a[:, None, :], b[None, :, :])


@st.composite
def sizes(draw: st.DrawFn, largest: int = 5000) -> tuple[int, int]:
    """(width, height) that smart_resize accepts."""
    width, height = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    assume(max(width, height) <= 200 * min(width, height))
    return width, height


@st.composite
def xyxy_boxes(draw: st.DrawFn, thinnest: float = 0.0) -> np.ndarray:
    """(n, 4) xyxy with sides from ``thinnest``; many overlap, touch or repeat."""
    count = draw(st.integers(1, 6))
    low = draw(hnp.arrays(np.float64, (count, 2), elements=st.floats(-50, 50, width=32)))
    side = draw(hnp.arrays(np.float64, (count, 2), elements=st.floats(thinnest, 80, width=32)))
    return np.concatenate((low, low + side), axis=-1)


@st.composite
def boxes_within(draw: st.DrawFn, width: int, height: int) -> np.ndarray:
    """(n, 4) xyxy inside a photo."""
    unit = draw(hnp.arrays(np.float64, (draw(st.integers(1, 5)), 2, 2), elements=st.floats(0, 1)))
    corners = np.concatenate((unit.min(axis=1), unit.max(axis=1)), axis=-1)
    return corners * np.array([width, height] * 2)


# ---------------------------------------------------------------- formats


@given(xyxy_boxes())
def test_box_formats_round_trip_on_numpy(boxes: np.ndarray) -> None:
    there = xyxy_to_cxcywh(boxes)
    assert isinstance(there, np.ndarray)
    np.testing.assert_allclose(cxcywh_to_xyxy(there), boxes, atol=1e-9)


@given(xyxy_boxes())
def test_box_formats_round_trip_on_torch_and_agree_with_numpy(boxes: np.ndarray) -> None:
    import torch

    tensor = torch.from_numpy(boxes)
    there = xyxy_to_cxcywh(tensor)
    assert isinstance(there, torch.Tensor)
    np.testing.assert_allclose(there.numpy(), xyxy_to_cxcywh(boxes), rtol=0, atol=0)
    np.testing.assert_allclose(cxcywh_to_xyxy(there).numpy(), boxes, atol=1e-9)


def test_box_formats_on_numbers_worked_out_by_hand() -> None:
    np.testing.assert_array_equal(xyxy_to_cxcywh(np.array([[10.0, 20.0, 50.0, 100.0]])), [[30, 60, 40, 80]])
    np.testing.assert_array_equal(cxcywh_to_xyxy(np.array([0.5, 0.5, 0.2, 0.4])), [0.4, 0.3, 0.6, 0.7])


def test_box_formats_agree_with_torchvision() -> None:
    import torch
    from torchvision.ops import box_convert

    boxes = torch.rand(50, 4, dtype=torch.float64)
    torch.testing.assert_close(cxcywh_to_xyxy(boxes), box_convert(boxes, "cxcywh", "xyxy"))


@given(xyxy_boxes(thinnest=0.25), xyxy_boxes(thinnest=0.25))  # torchvision divides by 0 for flat ones
def test_iou_and_giou_equal_torchvision(first: np.ndarray, second: np.ndarray) -> None:
    import torch
    from torchvision import ops

    a, b = torch.from_numpy(first), torch.from_numpy(second)
    expected_iou, expected_giou = ops.box_iou(a, b).numpy(), ops.generalized_box_iou(a, b).numpy()
    np.testing.assert_allclose(iou_matrix(first, second), expected_iou, atol=1e-9)
    np.testing.assert_allclose(giou_matrix(first, second), expected_giou, atol=1e-9)
    np.testing.assert_allclose(iou_matrix(a, b).numpy(), expected_iou, atol=1e-9)
    np.testing.assert_allclose(giou_matrix(a, b).numpy(), expected_giou, atol=1e-9)


@given(xyxy_boxes(), xyxy_boxes())
def test_iou_and_giou_are_finite_symmetric_and_bounded_even_for_flat_boxes(a: np.ndarray, b: np.ndarray) -> None:
    overlap, generalised = iou_matrix(a, b), giou_matrix(a, b)
    assert np.isfinite(overlap).all() and np.isfinite(generalised).all()
    assert (overlap >= 0).all() and (overlap <= 1 + 1e-9).all()
    assert (generalised >= -1 - 1e-9).all() and (generalised <= overlap + 1e-9).all()
    np.testing.assert_allclose(overlap, iou_matrix(b, a).T, atol=1e-12)
    np.testing.assert_allclose(generalised, giou_matrix(b, a).T, atol=1e-12)


def test_iou_and_giou_on_numbers_worked_out_by_hand() -> None:
    a, b = np.array([0.0, 0.0, 2.0, 2.0]), np.array([1.0, 1.0, 3.0, 3.0])
    assert iou(a, b) == pytest.approx(1 / 7)
    assert giou(a, b) == pytest.approx(1 / 7 - 2 / 9)
    assert giou(a, a + 2) == pytest.approx(-8 / 16)  # touching corners: union 8 of a hull of 16


def test_a_box_with_swapped_corners_has_no_area() -> None:
    np.testing.assert_array_equal(box_area(np.array([[5.0, 5.0, 1.0, 1.0], [1.0, 5.0, 5.0, 1.0]])), [0, 0])


@given(hnp.arrays(np.float64, (7, 2), elements=coordinate))
def test_enclosing_box_holds_every_point_and_touches_four(points: np.ndarray) -> None:
    x1, y1, x2, y2 = enclosing_box(points.reshape(-1).tolist())
    assert (x1, y1) == tuple(points.min(axis=0)) and (x2, y2) == tuple(points.max(axis=0))


# ---------------------------------------------------------------- thin things


@given(st.data(), sizes(2000))
def test_thicken_gives_every_side_the_minimum_and_stays_inside(data: Any, size: tuple[int, int]) -> None:
    width, height = size
    for box in data.draw(boxes_within(width, height)):
        x1, y1, x2, y2 = thicken(box, width, height)
        assert x2 - x1 >= min(MIN_BOX_THICKNESS, width) - 1e-9 and y2 - y1 >= min(MIN_BOX_THICKNESS, height) - 1e-9
        assert x1 >= 0 and y1 >= 0 and x2 <= width + 1e-9 and y2 <= height + 1e-9
        assert x1 <= box[0] + 1e-9 and y1 <= box[1] + 1e-9 and x2 >= box[2] - 1e-9 and y2 >= box[3] - 1e-9


def test_thicken_leaves_a_thick_box_alone_and_centres_a_line() -> None:
    assert thicken((3, 4, 5, 9), 50, 50) == (3, 4, 5, 9)
    assert thicken((10, 20, 40, 20), 50, 50) == (10, 19, 40, 21)


def test_a_line_along_the_edge_grows_inwards() -> None:
    assert thicken((10, 0, 40, 0), 50, 50) == (10, 0, 40, 2)
    assert thicken((50, 10, 50, 20), 50, 50) == (48, 10, 50, 20)
    assert thicken((0, 0, 1, 1), 1, 1) == (0, 0, 1, 1)


# ---------------------------------------------------------------- affine maps


@given(st.lists(orientations, max_size=5), sides, sides)
def test_compose_is_one_map_after_the_other_and_invert_undoes_it(steps: list[int], width: int, height: int) -> None:
    points = np.array([[0.0, 0.0], [width, 0], [0.3 * width, 0.8 * height]])
    moved, whole, size = points, IDENTITY, (width, height)
    for step in steps:
        affine = exif_affine(step, *size)
        moved, whole = transform_points(moved, affine), compose(whole, affine)
        size = displayed_size(*size, step)
    np.testing.assert_allclose(transform_points(points, whole), moved, atol=1e-8)
    np.testing.assert_allclose(transform_points(moved, invert(whole)), points, atol=1e-8)


affines = st.tuples(*[st.floats(-10, 10, width=32)] * 6)


@given(affines, affines)
def test_compose_and_invert_hold_for_any_map_that_does_not_flatten(first: Affine, then: Affine) -> None:
    assume(all(abs(m[0] * m[4] - m[1] * m[3]) > 0.1 for m in (first, then)))
    points = np.array([[0.0, 0.0], [3.0, -2.0], [5.0, 7.0]])
    both = compose(first, then)
    np.testing.assert_allclose(
        transform_points(points, both), transform_points(transform_points(points, first), then), atol=1e-6
    )
    np.testing.assert_allclose(transform_points(transform_points(points, first), invert(first)), points, atol=1e-6)


def test_a_map_that_flattens_cannot_be_inverted() -> None:
    with pytest.raises(ValueError, match="cannot be inverted"):
        invert((1.0, 2.0, 0.0, 2.0, 4.0, 0.0))


# ---------------------------------------------------------------- cutting

rings = hnp.arrays(np.float64, st.tuples(st.integers(3, 7), st.just(2)), elements=st.floats(-40, 140, width=32))


@given(rings)
def test_a_cut_polygon_lies_inside_and_halves_add_up(ring: np.ndarray) -> None:
    cut = clip_polygon(ring, 100, 60)
    assert cut.size == 0 or (cut.min() >= -1e-9 and (cut <= np.array([100, 60]) + 1e-9).all())
    convex = np.array([[10.0, -20.0], [130.0, 30.0], [60.0, 90.0]])
    whole = polygon_area(clip_polygon(convex, 100, 60))
    left = polygon_area(clip_polygon(convex, 45, 60))
    right = polygon_area(clip_polygon(convex - [45, 0], 55, 60))
    assert left + right == pytest.approx(whole)


@given(rings)
def test_what_a_line_has_inside_adds_up_over_a_window_and_its_halves(line: np.ndarray) -> None:
    def inside(points: np.ndarray, width: int) -> float:
        pieces = clip_line(points, width, 60)
        assert all((piece >= 0).all() and (piece <= [width, 60]).all() for piece in pieces)
        return sum(map(line_length, pieces))

    assume(not np.isin(line[:, 0], [0, 45, 100]).any())  # a piece along the cut is in both halves
    assert inside(line, 45) + inside(line - [45, 0], 55) == pytest.approx(inside(line, 100), abs=1e-6)
    assert inside(line, 100) <= line_length(line) + 1e-9


def on_border(a: np.ndarray, b: np.ndarray, near: float = 0.0) -> bool:
    """Whether both points lie on the same side of an image of 100 x 60, within ``near`` pixels."""
    sides = ((0, 0), (0, 100), (1, 0), (1, 60))
    return any(max(abs(a[axis] - at), abs(b[axis] - at)) <= near for axis, at in sides)


@given(rings)
def test_no_piece_of_a_line_runs_along_the_border_unless_the_line_does(line: np.ndarray) -> None:
    own = [pair for pair in pairwise(line) if on_border(*pair, near=1e-6)]
    along = [pair for piece in clip_line(line, 100, 60) for pair in pairwise(piece) if on_border(*pair)]
    assert not along or own


def test_a_line_that_leaves_and_comes_back_is_two_pieces() -> None:
    line = np.array([[10.0, 50.0], [10.0, 70.0], [30.0, 70.0], [30.0, 50.0]])
    first, second = clip_line(line, 100, 60)
    assert (first.tolist(), second.tolist()) == ([[10, 50], [10, 60]], [[30, 60], [30, 50]])


def test_a_line_that_touches_the_border_or_runs_along_it_stays_whole() -> None:
    touching = np.array([[10.0, 50.0], [20.0, 60.0], [40.0, 60.0], [50.0, 50.0]])
    (piece,) = clip_line(touching, 100, 60)
    assert (piece == touching).all()
    assert clip_line(np.array([[-10.0, 10.0], [0.0, 0.0], [10.0, -10.0]]), 100, 60) == [], "a corner alone"


# ---------------------------------------------------------------- EXIF


def marked_photo(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    """Black with a white rectangle that fills the half-open pixel box."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    x1, y1, x2, y2 = box
    pixels[y1:y2, x1:x2] = 255
    return Image.fromarray(pixels)


def white_box(image: Image.Image, level: int = 127) -> tuple[int, int, int, int]:
    """Half-open box of the bright pixels."""
    rows, columns = np.nonzero(np.asarray(image.convert("L")) > level)
    return int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(40, 30), (30, 40), (1, 7), (33, 33)])
def test_the_exif_map_moves_a_box_where_pillow_moves_its_pixels(orientation: int, size: tuple[int, int]) -> None:
    width, height = size
    box = (0, height // 3, max(1, width // 4), height // 2)
    image = marked_photo(width, height, box)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.info["exif"] = exif.tobytes()
    turned = ImageOps.exif_transpose(image)
    assert turned.size == displayed_size(width, height, orientation)
    moved = transform_boxes(np.array([box], dtype=np.float64), exif_affine(orientation, width, height))
    assert tuple(moved[0]) == white_box(turned)


@pytest.mark.parametrize("orientation", [0, 9, -1, 255])
def test_an_unknown_orientation_means_upright(orientation: int) -> None:
    assert exif_affine(orientation, 40, 30) == IDENTITY
    assert displayed_size(40, 30, orientation) == (40, 30)


# ---------------------------------------------------------------- smart_resize

pixel_limits = st.sampled_from(
    [(56 * 56, 1280 * 28 * 28), (56 * 56, 512 * 28 * 28), (224 * 224, 100352), (28 * 28, 28 * 28 * 4), (3136, 12845056)]
)


@given(sizes(8000), st.sampled_from([28, 32]), pixel_limits)
def test_smart_resize_equals_the_published_one_wherever_that_gives_a_size(
    size: tuple[int, int], factor: int, limits: tuple[int, int]
) -> None:
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize as published

    width, height = size
    ours = smart_resize(height, width, factor, *limits)
    assert min(ours) >= factor and ours[0] % factor == 0 and ours[1] % factor == 0
    theirs = published(height, width, factor, *limits)
    if min(theirs) > 0:
        assert ours == tuple(theirs)


@given(sizes(8000), pixel_limits)
def test_smart_resize_keeps_the_area_in_its_limits_unless_a_side_is_at_its_least(
    size: tuple[int, int], limits: tuple[int, int]
) -> None:
    height, width = smart_resize(size[1], size[0], 28, *limits)
    assert height * width >= limits[0]
    if min(height, width) > 28:
        assert height * width <= limits[1]


def test_smart_resize_on_the_published_example() -> None:
    assert smart_resize(1440, 1920, 28, 56 * 56, 512 * 28 * 28) == (532, 728)


def test_smart_resize_never_returns_a_side_of_0_even_without_a_lower_limit() -> None:
    assert smart_resize(3, 100, 28, 0, 100352) == (28, 28)


@pytest.mark.parametrize(("height", "width"), [(0, 10), (10, 0), (1, 201), (4020, 20)])
def test_smart_resize_refuses_what_has_no_pixels_or_is_a_sliver(height: int, width: int) -> None:
    with pytest.raises(ValueError, match=f"{width}x{height}"):
        smart_resize(height, width, 28, 3136, 100352)


@pytest.mark.parametrize("family", ["qwen2_5_vl"])
def test_the_image_processor_resizes_as_the_geometry_says(chat_processor: Any) -> None:
    import torch

    spec = chat_processor.spec
    for width, height in [(1, 1), (100, 3), (13, 700), (640, 480), (57, 3000)]:
        done = chat_processor.photo_plan.image_processor(
            images=[Image.new("RGB", (width, height))], return_tensors="pt"
        )
        expected = smart_resize(height, width, 28, spec.min_pixels, spec.max_pixels)
        assert torch.equal(done["image_grid_thw"][0], torch.tensor([1, expected[0] // 14, expected[1] // 14]))


# ---------------------------------------------------------------- invariant 4: the way of a box and back


def half_pixel(first: np.ndarray, second: np.ndarray) -> bool:
    return bool(np.abs(first - second).max(initial=0.0) <= 0.5)


def view_of(
    config: AugmentConfig, size: tuple[int, int], kind: str, outlines: np.ndarray, seed: int
) -> tuple[Photo, list[int]]:
    """An augmented photo, and the numbers of the outlines that it shows whole; these are its objects, in that order."""
    outlines = outlines.reshape(len(outlines), -1)
    objects = tuple(ObjectRow(str(number), kind, tuple(outline.tolist())) for number, outline in enumerate(outlines))
    photo = Augmenter(config, seed).for_sample(0, 0, 0.5)([Photo(Image.new("RGB", size), "a.png", objects)])[0]
    assert photo.to_canvas is not None
    whole = []
    for item in photo.objects:
        points = outlines[int(item.desc)]
        corners = points[[0, 1, 2, 1, 2, 3, 0, 3]] if kind == "bbox_2d" else points
        there = transform_points(corners.reshape(-1, 2), photo.to_canvas)
        if (there >= 0).all() and (there <= photo.image.size).all():
            whole.append(item)
    return Photo(photo.image, photo.name, tuple(whole), photo.to_canvas), [int(item.desc) for item in whole]


photo_sizes = sizes(300)  # their pixels are really turned


@given(st.data(), photo_sizes, orientations, st.integers(0, 1000), pixel_limits)
def test_a_box_survives_from_the_stored_file_to_the_unit_square_and_back(
    data: Any, stored: tuple[int, int], orientation: int, seed: int, limits: tuple[int, int]
) -> None:
    to_displayed = exif_affine(orientation, *stored)
    displayed = displayed_size(*stored, orientation)
    stored_boxes = data.draw(boxes_within(*stored))
    photo, whole = view_of(UPRIGHT, displayed, "bbox_2d", transform_boxes(stored_boxes, to_displayed), seed)
    stored_boxes, boxes = stored_boxes[whole], np.array([item.points for item in photo.objects]).reshape(-1, 4)
    geometry = plan_resize(*photo.image.size, factor=28, min_pixels=limits[0], max_pixels=limits[1])
    unit = geometry.boxes_to_unit(boxes)
    assert unit.min(initial=0) >= -1e-9 and unit.max(initial=0) <= 1 + 1e-9
    assert (unit[:, :2] <= unit[:, 2:] + 1e-12).all()

    to_stored = invert(compose(to_displayed, photo.to_canvas or IDENTITY))

    def back(boxes_on_canvas: np.ndarray) -> np.ndarray:
        return transform_boxes(boxes_on_canvas, to_stored)

    np.testing.assert_allclose(back(geometry.boxes_from_unit(unit)), stored_boxes, atol=1e-6)
    as_the_head_gives_it = cxcywh_to_xyxy(xyxy_to_cxcywh(unit))
    np.testing.assert_allclose(back(geometry.boxes_from_unit(as_the_head_gives_it)), stored_boxes, atol=1e-6)
    np.testing.assert_allclose(back(geometry.boxes_from_model(geometry.boxes_to_model(boxes))), stored_boxes, atol=1e-6)
    assert half_pixel(back(geometry.boxes_from_unit(unit.astype(np.float32))), stored_boxes)  # the head's own type


@given(st.data(), photo_sizes, st.integers(0, 1000), st.sampled_from(["poly", "line"]))
def test_the_points_of_a_polygon_or_line_survive_any_view(
    data: Any, size: tuple[int, int], seed: int, kind: str
) -> None:
    unit = data.draw(hnp.arrays(np.float64, (3, 4, 2), elements=st.floats(0, 1)))
    points = unit * size
    photo, whole = view_of(ALL_VIEWS, size, kind, points, seed)
    moved = np.array([item.points for item in photo.objects]).reshape(-1, 4, 2)
    np.testing.assert_allclose(transform_points(moved, invert(photo.to_canvas or IDENTITY)), points[whole], atol=1e-6)


@given(st.data(), photo_sizes, st.integers(0, 1000), pixel_limits, st.sampled_from(["model_pixels", "norm1000"]))
def test_a_box_written_as_text_comes_back_within_half_a_step_of_the_text(
    data: Any, size: tuple[int, int], seed: int, limits: tuple[int, int], convention: str
) -> None:
    photo, _ = view_of(UPRIGHT, size, "bbox_2d", data.draw(boxes_within(*size)), seed)
    boxes = np.array([item.points for item in photo.objects]).reshape(-1, 4)
    geometry = plan_resize(*photo.image.size, factor=28, min_pixels=limits[0], max_pixels=limits[1])
    written = text_boxes(geometry, boxes, convention)
    assert written.dtype == np.int64
    grid = (geometry.model_width, geometry.model_height) if convention == "model_pixels" else (1000, 1000)
    assert written.min(initial=0) >= 0 and (written <= np.array(grid * 2)).all()
    back = boxes_from_text(geometry, written, convention)
    step = np.array(photo.image.size * 2) / np.array(grid * 2)
    assert (np.abs(back - boxes) <= 0.5 * step + 1e-6).all()


def test_an_unknown_way_to_write_boxes_is_refused() -> None:
    geometry = plan_resize(60, 40, factor=28, min_pixels=3136, max_pixels=100352)
    with pytest.raises(ValueError, match="norm7"):
        text_boxes(geometry, np.zeros((1, 4)), "norm7")


@given(st.integers(8, 120), st.integers(8, 120), orientations, st.integers(0, 200), st.data())
def test_the_pixels_of_an_object_lie_in_its_box_after_exif_and_view(
    width: int, height: int, orientation: int, seed: int, data: Any
) -> None:
    x1, y1 = data.draw(st.integers(0, width - 4)), data.draw(st.integers(0, height - 4))
    x2, y2 = data.draw(st.integers(x1 + 3, width)), data.draw(st.integers(y1 + 3, height))
    image = marked_photo(width, height, (x1, y1, x2, y2))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    image.info["exif"] = exif.tobytes()
    box = transform_boxes(np.array([[x1, y1, x2, y2]], dtype=np.float64), exif_affine(orientation, width, height))
    item = ObjectRow("object", "bbox_2d", tuple(box[0].tolist()))
    views = AugmentConfig(0.5, 0.5, True, crop=0.5)  # no pixel is mixed with its neighbour
    shown = Augmenter(views, seed).for_sample(0, 0, 0.5)([Photo(ImageOps.exif_transpose(image), "a", (item,))])[0]
    np.testing.assert_allclose(shown.objects[0].box, white_box(shown.image), atol=1e-6)

    geometry = plan_resize(*shown.image.size, factor=28, min_pixels=3136, max_pixels=100352)
    resized = shown.image.resize((geometry.model_width, geometry.model_height), Image.Resampling.BICUBIC)
    one_pixel = max(geometry.model_width / shown.image.width, geometry.model_height / shown.image.height, 1.0)
    there = geometry.boxes_to_model(np.array([shown.objects[0].box]))[0]
    assert (np.abs(there - np.array(white_box(resized))) <= 0.5 * one_pixel + 1).all()


def test_no_boxes_stay_no_boxes_on_every_path() -> None:
    geometry = plan_resize(60, 40, factor=28, min_pixels=3136, max_pixels=100352)
    none = np.zeros((0, 4))
    for path in (geometry.boxes_to_unit, geometry.boxes_from_unit, geometry.boxes_to_model, geometry.boxes_from_model):
        assert path(none).shape == (0, 4)
    assert math.isclose(geometry.to_unit[0], 1 / 60)
