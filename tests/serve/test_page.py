"""The page in a real browser, with a real server and a tiny real model."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bbu.records import PredictedObject, parse_prediction_row, parse_row
from bbu.serve.server import address, listen
from tests.serve.browser import chromium
from tests.serve.conftest import photo_bytes, picture

if TYPE_CHECKING:
    from bbu.inference import Inference

SCORES = (0.9, 0.7, 0.5, 0.2)
DESCRIPTION = "螺丝连接点/BBU安装螺丝/<b>未拧紧</b>"


@pytest.fixture
def url(inference: Inference, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A running server. The tiny model has learned nothing, so its boxes get descriptions and scores to look at."""
    import uvicorn

    from bbu.serve.app import create_app

    really = inference.predictor.predict_photos

    def scored(photos: Any, teachers: Any) -> list[list[PredictedObject]]:
        found = really(photos, teachers)[0]
        caption = f"{DESCRIPTION}/{len(teachers)}"
        return [[PredictedObject(item.box, caption, s, s) for item, s in zip(found, SCORES, strict=False)]]

    monkeypatch.setattr(inference.predictor, "predict_photos", scored)
    with closing(listen("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(create_app(inference, "tiny/model"), log_level="warning"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield address(listener)
        server.should_exit = True
        thread.join()


@pytest.fixture
def browser(url: str, tmp_path: Path) -> Iterator[Any]:
    with chromium(tmp_path / "profile") as found:
        permissions = ["clipboardReadWrite", "clipboardSanitizedWrite"]
        found.execute_cdp_cmd("Browser.grantPermissions", {"origin": url, "permissions": permissions})
        downloads = {"behavior": "allow", "downloadPath": str(tmp_path / "downloads")}
        found.execute_cdp_cmd("Browser.setDownloadBehavior", downloads)
        found.get(url)
        yield found


def until(condition: Callable[[], Any], seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.05)
    return value


def get(browser: Any, name: str) -> Any:
    return browser.find_element("id", name)


def find(browser: Any, selector: str) -> list[Any]:
    return list(browser.find_elements("css selector", selector))


def copied(browser: Any, button: str) -> str:
    get(browser, button).click()
    until(lambda: "copied" in get(browser, "status").text)
    script = "navigator.clipboard.readText().then(arguments[0], (error) => arguments[0](String(error)))"
    return str(browser.execute_async_script(script))


def slide(browser: Any, value: float) -> None:
    script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
    browser.execute_script(script, get(browser, "threshold"), value)


def test_a_visit_from_photo_to_example(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(photo_bytes(1, (168, 112)))
    (tmp_path / "b.png").write_bytes(photo_bytes(2, (112, 84)))
    until(lambda: get(browser, "facts").text == "tiny/model on cpu")

    # a photo: boxes, captions as text, scores
    get(browser, "photo").send_keys(str(tmp_path / "a.png"))
    until(lambda: len(find(browser, "#canvas .object")) == 3)
    assert get(browser, "count").text == "3 objects"
    assert find(browser, "#objects li")[0].text.splitlines() == ["1", f"{DESCRIPTION}/0", "0.90"]
    assert "168 × 112 pixels" in get(browser, "status").text and "seconds" in get(browser, "status").text

    # the threshold asks nobody
    asked = "return performance.getEntriesByType('resource').filter((entry) => entry.name.includes('predict')).length"
    assert browser.execute_script(asked) == 1
    for value, count in ((0.0, 4), (0.6, 2), (1.0, 0), (0.3, 3)):
        slide(browser, value)
        assert len(find(browser, "#canvas .object")) == len(find(browser, "#objects li")) == count
    assert browser.execute_script(asked) == 1

    # what can be taken along
    row = parse_prediction_row(json.loads(copied(browser, "copy")), "clipboard")
    assert row.images == ("a.png",) and [item.score for item in row.predictions] == [0.9, 0.7, 0.5]
    get(browser, "save").click()
    saved = until(lambda: list((tmp_path / "downloads").glob("a-objects.png")))
    assert picture(saved[0].read_bytes()).size == (1200, 800)

    # corrected with the keyboard, and used as example
    get(browser, "correct").click()
    find(browser, "#objects input")[0].clear()
    find(browser, "#objects input")[0].send_keys("screw/tight")
    get(browser, "keep").click()
    assert get(browser, "problem").get_attribute("hidden") is not None
    first = parse_row(json.loads(copied(browser, "rows")), "clipboard")
    assert "screw/tight" in first.labels and (first.width, first.height, len(first.objects)) == (168, 112, 3)
    assert len(find(browser, "#examples li")) == 1
    get(browser, "photo").send_keys(str(tmp_path / "b.png"))
    until(lambda: "shown 1 example" in get(browser, "status").text)
    assert find(browser, "#objects li")[0].text.splitlines()[1] == f"{DESCRIPTION}/1"

    assert browser.get_log("browser") == []


def test_boxes_are_drawn_moved_and_removed(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    (tmp_path / "a.png").write_bytes(photo_bytes(1, (168, 112)))
    get(browser, "photo").send_keys(str(tmp_path / "a.png"))
    until(lambda: len(find(browser, "#canvas .object")) == 3)
    get(browser, "correct").click()
    while find(browser, "#objects .edit button"):
        find(browser, "#objects .edit button")[0].click()
    canvas = get(browser, "canvas")
    wide, high = canvas.size["width"] / 4, canvas.size["height"] / 4
    ActionChains(browser).move_to_element(canvas).move_by_offset(-wide, -high).click_and_hold().move_by_offset(
        wide, high
    ).release().perform()
    boxes = "return state.objects.map((object) => object.box)"
    assert browser.execute_script(boxes)[0] == pytest.approx([42, 28, 84, 56], abs=1)

    get(browser, "keep").click()
    assert "Object 1 has no description" in get(browser, "problem").text
    first = find(browser, "#canvas .object")[0]
    browser.execute_script("arguments[0].focus()", first)
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    browser.switch_to.active_element.send_keys(Keys.SHIFT, Keys.ARROW_DOWN)
    assert browser.execute_script(boxes)[0] == pytest.approx([43, 28, 85, 57], abs=1)
    ActionChains(browser).drag_and_drop_by_offset(find(browser, "#canvas .handle")[3], wide, high).perform()
    assert browser.execute_script(boxes)[0] == pytest.approx([43, 28, 127, 85], abs=2)
    browser.execute_script("document.querySelector('#canvas .object').focus()")
    browser.switch_to.active_element.send_keys(Keys.DELETE)
    assert browser.execute_script(boxes) == []
    get(browser, "discard").click()
    assert len(find(browser, "#canvas .object")) == 3


def test_examples_come_from_files_and_mistakes_are_said_in_words(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(photo_bytes(1))
    (tmp_path / "t.png").write_bytes(photo_bytes(2, (84, 84)))
    row = {"images": ["deep/t.png"], "objects": [{"desc": "x", "bbox_2d": [1, 2, 30, 40]}], "width": 84, "height": 84}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n\n", encoding="utf-8")
    (tmp_path / "note.png").write_text("no photo", encoding="utf-8")

    get(browser, "files").send_keys(f"{tmp_path / 't.png'}\n{tmp_path / 'rows.jsonl'}")
    until(lambda: find(browser, "#examples li"))
    get(browser, "photo").send_keys(str(tmp_path / "a.png"))
    until(lambda: "shown 1 example" in get(browser, "status").text)

    get(browser, "files").send_keys(str(tmp_path / "a.png"))
    until(lambda: "together" in get(browser, "problem").text)
    find(browser, "#examples button")[0].click()
    assert not find(browser, "#examples li")
    get(browser, "again").click()
    until(lambda: "seconds" in get(browser, "status").text and "example" not in get(browser, "status").text)

    get(browser, "photo").send_keys(str(tmp_path / "note.png"))
    until(lambda: "note.png: is not a photo" in get(browser, "problem").text)
    assert not find(browser, "#objects li") and not find(browser, "#canvas .object")
