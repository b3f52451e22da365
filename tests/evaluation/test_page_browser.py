"""The report page in a real browser: its counts are the scorer's, and its controls do what they say."""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bbu.drawing.panels import ALONE, WRONG
from bbu.evaluation import evaluate
from bbu.evaluation.page import write_report
from bbu.evaluation.pairing import _position  # the order that ties are broken in
from bbu.evaluation.pictures import compare_marks
from bbu.records import ObjectRow, PredictedObject, PredictionRow, Row, read_rows
from bbu.taxonomy import Taxonomy
from data_conversion.pipeline import convert
from tests.conftest import MakePhoto
from tests.evaluation.browser import Browser, open_browser
from tests.evaluation.predicted import crowded_rows, perturbed

THRESHOLDS = (0, 0.1, 0.3, 0.37, 0.5, 0.8, 1)
BIG = 500  # photos of the page that must stay usable


# [contrast ratio after WCAG 2.1, beginning of the element] of every visible text on a plain ground.
CONTRASTS = """
const unit = (colour) => (colour.startsWith("color(") ? 255 : 1);
const numbers = (colour) => colour.match(/[\\d.]+/g).map((text) => Number(text) * unit(colour));
const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
const light = (rgb) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => sum + weight * linear(rgb[i] / 255), 0);
const ground = (node) => {
  const colour = getComputedStyle(node).backgroundColor;
  return colour === "rgba(0, 0, 0, 0)" ? ground(node.parentElement) : colour;
};
const texts = "p, b, h1, h2, dt, dd, td, th, label, select, button, .chip, .lost, .key, .faint";
return [...document.querySelectorAll(texts)]
  .filter((node) => node.checkVisibility() && node.innerText.trim() && !node.matches(".none"))
  .map((node) => {
    const lights = [getComputedStyle(node).color, ground(node)].map((colour) => light(numbers(colour)) + 0.05);
    return [Math.max(...lights) / Math.min(...lights), node.outerHTML.slice(0, 80)];
  });
"""
NAMELESS = """
const named = (node) => node.labels?.length || node.getAttribute("aria-label") || node.innerText?.trim();
return [...document.querySelectorAll("input, select, button, [role=img], [role=region]")]
  .filter((node) => !named(node) && !node.matches(".photo")).map((node) => node.outerHTML);
"""  # a photo's card gets its words when it comes into view


