"""Scores of answers that the language model wrote, beside the right ones; no weights.

Three shares: answers that equal the right one (white space aside), fields that are written, and answers that are
malformed. A field is a value of a JSON answer with its place in it, a part of a summary between punctuation marks, or a
verdict or its reason. Malformed is JSON that does not parse or is not of the asked form, a verdict without its two
lines, and whatever did not end before the token limit.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bbu.evaluation.bootstrap import wilson
from bbu.evaluation.descriptions import ratio
from bbu.evaluation.report import aligned, number
from bbu.evaluation.summaries import fields_of, numbers_of, tidy
from bbu.families.prompts import ANSWERS, parse_answer, parse_group, parse_verdict

SHARES = ("accuracy", "field_accuracy", "malformed_rate")


@dataclass(frozen=True)
class WrittenAnswer:
    """An answer of the language model.

    Args:
        answer: what was asked, a key of bbu.families.prompts.ANSWERS.
        images: photos of the turn, the student's last.
        truth: the right answer.
        written: the model's.
        finished: it ended before the token limit.
    """

    answer: str
    images: tuple[str, ...]
    truth: str
    written: str
    finished: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "answer": self.answer,
            "images": list(self.images),
            "truth": self.truth,
            "written": self.written,
            "finished": self.finished,
        }

    @property
    def right(self) -> bool:
        """Whether it equals the right answer, white space aside."""
        return not self.malformed and tidy(self.written) == tidy(self.truth)

    @property
    def malformed(self) -> bool:
        """Whether nobody could read it."""
        if not self.finished:
            return True
        if self.answer == "verdict":
            return parse_verdict(self.written) is None
        if self.answer == "summary":
            return not self.written.strip()
        items = _parsed(self.written)
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            return True
        if self.answer == "group" and [item.get("photo") for item in items] != [*range(1, len(self.images) + 1)]:
            return True
        return self._unread(self.written) > self._unread(self.truth)  # of a line, the box may have no width

    def _unread(self, text: str) -> int:
        _, malformed = parse_group(text, len(self.images)) if self.answer == "group" else parse_answer(text)
        return malformed

    @property
    def verdicts(self) -> tuple[str, str | None]:
        """Of the right answer, and the written one; None = malformed."""
        truth, written = parse_verdict(self.truth), parse_verdict(self.written) if self.finished else None
        assert truth is not None  # our own writing
        return truth[0], written[0] if written else None

    def fields(self) -> tuple[Counter[Any], Counter[Any]]:
        """Fields of the right answer and of the written one."""
        return _fields(self.answer, self.truth), _fields(self.answer, self.written)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _fields(answer: str, text: str) -> Counter[Any]:
    if answer == "summary":
        return Counter(fields_of(text))
    if answer == "verdict":
        return Counter(enumerate(parse_verdict(text) or ()))
    return Counter(_leaves(_parsed(text), ()))


def _leaves(value: Any, place: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Each value of a JSON document, after its place."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _leaves(inner, (*place, key))
    elif value is not None:
        yield (*place, json.dumps(value))


def answer_metrics(rows: Iterable[WrittenAnswer], common: Mapping[str, str] | None = None) -> dict[str, Any]:
    """SHARES of each kind of answer, and what is special to it.

    Args:
        rows: answers to the questions of one split.
        common: answer → the most frequent one in training, which the baseline writes every time.

    Returns:
        answer → ``count``, SHARES and ``intervals`` (Wilson's, 95 %, of ``accuracy``); of summaries also
        ``number_accuracy``, of verdicts ``verdict_accuracy`` (a malformed verdict is a fail), ``false_pass_rate`` and
        ``false_fail_rate``. Given ``common``, each but these last two also with the suffix ``_baseline``. Undefined
        rates are None.
    """
    by_answer: defaultdict[str, list[WrittenAnswer]] = defaultdict(list)
    for row in rows:
        by_answer[row.answer].append(row)
    found = {}
    for answer in (answer for answer in ANSWERS if answer in by_answer):
        some = by_answer[answer]
        right = sum(row.right for row in some)
        found[answer] = {**_shares(answer, some), "intervals": {"accuracy": wilson(right, len(some))}}
        if answer == "verdict":
            found[answer] |= _errors([row.verdicts for row in some])
        guess = (common or {}).get(answer)
        if guess is not None:
            same = [WrittenAnswer(answer, row.images, row.truth, guess, True) for row in some]
            guessed = _shares(answer, same)
            found[answer] |= {f"{name}_baseline": value for name, value in guessed.items() if name != "count"}
    return found


def _shares(answer: str, rows: Sequence[WrittenAnswer]) -> dict[str, Any]:
    pairs = [row.fields() for row in rows]
    shares = {
        "count": len(rows),
        "accuracy": ratio(sum(row.right for row in rows), len(rows)),
        "field_accuracy": ratio(sum((a & b).total() for a, b in pairs), sum(a.total() for a, _ in pairs)),
        "malformed_rate": ratio(sum(row.malformed for row in rows), len(rows)),
    }
    if answer == "summary":
        same = sum(numbers_of(row.truth) == numbers_of(row.written) for row in rows if row.finished)
        shares["number_accuracy"] = ratio(same, len(rows))
    if answer == "verdict":
        verdicts = [row.verdicts for row in rows]
        shares["verdict_accuracy"] = ratio(sum(truth == (given or "fail") for truth, given in verdicts), len(rows))
    return shares


def _errors(verdicts: Sequence[tuple[str, str | None]]) -> dict[str, Any]:
    """The two ways of being wrong; a malformed verdict is a fail."""
    passed = [given == "pass" for truth, given in verdicts if truth == "fail"]
    failed = [given != "pass" for truth, given in verdicts if truth == "pass"]
    return {"false_pass_rate": ratio(sum(passed), len(passed)), "false_fail_rate": ratio(sum(failed), len(failed))}


def overall_accuracy(rows: Sequence[WrittenAnswer]) -> float | None:
    """Share of all answers that are right; None if there is none."""
    return ratio(sum(row.right for row in rows), len(rows))


LABELS = {
    "accuracy": "equal to the right answer",
    "number_accuracy": "its numbers",
    "verdict_accuracy": "its verdict",
    "field_accuracy": "its fields",
    "malformed_rate": "malformed",
    "false_pass_rate": "false passes, of groups that should fail",
    "false_fail_rate": "false fails, of groups that should pass",
}


def answer_lines(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Plain text for a terminal, each figure beside its baseline."""
    lines: list[tuple[str, str, str]] = []
    for answer, values in metrics.items():
        lines.append((f"{answer}: {values['count']} answers", "", ""))
        for name in (name for name in LABELS if name in values):
            base = values.get(f"{name}_baseline")
            beside = "" if base is None or name == "malformed_rate" else f"baseline {number(base)}"
            lines.append((f"  {LABELS[name]}", number(values[name]), beside))
    return "\n".join(aligned(lines))
