"""Source annotations → row files, in this order:

clean → token map → hierarchy → EXIF → rescale → clip to the image → order → split → teachers → validate → write.
Nothing is lost silently: what is in no row is in the report and in one of the two ``invalid_*`` files.

Photos are processed in several processes. Results go to a journal on disk, so memory does not grow with the source, and
a stopped conversion resumes when it is started again with the same arguments.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

from tqdm import tqdm

from bbu.errors import RecordError, UserError
from bbu.records import parse_row
from bbu.taxonomy import Taxonomy
from data_conversion.absence import check_objects
from data_conversion.base import (
    MALFORMED,
    SPLITS,
    BadSource,
    Dropped,
    IterRecords,
    SourceImage,
    SourceItem,
    SourceOptions,
    readable,
)
from data_conversion.formats import FORMATS
from data_conversion.grouping import group_function
from data_conversion.journal import Journal, settings_hash
from data_conversion.outputs import write_outputs, write_refusals
from data_conversion.parallel import map_in_order
from data_conversion.photo_files import KEEP, MODES, REENCODE
from data_conversion.photo_task import Outcome, PhotoTask, fingerprint
from data_conversion.report import NO_EFFECT, ConversionReport
from data_conversion.source_folder import following_links, links_not_followed
from data_conversion.splits import Candidate, SplitOptions, assign_splits
from data_conversion.summaries import LANGUAGES
from data_conversion.teacher import choose_teachers

FRAMES = ("", "displayed", "stored")
UNITS = ("", "shares")


def convert(
    source_format: str,
    input_dir: str | Path,
    output_dir: str | Path,
    *,
    taxonomy: Taxonomy | None,
    val_fraction: float | None = None,
    test_fraction: float | None = None,
    group_by: str = "",
    max_teachers: int = 0,
    seed: int = 0,
    on_error: str = "fail",
    splits: Mapping[str, str] | None = None,
    images: str = KEEP,
    max_pixels: int = 0,
    frame: str = "",
    follow_links: bool = False,
    units: str = "",
    summaries: str = "",
    summary_levels: int = 0,
    groups: Mapping[str, str] | None = None,
    workers: int = 0,
    progress: bool = False,
) -> ConversionReport:
    """Convert a source folder; the same input and arguments give byte-identical files.

    Args:
        source_format: a name in FORMATS.
        input_dir: the source, which is never changed. Image paths in the rows are relative to it, or to
            ``output_dir/photos`` if ``images`` puts the photos there.
        output_dir: created if missing; left as it was on any error.
        taxonomy: token map and hierarchy; None keeps every description.
        val_fraction, test_fraction: shares drawn by seed from the photos that the source's own splits do not hold out;
            None: 0.1 and 0 if it has no splits of its own, otherwise none.
        group_by: what drawn splits keep together, see ``grouping.py``; "" means the groups that the source names.
        max_teachers: rows moved from train.jsonl to teacher.jsonl.
        on_error: ``fail`` stops at the first malformed file; ``skip`` counts it and continues.
        splits: target split → source splits joined by ``+``; other source splits are left out.
        images: how photo files are stored, one of photo_files.MODES.
        max_pixels: with images = reencode, larger photos and their objects are scaled down to this; 0 means no limit.
        frame: ``displayed`` or ``stored`` overrides the frame of the format's coordinates.
        follow_links: read files and photos behind links that lead outside ``input_dir``.
        units: ``shares``: coordinates are shares of the photo, in formats that have pixels (base.Format.shares).
        summaries: ``zh`` or ``en``: photos without a summary get one that counts their objects, in this language.
        summary_levels: levels of descriptions that summaries count together; 0 = all.
        groups: photo path → its group, in place of the one that the source names.
        workers: number of processes; 0 means one per core.
        progress: show a progress bar on stderr, if that is a terminal.

    Raises:
        UserError: a bad argument, a malformed source file (file, field and reason), or no object to learn from.
    """
    root, out = Path(input_dir), Path(output_dir)
    read = _reader(source_format)
    options = SplitOptions(splits, val_fraction, test_fraction, group_by, seed)
    options.check()
    _check_arguments(root, out, max_teachers, on_error)
    _check_images(images, max_pixels, frame)
    _check_units(units, source_format)
    if summaries not in LANGUAGES:
        raise UserError(f"summaries must be zh, en or left out, is {summaries!r}")
    if summary_levels < 0:
        raise UserError(f"summary_levels must be 0 or more, is {summary_levels}")
    taxonomy = taxonomy or Taxonomy()
    work = out.resolve().with_name(f".{out.resolve().name}.partial")
    task = PhotoTask(
        root, taxonomy, images, work / "photos", max_pixels, frame, follow_links, units, summaries, summary_levels
    )
    report = ConversionReport(source_format, seed, images)
    journal = Journal(work, {"format": source_format, "task": settings_hash(task)})
    try:
        reading = SourceOptions(taxonomy.language, ignore=out.resolve())
        items = chain(_grouped(read(root, reading), groups or {}), links_not_followed(root, reading.ignore))
        with following_links(follow_links):
            _read_source(journal, task, items, on_error, workers, progress)
        _check_found(journal, root, out, report)
        _split(journal, root, options, report)
        _move_teachers(journal, max_teachers, seed)
        _count(journal, report)
        check_objects(journal, root, out, report)
        if frame and not any(note.startswith("exif_orientation") for note in report.notes):
            report.remark(NO_EFFECT, f"frame {frame} has no effect: EXIF turns none of the photos")
        write_outputs(out, journal, report)
    except UserError:
        journal.discard()
        raise
    except BaseException:  # stopped by hand: the next call resumes
        journal.pause()
        raise
    journal.discard()
    return report


def _reader(name: str) -> IterRecords:
    readers = {known: entry.read for known, entry in FORMATS.items() if entry.read is not None}
    if name not in readers:
        near = difflib.get_close_matches(name, readers, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known formats: {', '.join(readers)}"
        raise UserError(f"source format {name!r} is unknown; {hint}")
    return readers[name]


def _grouped(items: Iterable[SourceItem], groups: Mapping[str, str]) -> Iterator[SourceItem]:
    for item in items:
        if isinstance(item, SourceImage) and item.image in groups:
            item = replace(item, group=groups[item.image])
        yield item


def _check_arguments(root: Path, out: Path, max_teachers: int, on_error: str) -> None:
    if not root.is_dir():
        raise UserError(f"{root}: input folder does not exist or is not a folder")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: output exists and is not a folder; choose another name")
    if root.resolve().is_relative_to(out.resolve()):
        raise UserError(f"{out}: output folder holds the input {root}; choose a folder beside it")
    if max_teachers < 0:
        raise UserError(f"max_teachers must be 0 or more, is {max_teachers}")
    if on_error not in ("fail", "skip"):
        raise UserError(f"on_error must be 'fail' or 'skip', is {on_error!r}")


def _check_images(images: str, max_pixels: int, frame: str) -> None:
    if images not in MODES:
        raise UserError(f"images must be one of {', '.join(MODES)}, is {images!r}")
    if max_pixels < 0 or (max_pixels and images != REENCODE):
        raise UserError(f"max_pixels {max_pixels} needs images = {REENCODE} and a number of pixels above 0")
    if frame not in FRAMES:
        raise UserError(f"frame must be displayed or stored, is {frame!r}")


def _check_units(units: str, source_format: str) -> None:
    able = ", ".join(name for name, entry in FORMATS.items() if entry.shares)
    if units not in UNITS:
        raise UserError(f"units must be shares or left out, is {units!r}")
    if units and not FORMATS[source_format].shares:
        raise UserError(f"units: {units} applies to {able}; {source_format} says itself what its coordinates are")


# ---------------------------------------------------------------- reading

_Work = tuple[int, str, SourceItem | None]  # position, fingerprint, and the item unless it is done


def _read_source(
    journal: Journal, task: PhotoTask, items: Iterable[SourceItem], on_error: str, workers: int, progress: bool
) -> None:
    found = 0
    work = map_in_order(partial(_work, task), _pending(journal, items, task), workers)
    with closing(work), tqdm(desc="convert", unit="photo", disable=None if progress else True) as bar:
        for done in work:
            found += 1
            bar.update()
            if done is None:
                continue
            seq, print_, outcome = done
            outcome = _only_once(journal, seq, outcome)
            if outcome.bad is not None and outcome.bad.reason == MALFORMED and on_error == "fail":
                where = str(task.root / outcome.bad.source)
                raise RecordError(*map(readable, (where, outcome.bad.field, outcome.bad.detail)))
            journal.add(seq, print_, outcome)
    journal.end_at(found)


def _pending(journal: Journal, items: Iterable[SourceItem], task: PhotoTask) -> Iterator[_Work]:
    for seq, item in enumerate(items):
        mark = fingerprint(item, task.root)
        yield seq, mark, None if journal.has(seq, mark) else item


def _work(task: PhotoTask, work: _Work) -> tuple[int, str, Outcome] | None:
    seq, mark, item = work
    return None if item is None else (seq, mark, task(item))


def _only_once(journal: Journal, seq: int, outcome: Outcome) -> Outcome:
    """Refuse a second annotation of one photo, since it is unknown which of the two is right."""
    other = journal.source_of(outcome.image, before=seq)
    if other is None:
        return outcome
    alike = (
        outcome.row is not None and journal.objects_of(outcome.image, before=seq) == outcome.row.to_json()["objects"]
    )
    why = f"{outcome.image} is annotated twice, also by {other}"
    if alike:  # as where tools write one list for train and for val
        bad = BadSource(outcome.source, "image", f"{why}, with the same objects", reason="same_annotation_twice")
    else:
        bad = BadSource(outcome.source, "image", f"{why}; keep one")
    kept = () if outcome.row is None else tuple(Dropped(item.desc, "", "", "") for item in outcome.row.objects)
    lost = tuple(replace(item, reason="photo_skipped", detail=bad.detail) for item in (*kept, *outcome.dropped))
    return Outcome(outcome.source, "", outcome.objects_read, bad=bad, dropped=lost)


def _check_found(journal: Journal, root: Path, out: Path, report: ConversionReport) -> None:
    """Refuse a source that gives no row; the reports say why, photo by photo and object by object."""
    photos, _ = journal.totals()
    if not photos:
        raise UserError(f"{root}: no {report.source_format} annotations found; check the folder and the format")
    if next(journal.candidates(), None) is None:
        source, bad, _ = next(journal.lost())
        first = f"{source}: {bad.field}: {bad.detail}" if bad else source
        _count(journal, report)
        report.splits = {name: {"photos": 0, "objects": 0} for name in SPLITS}
        folder = write_refusals(out, journal, report)
        why = [f"photos: {_listed(report.photos_skipped)}"]
        why += [f"objects: {_listed(report.dropped_by_reason())}"] if report.dropped else []
        raise UserError(
            f"{root}: none of {photos} photos could be converted; the first: {first} ({'; '.join(why)}; each is in "
            f"{folder}/invalid_samples.jsonl and invalid_objects.jsonl)"
        )


def _listed(counts: Mapping[str, int]) -> str:
    """``3 x mask, 1 x crowd``: the most frequent first."""
    return ", ".join(
        f"{count} x {name}" for name, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    )


# ---------------------------------------------------------------- splits and teachers


def _split(journal: Journal, root: Path, options: SplitOptions, report: ConversionReport) -> None:
    places, candidates = [], []
    group_of = group_function(options.group_by)
    same: dict[str | None, str | None] = {}  # one object per text for all photos
    ungrouped = ""
    for seq, digest, hint, image, own_group in journal.candidates():
        group = group_of(image, own_group)
        ungrouped = ungrouped or (image if group is None else "")
        places.append(seq)
        candidates.append(Candidate(digest, same.setdefault(hint, hint), same.setdefault(group, group)))
    if options.group_by:
        _check_groups(candidates, options.group_by, ungrouped, report)
    try:
        chosen = assign_splits(candidates, options)
    except UserError as error:
        raise UserError(f"{root}: {error}") from None
    report.notes.update(chosen.counts)
    report.remarks |= chosen.remarks
    report.splits = {name: {} for name in SPLITS if name != "test" or options.test_fraction or "test" in chosen.splits}
    journal.set_splits(list(zip(chosen.splits, places, strict=True)))
    for seq, split, candidate in zip(places, chosen.splits, candidates, strict=True):
        if split is None:
            _leave_out(journal, seq, candidate.hint)


def _check_groups(candidates: list[Candidate], group_by: str, ungrouped: str, report: ConversionReport) -> None:
    alone = sum(candidate.group is None for candidate in candidates)
    if alone == len(candidates):
        raise UserError(f"group_by {group_by!r} matches none of {alone} photos, such as {ungrouped}; correct it")
    if alone:
        report.notes["photos_that_group_by_does_not_match"] += alone


def _leave_out(journal: Journal, seq: int, hint: str | None) -> None:
    source, row = journal.row(seq)
    detail = f"split {hint!r} of the source is not in --splits"
    lost = [Dropped(item["desc"], "split_left_out", detail, "") for item in row["objects"]]
    journal.leave_out(seq, BadSource(source, "split", detail, reason="split_left_out"), lost)


def _move_teachers(journal: Journal, max_teachers: int, seed: int) -> None:
    """Move teachers out of train: no photo may be its own example, so teachers have no copy in train."""
    train = journal.size_of("train")
    if max_teachers >= train:
        raise UserError(f"max_teachers {max_teachers} leaves no photo to train on: train has {train}")
    if not max_teachers:
        return
    places = [seq for seq, _ in journal.without_copies("train")]
    rows = (parse_row(value, "journal") for _, value in journal.without_copies("train"))
    chosen = choose_teachers(rows, max_teachers, seed)
    journal.set_splits([("teacher", places[index]) for index in chosen])
    journal.rank([(rank, places[index]) for rank, index in enumerate(chosen)])


# ---------------------------------------------------------------- report


def _count(journal: Journal, report: ConversionReport) -> None:
    report.photos_read, report.objects_read = journal.totals()
    for _, bad, dropped in journal.lost():
        if bad is not None:
            report.photos_skipped[bad.reason] += 1
        for item in dropped:
            report.dropped[item.label, item.reason] += 1
            if item.reason == "outside_hierarchy":
                report.unknown_terms[item.label] = item.detail
    report.notes.update(readable(note) for note in journal.notes())
