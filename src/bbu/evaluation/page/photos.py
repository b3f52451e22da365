"""Photos as JPEG inside the page, within a budget of bytes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from bbu.drawing.pages import jpeg_base64
from bbu.errors import UserError
from bbu.evaluation.pictures import open_displayed
from bbu.records import Row

SMALL, LARGE = 320, 1280  # pixels of the longer side, in the gallery and in the detail view
SMALL_QUALITY, LARGE_QUALITY = 72, 80  # JPEG
# Base64 characters, so bytes of the page. With everything else a page of 500 photos stays under 40 MB.
PAGE_BUDGET = 36_000_000
LARGE_SHARE = 0.65  # of the budget; small photos have the rest to themselves
OVER_BUDGET = "the page is full; report on fewer photos"


@dataclass
class Embedded:
    """Photos by name as base64 JPEG, and the reason for each one left out.

    Attributes:
        small: every readable photo, while the budget lasts.
        large: the first of them; only where the photo is larger than SMALL.
    """

    small: dict[str, str] = field(default_factory=dict)
    large: dict[str, str] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)


def embed_photos(rows: Iterable[Row], image_root: str | Path, budget: int = PAGE_BUDGET) -> Embedded:
    """Read each photo once, as training does, and keep it while the budget lasts, in the order of ``rows``."""
    embedded, used, large_used = Embedded(), 0, 0
    left = iter(rows)
    for row in left:
        name = row.images[0]
        try:
            image = open_displayed(row, image_root)
        except UserError as error:
            embedded.problems[name] = str(error)
            continue
        small = _jpeg(image, SMALL, SMALL_QUALITY)
        if used + len(small) > budget:
            embedded.problems |= {late.images[0]: OVER_BUDGET for late in (row, *left)}
            break
        embedded.small[name], used = small, used + len(small)
        if max(image.size) > SMALL and large_used < LARGE_SHARE * budget:
            large = _jpeg(image, LARGE, LARGE_QUALITY)
            if large_used + len(large) <= LARGE_SHARE * budget and used + len(large) <= budget:
                embedded.large[name], used, large_used = large, used + len(large), large_used + len(large)
    return embedded


def _jpeg(image: Image.Image, longest: int, quality: int) -> str:
    """Base64 JPEG of the photo with its longer side at most ``longest`` pixels."""
    fitted = image.copy()
    fitted.thumbnail((longest, longest), Image.Resampling.BICUBIC, reducing_gap=2.0)
    return jpeg_base64(fitted, quality)
