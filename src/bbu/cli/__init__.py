"""Command line. It may import every package; heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from bbu.cli import photos, runs, scores
from bbu.cli.arguments import Parser
from bbu.errors import UserError


def build_parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    parser = Parser(
        prog="bbu", description="Detect every object in a photo, describe its state in words, and score it."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for room in (runs, photos, scores):
        room.add_commands(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; a UserError or OSError is one line on stderr and status 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        arguments = build_parser().parse_args(argv)
        status: int = arguments.action(arguments)
        return status
    except UserError as error:
        print(f"bbu: error: {one_line(error)}", file=sys.stderr)
        return 2
    except OSError as error:  # of a file that has no better message
        where = f"{error.filename}: " if error.filename else ""
        print(f"bbu: error: {where}{error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bbu: stopped", file=sys.stderr)
        return 130


def one_line(error: UserError) -> str:
    """The message on one line, without the traceback that a DataLoader worker wraps around it."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith("Caught ") and "in DataLoader worker" in lines[0]:
        return lines[-1].split(": ", 1)[-1]
    return " ".join(line.strip() for line in lines)
