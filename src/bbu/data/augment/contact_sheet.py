"""Contact sheet of augmented training photos: a row for each photo, a column for each epoch.

Outlines carry the number of their description, and a legend below lists the descriptions: text on a photo with many
objects would hide it. Numbers and colours are the same in all views of a photo, so a swapped word is easy to spot.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from bbu.data.augment import Augmenter
from bbu.data.photo import Photo, open_photo
from bbu.drawing.fonts import cjk_font
from bbu.drawing.palette import INK, PAPER, Colour, palette_for
from bbu.drawing.tags import Box, Point, place_tags
from bbu.errors import UserError
from bbu.evaluation.descriptions import prefix
from bbu.jsonl import atomic_file
from bbu.records import ObjectRow, Row

CELL, TALLEST = 440, 440  # pixels: width of a cell, height of its photo at most
GAP, LINE_HEIGHT, TEXT, NUMBER = 14, 20, 14, 12
FIELD: Colour = (60, 60, 64)


def draw_contact_sheet(
    rows: Sequence[Row],
    image_root: str | Path,
    augmenter: Augmenter,
    *,
    photos: int = 6,
    epochs: Mapping[int, float],
) -> Image.Image:
    """Photos beside their random views, as the model gets them (before its resize) without teachers.

    Args:
        rows: all training photos, in the order of the data; the ones shown are spread evenly over them.
        photos: maximum number of photos.
        epochs: epoch number → fraction of the run that is done by then, in [0, 1]; a column each.

    Raises:
        UserError: there is no photo, the font is missing, or a photo cannot be read.
    """
    count = min(photos, len(rows))
    if not count:
        raise UserError("there is no training photo to show; check data.source")
    colours = palette_for(item.desc for row in rows for item in row.objects)
    lines = []
    for place in range(count):
        number = place * len(rows) // count
        original = open_photo(image_root, rows[number])
        views = [augmenter.for_sample(epoch, number, done)([original])[0] for epoch, done in epochs.items()]
        titles = [original.name, *(f"epoch {epoch}" for epoch in epochs)]
        lines.append(_line([original, *views], titles, colours))
    return _stack(lines)


def save_contact_sheet(sheet: Image.Image, path: str | Path) -> None:
    """Write a PNG or JPEG file atomically.

    Raises:
        UserError: an unsupported suffix, or the file cannot be written.
    """
    path = Path(path)
    kind = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}.get(path.suffix.lower())
    if kind is None:
        raise UserError(f"{path}: a sheet is written as .png or .jpg; name one of them")
    try:
        with atomic_file(path) as file:
            sheet.save(file, format=kind, quality=90)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error}; name another file") from None


def _line(photos: Sequence[Photo], titles: Sequence[str], colours: Mapping[str, Colour]) -> Image.Image:
    """A photo and its views, side by side."""
    descs = list(dict.fromkeys(item.desc for photo in photos for item in photo.objects))
    numbers = {desc: number for number, desc in enumerate(descs, start=1)}
    colours = palette_for(descs, colours)  # including descriptions that a flip has created
    cells = [_cell(photo, title, numbers, colours) for photo, title in zip(photos, titles, strict=True)]
    line = Image.new("RGB", (len(cells) * (CELL + GAP), max(cell.height for cell in cells)), PAPER)
    for column, cell in enumerate(cells):
        line.paste(cell, (column * (CELL + GAP), 0))
    return line


def _stack(lines: Sequence[Image.Image]) -> Image.Image:
    width, height = lines[0].width + GAP, sum(line.height + GAP for line in lines) + GAP
    sheet, top = Image.new("RGB", (width, height), PAPER), GAP
    for line in lines:
        sheet.paste(line, (GAP, top))
        top += line.height + GAP
    return sheet


def _cell(photo: Photo, title: str, numbers: Mapping[str, int], colours: Mapping[str, Colour]) -> Image.Image:
    """Title, photo with numbered outlines, and the legend of the numbers."""
    counts = Counter(item.desc for item in photo.objects)
    scale = min(CELL / photo.image.width, TALLEST / photo.image.height)
    size = max(1, round(photo.image.width * scale)), max(1, round(photo.image.height * scale))
    field = max(size[1], 3 * LINE_HEIGHT)  # a sliver of a photo still gets room for its numbers
    cell = Image.new("RGB", (CELL, LINE_HEIGHT + field + 4 + max(1, len(counts)) * LINE_HEIGHT), PAPER)
    draw = ImageDraw.Draw(cell)
    side = f"{title}  {photo.image.width}x{photo.image.height}, {len(photo.objects)} objects"
    draw.text((0, LINE_HEIGHT / 2), side, fill=INK, font=cjk_font(TEXT), anchor="lm")
    draw.rectangle((0, LINE_HEIGHT, CELL - 1, LINE_HEIGHT + field - 1), fill=FIELD)
    corner = (CELL - size[0]) // 2, LINE_HEIGHT + (field - size[1]) // 2
    cell.paste(photo.image.resize(size, Image.Resampling.BICUBIC), corner)
    outlines = [_outline(item, scale, corner) for item in photo.objects]
    for item, outline in zip(photo.objects, outlines, strict=True):
        path = outline if item.kind == "line" else [*outline, outline[0]]
        draw.line(path, fill=(0, 0, 0), width=4, joint="curve")
        draw.line(path, fill=colours[prefix(item.desc, 1)], width=2, joint="curve")
    tagged = [numbers[item.desc] for item in photo.objects]
    tones = [colours[prefix(item.desc, 1)] for item in photo.objects]
    _draw_numbers(draw, outlines, tagged, tones, (0, LINE_HEIGHT, CELL, LINE_HEIGHT + field))
    _draw_legend(draw, counts, numbers, colours, LINE_HEIGHT + field + 4)
    return cell


def _outline(item: ObjectRow, scale: float, corner: tuple[int, int]) -> list[Point]:
    """An object's outline in pixels of its cell."""
    x1, y1, x2, y2 = item.box
    flat = (x1, y1, x2, y1, x2, y2, x1, y2) if item.kind == "bbox_2d" else item.points
    return [(corner[0] + x * scale, corner[1] + y * scale) for x, y in zip(flat[::2], flat[1::2], strict=True)]


