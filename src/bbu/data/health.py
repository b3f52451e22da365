"""What must hold for every sample, whatever the family and whatever it is asked for; checked by tests and the doctor.

Each check takes the processor, the rows of a sample as they are, and the sample that the processor has made of them
without augmentation. It returns what is wrong, "" if nothing is.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import numpy as np

from bbu.data.chat_processor import IGNORE, ChatProcessor, ChatProcessorOutput, Span
from bbu.families.prompts import boxes_from_text, read_answer, text_unit
from bbu.records import FewShotSample, Row

Check = Callable[[ChatProcessor, FewShotSample, ChatProcessorOutput], str]
SLACK = 1e-6  # pixels, for floating-point rounding


def photos_have_places(processor: ChatProcessor, sample: FewShotSample, made: ChatProcessorOutput) -> str:
    """The photos of the sample, their patch grids and their places in the text are as many."""
    is_photo = np.array([IGNORE, *made.input_ids.tolist(), IGNORE]) == processor.image_token_id
    places, photos = int((np.diff(is_photo.astype(int)) == 1).sum()), len(_photos(sample))
    if places == len(made.image_grid_thw) == photos:
        return ""
    return f"{photos} photos, {len(made.image_grid_thw)} patch grids, {places} places in the text"


def grids_fit_patches(processor: ChatProcessor, sample: FewShotSample, made: ChatProcessorOutput) -> str:
    """The grids are those of the photos after the resize, and account for every patch row."""
    plans = [processor.photo_plan.plan(row.width, row.height) for row in _photos(sample)]
    wanted, grids = [list(processor.photo_plan.grid(plan)) for plan in plans], made.image_grid_thw.tolist()
    if grids != wanted:
        return f"patch grids are {grids}, the photos resize to {wanted}"
    rows, width = int(made.image_grid_thw.prod(-1).sum()), processor.photo_plan.patch_width
    if tuple(made.pixel_values.shape) != (rows, width):
        return f"pixel_values is {tuple(made.pixel_values.shape)}, the grids need {(rows, width)}"
    return ""


def answers_are_learned_to_their_end(processor: ChatProcessor, sample: FewShotSample, made: ChatProcessorOutput) -> str:
    """Every answer is supervised up to its end token, which comes nowhere before; no image token is."""
    spans = _answers(made)
    if len(spans) != len(sample.teachers) + 1:
        return f"{len(spans)} answers for {len(sample.teachers)} teachers and the student"
    for start, stop in spans:
        ids = made.input_ids[start:stop].tolist()
        if made.labels[start:stop].tolist() != ids:
            return f"tokens {start} to {stop} are an answer, and not all of them are learned"
        if ids[-1:] != [processor.end_token_id] or processor.end_token_id in ids[:-1]:
            return f"the answer of tokens {start} to {stop} does not have its end token at its end alone"
    if (made.labels[made.input_ids == processor.image_token_id] != IGNORE).any():
        return "image tokens are learned"
    return ""


def nothing_else_is_learned(processor: ChatProcessor, sample: FewShotSample, made: ChatProcessorOutput) -> str:
    """Labels are -100 outside the answers."""
    outside = np.ones(len(made.labels), dtype=bool)
    for start, stop in _answers(made):
        outside[start:stop] = False
    learned = int((made.labels.numpy()[outside] != IGNORE).sum())
    return f"{learned} tokens outside the answers are learned" if learned else ""


def answer_has_the_units_of_the_family(
    processor: ChatProcessor, sample: FewShotSample, made: ChatProcessorOutput
) -> str:
    """Boxes come back from the text within half a unit of the rows', which are in pixels; words are as given."""
    start, stop = _answers(made)[-1]
    text = str(processor.tokenizer.decode(made.input_ids[start : stop - 1].tolist()))
    if sample.answer in ("summary", "verdict"):
        own = sample.text or sample.student.summary
        return "" if text == own else f"the answer reads {text!r}, not {own!r}"
    rows = [*sample.context, sample.student] if sample.answer == "group" else [sample.student]
    try:
        texts = [json.dumps(photo["objects"]) for photo in json.loads(text)] if sample.answer == "group" else [text]
        found = [read_answer(one) for one in texts]
    except (ValueError, KeyError, TypeError) as error:
        return f"the answer cannot be read: {error!r}"
    if len(found) != len(rows):
        return f"the answer is about {len(found)} photos of {len(rows)}"
    faults = (_boxes_off(processor, row, items) for row, items in zip(rows, found, strict=True))
    return next((fault for fault in faults if fault), "")


def _boxes_off(processor: ChatProcessor, row: Row, items: Sequence[tuple[list[float], str]]) -> str:
    name = row.images[0]
    if sorted(label for _, label in items) != sorted(item.desc for item in row.objects):
        return f"{name}: the answer has {len(items)} objects, the row {len(row.objects)}, or other descriptions"
    plan = processor.photo_plan.plan(row.width, row.height)
    numbers = np.array([box for box, _ in items], dtype=np.float64).reshape(-1, 4)
    boxes = boxes_from_text(plan, numbers, processor.spec.box_convention)
    half = 0.5 * text_unit(plan, processor.spec.box_convention)
    off = 0.0
    for (_, label), box in zip(items, boxes, strict=True):
        same = np.array([item.box for item in row.objects if item.desc == label])
        off = max(off, float(np.abs(same - box).max(1).min()))
    return "" if off <= half + SLACK else f"{name}: a box of the answer is {off:.2f} pixels off, {half:.2f} are allowed"


CHECKS: dict[str, Check] = {
    "photos and their places in the text": photos_have_places,
    "patch grids and patches": grids_fit_patches,
    "answers and their end": answers_are_learned_to_their_end,
    "labels outside the answers": nothing_else_is_learned,
    "units of the answer": answer_has_the_units_of_the_family,
}


def faults_of(processor: ChatProcessor, sample: FewShotSample, made: ChatProcessorOutput) -> list[str]:
    """What is wrong with a sample, with the name of the check."""
    found = ((name, check(processor, sample, made)) for name, check in CHECKS.items())
    return [f"{name}: {fault}" for name, fault in found if fault]


def _photos(sample: FewShotSample) -> list[Row]:
    return [*sample.teachers, *sample.context, sample.student]


def _answers(made: ChatProcessorOutput) -> list[Span]:
    return [*made.teacher_spans, *([made.student_span] if made.student_span else [])]
