"""The page opens from disk: no script, nothing fetched, everything escaped, every finding and sample on it."""

from __future__ import annotations

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from bbu.doctor.charts import Bar
from bbu.doctor.page import CHART_HEIGHT, CHART_WIDTH, columns, page_of, write_page
from bbu.doctor.report import Report
from bbu.images import open_image
from tests.doctor.small_set import DataSet

VOID = {"meta", "img"}


class Outline(HTMLParser):
    """Tags must close in order; what they name is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.targets: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.targets += [
            value or "" for name, value in attrs if name in ("src", "href", "data", "action", "xlink:href")
        ]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture
def page(data: DataSet) -> tuple[Report, str]:
    data.rows["train"][0]["objects"][0]["desc"] = "螺丝/<script>alert(1)</script>"
    data.rows["train"][1]["images"] = ["gone & away.png"]
    report = data.examine(samples=2)
    return report, page_of(report)


def test_the_page_is_whole_and_needs_nothing_from_outside(page: tuple[Report, str]) -> None:
    html = page[1]
    outline = Outline()
    outline.feed(html)
    assert outline.open == [] and not outline.tags & {"script", "link", "iframe", "object"}
    assert outline.targets and all(target.startswith("data:image/jpeg;base64,") for target in outline.targets)
    assert not re.search(r'https?://|url\((?!"data:font/woff;base64,)|@import', html)
    assert 'charset="utf-8"' in html and "light-dark(" in html and 'name="color-scheme" content="light dark"' in html


def test_findings_figures_and_photos_are_on_it(page: tuple[Report, str]) -> None:
    report, html = page
    assert all(f'id="{item.code}"' in html for item in report.findings)
    assert "gone &amp; away.png" in html and "螺丝/&lt;script&gt;" in html
    photos = re.findall(r"image/jpeg;base64,([^\"]+)", html)
    assert len(photos) == len(report.proven) >= 2
    for photo in photos:
        assert open_image(base64.b64decode(photo)).format == "JPEG"
    assert html.count("<svg") == 2


def test_a_clean_data_set_says_so(data: DataSet, tmp_path: Path) -> None:
    write_page(tmp_path / "out" / "page.html", data.examine(samples=0))
    html = (tmp_path / "out" / "page.html").read_text(encoding="utf-8")
    assert "Nothing found: the data is ready to train on." in html and "Drawn samples" not in html


def test_descriptions_bring_their_glyphs(page: tuple[Report, str]) -> None:
    def embedded(html: str) -> int:
        return len("".join(re.findall(r'url\("data:font/woff;base64,([^"]+)', html)))

    report, _ = page
    assert embedded(page_of(replace(report, config="螺丝连接点"))) > embedded(page_of(replace(report, config="x"))) > 0


def test_a_page_about_nothing_can_be_drawn() -> None:
    assert "not computed" in page_of(Report("empty", "."))


def test_columns_fill_the_chart_and_a_single_value_can_be_seen() -> None:
    placed = columns([Bar(0, 10, 1000), Bar(10, 20, 1), Bar(20, None, 0)])
    assert [bar["height"] for bar in placed] == [CHART_HEIGHT, 2.0, 0.0]
    assert placed[-1]["x"] + placed[-1]["width"] < CHART_WIDTH and placed[-1]["label"] == "20 and more"
