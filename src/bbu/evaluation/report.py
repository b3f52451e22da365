"""Metrics as text for the terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

MAX_NAME_CELLS = 56  # longer descriptions are cut, so the numbers stay in view
COLUMNS = {  # of the table of descriptions
    "truth": "truth",
    "matched": "matched",
    "accuracy": "accuracy",
    "AP50": "AP50",
    "recall_at_precision": "R@P{target_precision:g}",
}
SHOWN_CONFUSIONS = 5  # in the terminal; the file has all
# Metric → label, in the order shown. A key that ends in "_level" stands for one line per level, one that ends in
# "_at_" for one line per FPPI.
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
    "AP_agnostic": "AP, class-agnostic",
    "AP50_agnostic": "AP50, class-agnostic",
    "AR100_agnostic": "AR100, class-agnostic",
    "description_accuracy": "caption accuracy on matched boxes",
    "description_accuracy_level": "  caption accuracy",
    "majority_baseline": "  majority baseline",
    "description_macro_accuracy": "caption accuracy, macro average",
    "majority_macro_baseline": "  majority baseline",
    "miss_rate_at_": "miss rate",
    "miss_rate_agnostic_at_": "  class-agnostic",
    "ECE": "ECE of the score",
    "Brier": "  Brier score",
    "ECE_objectness": "ECE of the objectness",
    "Brier_objectness": "  Brier score",
    "score_threshold": "at score threshold",
    "false_positives_per_image": "  false positives per image",
    "duplicates_per_image": "  duplicate boxes per image",
    "out_of_vocabulary_predictions": "  out-of-vocabulary predictions",
    "out_of_vocabulary_rate": "  out-of-vocabulary rate",
    "unknown_to_training_rate": "  rate unknown to training",
}


def summary_table(metrics: Mapping[str, Any]) -> str:
    """Plain text for a terminal: headlines with 95 % intervals, descriptions by frequency, the top confusions.

    Args:
        metrics: the result of ``evaluate``, also when read back from JSON. Undefined values show as "-".
    """
    spans = {key: " to ".join(map(number, span or ())) for key, span in metrics.get("intervals", {}).items()}
    lines = aligned([(label, number(value), spans.get(key, "")) for key, label, value in headlines(metrics)])
    table = sorted(metrics["per_description"].items(), key=lambda item: (-item[1]["truth"], item[0]))
    if not table:
        return "\n".join(lines)
    rows = [["description", *(title.format_map(metrics) for title in COLUMNS.values())]]
    rows += [[clip(desc), *(number(row[name]) for name in COLUMNS)] for desc, row in table]
    return "\n".join([*lines, "", *aligned(rows), *_confusion_lines(metrics)])


def headlines(metrics: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """(key, label, value) of the headlines that these metrics have, by level where paths have levels."""
    lines: list[tuple[str, str, Any]] = []
    for key, label in HEADLINES.items():
        if key.endswith("_level"):
            levels = sorted(int(name.removeprefix(key)) for name in metrics if name.startswith(key))
            lines += [(f"{key}{n}", f"{label}, levels up to {n}", metrics[f"{key}{n}"]) for n in levels]
        elif key.endswith("_at_"):
            limits = [name.removeprefix(key) for name in metrics if name.startswith(key)]
            lines += [(f"{key}{n}", f"{label} at {n} FPPI", metrics[f"{key}{n}"]) for n in limits]
        elif key in metrics:
            lines.append((key, label, metrics[key]))
    return lines


def _confusion_lines(metrics: Mapping[str, Any]) -> list[str]:
    """The most frequent wrong captions on matched boxes."""
    wrong = [row for row in metrics["confusions"] if row["predicted"] not in (None, row["annotated"])]
    if not wrong:
        return []
    rows = [[clip(row["annotated"]), clip(row["predicted"]), str(row["count"])] for row in wrong[:SHOWN_CONFUSIONS]]
    return ["", *aligned([["annotated", "predicted", "count"], *rows])]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines with the first column left-aligned and the others right-aligned."""
    widths = [max(_cells(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        numbers = [" " * (width - _cells(cell)) + cell for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first + " " * (widths[0] - _cells(first)), *numbers]).rstrip())
    return lines


def number(value: float | None) -> str:
    """Three decimals for a float, "-" for an undefined value."""
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _cells(text: str) -> int:
    """Width in terminal cells: two for a full-width glyph, none for a combining mark."""
    kinds = ((unicodedata.category(glyph), unicodedata.east_asian_width(glyph)) for glyph in text)
    return sum(0 if category in ("Mn", "Me", "Cf") else 2 if width in "WF" else 1 for category, width in kinds)


def clip(text: str) -> str:
    """The text, cut to MAX_NAME_CELLS terminal cells, without characters that would move the cursor or recolour it."""
    text = "".join(glyph if glyph.isprintable() else "?" for glyph in text)
    if _cells(text) <= MAX_NAME_CELLS:
        return text
    while _cells(text) > MAX_NAME_CELLS - 3:
        text = text[:-1]
    return text + "..."
