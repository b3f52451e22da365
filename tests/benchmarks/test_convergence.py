"""The convergence benchmark trains all of its detectors and ends in one JSON object; its clocks and rates are right."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = PROJECT / "benchmarks" / "convergence.py"
KEYS = {"ap50_ours", "ap50_best_peer", "ap50_learned", "ap50_detr", "ap50_rtdetr", "seconds", "clock"}


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(PROJECT / "src"), str(PROJECT)])
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", **environment},
    )


def test_every_detector_trains_and_is_scored_drawn_and_written_down(tmp_path: Path) -> None:
    done = run("--quick", "--threads", "2", "--jobs", "2", "--plot", str(tmp_path / "curves.png"))
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures.pop("benchmark") == "convergence"
    assert set(figures) == KEYS
    peers = (figures["ap50_detr"], figures["ap50_rtdetr"])
    assert figures["ap50_best_peer"] == max(peers)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_without_the_photos_it_says_what_is_missing(tmp_path: Path) -> None:
    done = run("--seconds", "1", BBU_SHARED=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ") and "bccd_voc does not exist" in done.stderr


def test_the_rate_rises_in_a_line_and_falls_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from convergence_arms import rate_at

    rates = [rate_at(share / 100, 0.1) for share in range(101)]
    assert rates[:11] == pytest.approx([share / 10 for share in range(11)])
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0) and rate_at(1.2, 0.1) == pytest.approx(0)
