"""Model output → predictions: free captions or known descriptions, scores, a probability for each level."""

from __future__ import annotations

import pytest
import torch

from bbu.data.chat_processor import ChatProcessor
from bbu.data.collators import Batch
from bbu.inference.postprocess import detect, free_captions
from bbu.models.caption_decoder import CaptionResult
from bbu.models.vocabulary import DescriptionVocabulary
from bbu.models.wrapper import DetectionVLM
from bbu.records import PredictedObject, PredictionRow, parse_prediction_row
from bbu.taxonomy import split_path
from tests.tiny import DESCRIPTIONS, FAMILIES, pack, tiny_model, tiny_processor, tiny_sample, tiny_tokenizer


def scene(family: str) -> tuple[DetectionVLM, ChatProcessor, Batch]:
    model, processor = tiny_model(family), tiny_processor(family)
    return model, processor, pack(model, [tiny_sample(processor, n, with_answer=False) for n in range(3)])


def found(family: str, descriptions: tuple[str, ...] = ()) -> list[list[PredictedObject]]:
    """Predictions of an untrained model."""
    model, processor, batch = scene(family)
    tokenizer, end = processor.tokenizer, processor.end_token_id
    vocabulary = None
    if descriptions:
        vocabulary = DescriptionVocabulary.build(descriptions, tokenizer, end, processor.caption_max_tokens)
    return detect(model, batch, tokenizer, end, 6, 1.0, vocabulary)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("known", [(), DESCRIPTIONS, ("screw", "screw/tight")])
def test_levels_are_probabilities_that_fall_and_make_a_readable_row(family: str, known: tuple[str, ...]) -> None:
    for items in found(family, known):
        assert len(items) == 6
        assert [item.score for item in items] == sorted((item.score for item in items), reverse=True)
        for item in items:
            assert item.levels is not None and len(item.levels) == len(split_path(item.desc))
            assert list(item.levels) == sorted(item.levels, reverse=True)
            assert all(0 <= level <= 1 for level in item.levels)
        row = PredictionRow(("a.jpg",), 112, 84, tuple(items))
        again = parse_prediction_row(row.to_json(), "p.jsonl:1").predictions
        assert [one.desc for one in again] == [item.desc for item in items]
        assert [one.levels for one in again] == [
            pytest.approx(item.levels, abs=5.1e-7) for item in items
        ]  # six decimals are written


@pytest.mark.parametrize("family", FAMILIES)
def test_a_vocabulary_limits_the_descriptions_and_leaves_boxes_alone(family: str) -> None:
    free, known = found(family), found(family, DESCRIPTIONS)
    assert {item.desc for items in known for item in items} <= set(DESCRIPTIONS)
    assert not {item.desc for items in free for item in items} & set(DESCRIPTIONS), (
        "the untrained model writes other captions"
    )
    for one, other in zip(free, known, strict=True):
        assert {(item.box, item.objectness) for item in one} == {(item.box, item.objectness) for item in other}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_box_that_no_description_fits_gets_a_low_score(family: str) -> None:
    """For an untrained model every listed description is improbable, also the one that is chosen."""
    for item in (item for items in found(family, ("line",)) for item in items):
        assert item.levels == (1.0,)
        assert item.score < 0.001 * item.objectness


@pytest.mark.parametrize("family", FAMILIES)
def test_the_score_uses_the_free_text_probability(family: str) -> None:
    """A longer list changes which description wins, never the score of one that wins in both."""
    few, many = found(family, DESCRIPTIONS[-2:]), found(family, DESCRIPTIONS)
    score = {(item.box, item.desc): item.score for items in many for item in items}
    shared = [item for items in few for item in items if (item.box, item.desc) in score]
    assert shared
    for item in shared:
        assert item.score == pytest.approx(score[item.box, item.desc], rel=1e-9)
    best = {item.box: item.score for items in many for item in items}
    assert all(item.score <= best[item.box] * (1 + 1e-9) for items in few for item in items)


def test_a_level_of_a_free_caption_is_as_probable_as_the_tokens_up_to_its_separator() -> None:
    tokenizer, end = tiny_tokenizer(), 5
    ids = tokenizer("screw/tight", add_special_tokens=False)["input_ids"]
    slash = next(place for place, piece in enumerate(tokenizer.convert_ids_to_tokens(ids)) if "/" in piece)
    width = len(ids) + 3
    steps = torch.tensor([0.9] * slash + [0.5] + [0.8] * (len(ids) - slash - 1) + [0.7] + [1.0] * 2)
    cut = tokenizer("标签", add_special_tokens=False)["input_ids"]
    cut = (cut * width)[:width]  # runs into the length limit: no end token
    sums = torch.stack((steps.log().cumsum(0), torch.full((width,), 0.5).log().cumsum(0)))
    token_ids = torch.tensor([ids + [end] * 3, cut])
    captions = free_captions(CaptionResult(token_ids, sums[:, -1], sums), tokenizer, end)
    assert captions.texts[0] == "screw/tight"
    first = 0.9**slash * 0.5
    assert captions.levels[0] == pytest.approx((first, first * 0.8 ** (len(ids) - slash - 1) * 0.7))
    assert captions.levels[1] == pytest.approx((0.5**width,))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_last_level_of_a_free_caption_is_the_whole_description(family: str) -> None:
    items = [item for row in found(family) for item in row if item.levels]
    assert items
    for item in items:
        assert item.score == pytest.approx(item.objectness * item.levels[-1], rel=1e-6)  # type: ignore[index]
