"""A run killed and resumed is the run that was never killed, to the last bit (on the CPU)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bbu import stages
from bbu.config import Config
from bbu.errors import ConfigError
from bbu.jsonl import iter_json_lines, write_jsonl
from bbu.models import precision
from bbu.training.trainer import BBUTrainer
from tests.tiny import DEFAULT, FAMILIES, tiny_config, write_samples

STEPS, SAVE_EVERY = 6, 3


class PowerCutError(Exception):
    """Simulates a killed process."""


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "compute_device", lambda: torch.device("cpu"))


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven photos, some with a teacher of their own, a pool of teachers, and conversations."""
    folder = tmp_path_factory.mktemp("records")
    samples = write_samples(folder, 7)
    write_jsonl(folder / "train.jsonl", [sample.to_json() for sample in samples])
    write_jsonl(folder / "teacher.jsonl", [sample.student.to_json() for sample in samples[:3]])
    write_talks(folder)
    return folder


def write_talks(folder: Path) -> None:
    """Three conversations, one of them about a training photo."""
    talks = [("Two and two?", "Four"), ("<image>What is it?", "A photo."), ("And one?", "Five")]
    rows = [
        {"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": say}]} for ask, say in talks
    ]
    write_jsonl(
        folder / "talks.jsonl", [row | ({"images": ["000.png"]} if n == 1 else {}) for n, row in enumerate(rows)]
    )


def run_config(records: Path, output: Path, family: str = DEFAULT, **changes: Any) -> Config:
    config = tiny_config(
        data={
            "source.path": str(records), "episodes.counts": {0: 1, 1: 1}, "max_pixels": 112 * 112,
            "augment.flip_horizontal": 0.5, "augment.brightness": 0.2,
        },
        training={"max_steps": STEPS, "save_every": SAVE_EVERY, "warmup_steps": 2, "keep_checkpoints": 3},
        model={"family": family},
    )  # fmt: skip
    for name, value in changes.items():
        section, key = name.split("__")
        owner: Any = getattr(config, section)
        *path, last = key.split("_dot_")
        for step in path:
            owner = getattr(owner, step)
        setattr(owner, last, value)
    if config.data.replay.share:
        config.data.replay.path = str(records / "talks.jsonl")
    config.output_dir = str(output)
    return config


def pull_the_plug(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Stop in the middle of a run, at a batch."""
    real, done = BBUTrainer.compute_loss, []

    def compute_loss(self: BBUTrainer, *inputs: Any, **options: Any) -> Any:
        if len(done) == after:
            raise PowerCutError
        done.append(1)
        return real(self, *inputs, **options)

    monkeypatch.setattr(BBUTrainer, "compute_loss", compute_loss)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.relative_to(folder)}: {name}": value
        for path in sorted(folder.rglob("*.safetensors"))
        for name, value in load_file(path).items()
    }


def losses(output: Path) -> list[dict[str, Any]]:
    """Every step's line of the log: loss, components, gradient norm, learning rates, epoch."""
    return [log for _, log in iter_json_lines(output / "train_log.jsonl") if "loss" in log]


VARIANTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "lora": {"model__lora_dot_parts": ["llm", "vision"]},
    "lora on bfloat16": {"model__lora_dot_parts": ["llm"], "training__precision": "bf16"},
    "bfloat16 weights": {"model__weights": "bfloat16", "training__precision": "bf16"},
    "padded and accumulated": {
        "training__packed": False,
        "training__gradient_accumulation": 2,
        "training__batch_size": 1,
    },
    "episodes": {
        "data__episodes_dot_choose": "nearest",
        "data__episodes_dot_pool": "train",
        "data__sampling_dot_method": "repeat_factor",
        "data__sampling_dot_threshold": 1.0,
    },
    "replay": {"data__replay_dot_share": 0.5, "training__batch_size": 1, "training__gradient_accumulation": 2},
    "replay in planned packs": {"data__replay_dot_share": 0.5, "training__pack_tokens": 1200},
    "language alone": {"model__detection": None},
    "language alone, lora": {"model__detection": None, "model__lora_dot_parts": ["llm", "vision"]},
    "tiles": {"data__tiles": "2x1", "data__augment_dot_mosaic": 0.5},
}
# what a family writes; code that knows no family does the other variants
OF_FAMILIES = ("whole", "lora", "language alone")


@pytest.mark.parametrize(
    ("family", "variant"),
    [(family, name) for family in FAMILIES for name in (VARIANTS if family == DEFAULT else OF_FAMILIES)],
)
def test_a_run_killed_and_resumed_is_the_run_never_killed(
    family: str, variant: str, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = VARIANTS[variant]
    whole = run_config(records, tmp_path / "whole", family, **changes)
    stages.train(whole)
    broken = run_config(records, tmp_path / "broken", family, **changes)
    with monkeypatch.context() as context, pytest.raises(PowerCutError):
        pull_the_plug(context, after=4 * broken.training.gradient_accumulation)
        stages.train(broken)
    assert [path.name for path in Path(broken.output_dir).glob("checkpoint-*")] == ["checkpoint-3"]
    broken.training.resume = True
    stages.train(broken)
    one, other = losses(tmp_path / "whole"), losses(tmp_path / "broken")
    assert [log["step"] for log in one] == list(range(1, STEPS + 1))
    assert one == other
    assert len({log["loss"] for log in one}) == STEPS
    final, resumed = (weights(tmp_path / name / f"checkpoint-{STEPS}") for name in ("whole", "broken"))
    assert final.keys() == resumed.keys() and len(final) > 50
    assert all(torch.equal(final[name], resumed[name]) for name in final)
    published, also = (weights(tmp_path / name / "model") for name in ("whole", "broken"))
    assert published.keys() == also.keys()
    assert all(torch.equal(published[name], also[name]) for name in published)
    earlier = weights(tmp_path / "whole" / "checkpoint-3")
    assert any(not torch.equal(earlier[name], final[name]) for name in final), "nothing was learned after the cut"


def test_a_checkpoint_cut_off_while_it_was_written_is_passed_over(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = run_config(records, tmp_path)
    with monkeypatch.context() as context, pytest.raises(PowerCutError):
        pull_the_plug(context, after=4)
        stages.train(config)
    shutil.copytree(tmp_path / "checkpoint-3", tmp_path / "checkpoint-5")
    (tmp_path / "checkpoint-5" / "detection_head.safetensors").write_bytes(b"half")
    seen: list[str] = []
    real = BBUTrainer._load_from_checkpoint
    monkeypatch.setattr(
        BBUTrainer, "_load_from_checkpoint", lambda self, path, *rest: (seen.append(path), real(self, path, *rest))[1]
    )
    config.training.resume = True
    stages.train(config)
    assert [Path(path).name for path in seen] == ["checkpoint-3"]


def test_resuming_from_nothing_is_an_error(records: Path, tmp_path: Path) -> None:
    config = run_config(records, tmp_path, training__resume=True)
    with pytest.raises(ConfigError, match="has no complete checkpoint"):
        stages.train(config)


def test_a_fresh_run_does_not_mix_with_an_earlier_ones_checkpoints(records: Path, tmp_path: Path) -> None:
    config = run_config(records, tmp_path, training__max_steps=2)
    stages.train(config)
    config.training.max_steps = 1
    with pytest.raises(ConfigError, match="checkpoint-2 of an earlier run"):
        stages.train(config)
    config.training.overwrite = True
    stages.train(config)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
