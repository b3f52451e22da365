"""The glyphs a page needs, for readers whose machine has no Chinese typeface."""

from __future__ import annotations

import base64
import io

from bbu.evaluation.fonts import cjk_font


def glyphs_data_uri(text: str) -> str:
    """Noto Sans SC cut down to the characters of ``text`` that are not ASCII, as a WOFF data URI.

    Some 200 bytes a Chinese character, where the whole typeface has 8 MB. "" where the text is ASCII, or where
    fontTools is not installed: then the reader's own typefaces have to do.

    Raises:
        UserError: the typeface's package is not installed.
    """
    wanted = {ord(glyph) for glyph in text if ord(glyph) > 127}
    if not wanted:
        return ""
    try:
        from fontTools import subset
    except ImportError:
        return ""
    options = subset.Options(
        layout_features=[], hinting=False, desubroutinize=True, name_IDs=[], recalc_timestamp=False, flavor="woff"
    )
    font = subset.load_font(str(cjk_font(16).path), options)
    subsetter = subset.Subsetter(options)
    subsetter.populate(unicodes=wanted)
    subsetter.subset(font)
    stream = io.BytesIO()
    subset.save_font(font, stream, options)
    return "data:font/woff;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
