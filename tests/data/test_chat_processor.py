"""ChatProcessor: spans, labels and boxes are as documented, whatever the family."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import bbu.data.chat_processor as chat_processor_module
from bbu.config import AugmentConfig
from bbu.data.augment import Augmenter
from bbu.data.photo import open_photo
from bbu.errors import ImageError, SampleError
from bbu.families.prompts import CONTEXT_NOTES, WORDING, answer_text, boxes_from_text, parse_answer, text_boxes
from bbu.geometry import cxcywh_to_xyxy
from bbu.images import load_image
from bbu.records import FewShotSample, ObjectRow, Row
from tests.tiny import FAMILIES, tiny_model

IGNORE = -100


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Every test of this file runs over all families."""
    return str(request.param)


def photo_text(processor: Any, patches: int) -> str:
    """What the text of a conversation has for a photo of so many patches."""
    talk = processor.conversation
    return str(talk.image_text.replace(talk.image_token, talk.image_token * processor.photo_plan.text_tokens(patches)))


def rendered(processor: Any, *messages: dict[str, Any], asking: bool = False) -> str:
    """Messages as the family's template writes them."""
    return str(
        processor.tokenizer.apply_chat_template(
            list(messages), chat_template=processor.spec.chat_template, tokenize=False, add_generation_prompt=asking
        )
    )


def user_turn(*parts: str) -> dict[str, Any]:
    """A user's message; what stands between its parts is the template's."""
    return {"role": "user", "content": [{"type": "text", "text": part} for part in parts]}


def after_an_answer(processor: Any) -> str:
    """What the template writes after the end token of an answer."""
    return rendered(processor, {"role": "assistant", "content": "[]"}).rpartition(processor.conversation.end)[2]


# ---------------------------------------------------------------- prompts


def test_the_prompt_of_training_and_of_inference_are_the_same_tokens(
    chat_processor: Any, make_sample: Callable[..., FewShotSample]
) -> None:
    sample = make_sample(teachers=2)
    photos = [open_photo(chat_processor.image_root, row) for row in (*sample.teachers, sample.student)]
    training = chat_processor.process_sample(sample)
    inference = chat_processor.process_photos(photos[:2], photos[2], with_answer=False)
    assert inference.prompt_span == training.prompt_span
    assert inference.input_ids.tolist() == training.input_ids[: training.prompt_span[1]].tolist()


def test_image_tokens_are_as_many_as_the_real_grids_ask_for(
    chat_processor: Any, make_sample: Callable[..., FewShotSample]
) -> None:
    out = chat_processor.process_sample(make_sample(teachers=2))
    count = int((out.input_ids == chat_processor.image_token_id).sum())
    assert count == sum(chat_processor.photo_plan.text_tokens(n) for n in out.image_grid_thw.prod(-1).tolist())


# ---------------------------------------------------------------- invariant 5: spans


@pytest.mark.parametrize("objects", [0, 1, 4])
@pytest.mark.parametrize("teachers", [0, 1, 3])
def test_every_supervised_token_lies_in_exactly_one_answer_span(
    chat_processor: Any, make_sample: Callable[..., FewShotSample], photo_folder: Path, teachers: int, objects: int
) -> None:
    sample = make_sample(teachers=teachers, objects=objects)
    out = chat_processor.process_sample(sample)
    spans = [*out.teacher_spans, out.student_span]
    assert len(spans) == teachers + 1 and spans == sorted(spans)
    owners = np.zeros(len(out.input_ids), dtype=int)
    for start, stop in spans:
        assert start < stop
        owners[start:stop] += 1
    supervised = out.labels.numpy() != IGNORE
    assert (owners <= 1).all() and (supervised == (owners == 1)).all()
    assert (out.labels.numpy()[supervised] == out.input_ids.numpy()[supervised]).all()
    assert not (out.input_ids.numpy()[supervised] == chat_processor.image_token_id).any()

    for row, (start, stop) in zip((*sample.teachers, sample.student), spans, strict=True):
        text = chat_processor.tokenizer.decode(out.input_ids[start:stop])
        assert text.endswith(chat_processor.conversation.end)
        found, malformed = parse_answer(text)
        assert malformed == 0 and sorted(label for _, label in found) == sorted(item.desc for item in row.objects)
        photo = load_image(photo_folder / row.images[0])
        plan = chat_processor.photo_plan.plan(*photo.size)
        boxes = np.array([item.box for item in row.objects]).reshape(-1, 4)
        expected = answer_text(
            text_boxes(plan, boxes, chat_processor.spec.box_convention), [item.desc for item in row.objects]
        )
        assert text == f"{expected}{chat_processor.conversation.end}"


