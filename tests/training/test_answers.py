"""A run whose samples are asked for boxes, summaries and groups, one photo not annotated, in planned packs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from bbu import stages
from bbu.config import load_config
from bbu.errors import ConfigError
from bbu.jsonl import iter_json_lines, write_jsonl
from bbu.models.checkpoint import load_processor
from bbu.records import read_rows
from tests.jobs import write_job

ANSWERS = ["data.answers={boxes: 1, summary: 1, group: 1}", "data.answer_geometry=own"]


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


def test_it_trains_and_publishes_what_it_can_be_asked_and_scores_annotated_photos(job: Path, tmp_path: Path) -> None:
    config = load_config(job, [*ANSWERS, "training.pack_tokens=900", "training.eval_every=3"])
    run = stages.train(config, scored=True)
    losses = [log for _, log in iter_json_lines(tmp_path / "run" / "train_log.jsonl") if "loss" in log]
    assert len(losses) == 6 and all(log["loss/student_lm"] > 0 for log in losses)
    drawn = {run.stream.shown(run.stream.draw_at(position)).answer for position in range(30)}
    assert drawn == {"boxes", "summary", "group"}
    assert len(run.val) == len(run.evaluation_rows) == 5 and len(run.students) == 6
    spec = load_processor(tmp_path / "run" / "model").spec
    assert spec.summary_instruction and spec.group_instruction and spec.geometry == "own"


def test_a_photo_that_is_not_annotated_needs_another_answer(job: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.answers: 005\.png has none of the answers with a share \(boxes\)"):
        stages.train(load_config(job))
