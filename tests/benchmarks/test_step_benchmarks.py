"""The benchmarks of losses and packing run, agree with their peers and end in one JSON object."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests import warm

PROJECT = Path(__file__).resolve().parents[2]
KEYS = {
    "launches": {"samples", "operators_a_step", "backbone", "pyramid", "head", "captions", "losses", "rest"},
    "matcher": {"speedup_vs_hf"},
    "language_loss": {"peak_memory_ratio", "time_ratio"},
    "packing": {"speedup_vs_padded", "peak_memory_ratio", "overhead_vs_ideal", "padding"},
    "detect_vs_generate": {"speedup_demo_size"},
}  # fmt: skip

OPTIONS = {"packing": ["--threads", "1"], "detect_vs_generate": ["--threads", "1"]}  # beside what else runs


@pytest.mark.parametrize("name", KEYS)
def test_the_last_line_is_json_with_the_figures(name: str) -> None:
    script = PROJECT / "benchmarks" / f"{name}.py"
    done = warm.run(
        [sys.executable, str(script), "--quick", *OPTIONS.get(name, [])],
        env={**os.environ, "PYTHONPATH": str(PROJECT / "src"), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures.pop("benchmark") == name
    assert set(figures) == KEYS[name]
    assert all(value is None or value > 0 for value in figures.values())
