"""Commands that need only saved predictions: docs/evaluation.md."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from bbu.cli.arguments import Commands, not_negative, positive
from bbu.errors import UserError
from bbu.jsonl import write_json


def add_commands(commands: Commands) -> None:
    """Commands whose first argument is a file of annotated rows."""
    _add_evaluate(commands)
    summaries = commands.add_parser("evaluate-summaries", help="score what `bbu summarize` wrote: docs/answers.md")
    summaries.set_defaults(action=_evaluate_summaries)
    summaries.add_argument("truth", help="JSONL of annotated rows with summaries")
    summaries.add_argument("summaries", help="summaries JSONL")
    summaries.add_argument("--train", help="JSONL of training rows: the baseline is their most frequent summary")
    summaries.add_argument("--output", help="write the metrics as JSON")
    compare = commands.add_parser("compare", help="what predictions B do better or worse than A, and on which photos")
    compare.set_defaults(action=_compare)
    compare.add_argument("truth", help="JSONL of annotated rows")
    compare.add_argument("a", help="predictions JSONL")
    compare.add_argument("b", help="predictions JSONL of the same photos")
    compare.add_argument("--output", help="write the comparison as JSON, with every photo that changed")
    compare.add_argument("--threshold", type=float, default=0.3, help="score from which predictions count (0.3)")
    compare.add_argument("--bootstrap-samples", type=not_negative, default=1000, help="for intervals (default 1000)")

    calibrate = commands.add_parser("calibrate", help="fit score calibration for a model folder")
    calibrate.set_defaults(action=_calibrate)
    calibrate.add_argument("truth", help="JSONL of annotated rows, preferably a val split")
    calibrate.add_argument("predictions", help="predictions JSONL made without calibration")
    calibrate.add_argument("--output", required=True, help="calibration.json to write")
    calibrate.add_argument("--kind", choices=("temperature", "isotonic"), default="temperature")

    thresholds = commands.add_parser("thresholds", help="choose a score threshold for each description")
    thresholds.set_defaults(action=_thresholds)
    thresholds.add_argument("truth", help="JSONL of annotated rows, preferably a val split")
    thresholds.add_argument("predictions", help="predictions JSONL, calibrated as the model will be")
    goal = thresholds.add_mutually_exclusive_group(required=True)
    goal.add_argument("--precision", type=float, help="lowest threshold with at least this precision")
    goal.add_argument("--recall", type=float, help="highest threshold with at least this recall")
    goal.add_argument("--fppi", type=float, help="at most so many false positives per image, over all descriptions")
    thresholds.add_argument("--minimum", type=positive, default=10, help="objects for an own threshold (default 10)")
    thresholds.add_argument("--output", help="write operating points as JSON, for predict --operating-points")


def _add_evaluate(commands: Commands) -> None:
    evaluate = commands.add_parser("evaluate", help="score saved predictions; needs no weights")
    evaluate.set_defaults(action=_evaluate)
    evaluate.add_argument("truth", help="JSONL of annotated rows")
    evaluate.add_argument("predictions", help="predictions JSONL")
    evaluate.add_argument("--output", help="write all metrics as JSON")
    evaluate.add_argument("--threshold", type=float, default=0.3, help="score from which false positives count (0.3)")
    evaluate.add_argument("--precision", type=float, default=0.9, help="report recall at this precision (default 0.9)")
    evaluate.add_argument(
        "--fppi", type=float, nargs="+", default=[1.0, 0.1], metavar="N", help="report miss rates at these FPPI (1 0.1)"
    )
    evaluate.add_argument("--bootstrap-samples", type=not_negative, default=1000, help="for intervals; 0: none (1000)")
    evaluate.add_argument("--dense", action="store_true", help="dense-captioning mAP too: docs/dense_captioning.md")
    evaluate.add_argument(
        "--meteor",
        choices=("approximate", "exact"),
        help="how --dense compares captions (default approximate; exact: English, needs Java and pycocoevalcap)",
    )
    evaluate.add_argument("--pictures", help="folder for pictures of truth beside prediction")
    evaluate.add_argument("--report", help="write one HTML page with metrics, curves and photos: docs/report.md")
    evaluate.add_argument("--verdicts", help="verdicts JSONL of `bbu judge`, shown in --report: docs/verdicts.md")
    evaluate.add_argument("--image-root", help="photos of --pictures and --report (default: the truth's folder)")


def _evaluate_summaries(arguments: argparse.Namespace) -> int:
    from bbu.evaluation.summaries import read_summaries, summary_lines, summary_metrics
    from bbu.records import read_rows

    training = read_rows(arguments.train) if arguments.train else []
    metrics = summary_metrics(read_rows(arguments.truth), read_summaries(arguments.summaries), training)
    if arguments.output:
        write_json(arguments.output, metrics)
    print(summary_lines(metrics))
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from bbu.evaluation import evaluate, summary_table
    from bbu.records import PredictionRow, Row, iter_predictions, iter_rows

    if arguments.meteor and not arguments.dense:
        raise UserError(f"--meteor {arguments.meteor} needs --dense; give both")
    if arguments.verdicts and not arguments.report:
        raise UserError("--verdicts shows verdicts in --report; give both")
    truth: Iterable[Row] = iter_rows(arguments.truth)
    predictions: Iterable[PredictionRow] = iter_predictions(arguments.predictions)
    if arguments.dense or arguments.pictures or arguments.report:
        truth, predictions = list(truth), list(predictions)  # these read them again
    metrics = evaluate(
        truth,
        predictions,
        score_threshold=arguments.threshold,
        precision=arguments.precision,
        fppi=arguments.fppi,
        bootstrap_samples=arguments.bootstrap_samples,
    )
    print(summary_table(metrics))
    if arguments.dense:
        from bbu.evaluation.dense_captioning import dense_metrics, dense_table

        metrics |= dense_metrics(truth, predictions, meteor=arguments.meteor or "approximate")
        print(f"\n{dense_table(metrics)}")
    if arguments.output:
        write_json(arguments.output, metrics)
    root = arguments.image_root or str(Path(arguments.truth).parent)
    if arguments.pictures:
        from bbu.evaluation.pictures import save_pictures

        written = save_pictures(truth, predictions, root, arguments.pictures, threshold=arguments.threshold)
        print(f"{len(written)} pictures in {arguments.pictures}")
    if arguments.report:
        from bbu.evaluation.page import write_report
        from bbu.judging.verdicts import read_verdicts

        title = Path(arguments.truth).name
        verdicts = read_verdicts(arguments.verdicts) if arguments.verdicts else []
        page = write_report(
            arguments.report,
            list(truth),
            list(predictions),
            metrics,
            image_root=root,
            title=title,
            verdicts=verdicts,
        )
        print(f"{page.shown} of {page.photos} photos shown in {arguments.report}")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from bbu.evaluation.compare import compare, comparison_table
    from bbu.records import iter_predictions, iter_rows

    comparison = compare(
        iter_rows(arguments.truth),
        iter_predictions(arguments.a),
        iter_predictions(arguments.b),
        score_threshold=arguments.threshold,
        bootstrap_samples=arguments.bootstrap_samples,
    )
    print(comparison_table(comparison))
    if arguments.output:
        write_json(arguments.output, comparison)
    return 0


def _calibrate(arguments: argparse.Namespace) -> int:
    from bbu.evaluation.calibration import fit_calibration
    from bbu.records import iter_predictions, iter_rows

    truth, predictions = iter_rows(arguments.truth), iter_predictions(arguments.predictions)
    calibration = fit_calibration(truth, predictions, kind=arguments.kind, split=Path(arguments.truth).stem)
    calibration.save(arguments.output)
    print(f"{calibration.summary()}; written to {arguments.output}")
    return 0


def _thresholds(arguments: argparse.Namespace) -> int:
    from bbu.evaluation.operating_points import operating_points, operating_table
    from bbu.records import iter_predictions, iter_rows

    goals = {name: getattr(arguments, name) for name in ("precision", "recall", "fppi")}
    ((goal, value),) = ((name, value) for name, value in goals.items() if value is not None)
    points = operating_points(
        iter_rows(arguments.truth), iter_predictions(arguments.predictions), goal, value, minimum=arguments.minimum
    )
    print(operating_table(points))
    if arguments.output:
        write_json(arguments.output, points)
    return 0
