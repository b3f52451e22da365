"""The memory benchmark runs, and its arms give equal gradients (it stops where they do not)."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests import warm

PROJECT = Path(__file__).resolve().parents[2]
ARMS = ("selective", "full", "frozen", "kept")


def test_the_last_line_is_json_with_a_ratio_for_each_arm() -> None:
    folders = [str(PROJECT / "src"), str(PROJECT), str(PROJECT / "benchmarks")]
    done = warm.run(
        [sys.executable, str(PROJECT / "benchmarks" / "memory.py"), "--quick"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures.pop("benchmark") == "memory"
    assert set(figures) == {f"{arm}_{what}_ratio" for arm in ARMS for what in ("peak", "time")}
    assert all(value > 0 for value in figures.values())


def test_the_table_of_the_page_is_what_the_reckoning_gives() -> None:
    folders = [str(PROJECT / "src"), str(PROJECT), str(PROJECT / "benchmarks")]
    done = warm.run(
        [sys.executable, str(PROJECT / "benchmarks" / "memory_table.py")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "1 × 24 GB" in done.stdout and done.stdout.strip() in (PROJECT / "docs/memory.md").read_text(
        encoding="utf-8"
    )
