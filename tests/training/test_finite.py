"""A loss, gradient or weight that is not finite changes no weight, is named, and never gets into a file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from bbu.config import Config
from bbu.errors import NotFiniteError
from bbu.training import replay as replay_module
from bbu.training.loss_log import LOG_FILE
from bbu.training.replay import NOT_FINITE_FOLDER, kept_batches, replay
from bbu.training.trainer import BBUTrainer
from tests.tiny import DEFAULT, FAMILIES, mixed_samples, tiny_config, tiny_processor, tiny_trainer
from tests.training.one_run import finish, start
from tests.training.test_resume import on_the_cpu, records

__all__ = ["on_the_cpu", "records"]  # fixtures

NAN = float("nan")
BAD_STEP = 3


class Watcher(TrainerCallback):
    """Weights and optimizer state after every step; ``before`` runs before the step that is spoilt."""

    def __init__(self, before: Callable[[Any], None] | None = None) -> None:
        self.before, self.weights, self.states = before, [], []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.before is not None and state.global_step == BAD_STEP - 1:
            self.before(kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.weights.append({name: value.clone() for name, value in kwargs["model"].state_dict().items()})
        self.states.append(deepcopy(kwargs["optimizer"].state_dict()["state"]))


def spoilt_samples(processor: Any, what: str, count: int) -> list[Any]:
    """One sample a batch; that of the bad step has a target or a pixel that is not finite."""
    samples = [mixed_samples(processor)[number % 2] for number in range(count)]
    samples = [replace(sample, name=f"{number:03d}.png") for number, sample in enumerate(samples)]
    bad = samples[BAD_STEP - 1]
    if what == "target":
        first = replace(bad.ground_truth_objects[0], box=(NAN, 0.5, 0.1, 0.1))
        samples[BAD_STEP - 1] = replace(bad, ground_truth_objects=[first, *bad.ground_truth_objects[1:]])
    if what == "pixel":
        pixels = bad.pixel_values.clone()
        pixels[0, 0] = float("inf")
        samples[BAD_STEP - 1] = replace(bad, pixel_values=pixels)
    return samples


def spoil_gradient(model: Any) -> None:
    parameter = model.model.detection_head.box_heads[-1].norm.weight
    done: list[int] = []

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        done.append(1)
        return gradient * NAN if len(done) <= 2 else gradient  # in its step, and when it is looked into

    parameter.register_hook(spoil)


def spoil_weight(model: Any) -> None:
    with torch.no_grad():
        model.model.detection_head.box_heads[-1].norm.weight[0] = NAN


def trainer_of(tmp_path: Path, what: str, steps: int = 5, family: str = DEFAULT, **training: Any) -> BBUTrainer:
    config: Config = tiny_config(
        model={"family": family}, training={"max_steps": steps, "batch_size": 1, "save_every": 1, **training}
    )
    processor = tiny_processor(family)
    samples = spoilt_samples(processor, what, steps * config.training.gradient_accumulation)
    return tiny_trainer(config, tmp_path, samples, processor)


def watch(trainer: BBUTrainer, what: str) -> Watcher:
    watcher = Watcher({"gradient": spoil_gradient, "weight": spoil_weight}.get(what))
    trainer.add_callback(watcher)
    return watcher


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("clip", [1.0, 0.0], ids=["clipped", "not clipped"])
@pytest.mark.parametrize(
    ("what", "cause"),
    [
        ("target", r"loss/bbox_l1, loss/bbox_giou.* not finite; samples: 002\.png;"),
        ("pixel", r"loss/.* not finite; samples: 002\.png;"),
        ("gradient", r"the gradient is not finite: model\.detection_head\S+; samples: 002\.png;"),
        ("weight", r"the weights are not finite: detection_head\S+norm\.weight; samples: 002\.png;"),
    ],
)
def test_a_step_that_is_not_finite_stops_the_run_before_a_weight_is_touched(
    what: str, cause: str, clip: float, tmp_path: Path
) -> None:
    trainer = trainer_of(tmp_path, what, max_grad_norm=clip)
    watcher = watch(trainer, what)
    with pytest.raises(NotFiniteError, match=rf"^step {BAD_STEP}: {cause}") as caught:
        trainer.train()
    assert "\n" not in str(caught.value)
    now = trainer.unwrapped.state_dict()
    if what != "weight":
        assert "no weight was changed" in str(caught.value)
        assert same(now, watcher.weights[BAD_STEP - 2]) and not same(now, watcher.weights[0])
        states = trainer.optimizer.state_dict()["state"]
        assert all(same(states[key], watcher.states[BAD_STEP - 2][key]) for key in states)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]
    lines = [json.loads(line) for line in (tmp_path / LOG_FILE).read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert "NaN" not in (tmp_path / "checkpoint-2" / "trainer_state.json").read_text(encoding="utf-8")
    report = json.loads((tmp_path / NOT_FINITE_FOLDER / f"step-{BAD_STEP}" / "report.json").read_text("utf-8"))
    assert report["samples"] == ["002.png"] and report["step"] == BAD_STEP and report["batches"] == ["rank-0-batch-0"]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_kept_runs_again_with_the_same_losses(family: str, tmp_path: Path, project: Path) -> None:
    """With the lines of docs/training.md."""
    trainer = trainer_of(tmp_path, "target", family=family)
    with pytest.raises(NotFiniteError):
        trainer.train()
    page = (project / "docs" / "training.md").read_text(encoding="utf-8")
    section = page.split("\n## Steps that are not finite\n")[1].split("\n## ")[0]
    code = "\n".join(line[4:] for line in section.splitlines() if line.startswith("    "))
    code = code.replace("outputs/demo", str(tmp_path)).replace("step-12", f"step-{BAD_STEP}")
    found: list[Any] = []
    exec(compile(code, "docs/training.md", "exec"), {"print": lambda *what: found.append(what)})
    ((names, again),) = found
    assert names == ["002.png"]
    assert not torch.tensor(again.terms["bbox_l1"]).isfinite() and again.terms["student_lm"] > 0
    assert again.gradients
    good = trainer.data_collator([mixed_samples(trainer.processor)[0]])
    assert replay(trainer.unwrapped, good).gradients == []


@pytest.mark.parametrize(("accumulation", "log_every"), [(1, 1), (2, 2)])
def test_a_skipped_step_changes_nothing_and_is_counted(
    accumulation: int, log_every: int, tmp_path: Path, capsys: Any
) -> None:
    trainer = trainer_of(
        tmp_path, "target", steps=6, on_not_finite="skip", gradient_accumulation=accumulation, log_every=log_every
    )
    watcher = watch(trainer, "target")
    trainer.train()
    bad = BAD_STEP if accumulation == 1 else 2  # its sample is the third
    assert same(watcher.weights[bad - 1], watcher.weights[bad - 2])
    assert not same(watcher.weights[bad], watcher.weights[bad - 1])
    assert all(value.isfinite().all() for value in trainer.unwrapped.state_dict().values())
    history = trainer.state.log_history
    assert [(line["step"], line["skipped_steps"]) for line in history if "skipped_steps" in line] == [(bad, 1)]
    text = (tmp_path / LOG_FILE).read_text(encoding="utf-8")
    assert "NaN" not in text and "Infinity" not in text
    shown = capsys.readouterr().err
    assert f"left out (1 of at most 10): step {bad}: loss/bbox_l1" in shown and "002.png" in shown
    losses = [line for line in history if "loss" in line]
    assert [line["step"] for line in losses] == ([1, 2, 4, 5, 6] if log_every == 1 else [2, 4, 6])
    for line in losses:
        assert line["loss"] == pytest.approx(sum(v for k, v in line.items() if k.startswith("loss/")), rel=1e-5)


def test_a_window_with_a_skipped_step_is_the_mean_of_the_others(tmp_path: Path) -> None:
    each = trainer_of(tmp_path / "each", "target", steps=4, on_not_finite="skip")
    each.train()
    windows = trainer_of(tmp_path / "windows", "target", steps=4, on_not_finite="skip", log_every=4)
    windows.train()
    every = [line["loss"] for line in each.state.log_history if "loss" in line]
    (window,) = [line["loss"] for line in windows.state.log_history if "loss" in line]
    assert len(every) == 3 and window == pytest.approx(sum(every) / 3, rel=1e-6)
    assert windows.state.log_history[-1]["train_loss"] == pytest.approx(window, rel=1e-6)


def test_more_skipped_steps_than_allowed_stop_the_run_and_a_resume_counts_on(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, "", steps=6, on_not_finite="skip", max_not_finite=1, keep_checkpoints=9)
    samples = trainer.train_dataset
    bad = spoilt_samples(trainer.processor, "target", 6)[BAD_STEP - 1]
    samples[1] = samples[4] = bad
    with pytest.raises(NotFiniteError, match=r"^step 5: .*step 2 of the kind and training\.max_not_finite is 1"):
        trainer.train()
    again = trainer_of(tmp_path, "", steps=6, on_not_finite="skip", max_not_finite=1, keep_checkpoints=9)
    again.train_dataset[:] = samples
    with pytest.raises(NotFiniteError, match=r"^step 5: .*This is step 2 of the kind"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


class SpoilAtEnd(TrainerCallback):
    """A weight becomes NaN after the bad step, before its checkpoint is written."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == BAD_STEP:
            spoil_weight(kwargs["model"])


