"""AP over training time: this project's detector, the same with plain learned queries, and transformers' strongest.

    python benchmarks/convergence.py [--seconds 300] [--seeds 17 18] [--data bccd screws]
                                     [--arms ours learned dfine deimv2 rfdetr rtdetrv2]
                                     [--plot docs/images/convergence.png] [--curves curves.jsonl]
                                     [--clock cpu] [--jobs 2] [--quick]

Blood cells as configs/bccd.yaml reads them, and screws: training on train and val, scores on test, all weights random
at the start. All arms see the same photos and random views in the same order, for the same time: loading, forward,
backward and optimizer count, evaluation does not. The learning rate follows the share of time spent. bbu.evaluation
scores every arm by AP50 and AP by description. docs/convergence.md describes the arms, convergence_tuning.py chooses
their settings. With --curves, a long comparison can be run in parts: curves are added to the file as they end, and all
that it holds are tabled and drawn. The last line is one JSON object; its ``ap50_…`` and ``ap_…`` are means over the
seeds at the end of training.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean

import torch
from convergence_arms import Arm, LearnedQueryArm, OwnArm, rate_at
from convergence_data import DATA_SETS, load
from convergence_peers import PEERS, SETTINGS
from harness import last_line

from bbu.config import Config
from bbu.errors import UserError
from bbu.evaluation import evaluate
from bbu.records import Row
from bbu.stages import PreparedData

TITLES = {
    "ours": "this project",
    "learned": "learned queries, same model",
    "dfine": "D-FINE",
    "deimv2": "DEIMv2",
    "rfdetr": "RF-DETR",
    "rtdetrv2": "RT-DETRv2",
}
METRICS = ("AP50", "AP")
Point = tuple[float, float, float]  # seconds, AP50, AP


@dataclass
class Curve:
    """One arm with one seed on one data set: the point of every evaluation, steps and number of weights."""

    data: str
    arm: str
    seed: int
    points: list[Point]
    steps: int
    parameters: int


def wall_seconds() -> float:
    return time.perf_counter()


def cpu_seconds() -> float:
    """CPU time of this process per thread: the wall time of an idle machine, if all threads were always busy."""
    return time.process_time() / torch.get_num_threads()


def train(arm: Arm, seconds: float, evaluations: int, warm_up: float, clock: Callable[[], float],
          rows: Sequence[Row]) -> list[Point]:  # fmt: skip
    """Train for so many seconds, with evaluations spread evenly, the last one at the end.

    An arm with a closing phase learns jointly until that phase is expected to fill the time that is left.
    """
    joint, spent, points = seconds * (1 - arm.closing_share), 0.0, list[Point]()
    while spent < joint:
        started = clock()
        arm.learn(rate_at(spent / joint, warm_up))
        spent += clock() - started
        while len(points) < evaluations - 1 and spent >= seconds * (len(points) + 1) / evaluations:
            points.append((spent, *average_precisions(arm, rows)))
    started = clock()
    arm.close()
    spent += clock() - started
    return [*points, (spent, *average_precisions(arm, rows))]


def average_precisions(arm: Arm, rows: Sequence[Row]) -> tuple[float, float]:
    """AP50 and AP by description."""
    scores = evaluate(rows, arm.predict(rows), bootstrap_samples=0)
    return float(scores["AP50"] or 0.0), float(scores["AP"] or 0.0)


def make_arm(name: str, data_set: str, config: Config, data: PreparedData) -> Arm:
    """An untrained arm; a peer has the settings chosen for the data set."""
    if name in PEERS:
        rate, batch = SETTINGS[name, data_set]
        return PEERS[name](config, data, rate=rate, batch=batch)
    return {"ours": OwnArm, "learned": LearnedQueryArm}[name](config, data)


def train_all(arguments: argparse.Namespace) -> list[Curve]:
    """Prepare the photos, then train every arm with every seed on every data set."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    curves: list[Curve] = []
    with tempfile.TemporaryDirectory(prefix="bbu-benchmark-") as folder:
        for data_set in arguments.data:
            config, data = load(
                data_set,
                Path(folder),
                held_out=arguments.held_out,
                quick=arguments.quick,
                overrides=arguments.set,
            )
            curves += run(data_set, config, data, arguments)
    return curves


def run(data_set: str, config: Config, data: PreparedData, arguments: argparse.Namespace) -> list[Curve]:
    """Train every arm with every seed on a data set, one after another."""
    rows, clock = data.rows("test"), cpu_seconds if arguments.clock == "cpu" else wall_seconds
    warm_up = config.training.warmup_steps / config.training.max_steps
    curves = []
    for seed in arguments.seeds:
        for name in arguments.arms:
            config.seed = seed
            arm = make_arm(name, data_set, config, data)
            points = train(arm, arguments.seconds, arguments.evaluations, warm_up, clock, rows)
            curves.append(Curve(data_set, name, seed, points, arm.steps, arm.parameters))
            print(describe(curves[-1]), file=sys.stderr, flush=True)
            if arguments.curves:
                with arguments.curves.open("a") as file:
                    file.write(json.dumps(asdict(curves[-1])) + "\n")
    return curves


def describe(curve: Curve) -> str:
    """A curve in one line: AP50 / AP at each evaluation."""
    found = "  ".join(f"{seconds:.0f} s {ap50:.3f} / {ap:.3f}" for seconds, ap50, ap in curve.points)
    per_step = 1000 * curve.points[-1][0] / curve.steps
    return f"{curve.data}, {curve.arm}, seed {curve.seed}: {found}; {curve.steps} steps of {per_step:.0f} ms"


