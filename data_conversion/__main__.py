"""``python -m data_conversion``: convert a source folder, export rows to a tool's format, draft a taxonomy."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bbu.errors import UserError
from data_conversion.formats import FORMATS
from data_conversion.photo_files import MODES
from data_conversion.pipeline import convert
from data_conversion.source_folder import following_links
from data_conversion.taxonomies import load_taxonomy

DONE, TERMS_OUTSIDE, FAILED = 0, 1, 2  # exit status
FOLLOW_LINKS = "read files and photos behind links that lead outside INPUT"


def parse_splits_argument(text: str) -> dict[str, str]:
    """``train=train+val,test=test`` → target → sources.

    Raises:
        UserError: an entry without ``=``, or a repeated target.
    """
    result: dict[str, str] = {}
    for entry in text.split(","):
        target, equals, sources = entry.partition("=")
        if not equals or target in result:
            raise UserError(f"--splits {text!r}: write each target once, for example train=train+val,test=test")
        result[target] = sources
    return result


def describe_formats() -> str:
    """Every format, whether it can be read and written, and its summary."""
    lines = ["formats:"]
    for name, entry in FORMATS.items():
        ways = " and ".join(way for way, there in (("in", entry.read), ("out", entry.write)) if there)
        lines.append(f"  {name:<16} {ways:<12} {entry.summary}")
    return "\n".join(lines)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the plain command; its arguments are those of ``convert``."""
    parser = argparse.ArgumentParser(
        prog="python -m data_conversion",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Convert a source folder to rows and list what was dropped.\n\n"
        "other commands:\n"
        "  python -m data_conversion export FORMAT ROWS OUTPUT    rows or predictions to a tool's format\n"
        "  python -m data_conversion taxonomy FORMAT INPUT FILE   draft a taxonomy from the labels of a source",
        epilog=f"{describe_formats()}\n\nexit status: 0 done, 1 done but labels are outside the taxonomy, 2 error",
    )
    parser.add_argument("source_format", metavar="FORMAT", help="one of the formats below")
    parser.add_argument("input_dir", metavar="INPUT", help="source folder; never changed; the image root of the rows")
    parser.add_argument("output_dir", metavar="OUTPUT", help="folder for the row files; created if missing")
    parser.add_argument("--taxonomy", help="a YAML file, or a shipped one by name: bbu (default: keep every label)")
    parser.add_argument("--val-fraction", type=float, help="drawn by seed (default 0.1 where the source has no splits)")
    parser.add_argument("--test-fraction", type=float, help="likewise (default 0)")
    parser.add_argument(
        "--group-by",
        default="",
        help="what drawn splits keep together: folder, or a regular expression on the photo's path, such as ^(.+)_",
    )
    parser.add_argument("--max-teachers", type=int, default=0, help="moved from train to teacher.jsonl (default 0)")
    parser.add_argument("--seed", type=int, default=0, help="for splits and teachers (default 0)")
    parser.add_argument("--on-error", choices=("fail", "skip"), default="fail", help="for malformed files")
    parser.add_argument("--splits", help="merge the source's splits, for example train=train+val,test=test")
    parser.add_argument(
        "--images", default="keep", metavar="MODE", help="; ".join(f"{k}: {v}" for k, v in MODES.items())
    )
    parser.add_argument("--max-pixels", type=int, default=0, help="largest re-encoded photo (default: no limit)")
    parser.add_argument("--frame", choices=("displayed", "stored"), default="", help="what coordinates are pixels of")
    parser.add_argument("--follow-links", action="store_true", help=FOLLOW_LINKS)
    parser.add_argument("--units", choices=("shares",), default="", help="coordinates are shares of the photo, 0 to 1")
    parser.add_argument("--summaries", choices=("zh", "en"), default="", help="count the objects of photos in words")
    parser.add_argument(
        "--summary-levels", type=int, default=0, help="levels of descriptions counted together (default: all)"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes (default: one per core)")
    return parser


def build_export_parser() -> argparse.ArgumentParser:
    """The parser of ``export``; its arguments are those of the function."""
    parser = argparse.ArgumentParser(
        prog="python -m data_conversion export",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Write rows or predictions in the format of a labelling tool, and list what is lost.",
        epilog=describe_formats(),
    )
    parser.add_argument("target_format", metavar="FORMAT", help="one of the formats marked out")
    parser.add_argument("rows_path", metavar="ROWS", help="JSONL of rows or predictions, or a folder of converted rows")
    parser.add_argument("output_dir", metavar="OUTPUT", help="new or empty folder")
    parser.add_argument("--image-root", help="folder of the photos (default: photos/ beside ROWS)")
    parser.add_argument("--photos", choices=("link", "copy", "none"), default="link", help="(default link)")
    parser.add_argument("--min-score", type=float, default=0.0, help="leave out predictions below (default 0)")
    return parser


def build_taxonomy_parser() -> argparse.ArgumentParser:
    """The parser of ``taxonomy``."""
    parser = argparse.ArgumentParser(
        prog="python -m data_conversion taxonomy", description="Draft a taxonomy file from the labels of a source."
    )
    parser.add_argument("format", choices=[name for name, entry in FORMATS.items() if entry.read], metavar="FORMAT")
    parser.add_argument("input", metavar="INPUT", help="source folder")
    parser.add_argument("output", metavar="FILE", help="YAML file to write")
    parser.add_argument("--follow-links", action="store_true", help=FOLLOW_LINKS)
    return parser


def _convert(argv: Sequence[str]) -> int:
    arguments = vars(build_parser().parse_args(argv))
    for name, read in (("taxonomy", load_taxonomy), ("splits", parse_splits_argument)):
        arguments[name] = read(arguments[name]) if arguments[name] else None
    report = convert(**arguments, progress=True)
    print(report.summary())
    return TERMS_OUTSIDE if report.unknown_terms else DONE


def _export(argv: Sequence[str]) -> int:
    from data_conversion.export import export

    report = export(**vars(build_export_parser().parse_args(argv)))
    print(report.summary())
    return TERMS_OUTSIDE if report.skipped else DONE


def _taxonomy(argv: Sequence[str]) -> int:
    from data_conversion.taxonomy_draft import read_labels, write_draft

    arguments = build_taxonomy_parser().parse_args(argv)
    with following_links(arguments.follow_links):
        labels = read_labels(arguments.format, Path(arguments.input))
    write_draft(Path(arguments.output), labels)
    print(f"{len(labels.counts)} labels of {labels.counts.total()} objects; draft written to {arguments.output}")
    return DONE


COMMANDS = {"export": _export, "taxonomy": _taxonomy}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0, 1 for labels outside the taxonomy or skipped photos, 2 for a UserError."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and arguments[0] in COMMANDS:
            return COMMANDS[arguments[0]](arguments[1:])
        return _convert(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("stopped; run the same command again to resume", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
