"""Rows or predictions → annotation files of a labelling tool or trainer, with the photos where it looks for them.

Rows are written one at a time, whatever their number, to a folder beside the output that is moved there at the end.

Photos: ``link`` makes hard links, which survive moving the folder and mounting it in a container, or relative symbolic
links where the disk allows no hard ones. Both are the original file, so a tool that edits photos in place needs
``copy``. A photo with an EXIF orientation is always rewritten upright: rows are in displayed pixels, and tools disagree
about the tag.
"""

from __future__ import annotations

import difflib
import os
import posixpath
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bbu.errors import ImageError, RecordError, UserError
from bbu.images import image_errors, open_image, upright
from bbu.jsonl import iter_json_lines
from bbu.records import (
    ObjectRow,
    PredictedObject,
    PredictionRow,
    Row,
    parse_prediction_row,
    parse_sample,
    resolve_image,
)
from data_conversion.base import SPLITS, ExportLosses, ExportObject, ExportPhoto, Format
from data_conversion.formats import FORMATS
from data_conversion.formats.disk_multimap import DiskMultimap
from data_conversion.outputs import PHOTOS
from data_conversion.photos import read_photo

LINK, COPY, WITHOUT = MODES = ("link", "copy", "none")
ROW_FILES = {"train.jsonl": "train", "val.jsonl": "val", "test.jsonl": "test", "teacher.jsonl": "train"}
# How Pillow writes a photo that was turned; other formats have no EXIF tag.
UPRIGHT: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "MPO": {"format": "JPEG", "quality": 95, "subsampling": 0},  # a phone's JPEG with a second picture inside
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "AVIF": {"quality": 95},
    "JPEG2000": {},
}
MAX_LINES = 20  # of skipped photos in the summary


@dataclass
class ExportReport:
    """The result of an export. Objects in all rows = written + left out.

    Args:
        target_format: name of the format.
        mode: how photos were written, one of MODES.
        photos, objects: written.
        skipped: reason → photos left out; empty if everything could be written.
        problems: one line per skipped photo.
        left_out: reason → objects left out.
        losses: what the format cannot hold → count.
        notes: code → count of harmless oddities.
    """

    target_format: str
    mode: str
    photos: int = 0
    objects: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    losses: ExportLosses = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def summary(self) -> str:
        """A few lines for the terminal."""
        lines = [
            f"photos   {self.photos} written, {self.skipped.total()} skipped",
            f"objects  {self.objects} written, {self.left_out.total()} left out",
        ]
        lines += [f"skipped  {count} x {reason}" for reason, count in sorted(self.skipped.items())]
        lines += [f"skipped  {problem}" for problem in self.problems[:MAX_LINES]]
        if len(self.problems) > MAX_LINES:
            lines.append(f"skipped  … and {len(self.problems) - MAX_LINES} more")
        lines += [f"left out {count} x {reason}" for reason, count in sorted(self.left_out.items())]
        lines += [f"lost     {count} x {words}" for words, count in sorted(self.losses.items())]
        lines += [f"note     {count} x {code}" for code, count in sorted(self.notes.items())]
        if self.mode == WITHOUT:
            lines.append("note     no photo was opened; make those with an EXIF orientation upright for the tool")
        return "\n".join(lines)


def export(
    target_format: str,
    rows_path: str | Path,
    output_dir: str | Path,
    *,
    image_root: str | Path | None = None,
    photos: str = LINK,
    min_score: float = 0.0,
    splits: Collection[str] = SPLITS,
) -> ExportReport:
    """Write rows or predictions as files of another format.

    Args:
        target_format: a name in FORMATS that can be written.
        rows_path: JSONL of rows, few-shot samples or predictions (the first row decides), or a folder of converted
            rows, whose file names give the splits; teachers count as train.
        output_dir: new or empty folder.
        image_root: folder that image paths are relative to; default: ``photos`` beside the rows, if it exists.
        photos: ``link``, ``copy`` or ``none``.
        min_score: predictions with a lower score are left out.
        splits: rows of other splits are left out; rows without a split are kept.

    Raises:
        UserError: a bad argument, a malformed row, nothing to write, or an output that cannot be written.
    """
    entry = _writable(target_format)
    rows, out = Path(rows_path), Path(output_dir).resolve()
    _check_arguments(out, photos, min_score, splits)
    report = ExportReport(target_format, photos)
    root = _image_root(rows, image_root, photos)
    staging: str | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}.")
        with DiskMultimap() as seen:
            exporter = _Exporter(entry, root, Path(staging), out, seen, min_score, report)
            assert entry.write is not None  # _writable
            report.losses = entry.write(exporter.photos(_read(rows, splits, report)), Path(staging))
        report.left_out = +report.left_out  # without reasons that only met photos without objects
        if not report.photos:
            raise UserError(_nothing_written(rows, report))
        os.chmod(staging, 0o755)
        os.replace(staging, out)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error}); choose another output folder") from None
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
    return report


