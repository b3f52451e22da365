"""Photos with numbered outlines, and the descriptions in a legend below.

Up to 43 descriptions of 20 characters would hide a photo, so boxes carry numbers only. Colour shows the kind of object
(first level of the description), the line's style whether prediction and truth agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from bbu.drawing.fonts import cjk_font
from bbu.drawing.outlines import Dash, corners, draw_path
from bbu.drawing.palette import FAINT, INK, PAPER, Colour, first_level, palette_for, readable_on
from bbu.drawing.tags import Box, Point, place_tags
from bbu.errors import UserError
from bbu.jsonl import atomic_file
from bbu.records import PredictedObject

LONGEST_STEM = 200  # bytes; file systems allow 255 for a whole name
PANEL, TALLEST = 720, 900  # pixels: width of a panel, height of its photo at most
MARGIN, GAP = 16, 24
LINE_HEIGHT, TEXT, TITLE, NUMBER = 22, 15, 20, 13
AGREES, WRONG, ALONE = "agrees", "wrong description", "alone"
DASHES: dict[str, Dash | None] = {AGREES: None, WRONG: (10.0, 6.0), ALONE: (2.5, 5.0)}


@dataclass(frozen=True)
class Mark:
    """One object as it is drawn.

    Args:
        points: outline or line, in pixels of the photo as given.
        closed: whether the last point joins the first.
        state: AGREES, WRONG or ALONE (a missed object or a false positive).
        note: shown after the description in the legend.
    """

    desc: str
    points: tuple[Point, ...]
    closed: bool
    state: str
    note: str


def draw_predictions(image: Image.Image, predictions: Sequence[PredictedObject], *, threshold: float) -> Image.Image:
    """One panel: predicted objects with descriptions and scores, best first.

    Args:
        image: the photo as displayed.
        threshold: predictions with a lower ``score`` are counted but not drawn.
    """
    shown = sorted((item for item in predictions if item.score >= threshold), key=lambda item: -item.score)
    marks = [Mark(item.desc, corners(item.box), True, AGREES, f"{item.score:.2f}") for item in shown]
    title = panel_title(len(marks), len(predictions) - len(shown), threshold)
    return join_panels([panel_of(image, marks, palette_for(mark.desc for mark in marks), title, [])])


def panel_title(count: int, hidden: int = 0, threshold: float = 0.0) -> str:
    """How many objects a panel shows, and how many it does not."""
    below = f", {hidden} below {threshold:.2f} not shown" if hidden else ""
    return f"{count} object{'s' * (count != 1)}{below}"


# ---------------------------------------------------------------- one panel


def panel_of(
    image: Image.Image, marks: Sequence[Mark], palette: Mapping[str, Colour], title: str, key: list[tuple[str, str]]
) -> Image.Image:
    """A panel: title, key, photo with numbered outlines, legend.

    Args:
        palette: first level of the description → colour.
        key: (state, text) pairs above the photo.
    """
    scale = min(PANEL / image.width, TALLEST / image.height)
    width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    top = TITLE + LINE_HEIGHT + 14
    # the numbers of a very flat photo still need room
    field = max(height, 4 * LINE_HEIGHT)
    columns = _legend_columns(marks)
    rows = max(1, math.ceil(len(marks) / columns))
    panel = Image.new("RGB", (PANEL, top + field + 12 + rows * LINE_HEIGHT), PAPER)
    draw = ImageDraw.Draw(panel)
    draw.text((0, 0), title, fill=INK, font=cjk_font(TITLE))
    if key:
        _draw_key(draw, TITLE + 10, key)
    draw.rectangle((0, top, PANEL - 1, top + field - 1), fill=(60, 60, 64))
    corner = ((PANEL - width) // 2, top + (field - height) // 2)
    resample = Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS
    panel.paste(image.convert("RGB").resize((width, height), resample), corner)
    outlines = [_moved(mark.points, scale, corner, (width, height)) for mark in marks]
    for mark, outline in zip(marks, outlines, strict=True):
        ring = [*outline, outline[0]] if mark.closed else outline
        draw_path(draw, ring, palette[first_level(mark.desc)], DASHES[mark.state])
    _draw_numbers(draw, marks, outlines, palette, (0, top, PANEL, top + field))
    _draw_legend(draw, marks, palette, top + field + 12, columns)
    return panel


def _moved(points: Sequence[Point], scale: float, corner: tuple[int, int], size: tuple[int, int]) -> list[Point]:
    """Photo points in pixels of the panel, clipped to the photo."""
    return [
        (corner[0] + min(max(x * scale, 1), size[0] - 2), corner[1] + min(max(y * scale, 1), size[1] - 2))
        for x, y in points
    ]


# ---------------------------------------------------------------- numbers and descriptions


def _draw_numbers(
    draw: ImageDraw.ImageDraw,
    marks: Sequence[Mark],
    outlines: Sequence[Sequence[Point]],
    palette: Mapping[str, Colour],
    field: Box,
) -> None:
    """Numbered tags beside the outlines; a leader line joins a tag that is apart from its outline."""
    font = cjk_font(NUMBER)
    anchors = [_anchor(path if mark.closed else path[:1]) for mark, path in zip(marks, outlines, strict=True)]
    sizes = [(math.ceil(font.getlength(str(number))) + 8, NUMBER + 5) for number in range(1, len(marks) + 1)]
    tags = place_tags(anchors, sizes, field)
    for mark, anchor, tag in zip(marks, anchors, tags, strict=True):
        if max(anchor[0] - tag[2], tag[0] - anchor[2], anchor[1] - tag[3], tag[1] - anchor[3]) > 3:
            ends = [((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in (anchor, tag)]
            draw.line(ends, fill=palette[first_level(mark.desc)], width=1)
    for number, (mark, tag) in enumerate(zip(marks, tags, strict=True), start=1):
        colour = palette[first_level(mark.desc)]
        draw.rectangle((tag[0], tag[1], tag[2] - 1, tag[3] - 1), fill=colour, outline=(0, 0, 0))
        middle = ((tag[0] + tag[2]) / 2, (tag[1] + tag[3]) / 2)
        draw.text(middle, str(number), fill=readable_on(colour), font=font, anchor="mm")


def _anchor(points: Sequence[Point]) -> Box:
    """Where a tag belongs: at the outline's box, or at the first point of a line, whose box may be mostly empty."""
    (x1, y1), (x2, y2) = np.min(points, axis=0), np.max(points, axis=0)
    return float(x1) - 3, float(y1) - 3, float(x2) + 3, float(y2) + 3


