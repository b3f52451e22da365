"""train.sh: checks first, one process for each GPU, torchrun for many, and errors as one line. Nothing trains here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

FAKE_PYTHON = """#!/usr/bin/env bash
# Stands in for python: writes down its arguments, and answers how many GPUs there are.
{ for argument in "$@"; do printf '%s\\t' "$argument"; done; echo "in $PWD"; } >>"$FAKE_LOG"
if [[ "$1" == -c ]]; then echo "${FAKE_GPUS:-1}"; fi
"""


def train_sh(
    project: Path, *arguments: str, cwd: Path | None = None, python: str | Path = sys.executable, **environment: str
) -> subprocess.CompletedProcess[str]:
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in ("NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "NPROC", "BBU_VENV", "PYTHONPATH")
    }
    return subprocess.run(
        ["bash", str(project / "train.sh"), *arguments],
        capture_output=True,
        text=True,
        cwd=cwd or project,
        env={**clean, "BBU_PYTHON": str(python), **environment},
        timeout=60,
    )


def one_error(done: subprocess.CompletedProcess[str]) -> str:
    """The only line on stderr of a run that stopped with status 2."""
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


class Fake:
    """A python that only writes down what it was asked to do."""

    def __init__(self, folder: Path) -> None:
        self.path, self.log = folder / "python", folder / "log.txt"
        self.path.write_text(FAKE_PYTHON, encoding="utf-8")
        self.path.chmod(0o755)

    def calls(self) -> list[list[str]]:
        return [line.split("\t") for line in self.log.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    return Fake(tmp_path)


def started(fake: Fake, project: Path, *arguments: str, **environment: str) -> list[str]:
    """Arguments of the last process that train.sh starts, the one that would train."""
    done = train_sh(project, *arguments, python=fake.path, FAKE_LOG=str(fake.log), **environment)
    assert (done.returncode, done.stderr) == (0, "")
    return fake.calls()[-1]


# ---------------------------------------------------------------- refusing


def test_without_a_config_it_says_how_to_call_it(project: Path) -> None:
    assert one_error(train_sh(project)).startswith("train.sh: error: which config?")


def test_a_missing_config_lists_the_shipped_ones(project: Path) -> None:
    line = one_error(train_sh(project, "configs/demmo.yaml"))
    assert "configs/demmo.yaml does not exist" in line and "configs/demo.yaml" in line


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["training.max_stepz=3"], ["training.max_stepz", "did you mean training.max_steps?"]),
        (["training.max_steps=abc"], ["training.max_steps", "abc"]),
        (["seed=1", "data.language=fr"], ["data.language", "'fr'", "zh, en"]),
        (["data.source.photos={train: x}"], ["data.source.photos", "x"]),
        (["training.max_steps"], ["key=value"]),
    ],
)
def test_a_wrong_override_stops_before_anything_starts(project: Path, overrides: list[str], words: list[str]) -> None:
    line = one_error(train_sh(project, "configs/demo.yaml", *overrides))
    assert line.startswith("bbu: error: ") and all(word in line for word in words)


def test_a_wrong_key_in_the_file_names_the_file(project: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("training: {max_stepz: 3}\n", encoding="utf-8")
    assert f"{path}: unknown key training.max_stepz" in one_error(train_sh(project, str(path)))


def test_a_wrong_config_on_a_machine_of_many_gpus_is_still_one_line(project: Path) -> None:
    one_error(train_sh(project, "configs/demo.yaml", "sed=1", NPROC="4", NNODES="2"))


# ---------------------------------------------------------------- paths


@pytest.mark.parametrize("name", ["configs/demo.yaml", "mine with spaces.yaml"])
def test_it_works_from_another_folder(project: Path, fake: Fake, tmp_path: Path, name: str) -> None:
    """A config beside the caller, or one of the project's by its short name."""
    (tmp_path / "mine with spaces.yaml").write_text("seed: 3\n", encoding="utf-8")
    expected = project / name if name.startswith("configs") else tmp_path / name
    done = train_sh(project, name, cwd=tmp_path, python=fake.path, FAKE_LOG=str(fake.log))
    assert (done.returncode, done.stderr) == (0, "")
    assert fake.calls()[-1] == ["-m", "bbu.cli", "run", str(expected), f"in {project}"]


