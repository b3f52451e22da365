"""A resumed run is the run that was stopped: what differs is refused or said, key by key."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bbu import stages
from bbu.config import Config
from bbu.config.checks import all_keys
from bbu.errors import CheckpointError
from bbu.jsonl import iter_json_lines, write_json, write_jsonl
from bbu.models import precision
from bbu.stages.identity import KEPT, SAME, SILENT, check_identity, identity_of
from bbu.training.recovery import IDENTITY_FILE
from tests.tiny import write_samples
from tests.training.test_resume import run_config, write_talks

Change = Callable[[Config, Path], None]


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "compute_device", lambda: torch.device("cpu"))


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """Five photos, the same for every test."""
    folder = tmp_path / "records"
    folder.mkdir()
    samples = write_samples(folder, 5)
    write_jsonl(folder / "train.jsonl", [sample.to_json() for sample in samples])
    write_jsonl(folder / "teacher.jsonl", [sample.student.to_json() for sample in samples[:2]])
    write_talks(folder)
    return folder


def config_of(records: Path, **changes: Any) -> Config:
    return run_config(records, records.parent / "run", training__max_steps=8, **changes)


def saved(config: Config) -> Path:
    """A checkpoint folder with nothing but the identity of a run."""
    folder = Path(config.output_dir) / "checkpoint-4"
    write_json(folder / IDENTITY_FILE, identity_of(stages.open_run(config)))
    return folder


def setting(key: str, value: Any) -> Change:
    def change(config: Config, records: Path) -> None:
        owner: Any = config
        *path, last = key.split(".")
        for name in path:
            owner = getattr(owner, name)
        assert getattr(owner, last) != value
        setattr(owner, last, value)

    return change


def rewrite(name: str, edit: Callable[[list[Any]], list[Any]]) -> Change:
    def change(config: Config, records: Path) -> None:
        rows = [row for _, row in iter_json_lines(records / name)]
        write_jsonl(records / name, edit(rows))

    return change


def reword(rows: list[Any]) -> list[Any]:
    rows[1]["student"]["objects"][0]["desc"] = "quite another word"
    return rows


REFUSED = [
    ("seed", setting("seed", 18), "had seed 17, not 18"),
    ("language", setting("data.language", "zh"), "had data.language en, not zh"),
    ("pixels", setting("data.max_pixels", 140 * 140), "had data.max_pixels 12544, not 19600"),
    ("batch size", setting("training.batch_size", 3), "had training.batch_size 2, not 3"),
    ("accumulation", setting("training.gradient_accumulation", 2), "had training.gradient_accumulation 1, not 2"),
    ("queries", setting("model.detection.queries", 12), "had model.detection.queries 10, not 12"),
    ("no detection", setting("model.detection", None), "had model.detection.width 32, not null"),
    ("sizes", setting("model.scratch", {"text_width": 128}), "had model.scratch"),
    ("LoRA", setting("model.lora.parts", ["llm"]), 'had model.lora.parts [], not ["llm"]'),
    ("freeze", setting("model.freeze", ["vision"]), 'had model.freeze [], not ["vision"]'),
    ("augmentation", setting("data.augment.hue", 0.1), "had data.augment.hue 0.0, not 0.1"),
    ("curriculum", setting("data.augment.curriculum.start", 0.5), "had data.augment.curriculum.start 1.0, not 0.5"),
    ("tiles", setting("data.tiles", "2x1"), 'had data.tiles "", not 2x1'),
    ("sampling", setting("data.sampling.method", "class_aware"), "had data.sampling.method uniform, not class_aware"),
    ("teachers", setting("data.episodes.counts", {0: 1}), 'had data.episodes.counts {"0": 1, "1": 1}, not {"0": 1}'),
    ("padding", setting("training.packed", False), "had training.packed true, not false"),
    ("packs", setting("training.pack_tokens", 2000), "had training.batch_size 2, not null; training.pack_tokens 0"),
    ("DeepSpeed", setting("training.deepspeed", "configs/zero2.json"), "had training.deepspeed off, not ZeRO 2, fp32"),
    ("metric", setting("training.select_best", "AP"), "had training.select_best AP50, not AP"),
    ("order of rows", rewrite("train.jsonl", lambda rows: rows[::-1]), "had training rows 5 rows"),
    ("fewer rows", rewrite("train.jsonl", lambda rows: rows[:-1]), "had training rows 5 rows"),
    ("words", rewrite("train.jsonl", reword), "had training rows 5 rows"),
    ("teacher rows", rewrite("teacher.jsonl", lambda rows: rows[::-1]), "had teacher rows 2 rows"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "why"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_another_run_is_refused_in_one_line_with_both_values(change: Change, why: str, records: Path) -> None:
    checkpoint = saved(config_of(records))
    config = config_of(records)
    change(config, records)
    with pytest.raises(CheckpointError) as caught:
        check_identity(checkpoint, identity_of(stages.open_run(config)), 8)
    assert why in str(caught.value) and str(checkpoint) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_conversations_are_part_of_a_run_and_where_their_file_lies_is_not(records: Path) -> None:
    replay = {"data__replay_dot_share": 0.5}
    checkpoint = saved(config_of(records, **replay))
    elsewhere = config_of(records, **replay)
    elsewhere.data.replay.path = str(shutil.copy(records / "talks.jsonl", records / "other.jsonl"))
    assert check_identity(checkpoint, identity_of(stages.open_run(elsewhere)), 8) == []
    for changes, why in (({}, "data.replay.share 0.5, not 0.0"), ({"data__replay_dot_share": 0.25}, "0.5, not 0.25")):
        with pytest.raises(CheckpointError, match=f"had {why}" if not changes else why):
            check_identity(checkpoint, identity_of(stages.open_run(config_of(records, **changes))), 8)
    rewrite("other.jsonl", lambda rows: rows[:-1])(elsewhere, records)
    with pytest.raises(CheckpointError, match=r"had conversations 3 rows, .*, not 2 rows"):
        check_identity(checkpoint, identity_of(stages.open_run(elsewhere)), 8)


def test_another_number_of_processes_is_refused(records: Path) -> None:
    checkpoint = saved(config_of(records))
    with pytest.raises(CheckpointError, match="had number of processes 1, not 2"):
        check_identity(checkpoint, identity_of(stages.open_run(config_of(records), ranks=2)), 8)


def test_a_tokenizer_of_other_words_is_refused_even_with_the_same_rows(records: Path) -> None:
    """Learned anew, it would give other ids to the words that the weights know."""
    checkpoint, run = saved(config_of(records)), stages.open_run(config_of(records))
    run.processor.tokenizer.add_tokens(["another"])
    with pytest.raises(CheckpointError, match=r"had vocabulary \d+ tokens, SHA-256 \w+, not \d+ tokens"):
        check_identity(checkpoint, identity_of(run), 8)


def test_planned_packs_must_be_of_the_same_samples(records: Path) -> None:
    packed = {"training__pack_tokens": 3000}
    checkpoint = saved(config_of(records, **packed))
    assert check_identity(checkpoint, identity_of(stages.open_run(config_of(records, **packed))), 8) == []
    other = config_of(records, **packed, data__max_pixels=56 * 112)
    with pytest.raises(CheckpointError, match="lengths of the samples SHA-256"):
        check_identity(checkpoint, identity_of(stages.open_run(other)), 8)


def test_lora_goes_on_over_the_weights_that_it_adapts(records: Path) -> None:
    lora = {"model__lora_dot_parts": ["llm"]}
    checkpoint, run = saved(config_of(records, **lora)), stages.open_run(config_of(records, **lora))
    with torch.no_grad():
        next(p for p in run.model.backbone.vlm.parameters() if not p.requires_grad).add_(1)
    with pytest.raises(CheckpointError, match="had weights that LoRA adapts"):
        check_identity(checkpoint, identity_of(run), 8)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (setting("training.learning_rates.llm", 0.1), "training.learning_rates.llm stays 0.001, which the saved"),
        (setting("training.weight_decay", 0.5), "training.weight_decay stays 0.01, which the saved optimizer has; 0.5"),
        (setting("training.schedule", "linear"), "training.schedule was cosine, is linear from here on"),
        (setting("training.max_steps", 9), "training.max_steps was 8, is 9 from here on"),
        (setting("loss.caption_weight", 0.5), "loss.caption_weight was 1.0, is 0.5 from here on"),
        (setting("loss.caption_balance", 0.99), "loss.caption_balance was 0.0, is 0.99 from here on"),
        (setting("training.early_stopping.patience", 3), "training.early_stopping.patience was 0, is 3 from here on"),
        (setting("training.select_best", ""), 'training.select_best was AP50, is "" from here on'),
    ],
)
def test_what_may_change_is_said_in_one_line(change: Change, line: str, records: Path) -> None:
    checkpoint, config = saved(config_of(records)), config_of(records)
    change(config, records)
    (said,) = check_identity(checkpoint, identity_of(stages.open_run(config)), config.training.max_steps)
    assert said.startswith(line)


def test_what_changes_nothing_is_not_said(records: Path) -> None:
    checkpoint, config = saved(config_of(records)), config_of(records)
    for key, value in {
        "name": "other", "training.save_every": 1, "training.report_to": ["tensorboard"], "data.workers": 1,
        "evaluation.pictures": 1, "training.resume": True,
    }.items():  # fmt: skip
        setting(key, value)(config, records)
    elsewhere = records.rename(records.parent / "elsewhere")
    config.data.source.path = str(elsewhere)
    config.output_dir = str(shutil.move(config.output_dir, records.parent / "renamed"))
    checkpoint = Path(config.output_dir) / checkpoint.name
    assert check_identity(checkpoint, identity_of(stages.open_run(config)), 8) == []


def test_a_checkpoint_beyond_the_last_step_is_refused(records: Path) -> None:
    checkpoint = saved(config_of(records))
    with pytest.raises(CheckpointError, match=r"is beyond training.max_steps 3; raise it to at least 4"):
        check_identity(checkpoint, {}, 3)


def test_a_run_that_was_stopped_refuses_to_go_on_as_another(records: Path) -> None:
    config = config_of(records)
    config.training.max_steps = 1
    stages.train(config)
    config.training.max_steps, config.training.resume, config.seed = 2, True, 5
    with pytest.raises(CheckpointError, match="had seed 17, not 5"):
        stages.train(config)


def test_keys_that_are_treated_in_a_way_of_their_own_exist_and_are_named_once() -> None:
    names = [*SAME, *KEPT, *SILENT]
    assert len(set(names)) == len(names)
    for name in names:
        assert any(key == name or key.startswith(f"{name}.") for key in all_keys()), name
        assert not any(name.startswith(f"{other}.") for other in names), name
