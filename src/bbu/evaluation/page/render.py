"""Put the report page together and write it atomically. The same input gives the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bbu.drawing.pages import render_page
from bbu.evaluation.matching import Matched, flatten, rank
from bbu.evaluation.page.content import page_content, verdict_rows, worst_first
from bbu.evaluation.page.photos import SMALL, embed_photos
from bbu.evaluation.pairing import pair
from bbu.evaluation.report import HEADLINES, headlines, number
from bbu.jsonl import atomic_writer
from bbu.records import PredictionRow, Row

TEMPLATE = Path(__file__).with_name("page.html.jinja")
SCRIPTS = ("counts.js", "charts.js", "tables.js", "boxes.js", "gallery.js", "verdicts.js", "main.js")  # in this order
LEADING = ("AP50", "AP50_agnostic", "description_accuracy", "false_positives_per_image")  # shown large


@dataclass(frozen=True)
class PageSummary:
    """Number of photos on a page: all, with a picture, with a large picture too."""

    photos: int
    shown: int
    large: int


def write_report(
    path: str | Path,
    truth: Sequence[Row],
    predictions: Sequence[PredictionRow],
    metrics: Mapping[str, Any],
    *,
    image_root: str | Path,
    title: str,
    verdicts: Sequence[Mapping[str, Any]] = (),
) -> PageSummary:
    """Write the page of an evaluation. Photos that cannot be read are drawn as outlines on grey.

    Args:
        metrics: the result of ``evaluate`` for these rows, also when read back from JSON.
        image_root: folder of the photos.
        verdicts: lines of ``bbu judge`` on groups of these photos.

    Raises:
        UserError: a verdict on another photo, rows that cannot be paired, or a file that cannot be written.
    """
    photos = pair(truth, predictions).photos
    described = Matched.at(rank(flatten(photos), str, "score", metrics["max_detections"]))
    rows = {row.images[0]: row for row in truth}
    worst = [rows[name] for name in worst_first(described, metrics["score_threshold"])]  # they get the room
    embedded = embed_photos(worst, image_root)
    errors = {row.images[0]: row.error for row in predictions if row.error is not None}
    content = page_content(photos, described, rows, embedded.problems, errors, metrics)
    places = {photo["name"]: place for place, photo in enumerate(content["photos"])}
    if verdicts:
        content["verdicts"] = verdict_rows(verdicts, places)
    page = render_page(
        TEMPLATE,
        style="page.css",
        scripts=SCRIPTS,
        data={**content, "smallSide": SMALL},
        title=title,
        kind="evaluation",
        leading=[_figure(metrics, key, HEADLINES[key].strip()) for key in LEADING],
        figures=[_figure(metrics, key, label) for key, label, _ in headlines(metrics)],
        metrics=metrics,
        verdicts=bool(verdicts),
        threshold=f"{metrics['score_threshold']:g}",
        small=[(places[name], photo) for name, photo in embedded.small.items()],
        large=[(places[name], photo) for name, photo in embedded.large.items()],
    )
    with atomic_writer(path) as stream:
        stream.write(page)
    return PageSummary(len(photos), len(embedded.small), len(embedded.large))


def _figure(metrics: Mapping[str, Any], key: str, label: str) -> dict[str, str]:
    """One line of the table of metrics; ``interval`` is empty where there is none."""
    interval = " – ".join(map(number, metrics["intervals"].get(key) or ()))
    return {"label": label, "value": "–" if metrics[key] is None else number(metrics[key]), "interval": interval}
