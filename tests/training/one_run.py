"""A run of test_resume.py's tiny config in a process of its own, to be killed or to be one of several ranks.

``python -m tests.training.one_run RECORDS OUTPUT [SECTION__KEY=JSON …]``, under torchrun's environment variables where
there are several.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests import warm

PROJECT = Path(__file__).resolve().parents[2]


def main() -> None:
    import torch

    from bbu import stages
    from bbu.cli import one_line
    from bbu.errors import UserError
    from tests.training.test_resume import run_config

    if "SPOIL" in os.environ:
        spoil(*json.loads(os.environ["SPOIL"]))
    changes = {name: json.loads(value) for name, _, value in (text.partition("=") for text in sys.argv[3:])}
    try:
        stages.train(run_config(Path(sys.argv[1]), Path(sys.argv[2]), **changes))
    except UserError as error:
        print(f"bbu: error: {one_line(error)}", file=sys.stderr, flush=True)
        os._exit(2)  # as a failed rank: without waiting for the others
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def spoil(rank: int, batch: int) -> None:
    """The caption loss of one batch of one rank is NaN."""
    from bbu.training.objective import DetectionObjective

    forward, done = DetectionObjective.forward, []

    def spoilt(self: DetectionObjective, **inputs: Any) -> Any:
        sums = forward(self, **inputs)
        done.append(1)
        if len(done) == batch and int(os.environ.get("RANK", "0")) == rank:
            sums["caption"] = sums["caption"] * float("nan")
        return sums

    DetectionObjective.forward = spoilt  # type: ignore[method-assign]


def start(
    records: Path, output: Path, *, ranks: int = 1, spoil: tuple[int, int] | None = None, **changes: Any
) -> list[subprocess.Popen[str]]:
    """The processes of a run, on the CPU.

    Args:
        spoil: rank and number of a batch whose loss becomes NaN.
    """
    env = {**os.environ, "PYTHONPATH": f"{PROJECT / 'src'}{os.pathsep}{PROJECT}"}
    env |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    if spoil:
        env["SPOIL"] = json.dumps(spoil)
    command = [sys.executable, "-m", "tests.training.one_run", str(records), str(output)]
    command += [f"{name}={json.dumps(value)}" for name, value in changes.items()]
    if ranks > 1:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(server.getsockname()[1])}
        env |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    places = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {} for rank in range(ranks)]
    return [
        warm.Popen(command, env=env | place, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for place in places
    ]


def finish(processes: list[subprocess.Popen[str]], seconds: float = 120) -> list[tuple[int, str]]:
    """Exit status and output of each; none is left behind."""
    try:
        outputs = [process.communicate(timeout=seconds)[0] for process in processes]
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
    return [(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]


if __name__ == "__main__":
    main()
