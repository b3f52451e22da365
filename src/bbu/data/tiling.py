"""The tiles of training photos, as samples of their own; in the layout that prediction has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bbu.data.augment.objects import place_objects
from bbu.records import FewShotSample, Row
from bbu.tiles import Tile, Tiles


def add_tiles(
    samples: Sequence[FewShotSample], tiles: Tiles | None, max_pixels: int, min_visible: float
) -> list[FewShotSample]:
    """Each sample followed by the tiles of its student's photo, which are the views that prediction makes of it.

    Teachers and context stay whole photos, as in prediction. A photo that is not annotated has no tiles.

    Args:
        tiles: None = no tiles.
        max_pixels: most pixels that the model sees of one view.
        min_visible: as in ``tile_of``.
    """
    found = []
    for sample in samples:
        row = sample.student
        windows = tiles.windows((row.width, row.height), max_pixels) if tiles and row.annotated else []
        cut = [tile_of(row, Tile(window, (row.width, row.height)), min_visible) for window in windows]
        found += [sample, *(replace(sample, student=part) for part in cut)]
    return found


def tile_of(row: Row, tile: Tile, min_visible: float) -> Row:
    """The row of a tile, with what remains of the photo's objects in it.

    Args:
        min_visible: least fraction of an object that must remain (bbu.data.augment.objects); others are clipped.
    """
    objects = place_objects(row.objects, tile.to_tile, tile.size, min_visible)
    return replace(row, objects=objects, width=tile.size[0], height=tile.size[1], summary=None, tile=tile)
