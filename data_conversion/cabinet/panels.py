"""BBU units, baffles and stickers. Sizes are full width and height in photo pixels."""

from __future__ import annotations

import math

import numpy as np

from data_conversion.cabinet.brush import Brush, Colour, Point, metal, pick, shade

BODIES = [(58, 62, 68), (176, 180, 184), (92, 98, 106), (132, 138, 146)]
PLATES = [(150, 154, 158), (84, 88, 94), (188, 190, 188), (116, 124, 134)]
PAPERS = [(238, 238, 232), (240, 226, 150), (206, 224, 236), (226, 232, 214)]
LOGOS = [(206, 48, 48), (238, 238, 240), (60, 130, 210)]
HOLLOW: Colour = (16, 17, 20)


def _chassis(
    rng: np.random.Generator, width: float, height: float, ear: float, row: float
) -> tuple[Brush, Colour, tuple[float, float, float, float]]:
    """A unit's body with an ear at either side, its colour, and the xyxy of its front above the port row."""
    body = pick(rng, BODIES)
    brush = Brush(width / 2, height / 2)
    x, y = width / 2, height / 2
    brush.bar(-x, -y, x, y, shade(body, 0.5), 2)
    brush.bar(-x + 1.2, -y + 1.2, x - 1.2, y - 1.2, shade(body, 1.25), 2)
    brush.bar(-x + ear, -y, x - ear, y, shade(body, 0.4))
    brush.bar(-x + ear + 1.5, -y + 1.5, x - ear - 1.5, y - 1.5, body)
    return brush, body, (-x + ear + 4, -y + 4, x - ear - 4, y - row)


def huawei_unit(rng: np.random.Generator, width: float, height: float, ear: float, row: float) -> Brush:
    """Wide horizontal boards in two columns and a fan of petals.

    Args:
        ear: width of the mounting ears.
        row: height kept free at the bottom for CPRI cages.
    """
    brush, body, (x1, y1, x2, y2) = _chassis(rng, width, height, ear, row)
    logo = min(y2 - y1, (x2 - x1) * 0.3)
    left, rows = x1 + logo + 3, max(2, round((y2 - y1) / 11))
    middle = (left + x2) / 2
    for a, b in ((left, middle - 1.5), (middle + 1.5, x2)):
        for i in range(rows):
            top, bottom = y1 + (y2 - y1) * i / rows, y1 + (y2 - y1) * (i + 1) / rows - 1.5
            brush.bar(a, top, b, bottom, shade(body, 0.55))
            brush.bar(a + 1, top + 1, b - 1, bottom - 1, shade(body, 0.85))
            brush.bar(a + 3, (top + bottom) / 2 - 1, a + (b - a) * 0.55, (top + bottom) / 2 + 1, shade(body, 0.3))
    ink = pick(rng, LOGOS)
    centre_x, centre_y, reach = x1 + logo / 2, y1 + logo * 0.82, logo * 0.62
    for step in range(7):
        angle = math.pi * (1.06 + 0.88 * step / 6)
        at_x, at_y = centre_x + reach * 0.6 * math.cos(angle), centre_y + reach * 0.6 * math.sin(angle)
        brush.oval(at_x, at_y, reach * 0.4, reach * 0.13, ink, angle)
    return brush


