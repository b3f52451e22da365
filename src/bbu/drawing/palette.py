"""Colours of boxes in pictures and on pages."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping

Colour = tuple[int, int, int]

PAPER: Colour = (250, 250, 248)
INK: Colour = (24, 24, 28)
FAINT: Colour = (110, 110, 116)
PALETTE: tuple[Colour, ...] = (  # bright, since photos of cabinets are grey and dark
    (0, 165, 255), (255, 140, 0), (40, 215, 90), (255, 70, 90), (190, 110, 255), (250, 220, 30), (0, 225, 215),
    (255, 125, 205), (170, 235, 50), (110, 135, 255),
)  # fmt: skip


def first_level(desc: str) -> str:
    """The kind of object, which chooses the colour: the first level of a description."""
    return desc.partition("/")[0]


def palette_for(descs: Iterable[str], taken: Mapping[str, Colour] | None = None) -> dict[str, Colour]:
    """First level → colour; distinct while the palette lasts, and mostly the same in every data set."""
    chosen = dict(taken or {})
    for name in sorted({first_level(desc) for desc in descs} - set(chosen)):
        start = zlib.crc32(name.encode())
        turned = [PALETTE[(start + step) % len(PALETTE)] for step in range(len(PALETTE))]
        chosen[name] = next((colour for colour in turned if colour not in chosen.values()), turned[0])
    return chosen


def readable_on(colour: Colour) -> Colour:
    """Black or white, whichever has more contrast."""
    return (0, 0, 0) if 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > 120 else (255, 255, 255)
