"""Source annotations → row files, in this order:

clean → token map → hierarchy → EXIF → rescale → cut to the image → order → split → teachers → validate → write.
Nothing is lost silently: what is not in a row is in the report and in one of the two ``invalid_*`` files.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bbu.errors import ImageError, RecordError, UserError
from bbu.records import ObjectRow, Row, parse_row, resolve_image
from bbu.taxonomy import Taxonomy
from data_conversion.base import MALFORMED, SPLITS, BadSource, Dropped, RawObject, SourceImage, SourceOptions, readable
from data_conversion.formats import FORMATS
from data_conversion.outputs import write_outputs
from data_conversion.photos import points_to_displayed, read_photo
from data_conversion.placing import place_objects
from data_conversion.report import ConversionReport
from data_conversion.splits import Candidate, assign_splits, parse_splits
from data_conversion.teacher import choose_teachers


@dataclass(frozen=True)
class _Converted:
    """A row and what later steps need of its photo."""

    row: Row
    digest: str
    hint: str | None
    source: str


@dataclass
class _Run:
    """What a conversion gathers on its way."""

    root: Path
    taxonomy: Taxonomy
    on_error: str
    report: ConversionReport
    converted: list[_Converted] = field(default_factory=list)
    invalid_objects: list[dict[str, Any]] = field(default_factory=list)
    invalid_samples: list[dict[str, Any]] = field(default_factory=list)

    def drop(self, source: str, item: Dropped) -> None:
        self.report.dropped[readable(item.label), item.reason] += 1
        self.invalid_objects.append(
            {
                "source": source,
                "field": item.field,
                "label": readable(item.label),
                "reason": item.reason,
                "detail": readable(item.detail),
            }
        )

    def skip(self, bad: BadSource, objects: Sequence[RawObject | Dropped | ObjectRow] = ()) -> None:
        """Count a photo that gives no row, with its objects; a malformed one ends a strict conversion."""
        field, detail = readable(bad.field), readable(bad.detail)
        if bad.reason == MALFORMED and self.on_error == "fail":
            raise RecordError(str(self.root / bad.source), field, detail)
        self.report.photos_skipped[bad.reason] += 1
        self.invalid_samples.append({"source": bad.source, "field": field, "reason": bad.reason, "detail": detail})
        reason = "split_left_out" if bad.reason == "split_left_out" else "photo_skipped"
        for item in objects:
            label = item.label if isinstance(item, Dropped) else item.desc
            place = "" if isinstance(item, ObjectRow) else item.field
            self.drop(bad.source, Dropped(label.strip() or "(no label)", reason, detail, place))


def convert(
    source_format: str,
    input_dir: str | Path,
    output_dir: str | Path,
    *,
    taxonomy: Taxonomy | None,
    val_fraction: float = 0.1,
    test_fraction: float = 0.0,
    max_teachers: int = 0,
    seed: int = 0,
    on_error: str = "fail",
    splits: Mapping[str, str] | None = None,
) -> ConversionReport:
    """Convert a source folder; the same input and arguments give byte-identical files.

    Args:
        source_format: a name in FORMATS.
        input_dir: the source; image paths in the rows are relative to it. It is only read.
        output_dir: made if missing; on any error it is left as it was.
        taxonomy: token map and hierarchy; None keeps every description.
        val_fraction, test_fraction: shares drawn by seed where the source has no splits of its own.
        max_teachers: rows moved from train.jsonl to teacher.jsonl.
        on_error: ``fail`` stops at the first malformed file; ``skip`` counts it and goes on.
        splits: target split → source splits joined by ``+``; a source split not named is left out.

    Raises:
        UserError: a bad argument, or a malformed source file (file, field and reason).
    """
    root, out = Path(input_dir), Path(output_dir)
    iter_records = _format(source_format)
    targets = parse_splits(splits)
    _check_arguments(root, out, val_fraction, test_fraction, max_teachers, on_error)
    taxonomy = taxonomy or Taxonomy()
    run = _Run(root, taxonomy, on_error, ConversionReport(source_format, seed))
    _read_source(run, iter_records(root, SourceOptions(taxonomy.language, ignore=out.resolve())))
    rows = _split(run, targets, val_fraction, test_fraction, seed)
    _move_teachers(rows, run.converted, max_teachers, seed)
    run.report.splits = {
        name: {"photos": len(part), "objects": sum(len(row.objects) for row in part)} for name, part in rows.items()
    }
    write_outputs(out, rows, run.invalid_objects, run.invalid_samples, run.report.to_json())
    return run.report


def _format(name: str) -> Any:
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known formats: {', '.join(FORMATS)}"
        raise UserError(f"source format {name!r} is unknown; {hint}")
    return FORMATS[name]


def _check_arguments(
    root: Path, out: Path, val_fraction: float, test_fraction: float, max_teachers: int, on_error: str
) -> None:
    if not root.is_dir():
        raise UserError(f"{root}: input folder does not exist or is not a folder")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: output exists and is not a folder; choose another name")
    if root.resolve().is_relative_to(out.resolve()):
        raise UserError(f"{out}: output folder holds the input {root}; choose a folder beside it")
    for name, value in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not (math.isfinite(value) and 0 <= value < 1):
            raise UserError(f"{name} must lie in [0, 1), is {value}")
    if val_fraction + test_fraction >= 1:
        raise UserError(f"val_fraction + test_fraction = {val_fraction + test_fraction:g} leaves nothing to train on")
    if max_teachers < 0:
        raise UserError(f"max_teachers must be 0 or more, is {max_teachers}")
    if on_error not in ("fail", "skip"):
        raise UserError(f"on_error must be 'fail' or 'skip', is {on_error!r}")


def _read_source(run: _Run, items: Any) -> None:
    annotated: dict[str, str] = {}
    for item in items:
        run.report.photos_read += 1
        if isinstance(item, BadSource):
            run.skip(item)
            continue
        run.report.objects_read += len(item.objects)
        if item.image in annotated:
            detail = f"{item.image} is annotated twice, also by {annotated[item.image]}; keep one"
            run.skip(BadSource(item.source, "image", detail), item.objects)
            continue
        annotated[item.image] = item.source
        _convert_photo(run, item)
    if not run.report.photos_read:
        raise UserError(f"{run.root}: no {run.report.source_format} annotations found; check the folder and the format")
    if not run.converted:
        first = run.invalid_samples[0]
        raise UserError(
            f"{run.root}: none of {run.report.photos_read} photos could be converted; "
            f"the first: {first['source']}: {first['field']}: {first['detail']}"
        )


def _convert_photo(run: _Run, item: SourceImage) -> None:
    try:
        photo = read_photo(_inside(run.root, item.image))
        affine, notes = points_to_displayed(photo, item.size, item.displayed)
    except ImageError as error:
        run.skip(BadSource(item.source, "image", str(error)), item.objects)
        return
    width, height = photo.displayed
    objects, dropped, more = place_objects(item.objects, run.taxonomy, affine, (width, height))
    if item.objects and not objects:
        # As an empty photo it would teach that there is nothing to see.
        detail = f"all {len(item.objects)} objects were dropped"
        run.skip(BadSource(item.source, "objects", detail, reason="no_objects_left"))
        for lost in dropped:
            run.drop(item.source, lost)
        return
    row = Row((item.image,), tuple(objects), width, height, metadata={"source": item.source})
    try:
        row = parse_row(row.to_json(), item.source)
    except RecordError as error:
        run.skip(BadSource(item.source, error.field, error.why), item.objects)
        return
    for lost in dropped:
        run.drop(item.source, lost)
    run.report.notes.update(readable(note) for note in [*item.notes, *notes, *more])
    if photo.orientation != 1:
        run.report.notes[f"exif_orientation_{photo.orientation}"] += 1
    run.converted.append(_Converted(row, photo.digest, item.split, item.source))


def _inside(root: Path, image: str) -> Path:
    try:
        return resolve_image(root, image)
    except (UserError, ValueError, OSError):  # ValueError: a null byte, OSError: a loop of links
        raise ImageError(f"image path {image!r} leaves the source folder; move the photo inside it") from None


def _split(
    run: _Run, targets: Mapping[str, str], val_fraction: float, test_fraction: float, seed: int
) -> dict[str, list[Row]]:
    """Rows by split, in order of image path; test only where it exists."""
    run.converted.sort(key=lambda item: item.row.images)
    candidates = [Candidate(item.digest, item.hint) for item in run.converted]
    chosen, counts = assign_splits(candidates, targets, val_fraction, test_fraction, seed)
    run.report.notes.update(counts)
    rows: dict[str, list[Row]] = {"train": [], "val": []}
    has_test = test_fraction > 0 or any(split == "test" for split in chosen)
    if has_test:
        rows["test"] = []
    for item, split in zip(run.converted, chosen, strict=True):
        if split is None:
            detail = f"split {item.hint!r} of the source is not in --splits"
            run.skip(BadSource(item.source, "split", detail, reason="split_left_out"), item.row.objects)
        else:
            rows[split].append(replace(item.row, metadata={**item.row.metadata, "split": split}))
    if not rows["train"]:
        raise UserError(f"{run.root}: no photo is left for train; check the source's splits or --splits")
    return {name: rows[name] for name in SPLITS if name in rows}


def _move_teachers(rows: dict[str, list[Row]], converted: Sequence[_Converted], max_teachers: int, seed: int) -> None:
    """Move teachers out of train: a photo must not be its own example, so neither may a copy of it stay."""
    digests = {item.row.images: item.digest for item in converted}
    train = rows["train"]
    if max_teachers >= len(train):
        raise UserError(f"max_teachers {max_teachers} leaves no photo to train on: train has {len(train)}")
    copies = Counter(digests[row.images] for row in train)
    unique = [row for row in train if copies[digests[row.images]] == 1]
    teachers = [unique[index] for index in choose_teachers(unique, max_teachers, seed)]
    taken = {row.images for row in teachers}
    rows["train"] = [row for row in train if row.images not in taken]
    rows["teacher"] = [replace(row, metadata={**row.metadata, "split": "teacher"}) for row in teachers]
