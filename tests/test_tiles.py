"""Tiles cover a photo with the overlap that was asked for, and a part of a photo has its own pixels."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bbu.errors import UserError
from bbu.geometry import transform_points
from bbu.tiles import SMALLEST_TILE, Size, Tile, Tiles

sides = st.integers(20, 3000)
sizes = st.tuples(sides, sides)
tilings = st.one_of(
    st.builds(Tiles, columns=st.integers(1, 6), rows=st.integers(1, 6), overlap=st.floats(0, 0.5)),
    st.builds(Tiles, size=st.integers(SMALLEST_TILE, 900), overlap=st.floats(0, 0.5)),
    st.builds(Tiles, overlap=st.floats(0, 0.5)),
)


@given(size=sizes, tiles=tilings, max_pixels=st.integers(56 * 56, 1280 * 28 * 28))
@settings(max_examples=200, deadline=None)
def test_tiles_cover_the_photo_and_neighbours_overlap(size: Size, tiles: Tiles, max_pixels: int) -> None:
    windows = tiles.windows(size, max_pixels)
    assert len(windows) != 1 and len(set(windows)) == len(windows)
    for axis in (0, 1) if windows else ():
        spans = sorted({(window[axis], window[axis + 2]) for window in windows})
        assert spans[0][0] == 0 and spans[-1][1] == size[axis]
        for (start, stop), (following, _) in pairwise(spans):
            assert stop - following >= tiles.overlap * (stop - start) - 2  # each end is rounded to a pixel
            assert stop - start >= min(SMALLEST_TILE, size[axis])


@given(tiles=tilings, size=sizes, max_pixels=st.integers(56 * 56, 1280 * 28 * 28))
@settings(max_examples=200, deadline=None)
def test_an_object_no_longer_than_the_overlap_is_whole_in_some_tile(size: Size, tiles: Tiles, max_pixels: int) -> None:
    windows = tiles.windows(size, max_pixels)
    if not windows:
        return
    width, height = (windows[0][2] - windows[0][0], windows[0][3] - windows[0][1])
    w, h = max(0.0, tiles.overlap * width - 2), max(0.0, tiles.overlap * height - 2)
    for x in np.linspace(0, size[0] - w, 7):
        for y in np.linspace(0, size[1] - h, 7):
            assert any(a <= x and b <= y and x + w <= c and y + h <= d for a, b, c, d in windows)


def test_auto_tiles_are_the_largest_that_need_no_shrinking() -> None:
    windows = Tiles().windows((4000, 3000), 1000 * 1000)
    assert {(c - a, d - b) for a, b, c, d in windows} == {(1000, 1000)} and len(windows) == 5 * 4
    assert Tiles.parse("auto", size=2000).windows((4000, 3000), 10) == [
        (x, y, x + 2000, y + 2000) for y in (0, 1000) for x in (0, 1000, 2000)
    ]


def test_a_grid_has_its_columns_and_rows() -> None:
    assert Tiles.parse("2x1", overlap=0.0).windows((300, 200), 1) == [(0, 0, 150, 200), (150, 0, 300, 200)]
    assert len(Tiles.parse("3x2").windows((900, 900), 1)) == 6


@pytest.mark.parametrize(
    ("text", "size", "overlap", "why"),
    [
        ("3", 0, 0.2, "'3': must be auto, or columns x rows"),
        ("0x2", 0, 0.2, "'0x2'"),
        ("100x1", 0, 0.2, "'100x1'"),
        ("auto", 20, 0.2, "at least 56 pixels, is 20"),
        ("auto", 0, 0.9, r"overlap must lie in \[0, 0.5\], is 0.9"),
        ("2x2", 300, 0.2, "either a grid or the size"),
    ],
)
def test_invalid_tiles_are_refused(text: str, size: int, overlap: float, why: str) -> None:
    with pytest.raises(UserError, match=why):
        Tiles.parse(text, size, overlap)


def test_a_tile_maps_its_corners_to_its_own_pixels() -> None:
    tile = Tile((30, 10, 80, 70), (100, 90))
    corners = transform_points(np.array([(30.0, 10.0), (80.0, 70.0)]), tile.to_tile)
    assert corners.tolist() == [[0, 0], list(tile.size)] and tile.size == (50, 60)
