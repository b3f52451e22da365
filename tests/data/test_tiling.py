"""A training photo becomes the views that prediction makes of it, with the objects that are in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bbu.data.augment.objects import share_inside
from bbu.data.photo import open_photo
from bbu.data.tiling import add_tiles, tile_of
from bbu.errors import PhotoChangedError
from bbu.geometry import transform_points
from bbu.inference.tiling import View, views_of
from bbu.records import FewShotSample, ObjectRow, PredictedObject, Row
from bbu.tiles import Tile, Tiles

SIZE = (400, 300)
MAX_PIXELS = 168 * 168
LINE = ObjectRow("cable", "line", (20, 20, 380, 280))
POLYGON = ObjectRow("plate", "poly", (150, 100, 250, 110, 240, 200))
BOX = ObjectRow("screw", "bbox_2d", (5, 5, 35, 30))
PHOTO = Row(("a.png",), (BOX, POLYGON, LINE), *SIZE, summary="three", metadata={"group": "site"})

boxes = st.tuples(st.floats(0, 370), st.floats(0, 270), st.floats(2, 200), st.floats(2, 200)).map(
    lambda box: ObjectRow("x", "bbox_2d", (box[0], box[1], min(400, box[0] + box[2]), min(300, box[1] + box[3])))
)


def tiled(*objects: ObjectRow, tiles: Tiles | None = None, min_visible: float = 0.4) -> list[Row]:
    """The photo, then its tiles."""
    sample = FewShotSample(Row(("a.png",), objects, *SIZE))
    return [view.student for view in add_tiles([sample], tiles or Tiles(), MAX_PIXELS, min_visible)]


@pytest.mark.parametrize("tiles", [Tiles(), Tiles(3, 2), Tiles(size=150, overlap=0.4)], ids=["auto", "grid", "size"])
def test_training_shows_the_views_of_prediction(tiles: Tiles) -> None:
    views = views_of(SIZE, tiles, False, MAX_PIXELS)
    whole, *parts = tiled(BOX, tiles=tiles)
    assert whole.tile is None and [row.tile and row.tile.window for row in parts] == [v.window for v in views[1:]]
    assert [(row.width, row.height) for row in (whole, *parts)] == [view.size for view in views]
    assert len(parts) > 3


def test_without_tiles_and_in_photos_that_fit_nothing_changes() -> None:
    samples = [FewShotSample(PHOTO, teachers=(PHOTO,))]
    assert add_tiles(samples, None, MAX_PIXELS, 0.4) == samples == add_tiles(samples, Tiles(), 400 * 300, 0.4)


def test_teachers_and_what_is_known_of_the_photo_go_with_its_tiles() -> None:
    _, *parts = add_tiles([FewShotSample(PHOTO, teachers=(PHOTO,), context=(PHOTO,))], Tiles(2, 2), MAX_PIXELS, 0.4)
    for part in parts:
        assert part.teachers == part.context == (PHOTO,)
        assert (part.student.images, part.student.group, part.student.summary) == (PHOTO.images, "site", None)


@given(item=boxes, min_visible=st.floats(0.05, 1))
def test_a_tile_has_the_objects_that_are_visible_enough_where_they_are(item: ObjectRow, min_visible: float) -> None:
    for row in tiled(item, min_visible=min_visible)[1:]:
        assert row.tile is not None
        x1, y1, x2, y2 = row.tile.window
        share = share_inside(item, (x1, y1), row.tile.size)
        if abs(share - min_visible) < 1e-9:
            continue
        assert len(row.objects) == (share >= min_visible)
        for kept in row.objects:
            inside = np.array(item.points).reshape(2, 2).clip((x1, y1), (x2, y2)) - (x1, y1)
            np.testing.assert_allclose(
                np.array(kept.points).reshape(2, 2), inside, atol=0.51
            )  # records may lie outside


@given(item=boxes)
def test_what_training_cuts_at_a_tiles_border_prediction_leaves_out_there(item: ObjectRow) -> None:
    """A box that a model finds exactly as it was taught is the whole object, or is dropped as cut off."""
    for row in tiled(item, min_visible=0.05)[1:]:
        assert row.tile is not None
        found = [PredictedObject(kept.box, "x", 0.5, 0.5) for kept in row.objects]
        for back in View(row.tile.window, SIZE).to_photo(found):
            np.testing.assert_allclose(back.box, item.box, atol=0.51)


def test_lines_and_polygons_are_cut_as_in_a_crop() -> None:
    row = tile_of(PHOTO, Tile((100, 50, 300, 250), SIZE), 0.4)
    polygon, line = row.objects
    assert polygon.points == (50, 50, 150, 60, 140, 150)
    assert line.kind == "line" and line.box == pytest.approx((0, 27.7778, 200, 172.2222), abs=1e-3)
    assert [item.desc for item in tile_of(PHOTO, Tile((100, 50, 300, 250), SIZE), 0.6).objects] == ["plate"]


def test_a_tile_has_the_pixels_of_its_window(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for row in tiled(BOX)[1:]:
        assert row.tile is not None
        x1, y1, x2, y2 = row.tile.window
        photo = open_photo(tmp_path, row)
        assert (np.array(photo.image) == pixels[y1:y2, x1:x2]).all()
        assert photo.objects == row.objects and photo.to_canvas is not None
        assert transform_points(np.array([[x1, y1]]), photo.to_canvas).tolist() == [[0, 0]]


def test_the_tile_of_a_photo_that_has_changed_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (500, 400)).save(tmp_path / "a.png")
    with pytest.raises(PhotoChangedError, match="the record says 400x300, the photo shows 500x400"):
        open_photo(tmp_path, tiled(BOX)[1])
