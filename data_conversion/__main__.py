"""``python -m data_conversion FORMAT INPUT OUTPUT``: convert a source folder and print what was dropped."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bbu.errors import UserError
from bbu.taxonomy import Taxonomy
from data_conversion.formats import FORMATS
from data_conversion.pipeline import convert

TAXONOMIES = Path(__file__).parent / "taxonomies"


def load_taxonomy(name: str) -> Taxonomy:
    """A taxonomy file, or a shipped one by name.

    Raises:
        UserError: neither; the message lists the shipped names.
    """
    if Path(name).is_file():
        return Taxonomy.from_yaml(name)
    shipped = {path.stem: path for path in sorted(TAXONOMIES.glob("*.yaml"))}
    if name not in shipped:
        raise UserError(f"taxonomy {name!r} is neither a file nor one of the shipped: {', '.join(shipped)}")
    return Taxonomy.from_yaml(shipped[name])


def parse_splits_argument(text: str) -> dict[str, str]:
    """``train=train+val,test=test`` → mapping target → sources.

    Raises:
        UserError: a part without ``=``, or a target named twice.
    """
    result: dict[str, str] = {}
    for part in text.split(","):
        target, equals, sources = part.partition("=")
        if not equals or target in result:
            raise UserError(f"--splits {text!r}: write each target once, for example train=train+val,test=test")
        result[target] = sources
    return result


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m data_conversion", description="Convert a source folder to rows and list what was dropped."
    )
    parser.add_argument("format", metavar="FORMAT", help=", ".join(FORMATS))
    parser.add_argument("input", metavar="INPUT", help="source folder; only read, and the image root of the rows")
    parser.add_argument("output", metavar="OUTPUT", help="folder for the row files; made if missing")
    parser.add_argument("--taxonomy", help="a YAML file, or a shipped one by name: bbu (default: keep every label)")
    parser.add_argument("--val-fraction", type=float, default=0.1, help="where the source has no splits (default 0.1)")
    parser.add_argument("--test-fraction", type=float, default=0.0, help="where the source has no splits (default 0)")
    parser.add_argument("--max-teachers", type=int, default=0, help="moved from train to teacher.jsonl (default 0)")
    parser.add_argument("--seed", type=int, default=0, help="of splits and teachers (default 0)")
    parser.add_argument("--on-error", choices=("fail", "skip"), default="fail", help="for malformed files")
    parser.add_argument("--splits", help="merge the source's splits, for example train=train+val,test=test")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status: 0, or 2 for an error in the user's files or arguments."""
    arguments = build_parser().parse_args(argv)
    try:
        report = convert(
            arguments.format,
            arguments.input,
            arguments.output,
            taxonomy=load_taxonomy(arguments.taxonomy) if arguments.taxonomy else None,
            val_fraction=arguments.val_fraction,
            test_fraction=arguments.test_fraction,
            max_teachers=arguments.max_teachers,
            seed=arguments.seed,
            on_error=arguments.on_error,
            splits=parse_splits_argument(arguments.splits) if arguments.splits else None,
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report.summary())
    return 0


if __name__ == "__main__":
    sys.exit(main())