def test_a_wrong_key_is_found_from_another_folder_too(project: Path, tmp_path: Path) -> None:
    assert "did you mean seed?" in one_error(train_sh(project, "configs/demo.yaml", "seeed=1", cwd=tmp_path))


# ---------------------------------------------------------------- starting


def test_one_process_runs_without_torchrun_after_a_check(project: Path, fake: Fake) -> None:
    overrides = ["training.max_steps=3", "data.source.photos={train: 2, val: 1}"]
    last = started(fake, project, "configs/demo.yaml", *overrides)
    config = str(project / "configs" / "demo.yaml")
    assert fake.calls()[0][:-1] == ["-m", "bbu.cli", "check", config, *overrides]
    assert last[:-1] == ["-m", "bbu.cli", "run", config, *overrides]


def test_several_gpus_get_a_process_each(project: Path, fake: Fake) -> None:
    last = started(fake, project, "configs/demo.yaml", "seed=1", FAKE_GPUS="8")
    assert last[:-1] == [
        *("-m", "torch.distributed.run", "--nnodes", "1", "--node_rank", "0", "--nproc_per_node", "8"),
        *("--master_addr", "127.0.0.1", "--master_port", "29500"),
        *("-m", "bbu.cli", "run", str(project / "configs" / "demo.yaml"), "seed=1"),
    ]


def test_nodes_find_each_other_by_the_environment(project: Path, fake: Fake) -> None:
    last = started(
        fake,
        project,
        "configs/demo.yaml",
        "seed=1",
        NNODES="3",
        NODE_RANK="2",
        MASTER_ADDR="10.0.0.7",
        MASTER_PORT="4444",
        NPROC="4",
    )
    assert last[:-1] == [
        *("-m", "torch.distributed.run", "--nnodes", "3", "--node_rank", "2", "--nproc_per_node", "4"),
        *("--master_addr", "10.0.0.7", "--master_port", "4444"),
        *("-m", "bbu.cli", "run", str(project / "configs" / "demo.yaml"), "seed=1"),
    ]


def test_nodes_of_one_process_each_use_torchrun_too(project: Path, fake: Fake) -> None:
    last = started(fake, project, "configs/demo.yaml", NNODES="2", NPROC="1")
    assert last[1] == "torch.distributed.run" and last[last.index("--nproc_per_node") + 1] == "1"


def test_the_number_of_processes_can_be_set_below_the_gpus(project: Path, fake: Fake) -> None:
    last = started(fake, project, "configs/demo.yaml", NPROC="1", FAKE_GPUS="8")
    assert last[:3] == ["-m", "bbu.cli", "run"]


def test_what_the_check_says_ends_the_script(project: Path, tmp_path: Path) -> None:
    failing = tmp_path / "python"
    failing.write_text("#!/usr/bin/env bash\necho 'bbu: error: no' >&2; exit 2\n", encoding="utf-8")
    failing.chmod(0o755)
    assert one_error(train_sh(project, "configs/demo.yaml", python=failing)) == "bbu: error: no"


def test_set_up_with_a_python_of_ones_own_installs_nothing(project: Path, fake: Fake) -> None:
    done = train_sh(project, "--setup", python=fake.path, FAKE_LOG=str(fake.log))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "") and not fake.log.exists()


def test_a_python_that_is_not_there_is_named(project: Path) -> None:
    done = train_sh(project, "configs/demo.yaml", python="/nowhere/python")
    assert done.returncode != 0 and "/nowhere/python" in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_script_is_clean_bash(project: Path) -> None:
    assert subprocess.run(["bash", "-n", str(project / "train.sh")], timeout=10).returncode == 0
    assert os.access(project / "train.sh", os.X_OK)
