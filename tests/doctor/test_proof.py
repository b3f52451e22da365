"""The proof passes what training does and catches a way there and back that is off."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bbu.config import AnswersConfig
from bbu.data.chat_processor import IGNORE, ChatProcessor, ChatProcessorOutput
from bbu.data.sampling.answers import Answers
from bbu.doctor import proof
from bbu.doctor.proof import HEAD_COLOUR, RECORD_COLOUR, draw_proof, health_findings, prove
from bbu.doctor.reading import Sample
from bbu.families.prompts import ANSWERS
from bbu.geometry import ImageGeometry
from bbu.images import load_image
from bbu.records import FewShotSample, ObjectRow, Row


@pytest.fixture
def crowd(make_row: Callable[..., Row]) -> Sample:
    """Many parts, some with the same words, one a flat line, one as large as the photo."""
    row = make_row("crowd.png", 9, (611, 333))
    more = (
        ObjectRow("挡风板", "line", (5, 100.25, 600, 100.25)),
        ObjectRow("挡风板", "bbox_2d", (0, 0, 611, 333)),
        ObjectRow('a "b"/\\c', "poly", (10, 10, 50, 12, 30, 60)),
    )
    return Sample("train", "train.jsonl:1", FewShotSample(replace(row, objects=(*row.objects, *more))))


@pytest.mark.parametrize("convention", ["model_pixels", "norm1000"])
def test_real_geometry_comes_back_within_the_bounds(
    convention: str, crowd: Sample, make_chat_processor: Callable[..., ChatProcessor]
) -> None:
    proven = prove(crowd, "drawn", make_chat_processor(box_convention=convention))
    assert proven.problem == ""
    assert proven.head_error < 1e-6 and 0 < proven.text_error <= proven.text_bound
    np.testing.assert_allclose(proven.text_boxes[-1], [10, 10, 50, 60], atol=proven.text_bound)


def test_a_photo_without_parts_comes_back(make_row: Callable[..., Row], chat_processor: ChatProcessor) -> None:
    sample = Sample("train", "", FewShotSample(make_row("none.png", 0)))
    assert prove(sample, "drawn", chat_processor).problem == ""


def test_a_row_of_another_size_is_caught(crowd: Sample, chat_processor: ChatProcessor) -> None:
    shifted = replace(crowd, sample=FewShotSample(replace(crowd.row, width=612)))
    assert "612x333" in prove(shifted, "drawn", chat_processor).problem


@pytest.mark.parametrize(("pixels", "caught"), [(0.4, False), (0.6, True)])
def test_a_head_frame_that_is_off_by_more_than_half_a_pixel_is_caught(
    pixels: float, caught: bool, crowd: Sample, chat_processor: ChatProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = ImageGeometry.boxes_to_unit

    def shifted(self: ImageGeometry, boxes: Any) -> Any:
        return original(self, np.asarray(boxes, dtype=np.float64).reshape(-1, 4) + pixels)

    sample = replace(crowd, sample=FewShotSample(replace(crowd.row, objects=crowd.row.objects[:9])))  # away from edges
    monkeypatch.setattr(ImageGeometry, "boxes_to_unit", shifted)
    problem = prove(sample, "drawn", chat_processor).problem
    assert ("head's targets" in problem) == caught


def test_text_that_loses_a_part_or_moves_it_is_caught(
    crowd: Sample, chat_processor: ChatProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bbu.families.prompts import text_boxes

    monkeypatch.setattr("bbu.data.chat_processor.text_boxes", lambda *args: text_boxes(*args) + 1)
    assert "from the text" in prove(crowd, "drawn", chat_processor).problem
    monkeypatch.setattr(proof, "_from_text", lambda *args: (np.zeros((1, 4)), ["x"]))
    assert "inf pixels off" in prove(crowd, "drawn", chat_processor).problem


def test_the_picture_shows_both_frames(crowd: Sample, chat_processor: ChatProcessor) -> None:
    image = load_image(f"{chat_processor.image_root}/crowd.png")
    picture = draw_proof(image, prove(crowd, "drawn", chat_processor), largest=400)
    colours = {colour for _, colour in picture.getcolors(10**6)}
    assert max(picture.size) == 400 and {RECORD_COLOUR, HEAD_COLOUR} <= colours


def test_samples_are_checked_for_everything_they_may_be_asked_for(
    make_row: Callable[..., Row], make_chat_processor: Callable[..., ChatProcessor], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [replace(make_row(f"{n}.png", 2), summary="words", metadata={"group": "a"}) for n in range(3)]
    samples = [Sample("train", f"train.jsonl:{n}", FewShotSample(row)) for n, row in enumerate(rows, 1)]
    answers = Answers(AnswersConfig(boxes=1, summary=1, group=1), rows, seed=0)
    processor = make_chat_processor(answers=ANSWERS)
    assert health_findings(samples, answers, processor) == []
    real = processor.process_sample

    def unlearned(sample: FewShotSample) -> ChatProcessorOutput:
        made = real(sample)
        if sample.answer == "group":
            assert made.student_span is not None
            made.labels[made.student_span[1] - 1] = IGNORE
        return made

    monkeypatch.setattr(processor, "process_sample", unlearned)
    (found,) = health_findings(samples, answers, processor)
    assert (found.code, found.severity, found.count) == ("sample_broken", "error", 3)
    assert found.examples[0].detail.startswith("asked for group: answers and their end: tokens")
