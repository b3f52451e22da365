"""Command line: the only place that sees everything. Heavy imports wait until a command needs them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

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

    predict = commands.add_parser("predict", help="predict photos with a trained model")
    predict.add_argument("model", help="a run's model folder, e.g. outputs/demo/model")
    predict.add_argument("photos", help="a folder of photos, one photo, or a JSONL of records")
    predict.add_argument("output", help="predictions JSONL to write")
    predict.add_argument("--image-root", help="folder that the JSONL's image paths are relative to")
    predict.add_argument("--teachers", help="JSONL of annotated rows shown as worked examples")
    predict.add_argument("--top-k", type=positive, default=100, help="most boxes a photo (default 100)")
    predict.add_argument(
        "--duplicate-iou",
        type=float,
        default=EvaluationConfig.duplicate_iou,
        help="overlap that makes a box a duplicate; 1: none",
    )
    predict.add_argument("--batch-size", type=positive, default=8, help="photos at a time (default 8)")
    predict.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")

    evaluate = commands.add_parser("evaluate", help="score saved predictions; needs no weights")
    evaluate.add_argument("truth", help="JSONL of annotated rows")
    evaluate.add_argument("predictions", help="predictions JSONL")
    evaluate.add_argument("--output", help="write all metrics as JSON")
    evaluate.add_argument("--threshold", type=float, default=0.3, help="score that counts as an alarm (default 0.3)")
    evaluate.add_argument("--pictures", help="folder for pictures of truth beside prediction")
    evaluate.add_argument("--image-root", help="folder of the photos, for --pictures (default: the truth's folder)")
    return parser


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


def _predict(arguments: argparse.Namespace) -> int:
    from bbu.inference import Inference, list_photos
    from bbu.jsonl import write_jsonl
    from bbu.records import read_rows

    names, root = list_photos(arguments.photos)
    root = arguments.image_root or root
    inference = Inference(
        arguments.model,
        precision=arguments.precision,
        batch_size=arguments.batch_size,
        top_k=arguments.top_k,
        duplicate_iou=arguments.duplicate_iou,
    )
    teachers = read_rows(arguments.teachers) if arguments.teachers else []
    from tqdm import tqdm

    failed = 0

    def rows():  # type: ignore[no-untyped-def]
        nonlocal failed
        for row in tqdm(inference.predict_rows(names, root, teachers), total=len(names), desc="predict", unit="photo"):
            failed += row.error is not None
            yield row

    count = write_jsonl(arguments.output, rows())
    print(f"{count} photos, {failed} of them failed; written to {arguments.output}")
    return 1 if failed else 0


def _evaluate(arguments: argparse.Namespace) -> int:
    from bbu.evaluation import evaluate, summary_table, write_metrics
    from bbu.records import read_predictions, read_rows

    truth, predictions = read_rows(arguments.truth), read_predictions(arguments.predictions)
    metrics = evaluate(truth, predictions, score_threshold=arguments.threshold)
    print(summary_table(metrics))
    if arguments.output:
        write_metrics(arguments.output, metrics)
    if arguments.pictures:
        from bbu.evaluation.pictures import save_pictures

        root = arguments.image_root or str(Path(arguments.truth).parent)
        written = save_pictures(truth, predictions, root, arguments.pictures, threshold=arguments.threshold)
        print(f"{len(written)} pictures in {arguments.pictures}")
    return 0


COMMANDS = {
    "run": _run,
    "prepare": _prepare,
    "score": _score,
    "check": _check,
    "augment": _augment,
    "doctor": _doctor,
    "predict": _predict,
    "evaluate": _evaluate,
}

if __name__ == "__main__":
    sys.exit(main())
