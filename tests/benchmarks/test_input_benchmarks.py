"""The benchmarks of processor, loader, start-up and tiles run and end in one JSON object."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
KEYS = {"chat_processor": "speedup", "loader": "wait_fraction", "startup": "seconds", "tiles": "ap50_tiles"}


@pytest.mark.parametrize("name", KEYS)
def test_the_last_line_is_json_with_the_figure(name: str) -> None:
    path = os.pathsep.join([str(PROJECT / "src"), str(PROJECT)])
    done = subprocess.run(
        [sys.executable, str(PROJECT / "benchmarks" / f"{name}.py"), "--quick"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["benchmark"] == name
    assert figures[KEYS[name]] >= 0
