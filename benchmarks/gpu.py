"""What one H100/H200-class GPU is to measure, in under ten minutes: see docs/benchmarks/README.md.

    bash benchmarks/gpu.sh [--output FOLDER] [--parts no_bleed,step] [--seconds 570]
    bash benchmarks/gpu.sh --tiny --device cpu --output /tmp/gpu

Every part runs in a process of its own with a time limit of its own, the most important ones first; one that fails or
is stopped leaves what it had and why it ended. Time that a part does not use goes to the next. The JSON is written
again after each part, and a row of the table at the end. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from gpu_table import add_row, headline
from harness import last_line

from bbu.jsonl import atomic_writer, decode_json

PROJECT = Path(__file__).resolve().parents[1]
PUBLISHED = PROJECT / "docs" / "benchmarks"
GRACE = 3.0  # seconds to stop a part and write what it had


@dataclass(frozen=True)
class Part:
    """A function(setting, findings) of a module beside this file, and the seconds that are kept for it."""

    module: str
    function: str
    seconds: float


PARTS = {
    "facts": Part("gpu_machine", "facts", 45),
    "no_bleed": Part("gpu_no_bleed", "no_bleed", 85),
    "step": Part("gpu_steps", "step", 165),
    "syncs": Part("gpu_syncs", "syncs", 40),
    "published": Part("gpu_steps", "published", 65),
    "largest_pack": Part("gpu_steps", "largest_pack", 105),
    "timeline": Part("gpu_timeline", "timeline", 50),
}


# ---------------------------------------------------------------- one part, in its own process


def run_part(name: str, arguments: argparse.Namespace) -> int:
    """Measure; an error is written down beside what was found before it."""
    from gpu_machine import Findings, Setting  # imports torch, which the other process does without

    findings = Findings(Path(arguments.result))
    setting = Setting.create(arguments.device, arguments.tiny, arguments.stop, Path(arguments.output))
    part = PARTS[name]
    try:
        getattr(importlib.import_module(part.module), part.function)(setting, findings)
    except Exception as error:  # whatever it is: the other parts go on
        import traceback

        traceback.print_exc()
        findings.add(error=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"[:500])
        findings.add(where=[line.strip() for line in traceback.format_tb(error.__traceback__)[-3:]])
        return 1
    return 0


# ---------------------------------------------------------------- all parts


def measure(name: str, limit: float, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a part for at most ``limit`` seconds; what it found, and how it ended."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "part.json"
        options = ["--part", name, "--result", str(result), "--device", arguments.device, "--output", arguments.output]
        options += ["--stop", str(started + limit - GRACE), *(["--tiny"] if arguments.tiny else [])]
        command = [sys.executable, __file__, *options]
        child = subprocess.Popen(command, start_new_session=True)
        try:
            status, ended = child.wait(timeout=limit), "ok"
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            status, ended = child.wait(), f"stopped after {limit:.0f} s"
        found = decode_json(result.read_text(encoding="utf-8"), name) if result.exists() else {}
    if status != 0 and ended == "ok":
        ended = "failed"
        found.setdefault("error", f"the process ended with status {status}; its last words are above")
    return {"ended": ended, "seconds": round(time.monotonic() - started, 1), **found}


def measure_all(arguments: argparse.Namespace) -> Path:
    """Every part in turn; the path of the JSON, which is written again after each."""
    stop = time.monotonic() + arguments.seconds - arguments.already - GRACE
    names = [name for name in PARTS if name == "facts" or name in arguments.parts]
    found: dict[str, Any] = {"date": date.today().isoformat(), "tiny": arguments.tiny, "parts": {}}
    path = Path()
    for place, name in enumerate(names):
        later = sum(PARTS[other].seconds for other in names[place + 1 :])
        left = stop - time.monotonic()
        limit = min(left, max(left - later, PARTS[name].seconds))
        print(f"\n== {name}: up to {limit:.0f} s", flush=True)
        if limit < 5:
            found["parts"][name] = {"ended": "not reached: no time left"}
        else:
            found["parts"][name] = measure(name, limit, arguments)
        path = path if path.name else Path(arguments.output) / f"{found['date']}-{gpu_kind(found)}.json"
        found["headline"] = headline(found["parts"])
        with atomic_writer(path) as file:
            json.dump(found, file, ensure_ascii=False, indent=1)
        print(json.dumps({name: found["parts"][name]}, ensure_ascii=False)[:2000], flush=True)
    return path


def gpu_kind(found: dict[str, Any]) -> str:
    """What names the file: h100, h200, a100; cpu."""
    name = str(found["parts"].get("facts", {}).get("gpu") or "unknown")
    short = re.search(r"\b([A-Z]{1,2}\d{2,3}[A-Z]?)\b", name)
    return (short.group(1) if short else re.sub(r"\W+", "-", name)).lower()


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", default=str(PUBLISHED), help="folder of the JSON and the table (docs/benchmarks)")
    parser.add_argument("--parts", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}; facts always runs")
    parser.add_argument("--seconds", type=float, default=570, help="for all parts together (570)")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="sizes of a test; needs --output, changes nothing in docs")
    parser.add_argument("--already", type=float, default=0, help=argparse.SUPPRESS)  # seconds spent before Python
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--result", help=argparse.SUPPRESS)
    parser.add_argument("--stop", type=float, help=argparse.SUPPRESS)  # time.monotonic(), which processes share
    arguments = parser.parse_args(words)
    if unknown := set(arguments.parts.split(",")) - set(PARTS):
        parser.error(f"--parts: {', '.join(sorted(unknown))} is none of {', '.join(PARTS)}")
    if arguments.device == "cpu" and not arguments.tiny:
        parser.error("--device cpu: only with --tiny; the real sizes are for a GPU")
    if arguments.tiny and Path(arguments.output).resolve() == PUBLISHED:
        parser.error("--tiny: give --output FOLDER; docs/benchmarks is for real measurements")
    arguments.parts = arguments.parts.split(",")
    return arguments


def main() -> int:
    arguments = parse()
    if arguments.part:
        return run_part(arguments.part, arguments)
    path = measure_all(arguments)
    found = decode_json(path.read_text(encoding="utf-8"), str(path))
    table = add_row(path, PUBLISHED / "README.md")
    print(f"\nwritten: {path}, and a row in {table}")
    last_line("gpu", **found["headline"])
    return int(not found["headline"]["all_parts_ended"])


if __name__ == "__main__":
    sys.exit(main())
