"""Screws, ground lugs and CPRI plugs. ``u`` is the part's nominal width in photo pixels (28 or more).

States differ in shape (a gap, a tilt, a rough edge), so that the difference survives colour casts and JPEG.
"""

from __future__ import annotations

import math

import numpy as np

from data_conversion.cabinet.brush import Brush, Colour, Point, metal, pick, shade

DARK: Colour = (26, 26, 28)
COPPER: Colour = (206, 112, 48)
RUST = [(120, 62, 28), (148, 78, 34), (92, 46, 22)]
SLEEVES = [(34, 34, 36), (58, 120, 66), (176, 50, 42), (206, 176, 52), (52, 80, 150)]
PLUGS = [(64, 104, 168), (170, 172, 176), (196, 186, 150), (72, 140, 112), (56, 58, 62)]

SCREW_REACH = (0.62, 0.62)  # half width and height, in units of u
LUG_REACH = (0.55, 1.15)
PLUG_REACH = (0.6, 1.12)


def _recess(brush: Brush, x: float, y: float, size: float, turn: float, squash: float, across: float) -> None:
    """A cross recess; ``squash`` < 1 flattens it along the direction ``across`` (a tilted head)."""
    for extra in (0.0, math.pi / 2):
        dx, dy = math.cos(turn + extra) * size, math.sin(turn + extra) * size
        along = dx * math.cos(across) + dy * math.sin(across)
        dx -= (1 - squash) * along * math.cos(across)
        dy -= (1 - squash) * along * math.sin(across)
        brush.stroke([(x - dx, y - dy), (x + dx, y + dy)], DARK, size * 0.48)


def tight_screw(rng: np.random.Generator, u: float) -> Brush:
    """Head flush and centred on its washer, thin even shadow, upright recess."""
    colour = metal(rng)
    brush = Brush(u * SCREW_REACH[0], u * SCREW_REACH[1])
    _washer(brush, u, colour)
    brush.disc(0, 0, 0.37 * u, shade(colour, 0.4))
    brush.disc(0, 0, 0.34 * u, shade(colour, 1.0))
    brush.disc(-0.04 * u, -0.05 * u, 0.25 * u, shade(colour, 1.22))
    _recess(brush, 0, 0, 0.22 * u, rng.uniform(-0.12, 0.12), 1.0, 0.0)
    return brush


def loose_screw(rng: np.random.Generator, u: float) -> Brush:
    """Head raised and tilted off its washer: dark crescent, bare thread, recess at an oblique angle."""
    colour = metal(rng)
    brush = Brush(u * SCREW_REACH[0], u * SCREW_REACH[1])
    _washer(brush, u, shade(colour, 0.92))
    away = rng.uniform(0, 2 * math.pi)
    cos, sin = math.cos(away), math.sin(away)
    brush.disc(-0.06 * u * cos, -0.06 * u * sin, 0.4 * u, DARK)
    for step in range(6):  # the thread: light and dark rings across the shank
        at = (-0.2 + 0.085 * step) * u
        ring = shade(colour, 1.25) if step % 2 == 0 else shade(colour, 0.3)
        brush.oval(at * cos, at * sin, 0.055 * u, 0.17 * u, ring, away)
    x, y = 0.27 * u * cos, 0.27 * u * sin
    brush.oval(x, y, 0.28 * u, 0.35 * u, shade(colour, 0.45), away)
    brush.oval(x + 0.03 * u * cos, y + 0.03 * u * sin, 0.25 * u, 0.33 * u, shade(colour, 1.15), away)
    _recess(brush, x, y, 0.2 * u, math.pi / 4 + rng.uniform(-0.2, 0.2), 0.75, away)
    return brush


def _washer(brush: Brush, u: float, colour: Colour) -> None:
    brush.disc(0, 0, 0.5 * u, shade(colour, 0.5))
    brush.disc(0, 0, 0.465 * u, shade(colour, 0.85))


def _hexagon(radius: float, turn: float) -> list[Point]:
    return [(radius * math.cos(turn + i * math.pi / 3), radius * math.sin(turn + i * math.pi / 3)) for i in range(6)]


