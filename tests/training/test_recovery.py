"""Checkpoints of a run: whole or none, read as data, found again wherever the folder is."""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import shutil
import signal
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bbu import stages
from bbu.errors import CheckpointError, ConfigError
from bbu.jsonl import write_json, write_jsonl
from bbu.models import precision
from bbu.models.checkpoint import check_model, save_model
from bbu.models.manifest import MANIFEST_FILE, read_manifest, seal
from bbu.training.recovery import (
    best_checkpoint,
    check_checkpoint,
    checkpoints,
    load_for_training,
    new_checkpoint,
    newest_checkpoint,
    publish,
    weights_only,
)
from bbu.training.trainer import BBUTrainer
from tests.models.test_manifest import FAULTS, delete, flip, spoil_each
from tests.tiny import DEFAULT, build_tiny, tiny_config, tiny_processor, write_samples
from tests.training.test_resume import run_config, weights

Spoil = Callable[[dict[str, torch.Tensor]], str]
LORA = {"lora.parts": ["llm"], "lora.rank": 2}


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "compute_device", lambda: torch.device("cpu"))


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("records")
    samples = write_samples(folder, 5)
    write_jsonl(folder / "train.jsonl", [sample.to_json() for sample in samples])
    write_jsonl(folder / "teacher.jsonl", [sample.student.to_json() for sample in samples[:2]])
    write_jsonl(folder / "val.jsonl", [sample.student.to_json() for sample in samples[:2]])
    return folder


@pytest.fixture(scope="module")
def trained(records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps with a checkpoint after each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "compute_device", lambda: torch.device("cpu"))
        output = tmp_path_factory.mktemp("trained") / "run"
        stages.train(run_config(records, output, training__max_steps=2, training__save_every=1))
    return output


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return shutil.copytree(trained, tmp_path / "run")


# ---------------------------------------------------------------- whole or none


def test_a_checkpoint_lists_all_that_the_trainer_needs(run: Path) -> None:
    names = set(read_manifest(run / "checkpoint-2"))
    assert {
        "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "run_identity.json", "bbu.json",
        "detection_head.safetensors", "backbone/model.safetensors", "backbone/config.json", "backbone/tokenizer.json",
    } <= names  # fmt: skip
    there = {p.relative_to(run / "checkpoint-2").as_posix() for p in (run / "checkpoint-2").rglob("*") if p.is_file()}
    assert there == {*names, MANIFEST_FILE}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_every_fault_in_every_file_of_a_checkpoint_is_found(fault: Callable[[Path], None], run: Path) -> None:
    assert spoil_each(run / "checkpoint-2", fault, check_checkpoint) >= 14


def test_the_newest_whole_checkpoint_is_taken_and_the_others_are_named(
    run: Path, records: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flip(run / "checkpoint-2" / "optimizer.pt")
    newest, faults = newest_checkpoint(run)
    assert newest == run / "checkpoint-1" and len(faults) == 1
    before = weights(run / "model")
    shutil.rmtree(run / "model")
    stages.train(run_config(records, run, training__max_steps=2, training__save_every=1, training__resume=True))
    said = capsys.readouterr().out
    assert f"passed over: {run / 'checkpoint-2' / 'optimizer.pt'}: was damaged or changed" in said
    assert f"resuming from {run / 'checkpoint-1'}" in said
    after = weights(run / "model")
    assert all(torch.equal(before[name], after[name]) for name in before), "the step after it was trained again"
    assert newest_checkpoint(run) == (run / "checkpoint-2", []), "a whole one has taken the place of the damaged one"
    assert sorted(path.name for path in run.glob("*checkpoint*")) == ["checkpoint-1", "checkpoint-2"]


def test_where_no_checkpoint_is_whole_each_is_named(run: Path, records: Path) -> None:
    delete(run / "checkpoint-1" / "scheduler.pt")
    delete(run / "checkpoint-2" / "trainer_state.json")
    with pytest.raises(
        ConfigError, match=r"(?s)has no complete checkpoint.*trainer_state.json: is missing.*scheduler.pt"
    ):
        stages.train(run_config(records, run, training__resume=True))


def test_other_names_are_no_checkpoints_and_stay(run: Path, records: Path) -> None:
    others = ["checkpoint-best", "checkpoint-8 (copy)", "checkpoint-8-backup", "checkpoint-", "checkpoint-0x8"]
    for name in others:
        shutil.copytree(run / "checkpoint-1", run / name)
    (run / "checkpoint-9").write_text("a file", encoding="utf-8")
    (run / "checkpoint-7").mkdir()
    (run / "checkpoint-7" / "mine.txt").write_text("mine", encoding="utf-8")
    assert [path.name for path in checkpoints(run)] == ["checkpoint-1", "checkpoint-2", "checkpoint-7"]
    config = run_config(records, run, training__max_steps=4, training__save_every=1, training__resume=True)
    config.training.keep_checkpoints = 1
    stages.train(config)
    assert newest_checkpoint(run)[0] == run / "checkpoint-4"
    left = {path.name for path in run.glob("checkpoint-*")}
    assert left == {*others, "checkpoint-9", "checkpoint-7", "checkpoint-4"}
    assert (run / "checkpoint-7" / "mine.txt").read_text(encoding="utf-8") == "mine"


# ---------------------------------------------------------------- saving


def write_checkpoint(output: Path, step: int, *, keep: int = 2, best: int | None = None, text: str = "new") -> None:
    with new_checkpoint(output, step, keep=keep, best=best) as saving:
        (saving / f"checkpoint-{step}").mkdir()
        (saving / f"checkpoint-{step}" / "trainer_state.json").write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    ("keep", "best", "left"),
    [(1, None, [5]), (2, None, [4, 5]), (9, None, [1, 2, 3, 4, 5]), (1, 2, [2, 5]), (2, 2, [2, 5]), (3, 2, [2, 4, 5])],
)
def test_the_newest_and_the_best_are_kept(keep: int, best: int | None, left: list[int], tmp_path: Path) -> None:
    for step in range(1, 6):
        write_checkpoint(tmp_path, step, keep=5 if step < 5 else keep, best=best)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    assert [int(path.name.split("-")[1]) for path in checkpoints(tmp_path)] == left


