"""Verdicts that the model wrote: read, judged at a threshold, scored; through the command."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbu.cli import main
from bbu.errors import RecordError, UserError
from bbu.families.prompts import verdict_text
from bbu.jsonl import write_jsonl
from bbu.judging.thresholds import choose_written_threshold
from bbu.judging.verdicts import FAIL, PASS, read_verdicts
from bbu.judging.written import WrittenGroup, is_written, judge_written, parse_written, read_written


def written(group: str, chance: float, text: str = "") -> WrittenGroup:
    text = text or verdict_text(PASS if chance >= 0.5 else FAIL, f"because of {group}")
    return WrittenGroup(group, (f"{group}/1.jpg", f"{group}/2.jpg"), text, True, chance)


GOOD, BAD = written("good", 0.9), written("bad", 0.2)
UNSURE, BROKEN = written("unsure", 0.6), written("broken", 0.95, "it passes")
LOST = WrittenGroup("lost", ("lost/1.jpg",), error="lost/1.jpg could not be read: is damaged")
ALL = [GOOD, BAD, UNSURE, BROKEN, LOST]
TRUTH = {"good": PASS, "bad": FAIL, "unsure": FAIL, "broken": PASS, "lost": PASS}


def test_a_group_passes_where_its_answer_is_well_formed_and_pass_is_likely_enough() -> None:
    at_half = {verdict.group: verdict for verdict in judge_written(ALL, 0.5, TRUTH)}
    assert {name for name, verdict in at_half.items() if verdict.verdict == PASS} == {"good", "unsure"}
    assert {name for name, verdict in at_half.items() if verdict.malformed} == {"broken"}
    assert at_half["good"].reason == "because of good"
    assert at_half["broken"].reason == "malformed answer: 'it passes'" and "is damaged" in at_half["lost"].reason
    strict = {verdict.group: verdict for verdict in judge_written(ALL, 0.8)}
    assert strict["unsure"].verdict == FAIL and strict["unsure"].truth is None
    assert strict["unsure"].reason == "probability of pass 0.600, below 0.8; written: pass, because of unsure"
    assert not replace(GOOD, finished=False).passes(0.0), "an answer that was cut off is malformed"


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.booleans()), min_size=1, max_size=12), st.floats(0, 1))
def test_the_threshold_is_the_best_of_all_that_keep_to_the_bound(rows: list[Any], bound: float) -> None:
    groups = [written(f"{n:02}", chance, "" if fine else "?") for n, (chance, fine, _) in enumerate(rows)]
    truth = {group.group: FAIL if bad else PASS for group, (_, _, bad) in zip(groups, rows, strict=True)}
    bad = [group for group in groups if truth[group.group] == FAIL]
    if not bad:
        with pytest.raises(UserError, match="none of"):
            choose_written_threshold(groups, truth, bound)
        return
    chosen = choose_written_threshold(groups, truth, bound)
    good = [group for group in groups if truth[group.group] == PASS]

    def errors(threshold: float) -> tuple[int, int]:
        return sum(g.passes(threshold) for g in bad), sum(not g.passes(threshold) for g in good)

    assert errors(chosen["threshold"]) == (chosen["false_passes"], chosen["false_fails"])
    kept = [errors(t) for t in np.linspace(0, 1, 201) if errors(t)[0] <= bound * len(bad)]
    if kept:
        assert chosen["reached"] and chosen["false_passes"] <= bound * len(bad) + 1e-9
        assert chosen["false_fails"] <= min(fails for _, fails in kept)


def test_rows_read_back_as_they_were_written(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "w.jsonl", ALL)
    assert is_written(tmp_path / "w.jsonl")
    assert read_written(tmp_path / "w.jsonl") == sorted(ALL, key=lambda row: row.group)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pass_probability": 1.5}, "pass_probability"),
        ({"finished": "yes"}, "finished: must be true or false"),
        ({"text": 5}, "text"),
        ({"more": 1}, "more"),
        ({"images": []}, "images"),
        ({"error": ""}, "error"),
    ],
)
def test_a_bad_row_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(RecordError, match=rf"w\.jsonl:3: .*{message}"):
        parse_written({**(LOST if "error" in change else GOOD).to_json(), **change}, "w.jsonl:3")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_jsonl("w.jsonl", ALL)
    write_jsonl("truth.jsonl", [{"group": group, "verdict": verdict} for group, verdict in TRUTH.items()])
    return tmp_path


def test_the_command_judges_and_scores_them(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--verdicts", "truth.jsonl", "--output", "v.jsonl", "--metrics", "m.json")
    assert main(["judge", "w.jsonl", *options]) == 0
    metrics, shown = json.loads(Path("m.json").read_text()), capsys.readouterr().out
    assert (metrics["groups"], metrics["malformed"], metrics["false_passes"], metrics["false_fails"]) == (5, 1, 1, 2)
    assert metrics["threshold"] == 0.5 and "malformed" in shown and "because of bad" in shown
    rows = {row["group"]: row for row in read_verdicts("v.jsonl")}
    assert rows["broken"]["malformed"] and rows["good"]["pass_probability"] == 0.9 and rows["bad"]["evidence"] == []


def test_a_threshold_for_a_bound_is_chosen_on_one_file_and_used_on_another(place: Path) -> None:
    bound = ("--choose-threshold", "t.json", "--max-false-pass", "0")
    assert main(["judge", "w.jsonl", "--verdicts", "truth.jsonl", *bound]) == 0
    chosen = json.loads(Path("t.json").read_text())
    assert (chosen["threshold"], chosen["false_passes"], chosen["rules"]) == (0.9, 0, None)
    assert main(["judge", "w.jsonl", "--threshold-from", "t.json", "--output", "v.jsonl"]) == 0
    assert {row["group"] for row in read_verdicts("v.jsonl") if row["verdict"] == PASS} == {"good"}


def test_annotated_rows_give_the_truth_by_rules(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loose = {"desc": "screw/loose", "bbox_2d": [1, 1, 9, 9]}
    rows = [
        {"images": [name], "width": 20, "height": 20, "objects": [loose] if group is BAD else []}
        for group in (GOOD, BAD)
        for name in group.images
    ]
    write_jsonl("rows.jsonl", rows)
    Path("r.yaml").write_text("rules:\n  - {name: tight, description: screw/loose, at_most: 0}\n", encoding="utf-8")
    options = ("--annotations", "rows.jsonl", "--metrics", "m.json")
    assert main(["judge", "w.jsonl", "--rules", "r.yaml", *options]) == 0
    metrics = json.loads(Path("m.json").read_text())
    assert (metrics["groups_with_truth"], metrics["accuracy"]) == (2, 1.0)
    assert main(["judge", "w.jsonl", *options]) == 2
    assert "annotated objects give a verdict by rules alone: give --rules too" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", json.dumps(GOOD.to_json()) + "\n" + json.dumps(GOOD.to_json()) + "\n"])
def test_an_empty_or_doubled_file_is_one_clear_line(place: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("w.jsonl").write_text(text, encoding="utf-8")
    assert main(["judge", "w.jsonl", "--output", "v.jsonl"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and ("twice" in said or "there is nothing to judge" in said)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rules", "nowhere.yaml"], "--rules would do nothing: they judge the annotated objects"),
        (["--group-by", "folder"], "--group-by would do nothing: the file has the groups"),
        (["--allow-single-photos"], "--allow-single-photos would do nothing"),
        (["--descriptions", "d.json"], "--descriptions would do nothing: it checks --rules"),
        (["--rules", "r.yaml", "--verdicts", "t", "--annotations", "a"], "--rules with --verdicts would do nothing"),
    ],
)
def test_options_without_effect_are_refused(
    place: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["judge", "w.jsonl", "--output", "v.jsonl", *options]) == 2
    assert message in capsys.readouterr().err


def test_thresholds_tell_probabilities_apart_that_are_nearly_one(tmp_path: Path) -> None:
    groups = [written("good", 1 - 1e-9), written("bad", 1 - 1e-8)]
    write_jsonl(tmp_path / "w.jsonl", groups)
    chosen = choose_written_threshold(read_written(tmp_path / "w.jsonl"), {"good": PASS, "bad": FAIL}, 0.0)
    assert (chosen["reached"], chosen["false_passes"], chosen["false_fails"]) == (True, 0, 0)
