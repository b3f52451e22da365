"""The background of the parts, and the effects of the camera. Nothing drawn here looks like a part."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from data_conversion.cabinet.brush import Colour, Point, pick, shade

WALLS = [(112, 116, 120), (150, 152, 150), (74, 80, 88), (134, 128, 116), (98, 108, 120)]
MARGIN = 48  # pixels drawn beyond the photo, so that the warp shows no edge


def backdrop(rng: np.random.Generator, width: int, height: int, turn: float) -> Image.Image:
    """Wall, shelves, vents and rails, seen slightly askew.

    Args:
        width, height: photo size in pixels.
        turn: the camera's roll in radians, the same as that of the parts.
    """
    wall = pick(rng, WALLS, 10)
    sheet = Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN), wall)
    draw = ImageDraw.Draw(sheet)
    _shelves(rng, draw, sheet.size, wall)
    _vents(rng, draw, sheet.size, wall)
    _rails(rng, draw, sheet.size, wall)
    return sheet.transform(
        (width, height), Image.Transform.QUAD, _askew(rng, width, height, turn), Image.Resampling.BILINEAR
    )


def _askew(rng: np.random.Generator, width: int, height: int, turn: float) -> tuple[float, ...]:
    """Source corners (NW, SW, SE, NE) of a rolled and slightly converging view."""
    cos, sin = np.cos(-turn), np.sin(-turn)
    pinch = rng.uniform(-0.05, 0.05) * width
    corners = np.array([(-pinch, 0.0), (pinch, height), (width - pinch, height), (width + pinch, 0.0)])
    centred = corners - (width / 2, height / 2)
    rolled = centred @ np.array([[cos, sin], [-sin, cos]])
    middle = np.array((width / 2 + MARGIN, height / 2 + MARGIN))
    inside = np.clip(rolled + middle, 1, 2 * middle - 1)
    return tuple(float(value) for value in inside.ravel())


def _shelves(rng: np.random.Generator, draw: ImageDraw.ImageDraw, size: tuple[int, int], wall: Colour) -> None:
    y = float(rng.uniform(0, 60))
    while y < size[1]:
        tone = rng.uniform(0.72, 1.12)
        step = rng.uniform(50, 130)
        draw.rectangle((0, y, size[0], y + step), fill=shade(wall, tone))
        draw.rectangle((0, y, size[0], y + 2), fill=shade(wall, tone * 1.3))
        draw.rectangle((0, y + 2, size[0], y + 5), fill=shade(wall, tone * 0.55))
        y += step


def _vents(rng: np.random.Generator, draw: ImageDraw.ImageDraw, size: tuple[int, int], wall: Colour) -> None:
    """Fields of thin slits or of small round holes."""
    for _ in range(int(rng.integers(0, 4))):
        x, y = rng.uniform(0, size[0] * 0.8), rng.uniform(0, size[1] * 0.85)
        columns, rows = int(rng.integers(4, 14)), int(rng.integers(2, 6))
        slit = rng.random() < 0.5
        for i in range(columns):
            for j in range(rows):
                a, b = (x + i * 6, y + j * 16) if slit else (x + i * 7, y + j * 7)
                spot = (a, b, a + 2, b + 11) if slit else (a, b, a + 3, b + 3)
                draw.rounded_rectangle(spot, 1.5, fill=shade(wall, 0.4))


def _rails(rng: np.random.Generator, draw: ImageDraw.ImageDraw, size: tuple[int, int], wall: Colour) -> None:
    """Upright 19-inch rails with square holes, at one or both sides."""
    for side in (0, 1):
        if rng.random() < 0.35:
            continue
        breadth = int(rng.integers(14, 26))
        x = MARGIN + int(rng.integers(-6, 10)) if side == 0 else size[0] - MARGIN - breadth - int(rng.integers(-6, 10))
        tone = rng.uniform(1.05, 1.35)
        draw.rectangle((x, 0, x + breadth, size[1]), fill=shade(wall, tone))
        draw.line((x, 0, x, size[1]), fill=shade(wall, tone * 1.25), width=2)
        draw.line((x + breadth, 0, x + breadth, size[1]), fill=shade(wall, 0.5), width=2)
        for y in range(int(rng.integers(0, 20)), size[1], int(rng.integers(17, 26))):
            draw.rectangle((x + breadth // 2 - 3, y, x + breadth // 2 + 3, y + 6), fill=shade(wall, 0.35))


def loose_wires(rng: np.random.Generator, image: Image.Image, starts: list[Point]) -> None:
    """Thin smooth wires from the plugs out of the photo, and a few others: too thin to look like a protected run."""
    draw = ImageDraw.Draw(image)
    extra = [(float(rng.uniform(0, image.width)), -5.0) for _ in range(int(rng.integers(0, 3)))]
    for x, y in [*starts, *extra]:
        colour = pick(rng, [(220, 196, 60), (40, 40, 44), (60, 110, 170), (196, 110, 60)], 16)
        end_x, end_y = x + rng.uniform(-0.35, 0.35) * image.width, image.height + 12.0
        bend = rng.uniform(-30, 30)
        t = np.linspace(0, 1, 24)
        xs = x + (end_x - x) * t**2 + bend * np.sin(np.pi * t)
        ys = y + (end_y - y) * t
        path = [(float(a), float(b)) for a, b in zip(xs, ys, strict=True)]
        draw.line([(a + 2, b + 2) for a, b in path], fill=(34, 34, 36), width=2)
        draw.line(path, fill=colour, width=int(rng.integers(2, 4)), joint="curve")


def expose(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Lamp light, colour cast, slight defocus and sensor noise."""
    softness = float(rng.choice([0.0, 0.0, 0.4, 0.6, 0.8]))
    if softness:
        image = image.filter(ImageFilter.GaussianBlur(softness))
    pixels = np.asarray(image, dtype=np.float32)
    height, width = pixels.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    lamp_x, lamp_y = rng.uniform(-1, 1, 2)
    slope_x, slope_y = rng.uniform(-0.18, 0.18, 2)
    light = 0.9 + slope_x * x + slope_y * y
    light += rng.uniform(0.0, 0.4) * np.exp(-((x - lamp_x) ** 2 + (y - lamp_y) ** 2) / 0.5)
    light -= rng.uniform(0.0, 0.16) * (x**2 + y**2)
    cast = rng.uniform(0.92, 1.08, 3) * rng.uniform(0.82, 1.1)
    pixels = pixels * light[..., None].astype(np.float32) * cast.astype(np.float32) + _grain(rng, height, width)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _grain(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """(height, width, 3) noise, partly common to the channels; one draw, read at three offsets for speed."""
    flat = rng.standard_normal(height * width + 2 * 997, dtype=np.float32)
    planes = [flat[shift : shift + height * width].reshape(height, width) for shift in (0, 997, 2 * 997)]
    common, tint = np.float32(rng.uniform(1.5, 6.0)), np.float32(rng.uniform(0.5, 3.0))
    return np.stack([planes[0] * common + plane * tint for plane in planes], axis=-1)