def zte_unit(rng: np.random.Generator, width: float, height: float, ear: float, row: float) -> Brush:
    """Upright blades with handles and a stepped, angular mark. Arguments as huawei_unit."""
    brush, body, (x1, y1, x2, y2) = _chassis(rng, width, height, ear, row)
    logo = min(y2 - y1, (x2 - x1) * 0.3)
    right = x2 - logo - 3
    blades = max(3, round((right - x1) / 14))
    for i in range(blades):
        a, b = x1 + (right - x1) * i / blades, x1 + (right - x1) * (i + 1) / blades - 1.5
        brush.bar(a, y1, b, y2, shade(body, 0.5))
        brush.bar(a + 1, y1 + 1, b - 1, y2 - 1, shade(body, 0.9))
        brush.bar(a + 2.5, y1 + 2.5, b - 2.5, y1 + 6, shade(body, 1.45))
        brush.bar((a + b) / 2 - 1, y1 + 9, (a + b) / 2 + 1, y2 - 4, shade(body, 0.3))
    ink, side = pick(rng, LOGOS), logo * 0.8
    ox, oy = x2 - logo / 2 - side / 2, (y1 + y2) / 2 - side / 2
    zigzag: list[Point] = [(0, 0), (1, 0), (1, 0.24), (0.42, 0.76), (1, 0.76), (1, 1), (0, 1), (0, 0.76), (0.58, 0.24)]
    brush.shape([(ox + x * side, oy + y * side) for x, y in [*zigzag, (0, 0.24)]], ink)
    return brush


def fitted_baffle(rng: np.random.Generator, width: float, height: float) -> Brush:
    """A louvred plate that closes its slot, with a pull handle."""
    plate = pick(rng, PLATES)
    brush = Brush(width / 2, height / 2)
    x, y = width / 2, height / 2
    brush.bar(-x, -y, x, y, shade(plate, 0.5), 1.5)
    brush.bar(-x + 1.5, -y + 1.5, x - 1.5, y - 1.5, plate)
    brush.bar(-x + 1.5, -y + 1.5, x - 1.5, -y + 3.5, shade(plate, 1.3))
    handle = min(width * 0.14, 22)
    count = max(3, round(height / 9))
    for a, b in ((-x + 7, -handle - 4), (handle + 4, x - 7)):
        for i in range(count):
            at = -y + 6 + (height - 11) * (i + 0.3) / count
            brush.bar(a, at, b, at + 2.2, shade(plate, 0.35), 1)
            brush.bar(a, at + 2.2, b, at + 3.4, shade(plate, 1.35))
    brush.bar(-handle, -height * 0.22, handle, height * 0.22, shade(plate, 0.6), 3)
    brush.bar(-handle + 2, -height * 0.22 + 2, handle - 2, height * 0.02, shade(plate, 1.25), 2)
    return brush


def missing_baffle(rng: np.random.Generator, width: float, height: float) -> Brush:
    """An open slot: its frame, the four receding edges and dark depth."""
    frame = pick(rng, PLATES)
    brush = Brush(width / 2, height / 2)
    x, y, rim = width / 2, height / 2, min(4.0, height * 0.1)
    brush.bar(-x, -y, x, y, shade(frame, 0.55))
    brush.bar(-x + 1, -y + 1, x - 1, y - 1, shade(frame, 1.15))
    brush.bar(-x + rim, -y + rim, x - rim, y - rim, shade(frame, 0.28))
    deep_x, deep_y = x * rng.uniform(0.72, 0.82), y * rng.uniform(0.45, 0.6)
    drift = rng.uniform(-0.05, 0.05) * width
    brush.bar(drift - deep_x, -deep_y, drift + deep_x, deep_y, HOLLOW)
    for sx, sy in ((-1, -1), (1, -1), (-1, 1), (1, 1)):
        brush.stroke([(sx * (x - rim), sy * (y - rim)), (drift + sx * deep_x, sy * deep_y)], shade(frame, 0.75), 1)
    brush.bar(-x + rim, y - rim - 1.5, x - rim, y - rim, shade(frame, 0.6))
    return brush


def _paper(rng: np.random.Generator, width: float, height: float) -> tuple[Brush, Colour]:
    paper = pick(rng, PAPERS, 6)
    brush = Brush(width / 2, height / 2)
    brush.bar(-width / 2, -height / 2, width / 2, height / 2, shade(paper, 0.72))
    brush.bar(-width / 2 + 1, -height / 2 + 1, width / 2 - 1, height / 2 - 1, paper)
    return brush, paper


