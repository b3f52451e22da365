"""docs/data_schema.md says what the code does."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

from bbu.records import parse_row
from data_conversion.__main__ import build_parser, parse_splits_argument
from data_conversion.formats import FORMATS
from data_conversion.outputs import OUTPUTS
from data_conversion.splits import parse_splits

PAGE = (Path(__file__).parents[2] / "docs" / "data_schema.md").read_text(encoding="utf-8")


def block(start: str) -> str:
    """The indented block whose first line starts with ``start``."""
    found = re.search(rf"^    {re.escape(start)}.*\n(?:    .*\n)*", PAGE, re.MULTILINE)
    assert found, start
    return re.sub(r"^    ", "", found[0], flags=re.MULTILINE)


def test_the_row_shown_keeps_the_contract() -> None:
    parse_row(json.loads(block('{"images"')), "docs/data_schema.md")


def test_the_commands_shown_are_understood() -> None:
    commands = re.findall(r"^    python -m data_conversion ([^-].*)$", PAGE, re.MULTILINE)
    assert commands
    for command in commands:
        arguments = build_parser().parse_args(shlex.split(command))
        assert arguments.source_format in FORMATS
        if arguments.splits:
            parse_splits(parse_splits_argument(arguments.splits))


def test_every_output_is_on_the_page() -> None:
    for name in OUTPUTS:
        assert f"`{name}`" in PAGE
