"""Command line: the only place that sees everything. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from bbu.config import EvaluationConfig
from bbu.errors import UserError


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def build_parser() -> argparse.ArgumentParser:
    """All commands and their arguments."""
    parser = Parser(
        prog="bbu", description="Find every part in a photo, describe its state in words, and say how sure it is."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    for name, text in (
        ("run", "prepare data, train, predict, score, draw: the whole job of a config"),
        ("prepare", "only make the rows that a config trains on"),
        ("score", "predict, score and draw again with the model a run has trained"),
        ("check", "read a config and its overrides, and stop"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("config", help="a YAML file, e.g. configs/demo.yaml")
        command.add_argument("overrides", nargs="*", help="dotted keys, e.g. training.max_steps=10")

    doctor = commands.add_parser("doctor", help="say what is wrong with the data of a config, before training")
    doctor.add_argument("config", help="a YAML file, e.g. configs/demo.yaml")
    doctor.add_argument("overrides", nargs="*", help="dotted keys, e.g. data.source.path=/data/bbu")
    doctor.add_argument("--html", help="write the report as one page that opens in a browser")
    doctor.add_argument("--json", help="write the report as JSON")
    doctor.add_argument("--strict", action="store_true", help="exit status 1 on warnings too, not only on errors")
    doctor.add_argument("--samples", type=not_negative, default=12, help="photos to prove and draw (default 12)")

    augment = commands.add_parser("augment", help="draw a sheet of training photos as augmentation makes them")
    augment.add_argument("config", help="a YAML file, e.g. configs/bccd.yaml")
    augment.add_argument("overrides", nargs="*", help="dotted keys, e.g. data.augment.rotate=10")
    augment.add_argument("--output", default="augment.png", help="PNG or JPEG to write (default augment.png)")
    augment.add_argument("--photos", type=positive, default=6, help="rows of the sheet (default 6)")
    augment.add_argument("--views", type=positive, default=4, help="epochs, a column each (default 4)")
    augment.add_argument("--epoch", type=not_negative, default=0, help="the first of them (default 0)")

    profile = commands.add_parser("profile", help="say where the time of a training step goes: docs/profiling.md")
    profile.add_argument("config", help="a YAML file, e.g. configs/demo.yaml")
    profile.add_argument("overrides", nargs="*", help="dotted keys, e.g. training.batch_size=4")
    profile.add_argument("--warm-up", type=positive, default=3, help="steps before the one that is traced (default 3)")

    baselines = commands.add_parser("baselines", help="compare the model a run has trained with simpler answers")
    baselines.add_argument("config", help="a YAML file, e.g. configs/demo.yaml")
    baselines.add_argument("overrides", nargs="*", help="dotted keys, e.g. evaluation.split=val")
    baselines.add_argument("--limit", type=positive, help="only so many photos, the first ones (default all)")

    _add_predict(commands)

    serve = commands.add_parser("serve", help="a web page and HTTP endpoint for a trained model: docs/serve.md")
    serve.add_argument("model", help="a run's model folder, e.g. outputs/demo/model")
    serve.add_argument("--host", default="127.0.0.1", help="listen here (default 127.0.0.1: only this machine)")
    serve.add_argument("--port", type=not_negative, default=8000, help="default 8000; 0: a free one")
    serve.add_argument("--max-megabytes", type=positive, default=20, help="most bytes of a request (default 20)")
    serve.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")

    evaluate = commands.add_parser("evaluate", help="score saved predictions; needs no weights")
    evaluate.add_argument("truth", help="JSONL of annotated rows")
    evaluate.add_argument("predictions", help="predictions JSONL")
    evaluate.add_argument("--output", help="write all metrics as JSON")
    evaluate.add_argument("--threshold", type=float, default=0.3, help="score that counts as an alarm (default 0.3)")
    evaluate.add_argument("--precision", type=float, default=0.9, help="report recall at this precision (default 0.9)")
    evaluate.add_argument(
        "--alarms",
        type=float,
        nargs="+",
        default=[1.0, 0.1],
        metavar="N",
        help="report what is missed at so many false alarms a photo (default 1 0.1)",
    )
    evaluate.add_argument(
        "--resamples", type=not_negative, default=1000, help="of the bootstrap intervals; 0: none (default 1000)"
    )
    evaluate.add_argument("--dense", action="store_true", help="dense-captioning mAP too: docs/dense_captioning.md")
    evaluate.add_argument(
        "--meteor",
        choices=("approximate", "exact"),
        help="how --dense compares words (default approximate; exact: English, needs Java and pycocoevalcap)",
    )
    evaluate.add_argument("--pictures", help="folder for pictures of truth beside prediction")
    evaluate.add_argument("--report", help="write one HTML page with figures, curves and photos: docs/report.md")
    evaluate.add_argument("--image-root", help="photos of --pictures and --report (default: the truth's folder)")
    _add_score_commands(commands)
    return parser


def _add_score_commands(commands: Any) -> None:
    """What else can be learned from saved predictions: docs/evaluation.md."""
    compare = commands.add_parser("compare", help="what predictions B do better or worse than A, and on which photos")
    compare.add_argument("truth", help="JSONL of annotated rows")
    compare.add_argument("a", help="predictions JSONL")
    compare.add_argument("b", help="predictions JSONL of the same photos")
    compare.add_argument("--output", help="write the comparison as JSON, with every photo that changed")
    compare.add_argument("--threshold", type=float, default=0.3, help="score that counts as found (default 0.3)")
    compare.add_argument("--resamples", type=not_negative, default=1000, help="of the intervals (default 1000)")

    calibrate = commands.add_parser("calibrate", help="fit scores to the share that is right, for a model folder")
    calibrate.add_argument("truth", help="JSONL of annotated rows, best a val split")
    calibrate.add_argument("predictions", help="predictions JSONL made without calibration")
    calibrate.add_argument("--output", required=True, help="calibration.json to write")
    calibrate.add_argument("--kind", choices=("temperature", "isotonic"), default="temperature")

    thresholds = commands.add_parser("thresholds", help="choose the score to ask for, description by description")
    thresholds.add_argument("truth", help="JSONL of annotated rows, best a val split")
    thresholds.add_argument("predictions", help="predictions JSONL, scored as the model will score")
    goal = thresholds.add_mutually_exclusive_group(required=True)
    goal.add_argument("--precision", type=float, help="lowest threshold with at least this precision")
    goal.add_argument("--recall", type=float, help="highest threshold with at least this recall")
    goal.add_argument("--alarms", type=float, help="at most so many false alarms a photo, all descriptions together")
    thresholds.add_argument("--minimum", type=positive, default=10, help="annotated boxes for an own threshold (10)")
    thresholds.add_argument("--output", help="write operating points as JSON, for predict --operating-points")


def _add_predict(commands: argparse._SubParsersAction[Parser]) -> None:
    predict = commands.add_parser("predict", help="predict photos with a trained model: docs/prediction.md")
    predict.add_argument("model", help="a run's model folder, e.g. outputs/demo/model")
    predict.add_argument("photos", help="a folder, a quoted glob, one photo, a JSONL of records, or a .txt of paths")
    predict.add_argument("output", help="predictions JSONL to write; started again, a stopped prediction goes on")
    predict.add_argument("--image-root", help="folder that paths in a JSONL or .txt are relative to (default: its own)")
    predict.add_argument("--teachers", help="JSONL of annotated rows shown as worked examples")
    predict.add_argument("--top-k", type=positive, default=100, help="most boxes a photo (default 100)")
    predict.add_argument(
        "--duplicate-iou",
        type=share,
        default=EvaluationConfig.duplicate_iou,
        help="overlap that makes a box a duplicate; 1: none",
    )
    predict.add_argument("--batch-size", type=positive, default=8, help="photos or tiles at a time (default 8)")
    predict.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    predict.add_argument("--workers", type=not_negative, default=2, help="processes that read photos (default 2)")
    predict.add_argument("--tiles", help="look at overlapping tiles too: auto, or columns x rows, such as 3x2")
    predict.add_argument("--tile-size", type=positive, default=0, help="pixels a side of an auto tile")
    predict.add_argument("--tile-overlap", type=share, default=0.2, help="least share that neighbours have in common")
    predict.add_argument("--flips", action="store_true", help="look at everything mirrored left to right too")
    predict.add_argument("--taxonomy", help="whose mirror words --flips swaps (default: left and right)")
    predict.add_argument(
        "--descriptions",
        default="free",
        help="free: any words; known: only those of the model's list; or a file, one a line (default free)",
    )
    predict.add_argument("--no-calibration", action="store_true", help="raw scores, though the model has a calibration")
    predict.add_argument("--min-score", type=share, default=0.0, help="leave out predictions below (default 0: none)")
    predict.add_argument("--operating-points", help="JSON of `bbu thresholds`: leave out what is below its threshold")
    predict.add_argument("--pictures", help="folder for a picture of every photo with boxes, words and scores")
    predict.add_argument("--threshold", type=share, default=0.3, help="score that --pictures draws from (default 0.3)")
    predict.add_argument("--export", metavar="FORMAT", help="write the predictions in this format too, such as yolo")
    predict.add_argument("--export-to", metavar="FOLDER", help="new folder for --export")


def share(text: str) -> float:
    """A number in [0, 1], for argparse."""
    number = float(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must lie in [0, 1], is {text}")
    return number


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, is {number}")
    return number


def not_negative(text: str) -> int:
    """A whole number of at least 0, for argparse."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"must not be negative, is {number}")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake is one line on stderr and exit status 2."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        arguments = build_parser().parse_args(argv)
        return COMMANDS[arguments.command](arguments)
    except UserError as error:
        print(f"bbu: error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bbu: stopped", file=sys.stderr)
        return 130


