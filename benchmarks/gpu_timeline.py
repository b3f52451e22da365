"""The timeline of one training step: torch.profiler's trace, and the gaps in which no kernel ran.

Called by benchmarks/gpu.py.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from gpu_arms import objective_losses
from gpu_machine import Findings, Setting
from gpu_model import PROJECT, shared_bench
from torch.profiler import ProfilerActivity, profile, schedule

from bbu.monitoring.trace import STEP_MARK, Gap, read_events, step_gaps

LONGEST = 20  # gaps that are listed
SHORTEST_US = 10.0  # shorter ones are between any two kernels
DOCS = PROJECT / "docs" / "benchmarks"


def timeline(setting: Setting, findings: Findings) -> None:
    """A step of the whole objective on as many of 4, 2 and 1 samples as fit without recomputing anything."""
    bench = shared_bench(setting)
    bench.use("kept")
    for count in (4, 2, 1):
        losses = objective_losses(bench, bench.samples(count))
        if bench.fits(losses):
            break
    else:
        raise MemoryError("not even one sample fits")
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if setting.on_gpu else [])]
    path = trace_path(setting.folder)
    once = schedule(wait=0, warmup=1, active=1, repeat=1)
    with profile(activities=activities, schedule=once, on_trace_ready=partial(write_trace, path=path)) as recorded:
        for _ in range(2):
            bench.step(losses)
            setting.wait()
            recorded.step()
    findings.add(samples=count, trace=path.name, trace_bytes=path.stat().st_size, **gap_figures(path))


def trace_path(folder: Path) -> Path:
    """Beside the JSON; but docs keep no traces, so one of a run that writes there goes to outputs."""
    if folder.resolve() == DOCS:
        folder = PROJECT / "outputs" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / "step_trace.json.gz"


def write_trace(recorded: Any, path: Path) -> None:
    """Whole or not at all; torch compresses by the name's ending."""
    part = path.with_name(f"part_{path.name}")
    recorded.export_chrome_trace(str(part))
    os.replace(part, path)


def gap_figures(path: Path) -> dict[str, Any]:
    """How long the step took, how much of it no kernel ran, and the longest such gaps by what the CPU was doing."""
    gaps = step_gaps(path, shortest_us=SHORTEST_US)
    marks = [event for event in read_events(path)["user_annotation"] if event.name.startswith(STEP_MARK)]
    longest = sorted(gaps, key=lambda gap: -gap.length_us)[:LONGEST]
    return {
        "step_us": sum(mark.stop - mark.start for mark in marks),
        "idle_us": sum(gap.length_us for gap in gaps),
        "gaps": len(gaps),
        "longest_gaps": [vars(gap) for gap in longest],
        "idle_us_by_label": _by_label(gaps),
    }


def _by_label(gaps: list[Gap]) -> dict[str, float]:
    total: dict[str, float] = {}
    for gap in gaps:
        total[gap.label] = total.get(gap.label, 0.0) + gap.length_us
    return dict(sorted(total.items(), key=lambda item: -item[1])[:LONGEST])
