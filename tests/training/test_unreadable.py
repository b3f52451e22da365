"""A photo that turns unreadable while a run trains stops it, or is left out, counted and listed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers.trainer_utils import SaveStrategy

from bbu import stages
from bbu.data.dataset import TrainingStream
from bbu.errors import ImageError
from bbu.losses.weighting import TERMS
from bbu.training.loss_log import LOG_FILE
from bbu.training.trainer import BBUTrainer
from bbu.training.unreadable import UNREADABLE_FILE
from tests.tiny import DEFAULT, PAIR, Recorder, build_tiny, tiny_config, tiny_processor, tiny_trainer, write_samples
from tests.training.one_run import finish, start
from tests.training.test_loss_log import rows as log_rows
from tests.training.test_resume import PowerCutError, losses, on_the_cpu, pull_the_plug, records, run_config, weights

__all__ = ["on_the_cpu", "records"]  # fixtures


def cut_off(photo: Path) -> None:
    photo.write_bytes(photo.read_bytes()[:100])


def replaced_by_another(photo: Path) -> None:
    Image.new("RGB", (33, 44)).save(photo)


def replaced_by_a_folder(photo: Path) -> None:
    photo.unlink()
    photo.mkdir()


FAULTS: dict[str, Callable[[Path], None]] = {
    "gone": Path.unlink,
    "cut off": cut_off,
    "empty": lambda photo: photo.write_bytes(b""),
    "text": lambda photo: photo.write_text("not a photo", encoding="utf-8"),
    "another photo": replaced_by_another,
    "a folder": replaced_by_a_folder,
}


def listed(output: Path) -> list[dict[str, Any]]:
    lines = (output / UNREADABLE_FILE).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def trainer_of(folder: Path, steps: int = 4, family: str = DEFAULT, **changes: Any) -> BBUTrainer:
    """Two samples a step, each its own photo; no sample has a teacher."""
    changes["training"] = {"max_steps": steps, "batch_size": 2} | changes.get("training", {})
    changes["model"] = {"family": family} | changes.get("model", {})
    config = tiny_config(**changes)
    photos = folder / "photos"
    photos.mkdir(parents=True)
    count = steps * config.training.batch_size * config.training.gradient_accumulation
    samples = [type(sample)(sample.student) for sample in write_samples(photos, count, seed=1)]
    processor = tiny_processor(family, photos, detection=config.model.detection is not None)
    stream = TrainingStream(samples, processor, length=count, seed=config.seed)
    trainer = tiny_trainer(config, folder / "run", stream, stream.processor, build_tiny(config, torch.float64))
    trainer.args.save_strategy = SaveStrategy.NO
    return trainer


def names_of(trainer: BBUTrainer) -> list[str]:
    """Photos in the order of the stream."""
    stream: Any = trainer.train_dataset
    return [stream.name_at(position) for position in range(len(stream))]


@pytest.mark.parametrize(("fault", "workers"), [*((fault, 0) for fault in FAULTS), ("cut off", 1)])
def test_by_default_it_stops_the_run_with_one_line(fault: str, workers: int, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, data={"workers": workers})
    bad = names_of(trainer)[5]
    FAULTS[fault](tmp_path / "photos" / bad)
    with pytest.raises(ImageError, match=rf"{re.escape(bad)}: .*data\.on_unreadable=skip") as caught:
        trainer.train()
    assert "\n" not in str(caught.value) and "Traceback" not in str(caught.value)
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_left_out_is_listed(fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = trainer_of(tmp_path, data={"on_unreadable": "skip"})
    bad = names_of(trainer)[5]
    FAULTS[fault](tmp_path / "photos" / bad)
    trainer.train()
    (row,) = listed(tmp_path / "run")
    assert (row["step"], row["position"], row["photo"], row["sample"]) == (3, 5, bad, bad) and bad in row["error"]
    assert "left out: 1 samples of 1 unreadable photos, listed in" in capsys.readouterr().out
    assert trainer.state.global_step == 4


@pytest.mark.parametrize("family", PAIR)
@pytest.mark.parametrize(
    "training",
    [{}, {"packed": False}, {"batch_size": 1, "gradient_accumulation": 2}],
    ids=["a pack", "padded", "alone in its batch"],
)
def test_the_gradient_is_that_of_the_samples_that_could_be_read(
    family: str, training: dict[str, Any], tmp_path: Path
) -> None:
    """Without the sample's counts, as if the step had only the other one."""
    data = {"on_unreadable": "skip"}
    trainer = trainer_of(tmp_path / "broken", 1, family, data=data, training={"max_grad_norm": 0.0, **training})
    first, second = names_of(trainer)[:2]
    (tmp_path / "broken" / "photos" / second).unlink()
    alone = trainer_of(tmp_path / "alone", 1, family, training={"max_grad_norm": 0.0, "batch_size": 2})
    place = names_of(alone).index(first)
    alone.train_dataset = [alone.train_dataset[place]]  # type: ignore[assignment]
    found = []
    for one in (trainer, alone):
        recorder = Recorder()
        one.add_callback(recorder)
        one.train()
        found.append((recorder.gradients[0], next(line for line in one.state.log_history if "loss" in line)))
    (ours, log), (theirs, plain) = found
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-9)
    for name in ("loss", "lm_loss", *(f"loss/{term}" for term in TERMS)):
        assert log[name] == pytest.approx(plain[name], rel=1e-6)


