"""Mosaic and copy-paste: boxes contain their objects, little is hidden, and no answer of the sample leaks in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bbu.config import AugmentConfig, CurriculumConfig
from bbu.data.augment import Augmenter
from bbu.data.augment.objects import share_inside
from bbu.data.photo import Photo, open_photo
from bbu.errors import ConfigError, ImageError
from bbu.records import ObjectRow, Row

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
MOSAIC = AugmentConfig(mosaic=1.0)
PASTE = AugmentConfig(copy_paste=1.0, paste_margin=0.0, paste_cover=0.0)


@pytest.fixture
def pool(photo_folder: Path) -> list[Row]:
    """Four black photos of different sizes with two objects each, in one colour, which is their description."""
    rows = []
    for number, (name, colour) in enumerate(COLOURS.items()):
        width, height = 200 + 20 * number, 160 - 10 * number
        image = Image.new("RGB", (width, height))
        boxes = [(20, 20, 50, 44), (120, 90, 160, 120)]
        for box in boxes:
            image.paste(colour, box)
        image.save(photo_folder / f"{name}.png")
        objects = tuple(ObjectRow(name, "bbox_2d", tuple(map(float, box))) for box in boxes)
        rows.append(Row((f"{name}.png",), objects, width, height))
    return rows


def mixed(config: AugmentConfig, pool: list[Row], root: Path, seed: int = 0, progress: float = 0.5) -> Photo:
    augmenter = Augmenter(config, seed, pool=pool, image_root=root)
    return augmenter.for_sample(0, 0, progress)([open_photo(root, pool[0])])[0]


def colour_inside(photo: Photo, item: ObjectRow) -> np.ndarray:
    x1, y1, x2, y2 = (round(value) for value in item.box)
    return np.asarray(photo.image, dtype=float)[y1:y2, x1:x2].reshape(-1, 3).mean(axis=0)


def test_every_box_of_a_mosaic_contains_its_own_object(pool: list[Row], photo_folder: Path) -> None:
    seen: Counter[str] = Counter()
    for seed in range(30):
        shown = mixed(MOSAIC, pool, photo_folder, seed)
        assert shown.image.size == (200, 160) and shown.to_canvas is None and shown.name == "red.png"
        for item in shown.objects:
            seen[item.desc] += 1
            x1, y1, x2, y2 = item.box
            assert 0 <= x1 < x2 <= 200 and 0 <= y1 < y2 <= 160
            difference = np.abs(colour_inside(shown, item) - COLOURS[item.desc])
            assert difference.max() < 60  # resizing greys the outermost pixels of small objects
    assert set(seen) == set(COLOURS)


def test_all_objects_of_a_mosaic_lie_in_boxes_unless_they_were_dropped(pool: list[Row], photo_folder: Path) -> None:
    for seed in range(20):
        shown = mixed(replace(MOSAIC, min_visible=0.0), pool, photo_folder, seed)
        light = np.asarray(shown.image).max(axis=-1) > 127
        for item in shown.objects:
            x1, y1, x2, y2 = item.box
            light[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = False
        assert not light.any()


def test_pasted_objects_lie_in_their_boxes_and_hide_nothing(pool: list[Row], photo_folder: Path) -> None:
    pasted = 0
    for seed in range(40):
        shown = mixed(PASTE, pool, photo_folder, seed)
        assert shown.objects[:2] == pool[0].objects
        pasted += len(shown.objects) - 2
        for item in shown.objects:
            assert np.abs(colour_inside(shown, item) - COLOURS[item.desc]).max() < 25
            assert item.desc != "red" or item in pool[0].objects  # its own photo is one of the sample's
    assert pasted > 20


def test_a_pasted_piece_hides_at_most_paste_cover_of_an_object(pool: list[Row], photo_folder: Path) -> None:
    hidden = []
    for seed in range(60):
        shown = mixed(replace(PASTE, paste_cover=0.5, paste_objects=1), pool, photo_folder, seed)
        for item in shown.objects[2:]:
            x1, y1, x2, y2 = (round(value) for value in item.box)
            hidden += [share_inside(old, (x1, y1), (x2 - x1, y2 - y1)) for old in shown.objects[:2]]
    assert 0.1 < max(hidden) <= 0.51


def test_a_margin_includes_neighbouring_objects_and_fades_out(photo_folder: Path) -> None:
    image = Image.new("RGB", (200, 200), "white")
    image.paste((200, 0, 0), (80, 80, 120, 120))
    image.save(photo_folder / "source.png")
    Image.new("RGB", (200, 200)).save(photo_folder / "target.png")
    rare, inner = (ObjectRow(name, "bbox_2d", points) for name, points in
                   (("rare", (80.0, 80.0, 120.0, 120.0)), ("inner", (90.0, 90.0, 100.0, 100.0))))  # fmt: skip
    far = ObjectRow("line", "line", (0.0, 0.0, 200.0, 0.0))
    rows = [Row(("target.png",), (), 200, 200), Row(("source.png",), (rare, inner, far), 200, 200)]
    config = AugmentConfig(copy_paste=1.0, paste_margin=0.5, paste_objects=1)
    alone = [item for item in (mixed(config, rows, photo_folder, seed) for seed in range(60)) if item.objects]
    both = next(item for item in alone if {other.desc for other in item.objects} == {"rare", "inner"})
    assert all("line" not in [other.desc for other in item.objects] for item in alone)
    x1, y1, x2, y2 = (round(value) for value in both.objects[0].box)
    pixels = np.asarray(both.image.convert("L"), dtype=float)
    out = round(0.25 * (x2 - x1))  # half the margin: full light from here on
    row = pixels[(y1 + y2) // 2]
    assert row[x1 - out + 1] > 240 and 20 < row[x1 - round(1.5 * out)] < 235 and row[x1 - 2 * out - 2] < 20


def test_rare_descriptions_are_pasted_as_often_as_common_ones(photo_folder: Path) -> None:
    Image.new("RGB", (300, 300), "white").save(photo_folder / "a.png")
    Image.new("RGB", (300, 300)).save(photo_folder / "b.png")
    common = [ObjectRow("common", "bbox_2d", (10.0 * at, 10.0, 10.0 * at + 9, 19.0)) for at in range(20)]
    rare = ObjectRow("rare", "bbox_2d", (100.0, 200.0, 110.0, 210.0))
    rows = [Row(("b.png",), (), 300, 300), Row(("a.png",), (*common, rare), 300, 300)]
    drawn: Counter[str] = Counter()
    for seed in range(150):
        drawn.update(item.desc for item in mixed(PASTE, rows, photo_folder, seed).objects)
    assert drawn["rare"] / drawn.total() == pytest.approx(20 / 21, abs=0.05)  # weights 1/1 and 1/20


def test_teachers_are_never_mixed_or_mixed_into_the_student(pool: list[Row], photo_folder: Path) -> None:
    teacher, student = open_photo(photo_folder, pool[1]), open_photo(photo_folder, pool[0])
    for config in (PASTE, MOSAIC):
        for number in range(20):
            augmenter = Augmenter(config, 0, pool=pool, image_root=photo_folder)
            shown = augmenter.for_sample(0, number, 0.5)([teacher, student])
            assert shown[0] is teacher
            assert "green" not in {item.desc for item in shown[1].objects}
            if config is MOSAIC:
                assert shown[1] is student  # two other photos are too few


def test_close_mosaic_ends_mixing_for_the_last_fraction_of_a_run(pool: list[Row], photo_folder: Path) -> None:
    config = replace(MOSAIC, copy_paste=1.0, curriculum=CurriculumConfig(close_mosaic=0.2))
    assert mixed(config, pool, photo_folder, progress=0.79).to_canvas is None
    assert mixed(config, pool, photo_folder, progress=0.8).to_canvas is not None


def test_mixing_does_not_change_the_random_draws_of_views(pool: list[Row], photo_folder: Path) -> None:
    turned = AugmentConfig(0.5, 0.5, True)
    for seed in range(10):
        plain = mixed(turned, pool, photo_folder, seed)
        both = mixed(replace(turned, mosaic=1.0), pool, photo_folder, seed)
        assert plain.image.size == both.image.size
        again = mixed(replace(turned, mosaic=1.0), pool, photo_folder, seed)
        assert again.objects == both.objects and again.image.tobytes() == both.image.tobytes()


def test_mixing_without_other_photos_is_an_error_that_names_the_key(pool: list[Row]) -> None:
    with pytest.raises(ConfigError, match=r"data\.augment\.mosaic: needs 4 training photos, there are 3"):
        Augmenter(MOSAIC, 0, pool=pool[:3])
    with pytest.raises(ConfigError, match=r"data\.augment\.copy_paste: no training photo has"):
        Augmenter(PASTE, 0)
    lines = replace(pool[0], objects=(ObjectRow("cable", "line", (1.0, 1.0, 9.0, 9.0)),))
    with pytest.raises(ConfigError, match="copy_paste"):
        Augmenter(PASTE, 0, pool=[lines])


def test_a_photo_of_the_pool_that_cannot_be_read_is_named(pool: list[Row], photo_folder: Path) -> None:
    (photo_folder / "green.png").write_bytes(b"no photo")
    with pytest.raises(ImageError, match=r"green\.png"):
        mixed(MOSAIC, pool, photo_folder)


def test_the_views_are_the_same_for_any_number_of_workers(chat_processor: Any, make_row: Callable[..., Row]) -> None:
    import torch
    from torch.utils.data import DataLoader

    from bbu.data.dataset import TrainingStream
    from bbu.records import FewShotSample

    everything = AugmentConfig(
        0.5, 0.5, True, 0.2, 0.2, 0.2, 0.3, 0.1, 0.2, 0.5, jpeg=0.5, rotate=15, scale=0.2, crop=0.4, object_crop=0.4,
        mosaic=0.4, copy_paste=0.7, curriculum=CurriculumConfig(0.3, 0.5, 0.1),
    )  # fmt: skip
    rows = [FewShotSample(make_row(f"{number}.png", 2, (112, 84), number)) for number in range(5)]
    dataset = TrainingStream(rows, chat_processor, length=10, seed=3, augment=everything)
    runs = [
        list(DataLoader(dataset, batch_size=None, num_workers=count, multiprocessing_context="fork" if count else None))
        for count in (0, 2)
    ]
    for alone, shared in zip(*runs, strict=True):
        assert alone.ground_truth_objects == shared.ground_truth_objects
        assert torch.equal(alone.pixel_values, shared.pixel_values) and torch.equal(alone.labels, shared.labels)
