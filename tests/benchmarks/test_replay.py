"""The benchmark of replay runs through both arms and ends in its figures."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests import warm

PROJECT = Path(__file__).resolve().parents[2]


def test_the_last_line_is_json_with_the_figures() -> None:
    path = os.pathsep.join([str(PROJECT / "src"), str(PROJECT)])
    done = warm.run(
        [sys.executable, str(PROJECT / "benchmarks" / "replay.py"), "--quick", "--threads", "1"],
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures.pop("benchmark") == "replay" and figures.pop("share") == 0.25
    losses = {f"loss_{moment}" for moment in ("untrained", "before", "without", "with")}
    assert set(figures) == {
        *losses,
        *(f"ap50{kind}_{arm}" for kind in ("", "_agnostic") for arm in ("without", "with")),
    }
    assert figures["loss_before"] < figures["loss_untrained"], "the text before detection is learned"
    assert all(figures[name] > 0 for name in losses)
