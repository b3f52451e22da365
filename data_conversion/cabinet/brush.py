"""A supersampled brush that draws one part, and the part's placement in the photo.

Every part is drawn upright around (0, 0), at two or three times the resolution of the photo, then turned, sheared and
reduced. Its box is that of the reduced alpha channel, so it is tight by construction.

Shapes: R rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

FINER = 3  # drawing pixels per photo pixel; fewer make slots and threads ragged …
FINER_LARGE = 2  # … but are enough for the straight edges of large parts, and much faster
LARGE = 60  # least half width of a large part, in photo pixels
OPAQUE = 128  # least alpha of a pixel that belongs to the part

Colour = tuple[int, int, int]
Point = tuple[float, float]


def shade(colour: Sequence[float], factor: float) -> Colour:
    """A darker (< 1) or lighter (> 1) colour, clipped to 0-255."""
    red, green, blue = (max(0, min(255, round(value * factor))) for value in colour)
    return red, green, blue


def pick(rng: np.random.Generator, colours: Sequence[Colour], spread: int = 10) -> Colour:
    """One of ``colours``, each channel changed by at most ``spread``."""
    base = colours[int(rng.integers(len(colours)))]
    moved = np.clip(np.array(base) + rng.integers(-spread, spread + 1, 3), 0, 255)
    return int(moved[0]), int(moved[1]), int(moved[2])


def metal(rng: np.random.Generator) -> Colour:
    """A bare-metal grey, zinc to brass-ish."""
    return pick(rng, [(176, 178, 182), (196, 196, 192), (158, 162, 168), (188, 180, 158)], 8)


class Brush:
    """Draws on a transparent sheet with (0, 0) at its centre; lengths are in photo pixels.

    Args:
        half_width, half_height: extent of the part from its centre.
    """

    def __init__(self, half_width: float, half_height: float) -> None:
        self.half = (math.ceil(half_width) + 1, math.ceil(half_height) + 1)
        self.finer = FINER if self.half[0] < LARGE else FINER_LARGE
        self.sheet = Image.new("RGBA", (2 * self.half[0] * self.finer, 2 * self.half[1] * self.finer))
        self._draw = ImageDraw.Draw(self.sheet)

    def _at(self, points: Iterable[Point]) -> list[Point]:
        return [((x + self.half[0]) * self.finer, (y + self.half[1]) * self.finer) for x, y in points]

    def oval(self, x: float, y: float, rx: float, ry: float, fill: Colour, turn: float = 0.0) -> None:
        """A filled ellipse around (x, y), turned by ``turn`` radians."""
        cos, sin = math.cos(turn), math.sin(turn)
        steps = [2 * math.pi * i / 40 for i in range(40)]
        ring = [(rx * math.cos(t), ry * math.sin(t)) for t in steps]
        self.shape([(x + a * cos - b * sin, y + a * sin + b * cos) for a, b in ring], fill)

    def disc(self, x: float, y: float, radius: float, fill: Colour) -> None:
        self.oval(x, y, radius, radius, fill)

    def shape(self, points: Sequence[Point], fill: Colour) -> None:
        """A filled polygon."""
        self._draw.polygon(self._at(points), fill=fill)

    def bar(self, x1: float, y1: float, x2: float, y2: float, fill: Colour, radius: float = 0.0) -> None:
        """A filled rectangle, its corners rounded by ``radius``."""
        (a, b), (c, d) = self._at([(x1, y1), (x2, y2)])
        self._draw.rounded_rectangle((a, b, c - 1, d - 1), radius * self.finer, fill=fill)

    def stroke(self, points: Sequence[Point], fill: Colour, width: float) -> None:
        """An open line, ``width`` photo pixels wide."""
        self._draw.line(self._at(points), fill=fill, width=max(1, round(width * self.finer)), joint="curve")

    def cut(self, points: Sequence[Point]) -> None:
        """Make a polygon transparent again (torn paper)."""
        self._draw.polygon(self._at(points), fill=(0, 0, 0, 0))


@dataclass(frozen=True)
class Pose:
    """Position and orientation of a part in the photo.

    Args:
        x, y: centre, in photo pixels.
        turn: radians, clockwise as seen.
        shear: sideways lean, which imitates a camera held off-axis.
    """

    x: float
    y: float
    turn: float = 0.0
    shear: float = 0.0

    def matrix(self) -> np.ndarray:
        """(2, 2) matrix from part to photo directions."""
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        return np.array([[cos, -sin], [sin, cos]]) @ np.array([[1.0, self.shear], [0.0, 1.0]])

    def points(self, local: Sequence[Point]) -> list[Point]:
        """Points of the part in photo pixels."""
        moved_R2 = np.asarray(local, dtype=np.float64) @ self.matrix().T + (self.x, self.y)
        return [(float(x), float(y)) for x, y in moved_R2]

    def child(self, x: float, y: float, turn: float = 0.0) -> Pose:
        """The pose of a thing fixed at (x, y) of this part."""
        (px, py), *_ = self.points([(x, y)])
        return Pose(px, py, self.turn + turn, self.shear)


@dataclass(frozen=True)
class Sprite:
    """A part ready to paste: RGBA at the size of the photo, and the photo pixel of its top left corner."""

    image: Image.Image
    left: int
    top: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """xyxy of the pixels that the part covers, in photo pixels."""
        x1, y1, x2, y2 = self.image.getchannel("A").point([0] * OPAQUE + [255] * (256 - OPAQUE)).getbbox() or (0,) * 4
        return self.left + x1, self.top + y1, self.left + x2, self.top + y2


def bounds(half_width: float, half_height: float, pose: Pose) -> tuple[float, float, float, float]:
    """xyxy that contains a part of this extent, without drawing it."""
    reach = np.abs(pose.matrix()) @ (half_width, half_height)
    return pose.x - reach[0], pose.y - reach[1], pose.x + reach[0], pose.y + reach[1]


def settle(brush: Brush, pose: Pose) -> Sprite:
    """Turn, shear and reduce a drawn part."""
    x1, y1, x2, y2 = bounds(*brush.half, pose)
    left, top = math.floor(x1), math.floor(y1)
    width, height = math.ceil(x2) - left, math.ceil(y2) - top
    back = np.linalg.inv(pose.matrix())
    # sheet = finer * (back @ (out / finer + corner - middle) + half)
    finer = brush.finer
    shift = finer * (back @ (left - pose.x, top - pose.y) + brush.half)
    data = (back[0, 0], back[0, 1], shift[0], back[1, 0], back[1, 1], shift[1])
    fine = brush.sheet.transform(
        (width * finer, height * finer), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR
    )
    return Sprite(fine.reduce(finer), left, top)
