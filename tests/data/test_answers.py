"""Samples that are asked for a summary or for a group: what is learned of them, how long they are, what they detect."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bbu.config import AnswersConfig, AugmentConfig
from bbu.data.chat_processor import IGNORE, ChatProcessor, ChatProcessorOutput
from bbu.data.collators import PackedDataCollator
from bbu.data.dataset import TrainingStream
from bbu.data.packing.lengths import LengthMeter, StreamLengths
from bbu.data.photo import Photo, open_photo
from bbu.data.sampling.answers import Answers
from bbu.errors import SampleError
from bbu.families.cost import CostModel
from bbu.families.prompts import ANSWERS, parse_group, parse_verdict, text_boxes
from bbu.judging.rules import read_rules
from bbu.records import FewShotSample, ObjectRow, Row
from tests.tiny import FAMILIES

SHAPES = (
    ObjectRow("标签贴纸", "bbox_2d", (10, 20, 40, 50)),
    ObjectRow("线缆", "line", (5, 8, 60, 30, 90, 12)),
    ObjectRow("挡风板", "poly", (50, 50, 80, 40, 100, 80, 60, 78)),
)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Every test of this file runs over all families."""
    return str(request.param)


@pytest.fixture
def processor(make_chat_processor: Callable[..., ChatProcessor]) -> ChatProcessor:
    return make_chat_processor(answers=ANSWERS)


@pytest.fixture
def rules(tmp_path: Path, site: list[Row]) -> Path:
    """At most two objects in each photo: the site has photos on both sides of it."""
    names = sorted({item.desc for row in site for item in row.objects})
    path = tmp_path / "rules.yaml"
    lines = [f"  - {{name: few {desc}, description: {desc}, at_most: 0, per: photo}}" for desc in names[:1]]
    path.write_text("\n".join(["rules:", *lines]), encoding="utf-8")
    return path


@pytest.fixture
def site(make_row: Callable[..., Row]) -> list[Row]:
    """Five photos of one site, of different sizes, with summaries; the last is not annotated."""
    sizes = [(84, 56), (112, 112), (56, 84), (84, 84), (140, 84)]
    rows = [make_row(f"{n}.png", n, size, seed=n) for n, size in enumerate(sizes)]
    rows = [replace(row, metadata={"group": "a"}, summary=f"照片有{len(row.objects)}个部件。") for row in rows]
    return [*rows[:4], replace(rows[4], objects=(), annotated=False)]


def answer_of(processor: ChatProcessor, sample: ChatProcessorOutput) -> str:
    """The supervised text, without its end token."""
    text = str(processor.tokenizer.decode(sample.input_ids[sample.labels != IGNORE].tolist()))
    assert text.endswith(processor.conversation.end)
    return text.removesuffix(processor.conversation.end)


def test_a_summary_is_learned_word_for_word_and_detection_is_as_ever(processor: ChatProcessor, site: list[Row]) -> None:
    summary = processor.process_sample(FewShotSample(site[2], answer="summary"))
    boxes = processor.process_sample(FewShotSample(site[2]))
    assert answer_of(processor, summary) == site[2].summary
    assert processor.spec.summary_instruction in str(processor.tokenizer.decode(summary.input_ids.tolist()))
    assert summary.ground_truth_objects == boxes.ground_truth_objects and summary.photo_span == boxes.photo_span
    assert torch.equal(summary.pixel_values, boxes.pixel_values) and summary.student_span is not None
    assert summary.prompt_span is not None
    assert summary.prompt_span[1] == summary.student_span[0], "detection never sees the answer"


def test_a_group_is_answered_photo_by_photo_each_in_its_own_coordinates(
    processor: ChatProcessor, site: list[Row], photo_folder: Path
) -> None:
    sample = processor.process_sample(FewShotSample(site[1], context=(site[0], site[2]), answer="group"))
    shown = [site[0], site[2], site[1]]
    found, malformed = parse_group(answer_of(processor, sample), 3)
    assert malformed == 0
    for row, objects in zip(shown, found, strict=True):
        plan = processor.photo_plan.plan(row.width, row.height)
        boxes = np.array([item.box for item in row.objects]).reshape(-1, 4)
        written = text_boxes(plan, boxes, processor.spec.box_convention).tolist()
        expected = sorted(zip(written, [item.desc for item in row.objects], strict=True))
        assert sorted(objects) == [([float(v) for v in box], desc) for box, desc in expected]
    alone = processor.process_sample(FewShotSample(site[1]))
    assert sample.ground_truth_objects == alone.ground_truth_objects, "detection is on the last photo"
    last = int(alone.image_grid_thw.prod())
    assert torch.equal(sample.pixel_values[-last:], alone.pixel_values)
    photos = [open_photo(photo_folder, row) for row in shown]
    asked = processor.process_photos([], photos[2], context=photos[:2], with_answer=False, answer="group")
    assert asked.input_ids.tolist() == sample.input_ids[: sample.student_span[0]].tolist()  # type: ignore[index]


def test_a_verdict_follows_from_the_rules_on_the_photos_that_are_shown(
    processor: ChatProcessor, site: list[Row], rules: Path
) -> None:
    stream, (rule,) = mixed_stream(processor, site, rules), read_rules(rules)
    samples = [stream.shown(stream.draw_at(position)) for position in range(120)]
    verdicts = [sample for sample in samples if sample.answer == "verdict"]
    for sample in verdicts:
        photos = [*sample.context, sample.student]
        broken = [n for n, row in enumerate(photos, 1) if any(rule.covers(item.desc) for item in row.objects)]
        found = parse_verdict(sample.text)
        assert found is not None and 2 <= len(photos) <= 3 and all(row.annotated for row in photos)
        assert found[0] == ("fail" if broken else "pass")
        assert all(f"in photo {n}" in found[1] for n in broken)
        assert answer_of(processor, processor.process_sample(sample)) == sample.text
    assert len({(len(sample.context), sample.text[:13]) for sample in verdicts}) > 1
    with pytest.raises(SampleError, match="has no verdict to answer with"):
        processor.process_sample(replace(verdicts[0], text=""))