def legible_label(rng: np.random.Generator, width: float, height: float) -> Brush:
    """Rows of crisp glyph-like marks."""
    brush, _ = _paper(rng, width, height)
    ink = pick(rng, [(24, 24, 30), (24, 40, 110), (120, 24, 24)], 6)
    rows = 2 if height < 34 else 3
    cell = (height - 5) / rows
    for row in range(rows):
        y, x = -height / 2 + 3 + row * cell, -width / 2 + 4
        end = width / 2 - 3 - (rng.uniform(0.0, 0.3) * width if row == rows - 1 else 0)
        while x + cell * 0.72 < end:
            _glyph(rng, brush, x, y, cell * 0.68, cell * 0.76, ink)
            x += cell * 0.86
    return brush


def _glyph(
    rng: np.random.Generator, brush: Brush, x: float, y: float, width: float, height: float, ink: Colour
) -> None:
    """Three to five straight strokes in a cell that look like writing."""
    for _ in range(int(rng.integers(2, 4))):
        at = y + rng.uniform(0.05, 0.95) * height
        brush.stroke([(x, at), (x + width * rng.uniform(0.7, 1), at)], ink, 1.1)
    for _ in range(int(rng.integers(1, 3))):
        at = x + rng.uniform(0.1, 0.9) * width
        brush.stroke([(at, y), (at + rng.uniform(-0.15, 0.15) * width, y + height)], ink, 1.1)


def illegible_label(rng: np.random.Generator, width: float, height: float) -> Brush:
    """Creased or smeared, and torn: no mark can be read. The tear in one long side leaves the corners in place."""
    brush, paper = _paper(rng, width, height)
    x, y = width / 2, height / 2
    smeared = rng.random() < 0.5
    if smeared:
        for _ in range(7):
            at, start = rng.uniform(-0.32, 0.32) * height, rng.uniform(-0.42, 0.0) * width
            length, thick = rng.uniform(0.3, 0.5) * width, rng.uniform(0.08, 0.16) * height
            tone = shade(paper, rng.uniform(0.5, 0.8))
            brush.oval(start + length / 2, at, length / 2, thick, tone, rng.uniform(-0.15, 0.15))
    else:
        for _ in range(4):  # creases and stains
            at = rng.uniform(-0.8, 0.8) * x
            brush.stroke([(at, -y + 2), (at + rng.uniform(-0.3, 0.3) * x, y - 2)], shade(paper, 0.82), 1.2)
        brush.oval(rng.uniform(-0.4, 0.4) * x, 0, 0.25 * x, 0.4 * y, shade(paper, 0.88))
    _tear(rng, brush, x, y)
    return brush


def _tear(rng: np.random.Generator, brush: Brush, x: float, y: float) -> None:
    """Tear a jagged piece out of one long edge."""
    side, middle = float(rng.choice([-1, 1])), rng.uniform(-0.25, 0.25) * x
    breadth, depth = rng.uniform(0.4, 0.62) * x, rng.uniform(0.8, 1.15) * y
    edge: list[Point] = []
    for step in range(9):
        t = step / 4 - 1  # -1 … 1 along the edge, deepest in the middle
        wobble = rng.uniform(-0.16, 0.16) * y if 0 < step < 8 else 0.0
        edge.append((middle + t * breadth, side * (y + 2 - (1 - abs(t) ** 1.6) * (depth + 2) + wobble)))
    brush.stroke(edge, (250, 250, 250), 2.2)
    brush.cut(edge)


def ground_bar(rng: np.random.Generator, width: float, height: float) -> Brush:
    """The bar that ground lugs are screwed to, with empty round holes; not a part."""
    colour = metal(rng)
    brush = Brush(width / 2, height / 2)
    brush.bar(-width / 2, -height / 2, width / 2, height / 2, shade(colour, 0.45), 2)
    brush.bar(-width / 2 + 1, -height / 2 + 1, width / 2 - 1, height / 2 - 1, shade(colour, 0.78), 2)
    brush.bar(-width / 2 + 1, -height / 2 + 1, width / 2 - 1, -height / 2 + 3, shade(colour, 1.15))
    return brush
