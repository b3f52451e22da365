"""AP50 over training time: this project's detector, the same with plain learned queries, DETR and RT-DETR.

    python benchmarks/convergence.py [--seconds 300] [--seeds 17 18] [--arms ours learned detr rtdetr]
                                     [--plot docs/images/convergence.png] [--clock cpu] [--jobs 2] [--quick]

Blood-cell photos as configs/bccd.yaml reads them: training on train and val, scores on test, all weights random at
the start. All arms see the same photos and random views in the same order, for the same time: loading, forward,
backward and optimizer count, evaluation does not. The learning rate follows the share of time spent. bbu.evaluation
scores every arm by AP50 by description. docs/convergence.md describes the arms. The last line is one JSON object;
its ``ap50_…`` are means over the seeds at the end of training.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from convergence_arms import Arm, LearnedQueryArm, OwnArm, rate_at
from convergence_peers import DetrArm, RTDetrArm
from harness import last_line

from bbu.config import Config, load_config
from bbu.errors import ConfigError, UserError
from bbu.evaluation import evaluate
from bbu.records import Row
from bbu.stages import PreparedData, prepare

PROJECT = Path(__file__).resolve().parents[1]
PEERS = ("detr", "rtdetr")
TITLES = {"ours": "this project", "learned": "learned queries, same model", "detr": "DETR", "rtdetr": "RT-DETR"}
ARMS: dict[str, Callable[[Config, PreparedData], Arm]] = {
    "ours": OwnArm,
    "learned": LearnedQueryArm,
    "detr": partial(DetrArm, rate=3e-4, batch=2),
    "rtdetr": partial(RTDetrArm, rate=3e-4, batch=2),
}


@dataclass
class Curve:
    """One arm with one seed: (seconds, AP50) of every evaluation, steps and number of weights."""

    arm: str
    seed: int
    points: list[tuple[float, float]]
    steps: int
    parameters: int


def wall_seconds() -> float:
    return time.perf_counter()


def cpu_seconds() -> float:
    """CPU time of this process per thread: the wall time of an idle machine, if all threads were always busy."""
    return time.process_time() / torch.get_num_threads()


def train(arm: Arm, seconds: float, evaluations: int, warm_up: float, clock: Callable[[], float],
          rows: Sequence[Row]) -> list[tuple[float, float]]:  # fmt: skip
    """Train for so many seconds, with evaluations spread evenly, the last one at the end."""
    spent, points = 0.0, []
    while len(points) < evaluations:
        started = clock()
        arm.learn(rate_at(spent / seconds, warm_up))
        spent += clock() - started
        if spent >= seconds * (len(points) + 1) / evaluations:
            points.append((spent, average_precision(arm, rows)))
    return points


def average_precision(arm: Arm, rows: Sequence[Row]) -> float:
    """AP50 by description."""
    value = evaluate(rows, arm.predict(rows), bootstrap_samples=0)["AP50"]
    return 0.0 if value is None else float(value)


def load(arguments: argparse.Namespace, folder: Path) -> tuple[Config, PreparedData]:
    """The config and its photos: blood cells, or with --quick a few synthetic ones.

    Raises:
        ConfigError: the photos are missing.
    """
    overrides = [f"output_dir={folder}", *arguments.set]
    if arguments.quick:
        overrides += ["training.batch_size=2", "data.source.photos={train: 4, val: 1, test: 2}"]
        config = load_config(PROJECT / "configs" / "demo.yaml", overrides)
    else:
        photos = Path(os.environ.get("BBU_SHARED", PROJECT.parent / "shared")) / "data" / "bccd_voc"
        if not photos.is_dir() and not any(item.startswith("data.source.path=") for item in arguments.set):
            raise ConfigError(f"{photos} does not exist; name the photos by --set data.source.path=BCCD_Dataset/BCCD")
        splits = "{train: train, test: val}" if arguments.held_out else "{train: train+val, test: test}"
        overrides = [f"data.source.path={photos}", f"data.source.splits={splits}", *overrides]
        config = load_config(PROJECT / "configs" / "bccd.yaml", overrides)
    with contextlib.redirect_stdout(sys.stderr):  # keep the conversion's messages out of the table
        return config, prepare(config)


def train_all(arguments: argparse.Namespace) -> list[Curve]:
    """Prepare the photos, then train every arm with every seed."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory(prefix="bbu-benchmark-") as folder:
        return run(*load(arguments, Path(folder)), arguments)


