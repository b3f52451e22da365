"""A run in phases: who learns in each, what stays as it was, and a kill anywhere changes nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerState
from transformers.integrations import TensorBoardCallback

from bbu import stages
from bbu.config import Config, PhaseConfig, load_config, phase_configs, schedule_table
from bbu.errors import CheckpointError, ConfigError
from bbu.jsonl import iter_json_lines
from bbu.models.checkpoint import load_model
from bbu.models.manifest import seal
from bbu.training.callbacks import count_from
from bbu.training.trainer import BBUTrainer
from tests.tiny import DEFAULT, FAMILIES
from tests.training.test_resume import PowerCutError, pull_the_plug, run_config
from tests.training.test_resume import records as records
from tests.training.test_resume import weights as saved_weights

HEADS = PhaseConfig(
    name="heads", steps=3, train=["merger", "adapter", "detection"], last_blocks={"vision": 1}, rates={"merger": 2e-3},
    set={"data.augment.brightness": 0.0},
)  # fmt: skip
ALL = PhaseConfig(name="all", steps=4, train=["vision", "merger", "llm", "adapter", "detection"])


def in_phases(records: Path, output: Path, family: str = DEFAULT, *phases: PhaseConfig, **changes: Any) -> Config:
    config = run_config(records, output, family, training__save_every=2, **changes)
    config.phases = list(phases or (HEADS, ALL))
    return config


def log_of(output: Path) -> list[dict[str, Any]]:
    return [line for _, line in iter_json_lines(output / "train_log.jsonl") if "loss" in line]


# ---------------------------------------------------------------- who learns


@pytest.mark.parametrize("family", FAMILIES)
def test_a_phase_changes_what_it_trains_and_nothing_else(family: str, records: Path, tmp_path: Path) -> None:
    stages.train_phases(in_phases(records, tmp_path, family, HEADS, ALL))
    first, last = load_model(tmp_path / "heads" / "model"), load_model(tmp_path / "model")
    start = load_model(start_of(records, tmp_path / "none", family)).state_dict()
    last_block = {id(p) for p in first.backbone.blocks("vision")[-1].parameters()}
    changed = set()
    for name, parameter in first.named_parameters():
        part = "last block" if id(parameter) in last_block else first.group_of(name)
        if not torch.equal(parameter, start[name]):
            changed.add(part)
    assert changed == {*HEADS.train, "last block"}
    after = {last.group_of(name) for name, p in last.named_parameters() if not torch.equal(p, first.state_dict()[name])}
    assert after == set(ALL.train)


def start_of(records: Path, folder: Path, family: str) -> Path:
    """The model before its first step."""
    from bbu.models.checkpoint import save_model

    config = in_phases(records, folder, family)
    run = stages.open_run(phase_configs(config)[0])
    save_model(folder, run.model, run.processor)
    return folder


def test_a_phase_starts_from_the_model_of_the_one_before(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, torch.Tensor]] = []
    real = BBUTrainer.train

    def train(self: BBUTrainer, *inputs: Any, **options: Any) -> Any:
        seen.append({name: value.clone() for name, value in self.unwrapped.model.state_dict().items()})
        return real(self, *inputs, **options)

    monkeypatch.setattr(BBUTrainer, "train", train)
    stages.train_phases(in_phases(records, tmp_path))
    published = load_model(tmp_path / "heads" / "model").state_dict()
    assert all(torch.equal(seen[1][name], value) for name, value in published.items())


def test_the_last_phases_model_is_the_runs_and_is_scored(records: Path, tmp_path: Path) -> None:
    run = stages.train_phases(in_phases(records, tmp_path))
    one, other = saved_weights(tmp_path / "model"), saved_weights(tmp_path / "all" / "model")
    assert run.model_folder == tmp_path / "model"
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    summary = json.loads((tmp_path / "train_summary.json").read_text(encoding="utf-8"))
    assert summary["steps"] == 7 and summary["checkpoint"] == "all/checkpoint-4"
    assert [phase["phase"] for phase in summary["phases"]] == ["heads", "all"]
    assert load_config(tmp_path / "config.yaml").phases == [HEADS, ALL]


def test_the_log_is_one_with_steps_counted_through(records: Path, tmp_path: Path) -> None:
    stages.train_phases(in_phases(records, tmp_path))
    lines = log_of(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6, 7]
    assert [line["phase"] for line in lines] == ["heads"] * 3 + ["all"] * 4
    assert "learning_rate/llm" not in lines[0] and "learning_rate/llm" in lines[3]


# ---------------------------------------------------------------- killed and resumed


@pytest.mark.parametrize("batches", [1, 3, 6], ids=lambda n: f"after {n} steps")
def test_a_run_killed_in_any_phase_and_resumed_is_the_run_never_killed(
    batches: int, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages.train_phases(in_phases(records, tmp_path / "whole"))
    broken = in_phases(records, tmp_path / "broken")
    with monkeypatch.context() as context, pytest.raises(PowerCutError):
        pull_the_plug(context, after=batches)
        stages.train_phases(broken)
    broken.training.resume = True
    stages.train_phases(broken)
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "broken")
    one, other = (saved_weights(tmp_path / name / "model") for name in ("whole", "broken"))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_finished_phase_is_left_as_it_is(records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = in_phases(records, tmp_path)
    stages.train_phases(config)
    before = (tmp_path / "heads" / "model" / "manifest.json").stat().st_mtime_ns
    config.training.resume = True
    stages.train_phases(config)
    assert "phase heads: finished before" in capsys.readouterr().out
    assert (tmp_path / "heads" / "model" / "manifest.json").stat().st_mtime_ns == before


def test_a_phase_is_trained_anew_when_the_one_before_it_was(records: Path, tmp_path: Path) -> None:
    config = in_phases(records, tmp_path)
    stages.train_phases(config)
    shutil.rmtree(tmp_path / "heads")
    config.phases[0].rates = {"merger": 5e-3}
    config.training.resume = True
    stages.train_phases(config)
    other = in_phases(records, tmp_path / "other")
    other.phases[0].rates = {"merger": 5e-3}
    stages.train_phases(other)
    one, two = saved_weights(tmp_path / "model"), saved_weights(tmp_path / "other" / "model")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_second_run_replaces_nothing_unasked(records: Path, tmp_path: Path) -> None:
    config = in_phases(records, tmp_path)
    stages.train_phases(config)
    with pytest.raises(ConfigError, match=r"heads holds checkpoint-3 of an earlier run"):
        stages.train_phases(config)


# ---------------------------------------------------------------- what is refused


def written(tmp_path: Path, *phases: dict[str, Any], **more: Any) -> Path:
    import yaml

    path = tmp_path / "phased.yaml"
    path.write_text(yaml.safe_dump({"phases": list(phases), **more}), encoding="utf-8")
    return path


GOOD: dict[str, Any] = {"name": "heads", "steps": 3, "train": ["detection"]}
REFUSED: list[tuple[list[dict[str, Any]], str]] = [
    ([{"name": "heads", "steps": 3}], "phases: heads: names no group, so nothing would learn; list some of vision,"),
    ([GOOD, GOOD], r"phases\[1\].name: heads is the folder of another phase in outputs/phased; rename it"),
    ([GOOD | {"name": "Heads"}, GOOD], "is the folder of another phase"),  # one folder on some file systems
    ([GOOD | {"name": "model"}], "model is the folder of the run itself"),
    ([GOOD | {"name": "../x"}], r"phases\[0\].name: '../x' names a folder"),
    ([GOOD | {"train": ["heads"]}], "phases: heads: train: 'heads' is not one of vision, merger, llm"),
    ([GOOD | {"rates": {"llm": 1e-3}}], "phases: heads: rates: llm does not learn in this phase"),
    ([GOOD | {"last_blocks": {"detection": 1}}], "last_blocks: all of detection learns"),
    ([GOOD | {"last_blocks": {"merger": 1}}], "model.last_blocks: 'merger' is not one of vision, llm"),
    ([GOOD | {"steps": 0}], "phases: heads: training.max_steps: must be at least 1, is 0"),
    ([GOOD | {"set": {"model.family": "qwen3_vl"}}], "set: model.family is the same in all phases; set it outside"),
    ([GOOD | {"set": {"model.detection.width": 64}}], "set: model.detection.width is the same in all phases"),
    ([GOOD | {"set": {"training.max_steps": 9}}], "set: training.max_steps follows from steps; use that"),
    ([GOOD | {"set": {"data.tails": 1}}], "phases: heads: set: unknown key data.tails"),
    ([GOOD | {"set": {"data.workers": "many"}}], "phases: heads: set: data.workers: Value 'many'"),
    ([GOOD | {"stepz": 3}], "Key 'stepz' not in 'PhaseConfig'"),
]


@pytest.mark.parametrize(("phases", "why"), REFUSED, ids=[why[:60] for _, why in REFUSED])
def test_a_wrong_phase_is_one_line_before_anything_starts(
    phases: list[dict[str, Any]], why: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        load_config(written(tmp_path, *phases))
    assert "\n" not in str(caught.value)


def test_a_start_of_another_family_or_size_is_one_line(records: Path, tmp_path: Path) -> None:
    folder = start_of(records, tmp_path / "start", FAMILIES[1])
    for changes, why in (
        ({}, f"is a {FAMILIES[1]} model, and model.family is {FAMILIES[0]}"),
        ({"family": FAMILIES[1], "model__detection_dot_queries": 11}, r"has model.detection.queries 10, not 11"),
        ({"family": FAMILIES[1], "model__scratch": {"text_depth": 1}}, "has other sizes than model.scratch: "),
        ({"family": FAMILIES[1], "model__detection": None}, "has model.detection .* not None|not null"),
    ):
        other = {"family": FAMILIES[0], **changes}
        config = run_config(records, tmp_path / "run", **other)
        config.model.start = str(folder)
        if "model__scratch" in changes:
            config.model.scratch = run_config(records, tmp_path, FAMILIES[1]).model.scratch | {"text_depth": 1}
        with pytest.raises(ConfigError, match=why):
            _ = stages.open_run(config).model


def test_a_start_of_adapters_alone_is_one_line(records: Path, tmp_path: Path) -> None:
    folder = start_of(records, tmp_path / "start", DEFAULT)
    facts = json.loads((folder / "bbu.json").read_text(encoding="utf-8"))
    (folder / "bbu.json").write_text(json.dumps(facts | {"base": {"hash": ""}}), encoding="utf-8")
    seal(folder)
    config = run_config(records, tmp_path / "run")
    config.model.start = str(folder)
    with pytest.raises(ConfigError, match=r"holds adapters alone; name a model published with model\.publish=merged"):
        _ = stages.open_run(config).model


def test_phases_publish_whole_weights(tmp_path: Path) -> None:
    model = {"publish": "adapter", "path": "somewhere", "lora": {"parts": ["llm"]}}
    with pytest.raises(ConfigError, match=r"^model.publish: a phase starts from whole weights, not from adapters"):
        load_config(written(tmp_path, GOOD, model=model))


def test_a_start_that_is_no_model_is_one_line(records: Path, tmp_path: Path) -> None:
    config = run_config(records, tmp_path / "run")
    config.model.start = str(tmp_path)
    with pytest.raises(CheckpointError, match="is not a model folder"):
        _ = stages.open_run(config).model


# ---------------------------------------------------------------- words on a command line


def test_one_key_of_a_phase_can_be_given_on_the_command_line(tmp_path: Path) -> None:
    path = written(tmp_path, GOOD, {"name": "all", "steps": 9, "train": ["llm"], "set": {"data.max_pixels": 100_000}})
    config = load_config(path, ["phases.all.steps=2", "phases.all.set.data.workers=3", "phases.heads.train=[merger]"])
    first, second = phase_configs(config)
    assert (second.training.max_steps, second.data.workers, second.data.max_pixels) == (2, 3, 100_000)
    assert "merger" not in first.model.freeze and "detection" in first.model.freeze
    with pytest.raises(ConfigError, match=r"write phases.<name>.<key>=value; phases here are heads, all"):
        load_config(path, ["phases.none.steps=2"])


def test_the_schedule_is_a_table(tmp_path: Path) -> None:
    phase = GOOD | {"rates": {"detection": 1e-3}, "last_blocks": {"vision": 2}, "set": {"data.workers": 2}}
    config = load_config(written(tmp_path, phase))
    lines = schedule_table(config).splitlines()
    assert lines[0].split() == ["phase", "steps", "learns", "rates"] and lines[2] == "    data.workers: 2"
    assert lines[1].split("  ")[0] == "heads" and "detection, last 2 of vision" in lines[1] and "0.001" in lines[1]


def test_trackers_see_the_steps_of_the_whole_run() -> None:
    class Tracker(TensorBoardCallback):
        def __init__(self) -> None:
            self.seen: list[int] = []

        def on_log(self, args: Any, state: TrainerState, control: Any, logs: Any = None, **kwargs: Any) -> None:
            self.seen.append(state.global_step)

    tracker, state = Tracker(), TrainerState(global_step=3)
    count_from([tracker], 7)
    tracker.on_log(None, state, None, logs={})
    assert tracker.seen == [10] and state.global_step == 3
