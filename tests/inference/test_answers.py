"""Losses of right answers and answers that are written: the same in a batch as alone, over all families."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bbu.data.chat_processor import ChatProcessor, ChatProcessorOutput
from bbu.families.prompts import verdict_text
from bbu.inference.answers import answer_loss, pass_probabilities, token_losses, written_answers
from bbu.inference.predictor import Predictor
from bbu.records import FewShotSample, Row
from tests.tiny import FAMILIES, noise_photo, pack, run_model, tiny_model, tiny_processor

SIZES = [(112, 84), (84, 140), (56, 56)]


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def predictor(family: str, tmp_path: Path) -> Predictor:
    """An untrained model that may be asked for summaries and verdicts."""
    processor = tiny_processor(family)
    processor.spec = replace(processor.spec, summary_instruction="概括。", verdict_instruction="合格吗？")
    processor.image_root = str(tmp_path)
    for number, size in enumerate(SIZES):
        noise_photo(number, *size).image.save(tmp_path / f"{number}.png")
    return Predictor(tiny_model(family).float(), processor, batch_size=2)


@pytest.fixture
def questions() -> list[FewShotSample]:
    rows = [Row((f"{n}.png",), (), *size, summary="部件" * (n + 1)) for n, size in enumerate(SIZES)]
    on_site = FewShotSample(rows[2], context=tuple(rows[:2]), answer="verdict", text=verdict_text("fail", "松动"))
    return [*(FewShotSample(row, answer="summary") for row in rows), FewShotSample(rows[0]), on_site]


def stock_loss(predictor: Predictor, sample: ChatProcessorOutput) -> float:
    """Of the answer, by torch's own cross-entropy over all logits of the whole model's pass."""
    batch = pack(predictor.model, [sample])
    assert sample.student_span is not None
    with torch.no_grad():
        hidden = run_model(predictor.model, batch).hidden_TD
        first, last = sample.student_span
        logits = hidden[first - 1 : last - 1] @ predictor.model.backbone.lm_head_weight.T
    return float(torch.nn.functional.cross_entropy(logits, sample.input_ids[first:last], reduction="sum"))


def test_losses_are_those_of_each_sample_alone(predictor: Predictor, questions: Sequence[FewShotSample]) -> None:
    samples = [predictor.processor.process_sample(question) for question in questions]
    spans = [sample.student_span for sample in samples if sample.student_span]
    alone = [stock_loss(predictor, sample) for sample in samples]
    assert token_losses(predictor, samples, spans) == pytest.approx(alone, rel=1e-4)
    total, tokens = answer_loss(predictor, questions)
    assert total == pytest.approx(sum(alone), rel=1e-4)
    assert tokens == sum(stop - start for start, stop in spans)
    assert answer_loss(predictor, questions, lambda: False) == (0.0, 0)


def test_answers_are_written_one_by_one_or_in_a_batch(predictor: Predictor, questions: Sequence[FewShotSample]) -> None:
    together = list(written_answers(predictor, questions))
    assert [row.answer for row in together] == ["summary"] * 3 + ["boxes", "verdict"]
    assert [row.truth for row in together] == ["部件", "部件" * 2, "部件" * 3, "[]", "Verdict: fail\nReason: 松动"]
    assert together[-1].images == ("0.png", "1.png", "2.png")
    for question, row in zip(questions, together, strict=True):
        (alone,) = written_answers(predictor, [question])
        shorter = min(len(alone.written), len(row.written))  # a batch may go on for longer
        assert alone.written[:shorter] == row.written[:shorter]
    assert not predictor.model.training


def test_a_question_that_cannot_be_asked_is_left_out_and_named(
    predictor: Predictor, questions: Sequence[FewShotSample]
) -> None:
    gone = FewShotSample(Row(("gone.png",), (), 56, 56, summary="部件"), answer="summary")
    found: list[tuple[str, str]] = []

    def failed(question: FewShotSample, why: str) -> None:
        found.append((question.student.images[0], why))

    rows = list(written_answers(predictor, [questions[0], gone, questions[1]], failed=failed))
    assert [row.images for row in rows] == [("0.png",), ("1.png",)]
    assert answer_loss(predictor, [gone, questions[0]], failed=failed) == pytest.approx(
        answer_loss(predictor, [questions[0]])
    )
    assert [name for name, _ in found] == ["gone.png"] * 2 and "gone.png" in found[0][1]
    assert answer_loss(predictor, [gone]) == (0.0, 0)


def test_a_batch_holds_so_many_photos_and_at_least_one_question(
    predictor: Predictor, questions: Sequence[FewShotSample], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = predictor.collator

    def watched(samples: Sequence[ChatProcessorOutput]) -> Any:
        sizes.append(sum(len(sample.image_grid_thw) for sample in samples))
        return real(samples)

    monkeypatch.setattr(predictor, "collator", watched)
    answer_loss(predictor, [questions[4], *questions[:3], questions[4]])
    assert sizes == [3, 2, 1, 3]


def of_verdict(processor: ChatProcessor, verdict: str) -> ChatProcessorOutput:
    text = verdict_text(verdict, "?")
    return processor.process_photos([], noise_photo(4, 84, 56), with_answer=True, answer="verdict", text=text)


def test_pass_and_fail_are_weighed_where_they_first_differ(predictor: Predictor) -> None:
    pair = (of_verdict(predictor.processor, "pass"), of_verdict(predictor.processor, "fail"))
    ids = [sample.input_ids.tolist() for sample in pair]
    place = next(n for n, (a, b) in enumerate(zip(*ids, strict=False)) if a != b)
    model = predictor.model
    with torch.no_grad():
        hidden_TD = run_model(model, pack(model, [pair[0]])).hidden_TD
        logits = model.backbone.lm_head_weight @ hidden_TD[place - 1]
    wanted = logits[[row[place] for row in ids]].softmax(0)[0].item()
    chance, turned = pass_probabilities(predictor, [pair, pair[::-1]])
    assert chance == pytest.approx(wanted, abs=1e-5)
    assert turned == pytest.approx(1 - chance, abs=1e-6)
