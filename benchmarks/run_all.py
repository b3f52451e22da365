"""All benchmarks one after another, then one table of what was measured against what was aimed at: `make bench`.

    python benchmarks/run_all.py [NAME ...] [--output outputs/benchmarks] [--quick]

Each runs in a process of its own and prints as it goes. OUTPUT/<date>.json gets every benchmark's last line, the aims
and the machine. A missed aim is said and no failure: exit status 1 is for a benchmark that fails. Not in here:
convergence.py and gpu.sh, which take longer, or a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("BBU_SHARED", PROJECT.parent / "shared")) / "data"
MISSED, MET = "missed", "met"


@dataclass(frozen=True)
class Aim:
    """A figure of a benchmark's last line and what it should be: at least or at most ``bound``."""

    key: str
    bound: float
    at_least: bool = False

    def verdict(self, value: float) -> str:
        return MET if (value >= self.bound if self.at_least else value <= self.bound) else MISSED

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}"


@dataclass(frozen=True)
class Benchmark:
    """A script beside this one.

    Args:
        shown: figures without an aim that the summary shows too.
        arguments: settings that keep the whole within a quarter of an hour on two cores.
        lacking: why it cannot run here; "" = it can.
    """

    name: str
    aims: tuple[Aim, ...] = ()
    shown: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    lacking: Callable[[], str] = lambda: ""
    folder: Path = Path(__file__).parent


@dataclass
class Outcome:
    """What became of a benchmark: its last line, or why there is none."""

    benchmark: str
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)
    skipped: str = ""
    failed: str = ""


def lacking_meteor() -> str:
    """METEOR 1.5 is a Java program inside an optional package."""
    if not shutil.which("java"):
        return "there is no Java"
    if importlib.util.find_spec("pycocoevalcap") is None:
        return "the package pycocoevalcap is not installed: pip install 'bbu[meteor]'"
    folder = SHARED / "vg_regions_text"
    return "" if folder.is_dir() else f"{folder} is not there"


def at_least(key: str, bound: float) -> Aim:
    return Aim(key, bound, at_least=True)


BENCHMARKS = (
    Benchmark("startup", (Aim("seconds", 0.5),)),
    Benchmark("chat_processor", (at_least("speedup", 1.5),)),
    Benchmark("planner", (at_least("fill", 0.98), Aim("rank_imbalance", 0.02), Aim("seconds_per_million", 10))),
    Benchmark("lengths", (), ("turns", "crops", "mosaic", "copy_paste")),
    Benchmark("loader", (Aim("wait_fraction", 0.02),)),
    Benchmark(
        "packing",
        (at_least("speedup_vs_padded", 2.0), Aim("peak_memory_ratio", 0.6), Aim("overhead_vs_ideal", 1.10)),
    ),
    Benchmark("language_loss", (Aim("peak_memory_ratio", 0.10), Aim("time_ratio", 0.35))),
    Benchmark("norms", (), ("float32_time_ratio", "bfloat16_time_ratio", "bfloat16_memory_ratio")),
    Benchmark("launches", (), ("operators_a_step", "deep_operators_a_step")),
    Benchmark("matcher", (at_least("speedup_vs_hf", 20),)),
    Benchmark("scale", (Aim("exponent_tokens", 1.1),), ("exponent_boxes", "exponent_queries", "exponent_pixels")),
    Benchmark("memory", (), ("selective_peak_ratio", "full_peak_ratio", "kept_time_ratio")),
    Benchmark("detect_vs_generate", (at_least("speedup", 20),)),
    Benchmark("replay", (), ("loss_before", "loss_without", "loss_with", "ap50_without", "ap50_with")),
    Benchmark("tiles", (), ("ap50_whole", "ap50_tiles"), ("--seconds", "40")),
    Benchmark("conversion", (), ("photos_per_second", "peak_mib"), ("--photos", "20000")),
    Benchmark("scoring", (), ("seconds", "intervals_seconds", "peak_mib"), ("--photos", "3000")),
    Benchmark("meteor", (), ("seconds",), (), lacking_meteor),
)


# ---------------------------------------------------------------- running


