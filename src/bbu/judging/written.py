"""Verdicts that the language model wrote: read from the file of ``bbu write-verdicts``, judged at a threshold.

A group passes if its answer is well-formed and the probability of ``pass`` reaches the threshold. A malformed answer,
or a photo that could not be read, is a fail.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bbu.errors import UserError
from bbu.families.prompts import parse_verdict
from bbu.jsonl import iter_json_lines
from bbu.judging.verdicts import FAIL, PASS, Evidence
from bbu.records import FieldChecker

LIKELIER = 0.5  # probability from which pass is likelier than fail


@dataclass(frozen=True)
class WrittenGroup:
    """The answer on one group, or the error that prevented it.

    Args:
        text: as written, see bbu.families.prompts.verdict_text.
        finished: it ended before the token limit.
        pass_probability: of ``pass`` against ``fail``, in [0, 1].
    """

    group: str
    images: tuple[str, ...]
    text: str = ""
    finished: bool = True
    pass_probability: float = 0.0
    error: str | None = None

    @property
    def answer(self) -> tuple[str, str] | None:
        """Verdict and reason as written; None = malformed."""
        return parse_verdict(self.text) if self.finished and self.error is None else None

    def passes(self, threshold: float) -> bool:
        """Whether it passes at a threshold."""
        return self.answer is not None and self.pass_probability >= threshold

    def to_json(self) -> dict[str, Any]:
        where = {"group": self.group, "images": list(self.images)}
        if self.error is not None:
            return {**where, "error": self.error}
        chance = self.pass_probability  # in full: thresholds are chosen among them
        return {**where, "text": self.text, "finished": self.finished, "pass_probability": chance}


def parse_written(value: Any, where: str) -> WrittenGroup:
    """Check one decoded row.

    Raises:
        RecordError: it is none.
    """
    check = FieldChecker(where, "")
    if isinstance(value, dict) and "error" in value:
        check.keys(value, required=("group", "images", "error"))
        error = check.text(value["error"], "error")
        return WrittenGroup(check.text(value["group"], "group"), check.images(value["images"]), error=error)
    check.keys(value, required=("group", "images", "text", "finished", "pass_probability"))
    if not isinstance(value["finished"], bool):
        check.fail("finished", "must be true or false")
    return WrittenGroup(
        check.text(value["group"], "group"),
        check.images(value["images"]),
        check.string(value["text"], "text"),
        value["finished"],
        check.unit(value["pass_probability"], "pass_probability"),
    )


def is_written(path: str | Path) -> bool:
    """Whether a file has written verdicts, by its first line; predictions have no group.

    Raises:
        UserError: it has no line.
    """
    first = next((value for _, value in iter_json_lines(path)), None)
    if first is None:
        raise UserError(f"{path}: there is nothing to judge; check the file")
    return isinstance(first, dict) and "group" in first


def read_written(path: str | Path) -> list[WrittenGroup]:
    """The lines that ``bbu write-verdicts`` has written.

    Raises:
        RecordError: file and line, the field, and what is wrong with it.
        UserError: a group appears twice.
    """
    found: dict[str, WrittenGroup] = {}
    for where, value in iter_json_lines(path):
        row = parse_written(value, where)
        if row.group in found:
            raise UserError(f"{where}: group {row.group!r} appears twice; keep one of the two lines")
        found[row.group] = row
    if not found:
        raise UserError(f"{path}: there are no verdicts to judge; check the file")
    return [found[group] for group in sorted(found)]


@dataclass(frozen=True)
class WrittenVerdict:
    """The judgement of one group by what the model wrote.

    Args:
        truth: the verdict that is right, or None where it is not known.
    """

    written: WrittenGroup
    threshold: float
    truth: str | None = None
    evidence: tuple[Evidence, ...] = ()  # a text points at no boxes

    @property
    def group(self) -> str:
        return self.written.group

    @property
    def images(self) -> tuple[str, ...]:
        return self.written.images

    @property
    def verdict(self) -> str:
        return PASS if self.written.passes(self.threshold) else FAIL

    @property
    def malformed(self) -> bool:
        return self.written.error is None and self.written.answer is None

    @property
    def reason(self) -> str:
        """The model's own, unless its verdict is not the one at the threshold."""
        if self.written.error is not None:
            return self.written.error
        if self.written.answer is None:
            return f"malformed answer: {' '.join(self.written.text.split())[:200]!r}"
        said, why = self.written.answer
        if said == self.verdict:
            return why
        chance = f"{self.written.pass_probability:.3f}, {'below' if self.verdict == FAIL else 'at least'}"
        return f"probability of pass {chance} {self.threshold:g}; written: {said}, {why}"

    def to_json(self) -> dict[str, Any]:
        known = {} if self.truth is None else {"truth": self.truth}
        return {
            "group": self.group,
            "images": list(self.images),
            "verdict": self.verdict,
            "reason": self.reason,
            **known,
            "pass_probability": round(self.written.pass_probability, 6),
            "malformed": self.malformed,
            "evidence": [],
        }


def judge_written(
    groups: Sequence[WrittenGroup], threshold: float, truth: Mapping[str, str] | None = None
) -> list[WrittenVerdict]:
    """A verdict on each group, in the given order."""
    return [WrittenVerdict(group, threshold, (truth or {}).get(group.group)) for group in groups]
