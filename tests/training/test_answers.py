"""A run whose samples are asked for boxes, summaries and groups, one photo not annotated, in planned packs."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bbu import stages
from bbu.config import load_config
from bbu.errors import ConfigError
from bbu.inference.predictor import Predictor
from bbu.jsonl import iter_json_lines, write_jsonl
from bbu.losses.weighting import count_terms
from bbu.models.checkpoint import load_processor
from bbu.records import read_rows
from bbu.stages.answers import questions_on, scores_on_val
from bbu.training.objective import DetectionObjective
from bbu.training.stopping import EvaluationStoppedError
from tests.jobs import write_job

RULES = """rules:
  - {name: few parts, description: %s, at_most: 0, per: photo}
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job whose photos have summaries and are of one site; the last photo of each split is not annotated."""
    path, records = write_job(tmp_path), tmp_path / "records"
    for split in ("train", "val", "test"):
        rows = [
            replace(row, summary=f"{len(row.objects)} parts", metadata={"group": "site"})
            for row in read_rows(records / f"{split}.jsonl")
        ]
        write_jsonl(records / f"{split}.jsonl", [*rows[:-1], replace(rows[-1], objects=(), annotated=False)])
    return path


@pytest.fixture
def answers(job: Path, tmp_path: Path) -> list[str]:
    """Overrides: every kind of answer, verdicts by a rule."""
    desc = next(item.desc for row in read_rows(tmp_path / "records" / "train.jsonl") for item in row.objects)
    (tmp_path / "rules.yaml").write_text(RULES % desc, encoding="utf-8")
    shares = f"boxes: 1, summary: 1, group: 1, verdict: 1, judged_by: {tmp_path / 'rules.yaml'}"
    return [f"data.answers={{{shares}}}", "data.answer_geometry=own"]


def test_it_trains_and_publishes_what_it_can_be_asked_and_scores_annotated_photos(
    job: Path, answers: list[str], tmp_path: Path
) -> None:
    config = load_config(job, [*answers, "training.pack_tokens=900", "training.eval_every=3"])
    run = stages.train(config, scored=True)
    losses = [log for _, log in iter_json_lines(tmp_path / "run" / "train_log.jsonl") if "loss" in log]
    assert len(losses) == 6 and all(log["loss/student_lm"] > 0 for log in losses)
    drawn = {run.stream.shown(run.stream.draw_at(position)).answer for position in range(40)}
    assert drawn == {"boxes", "summary", "group", "verdict"}
    assert len(run.val) == len(run.evaluation_rows) == 5 and len(run.students) == 6
    spec = load_processor(tmp_path / "run" / "model").spec
    assert spec.summary_instruction and spec.group_instruction and spec.verdict_instruction and spec.geometry == "own"


@pytest.mark.parametrize("metric", ["loss", "accuracy"])
def test_a_checkpoint_is_chosen_by_what_the_language_model_answers_on_val(
    job: Path, answers: list[str], tmp_path: Path, metric: str
) -> None:
    config = load_config(job, [*answers, "training.eval_every=2", f"training.select_best={metric}"])
    stages.train(config)
    logs = [log for _, log in iter_json_lines(tmp_path / "run" / "train_log.jsonl")]
    values = [log[f"eval_{metric}"] for log in logs if "eval_loss" in log]
    best = (min if metric == "loss" else max)(values)
    summary = json.loads((tmp_path / "run" / "train_summary.json").read_text())
    assert len(values) == 3 and summary["checkpoint"] == f"checkpoint-{2 * values.index(best) + 2}"


def test_the_loss_on_val_is_that_of_the_training_objective(job: Path, answers: list[str]) -> None:
    """The mean over the tokens of all right answers, each asked once, whatever the batches."""
    run = stages.open_run(load_config(job, answers))
    predictor = Predictor(run.model, run.processor, batch_size=3)
    found = scores_on_val(run, predictor, lambda: True)
    asked = questions_on(run, "val")
    assert Counter(question.answer for question in asked) == {"boxes": 5, "summary": 6, "group": 1, "verdict": 1}
    objective = DetectionObjective(run.model, run.config.loss)
    total, tokens = 0.0, 0
    for question in asked:
        batch = predictor.collator([run.processor.process_sample(question)])
        with torch.no_grad():
            total += float(objective(**batch)["student_lm"])
        tokens += count_terms(batch)["student_lm"]
    assert found["loss"] == pytest.approx(total / tokens, rel=1e-5) and set(found) == {"loss"}
    with pytest.raises(EvaluationStoppedError):
        scores_on_val(run, predictor, lambda: False)


def test_a_photo_that_is_gone_ends_no_evaluation(
    job: Path, answers: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = stages.open_run(load_config(job, [*answers, "training.select_best=accuracy"]))
    predictor = Predictor(run.model, run.processor, batch_size=3)
    _ = run.stream
    (tmp_path / "records" / run.val[0].images[0]).unlink()
    found = scores_on_val(run, predictor, lambda: True)
    assert found["loss"] is not None and found["accuracy"] == 0.0
    assert "val: 4 questions left out, e.g. " in capsys.readouterr().err


def test_the_whole_job_writes_and_scores_the_answers_of_the_evaluation_split(
    job: Path, answers: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config(job, [*answers, "evaluation.answers=3", "training.max_steps=2"])
    assert stages.run_job(config) == 0
    rows = [row for _, row in iter_json_lines(tmp_path / "run" / "answers.jsonl")]
    kinds = {"boxes": 3, "summary": 3, "group": 1, "verdict": 1}
    assert Counter(row["answer"] for row in rows) == kinds
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {answer: values["count"] for answer, values in metrics["answers"].items()} == kinds
    assert "AP50" in metrics and metrics["answers"]["verdict"]["verdict_accuracy_baseline"] in (0.0, 1.0)
    assert "verdict: 1 answers" in capsys.readouterr().out


def test_a_photo_that_is_not_annotated_needs_another_answer(job: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.answers: 005\.png has none of the answers with a share \(boxes\)"):
        stages.train(load_config(job))
