"""The typeface of pictures and pages: Noto Sans SC (OFL-1.1), from the pylopdf-fonts-zh-cn package.

It is read from the installed package, never from the network or the machine's fonts, so every machine draws the same
pictures.
"""

from __future__ import annotations

import base64
import importlib
import io
from functools import cache, lru_cache

from PIL import ImageFont

from bbu.errors import UserError

PACKAGE = "pylopdf_fonts_zh_cn"
REQUIREMENT = "pylopdf-fonts-zh-cn==0.1.1"
SUBSET = {  # fontTools' options: as small as it gets, and the same bytes every time
    "layout_features": [], "hinting": False, "desubroutinize": True, "name_IDs": [], "recalc_timestamp": False,
    "flavor": "woff",
}  # fmt: skip


@cache
def cjk_font(size: int) -> ImageFont.FreeTypeFont:
    """The typeface at ``size`` pixels: Chinese, Latin, digits and common signs.

    Raises:
        UserError: the font's package is not installed, or its file cannot be read.
    """
    try:
        path = importlib.import_module(PACKAGE).sans_path()
    except ImportError:
        raise UserError(f"pictures need a Chinese typeface, which is missing: pip install {REQUIREMENT}") from None
    try:
        # basic layout: the same glyph positions whether or not the machine has a text-shaping library
        return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        raise UserError(f"font file {path} cannot be read ({error}); reinstall it: pip install {REQUIREMENT}") from None


def glyphs_data_uri(text: str) -> str:
    """The typeface cut down to the non-ASCII characters of ``text``, as a WOFF data URI.

    About 200 bytes per Chinese character, where the whole typeface has 8 MB. "" if the text is ASCII or fontTools is
    not installed; a reader without Chinese fonts then sees boxes.

    Raises:
        UserError: the typeface's package is not installed.
    """
    return _subset("".join(sorted({glyph for glyph in text if ord(glyph) > 127})))


@lru_cache(maxsize=1)  # the training log asks for nearly the same glyphs at every update
def _subset(glyphs: str) -> str:
    if not glyphs:
        return ""
    try:
        from fontTools import subset
    except ImportError:
        return ""
    options = subset.Options(**SUBSET)
    font = subset.load_font(str(cjk_font(16).path), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=map(ord, glyphs))
    subsetter.subset(font)
    stream = io.BytesIO()
    subset.save_font(font, stream, options)
    return "data:font/woff;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
