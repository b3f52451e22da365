"""Token lengths of training samples, computed without opening a photo, and checks of the run's limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bbu.config import Config
from bbu.data.chat_processor import ChatProcessor
from bbu.data.packing.lengths import LengthMeter
from bbu.data.packing.planner import Budgets, Lengths
from bbu.data.replay import load_replay
from bbu.data.sampling.answers import Answers
from bbu.data.sampling.episodes import most_teachers
from bbu.data.sampling.groups import groups_of
from bbu.doctor.charts import Bar, histogram, round_edges
from bbu.doctor.findings import Example, Finding, finding
from bbu.doctor.reading import Sample
from bbu.errors import UserError
from bbu.records import FewShotSample, Row

TurnSize = tuple[int, int, int]  # tokens, patches, photos


@dataclass(frozen=True)
class TokenLengths:
    """Lengths of every training sample; their costs are 0.

    Args:
        max_length: data.max_length.
        teachers: most teachers that training may add to a sample without its own.
        alone: each sample with only the teachers and context written into it.
        longest: upper bound, with the longest ``teachers`` of the pool and the largest context photos added; or with
            another answer of data.answers, if that is longer.
    """

    max_length: int
    teachers: int
    alone: Lengths
    longest: Lengths

    @property
    def histogram(self) -> list[Bar]:
        return histogram(self.longest.tokens.tolist(), round_edges(max([*self.longest.tokens.tolist(), 1])))

    def to_json(self) -> dict[str, Any]:
        tokens = self.longest.tokens
        return {
            "computed": True,
            "why": None,
            "max_length": self.max_length,
            "teachers": self.teachers,
            "max": int(tokens.max(initial=0)),
            "mean": round(float(tokens.mean()), 1) if len(tokens) else 0,
            "histogram": [bar.to_json() for bar in self.histogram],
        }


def measure_lengths(
    samples: Sequence[Sample], pool: Sequence[Row], processor: ChatProcessor, config: Config
) -> TokenLengths:
    """Lengths of every sample as ChatProcessor would make it, without augmentation.

    Args:
        samples: of train, with readable photos and no special tokens in descriptions.
        pool: teachers that are drawn for samples without their own.
    """
    meter = LengthMeter(processor)
    own = _turns([row for sample in samples for row in (*sample.sample.teachers, sample.row)], meter)
    pooled = sorted(_turns(pool, meter), reverse=True)
    # the longest turns need not have the largest photos, so each gets its own bound
    largest = sorted((photo for _, photo, _ in pooled), reverse=True)
    teachers = min(most_teachers(config.data.episodes), len(pooled))
    drawn = (sum(tokens for tokens, _, _ in pooled[:teachers]), sum(largest[:teachers]), teachers)
    context = _Context(samples, meter, config.data.episodes.context_photos)
    alone: list[TurnSize] = []
    longest: list[TurnSize] = []
    turns = iter(own)
    for sample in samples:
        written = [next(turns) for _ in range(len(sample.sample.teachers) + 1)]
        alone.append(_sum((meter.system, 0, 0), *written, context.size([*map(meter.patches, sample.sample.context)])))
        more = [] if sample.sample.teachers else [drawn]
        more += [] if sample.sample.context else [context.size(context.longest(sample.row))]
        longest.append(_sum(alone[-1], *more))
    if others := _other_answers(samples, meter, config):
        longest = [_larger(*sizes) for sizes in zip(longest, others, strict=True)]
    pixels = processor.photo_plan.patch_size**2
    return TokenLengths(config.data.max_length, teachers, _lengths(alone, pixels), _lengths(longest, pixels))


def _other_answers(samples: Sequence[Sample], meter: LengthMeter, config: Config) -> list[TurnSize]:
    """Upper bound of each sample when it is asked for a summary or about its group; none if no sample is."""
    shares, none = config.data.answers, (0, 0, 0)
    if not (shares.summary or shares.group or shares.verdict):
        return []
    whole = [sample.row for sample in samples if sample.row.tile is None]
    annotated = groups_of([row for row in whole if row.annotated]) if shares.group else {}
    turns = {group: _group_turn(rows, meter, shares.group_photos) for group, rows in annotated.items() if len(rows) > 1}
    for judged, turn in _verdict_turns(whole, meter, config).items():
        turns[judged] = _larger(turn, turns.get(judged, none))
    found = []
    for sample in samples:
        row = sample.row
        summary = _turn([row], [meter.patches(row)], meter, "summary") if shares.summary and row.summary else none
        group = turns.get(row.group, none) if row.tile is None else none
        found.append(_larger(summary, group))
    return found


def _verdict_turns(whole: Sequence[Row], meter: LengthMeter, config: Config) -> dict[str | None, TurnSize]:
    """Group → size of the turn that asks for its verdict; none where verdicts are not learned, or cannot be."""
    if not config.data.answers.verdict:
        return {}
    try:
        answers = Answers(config.data.answers, whole, config.seed)
    except UserError:
        return {}  # a finding of its own
    found = {}
    for question in answers.questions(whole):
        if question.answer == "verdict":
            rows = (*question.context, question.student)
            found[rows[0].group] = _turn(rows, [*map(meter.patches, rows)], meter, "verdict", question.text)
    return found


def _group_turn(rows: Sequence[Row], meter: LengthMeter, most: int) -> TurnSize:
    """With as many photos as fit a turn: the longest answers, and the largest photos."""
    longest = np.argsort(meter.answers(rows), kind="stable")[-most:]
    return _turn([rows[number] for number in longest], sorted(map(meter.patches, rows))[-most:], meter, "group")


def _larger(one: TurnSize, other: TurnSize) -> TurnSize:
    tokens, patches, photos = map(max, one, other)
    return tokens, patches, photos


def _turn(rows: Sequence[Row], patches: Sequence[int], meter: LengthMeter, answer: str, text: str = "") -> TurnSize:
    """Size of a sample that is asked for a summary of its photo, or about its group."""
    sample = FewShotSample(rows[-1], context=tuple(rows[:-1]), answer=answer, text=text)
    words = meter.system + meter.frame(len(rows) - 1, answer) + meter.other_answer(sample)
    photos = sum(map(int, map(meter.processor.photo_plan.text_tokens, patches)))
    return words + photos - len(rows), sum(patches), len(rows)


def _turns(rows: Sequence[Row], meter: LengthMeter) -> list[TurnSize]:
    """Size of every row's turn: photo, instruction and answer.

    Special tokens separate turns, so the lengths of neighbouring turns simply add up.
    """
    photos, tokens_of = [meter.patches(row) for row in rows], meter.processor.photo_plan.text_tokens
    # the template writes one image token, which stands for all of the photo's
    return [
        (meter.frame() + answer + tokens_of(photo) - 1, photo, 1)
        for answer, photo in zip(meter.answers(rows), photos, strict=True)
    ]


def _sum(*sizes: TurnSize) -> TurnSize:
    tokens, patches, photos = (sum(column) for column in zip(*sizes, strict=True))
    return tokens, patches, photos


def _lengths(sizes: Sequence[TurnSize], pixels: int) -> Lengths:
    columns = np.array(sizes, dtype=np.int64).reshape(-1, 3).T
    return Lengths(columns[0], columns[1] * pixels, columns[2], np.zeros(len(sizes)))


class _Context:
    """Context photos that may be added to a student's turn, and their sizes."""

    def __init__(self, samples: Sequence[Sample], meter: LengthMeter, most: int) -> None:
        self.meter, self.most = meter, most
        self.groups: dict[str, list[int]] = {}
        for row in (sample.row for sample in samples) if most else ():
            if row.group is not None:
                self.groups.setdefault(row.group, []).append(meter.patches(row))

    def longest(self, student: Row) -> list[int]:
        """Patches of the largest context photos that the student can get."""
        others = sorted(self.groups.get(student.group or "", []), reverse=True)
        return others[: min(self.most, len(others) - 1)] if others else []

    def size(self, photos: Sequence[int]) -> TurnSize:
        """What context photos, given by their patches, and the note about them add to a turn."""
        note = self.meter.frame(len(photos)) - self.meter.frame() - len(photos)  # the frame has one token for each
        tokens_of = self.meter.processor.photo_plan.text_tokens
        return note + sum(map(tokens_of, photos)), sum(photos), len(photos)


