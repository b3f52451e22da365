"""The log is written line by line, and a run killed and resumed leaves the log of a run that was never killed."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from bbu import stages
from bbu.errors import UserError
from bbu.training.loss_log import LOG_FILE, append_row
from tests.tiny import DEFAULT, mixed_samples, tiny_config, tiny_processor, tiny_trainer
from tests.training.one_run import finish, start
from tests.training.test_resume import on_the_cpu, records, run_config

__all__ = ["on_the_cpu", "records"]  # fixtures

TIMES = {"train_runtime", "train_samples_per_second", "train_steps_per_second", "eval_seconds"}


def rows(output: Path) -> list[dict[str, Any]]:
    """The log, without times."""
    lines = (output / LOG_FILE).read_text(encoding="utf-8").splitlines()
    return [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]


class Lines(TrainerCallback):
    """Lines of the log file after each step."""

    def __init__(self, file: Path) -> None:
        self.file, self.seen = file, []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append(len(self.file.read_text(encoding="utf-8").splitlines()) if self.file.is_file() else 0)


def test_a_line_is_in_the_file_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    (tmp_path / LOG_FILE).write_text('{"of": "an earlier run"}\n', encoding="utf-8")
    processor = tiny_processor(DEFAULT)
    config = tiny_config(training={"max_steps": 4, "batch_size": 1})
    trainer = tiny_trainer(config, tmp_path, mixed_samples(processor), processor)
    lines = Lines(tmp_path / LOG_FILE)
    trainer.add_callback(lines)
    trainer.train()
    assert lines.seen == [0, 1, 2, 3]
    assert rows(tmp_path) == [{k: v for k, v in row.items() if k not in TIMES} for row in trainer.state.log_history]


def test_a_run_killed_at_any_moment_leaves_the_log_of_a_run_never_killed(records: Path, tmp_path: Path) -> None:
    """Lines every 4 steps, a checkpoint every 3: a checkpoint is written in the middle of a window."""
    changes = {
        "training__max_steps": 9, "training__save_every": 3, "training__log_every": 4, "training__keep_checkpoints": 9,
        "training__gradient_accumulation": 2,
    }  # fmt: skip
    (process,) = start(records, tmp_path / "killed", **changes)
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "checkpoint-3" / "trainer_state.json").is_file():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    while not (tmp_path / "killed" / LOG_FILE).is_file():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    finish([process])
    assert [row["step"] for row in rows(tmp_path / "killed")][:1] == [4], "what was logged is in the file"
    stages.train(run_config(records, tmp_path / "killed", training__resume=True, **changes))
    stages.train(run_config(records, tmp_path / "whole", **changes))
    whole = rows(tmp_path / "whole")
    assert [row["step"] for row in whole] == [4, 8, 9] and "train_loss" in whole[-1]
    assert rows(tmp_path / "killed") == whole


def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"missing/log\.jsonl: cannot be written: No such file"):
        append_row(tmp_path / "missing" / "log.jsonl", {"step": 1})
