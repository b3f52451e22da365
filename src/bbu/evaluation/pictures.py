"""Photos with truth at the left and prediction at the right, for a person to judge.

Boxes carry numbers and the words stand in a legend below: up to 43 descriptions of 20 characters would hide a
photo. Colour tells the kind of part (first level of the description), line style tells agreement.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from bbu.errors import UserError
from bbu.evaluation.descriptions import greedy_match, prefix
from bbu.evaluation.fonts import cjk_font
from bbu.evaluation.tags import Box, Point, place_tags
from bbu.geometry import iou_matrix, thicken
from bbu.images import load_image
from bbu.jsonl import atomic_file
from bbu.records import ObjectRow, PredictedObject, PredictionRow, Row, resolve_image

Colour = tuple[int, int, int]

PANEL, TALLEST = 720, 900  # pixels: width of a panel, height of its photo at most
MARGIN, GAP = 16, 24
LINE_HEIGHT, TEXT, TITLE, NUMBER = 22, 15, 20, 13
AGREES, WRONG, ALONE = "agrees", "wrong description", "alone"
DASHES: dict[str, tuple[float, float] | None] = {AGREES: None, WRONG: (10.0, 6.0), ALONE: (2.5, 5.0)}  # on, off
PAPER: Colour = (250, 250, 248)
INK: Colour = (24, 24, 28)
FAINT: Colour = (110, 110, 116)
PALETTE: tuple[Colour, ...] = (  # bright, since photos of cabinets are grey and dark
    (0, 165, 255), (255, 140, 0), (40, 215, 90), (255, 70, 90), (190, 110, 255), (250, 220, 30), (0, 225, 215),
    (255, 125, 205), (170, 235, 50), (110, 135, 255),
)  # fmt: skip


@dataclass(frozen=True)
class Mark:
    """One part as it is shown.

    Args:
        points: outline or line, in pixels of the photo as given.
        closed: whether the last point joins the first.
        state: AGREES, WRONG or ALONE (missed truth, false alarm).
        note: what the legend says after the description.
    """

    desc: str
    points: tuple[Point, ...]
    closed: bool
    state: str
    note: str


def draw_comparison(
    image: Image.Image,
    truth: Sequence[ObjectRow],
    predictions: Sequence[PredictedObject],
    *,
    threshold: float,
    colours: Mapping[str, Colour] | None = None,
) -> Image.Image:
    """One picture: annotated parts at the left, predicted parts at the right, a legend under each.

    A prediction agrees with a truth at IoU ≥ 0.5 and the same description, matched one to one, best score first.

    Args:
        image: the photo as displayed; truth and predictions are in its pixels.
        threshold: predictions with a lower ``score`` are counted but not drawn.
        colours: first level of the description → colour, to keep it alike between pictures.

    Raises:
        UserError: the typeface is missing.
    """
    shown = sorted((item for item in predictions if item.score >= threshold), key=lambda item: -item.score)
    left, right = compare_marks(truth, shown, image.size)
    hidden = len(predictions) - len(shown)
    palette = dict(colours or {})
    palette.update(palette_for([mark.desc for mark in (*left, *right)], palette))
    below = f", {hidden} below {threshold:.2f} not shown" if hidden else ""
    panels = (
        _panel(image, left, palette, f"truth: {_count(len(left), 'part')}", _tally(left, "missed")),
        _panel(image, right, palette, f"prediction: {_count(len(right), 'part')}{below}", _tally(right, "false alarm")),
    )
    return _join(panels)


def draw_predictions(image: Image.Image, predictions: Sequence[PredictedObject], *, threshold: float) -> Image.Image:
    """One panel: predicted parts with words and scores, best first; no truth to compare with.

    Args:
        image: the photo as displayed.
        threshold: predictions with a lower ``score`` are counted but not drawn.
    """
    shown = sorted((item for item in predictions if item.score >= threshold), key=lambda item: -item.score)
    marks = [Mark(item.desc, _corners(item.box), True, AGREES, f"{item.score:.2f}") for item in shown]
    hidden = len(predictions) - len(shown)
    below = f", {hidden} below {threshold:.2f} not shown" if hidden else ""
    palette = palette_for(mark.desc for mark in marks)
    return _join([_panel(image, marks, palette, f"{_count(len(marks), 'part')}{below}", [])])


def palette_for(descs: Iterable[str], taken: Mapping[str, Colour] | None = None) -> dict[str, Colour]:
    """A colour for each first level; distinct while the palette lasts, and mostly the same in every data set."""
    chosen = dict(taken or {})
    for name in sorted({prefix(desc, 1) for desc in descs} - set(chosen)):
        start = zlib.crc32(name.encode())
        turned = [PALETTE[(start + step) % len(PALETTE)] for step in range(len(PALETTE))]
        chosen[name] = next((colour for colour in turned if colour not in chosen.values()), turned[0])
    return chosen


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _tally(marks: Sequence[Mark], alone: str) -> list[tuple[str, str]]:
    """(state, words) for the key line above a photo."""
    number = {state: sum(mark.state == state for mark in marks) for state in DASHES}
    words = {AGREES: "agree", WRONG: "wrong description", ALONE: alone}
    return [(state, f"{number[state]} {words[state]}") for state in DASHES]


# ---------------------------------------------------------------- who agrees with whom


def compare_marks(
    truth: Sequence[ObjectRow], shown: Sequence[PredictedObject], size: tuple[int, int]
) -> tuple[list[Mark], list[Mark]]:
    """Both panels' marks; ``shown`` is sorted by score."""
    same_N, other_N = _match(truth, shown, size)
    left = []
    for index, item in enumerate(truth):
        state = AGREES if same_N[index] >= 0 else WRONG if other_N[index] >= 0 else ALONE
        partner = max(same_N[index], other_N[index]) + 1
        note = {AGREES: f"= {partner}", WRONG: f"≠ {partner}", ALONE: "missed"}[state]
        closed = item.kind != "line"
        left.append(Mark(item.desc, _outline(item), closed, state, note))
    right = []
    for index, found in enumerate(shown):
        state, note = ALONE, "false alarm"
        for matched_N, name, sign in ((same_N, AGREES, "="), (other_N, WRONG, "≠")):
            for at in np.flatnonzero(matched_N == index):
                state, note = name, f"{sign} {at + 1}"
        right.append(Mark(found.desc, _corners(found.box), True, state, f"{found.score:.2f}  {note}"))
    return left, right


