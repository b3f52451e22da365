"""Learning rate and batch size of the peers in benchmarks/convergence.py, chosen on held-out photos.

    python benchmarks/convergence_tuning.py tuning.jsonl [--arms dfine deimv2 rfdetr rtdetrv2] [--data bccd screws]
                                            [--settings 2e-4:2 4e-4:2 ...] [--photos 2000] [--seconds-each 60]
                                            [--jobs 16] [--quick]

Trains on train and scores on val, so the test photos stay unseen. One run is one setting (peak learning rate, photos
per step) of one arm on one data set, on one thread of one of --jobs processes; on a GPU they share it. A run ends after
--photos photos or --seconds-each seconds of training, whichever comes first; its learning rate follows the share done.
When a run ends, its line is printed and added to the file as JSON. The last line is one JSON object with the setting
of the best AP of each arm and data set.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from convergence_arms import rate_at
from convergence_data import DATA_SETS, load
from convergence_peers import PEERS, PeerArm
from harness import last_line

from bbu.config import Config
from bbu.errors import UserError
from bbu.evaluation import evaluate
from bbu.stages import PreparedData

SETTINGS = ("2e-4:2", "4e-4:2", "8e-4:2", "4e-4:4", "8e-4:4", "8e-4:8")
Photos = Mapping[str, tuple[Config, PreparedData]]  # data set → its config and photos
DECODED: dict[str, Any] = {}  # photos that this process has read, for all of its runs


@dataclass(frozen=True)
class Run:
    """One run: an arm on a data set with a peak learning rate and photos per step."""

    arm: str
    data: str
    rate: float
    batch: int


@dataclass(frozen=True)
class Result(Run):
    """A run that has ended: photos seen, seconds of training, and scores on val."""

    photos: int
    seconds: float
    AP50: float
    AP: float

    def __str__(self) -> str:
        setting = f"{self.arm:<9}{self.data:<7} rate {self.rate:g}, batch {self.batch}"
        per_step = 1000 * self.seconds * self.batch / self.photos
        return f"{setting:<40}AP50 {self.AP50:.3f}  AP {self.AP:.3f}  {self.photos} photos, {per_step:.0f} ms a step"


def runs(arguments: argparse.Namespace) -> list[Run]:
    """All runs; whatever stops them early, all arms and data sets have had about as many."""
    pairs = [(float(rate), int(batch)) for rate, batch in (item.split(":") for item in arguments.settings)]
    return [Run(arm, data, *pair) for pair in pairs for data in arguments.data for arm in arguments.arms]


def tune(run: Run, config: Config, data: PreparedData, limit: int, seconds: float) -> Result:
    """Train and score one setting.

    Args:
        limit: photos to see.
        seconds: of training, after which it ends in any case.
    """
    torch.set_num_threads(1)
    arm: PeerArm = PEERS[run.arm](config, data, rate=run.rate, batch=run.batch)
    arm.photos.cache = DECODED
    warm_up = config.training.warmup_steps / config.training.max_steps
    started = time.perf_counter()
    while (share := max(arm.steps * run.batch / limit, (time.perf_counter() - started) / seconds)) < 1:
        arm.learn(rate_at(share, warm_up))
    spent = time.perf_counter() - started
    rows = data.rows("test")
    scores = evaluate(rows, arm.predict(rows), bootstrap_samples=0)
    seen = arm.steps * run.batch
    del arm
    gc.collect()  # its optimizer's state is on the GPU that all processes share
    return Result(**asdict(run), photos=seen, seconds=spent, AP50=scores["AP50"] or 0.0, AP=scores["AP"] or 0.0)


def results(arguments: argparse.Namespace, photos: Photos) -> Iterator[Result]:
    """Results as runs end. A run that fails is named on stderr, and the others go on."""
    limits = (arguments.photos, arguments.seconds_each)
    with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
        started = {pool.submit(tune, run, *photos[run.data], *limits): run for run in runs(arguments)}
        for future in as_completed(started):
            if error := future.exception():
                print(f"{started[future]}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            else:
                yield future.result()


def best(found: Sequence[Result]) -> dict[str, Any]:
    """Arm and data set → the setting of the best AP."""
    by_pair: dict[str, Result] = {}
    for result in found:
        pair = f"{result.arm}_{result.data}"
        if pair not in by_pair or result.AP > by_pair[pair].AP:
            by_pair[pair] = result
    return {pair: f"{result.rate:g}:{result.batch}" for pair, result in sorted(by_pair.items())}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("output", type=Path, help="JSON lines, added to")
    parser.add_argument("--arms", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--data", nargs="+", choices=list(DATA_SETS), default=list(DATA_SETS))
    parser.add_argument("--settings", nargs="+", default=SETTINGS, metavar="RATE:BATCH")
    parser.add_argument("--photos", type=int, default=2000, help="that a run sees")
    parser.add_argument("--seconds-each", type=float, default=1e9, help="that a run trains at most")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="config overrides")
    parser.add_argument("--quick", action="store_true", help="synthetic photos, one step per run")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.quick:
        arguments.photos, arguments.settings, arguments.data = 1, arguments.settings[:1], arguments.data[:1]
    torch.set_num_threads(1)
    found = []
    overrides = [f"seed={arguments.seed}", *arguments.set]
    with tempfile.TemporaryDirectory(prefix="bbu-benchmark-") as folder, arguments.output.open("a") as lines:
        photos = {
            data: load(data, Path(folder), held_out=True, quick=arguments.quick, overrides=overrides)
            for data in arguments.data
        }
        for result in results(arguments, photos):
            found.append(result)
            print(result, flush=True)
            print(json.dumps(asdict(result)), file=lines, flush=True)
    last_line("convergence_tuning", runs=len(found), **best(found))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
