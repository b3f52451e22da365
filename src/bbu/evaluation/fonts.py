"""A typeface that can write the descriptions: Noto Sans SC (OFL-1.1), from the pylopdf-fonts-zh-cn package.

It is read from the installed package, never from the network or from whatever fonts the machine happens to have,
so the same pictures come out everywhere.
"""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path

from PIL import ImageFont

from bbu.errors import UserError

PACKAGE = "pylopdf_fonts_zh_cn"
REQUIREMENT = "pylopdf-fonts-zh-cn==0.1.1"


@cache
def cjk_font(size: int) -> ImageFont.FreeTypeFont:
    """The typeface at ``size`` pixels: Chinese, Latin, digits and common signs.

    Raises:
        UserError: the font's package is not installed, or its file cannot be read.
    """
    path = _font_file()
    try:
        # basic layout: the same glyph positions whether or not the machine has a text-shaping library
        return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        raise UserError(f"font file {path} cannot be read ({error}); reinstall it: pip install {REQUIREMENT}") from None


def _font_file() -> Path:
    try:
        package = importlib.import_module(PACKAGE)
    except ImportError:
        raise UserError(f"pictures need a Chinese typeface, which is missing: pip install {REQUIREMENT}") from None
    return Path(package.sans_path())