@pytest.mark.parametrize("log_every", [1, 10], ids=["seen at the log line", "seen at the checkpoint"])
def test_weights_that_are_not_finite_are_never_written(log_every: int, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, "", log_every=log_every, on_not_finite="skip")
    trainer.add_callback(SpoilAtEnd())
    with pytest.raises(NotFiniteError, match=r"^the weights are not finite: detection_head\S+; nothing was written"):
        trainer.train()
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-2"]


def test_what_is_kept_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_module, "MOST_BYTES", 100_000)  # a batch is larger
    with pytest.raises(NotFiniteError, match="the batch was not kept"):
        trainer_of(tmp_path, "target").train()
    assert not list((tmp_path / NOT_FINITE_FOLDER).rglob("*.safetensors"))


def test_where_nothing_can_be_kept_the_message_is_the_same(tmp_path: Path) -> None:
    (tmp_path / NOT_FINITE_FOLDER).write_text("a file in the way", encoding="utf-8")
    with pytest.raises(
        NotFiniteError, match=r"^step 3: loss/bbox_l1.* could not be kept: .*on_not_finite=skip"
    ) as caught:
        trainer_of(tmp_path, "target").train()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_all_ranks_agree_on_a_loss_that_is_not_finite_on_one(policy: str, records: Path, tmp_path: Path) -> None:
    processes = start(records, tmp_path, ranks=2, spoil=(1, 3), training__on_not_finite=policy)
    ended = finish(processes)
    folder = tmp_path / NOT_FINITE_FOLDER / "step-3"
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    assert report["terms"] == ["caption"] and report["batches"] == ["rank-1-batch-0"]
    assert [batch["names"] for batch in kept_batches(folder)] == [report["samples"]]
    if policy == "stop":
        assert [status for status, _ in ended] == [2, 2], ended
        assert all(re.search("bbu: error: step 3: loss/caption not finite", text) for _, text in ended), ended
        assert not list(tmp_path.glob("checkpoint-*")) and not (tmp_path / "model").exists()
    else:
        assert [status for status, _ in ended] == [0, 0], ended
        lines = [json.loads(line) for line in (tmp_path / LOG_FILE).read_text(encoding="utf-8").splitlines()]
        assert [line["step"] for line in lines if "loss" in line] == [1, 2, 4, 5, 6]
        assert (tmp_path / "model" / "bbu.json").is_file()
