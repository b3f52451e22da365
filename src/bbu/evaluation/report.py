"""Metrics for the terminal and for a file."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bbu.records import write_json

MAX_NAME_CELLS = 60  # a description with a long remark is cut, so that the numbers stay in view
COLUMNS = ("truth", "matched", "accuracy", "AP50")  # of the table of descriptions
# Metric → label, in the order shown. A key that ends in "_level" stands for one line a level.
HEADLINES = {
    "photos": "photos",
    "photos_failed": "  that failed",
    "photos_without_prediction": "  without prediction",
    "truth_boxes": "annotated boxes",
    "matched_boxes": "  matched",
    "missed_boxes": "  missed",
    "AP": "AP by description",
    "AP50": "AP50",
    "AP75": "AP75",
    "AR100": "AR100",
    "AP50_level": "  AP50",
    "AP_agnostic": "AP of boxes alone",
    "AP50_agnostic": "AP50 of boxes alone",
    "AR100_agnostic": "AR100 of boxes alone",
    "description_accuracy": "words right at matched boxes",
    "description_accuracy_level": "  words right",
    "majority_baseline": "  always the commonest words",
    "description_macro_accuracy": "words right, mean of descriptions",
    "majority_macro_baseline": "  always the commonest words",
    "score_threshold": "at score threshold",
    "false_alarms_per_photo": "  false alarms a photo",
    "out_of_vocabulary_predictions": "  predictions in words no annotation has",
    "out_of_vocabulary_rate": "  share of predictions",
    "unknown_to_training_rate": "  share in words unknown to training",
}


def write_metrics(path: str | Path, metrics: Mapping[str, Any]) -> None:
    """Write metrics as indented JSON; the file appears whole or not at all."""
    write_json(path, dict(metrics))


def summary_table(metrics: Mapping[str, Any]) -> str:
    """Plain text for a terminal: headline numbers, then a line for every description, most frequent first.

    Args:
        metrics: what ``evaluate`` returned, or the same read back from JSON. Undefined values show as "-".
    """
    headline = _aligned([(label, _number(value)) for label, value in _headlines(metrics)])
    table = sorted(metrics["per_description"].items(), key=lambda item: (-item[1]["truth"], item[0]))
    if not table:
        return "\n".join(headline)
    rows = [["description", *COLUMNS]]
    rows += [[_clip(_printable(desc)), *(_number(row[name]) for name in COLUMNS)] for desc, row in table]
    return "\n".join([*headline, "", *_aligned(rows)])


def _headlines(metrics: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """(label, value) of the headlines that these metrics have, level by level where paths have levels."""
    lines: list[tuple[str, Any]] = []
    for key, label in HEADLINES.items():
        if key.endswith("_level"):
            levels = sorted(int(name.removeprefix(key)) for name in metrics if name.startswith(key))
            lines += [(f"{label}, levels up to {level}", metrics[f"{key}{level}"]) for level in levels]
        elif key in metrics:
            lines.append((label, metrics[key]))
    return lines


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the first column to the left and the others to the right."""
    widths = [max(_cells(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        numbers = [" " * (width - _cells(cell)) + cell for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first + " " * (widths[0] - _cells(first)), *numbers]))
    return lines


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _cells(text: str) -> int:
    """Terminal cells that a text takes: two a full-width glyph, none a mark that sits on the glyph before."""
    return sum(_glyph_cells(glyph) for glyph in text)


def _glyph_cells(glyph: str) -> int:
    if unicodedata.category(glyph) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(glyph) in "WF" else 1


def _printable(text: str) -> str:
    """Control characters would move the cursor or recolour the terminal."""
    return "".join(glyph if glyph.isprintable() else "?" for glyph in text)


def _clip(text: str) -> str:
    if _cells(text) <= MAX_NAME_CELLS:
        return text
    kept = ""
    for glyph in text:
        if _cells(kept + glyph) > MAX_NAME_CELLS - 3:
            break
        kept += glyph
    return kept + "..."