def test_a_photo_that_is_not_annotated_takes_no_part_in_detection(processor: ChatProcessor, site: list[Row]) -> None:
    bare = processor.process_sample(FewShotSample(site[4], answer="summary"))
    empty = processor.process_sample(FewShotSample(site[0], answer="summary"))  # annotated, with nothing in it
    assert not bare.detects and bare.ground_truth_objects == []
    assert empty.detects and empty.ground_truth_objects == []
    batch = PackedDataCollator(lambda ids, grids: torch.arange(len(ids))[None])([bare, empty, bare])
    assert batch["detecting"] == [1] and batch["box_counts"] == [0] and batch["student_images"] == [1]
    with pytest.raises(SampleError, match=r'4\.png: is not annotated \("objects": null\)'):
        processor.process_sample(FewShotSample(site[4]))
    with pytest.raises(SampleError, match=r"0\.png: has no summary"):
        processor.process_sample(FewShotSample(replace(site[0], summary=None), answer="summary"))


def test_own_geometries_are_answered_as_polygons_and_lines(
    make_chat_processor: Callable[..., ChatProcessor], make_row: Callable[..., Row]
) -> None:
    row = make_row("shapes.png", SHAPES)
    own, boxes = (make_chat_processor(own_geometry=flag).process_sample(FewShotSample(row)) for flag in (True, False))
    processor = make_chat_processor(own_geometry=True)
    objects = json.loads(answer_of(processor, own))
    assert [{*item} - {"label"} for item in objects] == [{"line"}, {"bbox_2d"}, {"poly"}]
    assert [len(next(iter(item.values()))) for item in objects] == [6, 4, 8]
    assert own.ground_truth_objects == boxes.ground_truth_objects
    assert "poly" in processor.spec.instruction


def mixed_stream(
    processor: ChatProcessor, rows: Sequence[Row], rules: Path, augment: AugmentConfig | None = None
) -> TrainingStream:
    config = AnswersConfig(boxes=1, summary=1, group=1, verdict=1, judged_by=str(rules), group_photos=3)
    answers = Answers(config, rows, seed=5)
    samples = [FewShotSample(row) for row in rows]
    return TrainingStream(samples, processor, length=400, seed=5, answers=answers, augment=augment)


@pytest.mark.parametrize("own", [False, True], ids=["boxes", "own geometry"])
def test_lengths_are_those_of_the_real_samples(
    make_chat_processor: Callable[..., ChatProcessor], site: list[Row], rules: Path, tmp_path: Path, own: bool
) -> None:
    processor = make_chat_processor(answers=ANSWERS, own_geometry=own)
    site[2] = replace(site[2], objects=(ObjectRow("线缆", "line", (5, 8, 30, 60, 50, 12)),))
    stream = mixed_stream(processor, site, rules)
    lengths = StreamLengths(stream, LengthMeter(processor), CostModel(6e9, 3e5, 1.3e9, 2e4), tmp_path / "lengths.json")
    for start in range(0, 40, 5):
        samples = [stream[position] for position in range(start, start + 5)]
        found = lengths.epoch(start)
        assert found.tokens.tolist() == [len(sample.input_ids) for sample in samples]
        assert found.images.tolist() == [len(sample.image_grid_thw) for sample in samples]


def test_lengths_are_never_below_those_of_samples_that_augmentation_changes(
    processor: ChatProcessor, site: list[Row], rules: Path, tmp_path: Path
) -> None:
    augment = AugmentConfig(flip_horizontal=0.5, quarter_turns=True, scale=0.3, mosaic=0.5)
    stream = mixed_stream(processor, site, rules, augment)
    lengths = StreamLengths(
        stream, LengthMeter(processor, augment), CostModel(6e9, 3e5, 1.3e9, 2e4), tmp_path / "lengths.json"
    )
    for start in range(0, 60, 5):
        found = lengths.epoch(start).tokens.tolist()
        assert all(most >= len(stream[start + n].input_ids) for n, most in enumerate(found))


def test_photos_that_are_answered_in_words_change_their_colours_alone(
    processor: ChatProcessor, site: list[Row], rules: Path
) -> None:
    """Words about a whole photo may name sides and numbers, and verdicts count."""
    augment = AugmentConfig(flip_horizontal=1.0, mosaic=1.0, crop=1.0, brightness=0.4)
    stream = mixed_stream(processor, site, rules, augment)
    shown: list[tuple[str, list[Photo], list[Photo]]] = []
    real = processor.process_sample

    def process(sample: FewShotSample, augment: Any = None, salt: int = 0) -> ChatProcessorOutput:
        def watched(photos: Sequence[Photo]) -> list[Photo]:
            shown.append((sample.answer, list(photos), augment(photos)))
            return shown[-1][2]

        return real(sample, watched, salt)

    processor.process_sample = process  # type: ignore[method-assign]
    for position in range(40):
        stream[position]
    assert {answer for answer, _, _ in shown} == set(ANSWERS)
    for answer, before, after in shown:
        assert after[-1].image.tobytes() != before[-1].image.tobytes()
        if answer in ("summary", "verdict"):
            assert after[-1].objects == before[-1].objects and after[-1].image.size == before[-1].image.size
            change = np.asarray(after[-1].image, dtype=float).mean((0, 1)) / np.asarray(before[-1].image).mean((0, 1))
            assert np.ptp(change) < 0.1, "brighter or darker, nothing else"
