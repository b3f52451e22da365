"""The share of training in which the model step waits for data, in the real trainer at the demo's sizes.

    python benchmarks/loader.py [--steps 30] [--workers 2] [--quick]

Runs `stages.train` on drawn cabinet photos into a folder of its own and takes the time inside
`BBUTrainer.get_batch_samples`. The first batch, for which the worker processes start, is a figure of its own. The
last line is one JSON object; without workers all of making the samples is waiting, which says what there is to hide.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from harness import last_line

from bbu import stages
from bbu.config import load_config
from bbu.training.trainer import BBUTrainer

DEMO = Path(__file__).resolve().parents[1] / "configs" / "demo.yaml"


def fetch_times(
    workers: int, steps: int, photos: int, folder: str, overrides: Sequence[str]
) -> tuple[list[tuple[float, float]], float]:
    """(start, end) of every fetch and the end of training, in seconds of one clock."""
    config = load_config(
        DEMO,
        [
            f"data.workers={workers}", f"training.max_steps={steps}", "training.eval_every=0",
            "training.select_best=", f"training.save_every={steps}", "training.warmup_steps=0",
            f"data.source.photos={{train: {photos}, val: 2, test: 2}}", f"output_dir={folder}", *overrides,
        ],
    )  # fmt: skip
    fetches: list[tuple[float, float]] = []
    ends: list[float] = []
    fetch, save = BBUTrainer.get_batch_samples, BBUTrainer._save_checkpoint

    def timed_fetch(self: BBUTrainer, *arguments: Any) -> Any:
        started = time.perf_counter()
        done = fetch(self, *arguments)
        fetches.append((started, time.perf_counter()))
        return done

    def timed_save(self: BBUTrainer, *arguments: Any, **options: Any) -> None:
        ends.append(time.perf_counter())  # the last step is over; writing the checkpoint is none of it
        save(self, *arguments, **options)

    with (
        mock.patch.object(BBUTrainer, "get_batch_samples", timed_fetch),
        mock.patch.object(BBUTrainer, "_save_checkpoint", timed_save),
    ):
        stages.train(config)
    return fetches[:steps], ends[0]


def measure(workers: int, steps: int, photos: int, overrides: Sequence[str]) -> dict[str, float]:
    """Share of waiting after the first batch, seconds of a step, of a fetch, and of the first fetch."""
    with tempfile.TemporaryDirectory(prefix="bbu-loader-") as folder:
        fetches, end = fetch_times(workers, steps, photos, folder, overrides)
    first, later = fetches[0], fetches[1:]
    waited, whole = sum(stop - start for start, stop in later), end - first[1]
    return {
        "wait_fraction": waited / whole,
        "step_seconds": whole / steps,
        "fetch_seconds": waited / len(later),
        "first_fetch_seconds": first[1] - first[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--photos", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="three small steps, with workers alone")
    parser.add_argument("overrides", nargs="*", help="of configs/demo.yaml, such as training.threads=1")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.steps, arguments.photos = 3, 8
        arguments.overrides += ["training.batch_size=2", "training.threads=1", "training.precision=fp32"]
    found = {
        workers: measure(workers, arguments.steps, arguments.photos, arguments.overrides)
        for workers in sorted({arguments.workers} if arguments.quick else {0, arguments.workers})
    }
    print("workers   waiting   s a step   s a fetch   s the first fetch")
    for workers, row in found.items():
        print(
            f"{workers:7}   {row['wait_fraction']:7.1%}   {row['step_seconds']:8.3f}   {row['fetch_seconds']:9.4f}   "
            f"{row['first_fetch_seconds']:17.2f}"
        )
    asked = found[arguments.workers]
    last_line(
        "loader",
        wait_fraction=asked["wait_fraction"],
        **({"wait_fraction_without_workers": found[0]["wait_fraction"]} if 0 in found else {}),
        workers=arguments.workers,
        step_seconds=asked["step_seconds"],
    )


if __name__ == "__main__":
    main()
