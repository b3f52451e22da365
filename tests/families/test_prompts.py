"""Prompts and answers: conversations are ChatML, answers are ordered JSON, generated text is parsed tolerantly."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import jinja2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbu.errors import SampleError
from bbu.families.photo_plan import plan_resize
from bbu.families.prompts import (
    ANSWERS,
    CONTEXT_NOTES,
    WORDING,
    PromptSpec,
    answer_text,
    boxes_from_text,
    build_messages,
    group_text,
    parse_answer,
    parse_group,
    parse_verdict,
    text_boxes,
    text_shapes,
    verdict_text,
)
from bbu.families.qwen2_5_vl.codec import QWEN
from bbu.geometry import ImageGeometry
from bbu.records import ObjectRow

IMAGE = "<|vision_start|><|image_pad|><|vision_end|>"


def spec(language: str = "en", **changes: Any) -> PromptSpec:
    return replace(PromptSpec.create(language, QWEN, 3136, 100352), **changes)


def render(template: str, messages: list[dict[str, Any]], add_generation_prompt: bool) -> str:
    """As transformers renders a chat template."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(template).render(messages=messages, add_generation_prompt=add_generation_prompt)


# ---------------------------------------------------------------- the conversation


@pytest.mark.parametrize("language", WORDING)
def test_a_conversation_is_chatml_word_for_word(language: str) -> None:
    prompt = spec(language)
    system, instruction = WORDING[language]
    text = render(prompt.chat_template, build_messages(prompt, QWEN, ["[1]", "[2]"], "[3]"), False)
    assert text == (
        f"<|im_start|>system\n{system}<|im_end|>\n"
        f"<|im_start|>user\n{IMAGE}{instruction}<|im_end|>\n<|im_start|>assistant\n[1]<|im_end|>\n"
        f"<|im_start|>user\n{IMAGE}{instruction}<|im_end|>\n<|im_start|>assistant\n[2]<|im_end|>\n"
        f"<|im_start|>user\n{IMAGE}{instruction}<|im_end|>\n<|im_start|>assistant\n[3]<|im_end|>\n"
    )


