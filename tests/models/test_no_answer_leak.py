"""Detections do not depend on the sample's own answer, but on its teachers' answers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from bbu.data.chat_processor import ChatProcessor, ChatProcessorOutput
from bbu.data.photo import Photo
from bbu.inference.postprocess import model_inputs
from bbu.models.wrapper import DetectionOutput, DetectionVLM
from bbu.records import ObjectRow
from tests.tiny import EXACT_BACKENDS, FAMILIES, noise_photo, pack, run_model, tiny_model, tiny_processor

FAMILY_AND_BACKEND = [(family, backend) for family in FAMILIES for backend in EXACT_BACKENDS]


def with_objects(photo: Photo, *objects: tuple[str, tuple[float, float, float, float]]) -> Photo:
    return replace(photo, objects=tuple(ObjectRow(desc, "bbox_2d", box) for desc, box in objects))


BOX, OTHER_BOX = (20.0, 20.0, 40.0, 60.0), (50.0, 30.0, 80.0, 70.0)  # the same number of digits in any family
TEACHERS = [
    with_objects(noise_photo(1, 84, 84), ("screw/tight", (10.0, 10.0, 50.0, 50.0))),
    with_objects(noise_photo(2, 112, 84), ("screw/loose", (20.0, 10.0, 60.0, 50.0))),
]
STUDENT = noise_photo(3, 112, 112)


def see(
    model: DetectionVLM, processor: ChatProcessor, student: Photo, teachers: list[Photo]
) -> tuple[ChatProcessorOutput, DetectionOutput, torch.Tensor, torch.Tensor]:
    """The middle sample of a pack: model output, caption tokens and their log-probabilities."""
    sample = processor.process_photos(teachers, student, with_answer=True)
    neighbours = [processor.process_photos([], noise_photo(n, 84, 56), with_answer=True) for n in (8, 9)]
    with torch.no_grad():
        output = run_model(model, pack(model, [neighbours[0], sample, neighbours[1]]))
        queries = torch.arange(output.pred_objectness.shape[1])
        captions = model.describe(output, torch.ones_like(queries), queries, processor.end_token_id)
    return sample, output, captions.token_ids, captions.log_probs


@pytest.mark.parametrize(("family", "backend"), FAMILY_AND_BACKEND)
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([("screw/tight", BOX)], [("screw/loose", BOX)]),
        ([("screw/tight", BOX)], [("screw/tight", OTHER_BOX)]),
        ([("screw/tight", BOX), ("screw/loose", OTHER_BOX)], [("screw/loose", BOX), ("screw/tight", OTHER_BOX)]),
    ],
    ids=["words", "box", "both"],
)
def test_an_answer_edit_of_equal_length_changes_no_bit_of_the_detections(
    family: str, backend: str, before: list[tuple[str, tuple[float, ...]]], after: list[tuple[str, tuple[float, ...]]]
) -> None:
    model, processor = tiny_model(family, backend=backend), tiny_processor(family)
    one = see(model, processor, with_objects(STUDENT, *before), TEACHERS)
    other = see(model, processor, with_objects(STUDENT, *after), TEACHERS)
    assert len(one[0].input_ids) == len(other[0].input_ids), "the edit changes the length"
    assert not torch.equal(one[0].input_ids, other[0].input_ids)
    assert not torch.equal(one[1].hidden_TD, other[1].hidden_TD)
    assert torch.equal(one[1].pred_boxes, other[1].pred_boxes)
    assert torch.equal(one[1].pred_objectness, other[1].pred_objectness)
    assert torch.equal(one[1].proposals.boxes, other[1].proposals.boxes)
    assert torch.equal(one[1].proposals.objectness, other[1].proposals.objectness)
    assert torch.equal(one[1].memory.tokens_MD, other[1].memory.tokens_MD)
    assert torch.equal(one[2], other[2]) and torch.equal(one[3], other[3])


@pytest.mark.parametrize(("family", "backend"), FAMILY_AND_BACKEND)
@pytest.mark.parametrize("count", [0, 1, 4])
def test_an_answer_of_another_length_does_not_change_the_detections(family: str, backend: str, count: int) -> None:
    model, processor = tiny_model(family, backend=backend), tiny_processor(family)
    longer = [("标签/不完整", BOX), ("screw/tight", OTHER_BOX), ("line", BOX), ("screw/loose", BOX)][:count]
    one = see(model, processor, with_objects(STUDENT, ("screw/tight", BOX), ("line", OTHER_BOX)), TEACHERS)
    other = see(model, processor, with_objects(STUDENT, *longer), TEACHERS)
    assert len(one[0].input_ids) != len(other[0].input_ids)
    for name in ("pred_boxes", "pred_objectness"):
        torch.testing.assert_close(getattr(one[1], name), getattr(other[1], name), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(one[1].proposals.objectness, other[1].proposals.objectness, rtol=1e-9, atol=1e-9)
    assert torch.equal(one[2], other[2])
    torch.testing.assert_close(one[3], other[3], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("family", "backend"), FAMILY_AND_BACKEND)
def test_detections_are_the_same_with_and_without_the_answer(family: str, backend: str) -> None:
    model, processor = tiny_model(family, backend=backend), tiny_processor(family)
    student = with_objects(STUDENT, ("screw/tight", BOX))
    found = []
    for with_answer in (True, False):
        batch = pack(model, [processor.process_photos(TEACHERS, student, with_answer=with_answer)])
        with torch.no_grad():
            found.append(model(**model_inputs(batch, torch.device("cpu"))))
    torch.testing.assert_close(found[0].pred_boxes, found[1].pred_boxes, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[0].pred_objectness, found[1].pred_objectness, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("family", "backend"), FAMILY_AND_BACKEND)
@pytest.mark.parametrize("teacher", [0, 1])
def test_a_teachers_answer_changes_the_detections(family: str, backend: str, teacher: int) -> None:
    model, processor = tiny_model(family, backend=backend), tiny_processor(family)
    student = with_objects(STUDENT, ("screw/tight", BOX))
    changed = list(TEACHERS)
    changed[teacher] = with_objects(TEACHERS[teacher], ("标签/完整", (1.0, 2.0, 33.0, 44.0)), ("line", BOX))
    one, other = (see(model, processor, student, teachers) for teachers in (TEACHERS, changed))
    assert (one[1].pred_boxes[1] - other[1].pred_boxes[1]).abs().max() > 1e-6
    assert (one[1].pred_objectness[1] - other[1].pred_objectness[1]).abs().max() > 1e-6
    assert (one[3] - other[3]).abs().max() > 1e-6
    for neighbour in (0, 2):
        torch.testing.assert_close(one[1].pred_boxes[neighbour], other[1].pred_boxes[neighbour], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_with_context_photos_the_memory_holds_the_students_photo_only(family: str) -> None:
    """Language features of that photo depend on the context, vision features do not."""
    model, processor = tiny_model(family), tiny_processor(family)
    processor.spec = replace(processor.spec, context_note="Last photo only. ")
    student = with_objects(STUDENT, ("screw/tight", BOX))
    found = []
    for seed in (5, 6):
        context = [noise_photo(seed, 84, 56), noise_photo(seed + 10, 56, 112)]
        sample = processor.process_photos(TEACHERS, student, context=context, with_answer=True)
        with torch.no_grad():
            found.append(run_model(model, pack(model, [sample])))
    memories = [output.memory for output in found]
    seen = processor.photo_plan.plan(112, 112)
    width = seen.canvas_width or seen.model_width
    sides = [width // side for side in model.backbone.level_sides]
    assert memories[0].level_grids == memories[1].level_grids == [[(side, side) for side in sides]], "112 x 112 pixels"
    coarse, text = sides[0] ** 2, sum(side**2 for side in sides)
    vision = coarse if model.backbone.language_at_image else text
    assert torch.equal(memories[0].tokens_MD[:vision], memories[1].tokens_MD[:vision])
    assert (memories[0].tokens_MD[vision:] - memories[1].tokens_MD[vision:]).abs().max() > 1e-6
    assert (found[0].pred_boxes - found[1].pred_boxes).abs().max() > 1e-6


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("with_answer", [True, False])
def test_an_answer_does_not_change_the_detections_with_context_photos(family: str, with_answer: bool) -> None:
    model, processor = tiny_model(family), tiny_processor(family)
    processor.spec = replace(processor.spec, context_note="Last photo only. ")
    found = []
    for answered, objects in ((True, [("screw/tight", BOX)]), (with_answer, [("screw/loose", OTHER_BOX)])):
        context = [noise_photo(5, 84, 56)]
        sample = processor.process_photos([], with_objects(STUDENT, *objects), context=context, with_answer=answered)
        batch = pack(model, [sample])
        with torch.no_grad():
            found.append(model(**model_inputs(batch, torch.device("cpu"))))
    torch.testing.assert_close(found[0].pred_boxes, found[1].pred_boxes, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found[0].memory.tokens_MD, found[1].memory.tokens_MD, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_detections_reach_the_prompt_but_not_the_answer(family: str) -> None:
    model, processor = tiny_model(family), tiny_processor(family)
    sample = processor.process_photos(TEACHERS, with_objects(STUDENT, ("screw/tight", BOX)), with_answer=True)
    embedded: list[torch.Tensor] = []
    hook = model.backbone.token_embedding.register_forward_hook(
        lambda module, inputs, output: embedded.append(output.detach().requires_grad_()) or embedded[-1]
    )
    output = run_model(model, pack(model, [sample]))
    hook.remove()
    total = output.pred_boxes.sum() + output.pred_objectness.sum() + output.proposals.objectness.sum()
    (gradient,) = torch.autograd.grad(total, embedded[0])
    assert sample.student_span is not None
    answer, teacher = slice(*sample.student_span), slice(*sample.teacher_spans[0])
    assert gradient[0, answer].abs().max() == 0
    assert gradient[0, teacher].abs().max() > 0
