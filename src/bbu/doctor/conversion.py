"""Findings from conversion's own report: what it skipped, dropped and noted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bbu.doctor.boxes import counted
from bbu.doctor.findings import ERROR, INFO, MAX_EXAMPLES, WARNING, Example, Finding, finding
from bbu.errors import RecordError
from bbu.jsonl import decode_json, iter_json_lines

MALFORMED, OUTSIDE_HIERARCHY = "malformed", "outside_hierarchy"
CONSEQUENCES = ("photo_skipped", "split_left_out")  # objects of photos that another finding already names
MEANT = ("split_left_out", "not_in_image_sets")  # left out on purpose, by the config or the source's own lists
KEYS = {"source", "field", "reason", "detail"}
NOTES = {
    "clipped_object": (WARNING, "Objects extended beyond their photo by more than half a pixel and were clipped."),
    "rescaled_unevenly": (WARNING, "Annotation and photo differ in aspect ratio, so boxes were stretched."),
    "rescaled": (INFO, "The annotation was made at another size; boxes were scaled to the photo."),
    "no_label_file": (INFO, "Photos without a label file count as photos with nothing to see."),
}
SUSPICIOUS_IF_MANY = ("no_label_file",)  # a warning from this share of the photos on
MANY = 0.2
USUAL = ("exif_orientation_",)  # notes that are no oddity
REMARKS = ("labels_never_read", "option_without_effect", "nothing_held_out", "group_across_splits")


def conversion_findings(folder: Path, on_error: str) -> list[Finding]:
    """Findings from conversion_report.json and the invalid_*.jsonl of a prepared folder; none without these files.

    Args:
        on_error: the config's data.source.on_error; ``fail`` makes malformed files errors.

    Raises:
        RecordError: one of these files does not have conversion's format.
    """
    return [*_skipped(folder, on_error), *_dropped(folder), *_noted(folder)]


def _lines(path: Path) -> list[dict[str, Any]]:
    lines = []
    for where, value in iter_json_lines(path) if path.is_file() else ():
        if not isinstance(value, dict) or not set(value) >= KEYS:
            raise RecordError(where, "row", "does not have conversion's format; convert again or delete the file")
        lines.append({"label": "", **value})
    return lines


def _by_reason(lines: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    reasons: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        reasons.setdefault(str(line["reason"]), []).append(line)
    return dict(sorted(reasons.items(), key=lambda pair: -len(pair[1])))


def _skipped(folder: Path, on_error: str) -> list[Finding]:
    found = []
    for reason, lines in _by_reason(_lines(folder / "invalid_samples.jsonl")).items():
        examples = [Example(line["source"], object=line["field"], detail=line["detail"]) for line in lines]
        if reason == MALFORMED:
            found.append(finding("skipped_malformed", examples, severity=ERROR if on_error == "fail" else None))
        else:
            severity = INFO if reason in MEANT else None
            found.append(finding("skipped_photo", examples, severity=severity, reason=reason))
    return found


def _dropped(folder: Path) -> list[Finding]:
    found = []
    for reason, lines in _by_reason(_lines(folder / "invalid_objects.jsonl")).items():
        if reason in CONSEQUENCES:
            continue
        labels = counted(Counter(str(line["label"]) for line in lines))
        examples = [
            Example(line["source"], object=f"{line['label']} ({line['field']})", detail=line["detail"])
            for line in lines[:MAX_EXAMPLES]
        ]
        code = "dropped_outside_hierarchy" if reason == OUTSIDE_HIERARCHY else "dropped_object"
        found.append(finding(code, examples, len(lines), reason=reason, labels=labels))
    return found


def _noted(folder: Path) -> list[Finding]:
    path = folder / "conversion_report.json"
    report = decode_json(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else {}
    notes: dict[str, int] = report.get("notes", {})
    photos = report.get("photos", {}).get("written", 0)
    found = []
    for reason, (severity, meaning) in NOTES.items():
        if notes.get(reason):
            worse = WARNING if reason in SUSPICIOUS_IF_MANY and notes[reason] >= MANY * photos else severity
            found.append(finding("conversion_note", [], notes[reason], worse, reason=reason, meaning=meaning))
    others = {note: count for note, count in notes.items() if note not in NOTES and not note.startswith(USUAL)}
    if others:
        ranked = sorted(others.items(), key=lambda pair: (-pair[1], pair[0]))
        found.append(finding("conversion_notes", [Example(object=note, detail=str(count)) for note, count in ranked]))
    for code, texts in report.get("remarks", {}).items():
        if code in REMARKS:
            found.append(finding(code, [Example(detail=text) for text in texts]))
    return found
