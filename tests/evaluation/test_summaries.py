"""Scores of written summaries: whole, number by number and field by field, beside the commonest training summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbu.cli import main
from bbu.errors import RecordError, UserError
from bbu.evaluation.summaries import fields_of, numbers_of, read_summaries, summary_metrics
from bbu.jsonl import write_jsonl
from bbu.records import Row

TRUTH = ["共3个目标：螺丝×2，标签×1", "共0个目标", "共1个目标：螺丝×1", "共1个目标：螺丝×1"]
ROWS = [Row((f"{n}.png",), (), 9, 9, summary=text) for n, text in enumerate(TRUTH)]
TEXTS = st.text(alphabet="ab 0123.,:：，×", max_size=20)


def written(*texts: str | None) -> dict[str, str | None]:
    return {f"{number}.png": text for number, text in enumerate(texts)}


def test_what_is_right_is_counted_whole_by_numbers_and_by_fields() -> None:
    metrics = summary_metrics(ROWS, written(TRUTH[0], "共0个目标 ", "共1个目标：标签×1", None))
    assert metrics["photos"] == 4 and metrics["failed"] == 1
    assert metrics["accuracy"] == 2 / 4 and metrics["number_accuracy"] == 3 / 4
    assert metrics["field_accuracy"] == (3 + 1 + 1) / (3 + 1 + 2 + 2)
    assert metrics["intervals"]["accuracy"][0] < 0.5 < metrics["intervals"]["accuracy"][1]
    assert not any(name.endswith("_baseline") for name in metrics)


def test_the_baseline_is_the_most_frequent_training_summary() -> None:
    metrics = summary_metrics(ROWS, written(*TRUTH), ROWS)
    assert (metrics["accuracy"], metrics["accuracy_baseline"]) == (1.0, 0.5)
    assert metrics["number_accuracy_baseline"] == 0.5 and metrics["field_accuracy_baseline"] == 4 / 8


def test_a_photo_without_a_written_summary_is_wrong_and_one_without_a_true_one_does_not_count() -> None:
    metrics = summary_metrics([*ROWS, Row(("x.png",), (), 9, 9)], {"0.png": TRUTH[0], "x.png": "anything"})
    assert (metrics["photos"], metrics["failed"], metrics["accuracy"]) == (4, 3, 1 / 4)
    with pytest.raises(UserError, match="no annotated row has a summary"):
        summary_metrics([Row(("x.png",), (), 9, 9)], {})


@given(TEXTS)
def test_a_text_is_itself(text: str) -> None:
    rows = [Row(("a.png",), (), 9, 9, summary=text or "x")]
    metrics = summary_metrics(rows, {"a.png": f" {text or 'x'}\n"})
    assert metrics["accuracy"] == metrics["number_accuracy"] == 1
    assert metrics["field_accuracy"] in (1, None), "None: it is all punctuation"


def test_numbers_and_times_are_no_ends_of_fields() -> None:
    text = "at 12:30, 1,200 parts: 3.5 mm. Two loose."
    assert sorted(fields_of(text)) == ["1,200 parts", "3.5 mm", "Two loose", "at 12:30"]
    assert numbers_of("3.5 mm, 12 parts, no 4") == ["3.5", "12", "4"]


def test_a_file_of_summaries_is_read_strictly(tmp_path: Path) -> None:
    good: dict[str, Any] = {"group": "a", "images": ["1.png", "2.png", "3.png"], "per_image": [
        {"summary": "x", "finished": True}, {"summary": "y", "finished": False}, {"error": "gone"}]}  # fmt: skip
    path = tmp_path / "summaries.jsonl"
    path.write_text(json.dumps(good) + "\n", encoding="utf-8")
    assert read_summaries(path) == {"1.png": "x", "2.png": None, "3.png": None}
    bad = [
        ({**good, "per_image": good["per_image"][:2]}, "per_image: needs an entry for each of the 3 images, has 2"),
        ({**good, "per_image": [3, 4, 5]}, r"per_image\[0\]"),
        ({**good, "images": []}, "images: needs at least one path"),
        ({"images": ["1.png"]}, "group: is missing"),
    ]
    for value, message in bad:
        path.write_text(json.dumps(value) + "\n", encoding="utf-8")
        with pytest.raises(RecordError, match=message):
            read_summaries(path)
    path.write_text(f"{json.dumps(good)}\n" * 2, encoding="utf-8")
    with pytest.raises(UserError, match=r"photo '1\.png' appears twice"):
        read_summaries(path)


def test_the_command_prints_and_writes_the_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "truth.jsonl", ROWS)
    rows = [{"group": None, "images": [f"{n}.png"], "per_image": [{"summary": TRUTH[2], "finished": True}]}
            for n in range(4)]  # fmt: skip
    (tmp_path / "out.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    files = [str(tmp_path / name) for name in ("truth.jsonl", "out.jsonl", "truth.jsonl", "metrics.json")]
    assert main(["evaluate-summaries", *files[:2], "--train", files[2], "--output", files[3]]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["accuracy"] == metrics["accuracy_baseline"] == 0.5
    printed = capsys.readouterr().out
    assert "equal to the truth  0.500" in printed and "baseline 0.500" in printed
