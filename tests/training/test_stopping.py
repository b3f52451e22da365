"""A signal ends a run within a step: a checkpoint, one line, 128 + the signal; resumed, it is the run never stopped.

Early stopping ends a run that gains no more on val, at the same step whether or not it was stopped before.
"""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbu import interruption, stages
from bbu.cli import main
from bbu.config import EarlyStoppingConfig
from bbu.jsonl import iter_json_lines
from bbu.training.stopping import without_gain
from bbu.training.trainer import BBUTrainer
from tests import warm
from tests.jobs import command, environment, wait_until, write_job
from tests.tiny import DEFAULT, mixed_samples, tiny_config, tiny_processor, tiny_trainer

STEPS = 6


@pytest.fixture(autouse=True)
def in_the_foreground() -> Iterator[None]:
    """Under nohup, or in the background of a shell, a run would ignore these signals, and rightly."""
    ignored = [number for number in (signal.SIGINT, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_IGN]
    before = [signal.signal(number, signal.SIG_DFL) for number in ignored]
    yield
    for number, handler in zip(ignored, before, strict=True):
        signal.signal(number, handler)


def signal_at(monkeypatch: pytest.MonkeyPatch, number: int, owner: Any, name: str, step: int | None = None) -> None:
    """Send this process a signal when a function is called: of the trainer, at a step; of a stage, at once."""
    real, sent = getattr(owner, name), []

    def hook(*args: Any, **kwargs: Any) -> Any:
        if not sent and (step is None or args[0].state.global_step == step):
            sent.append(os.kill(os.getpid(), number))
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, hook)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What a stopped command says, without the progress bars."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bbu:")]
    return line


