"""What must hold for every training sample, whatever the family and whatever it is asked for; one test a fact."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from bbu.data.chat_processor import IGNORE, ChatProcessor, ChatProcessorOutput
from bbu.data.health import (
    answer_has_the_units_of_the_family,
    answers_are_learned_to_their_end,
    faults_of,
    grids_fit_patches,
    nothing_else_is_learned,
    photos_have_places,
)
from bbu.families.prompts import ANSWERS, verdict_text
from bbu.records import FewShotSample, Row
from tests.tiny import FAMILIES

VERDICT = verdict_text("fail", "照片2有松动的螺丝")
SIZES = [(84, 56), (112, 112), (56, 84), (140, 84)]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=ANSWERS)
def answer(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def processor(make_chat_processor: Callable[..., ChatProcessor]) -> ChatProcessor:
    return make_chat_processor(answers=ANSWERS)


@pytest.fixture
def sample(make_row: Callable[..., Row], answer: str) -> FewShotSample:
    """Boxes with a teacher; a summary; a group of three photos, and the verdict on it."""
    rows = [make_row(f"{n}.png", 2, size, seed=n) for n, size in enumerate(SIZES)]
    student = replace(rows[3], summary="两个部件，都完好。")
    group = ((), (rows[1], rows[2]))
    shown = {"boxes": ((rows[0],), ()), "summary": ((), ()), "group": group, "verdict": group}[answer]
    return FewShotSample(student, *shown, answer=answer, text=VERDICT if answer == "verdict" else "")


@pytest.fixture
def made(processor: ChatProcessor, sample: FewShotSample) -> ChatProcessorOutput:
    return processor.process_sample(sample)


def test_a_sample_passes_every_check(
    processor: ChatProcessor, sample: FewShotSample, made: ChatProcessorOutput
) -> None:
    before = json.dumps([row.to_json() for row in (*sample.teachers, *sample.context, sample.student)])
    assert faults_of(processor, sample, made) == []
    assert json.dumps([row.to_json() for row in (*sample.teachers, *sample.context, sample.student)]) == before


def broken(made: ChatProcessorOutput, **changes: Any) -> ChatProcessorOutput:
    return replace(made, **changes)


def test_photos_in_the_turns_are_as_many_as_their_places_in_the_text(
    processor: ChatProcessor, sample: FewShotSample, made: ChatProcessorOutput
) -> None:
    assert photos_have_places(processor, sample, made) == ""
    ids = made.input_ids.clone()
    ids[ids == processor.image_token_id] = processor.turn_start_id
    assert "0 places in the text" in photos_have_places(processor, sample, broken(made, input_ids=ids))
    more = torch.cat([made.image_grid_thw, made.image_grid_thw[:1]])
    assert photos_have_places(processor, sample, broken(made, image_grid_thw=more))
    assert photos_have_places(processor, replace(sample, context=(*sample.context, sample.student)), made)


def test_grids_fit_the_patch_rows(processor: ChatProcessor, sample: FewShotSample, made: ChatProcessorOutput) -> None:
    assert grids_fit_patches(processor, sample, made) == ""
    assert "pixel_values is" in grids_fit_patches(processor, sample, broken(made, pixel_values=made.pixel_values[:-1]))
    turned = broken(made, image_grid_thw=made.image_grid_thw[:, [0, 2, 1]])
    assert "patch grids are" in grids_fit_patches(processor, sample, turned)


def test_answers_end_with_the_end_token_and_image_tokens_are_not_learned(
    processor: ChatProcessor, sample: FewShotSample, made: ChatProcessorOutput
) -> None:
    check = answers_are_learned_to_their_end
    assert check(processor, sample, made) == "" and made.student_span is not None
    start, stop = made.student_span
    assert "end token" in check(processor, sample, broken(made, student_span=(start, stop - 1)))
    labels = made.labels.clone()
    labels[start] = IGNORE
    assert "not all of them are learned" in check(processor, sample, broken(made, labels=labels))
    labels = torch.where(made.input_ids == processor.image_token_id, made.input_ids, made.labels)
    assert "image tokens are learned" in check(processor, sample, broken(made, labels=labels))
    assert "0 answers" in check(processor, sample, broken(made, student_span=None, teacher_spans=[]))


def test_what_is_no_answer_is_not_learned(
    processor: ChatProcessor, sample: FewShotSample, made: ChatProcessorOutput
) -> None:
    assert nothing_else_is_learned(processor, sample, made) == "" and (made.labels != IGNORE).any()
    labels = made.labels.clone()
    labels[0] = made.input_ids[0]
    assert "1 tokens outside" in nothing_else_is_learned(processor, sample, broken(made, labels=labels))


def test_rows_are_in_pixels_and_the_answer_alone_in_the_units_of_the_family(
    processor: ChatProcessor, sample: FewShotSample, made: ChatProcessorOutput
) -> None:
    check = answer_has_the_units_of_the_family
    assert check(processor, sample, made) == ""
    if sample.answer in ("summary", "verdict"):
        silent = replace(sample.student, summary="else")
        other = replace(sample, text="else") if sample.text else replace(sample, student=silent)
        assert "not 'else'" in check(processor, other, made)
        return
    first, *rest = sample.student.objects
    moved = replace(first, points=tuple(value + 5 for value in first.points))
    fault = check(processor, replace(sample, student=replace(sample.student, objects=(moved, *rest))), made)
    assert re.search(r"3\.png: a box of the answer is 5\.\d+ pixels off|is 4\.\d+ pixels off", fault)
    fewer = replace(sample, student=replace(sample.student, objects=tuple(rest)))
    assert "the row 1, or other descriptions" in check(processor, fewer, made)
