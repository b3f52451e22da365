"""Command line. It may import every package; heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from bbu.cli import photos, runs, scores, verdicts, words
from bbu.cli.arguments import Parser
from bbu.errors import UserError
from bbu.interruption import Stopped, raising
from bbu.machine import explain


def build_parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    parser = Parser(
        prog="bbu", description="Detect every object in a photo, describe its state in words, and score it."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for room in (runs, photos, words, scores, verdicts):
        room.add_commands(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status (docs/reliability.md).

    A UserError, or an error of the machine (disk, memory, permission), is one line on stderr and status 2; a signal is
    one line and 128 + its number.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        with raising():
            arguments = build_parser().parse_args(argv)
            status: int = arguments.action(arguments)
            return status
    except UserError as error:
        return _failed(one_line(error))
    except Stopped as error:
        print(f"bbu: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("bbu: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone: nothing is left to say, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        why = explain(error)
        if not why:
            raise
        return _failed(why)


def _failed(why: str) -> int:
    print(f"bbu: error: {why}", file=sys.stderr)
    return 2


def one_line(error: UserError) -> str:
    """The message on one line, without the traceback that a DataLoader worker wraps around it."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith("Caught ") and "in DataLoader worker" in lines[0]:
        return lines[-1].split(": ", 1)[-1]
    return " ".join(line.strip() for line in lines)
