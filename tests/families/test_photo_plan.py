"""Every family's photo plan: bounds that hold for any crop, grids known before the patches, boxes there and back."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from bbu.families.photo_plan import PhotoPlan
from bbu.families.prompts import boxes_from_text, text_boxes
from bbu.families.registry import backbone_class
from bbu.geometry import MAX_ASPECT_RATIO, cxcywh_to_xyxy, xyxy_to_cxcywh
from tests.tiny import FAMILIES, tiny_spec

LIMITS = [(56 * 56, 196 * 196), (3136, 1_003_520), (900, 12_845_056), (50_176, 100_352), (784, 4000)]
every_family = pytest.mark.parametrize("family", FAMILIES)
limits = st.sampled_from(LIMITS)


def plan_of(family: str, allowed: tuple[int, int]) -> PhotoPlan:
    return backbone_class(family).photo_plan("", tiny_spec(family, *allowed))


@st.composite
def photo_sizes(draw: st.DrawFn, largest: int = 6000) -> tuple[int, int]:
    """(width, height), up to the longest photos that a plan takes."""
    width, height = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    assume(max(width, height) <= MAX_ASPECT_RATIO * min(width, height))
    return width, height


@st.composite
def photos_and_crops(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int]]:
    """A photo's size, and that of a crop of it after any number of quarter turns."""
    photo = draw(photo_sizes())
    crop = [draw(st.integers(1, side) | st.integers(max(1, side - 40), side) | st.just(side)) for side in photo]
    assume(max(crop) <= MAX_ASPECT_RATIO * min(crop))
    width, height = draw(st.permutations(crop))
    return photo, (width, height)


@st.composite
def boxes_within(draw: st.DrawFn, width: int, height: int) -> np.ndarray:
    """(n, 4) xyxy inside a photo."""
    share = st.floats(0, 1)
    ends = np.array(draw(st.lists(st.tuples(share, share, share, share), min_size=1, max_size=4))).reshape(-1, 2, 2)
    return np.concatenate((ends.min(axis=1), ends.max(axis=1)), axis=1) * [width, height, width, height]


@every_family
@settings(max_examples=200)
@given(sizes=photos_and_crops(), allowed=limits)
def test_no_crop_or_turn_has_more_patches_than_planned(
    family: str, sizes: tuple[tuple[int, int], tuple[int, int]], allowed: tuple[int, int]
) -> None:
    (photo, crop), plan = sizes, plan_of(family, allowed)
    assert math.prod(plan.grid(plan.plan(*crop))) <= plan.most_patches(*photo)


@every_family
@settings(max_examples=200)
@given(sizes=photos_and_crops(), allowed=limits)
def test_no_crop_or_turn_is_longer_than_the_longest_side(
    family: str, sizes: tuple[tuple[int, int], tuple[int, int]], allowed: tuple[int, int]
) -> None:
    (photo, crop), plan = sizes, plan_of(family, allowed)

    def side(size: tuple[int, int]) -> int:
        _, rows, columns = plan.grid(plan.plan(*size))
        return max(rows, columns) * plan.patch_size

    assert side(crop) <= plan.longest_side(*photo, cropped=True)
    for size in (photo, photo[::-1]):
        assert plan.longest_side(*size, cropped=False) == side(photo)


@every_family
@settings(max_examples=30)
@given(sizes=st.lists(photo_sizes(400), min_size=1, max_size=3), allowed=st.sampled_from(LIMITS[:1] + LIMITS[-1:]))
def test_patches_have_the_grids_that_were_planned(
    family: str, sizes: list[tuple[int, int]], allowed: tuple[int, int]
) -> None:
    plan = plan_of(family, allowed)
    planned = [plan.plan(*size) for size in sizes]
    patches, grids = plan.patchify([Image.new("RGB", size, (90, 0, 200)) for size in sizes], planned)
    assert [tuple(grid) for grid in grids.tolist()] == [plan.grid(geometry) for geometry in planned]
    assert tuple(patches.shape) == (int(grids.prod(-1).sum()), plan.patch_width)


@every_family
@settings(max_examples=100)
@given(data=st.data(), size=photo_sizes(), allowed=limits)
def test_boxes_come_back_from_the_unit_square_within_half_a_pixel(
    family: str, data: st.DataObject, size: tuple[int, int], allowed: tuple[int, int]
) -> None:
    """Through centre and size in the head's own float32; the photo may cover only a part of the unit square."""
    boxes = data.draw(boxes_within(*size))
    geometry = plan_of(family, allowed).plan(*size)
    there = geometry.boxes_to_unit(boxes)
    left, top, right, bottom = geometry.photo_in_unit
    assert 0 <= left < right <= 1 and 0 <= top < bottom <= 1
    assert (there >= np.array([left, top] * 2) - 1e-9).all() and (there <= np.array([right, bottom] * 2) + 1e-9).all()
    exact = geometry.boxes_from_unit(there)
    np.testing.assert_allclose(exact, boxes, rtol=0, atol=1e-6)
    assert exact.min() >= -1e-6 and (exact <= np.array([*size, *size]) + 1e-6).all()
    found = geometry.boxes_from_unit(cxcywh_to_xyxy(xyxy_to_cxcywh(there).astype(np.float32)))
    assert np.abs(found - boxes).max() <= 0.5


@every_family
@settings(max_examples=60)
@given(data=st.data(), size=photo_sizes(), allowed=limits, convention=st.sampled_from(["model_pixels", "norm1000"]))
def test_boxes_come_back_from_text_within_half_a_step_of_it(
    family: str, data: st.DataObject, size: tuple[int, int], allowed: tuple[int, int], convention: str
) -> None:
    boxes, plan = data.draw(boxes_within(*size)), plan_of(family, allowed)
    geometry = plan.plan(*size)
    _, rows, columns = plan.grid(geometry)
    pixels = (columns * plan.patch_size, rows * plan.patch_size)
    steps = np.array(pixels if convention == "model_pixels" else (1000, 1000))
    written = text_boxes(geometry, boxes, convention)
    assert written.min() >= 0 and (written <= np.tile(steps, 2)).all()
    step = np.array(size) / np.array(geometry.photo_in_unit[2:]) / steps
    assert (np.abs(boxes_from_text(geometry, written, convention) - boxes) <= 0.5 * np.tile(step, 2) + 1e-6).all()


def test_one_familys_canvas_is_larger_than_the_photo() -> None:
    """So that the tests above, and all that are run over families, do not hold for photos that fill it alone."""
    spans = [plan_of(family, LIMITS[0]).plan(100, 70).photo_in_unit for family in FAMILIES]
    assert (0, 0, 1, 1) in spans and any(span[2] < 1 and span[3] < 1 for span in spans)
