"""Packing never changes a sample: packed = alone, for any grouping and order, down to the gradients."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bbu.data.chat_processor import ChatProcessorOutput
from bbu.data.collators import Batch, StandardDataCollator
from bbu.losses.weighting import TERMS
from bbu.models.wrapper import DetectionOutput, DetectionVLM
from bbu.training.objective import DetectionObjective
from tests.tiny import (
    EXACT_BACKENDS,
    FAMILIES,
    Conversation,
    conversation,
    conversation_samples,
    mixed_samples,
    noise_photo,
    pack,
    run_backbone,
    run_model,
    tiny_config,
    tiny_model,
    tiny_processor,
)

TOLERANCE = 1e-9
CAPTION_QUERIES = (0, 4, 9)
SAMPLES = 9
CONTEXT_SIZES = ((56, 84), (112, 56), (84, 84), (140, 56))
TEXTS = 6  # conversations for the backbone alone


def groupings(count: int) -> st.SearchStrategy[tuple[list[int], set[int]]]:
    """An order of so many samples, and where it is cut into packs."""
    return st.tuples(st.permutations(range(count)), st.sets(st.integers(1, count - 1)))


def close(packed: torch.Tensor, alone: torch.Tensor, what: str) -> None:
    assert packed.shape == alone.shape, what
    torch.testing.assert_close(packed, alone, rtol=TOLERANCE, atol=TOLERANCE, msg=lambda text: f"{what}: {text}")


def groups_of(order: Sequence[int], cuts: set[int]) -> list[list[int]]:
    boundaries = [0, *sorted(cuts), len(order)]
    return [list(order[first:last]) for first, last in itertools.pairwise(boundaries)]


@dataclass
class Outcome:
    """The compared outputs of one sample; those of detection are empty where the sample takes no part in it."""

    lm_logits: torch.Tensor
    boxes: torch.Tensor  # all layers
    objectness: torch.Tensor
    proposal_boxes: torch.Tensor
    proposal_objectness: torch.Tensor
    caption_logits: torch.Tensor


def outcomes(model: DetectionVLM, batch: Batch, output: DetectionOutput) -> list[Outcome]:
    """The outputs of each sample of a pack."""
    lengths = batch["cu_seqlens"].diff().tolist()
    hidden = output.hidden_TD.split(lengths)
    boxes = output.proposals.boxes.split(output.proposal_counts)
    objectness = output.proposals.objectness.split(output.proposal_counts)
    ids = torch.arange(4 * len(CAPTION_QUERIES)).reshape(-1, 4) + 30
    assert len(output.pred_boxes) == len(output.pred_objectness) == len(batch["detecting"]) == len(boxes)
    found = []
    for sample in range(len(lengths)):
        lm_logits = hidden[sample] @ model.backbone.lm_head_weight.T
        if sample not in batch["detecting"]:
            found.append(Outcome(lm_logits, *[torch.zeros(0)] * 5))
            continue
        number = batch["detecting"].index(sample)
        where = torch.full((len(CAPTION_QUERIES),), number)
        queries = output.at(where, torch.tensor(CAPTION_QUERIES))
        states = model.describe_states(output.memory, where, queries, ids)
        found.append(
            Outcome(
                lm_logits,
                output.layers.boxes[:, number],
                output.layers.objectness[:, number],
                boxes[number],
                objectness[number],
                states @ model.backbone.lm_head_weight.T,
            )
        )
    return found


def context_sample(family: str) -> ChatProcessorOutput:
    """One teacher, and two context photos before the student's in its turn."""
    processor = tiny_processor(family)
    processor.spec = replace(processor.spec, context_note="Last photo only. ")
    teacher, *context, student = (noise_photo(900 + n, *size) for n, size in enumerate(CONTEXT_SIZES))
    return processor.process_photos([teacher], student, context=context, with_answer=True)


Gradients = dict[str, list[torch.Tensor]]


def gradients(model: nn.Module, sums: dict[str, torch.Tensor]) -> Gradients:
    """Gradients of every term's sum for every parameter."""
    parameters = list(model.parameters())
    return {
        term: list(torch.autograd.grad(sums[term], parameters, retain_graph=True, materialize_grads=True))
        for term in TERMS
    }


@dataclass
class Alone:
    """Results of every sample run alone."""

    model: DetectionVLM
    objective: DetectionObjective
    samples: list[ChatProcessorOutput]
    outcomes: list[Outcome]
    sums: list[dict[str, torch.Tensor]]
    gradients: Gradients  # summed over the samples


@cache
def alone(family: str, backend: str) -> Alone:
    model = tiny_model(family, backend=backend)
    objective = DetectionObjective(model, tiny_config().loss)
    processor = tiny_processor(family)
    samples = [*mixed_samples(processor), context_sample(family), *conversation_samples(processor)]
    found, sums, total = [], [], None
    for sample in samples:
        batch = pack(model, [sample])
        with torch.no_grad():
            found += outcomes(model, batch, run_model(model, batch))
        sums.append(objective(**batch))
        one = gradients(model, sums[-1])
        total = one if total is None else added(total, one)
    assert total is not None
    return Alone(model, objective, samples, found, sums, total)


