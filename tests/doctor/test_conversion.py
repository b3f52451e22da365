"""What conversion skipped, dropped and noted becomes a finding; the doctor's own preparation touches nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bbu.config import Config
from bbu.doctor.conversion import conversion_findings
from bbu.doctor.preparation import doctor_config
from bbu.jsonl import write_json, write_jsonl


def left_behind(folder: Path) -> Path:
    write_jsonl(
        folder / "invalid_samples.jsonl",
        [
            {"source": "a.json", "field": "file", "reason": "malformed", "detail": "is not valid JSON"},
            {"source": "b.jpg", "field": "file", "reason": "no_annotation", "detail": "has no JSON beside it"},
            {"source": "c.xml", "field": "split", "reason": "split_left_out", "detail": "is not in --splits"},
        ],
    )
    dropped = {"source": "d.json", "field": "features[0]", "detail": "because"}
    reasons = ["outside_hierarchy"] * 7 + ["zero_area", "photo_skipped", "split_left_out"]
    write_jsonl(folder / "invalid_objects.jsonl", [{**dropped, "label": "标签", "reason": item} for item in reasons])
    write_json(
        folder / "conversion_report.json",
        {"notes": {"clipped_object": 3, "exif_orientation_6": 9, "column not read: score": 4}},
    )
    return folder


def test_every_reason_is_one_finding(tmp_path: Path) -> None:
    found = {(item.code, item.severity): item for item in conversion_findings(left_behind(tmp_path), "skip")}
    assert sorted((code, severity, item.count) for (code, severity), item in found.items()) == [
        ("conversion_note", "warning", 3),
        ("conversion_notes", "info", 1),
        ("dropped_object", "warning", 1),
        ("dropped_outside_hierarchy", "warning", 7),
        ("skipped_malformed", "warning", 1),
        ("skipped_photo", "info", 1),
        ("skipped_photo", "warning", 1),
    ]
    hierarchy = found["dropped_outside_hierarchy", "warning"]
    assert "标签 7" in hierarchy.meaning and len(hierarchy.examples) == 5
    assert hierarchy.examples[0].line() == "d.json: 标签 (features[0]): because"


def test_remarks_about_the_whole_source_are_findings(tmp_path: Path) -> None:
    remarks = {
        "labels_never_read": ["train/labelTxt/ (9 .txt)", "valid/labelTxt/ (2 .txt)"],
        "option_without_effect": ["frame stored has no effect"],
        "group_across_splits": ["2 groups"],
        "nothing_held_out": ["train alone"],
        "many_photos_without_objects": ["the rows say it themselves"],
    }
    write_json(tmp_path / "conversion_report.json", {"notes": {}, "remarks": remarks})
    found = conversion_findings(tmp_path, "skip")
    assert [(item.code, item.severity, item.count) for item in found] == [
        ("labels_never_read", "warning", 2),
        ("option_without_effect", "info", 1),
        ("group_across_splits", "warning", 1),
        ("nothing_held_out", "info", 1),
    ]
    assert found[0].examples[0].line() == "train/labelTxt/ (9 .txt)"


@pytest.mark.parametrize(("count", "severity"), [(1, "info"), (3, "warning")])
def test_many_photos_without_a_label_file_are_a_warning(tmp_path: Path, count: int, severity: str) -> None:
    report = {"notes": {"no_label_file": count}, "photos": {"written": 10}}
    write_json(tmp_path / "conversion_report.json", report)
    (found,) = conversion_findings(tmp_path, "skip")
    assert (found.code, found.count, found.severity) == ("conversion_note", count, severity)


def test_a_broken_file_is_an_error_where_the_job_would_stop_at_it(tmp_path: Path) -> None:
    found = conversion_findings(left_behind(tmp_path), "fail")
    assert [item.severity for item in found if item.code == "skipped_malformed"] == ["error"]


def test_a_folder_that_was_not_converted_has_no_findings(tmp_path: Path) -> None:
    assert conversion_findings(tmp_path, "fail") == []


def test_drawn_photos_are_used_again_and_others_left_alone(tmp_path: Path) -> None:
    config = Config(output_dir=str(tmp_path / "run"))
    config.data.source.format, config.data.source.photos = "cabinet_photos", {"train": 3}
    raw = tmp_path / "run" / "data" / "raw"
    assert doctor_config(config, tmp_path / "own").data.source.path == ""  # nothing is drawn yet
    raw.mkdir(parents=True)
    (raw.parent / "raw.json").write_text(json.dumps({"photos": {"train": 3}, "seed": config.seed}), encoding="utf-8")
    changed = doctor_config(config, tmp_path / "own")
    assert changed.data.source.path == str(raw) and changed.output_dir == str(tmp_path / "own")
    assert changed.data.source.on_error == "skip" and config.data.source.on_error == "fail"
    config.data.source.photos = {"train": 4}  # these would be drawn in place of the run's
    for path in ("", str(raw), str(tmp_path / "elsewhere")):
        config.data.source.path = path
        assert doctor_config(config, tmp_path / "own").data.source.path == ""
