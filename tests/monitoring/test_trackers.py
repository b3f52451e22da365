"""W&B never ends or delays a run: without account, network or a valid key it logs offline.

A resumed run goes on in its W&B run; every other run begins a new one.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from bbu.config import Config
from bbu.monitoring.trackers import place_trackers, ready_wandb
from tests.jobs import run, write_job
from tests.tiny import tiny_config


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    for name in [name for name in os.environ if name.startswith(("WANDB", "TENSORBOARD"))]:
        monkeypatch.delenv(name)
    names = ("WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "WANDB_RUN_ID", "WANDB_RESUME", "TENSORBOARD_LOGGING_DIR")
    for name in names:
        monkeypatch.setenv(name, "")  # so that monkeypatch takes away what the function sets
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = tiny_config(training={"report_to": ["wandb"]})
    config.output_dir = str(tmp_path / "run")
    place_trackers(config)
    return config


def test_without_an_account_it_is_offline_and_silent(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    ready_wandb(config)
    assert os.environ["WANDB_MODE"] == "offline" and os.environ["WANDB_DIR"] == config.output_dir
    assert capsys.readouterr().err == ""


def test_with_a_key_and_no_network_it_says_so_and_is_offline(
    config: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as closed:  # nobody listens on a port that was free a moment ago
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", address)
    ready_wandb(config)
    assert os.environ["WANDB_MODE"] == "offline"
    line = capsys.readouterr().err
    assert line.startswith(f"W&B: {address} cannot be reached (") and "wandb sync uploads it" in line


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_the_users_own_mode_is_kept(config: Config, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    ready_wandb(config)
    assert os.environ["WANDB_MODE"] == mode


def test_each_new_run_has_an_id_of_its_own(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ready_wandb(config)
    assert first and os.environ["WANDB_RUN_ID"] == first
    monkeypatch.delenv("WANDB_RUN_ID")
    assert ready_wandb(config) not in (None, first)
    monkeypatch.delenv("WANDB_RUN_ID")
    assert ready_wandb(config, "earlier") == "earlier"
    monkeypatch.setenv("WANDB_RUN_ID", "mine")
    assert ready_wandb(config, "earlier") == "mine", "the user's own id is kept"
    config.training.report_to = []
    assert ready_wandb(config, "earlier") is None


def records(path: Path) -> Iterator[bytes]:
    """The records of a W&B file: LevelDB's log format behind a header of 7 bytes."""
    data, place, parts = path.read_bytes(), 7, b""
    while place < len(data):
        if 2**15 - place % 2**15 < 7:  # the rest of a block is too short for a record's header
            place += 2**15 - place % 2**15
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def steps_of(folder: Path) -> list[int]:
    """Steps of the losses that a W&B folder holds, in order."""
    from wandb.proto.wandb_internal_pb2 import Record

    history = [Record.FromString(data).history for data in records(next(folder.glob("*.wandb")))]
    rows = [{"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in h.item} for h in history]
    return [row["train/global_step"] for row in rows if "train/loss" in row]


def test_a_resumed_run_goes_on_in_its_wandb_run_and_a_replaced_one_does_not(tmp_path: Path) -> None:
    """With the real package, offline; each in a process of its own."""
    job, home = write_job(tmp_path, photos=2), {"HOME": str(tmp_path), "WANDB_SILENT": "true"}
    for changes in (
        ["training.max_steps=2"],
        ["training.max_steps=3", "training.resume=true"],
        ["training.max_steps=1", "training.overwrite=true"],
    ):
        done = run("run", job, "training.report_to=[wandb]", "evaluation.calibration=none", *changes, **home)
        assert done.returncode == 0, done.stderr[-3000:]
    folders = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"), key=lambda folder: folder.stat().st_mtime)
    first, second, third = (folder.name.rpartition("-")[2] for folder in folders)
    assert first == second != third
    assert [steps_of(folder) for folder in folders] == [[1, 2], [3], [1]]
