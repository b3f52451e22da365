"""W&B never ends or delays a run: without account, network or a valid key it logs offline."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from bbu.config import Config
from bbu.monitoring.trackers import ready_trackers
from tests.tiny import tiny_config


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    for name in [name for name in os.environ if name.startswith(("WANDB", "TENSORBOARD"))]:
        monkeypatch.delenv(name)
    for name in ("WANDB_MODE", "WANDB_DIR", "WANDB_PROJECT", "TENSORBOARD_LOGGING_DIR"):
        monkeypatch.setenv(name, "")  # so that monkeypatch takes away what the function sets
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = tiny_config(training={"report_to": ["wandb"]})
    config.output_dir = str(tmp_path / "run")
    return config


def test_without_an_account_it_is_offline_and_silent(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    ready_trackers(config)
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
    ready_trackers(config)
    assert os.environ["WANDB_MODE"] == "offline"
    line = capsys.readouterr().err
    assert line.startswith(f"W&B: {address} cannot be reached (") and "wandb sync uploads it" in line


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_the_users_own_mode_is_kept(config: Config, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    ready_trackers(config)
    assert os.environ["WANDB_MODE"] == mode
