"""Put the page together and write it, whole or not at all. The same input gives the same bytes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bbu.evaluation.page.content import Scored, page_content
from bbu.evaluation.page.photos import SMALL, Embedded, embed_photos
from bbu.evaluation.page.typeface import glyphs_data_uri
from bbu.evaluation.pairing import pair
from bbu.evaluation.report import headlines, number
from bbu.jsonl import atomic_writer
from bbu.records import PredictionRow, Row

FOLDER = Path(__file__).parent
SCRIPTS = ("elements.js", "counts.js", "charts.js", "tables.js", "boxes.js", "gallery.js", "main.js")  # in this order
# Shown large at the head of the page: metric → label.
LEADING = {
    "AP50": "AP50 by description",
    "AP50_agnostic": "AP50 of boxes alone",
    "description_accuracy": "words right at matched boxes",
    "false_alarms_per_photo": "false alarms a photo",
}


@dataclass(frozen=True)
class PageSummary:
    """What a page holds: photos in all, with a picture, with a large picture too."""

    photos: int
    shown: int
    large: int


@dataclass(frozen=True)
class Figure:
    """One line of the table of metrics; ``interval`` is empty where there is none."""

    label: str
    value: str
    interval: str


def write_report(
    path: str | Path,
    truth: Sequence[Row],
    predictions: Sequence[PredictionRow],
    metrics: Mapping[str, Any],
    *,
    image_root: str | Path,
    title: str,
) -> PageSummary:
    """Write the page of an evaluation; works without photos, which are then drawn as outlines on grey.

    Args:
        metrics: what ``evaluate`` returned for these rows, or the same read back from JSON.
        image_root: folder of the photos.

    Raises:
        UserError: rows that cannot be paired, or a file that cannot be written.
    """
    photos = pair(truth, predictions).photos
    scored = Scored.of(photos, metrics["max_detections"], metrics["score_threshold"])
    rows = {row.images[0]: row for row in truth}
    embedded = embed_photos([rows[name] for name in scored.worst_first()], image_root)  # they get the room there is
    errors = {row.images[0]: row.error for row in predictions if row.error is not None}
    content = page_content(scored, rows, embedded.problems, errors, metrics)
    with atomic_writer(path) as stream:
        stream.write(_render(content, embedded, metrics, title))
    return PageSummary(len(photos), len(embedded.small), len(embedded.large))


def _render(content: Mapping[str, Any], embedded: Embedded, metrics: Mapping[str, Any], title: str) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_read("page.html.jinja"))
    places = {photo["name"]: place for place, photo in enumerate(content["photos"])}
    return template.render(
        title=title,
        style=_read("page.css"),
        script="\n".join(_read(name) for name in SCRIPTS),
        data=script_json(content),
        glyphs=glyphs_data_uri("".join([title, *_texts(content)])),
        leading=[_figure(metrics, key, label) for key, label in LEADING.items()],
        figures=[_figure(metrics, key, label) for key, label, _ in headlines(metrics)],
        small_side=SMALL,
        metrics=metrics,
        threshold=f"{metrics['score_threshold']:g}",
        small=[(places[name], photo) for name, photo in embedded.small.items()],
        large=[(places[name], photo) for name, photo in embedded.large.items()],
    )


def _read(name: str) -> str:
    return (FOLDER / name).read_text(encoding="utf-8")


def _texts(content: Mapping[str, Any]) -> Iterable[str]:
    yield from content["descriptions"]
    for photo in content["photos"]:
        yield from (photo[key] for key in ("name", "problem", "error") if key in photo)


def script_json(value: Any) -> str:
    """JSON that stays inside its script tag and inside UTF-8, whatever its texts hold.

    A "<" could end the tag or open a comment in it; half a surrogate pair cannot be written as UTF-8.
    """
    return json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _figure(metrics: Mapping[str, Any], key: str, label: str) -> Figure:
    interval = metrics["intervals"].get(key)
    span = "" if interval is None else f"{number(interval[0])} – {number(interval[1])}"
    return Figure(label, "–" if metrics[key] is None else number(metrics[key]), span)
