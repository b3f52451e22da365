"""A run that no longer moves ends by itself, with the stacks of all ranks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bbu.training.watchdog import Watchdog
from tests import warm
from tests.jobs import environment, write_job

# Rank 1 stands still in step 2: in Python code, or stopped by the system.
FROZEN = """
import os, signal, sys, time
from bbu.cli import main
from bbu.training.trainer import BBUTrainer
real = BBUTrainer.compute_loss
def hook(self, *args, **kwargs):
    if self.state.global_step == 1 and os.environ["RANK"] == "1":
        {freeze}
    return real(self, *args, **kwargs)
BBUTrainer.compute_loss = hook
sys.exit(main(sys.argv[1:]))
"""


def frozen(freeze: str, config: Path, ranks: int, *overrides: str) -> tuple[int, str]:
    """Start the ranks by hand, as torchrun would; returns rank 0's status and its errors."""
    more = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29541"}
    started = [
        warm.Popen(
            [sys.executable, "-c", FROZEN.format(freeze=freeze), "run", str(config), *overrides],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env=environment(**more, RANK=str(rank), LOCAL_RANK=str(rank)),
        )
        for rank in range(ranks)
    ]  # fmt: skip
    try:
        errors = started[0].communicate(timeout=200)[1]
        if "sleep" in freeze:
            started[-1].wait(timeout=20)
        return started[0].returncode, errors
    finally:
        for process in started:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    ("freeze", "writes"),
    [("time.sleep(1000)", {"rank-0.txt", "rank-1.txt"}), ("os.kill(os.getpid(), signal.SIGSTOP)", {"rank-0.txt"})],
    ids=["in Python", "stopped by the system"],
)
def test_a_frozen_rank_is_noticed_with_the_stacks_of_all(freeze: str, writes: set[str], tmp_path: Path) -> None:
    config = write_job(tmp_path)
    status, errors = frozen(freeze, config, 2, "training.step_timeout=8")
    assert status == 124, errors[-3000:]
    # whichever rank has waited longest is the first to say so; the other one ends with it
    why = r"has waited 8 s \(training.step_timeout\)|ends with a rank that no longer moves"
    assert re.search(f"rank 0 ({why}) in step 2; stacks of each rank: ", errors), errors[-3000:]
    found = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "run" / "stacks").iterdir()}
    assert set(found) == writes
    assert all("most recent call first" in text for text in found.values())
    if "rank-1.txt" in found:
        assert " in hook" in found["rank-1.txt"], "it does not say where the rank stands"


@pytest.mark.parametrize(("beats", "ends"), [(True, False), (False, True)])
def test_only_a_run_without_beats_is_ended(
    beats: bool, ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    statuses: list[int] = []

    watchdog = Watchdog(0.5, tmp_path / "stacks")

    def exit_(status: int) -> None:
        statuses.append(status)
        watchdog._ended.set()  # where the process would have ended

    monkeypatch.setattr(os, "_exit", exit_)
    with watchdog.watching():
        for number in range(10):
            if beats:
                watchdog.beat(f"step {number}")
            time.sleep(0.1)
    assert statuses == [124] * ends
    assert (tmp_path / "stacks" / "rank-0.txt").exists() is ends
    assert ("in the first step" in capsys.readouterr().err) is ends


@pytest.mark.parametrize(("writes", "ends"), [("rank-1.txt", True), ("", False)])
def test_a_run_ends_with_the_first_rank_that_writes_its_stacks(
    writes: str, ends: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    statuses: list[int] = []
    watchdog = Watchdog(60, tmp_path)
    (tmp_path / "rank-2.txt").write_text("of an earlier run")

    def exit_(status: int) -> None:
        statuses.append(status)
        watchdog._ended.set()

    monkeypatch.setattr(os, "_exit", exit_)
    monkeypatch.setattr("bbu.training.watchdog.GRACE", 0.1)
    monkeypatch.setattr("bbu.training.watchdog.POLL", 0.05)
    with watchdog.watching():
        if writes:
            (tmp_path / writes).write_text("stacks")
        time.sleep(0.5)
    assert statuses == [124] * ends
    assert (tmp_path / "rank-0.txt").exists() is ends
    assert ("ends with a rank that no longer moves" in capsys.readouterr().err) is ends


def test_a_timeout_of_zero_watches_nothing(tmp_path: Path) -> None:
    with Watchdog(0, tmp_path).watching():
        assert not [thread for thread in threading.enumerate() if thread.name == "watchdog"]
