"""Comparison pictures: a photo with its ground truth at the left and its predictions at the right.

Shapes: Gt ground-truth objects, Dt detections.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from bbu.drawing.outlines import corners
from bbu.drawing.palette import Colour, palette_for
from bbu.drawing.panels import (
    AGREES,
    ALONE,
    DASHES,
    WRONG,
    Mark,
    join_panels,
    panel_of,
    panel_title,
    picture_name,
    save_png,
)
from bbu.drawing.tags import Point
from bbu.errors import UserError
from bbu.evaluation.descriptions import greedy_match
from bbu.geometry import iou_matrix, thicken
from bbu.images import load_image
from bbu.records import ObjectRow, PredictedObject, PredictionRow, Row, resolve_image


def draw_comparison(
    image: Image.Image,
    truth: Sequence[ObjectRow],
    predictions: Sequence[PredictedObject],
    *,
    threshold: float,
    colours: Mapping[str, Colour] | None = None,
) -> Image.Image:
    """One picture: annotated objects at the left, predicted ones at the right, a legend below each.

    A prediction agrees with a truth at IoU ≥ 0.5 and the same description, matched one to one, best score first.

    Args:
        image: the photo as displayed; truth and predictions are in its pixels.
        threshold: predictions with a lower ``score`` are counted but not drawn.
        colours: first level of the description → colour, to keep colours equal between pictures.

    Raises:
        UserError: the typeface is missing.
    """
    shown = sorted((item for item in predictions if item.score >= threshold), key=lambda item: -item.score)
    left, right = compare_marks(truth, shown, image.size)
    palette = palette_for([mark.desc for mark in (*left, *right)], colours)
    title = panel_title(len(right), len(predictions) - len(shown), threshold)
    panels = (
        panel_of(image, left, palette, f"truth: {panel_title(len(left))}", _tally(left, "missed")),
        panel_of(image, right, palette, f"prediction: {title}", _tally(right, "false positive")),
    )
    return join_panels(panels)


def _tally(marks: Sequence[Mark], alone: str) -> list[tuple[str, str]]:
    """(state, text) for the key above a photo; ``alone`` names a mark without partner."""
    number = {state: sum(mark.state == state for mark in marks) for state in DASHES}
    texts = {AGREES: "agree", WRONG: "wrong description", ALONE: alone}
    plural = {state: "s" * (number[state] != 1 and text not in ("agree", "missed")) for state, text in texts.items()}
    return [(state, f"{number[state]} {texts[state]}{plural[state]}") for state in DASHES]


def compare_marks(
    truth: Sequence[ObjectRow], shown: Sequence[PredictedObject], size: tuple[int, int]
) -> tuple[list[Mark], list[Mark]]:
    """Marks of both panels; ``shown`` is sorted by score."""
    same_Gt, other_Gt = _match(truth, shown, size)
    left = []
    for index, item in enumerate(truth):
        state = AGREES if same_Gt[index] >= 0 else WRONG if other_Gt[index] >= 0 else ALONE
        partner = max(same_Gt[index], other_Gt[index]) + 1
        note = {AGREES: f"= {partner}", WRONG: f"≠ {partner}", ALONE: "missed"}[state]
        left.append(Mark(item.desc, _outline(item), item.kind != "line", state, note))
    right = []
    for index, found in enumerate(shown):
        state, note = ALONE, "false positive"
        for matched_Gt, name, sign in ((same_Gt, AGREES, "="), (other_Gt, WRONG, "≠")):
            for at in np.flatnonzero(matched_Gt == index):
                state, note = name, f"{sign} {at + 1}"
        right.append(Mark(found.desc, corners(found.box), True, state, f"{found.score:.2f}  {note}"))
    return left, right


def _match(
    truth: Sequence[ObjectRow], shown: Sequence[PredictedObject], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """(Gt,) detection that agrees with each object, and (Gt,) one with another description; -1 for none."""
    truth_Gt4 = np.array([thicken(item.box, *size) for item in truth], dtype=np.float64).reshape(-1, 4)
    found_Dt4 = np.array([thicken(item.box, *size) for item in shown], dtype=np.float64).reshape(-1, 4)
    overlap_DtGt = iou_matrix(found_Dt4, truth_Gt4)
    scores_Dt = np.array([item.score for item in shown], dtype=np.float64)
    same_DtGt = np.array([[a.desc == b.desc for b in truth] for a in shown], dtype=bool).reshape(overlap_DtGt.shape)
    same_Gt = greedy_match(overlap_DtGt * same_DtGt, scores_Dt)
    rest_DtGt = overlap_DtGt * (same_Gt < 0)
    rest_DtGt[same_Gt[same_Gt >= 0]] = 0
    return same_Gt, greedy_match(rest_DtGt, scores_Dt)


def _outline(item: ObjectRow) -> tuple[Point, ...]:
    if item.kind == "bbox_2d":
        return corners(item.box)
    return tuple(zip(item.points[::2], item.points[1::2], strict=True))


def save_pictures(
    rows: Iterable[Row],
    predictions: Iterable[PredictionRow],
    image_root: str | Path,
    output_dir: str | Path,
    *,
    limit: int = 8,
    threshold: float = 0.3,
) -> list[Path]:
    """Write a PNG for up to ``limit`` photos that have both an annotation and a prediction.

    The photos are spread evenly over all such photos in order of name, so none is picked for looking good or bad. The
    same input gives the same files.

    Returns:
        the files, ``001_<photo>.png`` and so on, each written atomically.

    Raises:
        UserError: as ``open_displayed``.
    """
    predicted = {row.images[0]: row for row in predictions if row.error is None}
    known = sorted((row for row in rows if row.annotated and row.images[0] in predicted), key=lambda row: row.images[0])
    count = max(0, min(limit, len(known)))
    colours = palette_for(item.desc for row in known for item in row.objects)
    written = []
    for number in range(count):
        row = known[number * len(known) // count]
        name, image = row.images[0], open_displayed(row, image_root)
        picture = draw_comparison(image, row.objects, predicted[name].predictions, threshold=threshold, colours=colours)
        path = Path(output_dir) / picture_name(f"{number + 1:03d}", name)
        save_png(picture, path)
        written.append(path)
    return written


def open_displayed(row: Row, image_root: str | Path) -> Image.Image:
    """The photo of a row, as displayed.

    Raises:
        UserError: the photo is missing, damaged, outside ``image_root`` or of another size than its row says.
    """
    name = row.images[0]
    image = load_image(resolve_image(image_root, name), name)
    if image.size != (row.width, row.height):
        raise UserError(
            f"{name}: is {image.width}x{image.height} pixels as displayed, its row says {row.width}x{row.height}; "
            "use the photos that the rows were converted with"
        )
    return image
