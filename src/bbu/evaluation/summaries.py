"""Scores of written summaries against those of annotated rows; no weights.

A summary is right if it equals the truth, white space aside. Its numbers are right if they are the truth's, in order.
Its fields, the parts between punctuation marks, are right one by one: for summaries that count or list.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bbu.errors import UserError
from bbu.evaluation.bootstrap import wilson
from bbu.evaluation.descriptions import ratio
from bbu.evaluation.report import aligned, number
from bbu.jsonl import iter_json_lines
from bbu.records import FieldChecker, Row

FIELDS = re.compile(r"[;!?，；：。！？、]|(?<!\d)[.,:]|[.,:](?!\d)")  # between fields; not inside a number or a time
NUMBERS = re.compile(r"\d+(?:\.\d+)?")
SHARES = ("accuracy", "number_accuracy", "field_accuracy")


def tidy(text: str) -> str:
    """The text with single spaces, and none around it."""
    return " ".join(text.split())


def numbers_of(text: str) -> list[str]:
    """The numbers in a text, in order."""
    return NUMBERS.findall(text)


def fields_of(text: str) -> Counter[str]:
    """The parts of a text between punctuation marks."""
    return Counter(part for part in map(str.strip, FIELDS.split(tidy(text))) if part)


def read_summaries(path: str | Path) -> dict[str, str | None]:
    """Image → summary, of a file that ``bbu summarize`` wrote; None where it failed or was cut off.

    Raises:
        RecordError: the first line that is no row of that file.
        UserError: a photo appears twice.
    """
    found: dict[str, str | None] = {}
    for image, item, check in _items(path):
        if image in found:
            raise UserError(f"{path}: photo {image!r} appears twice; keep one of the two")
        if isinstance(item, dict) and "error" in item:
            check.keys(item, required=("error",))
            found[image] = None
        else:
            check.keys(item, required=("summary", "finished"))
            text = check.string(item["summary"], "summary")
            found[image] = text if item["finished"] is True else None
    return found


def _items(path: str | Path) -> Iterator[tuple[str, Any, FieldChecker]]:
    for where, value in iter_json_lines(path):
        check = FieldChecker(where, "")
        check.keys(value, required=("group", "images", "per_image"))
        images, items = check.images(value["images"]), check.list(value["per_image"], "per_image")
        if len(images) != len(items):
            check.fail("per_image", f"needs an entry for each of the {len(images)} images, has {len(items)}")
        for number_, (image, item) in enumerate(zip(images, items, strict=True)):
            yield image, item, FieldChecker(where, f"per_image[{number_}].")


def summary_metrics(
    rows: Iterable[Row], written: Mapping[str, str | None], training: Iterable[Row] = ()
) -> dict[str, Any]:
    """Shares of photos whose summary, and whose numbers, are right, and of fields that are written.

    Args:
        rows: annotated photos; those without a summary are left out.
        written: image → summary, None where it failed or was cut off, which counts as wrong; as does a missing photo.
        training: rows whose most frequent summary, written for every photo, is the baseline.

    Returns:
        ``photos``, ``failed`` (None or missing), SHARES, their ``intervals`` (Wilson's, 95 %; of the first two) and,
        given training rows, the same shares with the suffix ``_baseline``.

    Raises:
        UserError: no row has a summary.
    """
    truth = {row.images[0]: row.summary for row in rows if row.summary}
    if not truth:
        raise UserError("no annotated row has a summary, so there is nothing to score against")
    texts = [(text, written.get(image)) for image, text in truth.items()]
    counts = _counts(texts)
    metrics = {
        "photos": len(texts),
        "failed": sum(text is None for _, text in texts),
        **{name: ratio(*counts[name]) for name in SHARES},
        "intervals": {name: wilson(*counts[name]) for name in SHARES[:2]},
    }
    common = Counter(row.summary for row in training if row.summary).most_common(1)
    if common:
        guessed = _counts([(text, common[0][0]) for text, _ in texts])
        metrics |= {f"{name}_baseline": ratio(*guessed[name]) for name in SHARES}
    return metrics


def _counts(texts: Sequence[tuple[str, str | None]]) -> dict[str, tuple[int, int]]:
    """Name of a share → how many are right, of how many."""

    def right(of: Callable[[str], Any]) -> tuple[int, int]:
        return sum(text is not None and of(text) == of(truth) for truth, text in texts), len(texts)

    wanted = [fields_of(truth) for truth, _ in texts]
    there = [fields_of(text or "") for _, text in texts]
    hits = sum((one & other).total() for one, other in zip(wanted, there, strict=True))
    return {
        "accuracy": right(tidy),
        "number_accuracy": right(numbers_of),
        "field_accuracy": (hits, sum(one.total() for one in wanted)),
    }


def summary_lines(metrics: Mapping[str, Any]) -> str:
    """Plain text for a terminal; undefined values show as "-"."""
    titles = {"accuracy": "equal to the truth", "number_accuracy": "its numbers", "field_accuracy": "its fields"}
    lines = [["photos", str(metrics["photos"]), f"{metrics['failed']} of them failed or cut off"]]
    for name, title in titles.items():
        span = " to ".join(map(number, metrics["intervals"].get(name) or ()))
        base = f"baseline {number(metrics[f'{name}_baseline'])}" if f"{name}_baseline" in metrics else ""
        lines.append([title, number(metrics[name]), ", ".join(filter(None, (span, base)))])
    return "\n".join(aligned(lines))
