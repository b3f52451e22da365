"""Commands that run a trained model on photos."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bbu.cli.arguments import Commands, Parser, not_negative, note, positive, share
from bbu.cli.grouping import HELP as GROUPS
from bbu.cli.grouping import check_single, group_of_photos
from bbu.config import EvaluationConfig
from bbu.errors import UserError

if TYPE_CHECKING:
    from bbu.inference.photo_lists import LeftOut


def add_commands(commands: Commands) -> None:
    """Commands whose first argument is a model folder."""
    _add_predict(commands)
    _add_summarize(commands)
    _add_write_verdicts(commands)
    serve = commands.add_parser("serve", help="a web page and HTTP endpoint for a trained model: docs/serve.md")
    serve.set_defaults(action=_serve)
    serve.add_argument("model", help="a run's model folder, e.g. outputs/demo/model")
    serve.add_argument("--host", default="127.0.0.1", help="listen here (default 127.0.0.1: only this machine)")
    serve.add_argument("--port", type=not_negative, default=8000, help="default 8000; 0: any free port")
    serve.add_argument("--max-megabytes", type=positive, default=20, help="largest request (default 20)")
    serve.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")


def _add_predict(commands: Commands) -> None:
    predict = commands.add_parser("predict", help="predict photos with a trained model: docs/prediction.md")
    predict.set_defaults(action=_predict)
    predict.add_argument("model", help="a run's model folder, e.g. outputs/demo/model")
    predict.add_argument("photos", help="a folder, a quoted glob, one photo, a JSONL of records, or a .txt of paths")
    predict.add_argument("output", help="predictions JSONL to write; rerun to resume")
    predict.add_argument("--image-root", help="folder that paths in a JSONL or .txt are relative to (default: its own)")
    predict.add_argument("--teachers", help="JSONL of annotated rows shown as worked examples")
    predict.add_argument("--max-detections", type=positive, default=100, help="most boxes per photo (default 100)")
    predict.add_argument(
        "--nms-iou",
        type=share,
        default=EvaluationConfig.nms_iou,
        help="IoU above which the lower-ranked box is suppressed; 1: keep all",
    )
    predict.add_argument("--batch-size", type=positive, default=8, help="photos or tiles per forward pass (default 8)")
    predict.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    predict.add_argument("--workers", type=not_negative, default=2, help="processes that read photos (default 2)")
    predict.add_argument(
        "--tiles",
        help="also predict overlapping tiles: auto, or columns x rows, such as 3x2 (default: as trained; 1x1: none)",
    )
    predict.add_argument("--tile-size", type=positive, default=0, help="side of an auto tile in pixels")
    predict.add_argument("--tile-overlap", type=share, default=0.2, help="least overlap of tiles (default 0.2)")
    predict.add_argument("--flips", action="store_true", help="also predict everything mirrored left to right")
    predict.add_argument("--taxonomy", help="taxonomy whose mirror rules --flips uses (default: swap left and right)")
    predict.add_argument(
        "--descriptions",
        default="free",
        help="free: any caption; known: only the model's own list; or a file with one per line (default free)",
    )
    predict.add_argument("--no-calibration", action="store_true", help="raw scores, even if the model is calibrated")
    predict.add_argument("--min-score", type=share, default=0.0, help="drop lower scores (default 0: keep all)")
    predict.add_argument("--operating-points", help="JSON of `bbu thresholds`: drop predictions below their thresholds")
    predict.add_argument("--pictures", help="folder for a picture of every photo with boxes, captions and scores")
    predict.add_argument("--threshold", type=share, default=0.3, help="lowest score in --pictures (default 0.3)")
    predict.add_argument("--export", metavar="FORMAT", help="also write the predictions in this format, such as yolo")
    predict.add_argument("--export-to", metavar="FOLDER", help="new folder for --export")


def _add_summarize(commands: Commands) -> None:
    summarize = commands.add_parser("summarize", help="a summary of every photo, row by group: docs/answers.md")
    summarize.set_defaults(action=_summarize)
    summarize.add_argument("model", help="model folder of a run with data.answers.summary")
    _add_writing(summarize, "summaries", "summary", 512, "photos")


def _add_write_verdicts(commands: Commands) -> None:
    write = commands.add_parser("write-verdicts", help="the model's own verdict on every group: docs/verdicts.md")
    write.set_defaults(action=_write_verdicts)
    write.add_argument("model", help="model folder of a run with data.answers.verdict")
    _add_writing(write, "verdicts", "verdict", 256, "groups")
    write.add_argument("--allow-single-photos", action="store_true", help="also judge groups of one photo")


def _add_writing(command: Parser, rows: str, answer: str, tokens: int, together: str) -> None:
    """Arguments of a command whose language model writes about photos."""
    command.add_argument("photos", help="a folder, a quoted glob, one photo, a JSONL of records, or a .txt of paths")
    command.add_argument("output", help=f"{rows} JSONL to write; rerun to resume")
    command.add_argument("--image-root", help="folder that paths in a JSONL or .txt are relative to (default: its own)")
    command.add_argument("--group-by", default="", help=GROUPS)
    command.add_argument("--max-tokens", type=positive, default=tokens, help=f"longest {answer} (default {tokens})")
    command.add_argument("--batch-size", type=positive, default=8, help=f"{together} written about together (8)")
    command.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    command.add_argument("--workers", type=not_negative, default=2, help="processes that read photos (default 2)")


def _summarize(arguments: argparse.Namespace) -> int:
    from bbu.inference import Inference
    from bbu.inference.job import settings_of
    from bbu.inference.summaries import summarize_to_file

    names, root, group_of, left_out = _grouped_photos(arguments)
    inference = Inference(arguments.model, precision=arguments.precision, batch_size=arguments.batch_size)
    count, failed, cut = summarize_to_file(
        inference,
        names,
        arguments.image_root or root,
        arguments.output,
        group_of=group_of,
        settings=settings_of(inference, arguments.model),
        max_new_tokens=arguments.max_tokens,
        workers=arguments.workers,
    )
    print(
        f"{count} photos, {failed} of them failed, {cut} summaries cut off at {arguments.max_tokens} tokens; "
        f"written to {arguments.output}"
    )
    return 1 if failed or left_out.closed else 0


def _write_verdicts(arguments: argparse.Namespace) -> int:
    from bbu.inference import Inference
    from bbu.inference.job import settings_of
    from bbu.inference.verdicts import verdicts_to_file
    from bbu.judging.groups import names_by_group

    names, root, group_of, left_out = _grouped_photos(arguments)
    groups = names_by_group(names, group_of)
    check_single(groups, arguments.allow_single_photos)
    inference = Inference(arguments.model, precision=arguments.precision, batch_size=arguments.batch_size)
    failed, malformed = verdicts_to_file(
        inference,
        [*groups.items()],
        arguments.image_root or root,
        arguments.output,
        settings=settings_of(inference, arguments.model),
        max_new_tokens=arguments.max_tokens,
        workers=arguments.workers,
    )
    print(
        f"{len(groups)} groups of {len(names)} photos, {failed} of them failed, {malformed} answers malformed; "
        f"written to {arguments.output}; judge them with bbu judge"
    )
    return 1 if failed or left_out.closed else 0


def _grouped_photos(
    arguments: argparse.Namespace,
) -> tuple[list[str], str, Callable[[str], str | None], LeftOut]:
    """Paths, their root, the group of each path, and what was left out, which a line on stderr says."""
    from bbu.inference.photo_lists import LeftOut, list_photos
    from bbu.records import read_samples

    left_out = LeftOut()
    names, root = list_photos(arguments.photos, left_out)
    _note(left_out)
    rows = read_samples(arguments.photos) if Path(arguments.photos).suffix == ".jsonl" else []
    return names, root, group_of_photos(arguments.group_by, (sample.student for sample in rows)), left_out


def _note(left_out: LeftOut) -> None:
    for text in left_out.notes():
        note(text)


def _predict(arguments: argparse.Namespace) -> int:
    _check_export(arguments)
    from bbu.inference import Inference
    from bbu.inference.job import predict_to_file, settings_of
    from bbu.inference.operating_points import OperatingPoints
    from bbu.inference.photo_lists import LeftOut, list_photos
    from bbu.inference.predictor import PredictOptions, teacher_photos
    from bbu.records import read_rows
    from bbu.taxonomy import MirrorRules
    from bbu.tiles import Tiles
    from data_conversion.taxonomies import load_taxonomy

    if arguments.tile_size and not arguments.tiles:
        raise UserError("--tile-size needs --tiles auto; give both")
    left_out = LeftOut()
    names, root = list_photos(arguments.photos, left_out)
    _note(left_out)
    root = arguments.image_root or root
    tiles = Tiles.parse(arguments.tiles, arguments.tile_size, arguments.tile_overlap) if arguments.tiles else None
    options = PredictOptions(
        batch_size=arguments.batch_size,
        max_detections=arguments.max_detections,
        nms_iou=arguments.nms_iou,
        tiles=tiles,
        flips=arguments.flips,
        mirror=load_taxonomy(arguments.taxonomy).mirror if arguments.taxonomy else MirrorRules(),
        min_score=arguments.min_score,
    )
    points = OperatingPoints.load(arguments.operating_points) if arguments.operating_points else None
    teachers = read_rows(arguments.teachers) if arguments.teachers else []
    inference = Inference(
        arguments.model,
        precision=arguments.precision,
        calibrated=not arguments.no_calibration,
        descriptions=arguments.descriptions,
        options=options,
    )

    def show(count: int, failed: int) -> None:
        closed = f", {len(left_out.closed)} folders could not be read" if left_out.closed else ""
        print(f"{count} photos, {failed} of them failed{closed}; written to {arguments.output}")
        _show_predictions(arguments, root)

    _, failed = predict_to_file(
        inference,
        names,
        root,
        arguments.output,
        settings=settings_of(inference, arguments.model, arguments.teachers, arguments.operating_points),
        teachers=teacher_photos(teachers, root),
        operating_points=points,
        workers=arguments.workers,
        then=show,
    )
    return 1 if failed or left_out.closed else 0


def _check_export(arguments: argparse.Namespace) -> None:
    """Fail before hours of predicting, not after them, if the export is impossible."""
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
        raise UserError(f"--export-to {folder}: exists and is not an empty folder; name a new one")


def _show_predictions(arguments: argparse.Namespace, root: str) -> None:
    """Draw pictures of the output and export it, if requested."""
    if arguments.pictures:
        from bbu.inference.pictures import draw_file

        drawn, gone = draw_file(
            arguments.output, root, arguments.pictures, threshold=arguments.threshold, workers=arguments.workers
        )
        print(f"{drawn} pictures in {arguments.pictures}" + (f"; {gone} photos can no longer be read" if gone else ""))
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
