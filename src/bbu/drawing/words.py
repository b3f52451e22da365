"""A photo beside the visual words of its tokens: a colour and a number for each word, and how sure each choice is.

Shapes: Y height in pixels or tokens, Z width in pixels or tokens.
"""

from __future__ import annotations

import colorsys
from collections import Counter

import numpy as np
from PIL import Image, ImageDraw

from bbu.drawing.fonts import cjk_font
from bbu.drawing.palette import FAINT, INK, PAPER, Colour, readable_on

CELL, FEWEST_FOR_NUMBERS = 40, 24  # pixels of a token's side at most; below, no number fits
PANEL, MARGIN, TITLE, TEXT = 640, 16, 18, 14
GOLDEN = 0.618034  # turns of the colour circle between two words: neighbours in the list look different


def draw_words(image: Image.Image, words_YZ: np.ndarray, entropy_YZ: np.ndarray, vocabulary: int) -> Image.Image:
    """Three panels: the photo, the likeliest word of each token, the entropy of its choice.

    Args:
        words_YZ: (rows, columns) numbers of words.
        entropy_YZ: (rows, columns) in nats.
        vocabulary: number of words.
    """
    rows, columns = words_YZ.shape
    cell = max(4, min(CELL, PANEL // max(rows, columns)))
    width, height = columns * cell, rows * cell
    most = float(np.log(vocabulary))
    counts = Counter(words_YZ.ravel().tolist())
    titles = (
        (f"{columns} × {rows} tokens", "the photo as it was given"),
        (f"{len(counts)} of {vocabulary} words in use", _commonest(counts, words_YZ.size)),
        (f"entropy {entropy_YZ.mean():.2f} of at most {most:.2f} nats", "black: one word; white: all words alike"),
    )
    pictures = (
        image.convert("RGB").resize((width, height)),
        _cells(words_YZ, counts, cell),
        _heat(entropy_YZ / most, cell),
    )
    column = max(width, 300)
    page = Image.new("RGB", (3 * column + 4 * MARGIN, height + 2 * MARGIN + 60), PAPER)
    pen = ImageDraw.Draw(page)
    for number, ((title, note), picture) in enumerate(zip(titles, pictures, strict=True)):
        left = MARGIN + number * (column + MARGIN)
        pen.text((left, MARGIN), title, font=cjk_font(TITLE), fill=INK)
        pen.text((left, MARGIN + 28), note, font=cjk_font(TEXT), fill=FAINT)
        page.paste(picture, (left, MARGIN + 60))
    return page


def _commonest(counts: Counter[int], tokens: int) -> str:
    word, times = counts.most_common(1)[0]
    return f"most common: word {word}, {times / tokens:.0%} of the tokens"


def _cells(words_YZ: np.ndarray, counts: Counter[int], cell: int) -> Image.Image:
    rows, columns = words_YZ.shape
    colours = {word: _colour(place) for place, (word, _) in enumerate(counts.most_common())}
    picture = Image.new("RGB", (columns * cell, rows * cell))
    pen, font = ImageDraw.Draw(picture), cjk_font(max(8, cell // 3))
    for (row, column), word in np.ndenumerate(words_YZ):
        corner = column * cell, row * cell
        colour = colours[int(word)]
        pen.rectangle((*corner, corner[0] + cell - 1, corner[1] + cell - 1), fill=colour)
        if cell >= FEWEST_FOR_NUMBERS:
            middle = corner[0] + cell / 2, corner[1] + cell / 2
            pen.text(middle, str(word), font=font, fill=readable_on(colour), anchor="mm")
    return picture


def _colour(place: int) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(place * GOLDEN % 1, 0.55 + 0.3 * (place % 2), 0.95 - 0.25 * (place % 3) / 2)
    return round(red * 255), round(green * 255), round(blue * 255)


def _heat(share_YZ: np.ndarray, cell: int) -> Image.Image:
    grey = np.clip(share_YZ * 255, 0, 255).astype(np.uint8)
    size = grey.shape[1] * cell, grey.shape[0] * cell
    return Image.fromarray(grey).resize(size, Image.Resampling.NEAREST).convert("RGB")