def added(first: Gradients, second: Gradients) -> Gradients:
    return {term: [a + b for a, b in zip(first[term], second[term], strict=True)] for term in first}


@pytest.mark.parametrize("backend", EXACT_BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=6)
@given(grouping=groupings(SAMPLES))
def test_outputs_of_a_sample_do_not_depend_on_its_pack(
    family: str, backend: str, grouping: tuple[list[int], set[int]]
) -> None:
    reference = alone(family, backend)
    for group in groups_of(*grouping):
        batch = pack(reference.model, [reference.samples[number] for number in group])
        with torch.no_grad():
            found = outcomes(reference.model, batch, run_model(reference.model, batch))
        for number, outcome in zip(group, found, strict=True):
            for name, value in vars(outcome).items():
                close(value, getattr(reference.outcomes[number], name), f"{name} of sample {number} in {group}")


@pytest.mark.parametrize("backend", EXACT_BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=4)
@given(grouping=groupings(SAMPLES))
def test_losses_and_gradients_do_not_depend_on_the_packs(
    family: str, backend: str, grouping: tuple[list[int], set[int]]
) -> None:
    reference = alone(family, backend)
    total: Gradients | None = None
    for group in groups_of(*grouping):
        sums = reference.objective(**pack(reference.model, [reference.samples[number] for number in group]))
        for term in TERMS:
            expected = torch.stack([reference.sums[number][term].double() for number in group]).sum()
            close(sums[term].double(), expected, f"{term} of {group}")
        one = gradients(reference.model, sums)
        total = one if total is None else added(total, one)
    assert total is not None
    names = [name for name, _ in reference.model.named_parameters()]
    for term in TERMS:
        scale = max(float(gradient.abs().max()) for gradient in reference.gradients[term])
        for name, packed, single in zip(names, total[term], reference.gradients[term], strict=True):
            close(packed / scale, single / scale, f"gradient of {term} for {name}")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_batch_equals_a_packed_one(family: str) -> None:
    reference = alone(family, "sdpa")
    model = reference.model
    pad = tiny_processor(family).pad_token_id
    padded = StandardDataCollator(model.backbone.position_function(), pad)(reference.samples)
    packed = pack(model, reference.samples)
    with torch.no_grad():
        one, other = reference.objective(**padded), reference.objective(**packed)
        boxes = run_model(model, padded).pred_boxes
    for term in TERMS:
        assert torch.equal(one[term], other[term]), term
    assert torch.equal(boxes, run_model(model, packed).pred_boxes)


def conversations(family: str) -> list[Conversation]:
    """No image, many images, one token, one large image, one image of a single token, images side by side."""
    backbone = alone(family, "sdpa").model.backbone
    return [
        conversation(backbone, 1, 9),
        conversation(backbone, 2, 3, [(56, 84), (140, 168), (28, 56), (196, 56)]),
        conversation(backbone, 3, 1),
        conversation(backbone, 4, 5, [(196, 168)]),
        conversation(backbone, 5, 2, [(28, 28)]),
        conversation(backbone, 6, 0, [(84, 56), (56, 56), (112, 84)]),
    ]


@pytest.mark.parametrize("backend", EXACT_BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=8)
@given(grouping=groupings(TEXTS))
def test_the_backbone_separates_samples_of_any_content(
    family: str, backend: str, grouping: tuple[list[int], set[int]]
) -> None:
    backbone = alone(family, backend).model.backbone
    parts = conversations(family)
    with torch.no_grad():
        single = [run_backbone(backbone, [part]) for part in parts]
        for group in groups_of(*grouping):
            packed = run_backbone(backbone, [parts[number] for number in group])
            close(packed.hidden_TD, torch.cat([single[n].hidden_TD for n in group]), f"hidden states of {group}")
            for level, found in enumerate(packed.vision_levels):
                seen = [single[n].vision_levels[level] for n in group if single[n].vision_levels]
                close(found.tokens_SD, torch.cat([x.tokens_SD for x in seen]), f"level {level} of {group}")
                assert found.grids == [grid for x in seen for grid in x.grids]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_gradient_flows_between_samples_of_a_pack(family: str) -> None:
    backbone = alone(family, "sdpa").model.backbone
    parts = conversations(family)[:3]
    middle = slice(len(parts[0].ids), len(parts[0].ids) + len(parts[1].ids))
    embedded: list[torch.Tensor] = []
    hook = backbone.token_embedding.register_forward_hook(
        lambda module, inputs, output: embedded.append(output.detach().requires_grad_()) or embedded[-1]
    )
    try:
        hidden = run_backbone(backbone, parts).hidden_TD
    finally:
        hook.remove()
    (gradient,) = torch.autograd.grad(hidden[middle].square().sum(), embedded[0])
    assert gradient[0, middle].abs().sum() > 0
    assert gradient[0, : middle.start].abs().max() == 0
    assert gradient[0, middle.stop :].abs().max() == 0
