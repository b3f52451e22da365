"""How long the command lines take to say something: help, and a mistake in a config.

    python benchmarks/startup.py [--repeats 7] [--quick]

Every run is a new Python, modules compiled before. The last line is one JSON object; `seconds` is the slowest
command's median.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

from harness import interleaved_medians, last_line

PROJECT = Path(__file__).resolve().parents[1]
MISTAKE = "training.max_step=7"
COMMANDS = {
    "bbu --help": (["bbu.cli", "--help"], 0),
    "bbu run, unknown key": (["bbu.cli", "run", "configs/demo.yaml", MISTAKE], 2),
    "data_conversion --help": (["data_conversion", "--help"], 0),
}


def run(arguments: list[str], status: int) -> None:
    """One command in a process of its own; it must end as it should."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(PROJECT / "src"), str(PROJECT)])},
        capture_output=True,
        text=True,
    )
    said = done.stdout if status == 0 else done.stderr
    if done.returncode != status or not (MISTAKE in said or "usage:" in said):
        raise SystemExit(f"{' '.join(arguments)}: status {done.returncode}, not {status}: {done.stderr}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="every command twice")
    arguments = parser.parse_args()
    arms = {name: partial(run, *command) for name, command in COMMANDS.items()}
    seconds = interleaved_medians(arms, 1 if arguments.quick else arguments.repeats)
    for name, value in seconds.items():
        print(f"{name:<24} {value:6.3f} s")
    last_line("startup", seconds=max(seconds.values()), **{f"seconds of {name}": s for name, s in seconds.items()})


if __name__ == "__main__":
    main()
