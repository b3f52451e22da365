"""How long a training sample will be, without opening a photo: tokens, pixels and photos, from the rows alone.

Exact where augmentation changes only colours; otherwise an upper bound (docs/packing.md).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bbu.config import AugmentConfig
from bbu.data.packing.planner import Lengths
from bbu.data.sampling.order import Draw
from bbu.errors import ImageError, RecordError
from bbu.families.cost import CostModel
from bbu.families.prompts import answer_text, group_text, text_boxes, text_shapes
from bbu.geometry import ImageGeometry
from bbu.jsonl import decode_json, write_json
from bbu.records import FewShotSample, Row
from bbu.taxonomy import MirrorRules

if TYPE_CHECKING:
    from bbu.data.chat_processor import ChatProcessor
    from bbu.data.dataset import TrainingStream

BATCH = 4096  # answers given to the tokenizer at a time, which shares them out over all cores
# An answer that loses its last object, or whose objects change places, ends in other punctuation: at most so many
# tokens more, since a description's own last signs may have been one token with what follows.
ENDING = 4
_CROPS = ("crop", "object_crop")
_MOVES = ("flip_horizontal", "flip_vertical", "quarter_turns", "rotate", "scale", *_CROPS, "mosaic", "copy_paste")


class LengthMeter:
    """Tokens and photo sizes of rows under one processor and augmentation.

    Args:
        processor: tokenizer, prompt and resize policy.
        augment: what may happen to photos; None = nothing.
        mirror: what flips do to descriptions.
    """

    def __init__(
        self, processor: ChatProcessor, augment: AugmentConfig | None = None, mirror: MirrorRules | None = None
    ) -> None:
        self.processor, self.augment = processor, augment or AugmentConfig()
        self.mirror = mirror or MirrorRules()
        self.moves = any(getattr(self.augment, name) for name in _MOVES)
        self.crops = any(getattr(self.augment, name) for name in _CROPS)
        self.widest_host = 0  # widest number of any photo that objects of others are mixed into
        self._frames: dict[tuple[int, str], int] = {}

    # ------------------------------------------------------------ tokens

    @cached_property
    def system(self) -> int:
        """Tokens before the first turn."""
        return 2 * self._conversation(1) - self._conversation(2)

    def frame(self, context: int = 0, answer: str = "boxes") -> int:
        """Tokens of a turn besides its answer, a key of ANSWERS, each of its 1 + ``context`` photos as one."""
        key = context, answer
        if key not in self._frames:
            empty = len(self._encode(["[]"])[0])
            self._frames[key] = self._conversation(1, context, answer) - self.system - empty
        return self._frames[key]

    def _conversation(self, turns: int, context: int = 0, answer: str = "boxes") -> int:
        answers = ["[]"] * turns
        messages = self.processor.messages(answers[:-1], answers[-1], context, answer)
        return len(self._encode([self.processor.text(messages, with_answer=True)])[0])

    def other_answer(self, sample: FewShotSample) -> int:
        """Most tokens of the answer of a sample that is not asked for its boxes."""
        if sample.answer == "summary":
            return len(self._encode([sample.student.summary or ""])[0])
        if sample.answer == "verdict":
            return len(self._encode([sample.text])[0])
        rows = (*sample.context, sample.student)
        more = sum(ENDING for row in rows if self.moves and row.objects)
        return len(self._encode([group_text([self._answer(row) for row in rows])])[0]) + more

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return list(self.processor.tokenizer(list(texts), add_special_tokens=False)["input_ids"])

    def answers(self, rows: Sequence[Row]) -> list[int]:
        """Most tokens of each row's answer; the end token belongs to the frame."""
        found: list[int] = []
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            counts = [len(ids) for ids in self._encode([self._answer(row) for row in batch])]
            more = [ENDING if self.moves and row.objects else 0 for row in batch]
            found += [count + extra for count, extra in zip(counts, more, strict=True)]
        return found

    def _answer(self, row: Row) -> str:
        """As ChatProcessor writes it; with the longest numbers and descriptions that moved objects can get."""
        boxes = np.array([item.box for item in row.objects], dtype=np.float64).reshape(-1, 4)
        written = text_boxes(self.plan(row), boxes, self.processor.spec.box_convention)
        descs = [item.desc for item in row.objects]
        if self.moves:
            widest = max(self.widest_number(row), self.widest_host)
            written = np.where(written < 0, -widest, widest)
            descs = [self._longest_description(desc) for desc in descs]
        shapes = None
        if self.processor.spec.geometry == "own":
            shapes = text_shapes(self.plan(row), row.objects, self.processor.spec.box_convention)
            if self.moves:
                shapes = [(kind, self._widened(kind, points, widest)) for kind, points in shapes]
        return answer_text(written, descs, shapes)

    def _widened(self, kind: str, points: Sequence[int], widest: int) -> list[int]:
        """As many numbers as a geometry can get, each as long as it can get."""
        clipped = 8 if kind == "poly" else 0  # a corner of the photo cuts off a vertex and adds two
        return [widest] * (len(points) + clipped)

    def widest_number(self, row: Row) -> int:
        """Nines, as many as the largest coordinate can have digits."""
        largest = 1000
        if self.processor.spec.box_convention == "model_pixels":
            largest = self.processor.photo_plan.longest_side(row.width, row.height, cropped=self.crops)
        return int(10 ** len(str(largest)) - 1)

    def _longest_description(self, desc: str) -> str:
        """The description or a mirror image of it, whichever has most tokens."""
        if desc not in self._longest:
            images = [desc]
            for mirror, amount in (
                ("horizontal", self.augment.flip_horizontal),
                ("vertical", self.augment.flip_vertical),
            ):
                images += [self.mirror.swap(image, mirror) for image in images if amount]
            counts = [len(ids) for ids in self._encode([f'"{image}"' for image in images])]
            self._longest[desc] = images[counts.index(max(counts))]
        return self._longest[desc]

    @cached_property
    def _longest(self) -> dict[str, str]:
        return {}

    # ------------------------------------------------------------ photos

    def plan(self, row: Row) -> ImageGeometry:
        """How a row's photo, as it is, maps to the model."""
        try:
            return self.processor.photo_plan.plan(row.width, row.height)
        except ValueError as error:
            raise ImageError(f"{row.images[0]}: {error}") from None

    def patches(self, row: Row) -> int:
        """Most patches of a row's photo."""
        if self.crops:
            return self.processor.photo_plan.most_patches(row.width, row.height)
        return math.prod(self.processor.photo_plan.grid(self.plan(row)))


