"""What one H100/H200-class GPU is to measure, in five minutes, or two if quick: see docs/benchmarks/README.md.

    bash benchmarks/gpu.sh [--quick] [--output FOLDER] [--parts no_bleed,step] [--seconds 300]
    bash benchmarks/gpu.sh --tiny --device cpu --output /tmp/gpu

One process runs all parts, the most important ones first. A part that fails leaves what it had and why it ended, and
the others go on. The JSON is written again after each figure, and a row of the table at the end; when the time is over,
a timer writes what there is and ends the process, whatever it is waiting for. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import re
import shutil
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from gpu_table import add_row, aims, headline, with_aims
from harness import last_line

from bbu.jsonl import atomic_writer

PROJECT = Path(__file__).resolve().parents[1]
PUBLISHED = PROJECT / "docs" / "benchmarks"
SECONDS, QUICK_SECONDS = 300, 120  # for all parts together
NOT_REACHED = "not reached: no time left"
GRACE = 3.0  # seconds to write what there is


@dataclass(frozen=True)
class Part:
    """A function(setting, findings) of a module beside this file.

    Args:
        when: ``quick``: always; ``full``: unless quick; ``asked``: if --parts names it.
    """

    module: str
    function: str
    when: str = "full"


PARTS = {
    "facts": Part("gpu_machine", "facts", "quick"),
    "no_bleed": Part("gpu_no_bleed", "no_bleed", "quick"),
    "step": Part("gpu_steps", "step", "quick"),
    "profile": Part("gpu_small", "profile", "quick"),
    "train": Part("gpu_small", "train", "quick"),
    "syncs": Part("gpu_syncs", "syncs"),
    "timeline": Part("gpu_timeline", "timeline"),
    "largest_pack": Part("gpu_steps", "largest_pack"),
    "deepspeed": Part("gpu_deepspeed", "deepspeed", "asked"),
}


class Results:
    """All figures, in a JSON file that is whole at any time.

    Args:
        gpu: its name; the file is named by its kind.
    """

    def __init__(self, arguments: argparse.Namespace, gpu: str) -> None:
        day, how = date.today().isoformat(), "-quick" if arguments.quick else ""
        self.path = Path(arguments.output) / f"{day}-{gpu_kind(gpu)}{how}.json"
        self.parts: dict[str, dict[str, Any]] = {}
        self.about = {"date": day, "tiny": arguments.tiny, "quick": arguments.quick}
        self.lock = threading.RLock()

    def whole(self) -> dict[str, Any]:
        found = headline(self.parts)
        return {**self.about, "headline": found, "aims": aims(found), "parts": self.parts}

    def write(self) -> None:
        with self.lock, atomic_writer(self.path) as file:
            json.dump(finite(self.whole()), file, ensure_ascii=False, indent=1)

    def end(self, name: str, how: str, started: float) -> None:
        with self.lock:
            self.parts[name] |= {"ended": how, "seconds": round(time.monotonic() - started, 1)}
            self.write()

    def finish(self) -> None:
        """The row of the table, the aims, and the last line."""
        whole = self.whole()
        table = add_row(whole, self.path, PUBLISHED / "README.md")
        print(f"\nwritten: {self.path}, and a row in {table}\n\n{with_aims(whole['aims'])}")
        last_line("gpu", **whole["headline"])
        sys.stdout.flush()


def finite(value: Any) -> Any:
    """The same with infinite numbers and NaN as words: JSON has none."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


# ---------------------------------------------------------------- parts


def run_part(name: str, setting: Any, results: Results) -> None:
    """Measure; an error is written down beside what was found before it."""
    from gpu_machine import Findings, in_words  # imports torch

    started, part = time.monotonic(), PARTS[name]
    with results.lock:
        results.parts[name] = {"ended": "running"}
    findings = Findings(results.parts[name], results.lock, results.write)
    findings.add()
    try:
        getattr(importlib.import_module(part.module), part.function)(setting, findings)
    except Exception as error:  # whatever it is: the other parts go on
        traceback.print_exc()
        findings.add(error=in_words(error))
        findings.add(where=[line.strip() for line in traceback.format_tb(error.__traceback__)[-3:]])
        failed = True
    else:
        failed = False
    if failed:  # the error, whose frames hold tensors, is gone by now
        setting.free()
    results.end(name, "failed" if failed else "ok", started)


