"""Random views: the seed decides them, not the order or the process, and each choice is as likely as it says."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from bbu.config import AugmentConfig
from bbu.data.augment import View, draw_view

EVERYTHING = AugmentConfig(0.5, 0.5, True, 0.3, 0.2)


def photo() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(60, 196, (20, 30, 3), dtype=np.uint8))


def test_a_seed_gives_one_view_in_whatever_order_it_is_asked() -> None:
    seeds = [(17, epoch, number) for epoch in range(5) for number in range(20)]
    forwards = {seed: draw_view(EVERYTHING, seed) for seed in seeds}
    backwards = {seed: draw_view(EVERYTHING, seed) for seed in reversed(seeds)}
    assert forwards == backwards
    assert len(set(forwards.values())) == len(seeds)


def test_without_augmentation_a_photo_stays_as_it_is() -> None:
    for seed in range(50):
        assert draw_view(AugmentConfig(), (seed,)) == View()
    image = photo()
    assert View().apply(image) is image and View().geometry(30, 20) == ((1, 0, 0, 0, 1, 0), (30, 20))


def test_turning_one_change_on_leaves_the_others_as_they_were() -> None:
    for seed in range(30):
        flipped = draw_view(AugmentConfig(flip_horizontal=1.0), (seed,))
        both = draw_view(AugmentConfig(flip_horizontal=1.0, brightness=0.3), (seed,))
        assert both.steps == flipped.steps == (2,)
        assert both.brightness == draw_view(AugmentConfig(brightness=0.3), (seed,)).brightness


def test_each_choice_is_as_likely_as_it_says() -> None:
    views = [draw_view(AugmentConfig(0.25, 0.75, True, 0.3, 0.2), (seed,)) for seed in range(2000)]
    assert sum(2 in view.steps for view in views) / 2000 == pytest.approx(0.25, abs=0.04)
    assert sum(4 in view.steps for view in views) / 2000 == pytest.approx(0.75, abs=0.04)
    turns = Counter(next((step for step in view.steps if step in (6, 3, 8)), 1) for view in views)
    assert all(turns[step] / 2000 == pytest.approx(0.25, abs=0.04) for step in (1, 6, 3, 8))
    for values, width in (([v.brightness for v in views], 0.3), ([v.contrast for v in views], 0.2)):
        assert min(values) >= 1 - width and max(values) <= 1 + width
        assert min(values) < 1 - 0.9 * width and max(values) > 1 + 0.9 * width


def test_all_eight_ways_to_turn_and_mirror_are_reached() -> None:
    image = photo()
    shown = {draw_view(AugmentConfig(0.5, 0.5, True), (seed,)).apply(image).tobytes() for seed in range(200)}
    assert len(shown) == 8


def test_brightness_and_contrast_change_pixels_and_not_places() -> None:
    image = photo()
    before = np.asarray(image).astype(float)
    assert np.asarray(View(brightness=1.2).apply(image)).mean() == pytest.approx(before.mean() * 1.2, rel=0.02)
    assert np.asarray(View(contrast=0.5).apply(image)).std() == pytest.approx(before.std() * 0.5, rel=0.05)
    assert View(brightness=1.2, contrast=0.5).geometry(30, 20) == View().geometry(30, 20)


def test_a_view_does_not_change_the_photo_it_is_given() -> None:
    image = photo()
    before = image.tobytes()
    View((6, 2), 1.3, 0.8).apply(image)
    assert image.tobytes() == before and image.size == (30, 20)
