"""DeepSpeed goes on from its own files to the same bits, and runs nothing that lies in them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("deepspeed")


def test_a_deepspeed_run_resumes_to_the_same_bits_and_runs_no_payload(project: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.deepspeed_run", str(tmp_path)],
        capture_output=True, text=True, cwd=project, timeout=400,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(project / "src"), str(project)])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("\nequal ") == 2 and done.stdout.count("\nrefused ") == 8, done.stdout