def length_findings(lengths: TokenLengths, samples: Sequence[Sample], budgets: Budgets) -> list[Finding]:
    """Samples that exceed data.max_length or a planned pack: always, or only with some teachers and context."""
    found = _over("sample_too_long", lengths, samples, "tokens", lengths.max_length)
    for what, limit in budgets.limits.items():
        found += _over("sample_larger_than_pack", lengths, samples, what, limit)
    return found


def conversation_findings(config: Config, processor: ChatProcessor) -> list[Finding]:
    """The first conversation of data.replay that training would refuse."""
    try:
        replay = load_replay(config.data.replay, processor)
    except UserError as error:
        return [finding("bad_conversation", [Example(detail=str(error))])]
    if replay is None:
        return []
    sizes = [(int(tokens), sum(p), len(p)) for tokens, p in zip(replay.tokens, replay.patches, strict=True)]
    lengths = _lengths(sizes, processor.photo_plan.patch_size**2)
    for what, limit in Budgets.of(config.training).limits.items():
        largest = int(getattr(lengths, what).argmax())
        if (size := int(getattr(lengths, what)[largest])) > limit:
            detail = f"{size} {what}, over training.pack_{what} {limit}"
            return [finding("bad_conversation", [Example(replay.rows[largest].where, detail=detail)])]
    return []


def _over(code: str, lengths: TokenLengths, samples: Sequence[Sample], what: str, limit: int) -> list[Finding]:
    alone, longest = (getattr(which, what).tolist() for which in (lengths.alone, lengths.longest))
    certain, possible = [], []
    for sample, size, most in zip(samples, alone, longest, strict=True):
        if size > limit:
            certain.append(Example(sample.where, sample.name, detail=f"{size} {what}"))
        elif most > limit:
            possible.append(Example(sample.where, sample.name, detail=f"{size} {what}, up to {most}"))
    values: dict[str, Any] = {"what": what, "limit": limit, "longest": max(longest, default=0)}
    found = [finding(code, certain, **values)] if certain else []
    return found + ([finding(f"{code}_with_teachers", possible, **values)] if possible else [])
