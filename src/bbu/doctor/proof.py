"""Proof of the geometry contract on real samples: boxes survive the way into the model's frames and back.

Shapes: Gt ground-truth objects, R rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bbu.data.chat_processor import ChatProcessor, ChatProcessorOutput
from bbu.data.health import faults_of
from bbu.data.sampling.answers import Answers
from bbu.doctor.findings import Example, Finding, finding
from bbu.doctor.photos import PhotoFacts
from bbu.doctor.reading import Sample
from bbu.drawing.outlines import corners, draw_path
from bbu.drawing.palette import PALETTE
from bbu.errors import UserError
from bbu.families.prompts import ON_GROUPS, boxes_from_text, read_answer, text_unit
from bbu.geometry import cxcywh_to_xyxy, thicken
from bbu.records import FewShotSample

if TYPE_CHECKING:
    from PIL import Image

HEAD_BOUND = 0.5  # displayed pixels
FLOAT_SLACK = 1e-6  # displayed pixels, for floating-point rounding
RECORD_COLOUR, HEAD_COLOUR, TEXT_COLOUR = PALETTE[2], PALETTE[3], PALETTE[0]


@dataclass(frozen=True)
class Proven:
    """One sample and its boxes after the round trip.

    Args:
        why: why it was chosen: ``drawn``, or what is special about it.
        head_boxes: (n, 4) displayed xyxy from the head's targets, in the row's order.
        text_boxes: (n, 4) the same from the integers in the tokens of the answer.
        head_error, text_error: largest distance of an edge, in displayed pixels.
        text_bound: half a step of the text's coordinates, in displayed pixels.
        problem: why it failed; "" if it did not.
    """

    sample: Sample
    why: str
    head_boxes: np.ndarray
    text_boxes: np.ndarray
    head_error: float = 0.0
    text_error: float = 0.0
    text_bound: float = 0.0
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "where": self.sample.where,
            "photo": self.sample.name,
            "why": self.why,
            "objects": len(self.sample.row.objects),
            "head_error": round(self.head_error, 4),
            "head_bound": HEAD_BOUND,
            "text_error": round(self.text_error, 4),
            "text_bound": round(self.text_bound, 4),
            "problem": self.problem,
        }


def choose_samples(
    samples: Sequence[Sample], facts: Mapping[str, PhotoFacts], count: int, seed: int
) -> list[tuple[Sample, str]]:
    """The special ones (EXIF-rotated, smallest photo, most objects) and ``count`` drawn by seed, without repeats.

    Only of photos that are annotated.
    """
    samples = [sample for sample in samples if sample.row.annotated]
    if not count or not samples:
        return []
    turned = next((s for s in samples if facts[s.name].orientation != 1), None)
    smallest = min(samples, key=lambda s: s.row.width * s.row.height)
    fullest = max(samples, key=lambda s: len(s.row.objects))
    drawn = np.random.default_rng(seed).permutation(len(samples))[:count]
    chosen = [
        *([(turned, f"EXIF orientation {facts[turned.name].orientation}")] if turned else []),
        (smallest, "smallest photo"),
        (fullest, "most objects"),
        *((samples[int(number)], "drawn") for number in drawn),
    ]
    unique: dict[int, tuple[Sample, str]] = {}
    for sample, why in chosen:
        unique.setdefault(id(sample), (sample, why))
    return list(unique.values())


def prove(sample: Sample, why: str, processor: ChatProcessor) -> Proven:
    """Send a sample through training's processor, map its boxes back and compare them with the record."""
    none = np.zeros((0, 4))
    try:
        output = processor.process_sample(type(sample.sample)(sample.row))
    except UserError as error:
        return Proven(sample, why, none, none, problem=str(error))
    row = sample.row
    descs = [item.desc for item in row.objects]
    exact_Gt4 = np.array([item.box for item in row.objects], dtype=np.float64).reshape(-1, 4)
    thick_Gt4 = np.array([thicken(box.tolist(), row.width, row.height) for box in exact_Gt4]).reshape(-1, 4)
    head_Gt4, head_error = _in_order(thick_Gt4, descs, *_from_head(output))
    text_Gt4, text_error = _in_order(exact_Gt4, descs, *_from_text(output, processor))
    assert output.geometry is not None  # a student's photo
    text_bound = 0.5 * text_unit(output.geometry, processor.spec.box_convention)
    problem = ""
    if not head_error <= HEAD_BOUND + FLOAT_SLACK:
        problem = f"a box from the head's targets is {head_error:.2f} pixels off; {HEAD_BOUND} is allowed"
    elif not text_error <= text_bound + FLOAT_SLACK:
        problem = f"a box from the text is {text_error:.2f} pixels off; {text_bound:.2f} is allowed"
    return Proven(sample, why, head_Gt4, text_Gt4, head_error, text_error, text_bound, problem)