def _match(
    truth: Sequence[ObjectRow], shown: Sequence[PredictedObject], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """(N,) prediction that agrees with each truth, and (N,) one that is there with other words; -1 for none."""
    truth_N4 = np.array([thicken(item.box, *size) for item in truth], dtype=np.float64).reshape(-1, 4)
    found_M4 = np.array([thicken(item.box, *size) for item in shown], dtype=np.float64).reshape(-1, 4)
    overlap_MN = iou_matrix(found_M4, truth_N4)
    scores_M = np.array([item.score for item in shown], dtype=np.float64)
    same_MN = np.array([[a.desc == b.desc for b in truth] for a in shown], dtype=bool).reshape(overlap_MN.shape)
    same_N = greedy_match(overlap_MN * same_MN, scores_M)
    rest_MN = overlap_MN * (same_N < 0)
    rest_MN[same_N[same_N >= 0]] = 0
    return same_N, greedy_match(rest_MN, scores_M)


def _outline(item: ObjectRow) -> tuple[Point, ...]:
    if item.kind == "bbox_2d":
        return _corners(item.box)
    return tuple(zip(item.points[::2], item.points[1::2], strict=True))


def _corners(box: Box) -> tuple[Point, ...]:
    x1, y1, x2, y2 = box
    return (x1, y1), (x2, y1), (x2, y2), (x1, y2)


# ---------------------------------------------------------------- one panel


def _panel(
    image: Image.Image, marks: Sequence[Mark], palette: Mapping[str, Colour], title: str, key: list[tuple[str, str]]
) -> Image.Image:
    """Title, key, photo with numbered outlines, legend."""
    scale = min(PANEL / image.width, TALLEST / image.height)
    width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    top = TITLE + LINE_HEIGHT + 14
    # a sliver of a photo still gets a field that its numbers fit into
    field = max(height, 4 * LINE_HEIGHT)
    columns, rows = _legend_grid(marks)
    panel = Image.new("RGB", (PANEL, top + field + 12 + max(1, rows) * LINE_HEIGHT), PAPER)
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
        _draw_path(draw, ring, palette[prefix(mark.desc, 1)], mark.state)
    _draw_numbers(draw, marks, outlines, palette, (0, top, PANEL, top + field))
    _draw_legend(draw, marks, palette, top + field + 12, columns)
    return panel


def _moved(points: Sequence[Point], scale: float, corner: tuple[int, int], size: tuple[int, int]) -> list[Point]:
    """Photo points in the panel, kept on the photo."""
    return [
        (corner[0] + min(max(x * scale, 1), size[0] - 2), corner[1] + min(max(y * scale, 1), size[1] - 2))
        for x, y in points
    ]


def _draw_path(draw: ImageDraw.ImageDraw, path: Sequence[Point], colour: Colour, state: str, width: int = 3) -> None:
    """A line in the style of its state, with a dark rim so that it shows on any photo."""
    for piece in _dashed(path, DASHES[state]):
        draw.line(piece, fill=(0, 0, 0), width=width + 2)
    for piece in _dashed(path, DASHES[state]):
        draw.line(piece, fill=colour, width=width)


def _dashed(path: Sequence[Point], dash: tuple[float, float] | None) -> list[list[Point]]:
    """Cut a path into dashes; None leaves it whole."""
    if dash is None:
        return [list(path)]
    pieces = []
    for (x1, y1), (x2, y2) in pairwise(path):
        length = math.hypot(x2 - x1, y2 - y1)
        if length == 0:
            continue
        for start in np.arange(0, length, sum(dash)):
            a, b = start / length, min(start + dash[0], length) / length
            pieces.append([(x1 + (x2 - x1) * t, y1 + (y2 - y1) * t) for t in (a, b)])
    return pieces


# ---------------------------------------------------------------- numbers and words


def _draw_numbers(
    draw: ImageDraw.ImageDraw,
    marks: Sequence[Mark],
    outlines: Sequence[Sequence[Point]],
    palette: Mapping[str, Colour],
    field: Box,
) -> None:
    """Numbered tags beside the outlines, with a leader line where a tag stands off."""
    font = cjk_font(NUMBER)
    anchors = [_anchor(path if mark.closed else path[:1]) for mark, path in zip(marks, outlines, strict=True)]
    sizes = [(math.ceil(font.getlength(str(number))) + 8, NUMBER + 5) for number in range(1, len(marks) + 1)]
    tags = place_tags(anchors, sizes, field)
    for mark, anchor, tag in zip(marks, anchors, tags, strict=True):
        if max(anchor[0] - tag[2], tag[0] - anchor[2], anchor[1] - tag[3], tag[1] - anchor[3]) > 3:
            ends = [((box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for box in (anchor, tag)]
            draw.line(ends, fill=palette[prefix(mark.desc, 1)], width=1)
    for number, (mark, tag) in enumerate(zip(marks, tags, strict=True), start=1):
        colour = palette[prefix(mark.desc, 1)]
        draw.rectangle((tag[0], tag[1], tag[2] - 1, tag[3] - 1), fill=colour, outline=(0, 0, 0))
        middle = ((tag[0] + tag[2]) / 2, (tag[1] + tag[3]) / 2)
        draw.text(middle, str(number), fill=_readable(colour), font=font, anchor="mm")


def _anchor(points: Sequence[Point]) -> Box:
    """What a tag stands beside: an outline's box, or the first point of a line, whose box may be mostly empty."""
    (x1, y1), (x2, y2) = np.min(points, axis=0), np.max(points, axis=0)
    return float(x1) - 3, float(y1) - 3, float(x2) + 3, float(y2) + 3


def _readable(colour: Colour) -> Colour:
    """Black or white, whichever stands out."""
    return (0, 0, 0) if 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > 120 else (255, 255, 255)


def _legend_grid(marks: Sequence[Mark]) -> tuple[int, int]:
    """Columns and rows of the legend: two columns where every entry fits into half a panel."""
    columns = 2 if all(_entry_width(mark) <= PANEL / 2 - 8 for mark in marks) else 1
    return columns, math.ceil(len(marks) / columns)


def _entry_width(mark: Mark) -> float:
    font = cjk_font(TEXT)
    return 68 + font.getlength(mark.desc) + 12 + font.getlength(mark.note)


def _draw_legend(
    draw: ImageDraw.ImageDraw, marks: Sequence[Mark], palette: Mapping[str, Colour], top: int, columns: int
) -> None:
    if not marks:
        draw.text((0, top), "no parts", fill=FAINT, font=cjk_font(TEXT))
    rows, width = math.ceil(len(marks) / columns), PANEL // columns
    for index, mark in enumerate(marks):
        x, y = index // rows * width, top + index % rows * LINE_HEIGHT
        draw.text((x + 24, y + LINE_HEIGHT / 2), str(index + 1), fill=INK, font=cjk_font(TEXT), anchor="rm")
        path = [(x + 30, y + LINE_HEIGHT // 2), (x + 62, y + LINE_HEIGHT // 2)]
        _draw_path(draw, path, palette[prefix(mark.desc, 1)], mark.state)
        room = width - 68 - 12 - 8 - cjk_font(TEXT).getlength(mark.note)
        words = _fitted(mark.desc, room)
        draw.text((x + 68, y + LINE_HEIGHT / 2), words, fill=INK, font=cjk_font(TEXT), anchor="lm")
        at = x + 68 + cjk_font(TEXT).getlength(words) + 12
        tone = FAINT if mark.state == AGREES else (176, 30, 40)
        draw.text((at, y + LINE_HEIGHT / 2), mark.note, fill=tone, font=cjk_font(TEXT), anchor="lm")


def _fitted(text: str, width: float) -> str:
    """The text, or its beginning and an ellipsis, within ``width`` pixels; one line."""
    text = " ".join(text.split())
    if cjk_font(TEXT).getlength(text) <= width:
        return text
    while text and cjk_font(TEXT).getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def _draw_key(draw: ImageDraw.ImageDraw, y: int, key: list[tuple[str, str]]) -> None:
    x = 0.0
    for state, words in key:
        _draw_path(draw, [(x, y + LINE_HEIGHT / 2), (x + 32, y + LINE_HEIGHT / 2)], FAINT, state)
        draw.text((x + 40, y + LINE_HEIGHT / 2), words, fill=INK, font=cjk_font(TEXT), anchor="lm")
        x += 40 + cjk_font(TEXT).getlength(words) + 24
    draw.text(
        (PANEL, y + LINE_HEIGHT / 2), "= ≠: number at the other side", fill=FAINT, font=cjk_font(NUMBER), anchor="rm"
    )


def _join(panels: Sequence[Image.Image]) -> Image.Image:
    height = max(panel.height for panel in panels) + 2 * MARGIN
    width = len(panels) * (PANEL + GAP) - GAP + 2 * MARGIN
    whole = Image.new("RGB", (width, height), PAPER)
    for number, panel in enumerate(panels):
        whole.paste(panel, (MARGIN + number * (PANEL + GAP), MARGIN))
    return whole


# ---------------------------------------------------------------- files


def save_pictures(
    rows: Sequence[Row],
    predictions: Sequence[PredictionRow],
    image_root: str | Path,
    output_dir: str | Path,
    *,
    limit: int = 8,
    threshold: float = 0.3,
) -> list[Path]:
    """Write a PNG for up to ``limit`` photos that have both an annotation and a prediction.

    The photos are spread evenly over all such photos in order of name, so a picture is neither the best nor the
    worst by choice. The same input gives the same files.

    Returns:
        the files, ``001_<photo>.png`` and so on, each written whole or not at all.

    Raises:
        UserError: a photo is missing, damaged, outside ``image_root`` or of another size than its row says.
    """
    predicted = {row.images[0]: row for row in predictions if row.error is None}
    known = sorted((row for row in rows if row.images[0] in predicted), key=lambda row: row.images[0])
    count = max(0, min(limit, len(known)))
    colours = palette_for(item.desc for row in known for item in row.objects)
    written = []
    for number in range(count):
        row = known[number * len(known) // count]
        name = row.images[0]
        image = load_image(resolve_image(image_root, name))
        if image.size != (row.width, row.height):
            raise UserError(
                f"photo {name!r} is {image.width}x{image.height} pixels as displayed, its row says "
                f"{row.width}x{row.height}; use the photos that the rows were converted with"
            )
        picture = draw_comparison(image, row.objects, predicted[name].predictions, threshold=threshold, colours=colours)
        path = Path(output_dir) / f"{number + 1:03d}_{Path(name).stem}.png"
        save_png(picture, path)
        written.append(path)
    return written


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a picture; the file appears whole or not at all."""
    with atomic_file(path) as temporary:
        picture.save(temporary, format="PNG")