def _lug(rng: np.random.Generator, u: float, bare: float, rusty: bool = False) -> Brush:
    """Hex screw on a ring terminal whose barrel runs down into a sleeve, ``bare`` · u below the barrel."""
    colour, sleeve = metal(rng), pick(rng, SLEEVES)
    brush = Brush(u * LUG_REACH[0], u * LUG_REACH[1])
    top = -0.6 * u  # middle of the ring
    for radius, wide, start, narrow, tone in ((0.5, 0.42, 0.2, 0.24, 0.5), (0.46, 0.36, 0.25, 0.2, 1.05)):
        brush.disc(0, top, radius * u, shade(colour, tone))
        y = top + start * u
        brush.shape([(-wide * u, y), (wide * u, y), (narrow * u, 0.3 * u), (-narrow * u, 0.3 * u)], shade(colour, tone))
    brush.stroke([(-0.12 * u, 0.05 * u), (-0.12 * u, 0.3 * u)], shade(colour, 1.3), 0.06 * u)
    _sleeve(rng, brush, u, 0.18 * u + bare * u, sleeve)
    if bare:
        _strands(rng, brush, u, 0.14 * u, 0.22 * u + bare * u)
    turn = rng.uniform(0, math.pi / 3)
    if rusty:
        _rusty_head(rng, brush, u, top, turn)
        return brush
    brush.shape([(x, y + top) for x, y in _hexagon(0.36 * u, turn)], shade(colour, 0.42))
    brush.shape([(x, y + top) for x, y in _hexagon(0.32 * u, turn)], shade(colour, 0.9))
    brush.disc(0, top, 0.19 * u, shade(colour, 1.2))
    return brush


def _sleeve(rng: np.random.Generator, brush: Brush, u: float, start: float, colour: Colour) -> None:
    end = 0.86 * u
    brush.bar(-0.15 * u, end - 0.1 * u, 0.15 * u, 1.1 * u, shade(colour, 0.55))
    brush.bar(-0.27 * u, start, 0.27 * u, end, colour, 0.06 * u)
    brush.bar(-0.17 * u, start + 0.05 * u, -0.06 * u, end - 0.05 * u, shade(colour, 1.5), 0.04 * u)
    brush.stroke([(-0.26 * u, start + 0.06 * u), (0.26 * u, start + 0.06 * u)], shade(colour, 0.5), 0.05 * u)


def _strands(rng: np.random.Generator, brush: Brush, u: float, start: float, end: float) -> None:
    """Bulging bare wires with dark gaps between them, a few sprung out sideways."""
    brush.oval(0, (start + end) / 2, 0.3 * u, (end - start) * 0.55, shade(COPPER, 0.3))
    for side in np.linspace(-1, 1, 7):
        bulge = 0.3 * side * u + rng.uniform(-0.02, 0.02) * u
        path = [(0.16 * side * u, start), (bulge, (start + end) / 2), (0.18 * side * u, end)]
        brush.stroke(path, shade(COPPER, rng.uniform(0.85, 1.35)), 0.05 * u)
    for side in (-1, 1):
        tip = (side * rng.uniform(0.38, 0.5) * u, (start + end) / 2 + rng.uniform(0.0, 0.15) * u)
        brush.stroke([(0.2 * side * u, start + 0.05 * u), tip], shade(COPPER, 1.1), 0.05 * u)


def _rusty_head(rng: np.random.Generator, brush: Brush, u: float, top: float, turn: float) -> None:
    """A head eaten to a ragged lump, with crust and speckle over ring and tongue."""
    ragged = []
    for step in range(22):
        radius = rng.uniform(0.27, 0.43) * u
        angle = turn + step * 2 * math.pi / 22
        ragged.append((radius * math.cos(angle), top + radius * math.sin(angle)))
    brush.shape(ragged, shade(RUST[0], 0.6))
    brush.shape([(x * 0.85, top + (y - top) * 0.85) for x, y in ragged], RUST[1])
    for _ in range(34):
        angle, radius = rng.uniform(0, 2 * math.pi), math.sqrt(rng.uniform(0, 1)) * 0.47 * u
        speck = rng.uniform(0.02, 0.06) * u
        tone = shade(RUST[int(rng.integers(3))], rng.uniform(0.6, 1.5))
        brush.disc(radius * math.cos(angle), top + radius * math.sin(angle), speck, tone)
    for _ in range(9):
        x, y = rng.uniform(-0.18, 0.18) * u, rng.uniform(-0.2, 0.14) * u
        brush.disc(x, y, rng.uniform(0.03, 0.06) * u, RUST[int(rng.integers(3))])


