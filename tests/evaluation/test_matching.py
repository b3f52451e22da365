"""All photos at once are matched as one photo is."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from bbu.evaluation import matching
from bbu.evaluation.descriptions import greedy_match
from bbu.evaluation.matching import MATCH_IOU, Matched, any_object, flatten, rank
from bbu.evaluation.pairing import pair
from bbu.geometry import iou_matrix
from bbu.records import PredictionRow, Row
from tests.evaluation.photo_sets import DESCRIPTIONS, cell, guess, photo, photo_sets, random_rows


@given(photo_sets)
def test_each_photo_is_matched_as_if_it_were_alone(photo_set):
    photos = pair(*photo_set).photos
    flat = flatten(photos)
    for label, rank_by in ((any_object, "objectness"), (str, "score")):
        matched = Matched.at(rank(flat, label, rank_by, 100))
        taken = {int(g): int(matched.ranking.prediction_Dt[d]) for d, g in enumerate(matched.match_UDt[0]) if g >= 0}
        assert taken == one_by_one(photos, label, rank_by)


def one_by_one(photos, label, rank_by):
    """Annotated box → prediction, both numbered through all photos, by the plain loop over one photo."""
    taken, truths, predictions = {}, 0, 0
    for item in photos:
        same_DtGt = np.array([[label(a) == label(b) for b in item.truth_descs] for a in item.descs], dtype=bool)
        iou_DtGt = iou_matrix(item.boxes_Dt4, item.truth_boxes_Gt4)
        confidences = {"score": item.scores_Dt, "objectness": item.objectness_Dt}
        matched_Gt = greedy_match(iou_DtGt * same_DtGt.reshape(iou_DtGt.shape), confidences[rank_by])
        taken |= {n + truths: int(m) + predictions for n, m in enumerate(matched_Gt) if m >= 0}
        truths, predictions = truths + len(item.truth_descs), predictions + len(item.descs)
    return taken


@given(photo_sets)
def test_a_stricter_overlap_finds_no_more(photo_set):
    matches = rank(flatten(pair(*photo_set).photos), str, "score", 100).match((0.5, 0.75, 0.95))
    found = (matches >= 0).sum(axis=1)
    assert list(found) == sorted(found, reverse=True)
    for row in matches:
        taken = row[row >= 0]
        assert len(set(taken)) == len(taken)  # one to one


def test_predictions_are_kept_and_ranked_for_each_photo_and_category():
    truth = [photo("a.jpg", (cell(0), "label")), photo("b.jpg", (cell(0), "label"))]
    found = [
        guess("a.jpg", (cell(0), "label", 0.2), (cell(1), "label", 0.9), (cell(2), "noise", 0.5)),
        guess("b.jpg", (cell(0), "label", 0.4)),
    ]
    ranking = rank(flatten(pair(truth, found).photos), str, "score", 1)
    assert ranking.categories == ("label",)
    assert ranking.confidence_Dt.tolist() == [0.9, 0.4, 0.5] and ranking.category_Dt.tolist() == [0, 0, 1]
    assert ranking.photo_Dt.tolist() == [0, 1, 0] and ranking.rank_Dt.tolist() == [0, 0, 0]


def test_rows_are_read_once_and_not_kept():
    """A large file is never in memory: of all rows given out, at most the last two are still alive."""
    truth, found = random_rows(0, photos=8)
    alive = []

    def stream(rows):
        for row in list(rows):
            yield replace(row)
            gc.collect(0)
            alive.append(sum(type(item) in (Row, PredictionRow) for item in gc.get_objects()))

    whole = pair(truth, found)
    before = sum(type(item) in (Row, PredictionRow) for item in gc.get_objects())
    streamed = pair(stream(truth), stream(found))
    assert len(alive) == 16 and max(alive) <= before + 2
    assert streamed.photos.names == whole.photos.names
    assert all(np.array_equal(getattr(streamed.photos, name), getattr(whole.photos, name)) for name in COLUMNS)


COLUMNS = ("truth_boxes_Gt4", "truth_desc_Gt", "boxes_Dt4", "desc_Dt", "scores_Dt", "objectness_Dt")


@given(photo_sets)
def test_the_order_of_photos_changes_no_column(photo_set):
    truth, found = photo_set
    one, other = pair(truth, found).photos, pair(truth[::-1], found[::-1]).photos
    assert all(np.array_equal(getattr(one, name), getattr(other, name)) for name in COLUMNS)
    assert [photo.name for photo in one[:2]] == [row.images[0] for row in truth[:2]]


def test_many_pairs_are_matched_in_pieces_as_they_are_at_once(monkeypatch):
    flat = flatten(pair(*random_rows(1, photos=30)).photos)
    whole = rank(flat, any_object, "objectness").match((0.5, 0.75, 0.9))
    monkeypatch.setattr(matching, "CHUNK", 7)
    pieces = flatten(pair(*random_rows(1, photos=30)).photos)
    for name in ("pair_truth_Op", "pair_prediction_Op", "pair_iou_Op"):
        assert np.array_equal(getattr(flat, name), getattr(pieces, name))
    assert np.array_equal(whole, rank(pieces, any_object, "objectness").match((0.5, 0.75, 0.9)))


def test_overlaps_too_small_to_be_kept_cannot_be_asked_for():
    ranking = rank(flatten(pair([photo("a.jpg")], []).photos), str, "score", 100)
    with pytest.raises(ValueError, match=f"under {MATCH_IOU}"):
        ranking.match((0.3,))


def test_nothing_at_all_can_be_matched():
    ranking = rank(flatten(pair([], []).photos), any_object, "score", 100)
    assert ranking.match((0.5,)).shape == (1, 0) and ranking.categories == ()


def test_the_vocabulary_holds_what_is_annotated_and_what_is_said():
    flat = flatten(pair([photo("a.jpg", (cell(0), "b"))], [guess("a.jpg", (cell(0), "a", 0.5))]).photos)
    assert flat.vocabulary == ("a", "b") and DESCRIPTIONS[0] not in flat.vocabulary