@pytest.mark.parametrize("model", [{}, {"detection": None}], ids=["detection", "language alone"])
def test_a_step_without_any_sample_has_no_gradient_and_no_nan(model: dict[str, Any], tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, data={"on_unreadable": "skip"}, model=model)
    for bad in names_of(trainer)[2:4]:
        (tmp_path / "photos" / bad).unlink()
    recorder = Recorder()
    trainer.add_callback(recorder)
    trainer.train()
    assert all(not gradient.any() for gradient in recorder.gradients[1].values()) and len(recorder.gradients[1]) > 50
    assert any(gradient.any() for gradient in recorder.gradients[2].values())
    assert [row["position"] for row in listed(tmp_path / "run")] == [2, 3]
    assert all(value.isfinite().all() for value in trainer.unwrapped.state_dict().values())


def test_too_many_stop_the_run(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, data={"on_unreadable": "skip", "max_unreadable": 1})
    for bad in names_of(trainer)[2:4]:
        (tmp_path / "photos" / bad).unlink()
    with pytest.raises(ImageError, match=r"^2 photos cannot be read, and data\.max_unreadable is 1: "):
        trainer.train()
    assert len(listed(tmp_path / "run")) == 2


PACKS = {"training__pack_tokens": 900, "training__pack_images": 3}


@pytest.mark.parametrize("packs", [{}, PACKS], ids=["batches", "planned packs"])
def test_a_resumed_run_leaves_out_the_same_samples(
    packs: dict[str, Any], records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "records"
    shutil.copytree(records, folder)
    changes = {"data__on_unreadable": "skip", "training__batch_size": 2, **packs}
    broken = "003.png"
    (folder / broken).unlink()
    whole = run_config(folder, tmp_path / "whole", **changes)
    stages.train(whole)
    killed = run_config(folder, tmp_path / "killed", **changes)
    with monkeypatch.context() as context, pytest.raises(PowerCutError):
        pull_the_plug(context, after=5)
        stages.train(killed)
    killed.training.resume = True
    stages.train(killed)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert listed(tmp_path / "killed") == listed(tmp_path / "whole") and listed(tmp_path / "whole")
    assert {row["photo"] for row in listed(tmp_path / "whole")} == {broken}
    ours, theirs = weights(tmp_path / "killed" / "model"), weights(tmp_path / "whole" / "model")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_ranks_go_on_together(records: Path, tmp_path: Path) -> None:
    """One sample a batch, so the rank that meets the photo has an empty one; it is also the teacher of another."""
    folder = tmp_path / "records"
    shutil.copytree(records, folder)
    (folder / "003.png").unlink()
    changes = {"data__on_unreadable": "skip", "training__batch_size": 1, "data__workers": 1, "training__max_steps": 7}
    ended = finish(start(folder, tmp_path / "run", ranks=2, **changes))
    assert [status for status, _ in ended] == [0, 0], ended
    found = listed(tmp_path / "run")
    assert {row["photo"] for row in found} == {"003.png"} and {"003.png", "004.png"} <= {row["sample"] for row in found}
    assert [row["step"] for row in found] == sorted(row["step"] for row in found)
    assert [line["step"] for line in log_rows(tmp_path / "run") if "loss" in line] == list(range(1, 8))
    assert "NaN" not in (tmp_path / "run" / LOG_FILE).read_text(encoding="utf-8")
