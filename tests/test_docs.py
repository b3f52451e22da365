"""What the pages name exists: tests, files, configs, links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
PAGES = sorted([*PROJECT.glob("*.md"), *(PROJECT / "docs").glob("*.md")])


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
