"""The scaling benchmark runs, draws, and its exponents are slopes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bbu.images import open_image
from tests import warm

PROJECT = Path(__file__).resolve().parents[2]
KEYS = {"exponent_tokens", "exponent_boxes", "exponent_queries", "exponent_pixels"}


def run(*command: str) -> subprocess.CompletedProcess[str]:
    folders = [str(PROJECT / "src"), str(PROJECT), str(PROJECT / "benchmarks")]
    return warm.run(
        [sys.executable, *command],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders), "HF_HUB_OFFLINE": "1"},
    )


def test_the_last_line_is_json_with_the_exponents_and_a_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "plots" / "scale.png"
    done = run(str(PROJECT / "benchmarks" / "scale.py"), "--quick", "--plot", str(plot))
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures.pop("benchmark") == "scale"
    assert set(figures) == KEYS and all(isinstance(value, float) for value in figures.values())
    with open_image(plot) as image:
        assert image.format == "PNG" and min(image.size) > 500


def test_an_exponent_is_the_slope_in_logarithms() -> None:
    done = run("-c", "import scale\nprint([scale.exponent([(n, 3 * n**p) for n in (2, 5, 40)]) for p in (0, 1, 2)])")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == pytest.approx([0, 1, 2], abs=1e-9)
