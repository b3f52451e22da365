"""Where a training step waits for the GPU: torch's synchronisation warnings, by place in this project.

Called by benchmarks/gpu.py. A step may wait once, for the matcher's one transfer.
"""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from gpu_arms import objective_losses
from gpu_machine import Findings, Setting
from gpu_model import MODES, PROJECT, Bench

MESSAGE = "called a synchronizing CUDA operation"  # torch, c10/cuda/CUDAFunctions.cpp
ALLOWED = ("losses/matcher.py", "layers/transfer.py")  # the matcher's copy to the host, and the wait for it
STEPS = 2  # that are watched; what only the first steps do is over by then


def syncs(setting: Setting, findings: Findings) -> None:
    """Forward, backward and optimizer of the whole objective; small sizes wait in the same places as large ones."""
    bench = Bench(setting, real=False)
    for mode in MODES:
        bench.use(mode)
        losses = objective_losses(bench, bench.samples(4))
        for _ in range(2):
            bench.step(losses)
        setting.wait()
        with watched_syncs(setting.on_gpu) as places:
            for _ in range(STEPS):
                bench.step(losses)
        setting.wait()
        findings.add(**{mode: summary(places, STEPS)})


@contextmanager
def watched_syncs(on_gpu: bool) -> Iterator[Counter[tuple[str, str]]]:
    """Counts (place in this project, innermost place) of every wait for the GPU while it is open."""
    places: Counter[tuple[str, str]] = Counter()

    def note(message: Warning | str, *rest: Any, **options: Any) -> None:
        if MESSAGE in str(message):
            places[_place()] += 1

    with warnings.catch_warnings():  # puts showwarning back as well
        warnings.simplefilter("always")
        warnings.showwarning = note
        if on_gpu:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            if on_gpu:
                torch.cuda.set_sync_debug_mode("default")


def _place() -> tuple[str, str]:
    """The innermost line of this project's package, and the innermost line at all, of the stack that warned."""
    stack = [frame for frame in traceback.extract_stack() if not _is_warning_code(frame.filename)]
    package = PROJECT / "src" / "bbu"
    ours = [frame for frame in stack if Path(frame.filename).resolve().is_relative_to(package)]
    last = stack[-1]
    inner = f"{'/'.join(Path(last.filename).parts[-3:])}:{last.lineno} {last.name}"
    if not ours:
        return "outside src/bbu", inner
    path = Path(ours[-1].filename).resolve().relative_to(package)
    return f"{path}:{ours[-1].lineno} {ours[-1].name}", inner


def _is_warning_code(filename: str) -> bool:
    return Path(filename).resolve() == Path(__file__).resolve() or filename.endswith("/warnings.py")


def summary(places: Counter[tuple[str, str]], steps: int) -> dict[str, Any]:
    """Waits a step, in all and outside the matcher, and their places, most frequent first."""
    outside = sum(count for (place, _), count in places.items() if not place.startswith(ALLOWED))
    listed = [{"place": place, "inside": inner, "a_step": n / steps} for (place, inner), n in places.most_common(40)]
    return {"a_step": places.total() / steps, "outside_matcher_a_step": outside / steps, "places": listed}
