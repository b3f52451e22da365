"""What benchmarks share: arms that take turns, the peak memory of an arm in a process of its own, the last line.

Imported by the scripts beside it, whose folder Python puts on the path.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


def interleaved_seconds(
    arms: Mapping[str, Callable[[], Any]],
    repeats: int,
    *,
    warm_up: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every arm, run in turns, by default after one round that is not counted, and on the wall's clock."""
    for arm in arms.values() if warm_up else ():
        arm()
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(repeats):
        for name, arm in arms.items():
            started = clock()
            arm()
            seconds[name].append(clock() - started)
    return seconds


def interleaved_medians(
    arms: Mapping[str, Callable[[], Any]],
    repeats: int,
    *,
    warm_up: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of every arm, run in turns."""
    seconds = interleaved_seconds(arms, repeats, warm_up=warm_up, clock=clock)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_bytes() -> int:
    """Most resident memory of this process so far; it never goes down.

    Not getrusage's ru_maxrss: Linux lets a started process inherit its parent's there.
    """
    return _status_bytes("VmHWM:")


def resident_bytes() -> int:
    """Resident memory of this process now."""
    return _status_bytes("VmRSS:")


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024  # counted in KiB


def in_own_process(script: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run a script with arguments in a new Python; the JSON object in its last line."""
    done = subprocess.run([sys.executable, script, *arguments], check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def last_line(benchmark: str, **figures: Any) -> None:
    """Print the JSON object that ends a benchmark; fractions to 4 places."""
    rounded = {key: round(value, 4) if isinstance(value, float) else value for key, value in figures.items()}
    print(json.dumps({"benchmark": benchmark, **rounded}))
