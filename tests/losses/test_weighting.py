"""The weighted sum: counts, denominators, and losses of teachers and students by answer span."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bbu.config import LossConfig
from bbu.data.chat_processor import IGNORE
from bbu.losses.weighting import LANGUAGE_TERMS, TERMS, count_terms, term_weights, weigh
from bbu.training.objective import DetectionObjective
from tests.tiny import (
    FAMILIES,
    conversation_samples,
    mixed_samples,
    pack,
    run_model,
    tiny_config,
    tiny_model,
    tiny_processor,
)

WEIGHTS = dict(zip(TERMS, (0.1, 1.0, 0.7, 5.0, 2.0, 3.0, 0.5), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_supervised_token_belongs_to_exactly_one_answer_span(family: str) -> None:
    model, processor = tiny_model(family), tiny_processor(family)
    batch = pack(model, [*conversation_samples(processor), *mixed_samples(processor)])
    owners = torch.zeros(batch["labels"].shape[1], dtype=torch.long)
    spans = [span for key in ("teacher_spans", "replay_spans") for spans in batch[key] for span in spans]
    for start, stop in [*spans, *filter(None, batch["student_spans"])]:
        owners[start:stop] += 1
    assert torch.equal(owners, (batch["labels"][0] != IGNORE).long())
    counts = count_terms(batch)
    assert sum(counts[term] for term in LANGUAGE_TERMS) == int((batch["labels"] != IGNORE).sum())
    assert all(counts[term] > 0 for term in LANGUAGE_TERMS)


@pytest.mark.parametrize("family", FAMILIES)
def test_terms_are_counted_in_supervised_tokens_and_targets(family: str) -> None:
    samples = mixed_samples(tiny_processor(family))
    counts = count_terms(pack(tiny_model(family), samples))
    targets = sum(len(sample.ground_truth_objects) for sample in samples)
    tokens = sum(len(item.caption_ids) for sample in samples for item in sample.ground_truth_objects)
    assert (counts["bbox_l1"], counts["bbox_giou"], counts["objectness"]) == (targets,) * 3
    assert counts["caption"] == tokens
    assert counts["student_lm"] == sum(b - a for a, b in (sample.student_span for sample in samples))


def test_the_total_is_the_sum_of_weight_times_sum_over_count() -> None:
    sums = {term: torch.tensor(10.0 + number) for number, term in enumerate(TERMS)}
    counts = {term: torch.tensor(float(number + 1)) for number, term in enumerate(TERMS)}
    found = weigh(sums, counts, WEIGHTS)
    assert list(found) == list(TERMS)
    for number, term in enumerate(TERMS):
        assert found[term].item() == pytest.approx(WEIGHTS[term] * (10 + number) / (number + 1))


def test_a_count_of_zero_divides_by_one() -> None:
    sums = dict.fromkeys(TERMS, torch.tensor(3.0))
    for zero in (0, torch.tensor(0.0)):
        assert weigh(sums, dict.fromkeys(TERMS, zero), WEIGHTS)["objectness"].item() == pytest.approx(9.0)


def test_weights_are_those_of_the_config_and_every_one_is_used() -> None:
    weights = {f"{term}_weight": float(number) for number, term in enumerate(TERMS)}
    assert term_weights(LossConfig(**weights)) == {term: float(number) for number, term in enumerate(TERMS)}
    named = {field.name for field in dataclasses.fields(LossConfig) if field.name.endswith("_weight")}
    assert named == set(weights)


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_of_teachers_and_students_are_summed_separately(family: str) -> None:
    """They equal a plain cross-entropy over all logits, split by span; so do those of replayed conversations."""
    model, processor = tiny_model(family), tiny_processor(family)
    batch = pack(model, [*mixed_samples(processor), *conversation_samples(processor)])
    with torch.no_grad():
        sums = DetectionObjective(model, tiny_config().loss)(**batch)
        logits = run_model(model, batch).hidden_TD @ model.backbone.lm_head_weight.T
    losses = torch.nn.functional.cross_entropy(logits[:-1], batch["labels"][0, 1:], reduction="none")
    expected = {
        "teacher_lm": sum(losses[a - 1 : b - 1].sum() for spans in batch["teacher_spans"] for a, b in spans),
        "student_lm": sum(losses[a - 1 : b - 1].sum() for a, b in filter(None, batch["student_spans"])),
        "replay_lm": sum(losses[a - 1 : b - 1].sum() for spans in batch["replay_spans"] for a, b in spans),
    }
    for term, value in expected.items():
        torch.testing.assert_close(sums[term], value, rtol=1e-9, atol=1e-9)