def test_at_inference_the_conversation_ends_before_the_answer() -> None:
    prompt = spec(system="S", instruction="I")
    text = render(prompt.chat_template, build_messages(prompt, QWEN, ["[1]"], None), True)
    assert text == (
        f"<|im_start|>system\nS<|im_end|>\n<|im_start|>user\n{IMAGE}I<|im_end|>\n<|im_start|>assistant\n[1]<|im_end|>\n"
        f"<|im_start|>user\n{IMAGE}I<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_inference_prompt_is_the_training_prompt_up_to_the_answer() -> None:
    prompt = spec("zh")
    training = render(prompt.chat_template, build_messages(prompt, QWEN, ["[1]"], "[2]"), False)
    inference = render(prompt.chat_template, build_messages(prompt, QWEN, ["[1]"], None), True)
    assert training == f"{inference}[2]<|im_end|>\n"


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_the_template_neither_escapes_nor_trims_contents(answer: str) -> None:
    prompt = spec()
    if any(token in answer for token in QWEN.special_tokens):
        return
    text = render(prompt.chat_template, build_messages(prompt, QWEN, [], answer), False)
    assert text.endswith(f"<|im_start|>assistant\n{answer}<|im_end|>\n")


@pytest.mark.parametrize("token", QWEN.special_tokens)
def test_a_description_with_a_token_that_marks_turns_is_refused(token: str) -> None:
    answer = answer_text(np.array([[1, 2, 3, 4]]), [f"label {token} x"])
    with pytest.raises(SampleError) as caught:
        build_messages(spec(), QWEN, [], answer)
    assert token in str(caught.value)
    with pytest.raises(SampleError):
        build_messages(spec(), QWEN, [answer], "[]")


def test_the_hash_of_a_prompt_changes_with_every_part_of_it() -> None:
    first = spec()
    assert first.hash == spec().hash and PromptSpec(**json.loads(json.dumps(first.to_json()))).hash == first.hash
    changes: dict[str, Any] = {name: f"{value}x" for name, value in first.to_json().items() if isinstance(value, str)}
    changes |= {"min_pixels": 1, "max_pixels": 2}
    assert set(changes) == set(first.to_json())
    hashes = {replace(first, **{name: value}).hash for name, value in changes.items()}
    assert len(hashes | {first.hash}) == len(changes) + 1


def test_a_prompt_without_context_photos_and_tiles_keeps_its_hash() -> None:
    """Older checkpoints keep their hash; the note on context photos appears only if there are any."""
    before = ("language", "system", "instruction", "chat_template", "box_convention", "min_pixels", "max_pixels")
    assert set(spec().to_json()) == set(before)
    knows = PromptSpec.create("en", QWEN, 3136, 100352, context=True)
    tiled = PromptSpec.create("en", QWEN, 3136, 100352, tiles="auto")
    assert len({knows.hash, tiled.hash, spec().hash}) == 3
    assert all(PromptSpec(**made.to_json()) == made for made in (knows, tiled))
    assert build_messages(knows, QWEN, ["[]"], None) == build_messages(spec(), QWEN, ["[]"], None)
    teacher, student = build_messages(knows, QWEN, ["[]"], None, context_photos=2)[1:4:2]
    assert teacher == build_messages(spec(), QWEN, ["[]"], None)[1]
    assert [part["type"] for part in student["content"]] == ["image"] * 3 + ["text"]
    assert student["content"][-1]["text"] == CONTEXT_NOTES["en"] + WORDING["en"][1]
    with pytest.raises(SampleError, match="context photos"):
        build_messages(spec(), QWEN, [], None, context_photos=1)


def test_a_model_is_asked_only_for_answers_it_was_trained_with() -> None:
    knows = PromptSpec.create("en", QWEN, 3136, 100352, answers=ANSWERS, own_geometry=True)
    assert knows.hash != spec().hash and PromptSpec(**knows.to_json()) == knows
    turns = [
        build_messages(knows, QWEN, [], None, photos, answer)[-1] for photos, answer in ((0, "summary"), (2, "group"))
    ]
    assert [turn["content"][-1]["text"] for turn in turns] == [knows.summary_instruction, knows.group_instruction]
    assert [len(turn["content"]) for turn in turns] == [2, 4], "a group's photos need no note on context"
    assert all("poly or line" in text for text in (knows.instruction, knows.group_instruction))
    for answer in ANSWERS[1:]:
        with pytest.raises(SampleError, match=rf"not trained to answer with a {answer}; .*data\.answers\.{answer}"):
            build_messages(spec(), QWEN, [], None, answer=answer)


# ---------------------------------------------------------------- answers

ONE_PHOTO = st.lists(
    st.tuples(
        st.tuples(st.integers(0, 400), st.integers(0, 400), st.integers(500, 900), st.integers(500, 900)),
        st.text(alphabet='ab/{}"[]: 螺photo', min_size=1, max_size=12),
    ),
    max_size=4,
)


@given(st.lists(ONE_PHOTO, min_size=1, max_size=5))
def test_an_answer_for_several_photos_is_json_and_read_back_photo_by_photo(photos: list[Any]) -> None:
    answers = [answer_text(np.array([box for box, _ in items]), [desc for _, desc in items]) for items in photos]
    text = group_text(answers)
    entries = [{"photo": number, "objects": json.loads(answer)} for number, answer in enumerate(answers, start=1)]
    assert text == json.dumps(entries, ensure_ascii=False)
    found, malformed = parse_group(text, len(photos))
    assert malformed == 0 and found == [
        [([float(v) for v in item["bbox_2d"]], item["label"]) for item in entry["objects"]] for entry in entries
    ]


def test_an_answer_for_several_photos_that_breaks_off_keeps_what_was_whole() -> None:
    boxes = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    text = group_text([answer_text(boxes[:1], ["a"]), answer_text(boxes, ["b", "c"])])
    found, malformed = parse_group(text[: text.index('"c"')], 2)
    assert [[desc for _, desc in one] for one in found] == [["a"], ["b"]] and malformed == 1
    assert parse_group(text, 1)[1] == 1, "an entry for a photo that is not there"
    assert parse_group("nothing", 2) == ([[], []], 0)


def test_own_geometries_are_written_in_the_order_of_their_boxes_and_read_as_boxes() -> None:
    objects = [
        ObjectRow("low", "line", (10, 80, 60, 90, 30, 95)),
        ObjectRow("high", "poly", (20, 10, 50, 10, 35, 40)),
        ObjectRow("middle", "bbox_2d", (5, 40, 25, 60)),
    ]
    plan = ImageGeometry(100, 100, 1000, 1000)
    boxes = text_boxes(plan, np.array([item.box for item in objects]), "norm1000")
    shapes = text_shapes(plan, objects, "norm1000")
    answer = answer_text(boxes, [item.desc for item in objects], shapes)
    assert json.loads(answer) == [
        {"poly": [200, 100, 500, 100, 350, 400], "label": "high"},
        {"bbox_2d": [50, 400, 250, 600], "label": "middle"},
        {"line": [100, 800, 600, 900, 300, 950], "label": "low"},
    ]
    found, malformed = parse_answer(answer)
    assert malformed == 0
    assert found == [([200, 100, 500, 400], "high"), ([50, 400, 250, 600], "middle"), ([100, 800, 600, 950], "low")]
    both = '"bbox_2d": [1, 2, 3, 4], "line": [1, 2, 3, 4]'
    for bad in ('"poly": [1, 2, 3, 4]', '"line": [1, 2, 3]', '"line": 3', both):
        assert parse_answer(f'{{{bad}, "label": "x"}}') == ([], 1)


def test_an_answer_is_json_in_the_order_top_to_bottom_then_left_to_right() -> None:
    boxes = np.array([[50, 20, 60, 30], [10, 20, 90, 30], [70, 5, 80, 90]])
    assert answer_text(boxes, ["右", "左", "a/b"]) == (
        '[{"bbox_2d": [70, 5, 80, 90], "label": "a/b"}, {"bbox_2d": [10, 20, 90, 30], "label": "左"}, '
        '{"bbox_2d": [50, 20, 60, 30], "label": "右"}]'
    )


def test_an_answer_without_objects_is_an_empty_list() -> None:
    assert answer_text(np.zeros((0, 4)), []) == "[]"
    assert parse_answer("[]") == ([], 0)


@given(st.permutations(range(6)))
def test_an_answer_does_not_depend_on_the_order_of_the_record(order: list[int]) -> None:
    boxes = np.array([[1, 9, 5, 12], [3, 9, 5, 12], [3, 2, 5, 12], [3, 2, 4, 12], [3, 2, 4, 11], [0, 0, 1, 1]])
    labels = list("abcdef")
    assert answer_text(boxes[order], [labels[i] for i in order]) == answer_text(boxes, labels)


answers = st.lists(
    st.tuples(
        st.integers(0, 700),
        st.integers(0, 700),
        st.integers(1, 90),
        st.integers(1, 90),
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12),
    ),
    max_size=6,
)