def run_one(benchmark: Benchmark) -> Outcome:
    """Run one, passing on what it prints; never raises."""
    if reason := benchmark.lacking():
        print(f"skipped: {reason}", flush=True)
        return Outcome(benchmark.name, skipped=reason)
    script = str(benchmark.folder / f"{benchmark.name}.py")
    path = os.pathsep.join([str(PROJECT / "src"), str(PROJECT)])
    started, last = time.monotonic(), ""
    process = subprocess.Popen(
        [sys.executable, script, *benchmark.arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if last:
            print(last, end="", flush=True)
        last = line
    outcome = Outcome(benchmark.name, seconds=round(time.monotonic() - started, 1))
    if status := process.wait():
        print(last, end="", flush=True)
        outcome.failed = f"exit status {status}"
        return outcome
    outcome.figures, outcome.failed = read_figures(last, benchmark)
    return outcome


def read_figures(line: str, benchmark: Benchmark) -> tuple[dict[str, Any], str]:
    """The JSON object of a last line, and what is wrong with it."""
    from bbu.jsonl import decode_json

    try:
        figures = decode_json(line, f"{benchmark.name}.py")
    except ValueError:
        figures = None
    if not isinstance(figures, dict):
        return {}, f"its last line is no JSON object: {line.strip()!r}"
    keys = [*(aim.key for aim in benchmark.aims), *benchmark.shown]
    gone = [key for key in keys if not isinstance(figures.get(key), (int, float))]
    return figures, f"its last line has no number for {', '.join(gone)}" if gone else ""


# ---------------------------------------------------------------- telling


def summary_rows(benchmark: Benchmark, outcome: Outcome) -> list[tuple[str, str, str, str, str]]:
    """(benchmark, key, value, aim, met or missed) for each figure."""
    if outcome.failed or outcome.skipped:
        return [(benchmark.name, "", "", "", f"FAILED: {outcome.failed}" if outcome.failed else "skipped")]
    found = outcome.figures
    rows = [(aim.key, found[aim.key], str(aim), aim.verdict(found[aim.key])) for aim in benchmark.aims]
    rows += [(key, found[key], "", "") for key in benchmark.shown]
    told = [(benchmark.name, key, f"{value:g}", aim, verdict) for key, value, aim, verdict in rows]
    return told or [(benchmark.name, "", "", "", "ran")]


def summary(rows: Sequence[tuple[str, ...]]) -> str:
    """Columns as wide as their widest cell; values to the right."""
    table = [("benchmark", "key", "value", "aim", ""), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(4)]
    return "\n".join(
        f"{name:<{widths[0]}}  {key:<{widths[1]}}  {value:>{widths[2]}}  {aim:<{widths[3]}}  {verdict}".rstrip()
        for name, key, value, aim, verdict in table
    )


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    packages = ("torch", "transformers", "numpy")
    return {
        "cpu": model or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 2),  # of the minute before: others' work makes figures worse
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def to_json(benchmark: Benchmark, outcome: Outcome) -> dict[str, Any]:
    aims = {
        aim.key: {"aim": str(aim), "met": aim.verdict(outcome.figures[aim.key]) == MET}
        for aim in benchmark.aims
        if not (outcome.failed or outcome.skipped)
    }
    return {**vars(outcome), "arguments": list(benchmark.arguments), "aims": aims}


def quickened(benchmark: Benchmark) -> Benchmark:
    """As small as it can be, to see whether it runs: its figures mean nothing."""
    return replace(benchmark, arguments=("--quick",), aims=(), shown=())


def with_plot(benchmark: Benchmark, output: Path) -> Benchmark:
    """``scale`` draws where it can."""
    if benchmark.name != "scale" or not importlib.util.find_spec("matplotlib"):
        return benchmark
    return replace(benchmark, arguments=(*benchmark.arguments, "--plot", str(output / "scale.png")))


def run_all(benchmarks: Sequence[Benchmark], output: Path) -> int:
    """Run, tell, write; 1 where any failed."""
    from bbu.jsonl import write_json

    facts, started = machine(), time.monotonic()
    outcomes = []
    for benchmark in benchmarks:
        print(f"\n== {benchmark.name}", flush=True)
        outcomes.append(run_one(with_plot(benchmark, output)))
        print(f"-- {outcomes[-1].failed or f'{outcomes[-1].seconds:.0f} s'}", flush=True)
    pairs = list(zip(benchmarks, outcomes, strict=True))
    rows = [row for pair in pairs for row in summary_rows(*pair)]
    seconds, today = round(time.monotonic() - started), datetime.date.today().isoformat()
    found = [to_json(*pair) for pair in pairs]
    write_json(output / f"{today}.json", {"date": today, "seconds": seconds, "machine": facts, "benchmarks": found})
    print(f"\n{facts['cpu']}, {facts['cores']} cores, torch {facts['torch']}, transformers {facts['transformers']}")
    print(f"\n{summary(rows)}\n\n{seconds // 60} min {seconds % 60} s in all; written: {output / f'{today}.json'}")
    return int(any(outcome.failed for outcome in outcomes))


def main() -> int:
    names = [benchmark.name for benchmark in BENCHMARKS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these of {', '.join(names)}")
    parser.add_argument("--output", type=Path, default=PROJECT / "outputs" / "benchmarks", help="folder for the JSON")
    parser.add_argument("--quick", action="store_true", help="every benchmark's --quick: shows that they run; no aims")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in names]:
        parser.error(f"unknown benchmark {', '.join(unknown)}; there are {', '.join(names)}")
    chosen = [each for each in BENCHMARKS if not arguments.names or each.name in arguments.names]
    return run_all([quickened(each) for each in chosen] if arguments.quick else chosen, arguments.output)


if __name__ == "__main__":
    sys.exit(main())