@dataclass(frozen=True)
class Case:
    """A page and what it was made from."""

    path: Path
    rows: Sequence[Row]
    predictions: Sequence[PredictionRow]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def write_case(
    path: Path, rows: Sequence[Row], predictions: Sequence[PredictionRow], root: Path | str = "nowhere"
) -> Case:
    metrics = evaluate(rows, predictions, bootstrap_samples=0)
    write_report(path, rows, predictions, metrics, image_root=root, title="Test")
    return Case(path, rows, predictions)


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Overlapping boxes and tied scores, without photos."""
    rows = crowded_rows(24)
    return write_case(tmp_path_factory.mktemp("crowd") / "page.html", rows, perturbed(rows))


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory, shared_dir: Path) -> Case:
    """Real photos of blood cells with perturbed predictions."""
    folder, source = tmp_path_factory.mktemp("cells"), shared_dir / "data" / "bccd_voc"
    convert("pascal_voc", source, folder / "rows", taxonomy=Taxonomy())

    rows = read_rows(folder / "rows" / "test.jsonl")[:16]
    return write_case(folder / "page.html", rows, perturbed(rows), source)


def python_counts(case: Case, threshold: float) -> dict[str, Any]:
    """The same counts by the scorer, and by what the comparison pictures draw."""
    metrics = evaluate(case.rows, case.predictions, score_threshold=threshold, bootstrap_samples=0)
    said, wrong = metrics["predictions_at_threshold"], metrics["false_positives"]
    predicted = {row.images[0]: row.predictions for row in case.predictions}
    marks: Counter[str] = Counter()
    for row in case.rows:
        truth = sorted(row.objects, key=lambda item: (item.box, item.desc))
        found = sorted(predicted.get(row.images[0], ()), key=_position)
        shown = sorted((item for item in found if item.score >= threshold), key=lambda item: -item.score)
        marks.update(mark.state for mark in compare_marks(truth, shown, (row.width, row.height))[0])
    return {
        "found": said - wrong,
        "wrong": marks[WRONG],
        "missed": marks[ALONE],
        "fp": wrong,
        "precision": f"{(said - wrong) / said:.3f}" if said else "–",
        "recall": f"{(said - wrong) / metrics['truth_boxes']:.3f}",
    }


def page_counts(browser: Browser) -> dict[str, Any]:
    names = ("found", "wrong", "missed", "fp", "precision", "recall")
    texts = {name: browser.text(f"#count-{name}") for name in names}
    return {name: text if name in ("precision", "recall") else int(text) for name, text in texts.items()}


def names(browser: Browser) -> list[str]:
    """Photos in the gallery, in order; not yet drawn ones too."""
    return list(browser.run("return [...document.querySelectorAll('#gallery > button')].map(b => b.dataset.number)"))


def to_photos(browser: Browser) -> None:
    """Scroll to the gallery and wait until the first card is drawn."""
    browser.run("document.getElementById('photos').scrollIntoView()")
    browser.wait("document.querySelector('#gallery > button .no-photo')")


def test_verdicts_show_mistakes_first_and_open_their_photos(browser: Browser, tmp_path: Path) -> None:
    rows = crowded_rows(5)
    images = [row.images[0] for row in rows]
    pairs = [("pass", "pass"), ("fail", "fail"), ("fail", "pass"), ("pass", "fail"), ("fail", None)]
    verdicts = [
        {"group": f"site {n}", "images": [images[n]], "verdict": verdict, "truth": truth, "reason": f"why {n}",
         "evidence": [{"rule": "r", "photos": [{"image": images[n], "boxes": [{"bbox_2d": [1, 1, 9, 9]}]}]}] * (n == 2)}
        for n, (verdict, truth) in enumerate(pairs)
    ]  # fmt: skip
    found = perturbed(rows)
    metrics = evaluate(rows, found, bootstrap_samples=0)
    page = tmp_path / "page.html"
    write_report(page, rows, found, metrics, image_root="nowhere", title="Test", verdicts=verdicts)
    browser.open(page)
    groups = browser.run("return [...document.querySelectorAll('#verdicts tbody th')].map(cell => cell.innerText)")
    assert groups == ["site 3", "site 2", "site 1", "site 4", "site 0"]
    assert browser.text("#verdict-sums") == "5 groups · 2 pass · 1 false passes of 2 · 1 false fails of 2"
    assert "false pass" in browser.text("#verdicts tbody tr") and "why 3" in browser.text("#verdicts tbody tr")
    browser.set("name", "no photo has this name")
    second = "document.querySelectorAll('.thumbnail')[1]"
    browser.run(f"{second}.scrollIntoView({{block: 'center'}})")
    browser.wait(f"{second}.querySelector('.edge.fp')")
    browser.run(f"{second}.click()")
    assert browser.text("#detail-name") == images[2]
    browser.press("ESCAPE")
    browser.wait(f"document.activeElement === {second}")
    assert browser.said() == []


# ---------------------------------------------------------------- counts


@pytest.mark.parametrize("which", ["crowd", "cells"])
def test_the_slider_recounts_as_the_scorer_counts(which: str, browser: Browser, request: pytest.FixtureRequest) -> None:
    case = request.getfixturevalue(which)
    browser.open(case.path)
    assert page_counts(browser) == python_counts(case, 0.3)  # what it opens with
    for threshold in THRESHOLDS:
        browser.set("threshold", threshold)
        assert page_counts(browser) == python_counts(case, threshold), threshold
    assert browser.said() == []


def test_the_slider_moves_by_keys_and_the_boxes_with_it(browser: Browser, crowd: Case) -> None:
    browser.open(crowd.path)
    drawn = (
        "return document.querySelectorAll('#gallery .object.fp, #gallery .object.found, #gallery .object.wrong').length"
    )
    to_photos(browser)
    browser.run("document.getElementById('threshold').focus({preventScroll: true})")
    browser.press("END")
    assert browser.text("#threshold-value") == "1"
    few = browser.run(drawn)
    browser.press("HOME", "ARROW_RIGHT")
    assert browser.text("#threshold-value") == "0.01" and browser.run(drawn) > few
    assert page_counts(browser) == python_counts(crowd, 0.01)


def test_each_description_is_counted_and_the_columns_add_up(browser: Browser, crowd: Case) -> None:
    browser.open(crowd.path)
    lines = browser.run(
        "return [...document.querySelectorAll('#descriptions tbody tr')].map(r => [...r.cells].map(c => c.innerText))"
    )
    truth = Counter(item.desc for row in crowd.rows for item in row.objects)
    assert {line[0]: int(line[1]) for line in lines} == truth
    assert [int(line[1]) for line in lines] == sorted(truth.values())  # rare ones first
    counts = page_counts(browser)
    for column, name in enumerate(("found", "wrong", "missed", "fp"), start=2):
        assert sum(int(line[column]) for line in lines) == counts[name]
    browser.run("document.querySelectorAll('#descriptions thead button')[6].click()")
    recall = browser.run(
        "return [...document.querySelectorAll('#descriptions tbody tr')].map(r => +r.cells[6].innerText)"
    )
    assert recall == sorted(recall, reverse=True) and len(set(recall)) > 1


# ---------------------------------------------------------------- gallery


def test_filters_show_the_photos_they_name(browser: Browser, crowd: Case) -> None:
    browser.open(crowd.path)
    everything = names(browser)
    assert len(everything) == len(crowd.rows)
    browser.set("name", "PHOTO_00")
    assert sorted(names(browser), key=int) == [str(n) for n in range(10)]
    assert browser.text("#shown") == f"10 of {len(crowd.rows)} photos"
    browser.set("name", "")
    rare = "螺丝连接点/BBU安装螺丝/未拧紧"
    browser.set("description", rare)
    browser.set("threshold", 1)  # so that hardly a prediction is in the way
    loose = {n for n, row in enumerate(crowd.rows) if rare in row.labels}
    loose |= {
        n for n, row in enumerate(crowd.predictions) if any((i.desc, i.score) == (rare, 1) for i in row.predictions)
    }
    assert {int(n) for n in names(browser)} == loose and 0 < len(loose) < len(crowd.rows)
    browser.set("description", "螺丝连接点")  # a beginning of many
    assert loose < {int(n) for n in names(browser)}
    browser.set("name", "no such photo")
    assert names(browser) == [] and browser.text("#no-photos") == "No photo passes these filters."
    browser.set("name", "")
    browser.set("description", "")
    browser.set("threshold", 0.3)
    assert names(browser) == everything


@pytest.mark.parametrize(
    ("kind", "selector"), [("missed", ".object.missed"), ("wrong", ".object.wrong"), ("fp", ".object.fp")]
)
def test_kinds_of_mistake_agree_with_the_boxes(kind: str, selector: str, browser: Browser, tmp_path: Path) -> None:
    rows = crowded_rows(12, objects=2)
    case = write_case(tmp_path / "page.html", rows, perturbed(rows, fppi=0.5))
    browser.open(case.path)
    browser.run("document.getElementById('gallery').style.gridTemplateColumns = 'repeat(6, 1fr)'")  # all in view
    to_photos(browser)
    browser.wait("document.querySelectorAll('#gallery .no-photo').length === 12")
    having = f"[...document.querySelectorAll('#gallery > button')].filter((card) => card.querySelector({selector!r}))"
    wanted = browser.run(f"return {having}.map((card) => card.dataset.number)")
    browser.set("kind", kind)
    assert sorted(names(browser)) == sorted(wanted) and 0 < len(wanted) < 12


def test_the_photo_that_misses_the_rarest_object_comes_first(browser: Browser, tmp_path: Path) -> None:
    common, rare = "螺丝/安装正确", "螺丝/未拧紧"
    boxes = [(20.0 * n, 0.0, 20.0 * n + 15, 15.0) for n in range(4)]
    descs = {"a.jpg": [common] * 4, "b.jpg": [common] * 3, "c.jpg": [common, rare], "d.jpg": [common, rare, rare]}
    rows = [
        Row((name,), tuple(ObjectRow(d, "bbox_2d", box) for d, box in zip(said, boxes, strict=False)), 100, 50)
        for name, said in descs.items()
    ]
    right = [
        PredictionRow(r.images, 100, 50, tuple(PredictedObject(o.box, o.desc, 0.9, 0.9) for o in r.objects))
        for r in rows
    ]
    missing = [PredictionRow(rows[0].images, 100, 50), right[1], PredictionRow(rows[2].images, 100, 50), right[3]]
    case = write_case(tmp_path / "page.html", rows, missing)
    browser.open(case.path)
    to_photos(browser)
    assert names(browser) == ["2", "0", "1", "3"]  # the rare object, four common ones, then nothing missed
    assert browser.text("#gallery > button .lost") == f"not found: {rare}"
    browser.set("order", "name")
    assert names(browser) == ["0", "1", "2", "3"]


def test_arrows_go_photo_by_photo_and_enter_opens_one(browser: Browser, crowd: Case) -> None:
    browser.open(crowd.path)
    order = names(browser)
    focused = "return document.activeElement.dataset.number"
    browser.press("ARROW_RIGHT", "ARROW_RIGHT", "ARROW_RIGHT")
    assert browser.run(focused) == order[2]
    browser.press("ARROW_LEFT")
    assert browser.run(focused) == order[1]
    browser.press("ENTER")
    browser.wait("document.getElementById('detail').open")
    assert browser.text("#detail-name") == f"photo_{int(order[1]):03d}.jpg"
    browser.press("ARROW_RIGHT")
    assert browser.text("#detail-name") == f"photo_{int(order[2]):03d}.jpg"
    browser.press("ESCAPE")
    browser.wait("!document.getElementById('detail').open")
    browser.wait(f"document.activeElement.dataset.number === '{order[2]}'")  # where one was reading
    browser.run("document.getElementById('name').focus()")
    browser.press("ARROW_RIGHT")  # belongs to the text field
    assert browser.run("return document.activeElement.id") == "name"
    assert browser.said() == []


def test_the_detail_view_lists_every_object_and_zooms_to_it(browser: Browser, crowd: Case) -> None:
    browser.open(crowd.path)
    browser.run("document.querySelector('#gallery > button').click()")
    number = int(names(browser)[0])
    listed = browser.run("return [...document.querySelectorAll('#objects button')].map(b => b.className)")
    alone = Case(crowd.path, [crowd.rows[number]], [crowd.predictions[number]])
    counts = python_counts(alone, 0.3)
    wanted = {"found": counts["found"], "wrong": counts["wrong"], "missed": counts["missed"]}
    wanted["fp"] = counts["fp"] - counts["wrong"]
    assert Counter(listed) == Counter({name: n for name, n in wanted.items() if n})
    assert browser.run("return document.querySelectorAll('#tags > g').length") == len(listed)
    whole = browser.run("return document.getElementById('canvas').getAttribute('viewBox')")
    browser.run("document.querySelector('#objects button').click()")
    assert browser.run("return document.getElementById('canvas').viewBox.baseVal.width") < float(whole.split()[2])
    browser.run("document.querySelector('#objects button').click()")
    assert browser.run("return document.getElementById('canvas').getAttribute('viewBox')") == whole
    for name in ("said", "truth"):
        browser.run(f"document.querySelector('#detail input[data-show={name}]').click()")
    assert browser.run("return document.querySelectorAll('#canvas .edge, #gallery .edge, #tags > g').length") == 0


# ---------------------------------------------------------------- charts


def test_choosing_a_description_shows_its_curve_and_its_photos(browser: Browser, crowd: Case) -> None:
    browser.open(crowd.path)
    before = browser.run("return document.querySelector('#curve path.first').getAttribute('d')")
    browser.run("document.querySelector('#descriptions tbody button').click()")
    desc = browser.text("#descriptions tbody tr th")
    assert desc in browser.text("#curve figcaption") and "class-agnostic" in browser.text("#curve figcaption")
    assert browser.run("return document.querySelector('#curve path.first').getAttribute('d')") != before
    assert browser.run("return document.getElementById('description').value") == desc
    assert len(names(browser)) < len(crowd.rows)


def test_the_threshold_chart_passes_through_the_counts(browser: Browser, crowd: Case) -> None:
    browser.open(crowd.path)
    browser.set("threshold", 0.6)
    marker, recall = (
        browser.run(f"return document.querySelector('#thresholds path.{name}').getAttribute('d')")
        for name in ("marker", "second")
    )
    x = re.match(r"M([\d.]+),", marker)
    assert x is not None
    (y,) = [float(point[1]) for point in re.findall(r"([\d.]+),([\d.]+)", recall) if point[0] == x[1]]
    height = {value: float(re.findall(r",([\d.]+)", marker)[end]) for value, end in ((0, 0), (1, 1))}
    assert (height[0] - y) / (height[0] - height[1]) == pytest.approx(float(browser.text("#count-recall")), abs=2e-3)


# ---------------------------------------------------------------- safety, looks, size


def test_the_page_asks_for_nothing_and_complains_of_nothing(browser: Browser, cells: Case) -> None:
    browser.requests()
    browser.open(cells.path)
    browser.run("window.scrollTo(0, document.body.scrollHeight)")
    browser.wait("document.querySelectorAll('#gallery image').length")
    browser.run("document.querySelectorAll('#gallery > button')[3].click()")
    asked = browser.requests()
    assert asked and {url.split(":")[0] for url in asked} <= {"file", "data"}
    assert [url for url in asked if url.startswith("file:")] == [cells.path.as_uri()]
    assert browser.said() == []


def test_hostile_descriptions_are_shown_and_never_run(
    browser: Browser, make_photo: MakePhoto, photo_folder: Path, tmp_path: Path
) -> None:
    evil = '<img src=x onerror="window.hacked=1"></script><script>window.hacked=1</script>/<!--\'&lt;'
    name = "x' onload=window.hacked=1 <b>.jpg"
    make_photo(name)
    rows = [Row((name,), (ObjectRow(evil, "bbox_2d", (1, 2, 30, 40)),), 112, 84), Row(("b.jpg",), (), 10, 10)]
    said = [
        PredictionRow((name,), 112, 84, (PredictedObject((1, 2, 30, 40), evil + "/x", 0.9, 0.9),)),
        PredictionRow(("b.jpg",), error=evil),
    ]
    browser.open(write_case(tmp_path / "page.html", rows, said, photo_folder).path)
    browser.run("document.querySelector('#gallery > button').click()")
    assert browser.text("#detail-name") == name and evil in browser.text("#objects")
    assert evil in browser.text("#descriptions") and evil in browser.run(
        "return document.querySelector('#confusions').innerText"
    )
    assert browser.run("return [window.hacked ?? null, document.querySelectorAll('img, b b').length]") == [None, 0]
    assert browser.said() == []


def test_chinese_is_drawn_with_glyphs_and_not_with_boxes(browser: Browser, crowd: Case) -> None:
    pytest.importorskip("fontTools")
    browser.open(crowd.path)
    browser.wait("document.fonts.status === 'loaded'")
    drawn = browser.run(
        """
        const font = "40px " + getComputedStyle(document.body).fontFamily;
        return [...arguments[0]].map((glyph) => {
          const canvas = Object.assign(document.createElement("canvas"), {width: 60, height: 60});
          const pen = canvas.getContext("2d");
          pen.font = font;
          pen.fillText(glyph, 5, 45);
          return canvas.toDataURL();
        });
        """,
        "螺丝未拧紧\U000f0000",  # the last one is a private-use character: what a missing glyph looks like
    )
    assert len(set(drawn)) == 6


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_in_light_and_dark(dark: bool, browser: Browser, crowd: Case) -> None:
    browser.open(crowd.path, dark=dark)
    assert browser.run("return document.documentElement.dataset.theme") == ("dark" if dark else "light")
    contrasts = browser.run(CONTRASTS)
    assert len(contrasts) > 100
    assert [entry for entry in contrasts if entry[0] < 4.5] == []  # WCAG 2.1, AA


def test_the_switch_turns_the_colours_and_every_control_has_a_name(browser: Browser, crowd: Case) -> None:
    browser.open(crowd.path)
    paper = browser.run("return getComputedStyle(document.body).backgroundColor")
    browser.run("document.getElementById('theme').click()")
    assert browser.run("return document.documentElement.dataset.theme") == "dark"
    assert browser.run("return getComputedStyle(document.body).backgroundColor") != paper
    assert browser.run(NAMELESS) == []


def test_nothing_to_show_is_said_in_words(browser: Browser, tmp_path: Path) -> None:
    rows = crowded_rows(3)
    empty = [Row(row.images, (), row.width, row.height) for row in rows]
    cases = {
        "no predictions": (rows, [], "No predictions: there is no threshold to choose.", "#thresholds"),
        "no truth": (empty, perturbed(rows), "No annotated objects: there is nothing to find.", "#curve"),
        "neither": (empty, [], "No predictions: no score can be judged.", "#reliability"),
        "no photos": ([], [], "There are no photos.", "#no-photos"),
    }
    for name, (truth, predictions, words, selector) in cases.items():
        browser.open(write_case(tmp_path / f"{name}.html", truth, predictions).path)
        assert words in browser.text(selector), name
        assert page_counts(browser)["missed"] == sum(len(row.objects) for row in truth)
        if truth:
            browser.run("document.querySelector('#gallery > button').click()")
            assert "Photo not shown" in browser.text("#detail-problem")
        assert browser.said() == [], name


def test_many_photos_stay_usable(browser: Browser, make_photo: MakePhoto, photo_folder: Path, tmp_path: Path) -> None:
    source = make_photo("photo.jpg", (320, 240))
    rows = crowded_rows(BIG, objects=8)
    for row in rows:
        os.link(source, photo_folder / row.images[0])
    case = write_case(tmp_path / "page.html", rows, perturbed(rows, fppi=20), photo_folder)
    assert case.path.stat().st_size < 40e6
    browser.open(case.path)
    assert float(browser.run("return document.documentElement.dataset.ready")) < 2000  # milliseconds
    to_photos(browser)
    started = time.monotonic()
    browser.set("threshold", 0.5)
    assert time.monotonic() - started < 1  # seconds, the way through the driver included
    assert page_counts(browser) == python_counts(case, 0.5)
    most = 0
    for part in range(11):
        browser.run(f"window.scrollTo(0, document.body.scrollHeight * {part} / 10)")
        time.sleep(0.05)
        most = max(most, browser.run("return document.querySelectorAll('#gallery image').length"))
    browser.wait("document.querySelector('#gallery > button:last-child image')")
    assert 0 < most < 100  # what was scrolled past is not kept
    assert browser.run("return performance.memory.usedJSHeapSize") < 300e6
