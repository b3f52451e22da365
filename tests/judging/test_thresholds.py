"""The threshold for a bound on false passes: no other one would be better; what it was chosen for is checked."""

from __future__ import annotations

import json
import random

import pytest

from bbu.errors import UserError
from bbu.evaluation.bootstrap import wilson
from bbu.jsonl import write_json
from bbu.judging.rules import Rule
from bbu.judging.scoring import verdict_metrics, verdict_table
from bbu.judging.thresholds import choose_threshold, load_threshold, threshold_line
from bbu.judging.verdicts import judge
from tests.judging.random_groups import failed, group, random_groups, random_rule, seen

NO_LOOSE = Rule("no loose screw", "screw/loose", at_most=0)


def random_truth(seed, groups):
    draw = random.Random(seed)
    truth = {one.name: draw.choice(["pass", "fail"]) for one in groups}
    return truth | {groups[0].name: "fail"}


def at(groups, rules, truth, threshold):
    """(false passes, false fails) by judging at a threshold."""
    found = judge(groups, rules, threshold, truth)
    return tuple(
        sum((one.verdict, one.truth) == wrong for one in found) for wrong in (("pass", "fail"), ("fail", "pass"))
    )


@pytest.mark.parametrize("bound", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("seed", range(20))
def test_no_other_threshold_would_be_better(seed, bound):
    draw = random.Random(seed)
    rules = [random_rule(draw, f"rule {n}") for n in range(3)] + [NO_LOOSE]
    groups = random_groups(seed)
    truth = random_truth(seed, groups)
    chosen = choose_threshold(groups, rules, truth, bound)
    errors = (chosen["false_passes"], chosen["false_fails"])
    assert at(groups, rules, truth, chosen["threshold"]) == errors
    should_fail = sum(verdict == "fail" for verdict in truth.values())
    every = [at(groups, rules, truth, threshold / 20) for threshold in range(21)]
    keeping = [(fails, passes) for passes, fails in every if passes <= bound * should_fail + 1e-9]
    assert chosen["reached"] is bool(keeping)
    if keeping:
        assert errors[::-1] == min(keeping)
    else:
        assert errors == min(every)


def test_a_rule_for_few_and_a_rule_for_many_pull_in_different_directions():
    label = Rule("a label", "label", at_least=1)
    groups = [
        group("good", seen("a.jpg", ("label", 0.8))),
        group("loose", seen("b.jpg", ("label", 0.9), ("screw/loose", 0.4))),
        group("bare", seen("c.jpg", ("label", 0.3))),
    ]
    truth = {"good": "pass", "loose": "fail", "bare": "fail"}
    chosen = choose_threshold(groups, [NO_LOOSE, label], truth, 0.0)
    assert (
        chosen["reached"] and chosen["threshold"] == 0.4 and (chosen["false_passes"], chosen["false_fails"]) == (0, 0)
    )
    assert "threshold 0.4 keeps false passes to 0: 0 of 2 groups" in threshold_line(chosen)


def test_where_no_threshold_keeps_to_the_bound_the_best_is_named():
    groups = [group("unseen", seen("a.jpg")), group("loose", seen("b.jpg", ("screw/loose", 0.4)))]
    chosen = choose_threshold(groups, [NO_LOOSE], {"unseen": "fail", "loose": "fail"}, 0.01)
    assert (chosen["reached"], chosen["threshold"], chosen["false_passes"]) == (False, 0.4, 1)
    assert "no threshold keeps false passes to 0.01; the best is 0.4: 1 of 2 groups" in threshold_line(chosen)


def test_groups_without_a_known_verdict_and_fixed_scores_choose_nothing():
    groups = [group("a", seen("a.jpg", ("screw/loose", 0.4))), group("b", seen("b.jpg", ("screw/loose", 0.2)))]
    assert choose_threshold(groups, [NO_LOOSE], {"a": "fail"}, 0.0)["threshold"] == 0.4  # not the 0.2 of b
    fixed = Rule("fixed", "screw/loose", at_most=0, min_score=0.3)
    with pytest.raises(UserError, match="every rule has a min_score of its own"):
        choose_threshold(groups, [fixed], {"a": "fail"}, 0.0)
    with pytest.raises(UserError, match="none of 1 groups with a known verdict should fail"):
        choose_threshold(groups, [NO_LOOSE], {"a": "pass", "z": "fail"}, 0.0)


def test_a_lost_photo_fails_its_group_at_every_threshold():
    groups = [group("a", failed("a.jpg")), group("b", seen("b.jpg", ("screw/loose", 0.2)))]
    chosen = choose_threshold(groups, [NO_LOOSE], {"a": "fail", "b": "pass"}, 0.0)
    assert (chosen["threshold"], chosen["false_passes"], chosen["false_fails"]) == (1.0, 0, 0)


def test_a_written_threshold_is_read_back_for_the_same_rules_only(tmp_path):
    groups = [group("a", seen("a.jpg", ("screw/loose", 0.4)))]
    path = tmp_path / "judging.json"
    write_json(path, choose_threshold(groups, [NO_LOOSE], {"a": "fail"}, 0.0))
    assert load_threshold(path, [NO_LOOSE]) == (0.4, True)
    with pytest.raises(UserError, match="rules: the threshold was chosen for other rules"):
        load_threshold(path, [Rule("no loose screw", "screw/loose", at_most=1)])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (None, "cannot be read"),
        ("[]", "needs 'rules', 'threshold' and 'reached'"),
        ("{", "is not valid JSON"),
        ({"threshold": 1.5}, "threshold must be a number in"),
        ({"threshold": True}, "threshold must be a number in"),
    ],
)
def test_a_bad_file_is_named(tmp_path, change, words):
    path = tmp_path / "judging.json"
    good = {"rules": [NO_LOOSE.to_json()], "threshold": 0.4, "reached": True}
    if change is not None:
        path.write_text(change if isinstance(change, str) else json.dumps(good | change), encoding="utf-8")
    with pytest.raises(UserError, match=words) as error:
        load_threshold(path, [NO_LOOSE])
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


