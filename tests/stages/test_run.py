"""A run of one process makes its own process group; what it trains on is what it predicts, and weighs by."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bbu import stages
from bbu.inference import Inference
from bbu.inference.predictor import Predictor
from bbu.inference.tiling import View
from bbu.jsonl import write_jsonl
from bbu.models import precision
from bbu.records import PredictedObject
from bbu.stages.run import ready_device
from bbu.tiles import Size, Window
from tests.tiny import tiny_config, write_samples
from tests.training.test_resume import run_config

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR")


@pytest.fixture
def outside_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that what the test sets is undone
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("outside_torchrun")
def test_two_runs_on_one_machine_do_not_ask_for_the_same_port() -> None:
    config = tiny_config(training={"deepspeed": "configs/zero2.json"})
    ready_device(config)
    with socket.socket() as first:
        first.bind(("127.0.0.1", int(os.environ["MASTER_PORT"])))
        first.listen()
        for name in NAMES:
            os.environ.pop(name, None)
        ready_device(config)
        with socket.socket() as second:
            second.bind(("127.0.0.1", int(os.environ["MASTER_PORT"])))
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("0", "1")


@pytest.mark.usefixtures("outside_torchrun")
def test_a_port_that_the_user_chose_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "12345")
    ready_device(tiny_config(training={"deepspeed": "configs/zero2.json"}))
    assert os.environ["MASTER_PORT"] == "12345"


@pytest.mark.usefixtures("outside_torchrun")
def test_without_deepspeed_there_is_no_group() -> None:
    ready_device(tiny_config())
    assert "RANK" not in os.environ


def test_a_run_on_tiles_is_evaluated_and_published_with_the_same_tiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "compute_device", lambda: torch.device("cpu"))
    records = tmp_path / "records"
    records.mkdir()
    rows = [sample.student.to_json() for sample in write_samples(records, 3)]
    for split in ("train", "val", "teacher"):
        write_jsonl(records / f"{split}.jsonl", rows)
    changes = {"data__tiles": "2x1", "training__eval_every": 1, "training__max_steps": 1}
    config = run_config(records, tmp_path / "run", **changes)
    predicted: dict[Size, list[Window]] = {}

    def merge(self: Predictor, views: Sequence[View], found: Any) -> list[PredictedObject]:
        predicted[views[0].photo] = [view.window for view in views[1:]]
        return real(self, views, found)

    real = Predictor.merge
    monkeypatch.setattr(Predictor, "merge", merge)
    run = stages.train(config)
    trained: dict[Size, list[Window]] = {(row.width, row.height): [] for row in run.students}
    for row in run.training_rows:
        if row.tile:
            trained[row.tile.photo].append(row.tile.window)
    assert predicted == trained and sorted(map(len, trained.values())) == [0, 2, 2]  # one is too narrow to be cut
    published = Inference(run.model_folder).predictor
    assert {size: [view.window for view in published.views(size)[1:]] for size in trained} == trained


def test_captions_weigh_by_the_training_rows_alone(tmp_path: Path) -> None:
    """The mean over the targets of an epoch is 1, val changes nothing, and by default every weight is 1."""
    rows = [sample.student.to_json() for sample in write_samples(tmp_path, 7)]
    write_jsonl(tmp_path / "train.jsonl", rows)
    config = tiny_config(data={"source.path": str(tmp_path)}, loss={"caption_balance": 0.9})
    config.output_dir = str(tmp_path / "run")
    found = stages.open_run(config)
    items = [item for at in range(7) for item in found.stream[at].ground_truth_objects]
    weights = {item.desc: item.caption_weight for item in items}
    assert sum(item.caption_weight for item in items) == pytest.approx(len(items))
    counts = Counter(item.desc for item in items).most_common()
    assert len(set(weights.values())) > 1 and weights[counts[-1][0]] > weights[counts[0][0]]
    write_jsonl(tmp_path / "val.jsonl", rows[:1])
    assert stages.open_run(config).processor.caption_weights == found.processor.caption_weights
    config.loss.caption_balance = 0.0
    assert {item.caption_weight for item in stages.open_run(config).stream[3].ground_truth_objects} == {1.0}