def _legend_columns(marks: Sequence[Mark]) -> int:
    """Two columns if every entry fits into half a panel."""
    width = cjk_font(TEXT).getlength
    return 2 if all(68 + width(mark.desc) + 12 + width(mark.note) <= PANEL / 2 - 8 for mark in marks) else 1


def _draw_legend(
    draw: ImageDraw.ImageDraw, marks: Sequence[Mark], palette: Mapping[str, Colour], top: int, columns: int
) -> None:
    if not marks:
        draw.text((0, top), "no objects", fill=FAINT, font=cjk_font(TEXT))
    rows, width = math.ceil(len(marks) / columns), PANEL // columns
    for index, mark in enumerate(marks):
        x, y = index // rows * width, top + index % rows * LINE_HEIGHT
        draw.text((x + 24, y + LINE_HEIGHT / 2), str(index + 1), fill=INK, font=cjk_font(TEXT), anchor="rm")
        path = [(x + 30, y + LINE_HEIGHT // 2), (x + 62, y + LINE_HEIGHT // 2)]
        draw_path(draw, path, palette[first_level(mark.desc)], DASHES[mark.state])
        room = width - 68 - 12 - 8 - cjk_font(TEXT).getlength(mark.note)
        description = _fitted(mark.desc, room)
        draw.text((x + 68, y + LINE_HEIGHT / 2), description, fill=INK, font=cjk_font(TEXT), anchor="lm")
        at = x + 68 + cjk_font(TEXT).getlength(description) + 12
        tone = FAINT if mark.state == AGREES else (176, 30, 40)
        draw.text((at, y + LINE_HEIGHT / 2), mark.note, fill=tone, font=cjk_font(TEXT), anchor="lm")


def _fitted(text: str, width: float) -> str:
    """The text on one line, cut with an ellipsis to ``width`` pixels."""
    text = " ".join(text.split())
    if cjk_font(TEXT).getlength(text) <= width:
        return text
    while text and cjk_font(TEXT).getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _draw_key(draw: ImageDraw.ImageDraw, y: int, key: list[tuple[str, str]]) -> None:
    x = 0.0
    for state, name in key:
        draw_path(draw, [(x, y + LINE_HEIGHT / 2), (x + 32, y + LINE_HEIGHT / 2)], FAINT, DASHES[state])
        draw.text((x + 40, y + LINE_HEIGHT / 2), name, fill=INK, font=cjk_font(TEXT), anchor="lm")
        x += 40 + cjk_font(TEXT).getlength(name) + 24
    draw.text(
        (PANEL, y + LINE_HEIGHT / 2), "= ≠: number on the other side", fill=FAINT, font=cjk_font(NUMBER), anchor="rm"
    )


def join_panels(panels: Sequence[Image.Image]) -> Image.Image:
    """Panels side by side."""
    height = max(panel.height for panel in panels) + 2 * MARGIN
    width = len(panels) * (PANEL + GAP) - GAP + 2 * MARGIN
    whole = Image.new("RGB", (width, height), PAPER)
    for number, panel in enumerate(panels):
        whole.paste(panel, (MARGIN + number * (PANEL + GAP), MARGIN))
    return whole


def picture_name(number: str, photo: str) -> str:
    """File name of a photo's picture; a name that would be too long for a file is cut."""
    stem = Path(photo).stem.encode("utf-8", "backslashreplace")[:LONGEST_STEM].decode("utf-8", "ignore")
    return f"{number}_{stem}.png"


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a picture; the file appears whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    try:
        with atomic_file(path) as temporary:
            picture.save(temporary, format="PNG")
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror or error}") from None
