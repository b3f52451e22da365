"""The right verdict on photos of one group, and why: by rules over their annotated objects, or read from a file."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from bbu.errors import ConfigError
from bbu.judging.groups import Group, as_predicted
from bbu.judging.rules import Rule, check_descriptions, read_rules
from bbu.judging.verdicts import judge, read_verdict_lines
from bbu.records import Row

RULES_SUFFIXES = (".yaml", ".yml")


class KnownVerdict(NamedTuple):
    """A verdict, ``pass`` or ``fail``, and its reason in one line."""

    verdict: str
    reason: str


@dataclass(frozen=True)
class ByRules:
    """Verdicts that follow from rules over annotated objects; any photos of a group can be judged."""

    rules: tuple[Rule, ...]
    whole_groups = False

    def knows(self, rows: Sequence[Row]) -> bool:
        """Whether ``on`` gives a verdict: all photos are annotated."""
        return all(row.annotated for row in rows)

    def on(self, rows: Sequence[Row]) -> KnownVerdict:
        """The verdict on these photos, which its reason numbers in their order."""
        photos = (replace(as_predicted(row), images=(f"photo {n}",)) for n, row in enumerate(rows, start=1))
        (found,) = judge([Group("", tuple(photos))], self.rules, threshold=1.0)
        return KnownVerdict(found.verdict, " ".join(found.reason.split()))


@dataclass(frozen=True)
class ByGroup:
    """Verdicts on whole groups, as somebody gave them."""

    verdicts: Mapping[str, KnownVerdict]
    whole_groups = True

    def knows(self, rows: Sequence[Row]) -> bool:
        """Whether ``on`` gives a verdict: somebody gave one on the group of these photos."""
        return rows[0].group in self.verdicts

    def on(self, rows: Sequence[Row]) -> KnownVerdict:
        """The verdict on the group of these photos."""
        return self.verdicts[rows[0].group or ""]


VerdictSource = ByRules | ByGroup


def read_verdict_source(path: str | Path, descriptions: Collection[str]) -> VerdictSource:
    """Rules (.yaml), or lines ``{"group", "verdict", "reason"}`` (.jsonl).

    Args:
        descriptions: of the annotated objects; a rule about another one is an error.

    Raises:
        UserError: one line with file, field, value and fix.
    """
    path = Path(path)
    if path.suffix in RULES_SUFFIXES:
        rules = read_rules(path)
        check_descriptions(rules, descriptions, path, unless="the training photos have to show it")
        return ByRules(rules)
    if path.suffix != ".jsonl":
        raise ConfigError(f"{path}: is neither rules (.yaml) nor verdicts of groups (.jsonl)")
    return ByGroup(_with_reasons(path))


def _with_reasons(path: Path) -> dict[str, KnownVerdict]:
    found = {}
    for check, group, verdict, reason in read_verdict_lines(path):
        if reason is None:
            check.fail("reason", "is missing; a verdict is learned with its reason, in one line")
        found[group] = KnownVerdict(verdict, reason)
    return found


def descriptions_of(rows: Iterable[Row]) -> set[str]:
    """Every description of the rows' objects."""
    return {desc for row in rows for desc in row.labels}
