"""The predictor: packs, views and final scores."""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import ImageOps

from bbu.data.photo import Photo
from bbu.evaluation.calibration import Calibration
from bbu.geometry import iou
from bbu.inference.predictor import PredictOptions, Predictor
from bbu.inference.tiling import SAME_IOU, merge_views
from bbu.records import PredictedObject
from bbu.taxonomy import MirrorRules
from bbu.tiles import Tiles
from tests.tiny import FAMILIES, noise_photo, tiny_model, tiny_processor

SIZES = [(112, 84), (84, 140), (168, 112), (56, 56)]
PHOTOS = [noise_photo(number, *size) for number, size in enumerate(SIZES)]
TILES = Tiles(2, 1, overlap=0.3)
ROUGH: dict[str, float] = {"ECE": 0.0, "Brier": 0.0}


@pytest.fixture(scope="module", params=FAMILIES)
def predictor(request: pytest.FixtureRequest) -> Predictor:
    """In float64, so that packs of any kind agree to the last digits."""
    processor = tiny_processor(request.param, caption_max_tokens=24)
    return Predictor(tiny_model(request.param), processor, batch_size=3)


def changed(predictor: Predictor, **changes: Any) -> Predictor:
    return Predictor(predictor.model, predictor.processor, predictor.options, **changes)


def same(one: list[PredictedObject], other: list[PredictedObject]) -> bool:
    return [item.desc for item in one] == [item.desc for item in other] and np.allclose(
        [[*a.box, a.score, a.objectness] for a in one], [[*b.box, b.score, b.objectness] for b in other], atol=1e-8
    )


def test_by_default_there_is_one_view_with_raw_scores() -> None:
    options = PredictOptions()
    assert (options.tiles, options.flips, options.calibration, options.vocabulary) == (None, False, None, None)
    assert options.min_score == 0


@pytest.mark.parametrize("options", [{}, {"tiles": TILES}, {"flips": True}, {"tiles": TILES, "flips": True}])
def test_neither_order_nor_size_of_a_batch_changes_anything(predictor: Predictor, options: dict[str, Any]) -> None:
    expected = changed(predictor, **options).predict_photos(PHOTOS)
    for size in (1, 50):
        found = changed(predictor, **options, batch_size=size).predict_photos(PHOTOS[::-1])
        assert all(same(a, b) for a, b in zip(expected, reversed(found), strict=True))


def test_a_tile_is_predicted_as_a_photo_of_its_own(predictor: Predictor) -> None:
    photo = PHOTOS[2]
    tiled = changed(predictor, tiles=TILES)
    views = tiled.views(photo.image.size)
    assert len(views) == 3
    alone = [predictor.predict_photos([Photo(photo.image.crop(view.window), "tile")])[0] for view in views]
    assert same(tiled.predict_photos([photo])[0], merge_views(views, alone, MirrorRules()))


def test_a_model_predicts_the_tiles_that_it_was_trained_on_unless_others_are_asked_for(predictor: Predictor) -> None:
    processor = copy(predictor.processor)
    processor.spec = replace(processor.spec, tiles="2x1")
    trained = Predictor(predictor.model, processor, predictor.options)
    assert trained.views((200, 100)) == changed(predictor, tiles=Tiles(2, 1)).views((200, 100))
    assert len(changed(trained, tiles=Tiles(3, 1)).views((200, 100))) == 4
    assert len(changed(trained, tiles=Tiles(1, 1)).views((200, 100))) == len(predictor.views((200, 100))) == 1


def test_a_flipped_view_equals_the_mirrored_photo(predictor: Predictor) -> None:
    photo = PHOTOS[1]
    flipping = changed(predictor, flips=True)
    views = flipping.views(photo.image.size)
    looks = [predictor.predict_photos([Photo(image, "x")])[0] for image in (photo.image, ImageOps.mirror(photo.image))]
    assert same(
        sorted(flipping.predict_photos([photo])[0], key=lambda item: -item.objectness)[:5],
        sorted(merge_views(views, looks, MirrorRules()), key=lambda item: -item.objectness)[:5],
    )


def test_tiles_lose_no_object_found_in_the_whole_photo(predictor: Predictor) -> None:
    whole = predictor.predict_photos(PHOTOS)
    tiled = changed(predictor, tiles=TILES, max_detections=1000).predict_photos(PHOTOS)
    assert any(not same(one, other) for one, other in zip(whole, tiled, strict=True))
    for before, after in zip(whole, tiled, strict=True):
        for item in before:
            assert any(
                np.isclose(o.score, item.score) or (float(iou(np.array(o.box), np.array(item.box))) > SAME_IOU)
                for o in after
            )


def test_max_detections_limits_all_views_together(predictor: Predictor) -> None:
    everything = changed(predictor, tiles=TILES, flips=True, max_detections=1000).predict_photos(PHOTOS[:1])[0]
    few = changed(predictor, tiles=TILES, flips=True, max_detections=4).predict_photos(PHOTOS[:1])[0]
    assert len(everything) > len(few) == 4
    assert [item.score for item in few] == sorted((item.score for item in few), reverse=True)


def test_no_flip_where_the_rules_forbid_it(predictor: Predictor) -> None:
    forbidden = changed(predictor, flips=True, mirror=MirrorRules(horizontal="forbid"))
    assert [view.mirrored for view in forbidden.views((100, 100))] == [False]
    assert same(forbidden.predict_photos(PHOTOS[:1])[0], predictor.predict_photos(PHOTOS[:1])[0])


def test_scores_are_calibrated_before_min_score_applies(predictor: Predictor) -> None:
    raw = predictor.predict_photos(PHOTOS[:1])[0]
    half = Calibration("isotonic", None, ((0.0, 0.0), (1.0, 0.5)), "val", 1, 1, ROUGH, ROUGH)
    halved = changed(predictor, calibration=half).predict_photos(PHOTOS[:1])[0]
    assert [item.score for item in halved] == pytest.approx([item.score / 2 for item in raw])
    assert [replace(item, score=0) for item in halved] == [replace(item, score=0) for item in raw]
    middle = halved[len(halved) // 2].score
    cut = changed(predictor, calibration=half, min_score=middle).predict_photos(PHOTOS[:1])[0]
    assert cut == [item for item in halved if item.score >= middle] and 0 < len(cut) < len(halved)


def test_prediction_restores_the_training_mode(predictor: Predictor) -> None:
    predictor.model.train()
    predictor.predict_photos(PHOTOS[:1])
    assert predictor.model.training
    predictor.model.eval()