def log(folder: Path, key: str) -> list[dict[str, Any]]:
    """Lines of the training log that have a key, without times."""
    lines = [line for _, line in iter_json_lines(folder / "train_log.jsonl") if key in line]
    return [{name: value for name, value in line.items() if "second" not in name} for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody stopped, evaluated after steps 3 and 6."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(["run", str(write_job(folder, training__eval_every=3))]) == 0
    return folder / "run"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1", "SIGINT"])
def test_a_signal_saves_the_step_says_so_and_sets_the_status(
    name: str, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    number, run = int(getattr(signal, name)), tmp_path / "run"
    config = str(write_job(tmp_path, training__eval_every=3))
    before = signal.getsignal(number)
    with monkeypatch.context() as context:
        signal_at(context, number, BBUTrainer, "compute_loss", step=2)
        assert main(["run", config]) == 128 + number
    assert signal.getsignal(number) is before
    # the signal came in step 3, after which an evaluation was due: it waits for the resumed run
    saved = f"{run / 'checkpoint-3'} is saved; continue with training.resume=true"
    assert one_line(capsys) == f"bbu: stopped by {name}: {saved}"
    assert main(["run", config, "training.resume=true"]) == 0
    assert log(run, "loss") == log(whole, "loss") and len(log(run, "loss")) == STEPS
    assert log(run, "eval_AP") == log(whole, "eval_AP") and [line["step"] for line in log(run, "eval_AP")] == [3, 6]
    assert (run / "predictions.jsonl").read_bytes() == (whole / "predictions.jsonl").read_bytes()


def test_a_signal_in_an_evaluation_does_not_wait_for_its_end(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = str(write_job(tmp_path, training__eval_every=3)), tmp_path / "run"
    with monkeypatch.context() as context:
        signal_at(context, signal.SIGTERM, BBUTrainer, "evaluate", step=3)
        assert main(["run", config]) == 143
    assert "checkpoint-3 is saved" in one_line(capsys)
    state = json.loads((run / "checkpoint-3" / "trainer_state.json").read_text(encoding="utf-8"))
    assert not any("eval_AP" in line for line in state["log_history"])
    assert main(["run", config, "training.resume=true"]) == 0
    assert log(run, "eval_AP") == log(whole, "eval_AP")


@pytest.mark.parametrize(
    ("name", "later", "saves"),
    [("SIGINT", 2.0, False), ("SIGINT", 0.1, True), ("SIGTERM", 0.1, True), ("SIGTERM", 2.0, True)],
)
def test_a_second_ctrl_c_does_not_wait_for_the_step_and_an_echo_is_no_second(
    name: str, later: float, saves: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    number = int(getattr(signal, name))
    clock = iter([0.0, later])
    signal_at(monkeypatch, number, BBUTrainer, "get_batch_samples", step=0)
    signal_at(monkeypatch, number, BBUTrainer, "compute_loss", step=0)
    monkeypatch.setattr(interruption, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    assert main(["run", str(write_job(tmp_path))]) == 128 + number
    said = one_line(capsys)
    assert ("checkpoint-1 is saved" in said) is saves
    assert (tmp_path / "run" / "checkpoint-1").is_dir() is saves
    assert saves or said == "bbu: stopped by SIGINT: at the second time, without a checkpoint of this step"


def test_after_the_training_a_signal_says_how_to_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = str(write_job(tmp_path, training__max_steps=1)), tmp_path / "run"
    with monkeypatch.context() as context:
        signal_at(context, signal.SIGTERM, stages, "score")
        assert main(["run", config]) == 143
    assert one_line(capsys) == f"bbu: stopped by SIGTERM: {run / 'model'} is published; score it with bbu score"
    assert main(["score", config]) == 0 and (run / "metrics.json").is_file()


def test_a_signal_that_is_ignored_stays_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        signal_at(monkeypatch, signal.SIGHUP, BBUTrainer, "compute_loss", step=0)
        assert main(["run", str(write_job(tmp_path, training__max_steps=1))]) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_signal_to_the_whole_group_spares_the_photo_loaders(tmp_path: Path) -> None:
    """Schedulers reach every process of a run, and so does Ctrl-C in a terminal."""
    config, said, steps = write_job(tmp_path), tmp_path / "stderr.txt", tmp_path / "run" / "train_log.jsonl"
    with said.open("w", encoding="utf-8") as stream:
        process = warm.Popen(
            command("run", config, "training.max_steps=5000", "data.workers=2"),
            stdout=subprocess.DEVNULL, stderr=stream, text=True, env=environment(), start_new_session=True,
        )  # fmt: skip
    wait_until(lambda: steps.is_file() and "loss" in steps.read_text(encoding="utf-8"), process)
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=120)
    errors = said.read_text(encoding="utf-8")
    assert process.returncode == 143, errors[-3000:]
    assert "Traceback" not in errors and "is saved; continue with training.resume=true" in errors


def test_a_killed_run_is_not_scored_with_an_older_runs_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write_job(tmp_path, training__max_steps=1))
    assert main(["run", config]) == 0
    with monkeypatch.context() as context:
        signal_at(context, signal.SIGTERM, BBUTrainer, "compute_loss", step=0)
        assert main(["run", config, "training.overwrite=true", "seed=5", "training.max_steps=3"]) == 143
    one_line(capsys)
    assert main(["score", config]) == 2
    assert "its last run was stopped before it published a model" in one_line(capsys)


# ---------------------------------------------------------------- early stopping


def train_with(folder: Path, values: list[float | None], patience: int, min_delta: float = 0.0) -> BBUTrainer:
    """A run of a step for each value, which is its AP50 on val."""
    stopping = EarlyStoppingConfig(patience, min_delta)
    training = {"max_steps": len(values), "eval_every": 1, "batch_size": 1, "early_stopping": stopping}
    given = iter(values)
    trainer = tiny_trainer(
        tiny_config(training=training), folder, mixed_samples(tiny_processor(DEFAULT)) * 2, tiny_processor(DEFAULT),
        evaluator=lambda: {"AP50": next(given)},
    )  # fmt: skip
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    ("values", "patience", "min_delta", "last", "best"),
    [
        ([0.1, 0.5, 0.5, 0.4, 0.9], 2, 0.0, 4, 2),
        ([0.1, 0.5, 0.4, 0.6, 0.5, 0.5, 0.9], 2, 0.0, 6, 4),  # a gain begins the count anew
        ([0.1, 0.14, 0.18, 0.3], 2, 0.05, 4, 4),  # slow, yet more than 0.05 above the last gain in time
        ([0.1, 0.14, 0.12, 0.3], 2, 0.05, 3, 2),  # the best is published, also where its gain was too small to count
        ([None, None, 0.3], 2, 0.0, 2, None),  # an undefined value is no gain
        ([0.3, 0.2, 0.1], 0, 0.0, 3, 1),
    ],
)
def test_a_run_ends_after_so_many_evaluations_without_a_gain(
    values: list[float | None], patience: int, min_delta: float, last: int, best: int | None, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    trainer = train_with(tmp_path, values, patience, min_delta)
    assert (trainer.state.global_step, trainer.state.best_global_step) == (last, best)
    assert (tmp_path / f"checkpoint-{last}").is_dir()
    said = [line for line in capsys.readouterr().err.splitlines() if "stopped early" in line]
    assert len(said) == (last < len(values))
    assert all(f"at step {last} of {len(values)}: AP50 on val had no gain" in line for line in said)


@given(st.lists(st.sampled_from([0.1, 0.2, 0.25, 0.4]), min_size=1, max_size=12), st.sampled_from([0.0, 0.1]))
def test_the_count_begins_anew_at_each_gain_and_not_before(values: list[float], min_delta: float) -> None:
    log = [row for value in values for row in ({"loss": 1.0}, {"eval_AP": value, "eval_seconds": 1.0})]
    count, best = without_gain(log, "AP", min_delta)
    place = len(values) - 1 - count  # of the last gain
    _, before = without_gain(log[: 2 * place], "AP", min_delta)
    assert values[place] == best > before + min_delta
    assert all(value <= best + min_delta for value in values[place:])


def test_of_a_loss_less_is_a_gain() -> None:
    rows = [{"eval_loss": value, "eval_seconds": 1.0} for value in (2.0, 1.5, 1.45, 1.6)]
    assert without_gain(rows, "loss", 0.0) == (1, 1.45)
    assert without_gain(rows, "loss", 0.1) == (2, 1.5)
    assert without_gain([{"eval_seconds": 1.0}], "loss", 0.0) == (1, math.inf)


EARLY = ["training.eval_every=1", "training.early_stopping.patience=2", "training.early_stopping.min_delta=1"]


@pytest.fixture(scope="module")
def stopped_early(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has stopped early, at step 3."""
    folder = tmp_path_factory.mktemp("early")
    assert main(["run", str(write_job(folder)), *EARLY]) == 0
    return folder / "run"


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_resumed_run_goes_on_counting(
    step: int, stopped_early: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The signal at step 3 comes before the evaluation that would have ended the run; the resumed run takes no step."""
    config, whole, broken = str(write_job(tmp_path)), stopped_early, tmp_path / "run"
    with monkeypatch.context() as context:
        signal_at(context, signal.SIGTERM, BBUTrainer, "compute_loss", step=step - 1)
        assert main(["run", config, *EARLY]) == 143
    capsys.readouterr()
    assert main(["run", config, *EARLY, "training.resume=true"]) == 0
    assert "stopped early at step 3 of 6: AP50 on val had no gain of more than 1 in 2" in capsys.readouterr().err
    for key in ("loss", "eval_AP50"):
        assert log(whole, key) == log(broken, key) and [line["step"] for line in log(whole, key)] == [1, 2, 3]
    assert (whole / "predictions.jsonl").read_bytes() == (broken / "predictions.jsonl").read_bytes()


def test_a_run_that_has_stopped_early_takes_no_further_step_unless_its_patience_grows(tmp_path: Path) -> None:
    config, further = str(write_job(tmp_path)), tmp_path / "run" / "checkpoint-4"
    assert main(["run", config, *EARLY]) == 0
    assert main(["run", config, *EARLY, "training.resume=true"]) == 0
    assert not further.exists()
    assert main(["run", config, EARLY[0], "training.early_stopping.patience=3", "training.resume=true"]) == 0
    assert further.exists()