# ---------------------------------------------------------------- the table, kept on disk


@dataclass(frozen=True)
class LengthTable:
    """(R,) answer tokens and patches of rows, in their order."""

    answers: np.ndarray
    patches: np.ndarray


def measure_rows(meter: LengthMeter, rows: Sequence[Row], cache: Path) -> LengthTable:
    """Lengths of rows, read from the cache where prompt, tokenizer, augmentation and rows are those of then.

    A damaged cache counts as none. It is written whole or not at all.
    """
    key = _key(meter, rows)
    try:
        known = decode_json(cache.read_text(encoding="utf-8"), str(cache))
        if known["key"] == key and len(known["answers"]) == len(known["patches"]) == len(rows):
            return LengthTable(*(np.array(known[name], dtype=np.int64) for name in ("answers", "patches")))
    except (OSError, UnicodeDecodeError, RecordError, KeyError, TypeError, ValueError, OverflowError):
        pass  # it can be made again
    answers, patches = meter.answers(rows), [meter.patches(row) for row in rows]
    write_json(cache, {"key": key, "answers": answers, "patches": patches})
    return LengthTable(np.array(answers, dtype=np.int64), np.array(patches, dtype=np.int64))


def _key(meter: LengthMeter, rows: Iterable[Row]) -> str:
    """SHA-256 of everything that a length depends on."""
    processor = meter.processor
    facts: list[Any] = [
        processor.spec.hash,
        processor.photo_plan.facts(),
        processor.tokenizer.backend_tokenizer.to_str(),
        asdict(meter.augment),
        asdict(meter.mirror),
    ]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for row in rows:
        digest.update(json.dumps(row.to_json(), sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


# ---------------------------------------------------------------- samples of a run


class StreamLengths:
    """Lengths of the samples of a stream, epoch by epoch, with the teachers and context that each gets there.

    Args:
        cost: of a sample, to balance ranks by.
        cache: file of the rows' lengths.
    """

    def __init__(self, stream: TrainingStream, meter: LengthMeter, cost: CostModel, cache: Path) -> None:
        self.stream, self.meter, self.cost = stream, meter, cost
        rows = list({id(row): row for row in _rows_of(stream)}.values())
        self._place = {id(row): number for number, row in enumerate(rows)}
        if meter.augment.mosaic or meter.augment.copy_paste:
            meter.widest_host = max(meter.widest_number(sample.student) for sample in stream.samples)
        self._table = measure_rows(meter, rows, cache)
        self._photo_costs = cost.photos(self._table.patches)
        self._photo_tokens = meter.processor.photo_plan.text_tokens(self._table.patches)
        self._longest_piece = max(meter.answers(stream.augmenter.piece_rows()), default=0)

    def _mixed_in(self, draw: Draw, sample: FewShotSample) -> int:
        """Most tokens that mosaic and copy-paste add to a student's answer."""
        rows = (*sample.teachers, *sample.context, sample.student)
        tiles, pieces = self.stream.augmenter.mixed_in(draw.epoch, draw.number, {row.images[0] for row in rows})
        answers = [int(self._table.answers[self._place[id(row)]]) for row in tiles]
        return sum(answers) + pieces * self._longest_piece

    def epoch(self, start: int) -> Lengths:
        """Lengths of the samples from position ``start``, where an epoch begins, to its end."""
        found: list[tuple[int, int, int, float]] = []
        number, position = self.stream.draw_at(start).epoch, start
        while self.stream.draw_at(position).epoch == number:
            found.append(self._measure(position))
            position += 1
        tokens, patches, images, photo_cost = (np.array(column) for column in zip(*found, strict=True))
        pixels = patches * self.meter.processor.photo_plan.patch_size**2
        return Lengths(tokens, pixels, images, self.cost.text(tokens) + photo_cost)

    def name(self, position: int) -> str:
        """The sample at a position, for messages."""
        return self.stream.name_at(position)

    def _measure(self, position: int) -> tuple[int, int, int, float]:
        """Tokens, patches, photos, FLOPs of the vision tower. A longer sample than max_length is never made."""
        conversation = self.stream.mixture.at(position).conversation
        if conversation is not None:
            return self._measure_conversation(conversation)
        draw = self.stream.draw_at(position)
        sample = self.stream.shown(draw)
        turns = [self._place[id(row)] for row in (*sample.teachers, sample.student)]
        photos = [*turns, *(self._place[id(row)] for row in sample.context)]
        shown = sum(self._photo_tokens[photos].tolist())
        tokens = self.meter.system + self.meter.frame() * len(sample.teachers) + shown - len(photos)
        tokens += self.meter.frame(len(sample.context), sample.answer)
        if sample.answer == "boxes":
            tokens += sum(self._table.answers[turns].tolist()) + self._mixed_in(draw, sample)
        else:
            tokens += self.meter.other_answer(sample)
            tokens += self._mixed_in(draw, sample) if sample.answer == "group" else 0
        most = self.meter.processor.max_length
        patches = sum(self._table.patches[photos].tolist())
        return min(tokens, most), patches, len(photos), float(self._photo_costs[photos].sum())

    def _measure_conversation(self, number: int) -> tuple[int, int, int, float]:
        """As _measure, of a conversation of data.replay; exact."""
        replay = self.stream.replay
        assert replay is not None
        patches = np.array(replay.patches[number], dtype=np.int64)
        return int(replay.tokens[number]), int(patches.sum()), len(patches), float(self.cost.photos(patches).sum())


def _rows_of(stream: TrainingStream) -> Iterable[Row]:
    """Every row that a sample can hold."""
    for sample in stream.samples:
        yield from (sample.student, *sample.teachers, *sample.context)
    if stream.episodes is not None:
        yield from stream.episodes.pool.rows if stream.episodes.pool else ()
        for group in stream.episodes.groups.values():
            yield from group
    if stream.answers is not None:
        for group in stream.answers.groups.values():
            yield from group
