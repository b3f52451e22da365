"""How often verdicts are right, and the two ways of being wrong.

A false pass is a group that should fail and was judged pass; a false fail the opposite. Intervals are Wilson's (1927)
for a share of n groups: unlike a bootstrap they do not shrink to a point where nothing went wrong in few groups.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from bbu.evaluation.bootstrap import wilson
from bbu.evaluation.descriptions import ratio
from bbu.evaluation.report import aligned, number
from bbu.judging.verdicts import FAIL, PASS, Verdict
from bbu.judging.written import WrittenVerdict

LABELS = {
    "photos": "photos",
    "groups": "groups",
    "judged_pass": "  judged pass",
    "judged_fail": "  judged fail",
    "malformed": "    malformed",
    "groups_with_truth": "groups with truth",
    "truth_pass": "  pass in truth",
    "truth_fail": "  fail in truth",
    "truth_pass_share": "  share that passes",
    "accuracy": "accuracy of verdicts",
    "majority_baseline": "  majority baseline",
    "false_passes": "false passes",
    "false_pass_rate": "  of groups that should fail",
    "false_fails": "false fails",
    "false_fail_rate": "  of groups that should pass",
}


def verdict_metrics(verdicts: Sequence[Verdict] | Sequence[WrittenVerdict], threshold: float) -> dict[str, Any]:
    """Counts of verdicts and, where a truth is known, how often they are right.

    Returns:
        The keys of LABELS, ``threshold``, ``broken_rules`` (rule → groups) and ``intervals`` (key → [low, high] at
        95 %). Keys about the truth are left out if no group has one; undefined rates and intervals are None.
        ``malformed`` is there for verdicts that the model wrote.
    """
    broken = Counter(item.rule.name for verdict in verdicts for item in verdict.evidence if item.rule is not None)
    known = [(verdict.verdict, verdict.truth) for verdict in verdicts if verdict.truth is not None]
    passed = sum(verdict.verdict == PASS for verdict in verdicts)
    metrics: dict[str, Any] = {
        "threshold": threshold,
        "photos": sum(len(verdict.images) for verdict in verdicts),
        "groups": len(verdicts),
        "judged_pass": passed,
        "judged_fail": len(verdicts) - passed,
        "broken_rules": dict(sorted(broken.items(), key=lambda item: (-item[1], item[0]))),
    }
    written = [verdict for verdict in verdicts if isinstance(verdict, WrittenVerdict)]
    if written:
        metrics["malformed"] = sum(verdict.malformed for verdict in written)
    if not known:
        return metrics
    should_fail = sum(truth == FAIL for _, truth in known)
    false_passes, false_fails = known.count((PASS, FAIL)), known.count((FAIL, PASS))
    return metrics | rates(len(known), should_fail, false_passes, false_fails)


def rates(groups: int, should_fail: int, false_passes: int, false_fails: int) -> dict[str, Any]:
    """The metrics about the truth, from counts of groups."""
    should_pass = groups - should_fail
    shares = {
        "accuracy": (groups - false_passes - false_fails, groups),
        "majority_baseline": (max(should_fail, should_pass), groups),
        "false_pass_rate": (false_passes, should_fail),
        "false_fail_rate": (false_fails, should_pass),
    }
    return {
        "groups_with_truth": groups,
        "truth_pass": should_pass,
        "truth_fail": should_fail,
        "truth_pass_share": ratio(should_pass, groups),
        "false_passes": false_passes,
        "false_fails": false_fails,
        **{name: ratio(*counts) for name, counts in shares.items()},
        "intervals": {name: wilson(*counts) for name, counts in shares.items() if name != "majority_baseline"},
    }


def verdict_table(metrics: Mapping[str, Any]) -> str:
    """Plain text for a terminal, with 95 % intervals; undefined values show as "-"."""
    spans = {key: " to ".join(map(number, span or ())) for key, span in metrics.get("intervals", {}).items()}
    return "\n".join(
        aligned([(label, number(metrics[key]), spans.get(key, "")) for key, label in LABELS.items() if key in metrics])
    )
