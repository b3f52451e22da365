"""Names end in their shape, with one legend for the whole project: docs/architecture.md, *Shapes*."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
FOLDERS = ("src", "data_conversion", "benchmarks")
FILES = sorted(path for folder in FOLDERS for path in (PROJECT / folder).rglob("*.py"))
SYMBOL = "[A-Z][a-z]?"


def read_legend() -> dict[str, str]:
    """Symbol → meaning, from the table of the page."""
    page = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.split("\n## Shapes\n")[1].split("\n## ")[0]
    pairs = re.findall(rf"\| ({SYMBOL}) \| ([^|]+?) (?=\|)", section)
    assert len(dict(pairs)) == len(pairs), "a symbol stands in the table twice"
    return dict(pairs)


LEGEND = read_legend()


def suffixes(tree: ast.Module) -> dict[str, str]:
    """Name → suffix of every variable, parameter, attribute and field that ends in a shape; no classes or constants."""
    found = {}
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.arg(arg=name) | ast.Attribute(attr=name):
                stem, _, suffix = name.rpartition("_")
                if suffix != suffix.lower() and stem.lstrip("_")[:1].islower():
                    found[name] = suffix
    return found


def stated_symbols(docstring: str) -> set[str]:
    """The symbols in a docstring's last paragraph, which are explained in the table's words."""
    paragraph = " ".join(docstring.strip().split("\n\n")[-1].split())
    if not paragraph.startswith("Shapes:"):
        return set()
    assert paragraph.endswith("."), "the Shapes paragraph ends with a full stop"
    entries = [entry.partition(" ") for entry in paragraph.removeprefix("Shapes: ").removesuffix(".").split(", ")]
    assert {symbol: meaning for symbol, _, meaning in entries}.items() <= LEGEND.items(), paragraph
    return {symbol for symbol, _, _ in entries}


def test_the_table_has_entries_and_no_two_symbols_share_a_meaning() -> None:
    assert len(LEGEND) > 30 and len(set(LEGEND.values())) == len(LEGEND)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_every_suffix_is_in_the_table_and_in_the_docstring_of_its_file(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    used = set()
    for name, suffix in suffixes(tree).items():
        assert re.fullmatch(rf"({SYMBOL}|\d+)+", suffix), f"{name}: {suffix} is no shape"
        symbols = set(re.findall(SYMBOL, suffix))
        assert symbols <= LEGEND.keys(), f"{name}: not in the table: {sorted(symbols - LEGEND.keys())}"
        used |= symbols
    assert stated_symbols(ast.get_docstring(tree) or "") == used
