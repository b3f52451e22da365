"""The command that judges groups of photos, by rules or by what the model wrote: docs/verdicts.md."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bbu.cli.arguments import Commands, note, share
from bbu.cli.grouping import HELP as GROUPS
from bbu.cli.grouping import NAMED, check_single, group_of_photos
from bbu.config import EvaluationConfig
from bbu.errors import UserError
from bbu.jsonl import write_json, write_jsonl

if TYPE_CHECKING:
    from bbu.judging.rules import Rule
    from bbu.judging.verdicts import Verdict
    from bbu.judging.written import WrittenVerdict
    from bbu.records import PredictionRow, Row

SHOWN_FAILED = 10  # groups in the terminal; the file has all


def add_commands(commands: Commands) -> None:
    """Commands whose first argument is a file of predictions."""
    judge = commands.add_parser("judge", help="a verdict on each group of photos: docs/verdicts.md")
    judge.set_defaults(action=_judge)
    judge.add_argument("predictions", help="predictions JSONL; or verdicts that bbu write-verdicts has written")
    judge.add_argument("--rules", help="YAML file of rules, e.g. configs/rules/demo.yaml; for written verdicts: truth")
    judge.add_argument("--output", help="verdicts JSONL to write, one line a group")
    judge.add_argument("--annotations", help="JSONL of annotated rows: the groups (metadata.group), and the truth")
    judge.add_argument("--group-by", default="", help=GROUPS)
    judge.add_argument("--verdicts", help='JSONL of {"group", "verdict": "pass" | "fail"}: the truth instead')
    judge.add_argument("--metrics", help="write how often the verdicts are right as JSON")
    judge.add_argument("--descriptions", help="list of all descriptions, such as a model's descriptions.json")
    judge.add_argument("--allow-single-photos", action="store_true", help="also judge groups of one photo")
    threshold = judge.add_mutually_exclusive_group()
    threshold.add_argument(
        "--threshold",
        type=share,
        help="score of rules without min_score (0.3), or probability of pass in written verdicts (0.5)",
    )
    threshold.add_argument("--threshold-from", metavar="JSON", help="the threshold that --choose-threshold has written")
    threshold.add_argument("--choose-threshold", metavar="JSON", help="choose it on these groups, best a val split")
    judge.add_argument("--max-false-pass", type=share, help="largest false-pass rate for --choose-threshold, e.g. 0.01")


def _judge(arguments: argparse.Namespace) -> int:
    from bbu.judging.written import is_written

    _check(arguments)
    if is_written(arguments.predictions):
        return _judge_written(arguments)
    return _judge_by_rules(arguments)


def _judge_by_rules(arguments: argparse.Namespace) -> int:
    from bbu.judging.groups import group_photos, with_missing
    from bbu.judging.rules import check_descriptions, read_rules
    from bbu.judging.thresholds import choose_threshold
    from bbu.judging.verdicts import annotated_truth, judge, read_truth
    from bbu.records import read_predictions, read_rows

    if not arguments.rules:
        raise UserError("predictions are judged by rules: give --rules, e.g. configs/rules/demo.yaml")
    if not (arguments.annotations or arguments.group_by):
        raise UserError("photos need groups: give --annotations with metadata.group, or --group-by")
    rules = read_rules(arguments.rules)
    rows = read_rows(arguments.annotations) if arguments.annotations else []
    found = read_predictions(arguments.predictions)
    check_descriptions(rules, _descriptions(rows, found, arguments.descriptions), arguments.rules)
    group_of = group_of_photos(arguments.group_by, rows)
    groups = with_missing(group_photos(found, group_of), (row.images[0] for row in rows), group_of)
    check_single({group.name: group.images for group in groups}, arguments.allow_single_photos)
    named = ((group.name, group.images) for group in groups)
    truth = read_truth(arguments.verdicts) if arguments.verdicts else annotated_truth(rows, named, rules)
    judged = {group.name for group in groups}
    others = {*truth, *filter(None, (group_of(row.images[0]) for row in rows))} - judged
    _note_groups(others, "without any prediction, not judged")
    if rows or truth:
        _note_groups(judged - set(truth), "without a known verdict, not scored")
    threshold, status = _threshold(arguments, rules, lambda bound: choose_threshold(groups, rules, truth, bound))
    _write(arguments, judge(groups, rules, threshold, truth), threshold)
    return status


def _judge_written(arguments: argparse.Namespace) -> int:
    from bbu.judging.rules import check_descriptions, read_rules
    from bbu.judging.thresholds import choose_written_threshold
    from bbu.judging.verdicts import annotated_truth, read_truth
    from bbu.judging.written import judge_written, read_written
    from bbu.records import read_rows

    _refuse_idle(arguments)
    groups = read_written(arguments.predictions)
    truth: dict[str, str] = {}
    if arguments.verdicts:
        truth = read_truth(arguments.verdicts)
    elif arguments.annotations:
        if not arguments.rules:
            raise UserError("annotated objects give a verdict by rules alone: give --rules too, or --verdicts instead")
        rules, rows = read_rules(arguments.rules), read_rows(arguments.annotations)
        check_descriptions(rules, _descriptions(rows, (), arguments.descriptions), arguments.rules)
        truth = annotated_truth(rows, ((group.group, group.images) for group in groups), rules)
    _note_groups(set(truth) - {group.group for group in groups}, "without a written verdict, not judged")
    if truth:
        _note_groups({group.group for group in groups} - set(truth), "without a known verdict, not scored")
    threshold, status = _threshold(arguments, None, lambda bound: choose_written_threshold(groups, truth, bound))
    _write(arguments, judge_written(groups, threshold, truth), threshold)
    return status


def _refuse_idle(arguments: argparse.Namespace) -> None:
    """Options that would do nothing to written verdicts.

    Raises:
        UserError: names one.
    """
    for_truth = "they judge the annotated objects, the truth beside written verdicts: give --annotations"
    idle = {
        "--group-by": (arguments.group_by, "the file has the groups"),
        "--allow-single-photos": (arguments.allow_single_photos, "the file has the groups"),
        "--rules": (arguments.rules and not arguments.annotations, for_truth),
        "--rules with --verdicts": (
            arguments.rules and arguments.verdicts,
            "leave one truth out",
        ),
        "--descriptions": (arguments.descriptions and not arguments.rules, "it checks --rules"),
    }
    for option, (given, why) in idle.items():
        if given:
            raise UserError(f"{arguments.predictions} holds written verdicts, so {option} would do nothing: {why}")


def _write(arguments: argparse.Namespace, verdicts: Sequence[Verdict] | Sequence[WrittenVerdict], at: float) -> None:
    """Files first: who reads the first printed lines alone ends the command."""
    from bbu.judging.scoring import verdict_metrics, verdict_table

    metrics = verdict_metrics(verdicts, at)
    if arguments.output:
        write_jsonl(arguments.output, verdicts)
    if arguments.metrics:
        write_json(arguments.metrics, metrics)
    print(verdict_table(metrics))
    _show_failed(verdicts)
    if arguments.output:
        print(f"\n{len(verdicts)} verdicts written to {arguments.output}")


def _threshold(
    arguments: argparse.Namespace, rules: Sequence[Rule] | None, choose: Callable[[float], dict[str, Any]]
) -> tuple[float, int]:
    """The threshold to judge at, and the exit status.

    Args:
        rules: None = verdicts are written.
        choose: of a bound on false passes.
    """
    from bbu.judging.thresholds import load_threshold, threshold_line
    from bbu.judging.written import LIKELIER

    if arguments.choose_threshold:
        chosen = choose(arguments.max_false_pass)
        write_json(arguments.choose_threshold, chosen)
        print(f"{threshold_line(chosen)}; written to {arguments.choose_threshold}\n")
        return chosen["threshold"], 0 if chosen["reached"] else 1
    if arguments.threshold_from:
        threshold, reached = load_threshold(arguments.threshold_from, rules)
        if not reached:
            note(f"{arguments.threshold_from}: its {threshold:g} did not keep to the bound where it was chosen")
        return threshold, 0
    if arguments.threshold is not None:
        return arguments.threshold, 0
    return (LIKELIER if rules is None else EvaluationConfig.score_threshold), 0


def _check(arguments: argparse.Namespace) -> None:
    """Options that need each other."""
    if not (arguments.output or arguments.metrics or arguments.choose_threshold):
        raise UserError("nothing to write: give --output, --metrics or --choose-threshold")
    if (arguments.choose_threshold is None) != (arguments.max_false_pass is None):
        raise UserError("--choose-threshold JSON and --max-false-pass RATE: give both or neither")
    if arguments.choose_threshold and not (arguments.annotations or arguments.verdicts):
        raise UserError("--choose-threshold needs a truth: give --annotations or --verdicts")


def _descriptions(rows: Sequence[Row], found: Sequence[PredictionRow], file: str | None) -> set[str]:
    """Every description in annotations, predictions and the list."""
    from bbu.taxonomy_file import read_descriptions

    known = {desc for row in rows for desc in row.labels} | {item.desc for row in found for item in row.predictions}
    return known | set(read_descriptions(Path(file)) if file else ())


def _show_failed(verdicts: Sequence[Verdict] | Sequence[WrittenVerdict]) -> None:
    from bbu.judging.verdicts import FAIL

    failed = [verdict for verdict in verdicts if verdict.verdict == FAIL]
    if failed:
        print("\nfailed")
    for verdict in failed[:SHOWN_FAILED]:
        print(f"  {verdict.group}: {verdict.reason}")
    if len(failed) > SHOWN_FAILED:
        print(f"  and {len(failed) - SHOWN_FAILED} more")


def _note_groups(names: Collection[str], what: str) -> None:
    """A note that counts and names groups, if there are any."""
    if names:
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        note(f"groups {what}: {len(names)} ({', '.join(sorted(names)[:NAMED])}{more})")