@given(answers)
def test_an_answer_written_is_read_back(parts: list[tuple[int, int, int, int, str]]) -> None:
    boxes = np.array([[x, y, x + w, y + h] for x, y, w, h, _ in parts], dtype=np.int64).reshape(-1, 4)
    labels = [label for *_, label in parts]
    found, malformed = parse_answer(answer_text(boxes, labels))
    assert malformed == 0
    assert sorted(found) == sorted(([float(v) for v in box], label) for box, label in zip(boxes, labels, strict=True))


ONE = '{"bbox_2d": [1, 2, 3, 4], "label": "x"}'
GENERATED = [
    ("", 0, 0),
    ("I see nothing.", 0, 0),
    (f"[{ONE}]", 1, 0),
    (f"```json\n[{ONE}]\n```", 1, 0),
    (f"Here: {ONE} and {ONE}", 2, 0),
    (f"[{ONE}, {ONE[:20]}", 1, 1),
    ('[{"bbox_2d": [1, 2, 3], "label": "x"}]', 0, 1),
    ('[{"bbox_2d": [1, 2, 3, "4"], "label": "x"}]', 0, 1),
    ('[{"bbox_2d": [1, 2, true, 4], "label": "x"}]', 0, 1),
    ('[{"bbox_2d": "1 2 3 4", "label": "x"}]', 0, 1),
    ('[{"bbox_2d": [3, 2, 1, 4], "label": "x"}]', 0, 1),
    ('[{"bbox_2d": [1, 2, 1, 4], "label": "x"}]', 0, 1),
    ('[{"bbox_2d": [1, 2, 3, 4]}]', 0, 1),
    ('[{"bbox_2d": [1, 2, 3, 4], "label": ""}]', 0, 1),
    ('[{"bbox_2d": [1, 2, 3, 4], "label": 5}]', 0, 1),
    ('[{"bbox_2d": [NaN, 2, 3, 4], "label": "x"}]', 0, 1),
    ('[{"bbox_2d": [1, 2, Infinity, 4], "label": "x"}]', 0, 1),
    ('[{"bbox_2d": [1, 2, 1e999, 4], "label": "x"}]', 0, 1),
    ('[{"bbox_2d": [1, 2, 1' + "0" * 400 + ', 4], "label": "x"}]', 0, 1),
    ('[{"bbox_2d": [1, 2, 1' + "0" * 5000 + ', 4], "label": "x"}]', 0, 1),
    (f"[{{broken}}, {ONE}]", 1, 1),
    (f"{{{{{{ {ONE}", 1, 3),
    ('[{"bbox_2d": [1.5, 2, 3, 4], "label": "x", "more": {"a": 1}}]', 1, 0),
]


