"""A full disk ends a run in one line; what was whole stays, and the run goes on once there is room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bbu.cli import main
from bbu.models.manifest import check_whole
from bbu.training.folders import checkpoints
from tests.jobs import write_job
from tests.small_disk import fill, make_room, small_disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system that holds some tiny checkpoints."""
    with small_disk(tmp_path / "disk", "64m") as place:
        yield place


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bbu:")]
    return line


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_a_checkpoint_that_does_not_fit_leaves_the_one_before(
    disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = str(write_job(tmp_path, training__save_every=2)), disk / "run"
    where = f"output_dir={run}"
    assert main(["run", config, where, "training.max_steps=2"]) == 0
    fill(disk, leave=size_of(run / "checkpoint-2") // 2)
    assert main(["run", config, where, "training.max_steps=4", "training.resume=true"]) == 2
    assert one_line(capsys) == (
        f"bbu: error: {run / 'checkpoint-4'}: cannot be saved: the disk is full; checkpoint-2 as before; make room and "
        "continue with training.resume=true"
    )
    assert [path.name for path in checkpoints(run)] == ["checkpoint-2"]
    check_whole(run / "checkpoint-2")
    make_room(disk)
    assert main(["run", config, where, "training.max_steps=4", "training.resume=true"]) == 0
    check_whole(run / "checkpoint-4")


@pytest.mark.parametrize("left", [0, 4096, 40_000])
def test_predictions_pictures_and_report_that_do_not_fit_are_one_line(
    left: int, disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, run = str(write_job(tmp_path, training__max_steps=1)), disk / "run"
    where = f"output_dir={run}"
    assert main(["run", config, where]) == 0
    capsys.readouterr()
    before = {name: (run / name).read_bytes() for name in ("predictions.jsonl", "metrics.json", "report.html")}
    fill(disk, leave=left)
    assert main(["score", config, where]) == 2
    assert "No space left on device" in one_line(capsys)
    for name in before:  # each is the old one or a whole new one
        assert (run / name).is_file() and (run / name).stat().st_size > 0
    assert not [path.name for path in run.rglob(".new.*")]
    make_room(disk)
    assert main(["score", config, where]) == 0
    assert {name: (run / name).read_bytes() for name in before if name != "metrics.json"} == {
        name: data for name, data in before.items() if name != "metrics.json"
    }
