"""Metrics for the terminal and for a file."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bbu.jsonl import write_json

MAX_NAME_CELLS = 56  # a description with a long remark is cut, so that the numbers stay in view
COLUMNS = {  # of the table of descriptions
    "truth": "truth",
    "matched": "matched",
    "accuracy": "accuracy",
    "AP50": "AP50",
    "recall_at_precision": "R@P{target_precision:g}",
}
SHOWN_CONFUSIONS = 5  # in the terminal; the file has all
# Metric → label, in the order shown. A key that ends in "_level" stands for one line a level, one that ends in "_at_"
# for one line a number of false alarms.
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
    "AP_level": "  AP",
    "AP50_level": "  AP50",
    "AP_agnostic": "AP of boxes alone",
    "AP50_agnostic": "AP50 of boxes alone",
    "AR100_agnostic": "AR100 of boxes alone",
    "description_accuracy": "words right at matched boxes",
    "description_accuracy_level": "  words right",
    "majority_baseline": "  always the commonest words",
    "description_macro_accuracy": "words right, mean of descriptions",
    "majority_macro_baseline": "  always the commonest words",
    "miss_rate_at_": "parts missed",
    "miss_rate_agnostic_at_": "  boxes alone",
    "ECE": "calibration error of the score",
    "Brier": "  Brier score",
    "ECE_objectness": "calibration error of the objectness",
    "Brier_objectness": "  Brier score",
    "score_threshold": "at score threshold",
    "false_alarms_per_photo": "  false alarms a photo",
    "duplicates_per_photo": "  second boxes on a part, a photo",
    "out_of_vocabulary_predictions": "  predictions in words no annotation has",
    "out_of_vocabulary_rate": "  share of predictions",
    "unknown_to_training_rate": "  share in words unknown to training",
}


def write_metrics(path: str | Path, metrics: Mapping[str, Any]) -> None:
    """Write metrics as indented JSON; the file appears whole or not at all."""
    write_json(path, dict(metrics))


def summary_table(metrics: Mapping[str, Any]) -> str:
    """Plain text for a terminal: headlines with their 95 % intervals, descriptions, commonest first, confusions.

    Args:
        metrics: what ``evaluate`` returned, or the same read back from JSON. Undefined values show as "-".
    """
    spans = metrics.get("intervals", {})
    lines = aligned([(label, number(value), _span(spans.get(key))) for key, label, value in headlines(metrics)])
    table = sorted(metrics["per_description"].items(), key=lambda item: (-item[1]["truth"], item[0]))
    if not table:
        return "\n".join(lines)
    rows = [["description", *(title.format_map(metrics) for title in COLUMNS.values())]]
    rows += [[clip(printable(desc)), *(number(row[name]) for name in COLUMNS)] for desc, row in table]
    return "\n".join([*lines, "", *aligned(rows), *_confusion_lines(metrics)])


def headlines(metrics: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """(key, label, value) of the headlines that these metrics have; by level where paths have levels."""
    lines: list[tuple[str, str, Any]] = []
    for key, label in HEADLINES.items():
        if key.endswith("_level"):
            levels = sorted(int(name.removeprefix(key)) for name in metrics if name.startswith(key))
            lines += [(f"{key}{n}", f"{label}, levels up to {n}", metrics[f"{key}{n}"]) for n in levels]
        elif key.endswith("_at_"):
            limits = [name.removeprefix(key) for name in metrics if name.startswith(key)]
            lines += [
                (f"{key}{n}", f"{label} at {n} alarm{'s' * (n != '1')} a photo", metrics[f"{key}{n}"]) for n in limits
            ]
        elif key in metrics:
            lines.append((key, label, metrics[key]))
    return lines


def _span(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f"{number(interval[0])} to {number(interval[1])}"


def _confusion_lines(metrics: Mapping[str, Any]) -> list[str]:
    """The commonest wrong words at matched boxes."""
    wrong = [row for row in metrics["confusions"] if row["predicted"] not in (None, row["annotated"])]
    if not wrong:
        return []
    names = [(clip(printable(row["annotated"])), clip(printable(row["predicted"]))) for row in wrong[:SHOWN_CONFUSIONS]]
    rows = [[truth, said, str(row["count"])] for (truth, said), row in zip(names, wrong, strict=False)]
    return ["", *aligned([["annotated as", "but called", "times"], *rows])]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the first column to the left and the others to the right."""
    widths = [max(_cells(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        numbers = [" " * (width - _cells(cell)) + cell for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first + " " * (widths[0] - _cells(first)), *numbers]).rstrip())
    return lines


def number(value: float | None) -> str:
    """Three decimals for a fraction, "-" for what is undefined."""
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


def printable(text: str) -> str:
    """Control characters would move the cursor or recolour the terminal."""
    return "".join(glyph if glyph.isprintable() else "?" for glyph in text)


def clip(text: str) -> str:
    """The text, cut to MAX_NAME_CELLS terminal cells."""
    if _cells(text) <= MAX_NAME_CELLS:
        return text
    kept = ""
    for glyph in text:
        if _cells(kept + glyph) > MAX_NAME_CELLS - 3:
            break
        kept += glyph
    return kept + "..."
