"""What must hold for every training sample, whatever the family and whatever it is asked for; one test a fact."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from bbu.data.chat_processor import IGNORE, ChatProcessor, ChatProcessorOutput
from bbu.families.prompts import ANSWERS, boxes_from_text, parse_answer, parse_group, verdict_text
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


def photos_of(sample: FewShotSample) -> list[Row]:
    return [*sample.teachers, *sample.context, sample.student]


def test_photos_in_the_turns_are_as_many_as_their_places_in_the_text(
    processor: ChatProcessor, sample: FewShotSample, made: ChatProcessorOutput
) -> None:
    is_photo = np.array([IGNORE, *made.input_ids.tolist(), IGNORE]) == processor.image_token_id
    places = int((np.diff(is_photo.astype(int)) == 1).sum())
    assert places == len(made.image_grid_thw) == len(photos_of(sample))


def test_grids_fit_the_patch_rows(processor: ChatProcessor, sample: FewShotSample, made: ChatProcessorOutput) -> None:
    assert made.image_grid_thw.prod(-1).sum() == len(made.pixel_values)
    assert made.pixel_values.shape[1] == processor.photo_plan.patch_width
    plans = [processor.photo_plan.plan(row.width, row.height) for row in photos_of(sample)]
    assert made.image_grid_thw.tolist() == [list(processor.photo_plan.grid(plan)) for plan in plans]


def test_answers_end_with_the_end_token_and_image_tokens_are_not_learned(
    processor: ChatProcessor, sample: FewShotSample, made: ChatProcessorOutput
) -> None:
    assert made.student_span is not None
    spans = [*made.teacher_spans, made.student_span]
    assert len(spans) == len(sample.teachers) + 1
    for start, stop in spans:
        assert made.labels[start:stop].tolist() == made.input_ids[start:stop].tolist()
        assert int(made.input_ids[stop - 1]) == processor.end_token_id
        assert processor.end_token_id not in made.input_ids[start : stop - 1]
    assert (made.labels[made.input_ids == processor.image_token_id] == IGNORE).all()


def test_what_is_no_answer_is_not_learned(made: ChatProcessorOutput) -> None:
    assert made.student_span is not None
    answered = np.zeros(len(made.labels), dtype=bool)
    for start, stop in [*made.teacher_spans, made.student_span]:
        answered[start:stop] = True
    assert ((made.labels != IGNORE).numpy() == answered).all() and answered.any() and not answered.all()


def test_rows_are_in_pixels_and_the_answer_alone_in_the_units_of_the_family(
    processor: ChatProcessor, sample: FewShotSample, made: ChatProcessorOutput
) -> None:
    before = json.dumps([row.to_json() for row in photos_of(sample)])
    written = made.input_ids[made.labels != IGNORE]
    text = str(processor.tokenizer.decode(written.tolist())).removesuffix(processor.conversation.end)
    if sample.answer in ("summary", "verdict"):
        assert text == (sample.text or sample.student.summary)
        return
    in_turn = [*sample.context, sample.student]
    if sample.answer == "group":
        found, malformed = parse_group(text, len(in_turn))
    else:
        objects, malformed = parse_answer(text)
        found, in_turn = [objects[-len(sample.student.objects) :]], [sample.student]
    assert malformed == 0
    for row, items in zip(in_turn, found, strict=True):
        plan = processor.photo_plan.plan(row.width, row.height)
        boxes = boxes_from_text(plan, np.array([box for box, _ in items]), processor.spec.box_convention)
        exact = sorted(item.box for item in row.objects)
        step = max(row.width / plan.model_width, row.height / plan.model_height, max(row.width, row.height) / 1000)
        assert np.abs(np.array(sorted(boxes.tolist())) - exact).max() <= step  # rounded to whole numbers
    assert json.dumps([row.to_json() for row in photos_of(sample)]) == before
