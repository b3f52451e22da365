"""Real runs in processes of their own, tiny enough for a test: to be killed, signalled, or robbed of their disk."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bbu.jsonl import write_jsonl
from tests import warm
from tests.tiny import tiny_config, write_samples

PROJECT = Path(__file__).resolve().parents[1]


def write_job(folder: Path, photos: int = 6, **changes: Any) -> Path:
    """Records of a few photos (val and test are train's) and a config with ``output_dir`` run/; returns the config."""
    records = folder / "records"
    records.mkdir(parents=True)
    samples = write_samples(records, photos)
    for split in ("train", "val", "test"):
        write_jsonl(records / f"{split}.jsonl", [sample.student.to_json() for sample in samples])
    config = tiny_config(
        data={"source.path": str(records), "max_pixels": 112 * 112},
        training={"max_steps": 6, "save_every": 100, "warmup_steps": 1, "log_every": 1},
        evaluation={"bootstrap_samples": 0, "pictures": 1},
    )
    config.name, config.output_dir = "job", str(folder / "run")
    for key, value in changes.items():
        section, _, name = key.partition("__")
        setattr(getattr(config, section), name, value)
    path = folder / "job.yaml"
    path.write_text(OmegaConf.to_yaml(OmegaConf.structured(config)), encoding="utf-8")
    return path


def command(*arguments: str | Path) -> list[str]:
    """Arguments of ``bbu`` → a command line."""
    return [sys.executable, "-m", "bbu.cli", *map(str, arguments)]


def environment(**more: str) -> dict[str, str]:
    """Of a run on one CPU thread, without network or accounts."""
    ranks = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_")  # a test before this one may have been a group of one
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "BBU", *ranks))}
    paths = f"{PROJECT / 'src'}:{PROJECT}"
    return {
        **clean, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", **more
    }  # fmt: skip


def compiled_once() -> dict[str, str]:
    """The variable for one compiled copy of DeepSpeed's C++, whatever HOME is: it takes more than a minute.

    torch lets one process compile while others wait for its lock; a lock that a killed process left goes.
    """
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or caches / "torch_extensions" / "bbu_tests")
    folder.mkdir(parents=True, exist_ok=True)
    for lock in folder.glob("*/lock"):
        if time.time() - lock.stat().st_mtime > 600:
            lock.unlink(missing_ok=True)
    return {"TORCH_EXTENSIONS_DIR": str(folder)}


def start(*arguments: str | Path, **more: str) -> subprocess.Popen[str]:
    """A ``bbu`` command under way, its output in pipes."""
    return warm.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(**more)
    )


def start_ranks(arguments: list[str], count: int = 2) -> list[subprocess.Popen[str]]:
    """``python ARGUMENTS`` on so many ranks, under the variables that torchrun sets; all that each says in one pipe."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}
    shared |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    return [
        warm.Popen(
            [sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=PROJECT,
            env=environment(**shared, RANK=str(rank), LOCAL_RANK=str(rank)),
        )
        for rank in range(count)
    ]  # fmt: skip


def run(*arguments: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
    """A ``bbu`` command and its end."""
    return warm.run(command(*arguments), env=environment(**more), timeout=240)


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Wait for something that a process does."""
    end = time.monotonic() + seconds
    while not happened():
        assert process.poll() is None, f"ended first: {process.communicate()[1][-3000:]}"
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of a command that failed with status 2, and no traceback."""
    assert done.returncode == 2, (done.returncode, done.stderr[-3000:])
    assert "Traceback" not in done.stderr, done.stderr[-3000:]
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("bbu: error:")]
    return line
