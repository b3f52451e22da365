"""A verdict on each group, with a reason in words and the photos and boxes that made it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bbu.jsonl import iter_json_lines
from bbu.judging.groups import NO_PREDICTION, Group, as_predicted
from bbu.judging.rules import Rule
from bbu.records import FieldChecker, PredictedObject, PredictionRow, Row

PASS, FAIL = "pass", "fail"
VERDICTS = (PASS, FAIL)
NAMED = 3  # photos in a reason; the evidence has all


@dataclass(frozen=True)
class Evidence:
    """What made a group fail: a rule that it breaks, or, without a rule, photos that could not be judged.

    Args:
        min_score: score from which objects counted.
        photos: photo and its counted objects, best score first; with ``per: photo`` only those outside the limits.
    """

    rule: Rule | None
    min_score: float
    photos: tuple[tuple[PredictionRow, tuple[PredictedObject, ...]], ...]

    @property
    def reason(self) -> str:
        """In words: ``one label: 2 × label in the group, exactly 1 wanted (a.jpg: 2)``."""
        if self.rule is None:
            return _listed([_unjudged(photo) for photo, _ in self.photos], "; ")
        rule, counted = self.rule, [(photo.images[0], len(items)) for photo, items in self.photos]
        if rule.per == "photo":
            where = _listed([f"{count} in {name}" for name, count in counted], ", ")
            return f"{rule.name}: {rule.description}: {where}; {rule.limits} wanted in each photo"
        total, where = sum(count for _, count in counted), _listed([f"{n}: {k}" for n, k in counted if k], ", ")
        seen = f" ({where})" if where else ""
        return f"{rule.name}: {total} × {rule.description} in the group, {rule.limits} wanted{seen}"

    def to_json(self) -> dict[str, Any]:
        if self.rule is None:
            return {
                "rule": None,
                "photos": [{"image": photo.images[0], "error": photo.error} for photo, _ in self.photos],
            }
        photos = [
            {"image": photo.images[0], "count": len(items), "boxes": [_box(item) for item in items]}
            for photo, items in self.photos
        ]
        return {"rule": self.rule.name, **_without_name(self.rule), "min_score": self.min_score, "photos": photos}


@dataclass(frozen=True)
class Verdict:
    """The judgement of one group.

    Args:
        evidence: one for each rule that fails, in their order; first the photos that could not be judged.
        truth: the verdict that is right, or None where it is not known.
    """

    group: str
    images: tuple[str, ...]
    evidence: tuple[Evidence, ...]
    rules: int
    truth: str | None = None

    @property
    def verdict(self) -> str:
        return FAIL if self.evidence else PASS

    @property
    def reason(self) -> str:
        if self.evidence:
            return "; ".join(item.reason for item in self.evidence)
        return f"all {self.rules} rules hold" if self.rules > 1 else "the rule holds"

    def to_json(self) -> dict[str, Any]:
        row = {"group": self.group, "images": list(self.images), "verdict": self.verdict, "reason": self.reason}
        known = {} if self.truth is None else {"truth": self.truth}
        return {**row, **known, "evidence": [item.to_json() for item in self.evidence]}


def judge(
    groups: Iterable[Group], rules: Sequence[Rule], threshold: float, truth: Mapping[str, str] | None = None
) -> list[Verdict]:
    """A verdict on each group, in the given order.

    A photo with an error makes its group fail. Then limits that ask for objects are not judged where the lost photo
    could have them: not in that photo, and not over its group.

    Args:
        threshold: score from which an object counts for rules without a ``min_score``.
        truth: group → the right verdict, where it is known.
    """
    return [
        Verdict(
            group.name,
            tuple(group.images),
            _evidence(group, rules, threshold),
            len(rules),
            (truth or {}).get(group.name),
        )
        for group in groups
    ]


def annotated_truth(
    rows: Iterable[Row], groups: Iterable[tuple[str, Sequence[str]]], rules: Sequence[Rule]
) -> dict[str, str]:
    """Group → the verdict on its annotated objects, for the groups of which every photo is annotated.

    Args:
        groups: name, and paths of the photos.
    """
    annotated = {row.images[0]: as_predicted(row) for row in rows if row.annotated}
    known = [
        Group(name, tuple(annotated[image] for image in images))
        for name, images in groups
        if annotated.keys() >= set(images)
    ]
    return {verdict.group: verdict.verdict for verdict in judge(known, rules, threshold=1.0)}


def _evidence(group: Group, rules: Sequence[Rule], threshold: float) -> tuple[Evidence, ...]:
    lost = tuple((photo, ()) for photo in group.photos if photo.error is not None)
    broken = (_broken(group, rule, threshold, bool(lost)) for rule in rules)
    return (*([Evidence(None, 0.0, lost)] if lost else []), *(found for found in broken if found is not None))


def _broken(group: Group, rule: Rule, threshold: float, incomplete: bool) -> Evidence | None:
    """What breaks a rule, or None."""
    least = threshold if rule.min_score is None else rule.min_score
    counted = tuple((photo, counting(photo, rule, least)) for photo in group.photos if photo.error is None)
    if rule.per == "photo":
        outside = tuple(entry for entry in counted if not rule.allows(len(entry[1])))
        return Evidence(rule, least, outside) if outside else None
    total = sum(len(items) for _, items in counted)
    too_few = rule.at_least is not None and total < rule.at_least
    if rule.allows(total) or (too_few and incomplete):
        return None
    # Of too many objects the photos that have them are the evidence; of too few, all photos.
    return Evidence(rule, least, counted if too_few else tuple(entry for entry in counted if entry[1]))


def counting(photo: PredictionRow, rule: Rule, least: float) -> tuple[PredictedObject, ...]:
    """The objects of a photo that a rule counts, best score first."""
    items = (item for item in photo.predictions if item.score >= least and rule.covers(item.desc))
    return tuple(sorted(items, key=lambda item: (-item.score, item.box, item.desc)))


def _box(item: PredictedObject) -> dict[str, Any]:
    row = item.to_json()
    return {name: row[name] for name in ("bbox_2d", "desc", "score")}


def _without_name(rule: Rule) -> dict[str, Any]:
    row = rule.to_json()
    del row["name"]
    return row


def _unjudged(photo: PredictionRow) -> str:
    name = photo.images[0]
    return f"{name} {NO_PREDICTION}" if photo.error == NO_PREDICTION else f"{name} could not be read: {photo.error}"


def _listed(texts: Sequence[str], separator: str) -> str:
    more = [f"and {len(texts) - NAMED} more"] if len(texts) > NAMED else []
    return separator.join([*texts[:NAMED], *more])


def read_verdicts(path: str | Path) -> list[dict[str, Any]]:
    """The lines that ``bbu judge`` has written, as ``Verdict.to_json`` gives them.

    Raises:
        RecordError: file and line, the field, and what is wrong with it.
    """
    rows = []
    for where, value in iter_json_lines(path):
        check = FieldChecker(where, "")
        written = ("pass_probability", "malformed")
        check.keys(value, required=("group", "images", "verdict", "reason", "evidence"), optional=("truth", *written))
        check.text(value["group"], "group")
        check.images(value["images"])
        check.text(value["reason"], "reason")
        for name in ("verdict", "truth"):
            if name in value:
                _check_verdict(value[name], check, name)
        for index, part in enumerate(check.list(value["evidence"], "evidence")):
            _check_evidence(part, FieldChecker(where, f"evidence[{index}]."))
        rows.append(value)
    return rows


def _check_evidence(part: Any, check: FieldChecker) -> None:
    limits = ("description", "per", "at_least", "at_most", "min_score")
    check.keys(part, required=("rule", "photos"), optional=limits)
    for index, photo in enumerate(check.list(part["photos"], "photos")):
        inner = FieldChecker(check.where, f"{check.prefix}photos[{index}].")
        inner.keys(photo, required=("image",), optional=("count", "boxes", "error"))
        inner.text(photo["image"], "image")
        for place, box in enumerate(inner.list(photo.get("boxes", []), "boxes")):
            deep = FieldChecker(check.where, f"{inner.prefix}boxes[{place}].")
            deep.keys(box, required=("bbox_2d", "desc", "score"))
            if len(deep.numbers(box["bbox_2d"], "bbox_2d", fewest=4)) != 4:
                deep.fail("bbox_2d", f"needs 4 numbers, has {len(box['bbox_2d'])}")


def _check_verdict(value: Any, check: FieldChecker, name: str) -> None:
    if value not in VERDICTS:
        check.fail(name, f"must be 'pass' or 'fail', is {value!r}")


def read_truth(path: str | Path) -> dict[str, str]:
    """Group → ``pass`` or ``fail``, from the lines of ``read_verdict_lines``."""
    return {group: verdict for _, group, verdict, _ in read_verdict_lines(path)}


def read_verdict_lines(path: str | Path) -> Iterator[tuple[FieldChecker, str, str, str | None]]:
    """Group, verdict and reason of lines ``{"group": …, "verdict": "pass" | "fail", "reason"?: one line}``.

    Each comes with a checker that raises errors about its line.

    Raises:
        RecordError: file and line, the field, and what is wrong with it.
    """
    seen: set[str] = set()
    for where, value in iter_json_lines(path):
        check = FieldChecker(where, "")
        check.keys(value, required=("group", "verdict"), optional=("reason",))
        group, verdict = check.text(value["group"], "group"), value["verdict"]
        _check_verdict(verdict, check, "verdict")
        reason = check.text(value["reason"], "reason").strip() if "reason" in value else None
        if reason is not None and len(reason.splitlines()) > 1:
            check.fail("reason", "must be one line")
        if group in seen:
            check.fail("group", f"{group!r} has an earlier line; keep one of the two")
        seen.add(group)
        yield check, group, verdict, reason
