"""A run judges the groups of its evaluation split by rules, at a threshold chosen on val."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bbu import stages
from bbu.config import load_config
from bbu.errors import UserError
from bbu.jsonl import write_jsonl
from bbu.judging.verdicts import read_verdicts
from bbu.records import PredictedObject, PredictionRow, Row, read_rows
from bbu.stages.judging import judge_groups
from bbu.stages.run import Run
from tests.jobs import write_job


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Photos of sites of two, one without a site; a rule that those sites break which show a certain description."""
    job, records = write_job(tmp_path, photos=7), tmp_path / "records"
    sites = ["a", "a", "b", "b", "c", "c", None]
    for split in ("train", "val", "test"):
        rows = [
            replace(row, metadata={"group": site} if site else {})
            for row, site in zip(read_rows(records / f"{split}.jsonl"), sites, strict=True)
        ]
        write_jsonl(records / f"{split}.jsonl", rows)
    desc = next(item.desc for row in rows for item in row.objects)
    rules = tmp_path / "rules.yaml"
    rules.write_text(f"rules:\n  - {{name: none of these, description: {desc}, at_most: 0}}\n", encoding="utf-8")
    found = stages.open_run(load_config(job, [f"evaluation.rules={rules}"]))
    found.output.mkdir(exist_ok=True)
    return found


def predicted(rows: list[Row], score: float) -> list[PredictionRow]:
    """Every object found, with this score; besides it, everywhere one that is not there, with half of it."""
    desc = next(item.desc for row in rows for item in row.objects)
    return [
        PredictionRow(
            row.images,
            row.width,
            row.height,
            (
                *(PredictedObject(item.box, item.desc, score, score) for item in row.objects),
                PredictedObject((0.0, 0.0, 5.0, 5.0), desc, score / 2, score / 2),
            ),
        )
        for row in rows
    ]


def test_sites_are_judged_at_the_threshold_that_val_chose(run: Run) -> None:
    write_jsonl(run.output / "val_predictions.jsonl", predicted(run.val, 0.8))
    write_jsonl(run.output / "predictions.jsonl", predicted(run.evaluation_rows, 0.9))
    metrics: dict[str, object] = {"AP": 0.5}
    found = judge_groups(run, metrics)
    assert found is not None
    assert (found["threshold"], found["threshold_from"]) == (0.8, "val, for a false-pass rate of 0.01")
    verdicts = {row["group"]: row for row in read_verdicts(run.output / "verdicts.jsonl")}
    assert set(verdicts) == {"a", "b", "c"}, "a photo without a group is left out"
    assert json.loads((run.output / "metrics.json").read_text())["verdicts"] == found and metrics["verdicts"] == found
    assert (found["groups_with_truth"], found["accuracy"]) == (3, 1.0)
    assert {row["verdict"] for row in verdicts.values()} == {"pass", "fail"}, (
        "the boxes of half the score are not counted"
    )


def test_without_val_the_score_threshold_of_the_config_serves(run: Run) -> None:
    write_jsonl(run.output / "predictions.jsonl", predicted(run.evaluation_rows, 0.9))
    found = judge_groups(run, {})
    assert found is not None
    assert (found["threshold"], found["threshold_from"]) == (0.3, "evaluation.score_threshold")
    assert found["false_passes"] == 0


def test_without_rules_or_groups_nothing_is_judged(run: Run) -> None:
    write_jsonl(run.output / "predictions.jsonl", [])
    assert judge_groups(run, {}) is None
    run.config.evaluation.rules = ""
    assert judge_groups(run, {}) is None and not (run.output / "verdicts.jsonl").exists()


def test_a_rule_on_what_training_does_not_show_is_named_before_it_trains(run: Run, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("rules:\n  - {name: x, description: nothing, at_most: 0}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"rules\.yaml: rules\[0\]\.description: 'nothing' is no known description"):
        stages.train(run.config, scored=True)
    assert not list(run.output.glob("checkpoint-*"))


def test_the_job_writes_verdicts_and_shows_them(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    run.config.training.max_steps = 1
    assert stages.run_job(run.config) == 0
    page = (run.output / "report.html").read_text(encoding="utf-8")
    assert "accuracy of verdicts" in capsys.readouterr().out and '"verdicts"' in page
    assert len(read_verdicts(run.output / "verdicts.jsonl")) == 3
