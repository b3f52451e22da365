"""The training log's page: one HTML file that holds its own history.

It is written whole at every update and read back when a run resumes. Its size is bounded for any length of run:
LOOKS_KEPT looks and POINTS_KEPT points per curve (first, last and every k-th between, k a power of two),
MARKS_PER_LOOK predicted boxes per look, PHOTO_CHARACTERS per photo.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from bbu.config.schema import VAL_METRICS, WORD_METRICS
from bbu.drawing.outlines import corners
from bbu.drawing.pages import jpeg_base64, render_page
from bbu.errors import UserError
from bbu.evaluation.pictures import compare_marks
from bbu.images import load_image
from bbu.jsonl import atomic_writer
from bbu.losses.weighting import TERMS
from bbu.monitoring.visual_probe import Seen, match_stability
from bbu.records import PredictionRow, Row, resolve_image

LOOKS_KEPT = 60
POINTS_KEPT = 1000
MARKS_PER_LOOK = 400  # predicted boxes, divided among the photos; the most confident are shown
PHOTO_CHARACTERS = 400_000  # of base64; a page with 16 photos stays under 15 MB
PHOTO_SIDES, PHOTO_QUALITY = (960, 640, 448), 80  # pixels of the longer side, the first that fits; JPEG
TEMPLATE = Path(__file__).with_name("visual_log.html.jinja")
Item = TypeVar("Item")
_step = itemgetter(0)  # of a point of a curve


@dataclass(frozen=True)
class Thumbnail:
    """A probe photo on the page; ``objects`` are [description, closed, x1, y1, x2, y2, …] in displayed pixels."""

    name: str
    width: int
    height: int
    objects: list[list[Any]]
    jpeg: str


@dataclass(frozen=True)
class PhotoLook:
    """A photo at one look, matched as in the comparison pictures.

    Args:
        truth: [state, note] of each object, in the order of the photo's objects.
        found: [x1, y1, x2, y2, description, state, note] of each shown prediction, most confident first.
        hidden: number of predictions that are not shown: below the threshold, or beyond MARKS_PER_LOOK.
        queries: as in ``Seen``.
        error: why the photo was not predicted.
    """

    truth: list[list[str]]
    found: list[list[Any]]
    hidden: int
    queries: list[int] | None
    error: str | None = None


@dataclass(frozen=True)
class Look:
    """All probe photos after ``step`` optimizer steps; ``stability`` compares with the look at step ``since``."""

    step: int
    photos: list[PhotoLook]
    metrics: dict[str, float | None]
    stability: float | None
    since: int | None
    seconds: float


@dataclass
class History:
    """Content of the page.

    Args:
        facts: title, split, threshold, max_steps; every, log_every, eval_every: steps between looks, between
            lines of the log and between evaluations.
        losses: [step, loss, each of TERMS].
        val: [step, each of VAL_METRICS, each of WORD_METRICS], where val was evaluated.
        failed: updates that failed.
    """

    facts: dict[str, Any]
    photos: list[Thumbnail]
    looks: list[Look] = field(default_factory=list)
    losses: list[list[float]] = field(default_factory=list)
    val: list[list[Any]] = field(default_factory=list)
    failed: int = 0

    def add_look(self, step: int, rows: Sequence[Row], seen: Seen) -> Look:
        """Compare predictions with annotations and store the result."""
        most = MARKS_PER_LOOK // max(len(rows), 1)
        threshold = self.facts["threshold"]
        photos = [
            _photo_look(row, found, queries, threshold, most)
            for row, found, queries in zip(rows, seen.predictions, seen.queries, strict=True)
        ]
        before = self.looks[-1] if self.looks else None
        stability = match_stability([photo.queries for photo in before.photos], seen.queries) if before else None
        look = Look(step, photos, seen.metrics, stability, before.step if before else None, round(seen.seconds, 2))
        self.looks = thinned([*self.looks, look], lambda item: item.step, self.facts["every"], LOOKS_KEPT)
        return look

    def add_losses(self, step: int, logs: Mapping[str, float]) -> None:
        """Add a line of the training log; lines with NaN or infinity are left out."""
        values = [logs["loss"], *(logs[f"loss/{term}"] for term in TERMS)]
        if all(abs(value) < float("inf") for value in values):
            self.losses.append([step, *(round(value, 5) for value in values)])
            self.losses = thinned(self.losses, _step, self.facts["log_every"], POINTS_KEPT)

    def add_val(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add the scores of the whole val split, under the trainer's names."""
        self.val.append([step, *(metrics.get(f"eval_{name}") for name in (*VAL_METRICS, *WORD_METRICS))])
        self.val = thinned(self.val, _step, self.facts["eval_every"], POINTS_KEPT)

    def forget_after(self, step: int) -> None:
        """Drop everything after ``step``: a run that resumes there records it again."""
        self.looks = [look for look in self.looks if look.step <= step]
        self.losses = [point for point in self.losses if _step(point) <= step]
        self.val = [point for point in self.val if _step(point) <= step]