# ---------------------------------------------------------------- how often verdicts are right


def judged(*pairs):
    """Verdicts of groups by (judged, truth)."""
    groups = [
        group(f"{n:02}", seen(f"{n}.jpg", *([("screw/loose", 0.9)] if verdict == "fail" else [])))
        for n, (verdict, _) in enumerate(pairs)
    ]
    return judge(groups, [NO_LOOSE], 0.5, {f"{n:02}": truth for n, (_, truth) in enumerate(pairs) if truth})


def test_rates_are_of_the_groups_that_should_fail_or_pass():
    pairs = [("pass", "pass")] * 5 + [("fail", "pass")] + [("pass", "fail")] * 2 + [("fail", "fail")] * 2
    metrics = verdict_metrics(judged(*pairs, ("pass", None)), 0.5)
    assert (metrics["groups"], metrics["groups_with_truth"], metrics["photos"]) == (11, 10, 11)
    assert (metrics["judged_pass"], metrics["judged_fail"]) == (8, 3)
    assert (metrics["accuracy"], metrics["majority_baseline"], metrics["truth_pass_share"]) == (0.7, 0.6, 0.6)
    assert (metrics["false_pass_rate"], metrics["false_fail_rate"]) == (0.5, 1 / 6)
    for name in ("accuracy", "false_pass_rate", "false_fail_rate"):
        low, high = metrics["intervals"][name]
        assert 0 <= low < metrics[name] < high <= 1
        assert f"{low:.3f} to {high:.3f}" in verdict_table(metrics)


def test_without_truth_there_are_counts_only():
    metrics = verdict_metrics(judged(("pass", None), ("fail", None)), 0.5)
    assert set(metrics) == {"threshold", "photos", "groups", "judged_pass", "judged_fail", "broken_rules"}
    assert metrics["broken_rules"] == {"no loose screw": 1}
    assert "accuracy" not in verdict_table(metrics)


def test_a_rate_of_nothing_is_undefined():
    metrics = verdict_metrics(judged(("pass", "pass")), 0.5)
    assert metrics["false_pass_rate"] is None and metrics["intervals"]["false_pass_rate"] is None
    assert json.loads(json.dumps(metrics)) == metrics


def test_wilson_s_interval_is_the_formula_and_does_not_vanish_at_zero():
    z, n, p = 1.959963984540054, 20, 0.25
    centre, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    low, high = wilson(5, 20)
    assert (low, high) == pytest.approx(((centre - half) / (1 + z * z / n), (centre + half) / (1 + z * z / n)))
    assert wilson(0, 20)[0] == 0 and 0.1 < wilson(0, 20)[1] < 0.2
    assert wilson(0, 0) is None