def run_parts(names: Sequence[str], setting: Any, results: Results) -> None:
    for name in names:
        if setting.left <= 0:
            results.parts[name] = {"ended": NOT_REACHED}
            results.write()
            continue
        print(f"\n== {name}: {setting.left:.0f} s are left", flush=True)
        run_part(name, setting, results)
        print(json.dumps({name: results.parts[name]}, ensure_ascii=False)[:2000], flush=True)


def end_at_the_limit(names: Sequence[str], seconds: float, results: Results, scratch: str) -> threading.Timer:
    """A timer that writes what there is and ends the process: a kernel that hangs cannot be interrupted otherwise.

    Args:
        scratch: a folder that it removes.
    """
    started = time.monotonic()

    def end() -> None:
        try:
            with results.lock:
                for name in names:
                    results.parts.setdefault(name, {"ended": NOT_REACHED})
                    if results.parts[name]["ended"] == "running":
                        results.end(name, "stopped: no time left", started)
                results.write()
                results.finish()
            shutil.rmtree(scratch, ignore_errors=True)
        finally:
            os._exit(1)

    timer = threading.Timer(max(seconds, 0), end)
    timer.daemon = True
    timer.start()
    return timer


def gpu_kind(name: str) -> str:
    """What names the file: h100, h200, a100; cpu."""
    short = re.search(r"\b([A-Z]{1,2}\d{2,3}[A-Z]?)\b", name)
    return (short.group(1) if short else re.sub(r"\W+", "-", name)).lower()


# ---------------------------------------------------------------- command line


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", default=str(PUBLISHED), help="folder of the JSON and the table (docs/benchmarks)")
    parser.add_argument("--parts", help=f"some of {', '.join(PARTS)}; facts always runs; deepspeed only if named")
    parser.add_argument("--quick", action="store_true", help="two minutes: one step of each arm, a short training")
    parser.add_argument("--seconds", type=float, help=f"for all parts together ({SECONDS}; quick: {QUICK_SECONDS})")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="sizes of a test; needs --output, changes nothing in docs")
    parser.add_argument("--already", type=float, default=0, help=argparse.SUPPRESS)  # seconds spent before Python
    arguments = parser.parse_args(words)
    if unknown := set((arguments.parts or "facts").split(",")) - set(PARTS):
        parser.error(f"--parts: {', '.join(sorted(unknown))} is none of {', '.join(PARTS)}")
    if arguments.device == "cpu" and not arguments.tiny:
        parser.error("--device cpu: only with --tiny; the real sizes are for a GPU")
    if arguments.tiny and Path(arguments.output).resolve() == PUBLISHED:
        parser.error("--tiny: give --output FOLDER; docs/benchmarks is for real measurements")
    arguments.parts = chosen(arguments.parts, arguments.quick)
    arguments.seconds = arguments.seconds or (QUICK_SECONDS if arguments.quick else SECONDS)
    return arguments


def chosen(named: str | None, quick: bool) -> list[str]:
    """Names of the parts to run, in their order."""
    if named is not None:
        return [name for name in PARTS if name in ("facts", *named.split(","))]
    return [name for name, part in PARTS.items() if part.when in (("quick",) if quick else ("quick", "full"))]


def main() -> int:
    stop = time.monotonic() - GRACE
    arguments = parse()
    stop += arguments.seconds - arguments.already
    from gpu_machine import Setting  # imports torch

    setting = Setting.create(arguments.device, arguments.tiny, arguments.quick, stop, Path(arguments.output))
    results = Results(arguments, setting.gpu)
    with tempfile.TemporaryDirectory() as scratch:
        tempfile.tempdir = scratch  # of all that parts write
        timer = end_at_the_limit(arguments.parts, setting.left, results, scratch)
        run_parts(arguments.parts, setting, results)
        timer.cancel()
    results.finish()
    return int(not headline(results.parts)["all_parts_ended"])


if __name__ == "__main__":
    sys.exit(main())
