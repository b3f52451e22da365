"""Write all files of a conversion together: made in a temporary folder, moved into place at the end."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bbu.errors import UserError
from bbu.records import Row, write_json, write_jsonl

REPORT = "conversion_report.json"  # moved last: a folder with a report is complete
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


def write_outputs(
    folder: Path,
    splits: Mapping[str, Sequence[Row]],
    invalid_objects: Sequence[Mapping[str, Any]],
    invalid_samples: Sequence[Mapping[str, Any]],
    report: Mapping[str, Any],
) -> None:
    """Write one JSONL for each split and the files about all of them.

    Outputs of an earlier conversion are replaced or, if this one has none of that name, removed; other
    files in the folder stay.

    Raises:
        UserError: the folder cannot be written.
    """
    folder = folder.resolve()  # a link to a folder is followed, not replaced
    temporary: str | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.")
        staging = Path(temporary)
        for name, rows in splits.items():
            write_jsonl(staging / f"{name}.jsonl", rows)
        every_row = sorted((row for rows in splits.values() for row in rows), key=lambda row: row.images)
        write_jsonl(staging / "all_samples.jsonl", every_row)
        write_json(staging / "label_vocabulary.json", _vocabulary(splits))
        write_jsonl(staging / "invalid_objects.jsonl", invalid_objects)
        write_jsonl(staging / "invalid_samples.jsonl", invalid_samples)
        write_json(staging / REPORT, report)
        _move_into_place(staging, folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}); choose another output folder") from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _vocabulary(splits: Mapping[str, Sequence[Row]]) -> dict[str, dict[str, int]]:
    """Key all and every split → description → count, most frequent first."""
    counts = {name: Counter(item.desc for row in rows for item in row.objects) for name, rows in splits.items()}
    total = sum(counts.values(), Counter[str]())
    return {
        name: dict(sorted(count.items(), key=lambda pair: (-pair[1], pair[0])))
        for name, count in {"all": total, **counts}.items()
    }


def _move_into_place(staging: Path, folder: Path) -> None:
    staging.chmod(0o755)
    if not folder.exists() or not any(folder.iterdir()):
        os.replace(staging, folder)  # a new or empty folder: one step
        return
    (folder / REPORT).unlink(missing_ok=True)
    for name in OUTPUTS:
        if (staging / name).exists():
            os.replace(staging / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