@pytest.mark.parametrize(("text", "good", "malformed"), GENERATED, ids=range(len(GENERATED)))
def test_text_is_parsed_tolerantly_and_malformed_objects_are_counted(text: str, good: int, malformed: int) -> None:
    found, lost = parse_answer(text)
    assert (len(found), lost) == (good, malformed)
    assert np.isfinite([value for box, _ in found for value in box]).all()


@given(st.text(alphabet='{}[]",:01 bbox_2dlabel-eN\\', max_size=80))
def test_no_text_breaks_the_parser(text: str) -> None:
    found, malformed = parse_answer(text)
    assert len(found) + malformed <= text.count("{")


def test_text_nested_without_end_is_one_more_malformed_object() -> None:
    found, malformed = parse_answer(ONE + '{"a":' * 3000)
    assert len(found) == 1 and malformed >= 1


def test_norm1000_is_a_thousandth_of_the_photo() -> None:
    geometry = plan_resize(400, 200, factor=28, min_pixels=3136, max_pixels=100352)
    written = text_boxes(geometry, np.array([[100, 50, 400, 200]]), "norm1000")
    assert written.tolist() == [[250, 250, 1000, 1000]]
    np.testing.assert_allclose(boxes_from_text(geometry, written, "norm1000"), [[100, 50, 400, 200]])


def test_model_pixels_are_those_of_the_resized_photo() -> None:
    geometry = plan_resize(1920, 1440, factor=28, min_pixels=3136, max_pixels=512 * 28 * 28)
    written = text_boxes(geometry, np.array([[0, 0, 960, 1440]]), "model_pixels")
    assert written.tolist() == [[0, 0, 364, 532]]


@given(st.sampled_from(["pass", "fail"]), st.from_regex(r"[^\s][^\r\n]{0,40}", fullmatch=True))
def test_a_verdict_reads_back_as_it_was_written(verdict: str, reason: str) -> None:
    reason = " ".join(reason.split())
    assert parse_verdict(verdict_text(verdict, reason)) == (verdict, reason)


@pytest.mark.parametrize(
    "text",
    [
        "", "pass", "Verdict: pass", "Verdict: pass\nReason:", "Verdict: pass\nReason:  ", "verdict: pass\nReason: a",
        "Verdict: ok\nReason: a", "Verdict: pass or fail\nReason: a", "Verdict: pass\n\nReason: a",
        "Verdict: pass\nReason: a\nVerdict: fail\nReason: b", "I think so. Verdict: pass\nReason: a",
    ],
)  # fmt: skip
def test_whatever_else_is_no_verdict(text: str) -> None:
    assert parse_verdict(text) is None