def _from_head(output: ChatProcessorOutput) -> tuple[np.ndarray, Sequence[str]]:
    """Targets in [0, 1] → displayed pixels."""
    assert output.geometry is not None
    targets = output.ground_truth_objects
    unit = cxcywh_to_xyxy(np.array([item.box for item in targets], dtype=np.float64).reshape(-1, 4))
    return output.geometry.boxes_from_unit(unit), [item.desc for item in targets]


def _from_text(output: ChatProcessorOutput, processor: ChatProcessor) -> tuple[np.ndarray, Sequence[str]]:
    """Token ids of the answer → its JSON → displayed pixels."""
    assert output.student_span is not None and output.geometry is not None
    start, stop = output.student_span
    answer = str(processor.tokenizer.decode(output.input_ids[start : stop - 1].tolist()))
    items = read_answer(answer)
    boxes = np.array([box for box, _ in items], dtype=np.float64).reshape(-1, 4)
    shown = boxes_from_text(output.geometry, boxes, processor.spec.box_convention)
    return shown, [label for _, label in items]


def _in_order(
    truth_Gt4: np.ndarray, descs: Sequence[str], found_R4: np.ndarray, found_descs: Sequence[str]
) -> tuple[np.ndarray, float]:
    """Returned boxes in the record's order and the largest difference; infinite if a box has no partner.

    Matched by description, then by distance, since head and text each have an order of their own.
    """
    if len(truth_Gt4) != len(found_R4):
        return np.zeros((0, 4)), float("inf")
    if not len(truth_Gt4):
        return truth_Gt4, 0.0
    away_GtR = np.abs(truth_Gt4[:, None] - found_R4[None]).max(axis=-1)
    same_GtR = np.array([[desc == other for other in found_descs] for desc in descs])
    away_GtR = np.where(same_GtR, away_GtR, np.inf)
    partner_Gt = np.full(len(truth_Gt4), -1)
    for flat in np.argsort(away_GtR, axis=None, kind="stable"):
        one, other = np.unravel_index(flat, away_GtR.shape)
        if partner_Gt[one] < 0 and other not in partner_Gt and np.isfinite(away_GtR[one, other]):
            partner_Gt[one] = other
    if (partner_Gt < 0).any():
        return np.zeros((0, 4)), float("inf")
    return found_R4[partner_Gt], float(away_GtR[np.arange(len(partner_Gt)), partner_Gt].max())


def proof_findings(proven: Sequence[Proven]) -> list[Finding]:
    """Samples that failed."""
    failed = [Example(item.sample.where, item.sample.name, detail=item.problem) for item in proven if item.problem]
    return [finding("geometry_broken", failed)] if failed else []


def health_findings(samples: Sequence[Sample], answers: Answers, processor: ChatProcessor) -> list[Finding]:
    """Samples that break a check of bbu.data.health, each asked for everything that training may ask it for."""
    broken = []
    for sample in samples:
        for answer in answers.possible(sample.row):
            asked = FewShotSample(sample.row, answer=answer)
            if answer in ON_GROUPS:
                asked = answers.on_group(answer, sample.row, epoch=0, number=0)
            try:
                faults = faults_of(processor, asked, processor.process_sample(asked))
            except UserError as error:
                faults = [str(error)]
            broken += [Example(sample.where, sample.name, detail=f"asked for {answer}: {fault}") for fault in faults]
    return [finding("sample_broken", broken)] if broken else []


def draw_proof(image: Image.Image, proven: Proven, largest: int = 560) -> Image.Image:
    """The photo with the record's boxes (solid) and those from head and text (dashed, alternating).

    Args:
        largest: pixels of the picture's longer side.
    """
    from PIL import ImageDraw

    shrink = min(1.0, largest / max(image.size))
    picture = image.resize((max(1, round(image.width * shrink)), max(1, round(image.height * shrink))))
    draw = ImageDraw.Draw(picture)
    for item in proven.sample.row.objects:
        x1, y1, x2, y2 = (value * shrink for value in item.box)
        draw.rectangle((x1, y1, x2, y2), outline=RECORD_COLOUR, width=3)
    for boxes, colour, phase in ((proven.head_boxes, HEAD_COLOUR, 0), (proven.text_boxes, TEXT_COLOUR, 8)):
        for box in boxes * shrink:
            outline = corners(box.tolist())
            draw_path(draw, [*outline, outline[0]], colour, (8.0, 16.0), width=2, rim=0, phase=phase)
    return picture