def test_the_prompt_span_is_the_students_turn_up_to_its_answer(
    chat_processor: Any, make_sample: Callable[..., FewShotSample]
) -> None:
    out = chat_processor.process_sample(make_sample(teachers=1))
    start, stop = out.prompt_span
    assert stop == out.student_span[0]
    photo = photo_text(chat_processor, int(out.image_grid_thw[-1].prod()))
    turn = user_turn(photo, WORDING["zh"][1])
    text = chat_processor.tokenizer.decode(out.input_ids[start:stop])
    assert text == rendered(chat_processor, turn, asking=True)
    assert text.startswith(chat_processor.conversation.turn_start) and photo in text
    assert text.endswith(chat_processor.conversation.answer_header)
    assert start > out.teacher_spans[-1][1] - 1


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(descs=st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), max_size=3))
def test_spans_hold_whatever_the_descriptions_say(
    make_chat_processor: Callable[..., Any], make_row: Callable[..., Row], descs: list[str]
) -> None:
    """Also line ends, quotes, braces and the word assistant, which must not confuse the search for headers."""
    processor = make_chat_processor(caption_max_tokens=200)
    talk = processor.conversation
    header, broken = talk.answer_header, f'"]}}\n\n{talk.turn_start[:-2]}'
    for token in talk.special_tokens:  # which no description may have
        header = header.replace(token, "")
    for extra in ([], ["assistant\n"], [header], [broken], ["\n"]):
        objects = [ObjectRow(text, "bbox_2d", (5, 5 + i, 50, 40 + i)) for i, text in enumerate([*descs, *extra])]
        out = processor.process_sample(FewShotSample(make_row(objects=objects)))
        start, stop = out.student_span
        text = processor.tokenizer.decode(out.input_ids[start:stop])
        assert [label for _, label in parse_answer(text)[0]] == [item.desc for item in objects]
        assert processor.tokenizer.decode(out.input_ids[stop:]) == after_an_answer(processor)
        assert out.input_ids[stop - 1] == processor.end_token_id
        assert (out.labels != IGNORE).sum() == stop - start


# ---------------------------------------------------------------- ground truth


def test_ground_truth_is_in_reading_order_with_boxes_of_the_unit_square(
    chat_processor: Any, make_row: Callable[..., Row]
) -> None:
    objects = [
        ObjectRow("下", "bbox_2d", (0, 42, 112, 84)),
        ObjectRow("右", "poly", (56, 21, 112, 21, 84, 42)),
        ObjectRow("左", "bbox_2d", (28, 21, 56, 63)),
    ]
    out = chat_processor.process_sample(FewShotSample(make_row(objects=objects)))
    assert [item.desc for item in out.ground_truth_objects] == ["左", "右", "下"]
    found = cxcywh_to_xyxy(np.array([item.box for item in out.ground_truth_objects]))
    shares = np.array([[0.25, 0.25, 0.5, 0.75], [0.5, 0.25, 1, 0.5], [0, 0.5, 1, 1]])  # of the photo
    np.testing.assert_allclose(found, shares * (out.geometry.photo_in_unit[2:] * 2), atol=1e-9)


