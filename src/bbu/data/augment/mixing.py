"""Mosaic and copy-paste: pixels and objects of other training photos in a student's photo."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bbu.config import AugmentConfig
from bbu.data.augment.objects import Size, place_objects, share_inside
from bbu.data.photo import Photo, open_photo
from bbu.errors import ConfigError
from bbu.geometry import Affine
from bbu.records import ObjectRow, Row

_TILES = 4
_MIDDLE = (0.35, 0.65)  # where the four photos of a mosaic meet, share of a side
_ZOOM = (0.8, 1.25)  # a pasted piece's size, relative to that in its own photo
_LARGEST = 0.5  # a pasted piece's side, share of the photo's; larger pieces would be the photo
_TRIES = 10  # places for a piece
_ROUNDING = 1e-6  # of a visible share, which does not depend on the piece's zoom


class Mixer:
    """Photos of the training pool, as a source of tiles and pieces.

    Args:
        config: how many objects, which margin, how much may be hidden.
        pool: rows of training photos; those with one image are used.
        image_root: folder that their paths are relative to.

    Raises:
        ConfigError: an operation is on and the pool has no photos (objects) for it.
    """

    def __init__(self, config: AugmentConfig, pool: Sequence[Row], image_root: str | Path) -> None:
        self.config, self.image_root = config, image_root
        self.pool = [row for row in pool if len(row.images) == 1]
        # the box around a cable is mostly other things, so lines are not cut out
        objects = [(at, item) for at, row in enumerate(self.pool) for item in row.objects if item.kind != "line"]
        if config.mosaic and len(self.pool) < _TILES:
            raise ConfigError(
                f"data.augment.mosaic: needs {_TILES} training photos, there are {len(self.pool)}; set it to 0"
            )
        if config.copy_paste and not objects:
            raise ConfigError(
                "data.augment.copy_paste: no training photo has a box or a polygon to cut out; set it to 0"
            )
        self._by_description: dict[str, list[tuple[int, ObjectRow]]] = {}
        for at, item in objects:
            self._by_description.setdefault(item.desc, []).append((at, item))
        counts = Counter(item.desc for _, item in objects)
        self._descriptions = list(self._by_description)
        rarity = np.array([1 / counts[desc] for desc in self._descriptions])
        self._rarity = rarity / rarity.sum() if len(rarity) else rarity

    # ------------------------------------------------------------ mosaic

    def mosaic(self, photo: Photo, random: np.random.Generator, avoid: Collection[str]) -> Photo:
        """The photo and three others as the quarters of one, of its size; each fills its quarter and is cut to it.

        Args:
            avoid: photos that may not come in: those of the sample, whose answers the student must not meet.
        """
        others = self.draw_tiles(random, avoid)
        if not others or min(photo.image.size) < 2:
            return photo
        tiles = [photo, *(open_photo(self.image_root, row) for row in others)]
        width, height = photo.image.size
        x, y = (max(1, round(side * random.uniform(*_MIDDLE))) for side in (width, height))
        windows = ((0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height))
        canvas, objects = Image.new("RGB", (width, height)), list[ObjectRow]()
        for place, (left, top, right, bottom) in zip(random.permutation(_TILES), windows, strict=True):
            size = (right - left, bottom - top)
            image, affine = _filling(tiles[place].image, size, random)
            canvas.paste(image, (left, top))
            objects += place_objects(tiles[place].objects, affine, size, self.config.min_visible, (left, top))
        if photo.objects and not objects:
            return photo
        return replace(photo, image=canvas, objects=tuple(objects), to_canvas=None)

    def draw_tiles(self, random: np.random.Generator, avoid: Collection[str]) -> list[Row]:
        """The other photos of a mosaic; none where the pool has too few."""
        others = [row for row in self.pool if row.images[0] not in avoid]
        if len(others) < _TILES - 1:
            return []
        return [others[at] for at in random.choice(len(others), _TILES - 1, replace=False)]

    # ------------------------------------------------------------ copy-paste

    def paste(self, photo: Photo, random: np.random.Generator, avoid: Collection[str]) -> Photo:
        """The photo with objects of others in it; itself where none finds a place.

        A description is drawn by 1 / (how often it occurs in the pool), then one of its objects. Other objects that are
        cut out with it come along under the same rule as in a crop. Pieces fade in over half their margin, or the
        model would learn to look for edges (Dwibedi et al. 2017, arXiv:1708.01642).
        """
        image, objects = photo.image, list(photo.objects)
        for _ in range(self.draw_pieces(random)):
            row, item = self._draw_object(random)
            zoom = random.uniform(*_ZOOM) * np.sqrt(np.prod(image.size) / (row.width * row.height))
            if row.images[0] in avoid:
                continue
            piece = self._cut_out(row, item, float(zoom), image.size)
            corner = piece and _free_corner(random, piece.image.size, image.size, objects, self.config.paste_cover)
            if not piece or not corner:
                continue
            if image is photo.image:
                image = image.copy()
            fade = self.config.paste_margin * max(_sides(item.box)) * zoom / 2
            image.paste(piece.image, corner, _faded(piece.image.size, fade))
            objects += place_objects(piece.objects, (1, 0, 0, 0, 1, 0), piece.image.size, 0.0, corner)
        return photo if image is photo.image else replace(photo, image=image, objects=tuple(objects), to_canvas=None)

    def draw_pieces(self, random: np.random.Generator) -> int:
        """How many pieces are tried."""
        return int(random.integers(1, self.config.paste_objects + 1))

    def piece_rows(self) -> list[Row]:
        """For every object that can be pasted the row of its photo, with it and the objects cut out along with it."""
        rows = []
        least = max(0.0, self.config.min_visible - _ROUNDING)
        for row in self.pool:
            for item in row.objects if self.config.copy_paste else ():
                if item.kind != "line":
                    left, top, right, bottom = self._window(row, item)
                    shift, size = (1.0, 0.0, -float(left), 0.0, 1.0, -float(top)), (right - left, bottom - top)
                    kept = tuple(other for other in row.objects if place_objects([other], shift, size, least))
                    rows.append(replace(row, objects=kept))
        return rows

    def _draw_object(self, random: np.random.Generator) -> tuple[Row, ObjectRow]:
        same = self._by_description[self._descriptions[int(random.choice(len(self._descriptions), p=self._rarity))]]
        at, item = same[int(random.integers(len(same)))]
        return self.pool[at], item

    def _cut_out(self, row: Row, item: ObjectRow, zoom: float, limit: Size) -> Photo | None:
        """An object with its margin and what else lies there; None where that is too large for the photo ``limit``."""
        left, top, right, bottom = self._window(row, item)
        size = max(1, round((right - left) * zoom)), max(1, round((bottom - top) * zoom))
        if size[0] > _LARGEST * limit[0] or size[1] > _LARGEST * limit[1]:
            return None
        whole = open_photo(self.image_root, row)
        image = _resized(whole.image.crop((left, top, right, bottom)), size)
        x, y = size[0] / (right - left), size[1] / (bottom - top)
        affine: Affine = (x, 0.0, -x * left, 0.0, y, -y * top)
        return Photo(image, whole.name, place_objects(whole.objects, affine, size, self.config.min_visible))

    def _window(self, row: Row, item: ObjectRow) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of an object's piece, in whole pixels of its photo."""
        x1, y1, x2, y2 = item.box
        margin = self.config.paste_margin * max(x2 - x1, y2 - y1)
        right, bottom = min(row.width, int(np.ceil(x2 + margin))), min(row.height, int(np.ceil(y2 + margin)))
        return max(0, int(x1 - margin)), max(0, int(y1 - margin)), right, bottom


