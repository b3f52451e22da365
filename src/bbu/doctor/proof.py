"""Proof of the geometry contract on real samples: a box goes into the model's frames and comes back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bbu.data.chat_processor import ChatProcessor, ChatProcessorOutput
from bbu.doctor.findings import Example, Finding, finding
from bbu.doctor.photos import PhotoFacts
from bbu.doctor.reading import Sample
from bbu.errors import UserError
from bbu.families.prompts import boxes_from_text
from bbu.geometry import cxcywh_to_xyxy, thicken

if TYPE_CHECKING:
    from PIL import Image

HEAD_BOUND = 0.5  # displayed pixels
FLOAT_SLACK = 1e-6  # displayed pixels: rounding of the arithmetic itself

Words = Sequence[str]


@dataclass(frozen=True)
class Proven:
    """One sample and what came back.

    Args:
        why: why this one: ``drawn``, or what is odd about it.
        head_boxes: (n, 4) displayed xyxy that came back from the head's targets, in the row's order.
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
    """The odd ones (EXIF-turned, smallest photo, most objects) and ``count`` drawn by seed, each once."""
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
    """Send a sample through the processor that training uses and compare what comes back with the record."""
    none = np.zeros((0, 4))
    try:
        output = processor.process_sample(type(sample.sample)(sample.row))
    except UserError as error:
        return Proven(sample, why, none, none, problem=str(error))
    row = sample.row
    words = [item.desc for item in row.objects]
    exact_N4 = np.array([item.box for item in row.objects], dtype=np.float64).reshape(-1, 4)
    thick_N4 = np.array([thicken(box.tolist(), row.width, row.height) for box in exact_N4]).reshape(-1, 4)
    head_N4, head_error = _in_order(thick_N4, words, *_from_head(output))
    text_N4, text_error = _in_order(exact_N4, words, *_from_text(output, processor))
    text_bound = _text_bound(output, processor)
    problem = ""
    if not head_error <= HEAD_BOUND + FLOAT_SLACK:
        problem = f"a box comes back from the head's frame {head_error:.2f} pixels off, over {HEAD_BOUND}"
    elif not text_error <= text_bound + FLOAT_SLACK:
        problem = f"a box comes back from the text {text_error:.2f} pixels off, over {text_bound:.2f}"
    return Proven(sample, why, head_N4, text_N4, head_error, text_error, text_bound, problem)


def _from_head(output: ChatProcessorOutput) -> tuple[np.ndarray, Words]:
    """Targets in [0, 1] → displayed pixels."""
    targets = output.ground_truth_objects
    unit = cxcywh_to_xyxy(np.array([item.box for item in targets], dtype=np.float64).reshape(-1, 4))
    return output.geometry.boxes_from_unit(unit), [item.desc for item in targets]


def _from_text(output: ChatProcessorOutput, processor: ChatProcessor) -> tuple[np.ndarray, Words]:
    """Token ids of the answer → its JSON → displayed pixels."""
    assert output.student_span is not None
    start, stop = output.student_span
    answer = str(processor.tokenizer.decode(output.input_ids[start : stop - 1].tolist()))
    parts = json.loads(answer)
    boxes = np.array([part["bbox_2d"] for part in parts], dtype=np.float64).reshape(-1, 4)
    shown = boxes_from_text(output.geometry, boxes, processor.spec.box_convention)
    return shown, [part["label"] for part in parts]


def _text_bound(output: ChatProcessorOutput, processor: ChatProcessor) -> float:
    """Half a unit of the written coordinates, in displayed pixels, on the coarser axis."""
    geometry = output.geometry
    across, down = (
        (geometry.model_width, geometry.model_height)
        if processor.spec.box_convention == "model_pixels"
        else (1000, 1000)
    )
    return 0.5 * max(geometry.width / across, geometry.height / down)


def _in_order(truth_N4: np.ndarray, words: Words, found_M4: np.ndarray, found_words: Words) -> tuple[np.ndarray, float]:
    """Returned boxes in the record's order and the largest difference; infinite if one has no partner.

    Matched by words and then by place, since head and text each have an order of their own.
    """
    if len(truth_N4) != len(found_M4):
        return np.zeros((0, 4)), float("inf")
    if not len(truth_N4):
        return truth_N4, 0.0
    away_NM = np.abs(truth_N4[:, None] - found_M4[None]).max(axis=-1)
    same_NM = np.array([[word == other for other in found_words] for word in words])
    away_NM = np.where(same_NM, away_NM, np.inf)
    partner_N = np.full(len(truth_N4), -1)
    for flat in np.argsort(away_NM, axis=None, kind="stable"):
        one, other = np.unravel_index(flat, away_NM.shape)
        if partner_N[one] < 0 and other not in partner_N and np.isfinite(away_NM[one, other]):
            partner_N[one] = other
    if (partner_N < 0).any():
        return np.zeros((0, 4)), float("inf")
    return found_M4[partner_N], float(away_NM[np.arange(len(partner_N)), partner_N].max())


def proof_findings(proven: Sequence[Proven]) -> list[Finding]:
    """Samples that failed."""
    failed = [Example(item.sample.where, item.sample.name, detail=item.problem) for item in proven if item.problem]
    return [finding("geometry_broken", failed)] if failed else []


def draw_proof(image: Image.Image, proven: Proven, largest: int = 560) -> Image.Image:
    """The photo with the record's boxes (green, solid) and those that came back from head and text (dashed).

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
            _dashed(draw, box, colour, phase)
    return picture


RECORD_COLOUR, HEAD_COLOUR, TEXT_COLOUR = (40, 215, 90), (255, 70, 90), (60, 140, 255)


def _dashed(draw: Any, box: np.ndarray, colour: tuple[int, int, int], phase: int) -> None:
    """An outline of dashes of 8 pixels, every third place left to the other frame."""
    x1, y1, x2, y2 = (float(value) for value in box)
    for (ax, ay), (bx, by) in (((x1, y1), (x2, y1)), ((x2, y1), (x2, y2)), ((x2, y2), (x1, y2)), ((x1, y2), (x1, y1))):
        length = max(abs(bx - ax), abs(by - ay))
        for start in np.arange(phase, length, 24.0):
            a, b = start / max(length, 1), min(start + 8, length) / max(length, 1)
            draw.line((ax + (bx - ax) * a, ay + (by - ay) * a, ax + (bx - ax) * b, ay + (by - ay) * b), colour, 2)