def sound_lug(rng: np.random.Generator, u: float) -> Brush:
    """The sleeve meets the barrel, the hex head is clean."""
    return _lug(rng, u, bare=0.0)


def bare_lug(rng: np.random.Generator, u: float) -> Brush:
    """Copper strands show between barrel and sleeve."""
    return _lug(rng, u, bare=rng.uniform(0.3, 0.4))


def rusty_lug(rng: np.random.Generator, u: float) -> Brush:
    """The head and ring are rusty, with a rough edge."""
    return _lug(rng, u, bare=0.0, rusty=True)


def _cage(brush: Brush, u: float, colour: Colour) -> None:
    """The metal cage of a CPRI port with its dark opening; the plug comes from below."""
    brush.bar(-0.52 * u, -1.0 * u, 0.52 * u, -0.22 * u, shade(colour, 0.5), 0.05 * u)
    brush.bar(-0.48 * u, -0.96 * u, 0.48 * u, -0.26 * u, shade(colour, 1.05))
    brush.bar(-0.38 * u, -0.84 * u, 0.38 * u, -0.26 * u, DARK)


def _plug(brush: Brush, u: float, top: float, length: float, colour: Colour, lean: float) -> None:
    """Body, latch and boot from ``top`` down; ``lean`` is the sideways drift per pixel of length."""

    def slab(left: float, y1: float, right: float, y2: float, fill: Colour) -> None:
        a, b = lean * (y1 - top), lean * (y2 - top)
        brush.shape([(left + a, y1), (right + a, y1), (right + b, y2), (left + b, y2)], fill)

    body = top + length * 0.62
    slab(-0.17 * u, body - 1, 0.17 * u, top + length, shade(colour, 0.5))
    slab(-0.36 * u, top, 0.36 * u, body, shade(colour, 0.6))
    slab(-0.31 * u, top + 0.04 * u, 0.31 * u, body - 0.04 * u, colour)
    slab(-0.11 * u, top + 0.06 * u, 0.11 * u, body - 0.1 * u, shade(colour, 1.4))
    slab(-0.24 * u, body - 0.16 * u, 0.24 * u, body - 0.09 * u, shade(colour, 0.45))
    for step in range(3):
        y = body + (0.25 + 0.25 * step) * (top + length - body)
        slab(-0.2 * u, y, 0.2 * u, y + 0.05 * u, shade(colour, 0.3))


def seated_plug(rng: np.random.Generator, u: float) -> Brush:
    """The plug fills its cage up to the latch."""
    brush = Brush(u * PLUG_REACH[0], u * PLUG_REACH[1])
    _cage(brush, u, metal(rng))
    _plug(brush, u, -0.86 * u, rng.uniform(1.75, 1.9) * u, pick(rng, PLUGS), 0.0)
    return brush


def half_out_plug(rng: np.random.Generator, u: float) -> Brush:
    """The cage is dark and open; only a narrow tongue reaches the leaning plug."""
    steel = metal(rng)
    brush = Brush(u * PLUG_REACH[0], u * PLUG_REACH[1])
    _cage(brush, u, steel)
    lean = float(rng.choice([-1, 1])) * rng.uniform(0.1, 0.2)
    brush.bar(-0.13 * u, -0.62 * u, 0.13 * u, 0.0, shade(steel, 1.25))
    brush.bar(-0.03 * u, -0.62 * u, 0.03 * u, 0.0, shade(steel, 0.5))
    _plug(brush, u, -0.1 * u, rng.uniform(1.05, 1.15) * u, pick(rng, PLUGS), lean)
    return brush
