"""Token lengths of whole training samples: the real chat text, and image tokens counted from sizes alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bbu.config import Config
from bbu.data.chat_processor import ChatProcessor
from bbu.data.episodes import most_teachers
from bbu.data.prompts import answer_text, build_messages, text_boxes
from bbu.doctor.charts import Bar, histogram, round_edges
from bbu.doctor.findings import Example, Finding, finding
from bbu.doctor.reading import Sample
from bbu.geometry import ImageGeometry
from bbu.records import Row

BATCH = 1000  # conversations tokenised at a time


@dataclass(frozen=True)
class TokenLengths:
    """Tokens of every training sample.

    Args:
        max_length: data.max_length.
        teachers: most teachers that training may add to a sample without any of its own.
        alone: tokens of each sample with the teachers written into it.
        longest: the same with the longest ``teachers`` of the pool and the largest context photos: an upper bound.
        photo_tokens: image tokens of the photos written into each sample.
    """

    max_length: int
    teachers: int
    alone: list[int] = field(default_factory=list)
    longest: list[int] = field(default_factory=list)
    photo_tokens: list[int] = field(default_factory=list)

    @property
    def histogram(self) -> list[Bar]:
        return histogram(self.longest, round_edges(max([*self.longest, 1])))

    def to_json(self) -> dict[str, Any]:
        return {
            "computed": True,
            "why": None,
            "max_length": self.max_length,
            "teachers": self.teachers,
            "max": max(self.longest, default=0),
            "mean": round(float(np.mean(self.longest)), 1) if self.longest else 0,
            "histogram": [bar.to_json() for bar in self.histogram],
        }


def measure_lengths(
    samples: Sequence[Sample], pool: Sequence[Row], processor: ChatProcessor, config: Config
) -> TokenLengths:
    """Tokens of every sample, as ChatProcessor would make them.

    Args:
        samples: of train; photos readable, descriptions without special tokens.
        pool: teachers that are drawn for samples without any of their own.
    """
    asked = [row for sample in samples for row in (*sample.sample.teachers, sample.row)]
    system, turns = turn_lengths([*asked, *pool], processor)
    own, pooled = iter(turns[: len(asked)]), sorted(turns[len(asked) :], reverse=True)
    teachers = min(most_teachers(config.data.episodes), len(pooled))
    context = _Context(samples, processor, config.data.episodes.context_photos)
    lengths = TokenLengths(config.data.max_length, teachers)
    for sample in samples:
        alone = system + sum(next(own) for _ in range(len(sample.sample.teachers) + 1))
        alone += context.tokens([image_tokens(row, processor) for row in sample.sample.context])
        more = 0 if sample.sample.teachers else sum(pooled[:teachers])
        if not sample.sample.context:
            more += context.tokens(context.longest(sample.row))
        lengths.alone.append(alone)
        lengths.longest.append(alone + more)
        lengths.photo_tokens.append(sum(image_tokens(row, processor) for row in sample.shown))
    return lengths


class _Context:
    """Photos of the same site that may stand in the student's turn, and what they cost."""

    def __init__(self, samples: Sequence[Sample], processor: ChatProcessor, most: int) -> None:
        self.processor, self.most = processor, most
        self.written: dict[int, int] = {}
        self.groups: dict[str, list[int]] = {}
        for row in (sample.row for sample in samples) if most else ():
            if row.group is not None:
                self.groups.setdefault(row.group, []).append(image_tokens(row, processor))

    def longest(self, student: Row) -> list[int]:
        """Image tokens of the largest photos of the student's group, at most as many as it has others."""
        others = sorted(self.groups.get(student.group or "", []), reverse=True)
        return others[: min(self.most, len(others) - 1)] if others else []

    def tokens(self, photos: Sequence[int]) -> int:
        """Tokens that these photos, by their image tokens, add to a turn, with the words about them."""
        if not photos:
            return 0
        number = len(photos)
        if number not in self.written:
            counts = [_count([["[]"]], self.processor, context)[0] for context in (number, 0)]
            self.written[number] = counts[0] - counts[1] - number  # the image tokens are counted by size
        return self.written[number] + sum(photos)


def turn_lengths(rows: Sequence[Row], processor: ChatProcessor) -> tuple[int, list[int]]:
    """Tokens before the first turn, and of every row's turn: photo, question and answer.

    Turns are parted by tokens of their own, so their lengths add up whatever stands beside them.
    """
    if not rows:
        return 0, []
    once, twice = (_count([[_answer(rows[0], processor)] * times], processor)[0] for times in (1, 2))
    system = 2 * once - twice
    turns: list[int] = []
    for start in range(0, len(rows), BATCH):
        batch = rows[start : start + BATCH]
        counts = _count([[_answer(row, processor)] for row in batch], processor)
        # the template writes one image token, which stands for all of the photo's
        turns += [n - system - 1 + image_tokens(row, processor) for n, row in zip(counts, batch, strict=True)]
    return system, turns


def _count(conversations: Sequence[Sequence[str]], processor: ChatProcessor, context: int = 0) -> list[int]:
    """Tokens of whole conversations by their answers, every photo as the one token that the template writes."""
    texts = [
        str(
            processor.tokenizer.apply_chat_template(
                build_messages(processor.spec, answers[:-1], answers[-1], context),
                chat_template=processor.spec.chat_template,
                tokenize=False,
            )
        )
        for answers in conversations
    ]
    return [len(ids) for ids in processor.tokenizer(texts, add_special_tokens=False)["input_ids"]]


def plan(row: Row, processor: ChatProcessor) -> ImageGeometry:
    """How a row's photo, unturned, maps to the model."""
    spec = processor.spec
    return ImageGeometry.plan(
        row.width, row.height, factor=processor.factor, min_pixels=spec.min_pixels, max_pixels=spec.max_pixels
    )


def image_tokens(row: Row, processor: ChatProcessor) -> int:
    """Tokens of a row's photo."""
    geometry = plan(row, processor)
    return geometry.model_width * geometry.model_height // processor.factor**2


def _answer(row: Row, processor: ChatProcessor) -> str:
    boxes = np.array([item.box for item in row.objects], dtype=np.float64).reshape(-1, 4)
    written = text_boxes(plan(row, processor), boxes, processor.spec.box_convention)
    return answer_text(written, [item.desc for item in row.objects])


def length_findings(lengths: TokenLengths, samples: Sequence[Sample]) -> list[Finding]:
    """Samples that do not fit, whatever the teachers, and those that do not fit with long ones."""
    limit, longest = lengths.max_length, max(lengths.longest, default=0)
    certain, possible = [], []
    for sample, alone, most in zip(samples, lengths.alone, lengths.longest, strict=True):
        if alone > limit:
            certain.append(Example(sample.where, sample.name, detail=f"{alone} tokens"))
        elif most > limit:
            possible.append(Example(sample.where, sample.name, detail=f"{alone} tokens, up to {most}"))
    values: dict[str, Any] = {"max_length": limit, "longest": longest}
    found = [finding("sample_too_long", certain, **values)] if certain else []
    return found + ([finding("sample_too_long_with_teachers", possible, **values)] if possible else [])
