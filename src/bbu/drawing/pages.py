"""HTML pages as one file each: style, data, scripts and glyphs are inside, so they open without a network."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from bbu.drawing.fonts import glyphs_data_uri

SHARED = Path(__file__).with_name("page")


def render_page(
    template: Path, *, style: str = "", scripts: Sequence[str] = (), data: Any = None, title: str = "", **values: Any
) -> str:
    """Render a template that extends ``base.html.jinja``. The same input gives the same bytes.

    Args:
        style: style sheet beside the template, added to ``base.css``; "" adds none.
        scripts: files beside the template, run in this order after ``elements.js``.
        data: JSON-able; scripts read it as ``DATA``, and its glyphs and the title's come with the page. None: no
            scripts, and the glyphs of the rendered page.
        title: shown on the page.
        values: what the template names.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader([template.parent, SHARED])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    files = [SHARED / "elements.js", *(template.with_name(name) for name in scripts)] if data is not None else []
    render = partial(
        environment.get_template(template.name).render,
        **values,
        title=title,
        style="\n".join(_read(path) for path in (SHARED / "base.css", *([template.with_name(style)] if style else []))),
        script="\n".join(map(_read, files)),
        data=script_json(data),
    )
    text = render(glyphs="") if data is None else title + json.dumps(data, ensure_ascii=False)
    return render(glyphs=glyphs_data_uri(text))


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def script_json(value: Any) -> str:
    """JSON that is safe inside a script tag and in UTF-8, whatever its texts hold.

    A "<" could end the tag or open a comment in it; half a surrogate pair cannot be written as UTF-8.
    """
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def jpeg_base64(image: Image.Image, quality: int) -> str:
    """The picture as base64 JPEG."""
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=quality, optimize=True)
    return base64.b64encode(stream.getvalue()).decode("ascii")