def thinned(items: Sequence[Item], step_of: Callable[[Item], int], interval: int, most: int) -> list[Item]:
    """The first, the last, and between them the items at multiples of k · interval.

    k is the smallest of 1, 2, 4, … that leaves at most about ``most``. Thinning again keeps the spacing even.
    """
    first, last = step_of(items[0]), step_of(items[-1])
    stride = interval
    while (last - first) / stride + 1 > most:
        stride *= 2
    inner = [item for item in items[1:-1] if step_of(item) % stride == 0]
    return [items[0], *inner, *([items[-1]] if len(items) > 1 else [])]


def _photo_look(row: Row, found: PredictionRow, queries: list[int] | None, threshold: float, most: int) -> PhotoLook:
    sure = sorted((item for item in found.predictions if item.score >= threshold), key=lambda item: -item.score)
    truth, marks = compare_marks(row.objects, sure[:most], (row.width, row.height))
    return PhotoLook(
        truth=[[mark.state, mark.note] for mark in truth],
        found=[
            [*(round(value, 1) for value in item.box), mark.desc, mark.state, mark.note]
            for item, mark in zip(sure, marks, strict=False)
        ],
        hidden=len(found.predictions) - len(marks),
        queries=queries,
        error=found.error,
    )


# ---------------------------------------------------------------- photos


def thumbnail(row: Row, image_root: str) -> Thumbnail:
    """A probe photo, made small; without picture if it cannot be read, and every look then says why."""
    objects = [
        [item.desc, item.kind != "line", *(item.points if item.kind != "bbox_2d" else chain(*corners(item.box)))]
        for item in row.objects
    ]
    try:
        jpeg = _small_jpeg(load_image(resolve_image(image_root, row.images[0])))
    except UserError:
        jpeg = ""
    return Thumbnail(row.images[0], row.width, row.height, objects, jpeg)


def _small_jpeg(image: Image.Image) -> str:
    """Base64 JPEG of at most PHOTO_CHARACTERS, or at the smallest size."""
    text = ""
    for side in PHOTO_SIDES:
        fitted = image.copy()
        fitted.thumbnail((side, side), Image.Resampling.LANCZOS)
        text = jpeg_base64(fitted, PHOTO_QUALITY)
        if len(text) <= PHOTO_CHARACTERS:
            break
    return text


# ---------------------------------------------------------------- the file


def write_page(path: Path, history: History) -> None:
    """Render and write the page, atomically.

    Raises:
        UserError: the file cannot be written.
    """
    page = render_page(
        TEMPLATE,
        style="visual_log.css",
        scripts=["visual_log.js"],
        data=dataclasses.asdict(history) | {"terms": TERMS, "metrics": (*VAL_METRICS, *WORD_METRICS)},
        title=str(history.facts["title"]),
        kind="training log",
        facts=history.facts,
        photos=len(history.photos),
    )
    with atomic_writer(path) as stream:
        stream.write(page)


def read_page(path: Path) -> History:
    """The history of a page that ``write_page`` wrote.

    Raises:
        UserError: the page is missing or damaged.
    """
    try:
        found = re.search(
            r'<script type="application/json" id="data">(.*?)</script>', path.read_text(encoding="utf-8"), re.DOTALL
        )
        content = json.loads(found[1]) if found else {}
        return History(
            facts=content["facts"],
            photos=[Thumbnail(**photo) for photo in content["photos"]],
            looks=[
                Look(**look | {"photos": [PhotoLook(**photo) for photo in look["photos"]]}) for look in content["looks"]
            ],
            losses=content["losses"],
            val=content["val"],
            failed=content["failed"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: is not a readable training log ({type(error).__name__}: {error})") from None
