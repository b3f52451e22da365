"""Verdicts by rules on the groups of the evaluation split, at a threshold chosen on val."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bbu.errors import UserError
from bbu.jsonl import write_json, write_jsonl
from bbu.judging.groups import Group, group_photos
from bbu.judging.rules import Rule, check_descriptions, read_rules
from bbu.judging.scoring import verdict_metrics
from bbu.judging.thresholds import choose_threshold
from bbu.judging.truth import descriptions_of
from bbu.judging.verdicts import annotated_truth, judge
from bbu.records import PredictionRow, Row, read_predictions
from bbu.stages.run import Run

VERDICTS_FILE = "verdicts.jsonl"


def rules_of(run: Run) -> tuple[Rule, ...]:
    """The rules of evaluation.rules; none if it is empty.

    Raises:
        UserError: a rule is malformed, or counts a description that training does not show.
    """
    path = run.config.evaluation.rules
    if not path:
        return ()
    rules = read_rules(path)
    check_descriptions(rules, descriptions_of(run.students), path, unless="the training photos have to show it")
    return rules


def judge_groups(run: Run, metrics: dict[str, Any]) -> dict[str, Any] | None:
    """Judge each group of the evaluation split by predictions.jsonl; writes verdicts.jsonl, and adds to metrics.json.

    Photos without a group, or alone in theirs, are left out.

    Args:
        metrics: of the run so far; gets the key ``verdicts``.

    Returns:
        The metrics of the verdicts; None if there are no rules or no groups.
    """
    rules = rules_of(run)
    groups = _groups(run.evaluation_rows, read_predictions(run.output / "predictions.jsonl")) if rules else []
    if not groups:
        if rules:
            print(f"verdicts: no group of two {run.config.evaluation.split} photos, so nothing is judged", flush=True)
        return None
    threshold, how = _threshold(run, rules)
    verdicts = judge(groups, rules, threshold, _truth(run.evaluation_rows, groups, rules))
    found = {**verdict_metrics(verdicts, threshold), "threshold_from": how}
    write_jsonl(run.output / VERDICTS_FILE, verdicts)
    metrics["verdicts"] = found
    write_json(run.output / "metrics.json", metrics)
    return found


def _groups(rows: Iterable[Row], predictions: Iterable[PredictionRow]) -> list[Group]:
    """Groups of two photos or more."""
    names: Mapping[str, str | None] = {row.images[0]: row.group for row in rows}
    grouped = [photo for photo in predictions if names.get(photo.images[0])]
    found = group_photos(grouped, lambda name: names[name]) if grouped else []
    return [group for group in found if len(group.photos) > 1]


def _truth(rows: Iterable[Row], groups: Sequence[Group], rules: Sequence[Rule]) -> dict[str, str]:
    return annotated_truth(rows, ((group.name, group.images) for group in groups), rules)


def _threshold(run: Run, rules: Sequence[Rule]) -> tuple[float, str]:
    """The threshold, and in words where it comes from."""
    evaluation, path = run.config.evaluation, run.output / "val_predictions.jsonl"
    default = evaluation.score_threshold, "evaluation.score_threshold"
    if evaluation.calibration == "none" or not path.is_file() or evaluation.split == "val":
        return default
    groups = _groups(run.val, read_predictions(path))
    try:
        chosen = choose_threshold(groups, rules, _truth(run.val, groups, rules), evaluation.max_false_pass)
    except UserError as error:
        print(f"verdicts: no threshold is chosen on val: {error}", flush=True)
        return default
    kept = "" if chosen["reached"] else ", where none keeps to it"
    return chosen["threshold"], f"val, for a false-pass rate of {evaluation.max_false_pass:g}{kept}"
