"""Write all files of a conversion beside the output folder, and move them into place at the end."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bbu.errors import UserError
from bbu.jsonl import write_json, write_jsonl
from data_conversion.journal import Journal
from data_conversion.report import ConversionReport

REPORT = "conversion_report.json"  # moved last: a folder with a report is complete
REFUSED = "nothing_converted"  # folder of reports beside the rows of an earlier conversion
PHOTOS = "photos"  # the folder of linked, copied and re-encoded photos
OUTPUTS = (
    "train.jsonl",
    "val.jsonl",
    "test.jsonl",
    "teacher.jsonl",
    "all_samples.jsonl",
    "label_vocabulary.json",
    "invalid_objects.jsonl",
    "invalid_samples.jsonl",
    REPORT,
)


def write_outputs(folder: Path, journal: Journal, report: ConversionReport) -> None:
    """Write one JSONL per split and the files about all splits; completes ``report.splits``.

    Outputs of an earlier conversion are replaced or, if this one has none of that name, removed; other files in the
    folder stay.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = folder.resolve()  # a link to a folder is followed, not replaced
    staging, photos = journal.folder / "files", journal.folder / PHOTOS
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        counts: dict[str, Counter[str]] = {}
        for name in (*report.splits, "teacher"):
            counts[name] = Counter()
            written = write_jsonl(staging / f"{name}.jsonl", _counted(journal.rows(name), counts[name]))
            report.splits[name] = {"photos": written, "objects": counts[name].total()}
        write_jsonl(staging / "all_samples.jsonl", journal.rows())
        write_json(staging / "label_vocabulary.json", _vocabulary(counts))
        write_jsonl(staging / "invalid_objects.jsonl", _invalid_objects(journal))
        write_jsonl(staging / "invalid_samples.jsonl", _invalid_samples(journal))
        write_json(staging / REPORT, report.to_json())
        _move_into_place(staging, photos if photos.exists() else None, folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another output folder") from None


def write_refusals(folder: Path, journal: Journal, report: ConversionReport) -> Path:
    """Write what was lost, and why, of a source that gave no row; returns the folder of these files.

    Raises:
        UserError: the folder cannot be written.
    """
    if (folder / "train.jsonl").exists():  # an earlier conversion, which stays as it is
        folder = folder / REFUSED
    staging = journal.folder / "refused"
    try:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        write_jsonl(staging / "invalid_objects.jsonl", _invalid_objects(journal))
        write_jsonl(staging / "invalid_samples.jsonl", _invalid_samples(journal))
        write_json(staging / REPORT, report.to_json())
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(staging.iterdir(), reverse=True):
            os.replace(path, folder / path.name)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another output folder") from None
    return folder


def _counted(rows: Iterable[dict[str, Any]], labels: Counter[str]) -> Iterator[dict[str, Any]]:
    for row in rows:
        labels.update(item["desc"] for item in row["objects"])
        yield row


def _vocabulary(counts: Mapping[str, Counter[str]]) -> dict[str, dict[str, int]]:
    """``all`` and every split → description → count, most frequent first."""
    total = sum(counts.values(), Counter[str]())
    return {
        name: dict(sorted(count.items(), key=lambda pair: (-pair[1], pair[0])))
        for name, count in {"all": total, **counts}.items()
    }


def _invalid_objects(journal: Journal) -> Iterator[dict[str, Any]]:
    for source, _, dropped in journal.lost():
        for item in dropped:
            yield {"source": source, "field": item.field, "label": item.label, "reason": item.reason,
                   "detail": item.detail}  # fmt: skip


def _invalid_samples(journal: Journal) -> Iterator[dict[str, Any]]:
    for _, bad, _ in journal.lost():
        if bad is not None:
            yield {"source": bad.source, "field": bad.field, "reason": bad.reason, "detail": bad.detail}


def _move_into_place(staging: Path, photos: Path | None, folder: Path) -> None:
    staging.chmod(0o755)
    if not folder.exists() or not any(folder.iterdir()):
        if photos is not None:
            os.replace(photos, staging / PHOTOS)
        os.replace(staging, folder)  # a new or empty folder: one step
        return
    (folder / REPORT).unlink(missing_ok=True)
    old = staging / "old"
    if (folder / PHOTOS).exists():
        os.replace(folder / PHOTOS, old)
    if photos is not None:
        os.replace(photos, folder / PHOTOS)
    for name in OUTPUTS:
        if (staging / name).exists():
            os.replace(staging / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