def _draw_numbers(
    draw: ImageDraw.ImageDraw,
    outlines: Sequence[Sequence[Point]],
    numbers: Sequence[int],
    tones: Sequence[Colour],
    field: Box,
) -> None:
    font = cjk_font(NUMBER)
    anchors = [
        (min(x for x, _ in path), min(y for _, y in path), max(x for x, _ in path), max(y for _, y in path))
        for path in outlines
    ]
    sizes = [(math.ceil(font.getlength(str(number))) + 6, NUMBER + 4) for number in numbers]
    for tag, number, tone in zip(place_tags(anchors, sizes, field), numbers, tones, strict=True):
        draw.rectangle((tag[0], tag[1], tag[2] - 1, tag[3] - 1), fill=(0, 0, 0), outline=tone)
        middle = ((tag[0] + tag[2]) / 2, (tag[1] + tag[3]) / 2)
        draw.text(middle, str(number), fill=tone, font=font, anchor="mm")


def _draw_legend(
    draw: ImageDraw.ImageDraw,
    counts: Mapping[str, int],
    numbers: Mapping[str, int],
    colours: Mapping[str, Colour],
    top: int,
) -> None:
    """One line for each description: number, colour, description and object count."""
    font = cjk_font(TEXT)
    if not counts:
        draw.text((0, top + LINE_HEIGHT / 2), "no objects", fill=INK, font=font, anchor="lm")
    for at, desc in enumerate(sorted(counts, key=numbers.__getitem__)):
        y = top + (at + 0.5) * LINE_HEIGHT
        draw.text((20, y), str(numbers[desc]), fill=INK, font=font, anchor="rm")
        draw.line(((26, y), (42, y)), fill=colours[prefix(desc, 1)], width=4)
        times = f"  ×{counts[desc]}" if counts[desc] > 1 else ""
        draw.text((48, y), " ".join(desc.split()) + times, fill=INK, font=font, anchor="lm")