# ---------------------------------------------------------------- arguments


def _writable(name: str) -> Format:
    names = [name for name, entry in FORMATS.items() if entry.write]
    if name in names:
        return FORMATS[name]
    near = difflib.get_close_matches(name, names, n=1)
    why = "can only be read" if name in FORMATS else "is unknown"
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise UserError(f"target format {name!r} {why}; {hint}formats that can be written: {', '.join(names)}")


def _check_arguments(out: Path, photos: str, min_score: float, splits: Collection[str]) -> None:
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: output exists and is not a folder; choose another name")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out}: output folder is not empty; choose a new one, or empty it")
    if photos not in MODES:
        raise UserError(f"photos must be one of {', '.join(MODES)}, is {photos!r}")
    if not 0 <= min_score <= 1:
        raise UserError(f"min_score must lie in [0, 1], is {min_score}")
    unknown = sorted(set(splits) - set(SPLITS))
    if unknown:
        raise UserError(f"splits {', '.join(unknown)}: unknown; known splits: {', '.join(SPLITS)}")


def _image_root(rows: Path, image_root: str | Path | None, photos: str) -> Path:
    if image_root is not None:
        if not Path(image_root).is_dir():
            raise UserError(f"{image_root}: image root does not exist or is not a folder")
        return Path(image_root)
    folder = rows if rows.is_dir() else rows.parent
    if (folder / PHOTOS).is_dir():
        return folder / PHOTOS
    if photos == WITHOUT:
        return folder  # nothing is opened
    raise UserError(
        f"{rows}: image_root is needed: name the folder that image paths are relative to (that of the photos at "
        "conversion), or write no photos"
    )


def _nothing_written(rows: Path, report: ExportReport) -> str:
    if report.problems:
        return f"{rows}: none of {len(report.problems)} photos could be exported; the first: {report.problems[0]}"
    return f"{rows}: holds no rows to export" + (", only of other splits" if report.notes else "")


# ---------------------------------------------------------------- rows


def _read(rows: Path, splits: Collection[str], report: ExportReport) -> Iterator[tuple[str, str | None, Any]]:
    """(file:line, split or None, row) of the wanted splits."""
    if not rows.is_dir():
        for where, own, row in _read_file(rows):
            if own is None or own in splits:
                yield where, own, row
            else:
                report.notes["row_of_another_split"] += 1
        return
    files = {name: split for name, split in ROW_FILES.items() if (rows / name).is_file()}
    if not files:
        raise UserError(f"{rows}: has none of {', '.join(ROW_FILES)}; name a folder of converted rows or a JSONL file")
    for name, split in files.items():
        if split in splits:
            yield from ((where, split, row) for where, _, row in _read_file(rows / name))


def _read_file(path: Path) -> Iterator[tuple[str, str | None, Row | PredictionRow]]:
    predictions: bool | None = None
    for where, value in iter_json_lines(path):
        if predictions is None:
            predictions = isinstance(value, dict) and ("predictions" in value or "error" in value)
        if predictions:
            yield where, None, parse_prediction_row(value, where)
            continue
        sample = parse_sample(value, where)
        for row in (*sample.teachers, sample.student):
            named = str(row.metadata.get("split"))
            own = "train" if named == "teacher" else named
            yield where, own if own in SPLITS else None, row


# ---------------------------------------------------------------- photos