def test_a_damaged_later_checkpoint_does_not_push_a_whole_one_out(tmp_path: Path) -> None:
    for step in (4, 8):
        write_checkpoint(tmp_path, step)
    flip(tmp_path / "checkpoint-8" / "trainer_state.json")
    write_checkpoint(tmp_path, 6, keep=1)
    assert newest_checkpoint(tmp_path)[0] == tmp_path / "checkpoint-6"


def write_bytes(folder: Path) -> None:
    (folder / "a.bin").write_bytes(bytes(200_000))


def write_torch(folder: Path) -> None:
    torch.save(torch.zeros(200_000), folder / "optimizer.pt")


def write_safetensors(folder: Path) -> None:
    save_file({"a": torch.zeros(200_000)}, folder / "a.safetensors")


@pytest.mark.parametrize("write", [write_bytes, write_torch, write_safetensors], ids=lambda write: write.__name__[6:])
def test_a_disk_that_takes_no_more_is_one_line_and_leaves_the_checkpoints_before(
    write: Callable[[Path], None], tmp_path: Path
) -> None:
    """A limit on the size of files stands for a full disk: the kernel cuts a file off in the middle of writing it."""
    output = tmp_path / "run"
    write_checkpoint(output, 1, keep=1)
    child = os.fork()
    if not child:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            with new_checkpoint(output, 2, keep=1, best=None) as saving:
                (saving / "checkpoint-2").mkdir()
                write(saving / "checkpoint-2")
        except CheckpointError as error:
            (tmp_path / "said").write_text(str(error), encoding="utf-8")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    said = (tmp_path / "said").read_text(encoding="utf-8")
    assert said.startswith(f"{output / 'checkpoint-2'}: cannot be saved: ") and "\n" not in said
    assert "make room and continue with training.resume=true" in said
    assert [path.name for path in output.iterdir()] == ["checkpoint-1"]
    write_checkpoint(output, 2, keep=1)
    assert newest_checkpoint(output) == (output / "checkpoint-2", [])


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug")], ids=["ctrl-c", "bug"])
def test_any_other_stop_while_saving_leaves_the_others_and_no_rest(error: BaseException, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1, keep=1)
    with pytest.raises(type(error)), new_checkpoint(tmp_path, 2, keep=1, best=None) as saving:
        (saving / "checkpoint-2").mkdir()
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
    write_checkpoint(tmp_path, 2, keep=1)
    assert newest_checkpoint(tmp_path) == (tmp_path / "checkpoint-2", [])


def test_a_model_folder_that_no_run_wrote_is_moved_aside(run: Path) -> None:
    shutil.rmtree(run / "model")
    (run / "model").mkdir()
    (run / "model" / "mine").write_text("mine", encoding="utf-8")
    publish(run / "checkpoint-2", run / "model")
    assert (run / "model-old-1" / "mine").read_text(encoding="utf-8") == "mine"
    check_model(run / "model")