def _resized(image: Any, size: Size) -> Any:
    from torchvision.transforms.v2 import functional

    return functional.resize(image, [size[1], size[0]], antialias=True)


def _filling(image: Image.Image, size: Size, random: np.random.Generator) -> tuple[Any, Affine]:
    """The photo just large enough to fill ``size``, and a random window of it; with the map of its points."""
    zoom = max(size[0] / image.width, size[1] / image.height)
    large = max(size[0], round(image.width * zoom)), max(size[1], round(image.height * zoom))
    left, top = (int(random.integers(a - b + 1)) for a, b in zip(large, size, strict=True))
    window = _resized(image, large).crop((left, top, left + size[0], top + size[1]))
    return window, (large[0] / image.width, 0.0, float(-left), 0.0, large[1] / image.height, float(-top))


def _sides(box: tuple[float, float, float, float]) -> tuple[float, float]:
    return box[2] - box[0], box[3] - box[1]


def _free_corner(
    random: np.random.Generator, piece: Size, photo: Size, objects: Sequence[ObjectRow], cover: float
) -> tuple[int, int] | None:
    """A place where the piece hides at most the share ``cover`` of every object; None if a few tries find none."""
    for _ in range(_TRIES):
        corner = int(random.integers(photo[0] - piece[0] + 1)), int(random.integers(photo[1] - piece[1] + 1))
        if all(share_inside(item, corner, piece) <= cover for item in objects):
            return corner
    return None


def _faded(size: Size, fade: float) -> Image.Image:
    """Mask of a piece: full inside, falling to nothing over the ``fade`` pixels at its border."""
    across, down = (np.minimum(np.arange(side) + 0.5, side - np.arange(side) - 0.5) / max(fade, 0.5) for side in size)
    mask = np.minimum(across[None, :], down[:, None]).clip(0, 1)
    return Image.fromarray((mask * 255).round().astype(np.uint8))
