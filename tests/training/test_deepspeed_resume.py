"""DeepSpeed goes on from its own files to the same bits, and runs nothing that lies in them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests import warm
from tests.jobs import compiled_once, environment

pytest.importorskip("deepspeed")


def test_a_deepspeed_run_resumes_to_the_same_bits_and_runs_no_payload(project: Path, tmp_path: Path) -> None:
    done = warm.run(
        [sys.executable, "-m", "tests.training.deepspeed_run", str(tmp_path)],
        cwd=project,
        timeout=400,
        env=environment(**compiled_once()),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("\nequal ") == 2 and done.stdout.count("\nrefused ") == 8, done.stdout
