"""What the pages name exists: tests, files, configs, links, and every room in README's file map."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
PAGES = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").rglob("*.md")])
README = (PROJECT / "README.md").read_text(encoding="utf-8")


def names(pattern: str, page: Path) -> list[str]:
    return re.findall(pattern, page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_a_page_names_exists(page: Path) -> None:
    for file, test in names(r"`(?:tests/)?([\w/]+\.py)::(\w+)", page):
        path = PROJECT / "tests" / file
        assert path.is_file(), f"{page.name}: tests/{file} does not exist"
        assert f"def {test}(" in path.read_text(encoding="utf-8"), f"{page.name}: tests/{file} has no {test}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_config_of_a_page_exists(page: Path) -> None:
    for target in names(r"\]\((?!http)([^)#]+)[^)]*\)", page):
        assert (page.parent / target).exists(), f"{page.name}: link to {target}"
    for config in names(r"configs/\w+\.(?:yaml|json)", page):
        assert (PROJECT / config).is_file() or "my" in config, f"{page.name}: {config} does not exist"


def file_map() -> set[str]:
    """Paths that README's map names: the first column of each line, below the last folder that is indented less."""
    block = README.split("## Where things are")[1].split("```")[1]
    found: set[str] = set()
    folders: dict[int, str] = {}
    for line in filter(None, block.splitlines()):
        indent = len(line) - len(line.lstrip())
        folders = {depth: folder for depth, folder in folders.items() if depth < indent}
        paths = [folders.get(max(folders, default=0), "") + name for name in line.strip().split("  ")[0].split()]
        found.update(paths)
        folders[indent] = paths[0]
    return found


def rooms() -> set[str]:
    """Folders of Python modules in the product, modules at the top of the package, and all other top-level folders."""
    product = [*(PROJECT / "src" / "bbu").rglob("*.py"), *(PROJECT / "data_conversion").rglob("*.py")]
    folders = {path.parent.relative_to(PROJECT).as_posix() for path in product}
    modules = {path.relative_to(PROJECT).as_posix() for path in product if path.parent == PROJECT / "src" / "bbu"}
    listed = subprocess.run(["git", "ls-files"], cwd=PROJECT, capture_output=True, text=True).stdout  # "" without git
    tops = {path.partition("/")[0] for path in listed.splitlines() if "/" in path and not path.startswith(".")}
    return {f"{folder}/" for folder in folders | tops - {"src"}} | modules - {"src/bbu/__init__.py"}


def test_the_file_map_of_readme_names_every_room() -> None:
    assert "src/bbu/models/acceleration/" in rooms() and "src/bbu/records.py" in rooms()
    assert rooms() <= file_map(), f"README's file map lacks {sorted(rooms() - file_map())}"


def test_the_file_map_of_readme_names_nothing_that_does_not_exist() -> None:
    missing = [path for path in file_map() if not (PROJECT / path).exists()]
    assert not missing, f"README's file map names {sorted(missing)}, which do not exist"


def test_readme_fits_a_short_read() -> None:
    table = README.split("## What was measured")[1].split("\n## ")[0]
    assert len(README.splitlines()) < 150
    assert len(re.findall(r"^\| ", table, re.MULTILINE)) == 1 + 6, "a head and six rows"


def test_every_promise_names_a_test_that_exists() -> None:
    page = (PROJECT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("|") and "tests/" in line]
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    assert len(rows) > 10 and len(named) >= len(rows)
    for file, name in named:
        assert f"def {name}(" in (PROJECT / file).read_text(encoding="utf-8"), f"{file} has no {name}"
