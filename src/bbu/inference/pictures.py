"""A picture for every predicted photo: boxes, descriptions and scores."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from torch.utils.data import Dataset

from bbu.drawing.panels import draw_predictions, picture_name, save_png
from bbu.errors import UserError
from bbu.images import load_image
from bbu.inference.loading import in_parallel
from bbu.jsonl import iter_json_lines
from bbu.records import PredictionRow, parse_prediction_row, resolve_image

Numbered = tuple[int, PredictionRow]


class Drawing(Dataset[bool]):
    """Numbered row → whether its photo could be read and drawn, as ``000001_<photo>.png``."""

    def __init__(self, image_root: str, folder: str | Path, threshold: float) -> None:
        self.image_root, self.folder, self.threshold = image_root, Path(folder), threshold

    def __getitem__(self, numbered: Numbered) -> bool:
        number, row = numbered
        try:
            image = load_image(resolve_image(self.image_root, row.images[0]))
        except UserError:
            return False
        picture = draw_predictions(image, row.predictions, threshold=self.threshold)
        save_png(picture, self.folder / picture_name(f"{number:06d}", row.images[0]))
        return True


def draw_file(
    predictions: str | Path, image_root: str, folder: str | Path, *, threshold: float, workers: int = 0
) -> tuple[int, int]:
    """Draw all rows of a predictions file except error rows.

    Returns:
        pictures drawn, and photos that can no longer be read.

    Raises:
        UserError: the folder cannot be written, or the font is missing.
    """
    from tqdm import tqdm

    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written: {error.strerror}; name another folder") from None
    drawn = in_parallel(Drawing(image_root, folder, threshold), _drawable(predictions), workers)
    counts = Counter(tqdm(drawn, desc="draw", unit="photo", file=sys.stderr))
    return counts[True], counts[False]


def _drawable(predictions: str | Path) -> Iterator[Numbered]:
    rows = (parse_prediction_row(value, where) for where, value in iter_json_lines(predictions))
    return ((number, row) for number, row in enumerate(rows, start=1) if row.error is None)
