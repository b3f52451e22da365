"""A full disk ends a run in one line; what was whole stays, and the run goes on once there is room."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bbu.cli import main
from bbu.models.manifest import check_whole
from bbu.training.folders import checkpoints
from tests.jobs import write_job

MB = 1_000_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that holds two tiny checkpoints and not three."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)]
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bbu:")]
    return line


def fill(disk: Path, leave: int) -> Path:
    """Fill a disk but for some bytes."""
    ballast = disk / "ballast"
    with ballast.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, shutil.disk_usage(disk).free - leave)
    return ballast


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(
    small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = str(write_job(tmp_path, training__save_every=2)), small_disk / "run"
    where = f"output_dir={run}"
    assert main(["run", config, where, "training.max_steps=2"]) == 0
    ballast = fill(small_disk, leave=size_of(run / "checkpoint-2") // 2)
    assert main(["run", config, where, "training.max_steps=4", "training.resume=true"]) == 2
    assert one_line(capsys) == (
        f"bbu: error: {run / 'checkpoint-4'}: cannot be saved: the disk is full; checkpoint-2 as before; make room and "
        "continue with training.resume=true"
    )
    assert [path.name for path in checkpoints(run)] == ["checkpoint-2"]
    check_whole(run / "checkpoint-2")
    ballast.unlink()
    assert main(["run", config, where, "training.max_steps=4", "training.resume=true"]) == 0
    check_whole(run / "checkpoint-4")


@pytest.mark.parametrize("left", [0, 4096, 40_000])
def test_predictions_pictures_and_report_that_do_not_fit_are_one_line(
    left: int, small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = str(write_job(tmp_path, training__max_steps=1)), small_disk / "run"
    where = f"output_dir={run}"
    assert main(["run", config, where]) == 0
    capsys.readouterr()
    before = {name: (run / name).read_bytes() for name in ("predictions.jsonl", "metrics.json", "report.html")}
    ballast = fill(small_disk, leave=left)
    assert main(["score", config, where]) == 2
    assert "make room" in one_line(capsys)
    for name in before:  # each is the old one or a whole new one
        assert (run / name).is_file() and (run / name).stat().st_size > 0
    assert not [path.name for path in run.rglob(".new.*")]
    ballast.unlink()
    assert main(["score", config, where]) == 0
    assert {name: (run / name).read_bytes() for name in before if name != "metrics.json"} == {
        name: data for name, data in before.items() if name != "metrics.json"
    }