def test_ground_truth_and_answer_are_in_the_same_order_as_the_photo_is_seen(
    chat_processor: Any, make_row: Callable[..., Row]
) -> None:
    """After a vertical flip the lower object comes first, in boxes and in the answer."""
    objects = [ObjectRow("上", "bbox_2d", (10, 0, 50, 20)), ObjectRow("下", "bbox_2d", (10, 60, 50, 84))]
    flip = Augmenter(AugmentConfig(flip_vertical=1.0), 0).for_sample(0, 0, 0.0)
    out = chat_processor.process_sample(FewShotSample(make_row(objects=objects)), flip)
    assert [item.desc for item in out.ground_truth_objects] == ["下", "上"]
    parts, _ = parse_answer(chat_processor.tokenizer.decode(out.input_ids[slice(*out.student_span)]))
    assert [label for _, label in parts] == ["下", "上"]
    boxes = boxes_from_text(out.geometry, np.array([box for box, _ in parts]), chat_processor.spec.box_convention)
    np.testing.assert_allclose(boxes, [[10, 0, 50, 24], [10, 64, 50, 84]], atol=0.51)
    unit = cxcywh_to_xyxy(np.array([item.box for item in out.ground_truth_objects]))
    np.testing.assert_allclose(out.geometry.boxes_from_unit(unit), [[10, 0, 50, 24], [10, 64, 50, 84]], atol=1e-6)


def test_a_line_has_a_thin_target_and_keeps_its_place(chat_processor: Any, make_row: Callable[..., Row]) -> None:
    out = chat_processor.process_sample(FewShotSample(make_row(objects=[ObjectRow("线缆", "line", (10, 42, 100, 42))])))
    _, cy, _, height = out.ground_truth_objects[0].box
    down = out.geometry.photo_in_unit[3]
    assert cy == pytest.approx(0.5 * down) and height == pytest.approx(2 / 84 * down)


def test_captions_are_the_description_and_the_end_token(chat_processor: Any, make_row: Callable[..., Row]) -> None:
    out = chat_processor.process_sample(FewShotSample(make_row(objects=3)))
    for item in out.ground_truth_objects:
        assert item.caption_ids[-1] == chat_processor.end_token_id
        assert chat_processor.tokenizer.decode(list(item.caption_ids[:-1])) == item.desc


def test_a_caption_weighs_as_its_description_and_a_new_one_as_the_rarest(
    make_chat_processor: Callable[..., Any], make_row: Callable[..., Row]
) -> None:
    """Augmentation that mirrors a photo may write a description that no row has."""
    objects = [ObjectRow(desc, "bbox_2d", (1, 2 + n, 30, 40)) for n, desc in enumerate(("often", "rare", "new"))]
    sample = FewShotSample(make_row(objects=objects))
    for weights, expected in (({"often": 0.5, "rare": 3.0}, [0.5, 3.0, 3.0]), (None, [1.0, 1.0, 1.0])):
        found = make_chat_processor(caption_weights=weights).process_sample(sample).ground_truth_objects
        assert [item.caption_weight for item in found] == expected


