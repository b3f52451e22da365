"""Comparison pictures: legible Chinese, nothing outside the picture, and the right verdicts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from bbu.drawing import fonts, palette, panels
from bbu.drawing.fonts import cjk_font
from bbu.drawing.palette import palette_for
from bbu.drawing.panels import AGREES, ALONE, PANEL, WRONG
from bbu.drawing.tags import place_tags, shared_area
from bbu.errors import UserError
from bbu.evaluation import pictures
from bbu.evaluation.pictures import draw_comparison, save_pictures
from bbu.images import open_image
from bbu.records import ObjectRow, PredictedObject, PredictionRow, Row

SCREW = "螺丝连接点/BBU安装螺丝/连接正确"
LOOSE = "螺丝连接点/BBU安装螺丝/未拧紧"


def photo(width: int = 320, height: int = 240) -> Image.Image:
    return Image.new("RGB", (width, height), (120, 124, 128))


def box(desc: str, *points: float) -> ObjectRow:
    return ObjectRow(desc, "bbox_2d", points)


def said(desc: str, score: float, *points: float) -> PredictedObject:
    x1, y1, x2, y2 = points
    return PredictedObject((x1, y1, x2, y2), desc, score, score)


def crowd(count: int, width: int, height: int, seed: int = 0) -> list[ObjectRow]:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.8, (count, 2)) * (width, height)
    high = np.minimum(low + rng.uniform(0.02, 0.3, (count, 2)) * (width, height), (width, height))
    kinds = ("螺丝连接点", "bbu基带处理单元", "挡风板", "标签贴纸", "线缆")
    return [box(f"{kinds[i % 5]}/状态{i}", *low[i].tolist(), *high[i].tolist()) for i in range(count)]


def glyph(text: str) -> bytes:
    image = Image.new("L", (40, 40))
    ImageDraw.Draw(image).text((4, 0), text, fill=255, font=cjk_font(28))
    return image.tobytes()


def test_the_typeface_has_the_characters_of_the_descriptions() -> None:
    missing = glyph("\U000f0000")  # a private-use character: the empty box that stands for "no such glyph"
    words = set(
        "螺丝连接点安装正确错误未拧紧地排处露铜生锈光缆和尾纤线机柜端基带处理单元华为中兴爱立信挡风板缺失标签贴纸可识别无法蛇形管铠≠=…/"
    )
    drawn = {word: glyph(word) for word in words}
    assert all(pixels != missing for pixels in drawn.values())
    assert any(glyph("螺"))
    assert len(set(drawn.values())) == len(words)


def test_a_missing_typeface_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "PACKAGE", "no_such_font_package")
    cjk_font.cache_clear()
    with pytest.raises(UserError, match="pip install pylopdf-fonts-zh-cn"):
        cjk_font(31)


def test_verdicts_match_one_to_one() -> None:
    truth = [box(SCREW, 10, 10, 50, 50), box(LOOSE, 100, 10, 140, 50), box(SCREW, 200, 10, 240, 50)]
    shown = [
        said(SCREW, 0.9, 11, 10, 50, 50),  # agrees
        said(SCREW, 0.8, 100, 10, 140, 50),  # right place, wrong caption
        said(SCREW, 0.7, 10, 11, 50, 50),  # the first screw again
    ]
    left, right = pictures.compare_marks(truth, shown, (320, 240))
    assert [mark.state for mark in left] == [AGREES, WRONG, ALONE]
    assert [mark.note for mark in left] == ["= 1", "≠ 2", "missed"]
    assert [mark.state for mark in right] == [AGREES, WRONG, ALONE]
    assert [mark.note for mark in right] == ["0.90  = 1", "0.80  ≠ 2", "0.70  false positive"]


def test_the_right_caption_wins_over_a_higher_scoring_wrong_one() -> None:
    truth = [box(SCREW, 10, 10, 50, 50)]
    shown = [said(LOOSE, 0.9, 10, 10, 50, 50), said(SCREW, 0.5, 10, 10, 50, 50)]
    left, right = pictures.compare_marks(truth, shown, (320, 240))
    assert left[0].note == "= 2"
    assert [mark.state for mark in right] == [ALONE, AGREES]


def test_a_flat_line_can_be_matched() -> None:
    truth = [ObjectRow("线缆/铠装", "line", (10.0, 50.0, 90.0, 50.0))]
    left, _ = pictures.compare_marks(truth, [said("线缆/铠装", 0.9, 10, 50, 90, 50)], (320, 240))
    assert left[0].state == AGREES


def test_predictions_under_the_threshold_are_not_drawn() -> None:
    faint = [said(SCREW, 0.2, 10, 10, 50, 50)]
    hidden = draw_comparison(photo(), [], faint, threshold=0.3)
    half = hidden.width // 2
    below_title = panels.MARGIN + panels.TITLE + 8
    nothing = draw_comparison(photo(), [], [], threshold=0.3)
    body = (half, below_title, hidden.width, hidden.height)
    assert hidden.crop(body).tobytes() == nothing.crop(body).tobytes()
    assert draw_comparison(photo(), [], faint, threshold=0.1).crop(body).tobytes() != nothing.crop(body).tobytes()


@pytest.mark.parametrize("size", [(224, 224), (448, 224), (1440, 1920), (900, 6), (6, 900), (1, 1)])
@pytest.mark.parametrize("count", [0, 1, 43])
def test_any_photo_and_any_number_of_objects(size: tuple[int, int], count: int) -> None:
    truth = crowd(count, *size)
    shown = [PredictedObject(item.box, item.desc, 0.5, 0.5) for item in crowd(count, *size, seed=1)]
    picture = draw_comparison(photo(*size), truth, shown, threshold=0.3)
    assert picture.mode == "RGB"
    assert picture.width >= 2 * PANEL >= 1280
    edge = np.asarray(picture)[:, [0, -1]]  # the margin stays blank: nothing left the panels sideways
    assert (edge == palette.PAPER).all()
    assert (np.asarray(picture)[[0, -1]] == palette.PAPER).all()


def test_every_kind_of_outline_and_boxes_beyond_the_photo() -> None:
    truth = [
        ObjectRow("标签贴纸/可识别", "poly", (20.0, 30.0, 120.0, 10.0, 130.0, 60.0, 30.0, 80.0)),
        ObjectRow("线缆/蛇形管", "line", (20.0, 200.0, 90.0, 120.0, 200.0, 210.0)),
    ]
    plain = np.asarray(draw_comparison(photo(), [], [], threshold=0.3))
    picture = np.asarray(draw_comparison(photo(), truth, [said(SCREW, 0.9, -50, -50, 900, 900)], threshold=0.3))
    field = (slice(80, 500), slice(panels.MARGIN, panels.MARGIN + PANEL))
    assert (picture[field] != plain[field]).any()


def test_long_descriptions_are_shortened_to_their_column() -> None:
    text = panels._fitted("螺丝连接点/" * 30 + "\n备注", 200)
    assert text.endswith("…")
    assert cjk_font(panels.TEXT).getlength(text) <= 200
    draw_comparison(photo(), [box("备注" * 200, 1, 1, 20, 20)], [], threshold=0.3)


@pytest.mark.parametrize("seed", range(5))
def test_tags_stay_inside_and_apart(seed: int) -> None:
    field = (0.0, 40.0, 720.0, 400.0)
    anchors = [item.box for item in crowd(43, 720, 400, seed)]
    tags = place_tags(anchors, [(24, 18)] * 43, field)
    for index, (x1, y1, x2, y2) in enumerate(tags):
        assert field[0] <= x1 < x2 <= field[2]
        assert field[1] <= y1 < y2 <= field[3]
        assert not any(shared_area(tags[index], other) for other in tags[:index])


def test_tags_of_objects_at_one_spot_spread_out() -> None:
    tags = place_tags([(100.0, 100.0, 110.0, 110.0)] * 43, [(24, 18)] * 43, (0.0, 0.0, 720.0, 400.0))
    assert not any(shared_area(a, b) for i, a in enumerate(tags) for b in tags[:i])


def test_kinds_have_distinct_colours_that_do_not_depend_on_order() -> None:
    kinds = ["螺丝连接点", "bbu基带处理单元", "挡风板", "标签贴纸", "线缆", "机柜空间"]
    colours = palette_for(kinds)
    assert len(set(colours.values())) == len(kinds)
    assert palette_for(kinds[::-1]) == colours


def written_rows(root: Path, count: int) -> tuple[list[Row], list[PredictionRow]]:
    rows, predictions = [], []
    for index in range(count):
        name = f"photos/{index}.jpg"
        (root / "photos").mkdir(exist_ok=True)
        photo().save(root / name)
        rows.append(Row((name,), (box(SCREW, 10, 10, 50, 50),), 320, 240))
        predictions.append(PredictionRow((name,), 320, 240, (said(SCREW, 0.9, 10, 10, 50, 50),)))
    return rows, predictions


def test_pictures_are_written_alike_each_time(tmp_path: Path) -> None:
    rows, predictions = written_rows(tmp_path, 5)
    first = save_pictures(rows, predictions, tmp_path, tmp_path / "a", limit=3)
    again = save_pictures(rows[::-1], predictions[::-1], tmp_path, tmp_path / "b", limit=3)
    assert [path.name for path in first] == ["001_0.png", "002_1.png", "003_3.png"]
    assert sorted(tmp_path.joinpath("a").iterdir()) == first
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    assert open_image(first[0]).format == "PNG"


def test_photos_without_a_usable_prediction_are_left_out(tmp_path: Path) -> None:
    rows, predictions = written_rows(tmp_path, 3)
    predictions = [PredictionRow(predictions[0].images, error="damaged"), predictions[2]]
    assert [path.name for path in save_pictures(rows, predictions, tmp_path, tmp_path / "out")] == ["001_2.png"]


def test_no_photos_no_pictures(tmp_path: Path) -> None:
    assert save_pictures([], [], tmp_path, tmp_path / "out") == []


def test_a_photo_of_another_size_is_refused(tmp_path: Path) -> None:
    rows, predictions = written_rows(tmp_path, 1)
    photo(100, 100).save(tmp_path / "photos/0.jpg")
    with pytest.raises(UserError, match="100x100"):
        save_pictures(rows, predictions, tmp_path, tmp_path / "out")


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, predictions = written_rows(tmp_path, 1)

    def fail(*args: object, **named: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(UserError, match=r"001_0\.png: cannot be written: disk full"):
        save_pictures(rows, predictions, tmp_path, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []
