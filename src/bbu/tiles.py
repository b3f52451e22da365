"""Where the tiles of a photo lie: one layout for training and prediction. Needs no numpy."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bbu.errors import UserError

if TYPE_CHECKING:
    from bbu.geometry import Affine

Window = tuple[int, int, int, int]  # x1, y1, x2, y2 in pixels of the photo
Size = tuple[int, int]  # width, height

SMALLEST_TILE = 56  # pixels


@dataclass(frozen=True)
class Tiles:
    """How a photo is cut into tiles; the whole photo is always shown too.

    Args:
        columns, rows: of the grid; 0 and 0 = derived from ``size``.
        size: largest side of a tile in pixels, without a grid; 0 = the largest that the model sees without shrinking.
        overlap: least fraction of a tile that its neighbour covers too; an object no longer than it is whole in a tile.

    Raises:
        UserError: a value is out of range, or both grid and size are given.
    """

    columns: int = 0
    rows: int = 0
    size: int = 0
    overlap: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.overlap <= 0.5:
            raise UserError(f"tiles: overlap must lie in [0, 0.5], is {self.overlap}")
        if self.size and self.size < SMALLEST_TILE:
            raise UserError(f"tiles: a side must be at least {SMALLEST_TILE} pixels, is {self.size}")
        if min(self.columns, self.rows) < 0 or (self.columns == 0) != (self.rows == 0):
            raise UserError(f"tiles: a grid needs columns and rows from 1, is {self.columns}x{self.rows}")
        if self.size and self.columns:
            raise UserError("tiles: give either a grid or the size of a tile")

    @classmethod
    def parse(cls, text: str, size: int = 0, overlap: float = overlap) -> Tiles:
        """Parse ``auto`` or columns x rows, as in ``3x2``.

        Raises:
            UserError: neither of them, or a value is out of range.
        """
        if text == "auto":
            return cls(size=size, overlap=overlap)
        found = re.fullmatch(r"([1-9]\d?)x([1-9]\d?)", text)
        if found is None:
            raise UserError(f"tiles {text!r}: must be auto, or columns x rows from 1 to 99, such as 3x2")
        return cls(int(found[1]), int(found[2]), size, overlap)

    def windows(self, size: Size, max_pixels: int) -> list[Window]:
        """The tiles of a photo, row by row; none if a single one would cover it.

        Args:
            size: width and height of the photo.
            max_pixels: most pixels that the model sees of one view.
        """
        width, height = size
        if self.columns:
            across, down = (self._cut(length, n) for length, n in ((width, self.columns), (height, self.rows)))
        elif not self.size and width * height <= max_pixels:
            return []
        else:
            side = self.size or max(SMALLEST_TILE, math.isqrt(max_pixels))
            across, down = (self._spread(length, side) for length in (width, height))
        tiles = [(x1, y1, x2, y2) for y1, y2 in down for x1, x2 in across]
        return tiles if len(tiles) > 1 else []

    def _cut(self, length: int, count: int) -> list[tuple[int, int]]:
        """``count`` equal spans that overlap by ``overlap`` of a span; fewer if a span would be too small."""
        count = max(1, min(count, length // SMALLEST_TILE))
        return _spans(length, count, math.ceil(length / (count - (count - 1) * self.overlap)))

    def _spread(self, length: int, side: int) -> list[tuple[int, int]]:
        """The fewest spans of ``side`` that cover the length with this overlap."""
        step = side * (1 - self.overlap)
        count = 1 if length <= side else 1 + math.ceil((length - side) / step)
        return _spans(length, count, min(side, length))


def _spans(length: int, count: int, side: int) -> list[tuple[int, int]]:
    """Spans of ``side``, the first and last flush with the ends."""
    starts = [0] if count == 1 else [round(number * (length - side) / (count - 1)) for number in range(count)]
    return [(start, start + side) for start in starts]


@dataclass(frozen=True, slots=True)
class Tile:
    """A part of a photo.

    Args:
        window: in displayed pixels of the photo.
        photo: width and height of the photo.
    """

    window: Window
    photo: Size

    @property
    def size(self) -> Size:
        """Width and height of the window."""
        return self.window[2] - self.window[0], self.window[3] - self.window[1]

    @property
    def to_tile(self) -> Affine:
        """Map of points: pixels of the photo → pixels of the tile."""
        return (1.0, 0.0, -float(self.window[0]), 0.0, 1.0, -float(self.window[1]))
