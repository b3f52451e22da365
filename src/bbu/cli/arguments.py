"""Argument parser and argument types."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn, TypeAlias

from bbu.errors import UserError


class Parser(argparse.ArgumentParser):
    """A parser that raises UserError, so that its errors are one line too."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def note(text: str) -> None:
    """Tell the user something that is no result and no error."""
    print(f"bbu: note: {text}", file=sys.stderr)


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


def share(text: str) -> float:
    """A number in [0, 1], for argparse."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must lie in [0, 1], is {text}")
    return number


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, is {number}")
    return number


def not_negative(text: str) -> int:
    """A whole number of at least 0, for argparse."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, is {number}")
    return number
