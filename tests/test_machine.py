"""What the machine lacks is one line that names the place and the way out; errors of the program stay tracebacks."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bbu import cli
from bbu.machine import disk_full, explain
from tests.jobs import environment

CASES = {
    "no permission": (PermissionError(errno.EACCES, "Permission denied", "/data/a.jsonl"), "/data/a.jsonl: Permission"),
    "long name": (OSError(errno.ENAMETOOLONG, "File name too long", "a" * 300), "aaa: File name too long"),
    "full disk": (OSError(errno.ENOSPC, "No space left on device", "/tmp/x/y"), "make room and start the same command"),
    "full disk, no name": (OSError(errno.ENOSPC, "No space left on device"), "the disk: No space left on device"),
    "quota": (OSError(errno.EDQUOT, "Disk quota exceeded", "/tmp/y"), "/tmp/y: Disk quota exceeded ("),
    "files": (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
    "memory": (MemoryError(), "memory is short (MemoryError); lower training.batch_size"),
    "torch memory": (
        RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: you tried"),
        "memory is short",
    ),
    "gpu": (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB."), "the GPU's memory is short (CUDA"),
    "loader killed": (
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
        "a process that loads photos was killed (DataLoader worker (pid 7) is killed by signal: Killed",
    ),
    "loader gone": (
        RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),
        "lower data.workers (0: the main process loads), then continue with training.resume=true",
    ),
    "shared memory": (RuntimeError("unable to allocate shared memory(shm) for file </torch_1>"), "--shm-size"),
    "bus error": (
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible"),
        "/dev/shm is too small for the batches of data.workers",
    ),
    "torch's zip": (RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file"), "the disk is full"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_machines_errors_are_one_line_with_status_2(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error, says = CASES[name]

    def fail(path: object, overrides: object) -> None:
        raise error

    monkeypatch.setattr("bbu.config.load_config", fail)
    assert cli.main(["check", "any.yaml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bbu: error: ") and says in line


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes do not match"), ValueError("x"), KeyError("y"), OSError("odd"), ConnectionError("z")]
)
def test_errors_of_the_program_are_not_explained_away(error: Exception) -> None:
    assert explain(error) == ""


def test_a_full_disk_is_recognised_behind_other_errors(tmp_path: Path) -> None:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise ValueError("cannot save") from error
    except ValueError as error:
        assert disk_full(error, tmp_path)
    assert not disk_full(ValueError("cannot save"), tmp_path)


def test_a_reader_that_goes_away_ends_the_command_quietly() -> None:
    code = "import sys\nfrom bbu.cli import main\nsys.exit(main(['--help']) if False else main(sys.argv[1:]))"
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", code, "check", "configs/demo.yaml"],
        stdout=writing, stderr=subprocess.PIPE, text=True, env=environment(PYTHONUNBUFFERED="1"),
        cwd=Path(__file__).resolve().parents[1],
    )  # fmt: skip
    os.close(writing)
    assert done.returncode == 141 and done.stderr == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_config_that_may_not_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "closed.yaml"
    path.write_text("name: x", encoding="utf-8")
    path.chmod(0)
    assert cli.main(["check", str(path)]) == 2
    assert "Permission denied" in capsys.readouterr().err