def one_line(error: UserError) -> str:
    """The message; one that crossed from a loader process arrives wrapped in that process's traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].startswith("Caught ") and "in DataLoader worker" in lines[0]:
        return lines[-1].split(": ", 1)[-1]
    return " ".join(line.strip() for line in lines)


def _run(arguments: argparse.Namespace) -> int:
    from bbu.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    from bbu import stages

    return stages.run(config)


def _prepare(arguments: argparse.Namespace) -> int:
    from bbu import stages
    from bbu.config import load_config

    data = stages.prepare(load_config(arguments.config, arguments.overrides))
    print(f"rows in {data.folder}, photos under {data.image_root}")
    return 0


def _score(arguments: argparse.Namespace) -> int:
    from bbu import stages
    from bbu.config import load_config
    from bbu.evaluation import summary_table

    config = load_config(arguments.config, arguments.overrides)
    data = stages.prepare(config)
    stages.calibrate(config, data)
    stages.predict(config, data)
    print(summary_table(stages.score(config, data)))
    stages.draw(config, data)
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from bbu.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    print(f"{arguments.config}: fine; writes to {config.output_dir}")
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    import tempfile

    from bbu.config import load_config

    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # it looks at what is here, and downloads no model
    config = load_config(arguments.config, arguments.overrides)
    from bbu import stages
    from bbu.doctor.examination import examine
    from bbu.doctor.page import write_page
    from bbu.doctor.preparation import doctor_config
    from bbu.jsonl import write_json

    mirror = stages.taxonomy_of(config).mirror
    with tempfile.TemporaryDirectory(prefix="bbu-doctor-") as folder:
        data = stages.prepare(doctor_config(config, Path(folder)))
        report = examine(config, data.folder, data.image_root, mirror, samples=arguments.samples)
        print(f"\n{report.to_text()}", flush=True)
        if arguments.html:
            write_page(arguments.html, report)
        if arguments.json:
            write_json(arguments.json, report.to_json())
    for path in (arguments.html, arguments.json):
        if path:
            print(f"{'written':<10}{path}")
    return report.exit_status(arguments.strict)


def _augment(arguments: argparse.Namespace) -> int:
    from bbu import stages
    from bbu.config import load_config
    from bbu.data.augment import Augmenter
    from bbu.data.contact_sheet import draw_contact_sheet, save_contact_sheet

    config = load_config(arguments.config, arguments.overrides)
    data = stages.prepare(config)
    rows = [sample.student for sample in data.samples("train")]
    training, mirror = config.training, stages.taxonomy_of(config).mirror
    augmenter = Augmenter(config.data.augment, config.seed, pool=rows, image_root=data.image_root, mirror=mirror)
    run = training.max_steps * training.batch_size * training.gradient_accumulation
    epochs = range(arguments.epoch, arguments.epoch + arguments.views)
    done = {epoch: min((epoch + 0.5) * len(rows) / run, 1.0) for epoch in epochs}
    sheet = draw_contact_sheet(rows, data.image_root, augmenter, photos=arguments.photos, epochs=done)
    save_contact_sheet(sheet, arguments.output)
    print(f"{min(arguments.photos, len(rows))} photos, epochs {epochs[0]} to {epochs[-1]}: {arguments.output}")
    return 0


def _baselines(arguments: argparse.Namespace) -> int:
    from bbu import stages
    from bbu.baselines import Material, baselines_table, compare
    from bbu.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    data = stages.prepare(config)
    students = [sample.student for sample in data.samples("train")]
    rows = data.rows(config.evaluation.split)[: arguments.limit]
    material = Material(config, rows, students, data.rows("teacher"), data.image_root)
    report = compare(material, Path(config.output_dir) / stages.MODEL_FOLDER)
    print(f"\n{len(rows)} photos of the {config.evaluation.split} split\n{baselines_table(report)}")
    print(f"written: {Path(config.output_dir) / 'baselines.json'}, baselines/*.jsonl")
    return 0


def _profile(arguments: argparse.Namespace) -> int:
    from bbu.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    from bbu.stages.profiling import profile

    tables, folder = profile(config, arguments.warm_up)
    print(f"\n{tables}\n\nwritten: {folder}; open its trace.json in https://ui.perfetto.dev or chrome://tracing")
    return 0


def _predict(arguments: argparse.Namespace) -> int:
    _check_export(arguments)
    from bbu.inference import Inference, list_photos
    from bbu.models.predictor import PredictOptions, teacher_photos
    from bbu.models.tiling import Tiles
    from bbu.models.vocabulary import choose_vocabulary
    from bbu.prediction.job import predict_to_file, settings_of
    from bbu.prediction.operating_points import OperatingPoints
    from bbu.records import read_rows
    from bbu.taxonomy import MirrorRules
    from data_conversion.__main__ import load_taxonomy

    if arguments.tile_size and not arguments.tiles:
        raise UserError("--tile-size is a part of --tiles auto; give both")
    names, root = list_photos(arguments.photos)
    root = arguments.image_root or root
    tiles = Tiles.parse(arguments.tiles, arguments.tile_size, arguments.tile_overlap) if arguments.tiles else None
    options = PredictOptions(
        batch_size=arguments.batch_size,
        top_k=arguments.top_k,
        duplicate_iou=arguments.duplicate_iou,
        tiles=tiles,
        flips=arguments.flips,
        mirror=load_taxonomy(arguments.taxonomy).mirror if arguments.taxonomy else MirrorRules(),
        min_score=arguments.min_score,
    )
    points = OperatingPoints.load(arguments.operating_points) if arguments.operating_points else None
    teachers = read_rows(arguments.teachers) if arguments.teachers else []
    inference = Inference(
        arguments.model, precision=arguments.precision, calibrated=not arguments.no_calibration, options=options
    )
    words = choose_vocabulary(arguments.descriptions, Path(arguments.model), inference.processor)
    inference.predictor.options = replace(inference.predictor.options, vocabulary=words)
    count, failed = predict_to_file(
        inference,
        names,
        root,
        arguments.output,
        settings=settings_of(inference, arguments.model, arguments.teachers, arguments.operating_points),
        teachers=teacher_photos(teachers, root),
        operating_points=points,
        workers=arguments.workers,
    )
    print(f"{count} photos, {failed} of them failed; written to {arguments.output}")
    _show_predictions(arguments, root)
    return 1 if failed else 0


def _check_export(arguments: argparse.Namespace) -> None:
    """What would stop the export is better known before hours of predicting."""
    if (arguments.export is None) != (arguments.export_to is None):
        raise UserError("--export FORMAT and --export-to FOLDER: give both or neither")
    if arguments.export is None:
        return
    from data_conversion.formats import FORMATS

    names = [name for name, entry in FORMATS.items() if entry.write]
    if arguments.export not in names:
        raise UserError(f"--export {arguments.export!r}: formats that can be written: {', '.join(names)}")
    folder = Path(arguments.export_to)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"--export-to {folder}: is there and not an empty folder; name a new one")


def _show_predictions(arguments: argparse.Namespace, root: str) -> None:
    """Pictures and another format, of what the output holds."""
    if arguments.pictures:
        from bbu.prediction.pictures import draw_file

        drawn, gone = draw_file(
            arguments.output, root, arguments.pictures, threshold=arguments.threshold, workers=arguments.workers
        )
        print(f"{drawn} pictures in {arguments.pictures}" + (f"; {gone} photos are gone" if gone else ""))
    if arguments.export:
        from data_conversion.export import export

        report = export(arguments.export, arguments.output, arguments.export_to, image_root=root)
        print(f"{arguments.export} in {arguments.export_to}\n{report.summary()}")


def _serve(arguments: argparse.Namespace) -> int:
    from bbu.serve.server import serve

    serve(
        arguments.model,
        host=arguments.host,
        port=arguments.port,
        precision=arguments.precision,
        max_megabytes=arguments.max_megabytes,
    )
    return 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from bbu.evaluation import evaluate, summary_table, write_metrics
    from bbu.records import read_predictions, read_rows

    if arguments.meteor and not arguments.dense:
        raise UserError(f"--meteor {arguments.meteor} is a part of --dense; give both")
    truth, predictions = read_rows(arguments.truth), read_predictions(arguments.predictions)
    metrics = evaluate(
        truth,
        predictions,
        score_threshold=arguments.threshold,
        precision=arguments.precision,
        alarms=arguments.alarms,
        resamples=arguments.resamples,
    )
    print(summary_table(metrics))
    if arguments.dense:
        from bbu.evaluation.dense_captioning import dense_metrics, dense_table

        metrics |= dense_metrics(truth, predictions, meteor=arguments.meteor or "approximate")
        print(f"\n{dense_table(metrics)}")
    if arguments.output:
        write_metrics(arguments.output, metrics)
    if arguments.pictures:
        from bbu.evaluation.pictures import save_pictures

        root = arguments.image_root or str(Path(arguments.truth).parent)
        written = save_pictures(truth, predictions, root, arguments.pictures, threshold=arguments.threshold)
        print(f"{len(written)} pictures in {arguments.pictures}")
    if arguments.report:
        from bbu.evaluation.page import write_report

        root, title = arguments.image_root or str(Path(arguments.truth).parent), Path(arguments.truth).name
        page = write_report(arguments.report, truth, predictions, metrics, image_root=root, title=title)
        print(f"{page.shown} of {page.photos} photos shown in {arguments.report}")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from bbu.evaluation.compare import compare, comparison_table
    from bbu.jsonl import write_json
    from bbu.records import read_predictions, read_rows

    comparison = compare(
        read_rows(arguments.truth),
        read_predictions(arguments.a),
        read_predictions(arguments.b),
        score_threshold=arguments.threshold,
        resamples=arguments.resamples,
    )
    print(comparison_table(comparison))
    if arguments.output:
        write_json(arguments.output, comparison)
    return 0


def _calibrate(arguments: argparse.Namespace) -> int:
    from bbu.evaluation.calibration import fit_calibration
    from bbu.records import read_predictions, read_rows

    truth, predictions = read_rows(arguments.truth), read_predictions(arguments.predictions)
    calibration = fit_calibration(truth, predictions, kind=arguments.kind, split=Path(arguments.truth).stem)
    calibration.save(arguments.output)
    print(f"{calibration.summary()}; written to {arguments.output}")
    return 0


def _thresholds(arguments: argparse.Namespace) -> int:
    from bbu.evaluation.operating_points import operating_points, operating_table
    from bbu.jsonl import write_json
    from bbu.records import read_predictions, read_rows

    goals = {name: getattr(arguments, name) for name in ("precision", "recall", "alarms")}
    ((goal, value),) = ((name, value) for name, value in goals.items() if value is not None)
    points = operating_points(
        read_rows(arguments.truth), read_predictions(arguments.predictions), goal, value, minimum=arguments.minimum
    )
    print(operating_table(points))
    if arguments.output:
        write_json(arguments.output, points)
    return 0


COMMANDS = {
    "run": _run,
    "prepare": _prepare,
    "score": _score,
    "check": _check,
    "augment": _augment,
    "doctor": _doctor,
    "baselines": _baselines,
    "profile": _profile,
    "predict": _predict,
    "serve": _serve,
    "evaluate": _evaluate,
    "compare": _compare,
    "calibrate": _calibrate,
    "thresholds": _thresholds,
}

if __name__ == "__main__":
    sys.exit(main())
