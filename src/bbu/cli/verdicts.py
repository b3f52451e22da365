"""The command that judges groups of photos by rules: docs/verdicts.md."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bbu.cli.arguments import Commands, note, share
from bbu.cli.grouping import HELP as GROUPS
from bbu.cli.grouping import group_of_photos
from bbu.errors import UserError
from bbu.jsonl import write_json, write_jsonl

if TYPE_CHECKING:
    from bbu.judging.groups import Group
    from bbu.judging.rules import Rule
    from bbu.judging.verdicts import Verdict
    from bbu.records import PredictionRow, Row

NAMED = 5  # groups in a message
SHOWN_FAILED = 10  # groups in the terminal; the file has all


def add_commands(commands: Commands) -> None:
    """Commands whose first argument is a file of predictions."""
    judge = commands.add_parser("judge", help="a verdict on each group of photos, by rules: docs/verdicts.md")
    judge.set_defaults(action=_judge)
    judge.add_argument("predictions", help="predictions JSONL")
    judge.add_argument("--rules", required=True, help="YAML file of rules, e.g. configs/rules/demo.yaml")
    judge.add_argument("--output", help="verdicts JSONL to write, one line a group")
    judge.add_argument("--annotations", help="JSONL of annotated rows: the groups (metadata.group), and the truth")
    judge.add_argument("--group-by", default="", help=GROUPS)
    judge.add_argument("--verdicts", help='JSONL of {"group", "verdict": "pass" | "fail"}: the truth instead')
    judge.add_argument("--metrics", help="write how often the verdicts are right as JSON")
    judge.add_argument("--descriptions", help="list of all descriptions, such as a model's descriptions.json")
    judge.add_argument("--allow-single-photos", action="store_true", help="also judge groups of one photo")
    threshold = judge.add_mutually_exclusive_group()
    threshold.add_argument("--threshold", type=share, default=0.3, help="score of rules without min_score (0.3)")
    threshold.add_argument("--threshold-from", metavar="JSON", help="the threshold that --choose-threshold has written")
    threshold.add_argument("--choose-threshold", metavar="JSON", help="choose it on these groups, best a val split")
    judge.add_argument("--max-false-pass", type=share, help="largest false-pass rate for --choose-threshold, e.g. 0.01")


def _judge(arguments: argparse.Namespace) -> int:
    from bbu.judging.groups import group_photos, with_missing
    from bbu.judging.rules import check_descriptions, read_rules
    from bbu.judging.scoring import verdict_metrics, verdict_table
    from bbu.judging.verdicts import annotated_truth, judge, read_truth
    from bbu.records import read_predictions, read_rows

    _check(arguments)
    rules = read_rules(arguments.rules)
    rows = read_rows(arguments.annotations) if arguments.annotations else []
    found = read_predictions(arguments.predictions)
    check_descriptions(rules, _descriptions(rows, found, arguments.descriptions), arguments.rules)
    group_of = group_of_photos(arguments.group_by, rows)
    groups = with_missing(group_photos(found, group_of), (row.images[0] for row in rows), group_of)
    _check_single(groups, arguments.allow_single_photos)
    truth = read_truth(arguments.verdicts) if arguments.verdicts else annotated_truth(rows, groups, rules)
    judged = {group.name for group in groups}
    others = {*truth, *filter(None, (group_of(row.images[0]) for row in rows))} - judged
    _note_groups(others, "without any prediction, not judged")
    if rows or truth:
        _note_groups(judged - set(truth), "without a known verdict, not scored")
    threshold, status = _threshold(arguments, groups, rules, truth)
    verdicts = judge(groups, rules, threshold, truth)
    metrics = verdict_metrics(verdicts, threshold)
    if arguments.output:
        write_jsonl(arguments.output, verdicts)
    if arguments.metrics:
        write_json(arguments.metrics, metrics)
    print(verdict_table(metrics))  # after the files: who reads the first lines alone ends the command
    _show_failed(verdicts)
    if arguments.output:
        print(f"\n{len(verdicts)} verdicts written to {arguments.output}")
    return status


def _threshold(
    arguments: argparse.Namespace, groups: Sequence[Group], rules: Sequence[Rule], truth: Mapping[str, str]
) -> tuple[float, int]:
    """The threshold to judge at, and the exit status."""
    from bbu.judging.thresholds import choose_threshold, load_threshold, threshold_line

    if arguments.choose_threshold:
        chosen = choose_threshold(groups, rules, truth, arguments.max_false_pass)
        write_json(arguments.choose_threshold, chosen)
        print(f"{threshold_line(chosen)}; written to {arguments.choose_threshold}\n")
        return chosen["threshold"], 0 if chosen["reached"] else 1
    if arguments.threshold_from:
        threshold, reached = load_threshold(arguments.threshold_from, rules)
        if not reached:
            note(f"{arguments.threshold_from}: its {threshold:g} did not keep to the bound where it was chosen")
        return threshold, 0
    return arguments.threshold, 0


def _check(arguments: argparse.Namespace) -> None:
    """Options that need each other."""
    if not (arguments.output or arguments.metrics or arguments.choose_threshold):
        raise UserError("nothing to write: give --output, --metrics or --choose-threshold")
    if (arguments.choose_threshold is None) != (arguments.max_false_pass is None):
        raise UserError("--choose-threshold JSON and --max-false-pass RATE: give both or neither")
    if arguments.choose_threshold and not (arguments.annotations or arguments.verdicts):
        raise UserError("--choose-threshold needs a truth: give --annotations or --verdicts")
    if not (arguments.annotations or arguments.group_by):
        raise UserError("photos need groups: give --annotations with metadata.group, or --group-by")


def _descriptions(rows: Sequence[Row], found: Sequence[PredictionRow], file: str | None) -> set[str]:
    """Every description in annotations, predictions and the list."""
    from bbu.taxonomy_file import read_descriptions

    known = {desc for row in rows for desc in row.labels} | {item.desc for row in found for item in row.predictions}
    return known | set(read_descriptions(Path(file)) if file else ())


def _check_single(groups: Sequence[Group], allowed: bool) -> None:
    """A group of one photo is usually a group that was split by mistake.

    Raises:
        UserError: there is one, and it is not allowed.
    """
    single = [group for group in groups if len(group.photos) == 1]
    if not single:
        return
    named = ", ".join(f"{group.name} ({group.images[0]})" for group in single[:NAMED])
    more = f" and {len(single) - NAMED} more" if len(single) > NAMED else ""
    text = f"{len(single)} of {len(groups)} groups have one photo: {named}{more}"
    if not allowed:
        raise UserError(
            f"{text}; correct metadata.group or --group-by, add the missing photos, or give --allow-single-photos"
        )
    note(text)


def _show_failed(verdicts: Sequence[Verdict]) -> None:
    failed = [verdict for verdict in verdicts if verdict.evidence]
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
