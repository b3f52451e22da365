"""The benchmarks of processor, loader, start-up and tiles run and end in one JSON object."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests import warm

PROJECT = Path(__file__).resolve().parents[2]
cold = partial(subprocess.run, capture_output=True, text=True)
KEYS = {"chat_processor": "speedup", "loader": "wait_fraction", "startup": "seconds", "tiles": "ap50_tiles"}


@pytest.mark.parametrize("name", KEYS)
def test_the_last_line_is_json_with_the_figure(name: str) -> None:
    path = os.pathsep.join([str(PROJECT / "src"), str(PROJECT)])
    start = cold if name == "startup" else warm.run  # it times the imports
    done = start(
        [sys.executable, str(PROJECT / "benchmarks" / f"{name}.py"), "--quick"],
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["benchmark"] == name
    assert figures[KEYS[name]] >= 0
