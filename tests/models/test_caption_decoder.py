"""Captions: causal, shifted, padding ignored; teacher forcing equals step-by-step decoding with a cache."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.nn import functional as F

from bbu.config import DetectionConfig
from bbu.inference.postprocess import model_inputs
from bbu.losses.denoising import denoising_targets
from bbu.losses.detection_loss import detection_sums
from bbu.losses.matcher import MatchCosts
from bbu.models.caption_decoder import CaptionDecoder
from bbu.models.wrapper import DetectionOutput, DetectionVLM
from bbu.training.objective import DetectionObjective, target_boxes
from tests.tiny import DESCRIPTIONS, FAMILIES, pack, run_model, tiny_config, tiny_model, tiny_processor, tiny_sample


@cache
def seen(family: str) -> tuple[DetectionVLM, DetectionOutput]:
    model, processor = tiny_model(family), tiny_processor(family)
    with torch.no_grad():
        return model, run_model(model, pack(model, [tiny_sample(processor, n, teachers=n) for n in range(2)]))


SAMPLES, QUERIES = torch.tensor([0, 1, 1, 0]), torch.tensor([3, 0, 9, 3])


def states(family: str, ids: torch.Tensor) -> torch.Tensor:
    model, output = seen(family)
    with torch.no_grad():
        return model.describe_states(output.memory, SAMPLES, output.at(SAMPLES, QUERIES), ids)


def some_ids() -> torch.Tensor:
    return torch.randint(20, 300, (4, 7), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("place", [0, 3, 6])
def test_a_token_is_predicted_from_earlier_tokens_only(family: str, place: int) -> None:
    ids = some_ids()
    other = ids.clone()
    other[:, place] += 1
    before, after = states(family, ids), states(family, other)
    torch.testing.assert_close(before[:, : place + 1], after[:, : place + 1], rtol=0, atol=1e-12)
    if place < 6:
        assert (before[:, place + 1] - after[:, place + 1]).abs().amax(-1).min() > 1e-6
        assert (before[:, -1] - after[:, -1]).abs().amax(-1).min() > 1e-9


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("longest", [1, 4, 24])
def test_padding_to_any_length_changes_nothing(family: str, longest: int) -> None:
    ids = some_ids()[:, : min(longest, 4)]
    padded = F.pad(ids, (0, longest - ids.shape[1]), value=7)
    plain = states(family, ids)
    torch.testing.assert_close(states(family, padded)[:, : ids.shape[1]], plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
def test_teacher_forcing_equals_decoding_step_by_step(family: str) -> None:
    model, output = seen(family)
    queries = torch.arange(10).repeat(2)
    samples = torch.arange(2).repeat_interleave(10)
    for end in (5, 300):  # one that is never chosen, and one among many
        result = model.describe(output, samples, queries, end)
        with torch.no_grad():
            forced = model.describe_states(output.memory, samples, output.at(samples, queries), result.token_ids)
        log_probs = (forced @ model.backbone.lm_head_weight.T).log_softmax(-1)
        expected = torch.zeros(len(samples), dtype=torch.float64)
        so_far = torch.zeros_like(result.cumulative_CL)
        for caption, ids in enumerate(result.token_ids.tolist()):
            for step, token in enumerate(ids):
                assert int(log_probs[caption, step].argmax()) == token, "not the most probable token"
                expected[caption] += log_probs[caption, step, token]
                so_far[caption, step:] = expected[caption]
                if token == end:
                    assert all(later == end for later in ids[step:])
                    break
        torch.testing.assert_close(result.log_probs, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(result.cumulative_CL, so_far, rtol=1e-9, atol=1e-9)


SIZES = DetectionConfig(width=16, heads=2, caption_layers=1, caption_region_cells=3, caption_max_tokens=6)


def test_decoding_stops_at_the_end_token_and_scores_it() -> None:
    """A random decoder whose captions end at different lengths, against teacher forcing."""
    torch.manual_seed(0)
    decoder = CaptionDecoder(SIZES, 12).double()
    embedding, head = torch.nn.Embedding(30, 12).double(), torch.randn(30, 12).double()
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    queries, region = torch.randn(40, 16).double() * 3, torch.randn(40, 9, 16).double()
    first = decoder.generate(queries, region, embedding, head, end_token_id=29).token_ids
    end = int(first[:, 1:4].flatten().mode().values)  # a token in many captions becomes the end token
    result = decoder.generate(queries, region, embedding, head, end_token_id=end)
    lengths = [ids.index(end) if end in ids else 6 for ids in result.token_ids.tolist()]
    assert len(set(lengths)) > 2, "the captions do not end at different lengths"
    with torch.no_grad():
        forced = (decoder(queries, region, embedding, result.token_ids) @ head.T).log_softmax(-1)
    for caption, length in enumerate(lengths):
        written = result.token_ids[caption, : min(length + 1, 6)]
        expected = forced[caption, torch.arange(len(written)), written].sum()
        torch.testing.assert_close(result.log_probs[caption], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_zero_captions_give_empty_results(family: str) -> None:
    model, output = seen(family)
    none, ids = torch.zeros(0, dtype=torch.long), torch.zeros(0, 3, dtype=torch.long)
    assert model.describe_states(output.memory, none, output.at(none, none), ids).shape[:2] == (0, 3)
    assert model.describe(output, none, none, 5).token_ids.shape[0] == 0


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("groups", [0, 2])
def test_the_caption_loss_is_that_of_the_matched_targets_tokens(family: str, groups: int) -> None:
    """Recomputed from the matches, query → target → its tokens one by one, without padding, and its weight.

    The positives of the first denoising groups describe their targets too; each target's loss is the mean.
    """
    weights = {desc: 0.5 + number for number, desc in enumerate(DESCRIPTIONS)}
    model, processor = tiny_model(family), tiny_processor(family, caption_weights=weights)
    batch = pack(model, [tiny_sample(processor, 4, parts=5), tiny_sample(processor, 5, parts=3)])
    assert len(set(batch["caption_ids"])) > 2 and len({len(ids) for ids in batch["caption_ids"]}) > 1
    loss = replace(tiny_config().loss, denoising_queries=30, caption_groups=groups)
    with torch.no_grad():
        found = DetectionObjective(model, loss)(**batch)["caption"]
        noisy = denoising_targets(target_boxes(batch), batch["box_counts"], 30, batch["salts"])
        output: DetectionOutput = model(**model_inputs(batch, torch.device("cpu")), denoising_queries=noisy.queries)
        matches = detection_sums(
            output.layers.boxes, output.layers.objectness,
            output.proposals.boxes, output.proposals.objectness, output.proposal_counts,
            torch.from_numpy(target_boxes(batch)), batch["box_counts"], costs=MatchCosts(),
        ).final  # fmt: skip
        pairs = [
            (output.at(matches.samples[row : row + 1], matches.predictions[row : row + 1]), target)
            for row, target in enumerate(matches.targets.tolist())
        ]
        assert len(pairs) == 8
        rows = zip(noisy.positives.tolist(), noisy.targets.tolist(), noisy.group_numbers.tolist(), strict=True)
        pairs += [(output.denoising_at(torch.tensor([row])), target) for row, target, group in rows if group < groups]
        assert len(pairs) == 8 * (1 + groups)
        expected = torch.zeros((), dtype=torch.float64)
        for query, target in pairs:
            tokens = batch["caption_ids"][target]
            assert tokens[-1] == processor.end_token_id
            sample = torch.tensor([0 if target < 5 else 1])
            for length in range(len(tokens)):  # each token from the earlier ones only
                ids = torch.tensor([[*tokens[:length], 9]])
                state = model.describe_states(output.memory, sample, query, ids)[0, -1]
                log_probs = (model.backbone.lm_head_weight @ state).log_softmax(-1)
                expected -= batch["caption_weights"][target] * log_probs[tokens[length]]
    torch.testing.assert_close(found.double(), expected / (1 + groups), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_order_of_targets_does_not_matter(family: str) -> None:
    weights = {desc: 0.5 + number for number, desc in enumerate(DESCRIPTIONS)}
    model, processor = tiny_model(family), tiny_processor(family, caption_weights=weights)
    objective = DetectionObjective(model, tiny_config().loss)
    batch = pack(model, [tiny_sample(processor, 4, parts=4), tiny_sample(processor, 5, parts=3)])
    order = [2, 0, 3, 1, 6, 4, 5]
    tokens = [batch["caption_ids"][target] for target in order]
    weights_of = [batch["caption_weights"][target] for target in order]
    shuffled = dict(batch, boxes=batch["boxes"][order], caption_ids=tokens, caption_weights=weights_of)
    swapped = dict(batch, caption_ids=tokens)  # captions of other targets must change the loss
    with torch.no_grad():
        plain, other, wrong = (objective(**each) for each in (batch, shuffled, swapped))
    for term, value in plain.items():
        torch.testing.assert_close(other[term], value, rtol=1e-9, atol=1e-9, msg=lambda t, n=term: f"{n}: {t}")
    assert (wrong["caption"] - plain["caption"]).abs() > 1e-3