def test_cached_captions_equal_the_tokenizers_and_are_still_checked(
    make_chat_processor: Callable[..., Any], make_row: Callable[..., Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_processor_module, "MOST_CAPTIONS", 2)
    processor = make_chat_processor(caption_max_tokens=20)
    objects = [ObjectRow(f"标签{number % 5}", "bbox_2d", (1, 2 + number, 30, 40)) for number in range(12)]
    for _ in range(2):
        for item in processor.process_sample(FewShotSample(make_row(objects=objects))).ground_truth_objects:
            expected = processor.tokenizer(item.desc, add_special_tokens=False)["input_ids"]
            assert list(item.caption_ids) == [*expected, processor.end_token_id]
    row = make_row("long.png", [ObjectRow("q7螺z" * 9, "bbox_2d", (1, 2, 30, 40))])
    for _ in range(2):
        with pytest.raises(SampleError, match=r"long\.png: .*caption_max_tokens"):
            processor.process_sample(FewShotSample(row))


def test_a_view_changes_pixels_and_boxes_together(
    family: str, chat_processor: Any, make_row: Callable[..., Row], photo_folder: Path
) -> None:
    """A white object on black: the bright pixels are those in its box, however the photo is turned."""
    backbone, cell = tiny_model(family).backbone, chat_processor.photo_plan.token_size
    size, box = (4 * cell, 2 * cell), (3 * cell, cell, 4 * cell, 2 * cell)  # which the model sees at this size
    image = Image.new("RGB", size)
    image.paste((255, 255, 255), box)
    image.save(photo_folder / "marked.png")
    row = make_row("marked.png", [ObjectRow("标签", "bbox_2d", box)], size)
    augmenter = Augmenter(AugmentConfig(flip_horizontal=0.5, flip_vertical=0.5, quarter_turns=True), 17)
    places = set()
    for number in range(24):
        out = chat_processor.process_sample(FewShotSample(row), augmenter.for_sample(0, number, 0.0))
        pixels = backbone.picture(out.pixel_values, tuple(out.image_grid_thw[0].tolist())).mean(0)
        down, across = (pixels > pixels.max() - 0.1).nonzero(as_tuple=True)
        bright = [across.min(), down.min(), across.max() + 1, down.max() + 1]
        box = cxcywh_to_xyxy(np.array(out.ground_truth_objects[0].box))
        rows, columns = pixels.shape
        np.testing.assert_allclose(box * [columns, rows, columns, rows], [int(side) for side in bright], atol=1e-6)
        assert len(across) == cell**2, "nothing else is bright"
        places.add((rows > columns, int(bright[0]), int(bright[1])))
    assert len(places) == 8  # four corners, lying and standing


# ---------------------------------------------------------------- refusing


def test_a_sample_that_is_too_long_names_its_photo_length_and_limit(
    make_chat_processor: Callable[..., Any], make_sample: Callable[..., FewShotSample]
) -> None:
    sample = make_sample(teachers=1)
    length = len(make_chat_processor().process_sample(sample).input_ids)
    assert len(make_chat_processor(max_length=length).process_sample(sample).input_ids) == length
    with pytest.raises(SampleError) as caught:
        make_chat_processor(max_length=length - 1).process_sample(sample)
    for word in (sample.student.images[0], f"{length} tokens", f"data.max_length {length - 1}"):
        assert word in str(caught.value)


def test_a_photo_of_another_size_than_its_record_is_refused(chat_processor: Any, make_row: Callable[..., Row]) -> None:
    row = replace(make_row("a.png", size=(112, 84)), width=84, height=112)
    with pytest.raises(SampleError, match=r"a\.png: the record says 84x112, the photo shows 112x84"):
        chat_processor.process_sample(FewShotSample(row))
    with pytest.raises(SampleError, match=r"a\.png"):
        chat_processor.process_sample(FewShotSample(make_row("b.png"), (row,)))


def test_an_exif_turn_counts_as_the_displayed_size(
    chat_processor: Any, make_photo: Callable[..., Path], make_row: Callable[..., Row]
) -> None:
    make_photo("turned.jpg", (112, 84), orientation=6)
    out = chat_processor.process_sample(FewShotSample(make_row("turned.jpg", 1, (84, 112))))
    assert (out.geometry.width, out.geometry.height) == (84, 112)
    with pytest.raises(SampleError, match="after EXIF"):
        chat_processor.process_sample(FewShotSample(make_row("turned.jpg", 1, (112, 84))))


def test_a_turn_has_exactly_one_photo(chat_processor: Any, make_row: Callable[..., Row]) -> None:
    row = replace(make_row("a.png"), images=("a.png", "b.png"))
    with pytest.raises(SampleError, match=r"a\.png: a turn has exactly one photo, this record has 2"):
        chat_processor.process_sample(FewShotSample(row))


def test_a_missing_photo_and_a_sliver_are_named(
    chat_processor: Any, make_row: Callable[..., Row], make_photo: Callable[..., Path]
) -> None:
    with pytest.raises(ImageError, match=r"gone\.png: no such photo"):
        chat_processor.process_sample(FewShotSample(replace(make_row("a.png"), images=("gone.png",))))
    make_photo("sliver.png", (402, 2))
    with pytest.raises(ImageError, match=r"sliver\.png: .*402x2"):
        chat_processor.process_sample(FewShotSample(make_row("sliver.png", 0, (402, 2))))


def test_a_description_that_is_too_long_or_marks_turns_names_its_photo(
    make_chat_processor: Callable[..., Any], make_row: Callable[..., Row]
) -> None:
    row = make_row("a.png", [ObjectRow("螺丝" * 9, "bbox_2d", (1, 2, 30, 40))])
    with pytest.raises(SampleError, match=r"a\.png: .*model\.detection\.caption_max_tokens \(4\)"):
        make_chat_processor(caption_max_tokens=4).process_sample(FewShotSample(row))
    end = make_chat_processor().conversation.end
    row = make_row("a.png", [ObjectRow(f"x{end}", "bbox_2d", (1, 2, 30, 40))])
    with pytest.raises(SampleError, match=rf"a\.png: .*{re.escape(end)}"):
        make_chat_processor().process_sample(FewShotSample(row))


# ---------------------------------------------------------------- context photos


def with_context(processor: Any, language: str = "zh") -> Any:
    processor.spec = replace(processor.spec, context_note=CONTEXT_NOTES[language])
    return processor


@pytest.fixture
def site(make_row: Callable[..., Row]) -> FewShotSample:
    """One teacher, two context photos, a student: four sizes."""
    sizes = [(84, 56), (112, 112), (56, 84), (140, 84)]
    rows = [make_row(f"turn{n}.png", 2, size, seed=n) for n, size in enumerate(sizes)]
    return FewShotSample(rows[3], (rows[0],), (rows[1], rows[2]))


@pytest.mark.parametrize("language", ["zh", "en"])
def test_context_photos_come_first_in_the_students_turn_and_only_the_student_is_answered(
    make_chat_processor: Callable[..., Any], site: FewShotSample, language: str
) -> None:
    import torch

    processor = with_context(make_chat_processor(language=language), language)
    out = processor.process_sample(site)
    photos = [photo_text(processor, patches) for patches in out.image_grid_thw.prod(-1).tolist()]
    system, instruction = WORDING[language]
    opening = f"{system}\n" if processor.conversation.system_in_first_turn else ""
    teacher = user_turn(photos[0], f"{opening}{instruction}")
    note = CONTEXT_NOTES[language]
    student = user_turn(*photos[1:], f"{note}{instruction}")
    text = processor.tokenizer.decode(out.input_ids)
    assert text.count(f"{processor.conversation.turn_start}user") == 2
    assert rendered(processor, teacher) in text, "a teacher's turn is as ever"
    assert rendered(processor, student) in text
    assert len(out.teacher_spans) == 1 and out.student_span is not None
    alone = processor.process_sample(FewShotSample(site.student, site.teachers))
    for name in ("ground_truth_objects", "geometry", "name"):
        assert getattr(out, name) == getattr(alone, name)
    answers = [sample.input_ids[slice(*sample.student_span)] for sample in (out, alone)]
    assert torch.equal(*answers)
    assert int((out.labels != IGNORE).sum()) == int((alone.labels != IGNORE).sum())


def test_the_prompt_of_a_student_with_context_starts_at_its_own_photo(
    chat_processor: Any, site: FewShotSample, photo_folder: Path
) -> None:
    import torch

    processor = with_context(chat_processor)
    out = processor.process_sample(site)
    start, stop = out.prompt_span
    photo = photo_text(processor, int(out.image_grid_thw[-1].prod()))
    turn = user_turn(photo, CONTEXT_NOTES["zh"] + WORDING["zh"][1])
    asked = rendered(processor, turn, asking=True)
    assert processor.tokenizer.decode(out.input_ids[start:stop]) == asked[asked.index(photo) :]
    photos = [open_photo(photo_folder, row) for row in (*site.teachers, *site.context, site.student)]
    inference = processor.process_photos(photos[:1], photos[3], context=photos[1:3], with_answer=False)
    assert inference.prompt_span == out.prompt_span and inference.teacher_spans == out.teacher_spans
    assert inference.input_ids.tolist() == out.input_ids[:stop].tolist()
    assert torch.equal(inference.pixel_values, out.pixel_values)


def test_labels_of_context_photos_are_nowhere_in_a_sample(chat_processor: Any, site: FewShotSample) -> None:
    import torch

    processor = with_context(chat_processor)
    unlabelled = replace(site, context=tuple(replace(row, objects=()) for row in site.context))
    seen: list[Any] = []
    one = processor.process_sample(site, lambda photos: (seen.extend(photos), list(photos))[1])
    assert [len(photo.objects) for photo in seen] == [2, 0, 0, 2], "nor does augmentation get them"
    assert torch.equal(one.input_ids, processor.process_sample(unlabelled).input_ids)


def test_a_model_that_was_trained_without_context_photos_is_not_given_any(
    chat_processor: Any, site: FewShotSample
) -> None:
    with pytest.raises(SampleError, match=r"2 context photos: .*data\.episodes\.context_photos"):
        chat_processor.process_sample(site)
