"""The commands that work on saved predictions: evaluate, compare, calibrate, thresholds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bbu.cli import main
from bbu.evaluation.calibration import Calibration
from bbu.evaluation.operating_points import operating_points
from bbu.jsonl import write_jsonl
from bbu.records import PredictionRow, read_predictions, read_rows
from tests.evaluation.photo_sets import photo, random_rows


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with truth.jsonl, a.jsonl and b.jsonl, which misses photos; the working folder."""
    truth, found = random_rows(1, photos=25)
    write_jsonl(tmp_path / "truth.jsonl", truth)
    write_jsonl(tmp_path / "a.jsonl", found)
    failed = PredictionRow(found[0].images, error="damaged")
    write_jsonl(tmp_path / "b.jsonl", [failed, *found[1:20]])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(path: str) -> dict:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def test_evaluate_takes_what_inspection_asks_for(place, capsys):
    asked = ["--precision", "0.8", "--fppi", "2", "0.5", "--bootstrap-samples", "20", "--output", "m.json"]
    assert main(["evaluate", "truth.jsonl", "a.jsonl", *asked]) == 0
    metrics = written("m.json")
    assert (metrics["target_precision"], metrics["fppi"], metrics["bootstrap_samples"]) == (0.8, [2, 0.5], 20)
    assert {"miss_rate_at_2", "miss_rate_agnostic_at_0.5"} < set(metrics["intervals"])
    shown = capsys.readouterr().out
    low, high = metrics["intervals"]["AP50"]
    assert f"{low:.3f} to {high:.3f}" in shown and "R@P0.8" in shown and "miss rate at 0.5 FPPI" in shown


def test_compare_prints_differences_and_writes_every_photo_that_changed(place, capsys):
    arguments = ["compare", "truth.jsonl", "a.jsonl", "b.jsonl", "--bootstrap-samples", "20", "--output", "c.json"]
    assert main(arguments) == 0
    comparison, shown = written("c.json"), capsys.readouterr().out
    assert comparison["lost"] > 0 == comparison["found"]
    difference = comparison["figures"]["AP50"]["difference"]
    assert difference < 0 and f"{difference:+.3f}" in shown
    assert comparison["photos"][0]["photo"] in shown
    assert ("more photos that changed" in shown) == (len(comparison["photos"]) > 10)


@pytest.mark.parametrize("kind", ["temperature", "isotonic"])
def test_calibrate_writes_what_a_model_folder_takes(place, capsys, kind):
    assert main(["calibrate", "truth.jsonl", "a.jsonl", "--kind", kind, "--output", "model/calibration.json"]) == 0
    calibration = Calibration.load(place / "model")
    assert calibration is not None and (calibration.kind, calibration.split) == (kind, "truth")
    assert "cross-fitted" in capsys.readouterr().out


@pytest.mark.parametrize(("goal", "value"), [("precision", 0.9), ("recall", 0.5), ("fppi", 1.0)])
def test_thresholds_writes_operating_points(place, capsys, goal, value):
    arguments = ["thresholds", "truth.jsonl", "a.jsonl", f"--{goal}", str(value), "--minimum", "5"]
    assert main([*arguments, "--output", "points.json"]) == 0
    truth, found = read_rows("truth.jsonl"), read_predictions("a.jsonl")
    assert written("points.json") == operating_points(truth, found, goal, value, minimum=5)
    assert "(all others)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "truth.jsonl", "a.jsonl", "--precision", "2"], ["precision", "2"]),
        (["evaluate", "truth.jsonl", "a.jsonl", "--fppi", "-1"], ["fppi", "-1"]),
        (["evaluate", "truth.jsonl", "a.jsonl", "--bootstrap-samples", "-1"], ["--bootstrap-samples", "-1"]),
        (["compare", "truth.jsonl", "a.jsonl"], ["b"]),
        (["compare", "truth.jsonl", "a.jsonl", "gone.jsonl"], ["gone.jsonl", "does not exist"]),
        (["compare", "truth.jsonl", "a.jsonl", "b.jsonl", "--threshold", "nan"], ["score_threshold", "nan"]),
        (["calibrate", "truth.jsonl", "a.jsonl"], ["--output"]),
        (["calibrate", "truth.jsonl", "empty.jsonl", "--output", "c.json"], ["0 of 0", "calibration"]),
        (["thresholds", "truth.jsonl", "a.jsonl"], ["--precision", "--recall", "--fppi"]),
        (["thresholds", "truth.jsonl", "a.jsonl", "--recall", "0.5", "--precision", "0.5"], ["not allowed with"]),
        (["thresholds", "truth.jsonl", "a.jsonl", "--recall", "1.5", "--output", "p.json"], ["recall", "1.5"]),
        (["thresholds", "truth.jsonl", "empty.jsonl", "--recall", "1"], ["nothing to choose on"]),
    ],
)
def test_mistakes_are_one_line_and_leave_no_file(place, capsys, arguments, words):
    write_jsonl(place / "empty.jsonl", [])
    before = sorted(path.name for path in place.iterdir())
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bbu: error: ") and all(word in line for word in words)
    assert sorted(path.name for path in place.iterdir()) == before


@pytest.mark.parametrize("rows", [[], [photo("a.jpg")]])
def test_sets_with_nothing_in_them_are_scored_and_compared(place, rows):
    write_jsonl(place / "truth.jsonl", rows)
    write_jsonl(place / "empty.jsonl", [])
    assert main(["evaluate", "truth.jsonl", "empty.jsonl", "--output", "m.json"]) == 0
    assert main(["compare", "truth.jsonl", "empty.jsonl", "empty.jsonl", "--output", "c.json"]) == 0
    assert written("m.json")["AP"] is None and written("c.json")["photos"] == []


@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("evaluation.fppi=[1,-1]", "between 0 and 1,000,000"),
        ("evaluation.fppi=[.nan]", "finite number"),
        ("evaluation.calibration=platt", "temperature"),
        ("evaluation.target_precision=2", "between 0 and 1"),
        ("evaluation.bootstrap_samples=-1", "must not be negative"),
    ],
)
def test_a_config_that_could_not_be_scored_is_refused_before_training(tmp_path, capsys, override, word):
    (tmp_path / "small.yaml").write_text("training: {max_steps: 5}\n", encoding="utf-8")
    assert main(["check", str(tmp_path / "small.yaml"), override]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert override.partition("=")[0] in line and word in line
