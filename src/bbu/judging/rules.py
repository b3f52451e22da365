"""Rules over detections, read strictly from a YAML file.

    rules:
      - {name: no loose screw, description: screw/loose, at_most: 0}
      - {name: four screws in each photo, description: screw, at_least: 4, per: photo, min_score: 0.4}
      - {name: one label, description: label, exactly: 1}

A rule counts the objects whose description is ``description`` or below it (``screw`` counts ``screw/loose`` too, not
``screwdriver``) and whose score is at least ``min_score``, or the threshold of the judgement if it has none. A group
fails if its count, or with ``per: photo`` that of any of its photos, is outside the limits.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bbu.errors import shown
from bbu.records import FieldChecker
from bbu.taxonomy import join_path, split_path
from bbu.taxonomy_file import read_yaml

SCOPES = ("group", "photo")
LIMITS = ("exactly", "at_least", "at_most")
SHOWN_KNOWN = 5  # descriptions in a message


@dataclass(frozen=True)
class Rule:
    """How many objects of a description there may be.

    Args:
        name: for people; unique in a file.
        description: path, or the first levels of paths.
        at_least, at_most: limits of the count, both included; None: no limit on this side.
        per: "group" counts in all photos of a group together, "photo" in each of them.
        min_score: score from which an object counts; None: the threshold of the judgement.
    """

    name: str
    description: str
    at_least: int | None = None
    at_most: int | None = None
    per: str = "group"
    min_score: float | None = None

    @cached_property
    def levels(self) -> tuple[str, ...]:
        return split_path(self.description)

    def covers(self, desc: str) -> bool:
        """Whether an object of this description counts."""
        return split_path(desc)[: len(self.levels)] == self.levels

    def allows(self, count: int) -> bool:
        return (self.at_least is None or count >= self.at_least) and (self.at_most is None or count <= self.at_most)

    @property
    def limits(self) -> str:
        """The limits in words: ``at least 4``, ``exactly 1``, ``2 to 3``."""
        if self.at_least is None:
            return f"at most {self.at_most}"
        if self.at_most is None:
            return f"at least {self.at_least}"
        return f"exactly {self.at_least}" if self.at_least == self.at_most else f"{self.at_least} to {self.at_most}"

    def to_json(self) -> dict[str, Any]:
        limits = {name: getattr(self, name) for name in ("at_least", "at_most", "min_score")}
        given = {name: value for name, value in limits.items() if value is not None}
        return {"name": self.name, "description": self.description, "per": self.per, **given}


def read_rules(path: str | Path) -> tuple[Rule, ...]:
    """Read and check a file of rules.

    Raises:
        UserError: one line with file, field, value and fix.
    """
    value, check = read_yaml(Path(path)), FieldChecker(str(path), "")
    if not isinstance(value, dict):
        check.fail("file", f"must hold a mapping with 'rules', holds {type(value).__name__}")
    check.keys(value, required=("rules",))
    items = check.list(value["rules"], "rules")
    if not items:
        check.fail("rules", "is empty, so every group would pass; write at least one rule")
    rules: dict[str, Rule] = {}
    for index, item in enumerate(items):
        rule = _rule(item, FieldChecker(str(path), f"rules[{index}]."))
        if rule.name in rules:
            check.fail(f"rules[{index}].name", f"{rule.name!r} is the name of an earlier rule too; change one of them")
        rules[rule.name] = rule
    return tuple(rules.values())


def _rule(value: Any, check: FieldChecker) -> Rule:
    if not isinstance(value, dict):
        check.fail("name", f"a rule is a mapping of name, description and limits, is {shown(value)}")
    check.keys(value, required=("name", "description"), optional=(*LIMITS, "per", "min_score"))
    description = join_path(split_path(check.text(value["description"], "description")))
    if not description:
        check.fail("description", f"has no level, is {shown(value['description'])}")
    per = value.get("per", "group")
    if per not in SCOPES:
        check.fail("per", f"must be group or photo, is {shown(per)}")
    at_least, at_most = _limits(value, check)
    min_score = check.unit(value["min_score"], "min_score") if "min_score" in value else None
    return Rule(check.text(value["name"], "name").strip(), description, at_least, at_most, per, min_score)


def _limits(value: Mapping[str, Any], check: FieldChecker) -> tuple[int | None, int | None]:
    counts = {name: _count(value[name], check, name) for name in LIMITS if name in value}
    if not counts:
        check.fail("at_most", f"is missing, and so are the other limits; write one of {', '.join(LIMITS)}")
    if "exactly" in counts:
        if len(counts) > 1:
            check.fail("exactly", "excludes at_least and at_most; keep one of them")
        return counts["exactly"], counts["exactly"]
    at_least, at_most = counts.get("at_least"), counts.get("at_most")
    if at_least == 0:
        check.fail("at_least", "0 holds always; leave it out, or write at_most: 0 for none")
    if at_least is not None and at_most is not None and at_least > at_most:
        check.fail("at_least", f"{at_least} is more than at_most {at_most}, so every group would fail")
    return at_least, at_most


def _count(value: Any, check: FieldChecker, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        check.fail(name, f"must be a whole number of 0 or more, is {shown(value)}")
    return value  # type: ignore[no-any-return]


IN_A_LIST = "if it is right, name a list that has it (--descriptions, such as a model's descriptions.json)"


def check_descriptions(rules: Iterable[Rule], known: Iterable[str], where: str | Path, unless: str = IN_A_LIST) -> None:
    """Refuse a rule that counts no known description: misspelt, it would never see a defect.

    Args:
        known: every description that can occur.
        where: the file of the rules, for the message.
        unless: ends the message: what to do if the description is right.

    Raises:
        UserError: names file, field and the nearest known description.
    """
    paths = {split_path(desc) for desc in known}
    prefixes = {path[:depth] for path in paths for depth in range(1, len(path) + 1)}
    names = sorted(join_path(path) for path in prefixes)
    for index, rule in enumerate(rules):
        if rule.levels in prefixes:
            continue
        near = difflib.get_close_matches(rule.description, names, n=1)
        more = "" if len(names) <= SHOWN_KNOWN else ", …"
        hint = f"the nearest is {near[0]!r}" if near else f"known: {', '.join(names[:SHOWN_KNOWN]) or 'none'}{more}"
        FieldChecker(str(where), f"rules[{index}].").fail(
            "description",
            f"{rule.description!r} is no known description; {hint}; {unless}",
        )