def run(config: Config, data: PreparedData, arguments: argparse.Namespace) -> list[Curve]:
    """Train every arm with every seed, one after another."""
    rows, clock = data.rows("test"), cpu_seconds if arguments.clock == "cpu" else wall_seconds
    warm_up = config.training.warmup_steps / config.training.max_steps
    curves = []
    for seed in arguments.seeds:
        for name in arguments.arms:
            config.seed = seed
            arm = ARMS[name](config, data)
            points = train(arm, arguments.seconds, arguments.evaluations, warm_up, clock, rows)
            curves.append(Curve(name, seed, points, arm.steps, arm.parameters))
            print(describe(curves[-1]), file=sys.stderr, flush=True)
    return curves


def describe(curve: Curve) -> str:
    found = "  ".join(f"{seconds:.0f} s {value:.3f}" for seconds, value in curve.points)
    per_step = 1000 * curve.points[-1][0] / curve.steps
    return f"{curve.arm}, seed {curve.seed}: {found}; {curve.steps} steps of {per_step:.0f} ms"


def means(curves: Sequence[Curve]) -> dict[str, list[tuple[float, float]]]:
    """Arm → its mean curve over the seeds."""
    arms = dict.fromkeys(curve.arm for curve in curves)
    return {
        arm: [
            (statistics.fmean(p[0] for p in points), statistics.fmean(p[1] for p in points))
            for points in zip(*(curve.points for curve in curves if curve.arm == arm), strict=True)
        ]
        for arm in arms
    }


def table(curves: Sequence[Curve]) -> str:
    """Arms in rows; weights, steps and AP50 at each evaluation in columns."""
    lines = []
    for arm, points in means(curves).items():
        theirs = [curve for curve in curves if curve.arm == arm]
        if not lines:
            times = "".join(f"{f'{seconds:.0f} s':>8}" for seconds, _ in points)
            lines.append(f"{'AP50, mean over seeds':<29}{'weights':>9}{'steps':>7}{'ms a step':>11}{times}")
        steps = statistics.fmean(curve.steps for curve in theirs)
        values = "".join(f"{value:>8.3f}" for _, value in points)
        size, cost = f"{theirs[0].parameters / 1e6:.2f}M", 1000 * points[-1][0] / steps
        lines.append(f"{TITLES[arm]:<29}{size:>9}{steps:>7.0f}{cost:>11.0f}{values}")
    return "\n".join(lines)


def plot(curves: Sequence[Curve], path: Path, clock: str) -> None:
    """One line per arm, and dots for its seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2), dpi=120)
    for number, (arm, points) in enumerate(means(curves).items()):
        axes.plot(*zip((0.0, 0.0), *points, strict=True), label=TITLES[arm], color=f"C{number}", linewidth=2)
        for curve in curves:
            if curve.arm == arm:
                axes.plot(*zip(*curve.points, strict=True), ".", color=f"C{number}", alpha=0.5)
    seconds = "CPU seconds per thread" if clock == "cpu" else "seconds"
    axes.set(xlabel=f"{seconds} of training", ylabel="AP50 by description", ylim=(0, 1), xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def figures(curves: Sequence[Curve]) -> Mapping[str, float | None]:
    """AP50 of each arm at the end of training, for the last line."""
    last = {f"ap50_{arm}": points[-1][1] for arm, points in means(curves).items()}
    peers = [value for name, value in last.items() if name.removeprefix("ap50_") in PEERS]
    return {"ap50_ours": last.get("ap50_ours"), "ap50_best_peer": max(peers, default=None), **last}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=300, help="training time of each arm and seed")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18])
    parser.add_argument("--evaluations", type=int, default=5, help="spread evenly over the training time")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: CPU time / threads")
    parser.add_argument("--threads", type=int, default=0, help="0 = all cores")
    parser.add_argument("--jobs", type=int, default=1, help="seeds in parallel, each on its share of the threads")
    parser.add_argument("--plot", type=Path, help="PNG of the curves")
    parser.add_argument(
        "--held-out", action="store_true", help="train on train, score on val: for choosing settings, not for reporting"
    )
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="config overrides")
    parser.add_argument("--quick", action="store_true", help="synthetic photos, one step per arm")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.quick:
        arguments.seconds, arguments.evaluations, arguments.seeds = 0.01, 1, arguments.seeds[:1]
    if arguments.jobs > 1:
        alone = [argparse.Namespace(**{**vars(arguments), "seeds": [seed]}) for seed in arguments.seeds]
        for one in alone:
            one.threads = max(1, (arguments.threads or torch.get_num_threads()) // arguments.jobs)
        with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
            curves = [curve for curves in pool.map(train_all, alone) for curve in curves]
    else:
        curves = train_all(arguments)
    print(table(curves))
    if arguments.plot:
        plot(curves, arguments.plot, arguments.clock)
    last_line("convergence", seconds=arguments.seconds, clock=arguments.clock, **figures(curves))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