def by_arm(curves: Sequence[Curve], data_set: str) -> dict[str, list[Curve]]:
    """Arm → its curves on a data set, one a seed."""
    arms: dict[str, list[Curve]] = {}
    for curve in curves:
        if curve.data == data_set:
            arms.setdefault(curve.arm, []).append(curve)
    return arms


def mean(curves: Sequence[Curve]) -> list[Point]:
    """The mean curve."""
    columns = zip(*(curve.points for curve in curves), strict=True)
    return [(fmean(p[0] for p in some), fmean(p[1] for p in some), fmean(p[2] for p in some)) for some in columns]


def table(curves: Sequence[Curve], data_set: str, metric: str) -> str:
    """Arms in rows; weights, steps and the metric at each evaluation in columns."""
    lines = []
    for arm, theirs in by_arm(curves, data_set).items():
        points = mean(theirs)
        if not lines:
            times = "".join(f"{f'{point[0]:.0f} s':>8}" for point in points)
            title = f"{metric}, {DATA_SETS[data_set]}"
            lines.append(f"{title:<29}{'weights':>9}{'steps':>7}{'ms a step':>11}{times}")
        steps = fmean(curve.steps for curve in theirs)
        values = "".join(f"{point[1 + METRICS.index(metric)]:>8.3f}" for point in points)
        size, cost = f"{theirs[0].parameters / 1e6:.2f}M", 1000 * points[-1][0] / steps
        lines.append(f"{TITLES[arm]:<29}{size:>9}{steps:>7.0f}{cost:>11.0f}{values}")
    return "\n".join(lines)


def plot(curves: Sequence[Curve], path: Path, clock: str) -> None:
    """Data sets in rows, metrics in columns; one line per arm, and dots for its seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    data_sets = list(dict.fromkeys(curve.data for curve in curves))
    figure, grid = pyplot.subplots(len(data_sets), 2, figsize=(10, 3.8 * len(data_sets)), dpi=120, squeeze=False)
    seconds = "CPU seconds per thread" if clock == "cpu" else "seconds"
    for data_set, row in zip(data_sets, grid, strict=True):
        for column, (metric, axes) in enumerate(zip(METRICS, row, strict=True), start=1):
            for number, (arm, theirs) in enumerate(by_arm(curves, data_set).items()):
                points = [(0.0, 0.0), *((point[0], point[column]) for point in mean(theirs))]
                axes.plot(*zip(*points, strict=True), label=TITLES[arm], color=f"C{number}", linewidth=2)
                for curve in theirs:
                    dots = [(point[0], point[column]) for point in curve.points]
                    axes.plot(*zip(*dots, strict=True), ".", color=f"C{number}", alpha=0.5)
            axes.set(title=DATA_SETS[data_set], xlabel=f"{seconds} of training", ylabel=f"{metric} by description")
            axes.set(ylim=(0, 1), xlim=(0, None))
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
    grid[0][0].legend(frameon=False, loc="upper left", fontsize="small")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def figures(curves: Sequence[Curve]) -> dict[str, float | None]:
    """AP50 and AP of each arm on each data set at the end of training, for the last line."""
    found: dict[str, float | None] = {}
    for data_set in dict.fromkeys(curve.data for curve in curves):
        last = {arm: mean(theirs)[-1] for arm, theirs in by_arm(curves, data_set).items()}
        for column, metric in enumerate(METRICS, start=1):
            key = metric.lower()
            found |= {f"{key}_{arm}_{data_set}": point[column] for arm, point in last.items()}
            peers = [point[column] for arm, point in last.items() if arm in PEERS]
            found[f"{key}_best_peer_{data_set}"] = max(peers, default=None)
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=300, help="training time of each arm and seed")
    parser.add_argument("--arms", nargs="+", choices=list(TITLES), default=list(TITLES))
    parser.add_argument("--data", nargs="+", choices=list(DATA_SETS), default=list(DATA_SETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[17, 18])
    parser.add_argument("--evaluations", type=int, default=5, help="spread evenly over the training time")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: CPU time / threads")
    parser.add_argument("--threads", type=int, default=0, help="0 = all cores")
    parser.add_argument("--jobs", type=int, default=1, help="seeds in parallel, each on its share of the threads")
    parser.add_argument("--plot", type=Path, help="PNG of the curves")
    parser.add_argument("--curves", type=Path, help="JSONL that this run adds its curves to; all in it are shown")
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
        arguments.data = arguments.data[:1]
    if arguments.jobs > 1:
        alone = [argparse.Namespace(**{**vars(arguments), "seeds": [seed]}) for seed in arguments.seeds]
        for one in alone:
            one.threads = max(1, (arguments.threads or torch.get_num_threads()) // arguments.jobs)
        with ProcessPoolExecutor(arguments.jobs, get_context("spawn")) as pool:
            curves = [curve for curves in pool.map(train_all, alone) for curve in curves]
    else:
        curves = train_all(arguments)
    if arguments.curves:
        curves = [Curve(**json.loads(line)) for line in arguments.curves.read_text().splitlines()]
    shown = dict.fromkeys(curve.data for curve in curves)
    tables = [table(curves, data_set, metric) for data_set in shown for metric in METRICS]
    print("\n\n".join(tables))
    if arguments.plot:
        plot(curves, arguments.plot, arguments.clock)
    last_line("convergence", seconds=arguments.seconds, clock=arguments.clock, **figures(curves))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
