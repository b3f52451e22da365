"""Choose the score threshold of a judgement for a bound on false passes, and apply it later.

Rule: among the thresholds whose false-pass rate keeps to the bound, the one with the fewest false fails; then with the
fewest false passes, then the lowest. If none keeps to the bound: the one with the fewest false passes, then the fewest
false fails. Every threshold that can change a verdict is tried, since a lower one adds defects but also what
``at_least`` asks for. Rules with a ``min_score`` of their own keep it.

Choose on photos that training has not seen, and expect a little more false passes on new ones.

Shapes: Th score thresholds, Dt detections.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bbu.errors import UserError
from bbu.evaluation.inspection import SLACK
from bbu.jsonl import decode_json
from bbu.judging.groups import Group
from bbu.judging.rules import Rule
from bbu.judging.scoring import rates
from bbu.judging.verdicts import FAIL
from bbu.judging.written import WrittenGroup
from bbu.records import PredictionRow

FORMAT = 1


def choose_threshold(
    groups: Sequence[Group], rules: Sequence[Rule], truth: Mapping[str, str], max_false_pass: float
) -> dict[str, Any]:
    """Choose a threshold on groups whose verdict is known; groups without one are left out.

    Args:
        truth: group → ``pass`` or ``fail``.
        max_false_pass: largest false-pass rate, in [0, 1].

    Returns:
        ``rules``, ``goal``, ``reached``, ``threshold``, and the metrics of ``scoring.rates`` at it.

    Raises:
        UserError: no rule takes a threshold, or no group should fail, so that every threshold keeps to the bound.
    """
    if all(rule.min_score is not None for rule in rules):
        raise UserError("every rule has a min_score of its own, so no threshold is left to choose; remove one of them")
    known = [group for group in groups if group.name in truth]
    candidates_Th = _candidates(known, rules)
    passes = ((truth[group.name], _passes(group, rules, candidates_Th)) for group in known)
    return {
        "format": FORMAT,
        "rules": [rule.to_json() for rule in rules],
        **_choose(candidates_Th, list(passes), max_false_pass),
    }


def choose_written_threshold(
    groups: Sequence[WrittenGroup], truth: Mapping[str, str], max_false_pass: float
) -> dict[str, Any]:
    """As choose_threshold, of the probability of ``pass`` in verdicts that the model wrote; ``rules`` is None."""
    known = [group for group in groups if group.group in truth]
    candidates_Th = np.unique([*(group.pass_probability for group in known), 1.0])
    passes = [(truth[group.group], np.array([group.passes(t) for t in candidates_Th])) for group in known]
    return {"format": FORMAT, "rules": None, **_choose(candidates_Th, passes, max_false_pass)}


def _choose(
    candidates_Th: np.ndarray, passes: Sequence[tuple[str, np.ndarray]], max_false_pass: float
) -> dict[str, Any]:
    """The choice, from each group's right verdict and (Th,) whether it passes at each candidate."""
    should_fail = sum(verdict == FAIL for verdict, _ in passes)
    if not should_fail:
        raise UserError(
            f"none of {len(passes)} groups with a known verdict should fail, so any threshold keeps to the bound; "
            "choose on groups of which some should fail"
        )
    false_passes_Th, false_fails_Th = np.zeros((2, len(candidates_Th)), dtype=np.int64)
    for verdict, passes_Th in passes:
        if verdict == FAIL:
            false_passes_Th += passes_Th
        else:
            false_fails_Th += ~passes_Th
    keeps_Th = false_passes_Th <= max_false_pass * should_fail + SLACK
    reached = bool(keeps_Th.any())
    order = (false_passes_Th, false_fails_Th) if reached else (false_fails_Th, false_passes_Th)
    best = int(np.lexsort((candidates_Th, *order, ~keeps_Th))[0])
    return {
        "goal": {"max_false_pass": max_false_pass},
        "reached": reached,
        "threshold": float(candidates_Th[best]),
        **rates(len(passes), should_fail, int(false_passes_Th[best]), int(false_fails_Th[best])),
    }


def _candidates(groups: Sequence[Group], rules: Sequence[Rule]) -> np.ndarray:
    """(Th,) distinct scores that a rule without a ``min_score`` may count, and 1, rising."""
    free = [rule for rule in rules if rule.min_score is None]
    scores = [_scores(photo, rule) for group in groups for photo in group.photos for rule in free]
    return np.unique(np.concatenate([*scores, [1.0]]))


def _scores(photo: PredictionRow, rule: Rule) -> np.ndarray:
    """(Dt,) scores of the objects that a rule covers, rising."""
    return np.sort([item.score for item in photo.predictions if rule.covers(item.desc)])


def _passes(group: Group, rules: Sequence[Rule], candidates_Th: np.ndarray) -> np.ndarray:
    """(Th,) whether the group passes at each threshold; the same rule as ``verdicts.judge``."""
    passes_Th = np.ones(len(candidates_Th), dtype=bool)
    if any(photo.error is not None for photo in group.photos):
        return ~passes_Th
    for rule in rules:
        counts = [_counts(photo, rule, candidates_Th) for photo in group.photos]
        for count_Th in counts if rule.per == "photo" else [np.sum(counts, axis=0)]:
            passes_Th &= count_Th >= (rule.at_least or 0)
            if rule.at_most is not None:
                passes_Th &= count_Th <= rule.at_most
    return passes_Th


def _counts(photo: PredictionRow, rule: Rule, candidates_Th: np.ndarray) -> np.ndarray:
    """(Th,) objects that the rule counts at each threshold."""
    scores_Dt = _scores(photo, rule)
    least_Th = candidates_Th if rule.min_score is None else np.full(len(candidates_Th), rule.min_score)
    return len(scores_Dt) - np.searchsorted(scores_Dt, least_Th, side="left")


def load_threshold(path: str | Path, rules: Sequence[Rule] | None) -> tuple[float, bool]:
    """The threshold of a file of ``choose_threshold``, and whether it kept to the bound there.

    Args:
        rules: it was chosen for; None = for written verdicts.

    Raises:
        UserError: missing, malformed, or chosen for other rules.
    """
    try:
        value = decode_json(Path(path).read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}; write it with `bbu judge --choose-threshold`") from None
    again = "write it again with `bbu judge --choose-threshold`"
    if not isinstance(value, dict) or not {"rules", "threshold", "reached"} <= set(value):
        raise UserError(f"{path}: needs 'rules', 'threshold' and 'reached'; {again}")
    found = value["threshold"]
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 <= found <= 1:
        raise UserError(f"{path}: threshold must be a number in [0, 1], is {found!r}; {again}")
    if value["rules"] != (None if rules is None else [rule.to_json() for rule in rules]):
        raise UserError(f"{path}: rules: the threshold was chosen for other rules than these; {again}")
    return float(found), bool(value["reached"])


def threshold_line(chosen: Mapping[str, Any]) -> str:
    """One sentence: the threshold and what it does on the groups it was chosen on."""
    bound = chosen["goal"]["max_false_pass"]
    low, high = chosen["intervals"]["false_pass_rate"]
    figures = (
        f"{chosen['false_passes']} of {chosen['truth_fail']} groups that should fail pass "
        f"(95 %: {low:.3f} to {high:.3f}), {chosen['false_fails']} of {chosen['truth_pass']} that should pass fail"
    )
    if chosen["reached"]:
        return f"threshold {chosen['threshold']:g} keeps false passes to {bound:g}: {figures}"
    return f"no threshold keeps false passes to {bound:g}; the best is {chosen['threshold']:g}: {figures}"