@dataclass
class _Exporter:
    """Turns rows into items for a writer, and puts their photos in place on the way."""

    entry: Format
    root: Path
    staging: Path
    out: Path
    seen: DiskMultimap
    min_score: float
    report: ExportReport

    def photos(self, rows: Iterator[tuple[str, str | None, Row | PredictionRow]]) -> Iterator[ExportPhoto]:
        """The photos that can be written, in order; the rest goes into the report."""
        for where, split, row in rows:
            if len(row.images) != 1:
                raise RecordError(where, "images", f"names {len(row.images)} photos; a row to be exported names one")
            items = row.objects if isinstance(row, Row) else row.predictions
            try:
                image = self._claim(row, split)
            except ImageError as error:
                self.report.left_out["photo_skipped"] += len(items)
                self.report.problems.append(str(error))
                continue
            if image is None:
                self.report.notes["photo_again"] += 1
                self.report.left_out["photo_again"] += len(items)
                continue
            objects = tuple(filter(None, (self._object(item, row.width, row.height) for item in items)))
            self.report.photos += 1
            self.report.objects += len(objects)
            summary = row.summary if isinstance(row, Row) else None
            yield ExportPhoto(image, row.width, row.height, objects, split, summary)

    def _claim(self, row: Row | PredictionRow, split: str | None) -> str | None:
        """Put the photo in place and return its name in the export; None if an earlier row has it.

        Raises:
            ImageError: the photo is skipped; the message begins with its name.
        """
        name = row.images[0]
        if isinstance(row, PredictionRow) and row.error is not None:
            raise self._skip("not_predicted", f"{name}: {row.error}")
        if isinstance(row, Row) and not row.annotated:  # other formats would say that nothing is there
            raise self._skip("not_annotated", f'{name}: is not annotated ("objects": null)')
        try:
            path = resolve_image(self.root, name)
        except UserError as error:
            raise self._skip("outside_image_root", f"{name}: {error}") from None
        image = _inner_name(name, path, self.root)
        place = posixpath.normpath(self.entry.photo_place(image, split))
        owners = self.seen.get("places", place)
        if owners == [image]:
            return None
        if owners:
            raise self._skip("same_place", f"{name}: {owners[0]} is at {place} already; rename one of the two")
        if self.report.mode != WITHOUT:
            self._place(name, path, place, (row.width, row.height))
        self.seen.put("places", place, image)
        return image

    def _place(self, name: str, path: Path, place: str, size: tuple[int, int]) -> None:
        try:
            photo = read_photo(path, name)
        except ImageError as error:
            raise self._skip("unreadable", str(error)) from None
        if photo.displayed != size:
            shown = f"{photo.displayed[0]}x{photo.displayed[1]}"
            raise self._skip("size_differs", f"{name}: is {shown} as displayed, its row says {size[0]}x{size[1]}")
        target = self.staging / place
        target.parent.mkdir(parents=True, exist_ok=True)
        if photo.orientation != 1:
            try:
                _write_upright(path, target)
            except Exception as error:
                if isinstance(error, OSError) and error.errno is not None:
                    raise  # the disk, not the photo
                raise self._skip("not_turned", f"{name}: cannot be written upright: {error}") from None
            self.report.notes["written_upright"] += 1
        elif self.report.mode == COPY:
            shutil.copyfile(path, target)
        else:
            self._link(path, target, self.out / place)

    def _link(self, path: Path, target: Path, final: Path) -> None:
        try:
            os.link(path, target)
        except OSError:  # another disk, or one without hard links
            os.symlink(os.path.relpath(path, final.parent), target)
            self.report.notes["symbolic_link"] += 1

    def _skip(self, reason: str, problem: str) -> ImageError:
        self.report.skipped[reason] += 1
        return ImageError(" ".join(problem.split()))

    def _object(self, item: ObjectRow | PredictedObject, width: int, height: int) -> ExportObject | None:
        """The object clipped to its photo; None, and counted, if it cannot be used."""
        score = item.score if isinstance(item, PredictedObject) else None
        kind, points = ("bbox_2d", item.box) if isinstance(item, PredictedObject) else (item.kind, item.points)
        points = tuple(min(max(number, 0.0), (width, height)[i % 2]) for i, number in enumerate(points))
        reason = None
        if score is not None and score < self.min_score:
            reason = "score_too_low"
        elif not item.desc.strip():
            reason = "no_description"
        elif kind == "bbox_2d" and not (points[0] < points[2] and points[1] < points[3]):
            reason = "zero_area"
        if reason is None:
            return ExportObject(item.desc, kind, points, score)
        self.report.left_out[reason] += 1
        return None


def _inner_name(name: str, path: Path, root: Path) -> str:
    """The normalised image path; that of the file itself if the path leaves the root and comes back."""
    tidy = posixpath.normpath(name)
    return path.relative_to(root.resolve()).as_posix() if tidy.startswith(("/", "../")) else tidy


def _write_upright(path: Path, target: Path) -> None:
    """The photo as displayed, without an EXIF orientation, in its own file format and colours."""
    with image_errors(str(path)), open_image(path) as image:
        how = {"format": image.format, "icc_profile": image.info.get("icc_profile")}
        if image.format not in UPRIGHT:
            raise ImageError(f"{path}: cannot be written upright as {image.format}; convert it to JPEG or PNG")
        how |= UPRIGHT[image.format]
        turned = upright(image).copy()
    turned.save(target, **how)