def test_what_a_kill_left_behind_does_not_get_into_the_next_checkpoint(tmp_path: Path) -> None:
    rest = tmp_path / ".saving" / "checkpoint-3"
    rest.mkdir(parents=True)
    (rest / "packs.json").write_text("{}", encoding="utf-8")
    write_checkpoint(tmp_path, 3)
    assert set(read_manifest(tmp_path / "checkpoint-3")) == {"trainer_state.json"}


def test_a_folder_of_that_name_which_no_run_wrote_is_moved_aside(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-3").mkdir()
    (tmp_path / "checkpoint-3" / "mine").write_text("mine", encoding="utf-8")
    write_checkpoint(tmp_path, 3)
    assert (tmp_path / "checkpoint-3-old-1" / "mine").read_text(encoding="utf-8") == "mine"
    assert newest_checkpoint(tmp_path)[0] == tmp_path / "checkpoint-3"


# ---------------------------------------------------------------- killed


def test_a_run_killed_while_saving_never_leaves_half_a_checkpoint(tmp_path: Path) -> None:
    """A process that saves and rotates without pause is killed at random moments; every folder in place is whole."""
    random, survived = Random(7), set()
    for round_ in range(12):
        child = os.fork()
        if not child:
            try:
                for step in range(round_ * 1000, round_ * 1000 + 999):
                    write_checkpoint(tmp_path, step, text="x" * 100_000)
            finally:
                os._exit(1)
        time.sleep(random.uniform(0.05, 0.3))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = checkpoints(tmp_path)
        for path in found:
            check_checkpoint(path)
        survived.add(newest_checkpoint(tmp_path)[0])
        assert len(found) <= 3  # two, and one that rotation had not reached
    assert len(survived) > 3, "the processes had no time to save anything"


# ---------------------------------------------------------------- payloads


class Payload:
    """Unpickled, it touches a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.file}",)


def as_zip(path: Path, value: Any) -> None:
    torch.save(value, path)


def as_legacy(path: Path, value: Any) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


def as_pickle(path: Path, value: Any) -> None:
    path.write_bytes(pickle.dumps(value))


def as_torchscript(path: Path, value: Any) -> None:
    as_zip(path, value)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{path.stem}/constants.pkl", pickle.dumps(value))


FORMS = [as_zip, as_legacy, as_pickle, as_torchscript]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__[3:])
@pytest.mark.parametrize(
    "name",
    ["optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_1.pth", "training_args.bin",
     "backbone/pytorch_model.bin", "notes.pkl"],
)  # fmt: skip
def test_a_payload_in_a_checkpoint_does_not_run(
    name: str, form: Callable[[Path, Any], None], run: Path, tmp_path: Path
) -> None:
    """Also where the manifest is made anew, and where the caller asks torch to load anything."""
    ran, path = tmp_path / "ran", run / "checkpoint-2" / name
    form(path, {"state": torch.zeros(2), "more": [Payload(ran)]})
    seal(run / "checkpoint-2")
    with pytest.raises(CheckpointError, match=name) as caught:
        check_checkpoint(run / "checkpoint-2")
    assert "\n" not in str(caught.value) and "is not loaded" in str(caught.value)
    assert newest_checkpoint(run)[0] == run / "checkpoint-1"
    with weights_only(run / "checkpoint-2"), pytest.raises((pickle.UnpicklingError, RuntimeError)):
        torch.load(path, weights_only=False)
    with weights_only(run / "checkpoint-2"), pytest.raises((pickle.UnpicklingError, RuntimeError)):
        torch.load(io.BytesIO(path.read_bytes()), weights_only=False)
    assert not ran.exists()
    if form is not as_torchscript:
        with suppress(RuntimeError):
            torch.load(path, weights_only=False)
        assert ran.exists(), "the payload works, so the test shows something"


def test_a_payload_does_not_run_in_a_resumed_trainer_that_nobody_warned(
    run: Path, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    as_zip(run / "checkpoint-2" / "optimizer.pt", Payload(ran))
    seal(run / "checkpoint-2")
    monkeypatch.setattr("bbu.training.recovery.check_checkpoint", lambda path: None)
    with pytest.raises((pickle.UnpicklingError, CheckpointError)):
        stages.train(run_config(records, run, training__max_steps=3, training__resume=True))
    assert not ran.exists()


def test_torchs_switches_are_as_before_afterwards(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")
    monkeypatch.setenv(names[1], "1")
    monkeypatch.delenv(names[0], raising=False)
    with weights_only(run / "checkpoint-1"):
        assert (os.environ[names[0]], os.environ.get(names[1])) == ("1", None)
    assert (os.environ.get(names[0]), os.environ[names[1]]) == (None, "1")


# ---------------------------------------------------------------- LoRA


def lora_checkpoint(folder: Path) -> Path:
    save_model(folder, build_tiny(tiny_config(model=LORA)), tiny_processor(DEFAULT), adapters=True)
    return folder


def drop_one(tensors: dict[str, torch.Tensor]) -> str:
    name = sorted(tensors)[3]
    del tensors[name]
    return f"{name} is missing"


def reshape_one(tensors: dict[str, torch.Tensor]) -> str:
    name = sorted(tensors)[3]
    tensors[name] = torch.zeros(3, 5)
    return f"{name} has shape (3, 5), not"


def add_one(tensors: dict[str, torch.Tensor]) -> str:
    tensors["model.other"] = torch.zeros(1)
    return "model.other does not learn here"


@pytest.mark.parametrize("spoil", [drop_one, reshape_one, add_one], ids=lambda spoil: spoil.__name__)
def test_lora_weights_fit_exactly_or_are_refused(
    spoil: Callable[[dict[str, torch.Tensor]], str], tmp_path: Path
) -> None:
    path = lora_checkpoint(tmp_path) / "backbone" / "adapter_model.safetensors"
    tensors = load_file(path)
    why = spoil(tensors)
    save_file(tensors, path)
    model = build_tiny(tiny_config(model=LORA))
    with pytest.raises(CheckpointError) as caught:
        load_for_training(model, tmp_path)
    assert why in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


# ---------------------------------------------------------------- moved folders


def test_a_run_that_was_moved_publishes_its_best_checkpoint_as_before(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first evaluation is the best one; the folder has another name when the run goes on."""
    scores = iter([0.9, 0.2, 0.1, 0.1])
    real = BBUTrainer.__init__

    def scored(self: BBUTrainer, *inputs: Any, **options: Any) -> None:
        real(self, *inputs, **options)
        self.evaluator = lambda: {"AP50": next(scores)}

    monkeypatch.setattr(BBUTrainer, "__init__", scored)
    changes = {"training__eval_every": 1, "training__keep_checkpoints": 1}
    stages.train(run_config(records, tmp_path / "before", training__max_steps=2, **changes))
    assert best_checkpoint(tmp_path / "before" / "checkpoint-2") == tmp_path / "before" / "checkpoint-1"
    best = weights(tmp_path / "before" / "checkpoint-1")
    (tmp_path / "elsewhere").mkdir()
    moved = (tmp_path / "before").rename(tmp_path / "elsewhere" / "after")
    shutil.rmtree(moved / "model")
    stages.train(run_config(records, moved, training__max_steps=3, training__resume=True, **changes))
    assert json.loads((moved / "train_summary.json").read_text(encoding="utf-8"))["checkpoint"] == "checkpoint-1"
    published = weights(moved / "model")
    assert all(torch.equal(published[name], best[name]) for name in published)
    assert [path.name for path in checkpoints(moved)] == ["checkpoint-1", "checkpoint-3"]
    state = json.loads((moved / "checkpoint-3" / "trainer_state.json").read_text(encoding="utf-8"))
    assert state["best_model_checkpoint"] == str(moved / "checkpoint-1")
    flip(moved / "checkpoint-1" / "bbu.json")
    config = run_config(records, moved, training__max_steps=4, training__resume=True, **changes)
    with pytest.raises(CheckpointError, match=r"bbu.json: was damaged.*it is the best so far"):
        stages.train(config)


def test_a_finished_run_can_be_published_again(run: Path, records: Path) -> None:
    before = weights(run / "model")
    shutil.rmtree(run / "model")
    stages.train(run_config(records, run, training__max_steps=2, training__save_every=1, training__resume=True))
    assert all(torch.equal(before[name], value) for name, value in weights(run / "model").items())


def test_a_leftover_file_of_another_run_spoils_nothing(run: Path, records: Path) -> None:
    write_json(run / "checkpoint-2" / "packs.json", {"seed": 3})
    stages.train(run_config(records, run, training__max_steps=3, training__resume=True))
    assert "packs.json" not in read_manifest(run / "checkpoint-3")
