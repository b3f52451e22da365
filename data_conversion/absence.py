"""Absence is not emptiness: photos without objects may be photos whose labels nobody read.

Looks for folders of label files that the reader took nothing from (labels of another tool, or in a place of their own),
says how many photos have no object, and refuses rows from which nothing could be learned.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Collection, Mapping
from itertools import islice
from pathlib import Path

from bbu.errors import UserError
from bbu.images import IMAGE_SUFFIXES
from data_conversion.base import readable
from data_conversion.formats import FORMATS
from data_conversion.journal import Journal
from data_conversion.report import LABELS_NEVER_READ, WITHOUT_OBJECTS, ConversionReport
from data_conversion.source_folder import walk_files

LABEL_SUFFIXES = (".txt", ".xml", ".json", ".csv")
LOOKED_AT = 200  # label files of a folder whose names are compared with those of photos
MANY = 0.2  # share of photos without objects from which a remark says so
NAMED = 5  # folders and reasons in a sentence


def check_objects(journal: Journal, root: Path, ignore: Path, report: ConversionReport) -> None:
    """Add remarks about unread labels and photos without objects.

    Args:
        ignore: a folder inside the root that is not part of it.

    Raises:
        UserError: no training photo has an object.
    """
    read = {(posixpath.dirname(name), posixpath.splitext(name)[1].lower()) for name in journal.sources()}
    unread = unread_label_folders(root, ignore, read)
    if unread:
        name = report.source_format
        report.remark(
            LABELS_NEVER_READ,
            f"{_listed(unread)}: files with the names of photos that were not read ({name} reads "
            f"{FORMATS[name].summary})",
        )
    filled = journal.photos_with_objects()
    for split, (photos, with_objects) in sorted(filled.items()):
        if photos - with_objects >= MANY * photos and with_objects < photos:
            report.remark(WITHOUT_OBJECTS, f"{photos - with_objects} of {photos} photos in {split} have no object")
    if not filled["train"][1]:
        raise UserError(f"{root}: {_nothing_to_learn(filled, report)}")


def _nothing_to_learn(filled: Mapping[str, tuple[int, int]], report: ConversionReport) -> str:
    """Why, from what the report has counted."""
    elsewhere = [f"{with_objects} in {split}" for split, (_, with_objects) in sorted(filled.items()) if with_objects]
    photos = sum(count for count, _ in filled.values())
    head = f"no object in {photos} photos: nothing could be learned"
    if elsewhere:
        head = (
            f"no object in {filled['train'][0]} training photos ({', '.join(elsewhere)}), so nothing could be learned"
        )
    reasons = [
        *report.remarks.get(LABELS_NEVER_READ, []),
        *(f"{count} x {reason}" for reason, count in report.dropped_by_reason().items()),
        *(f"{count} x {code}" for code, count in (report.photos_skipped + report.notes).most_common()),
    ]
    return "; ".join([head, *reasons[:NAMED]])


def unread_label_folders(root: Path, ignore: Path | None, read: Collection[tuple[str, str]]) -> dict[str, Counter[str]]:
    """Folder → suffix → files, for folders of files named like photos of which the reader took none.

    Args:
        read: (folder relative to the root, lower suffix) of every annotation file that was read.
    """
    found: dict[str, Counter[str]] = {}
    stems: dict[str, set[str]] = {}
    for path in walk_files(root, ignore):
        folder, suffix = posixpath.dirname(readable(path.relative_to(root).as_posix())), path.suffix.lower()
        if suffix in LABEL_SUFFIXES and (folder, suffix) not in read:
            found.setdefault(folder, Counter())[suffix] += 1
            names = stems.setdefault(folder, set())
            if len(names) < LOOKED_AT:
                names.add(path.stem)
    wanted = set().union(*stems.values())
    photos = (path.stem for path in walk_files(root, ignore) if path.suffix.lower() in IMAGE_SUFFIXES)
    known = {stem for stem in photos if stem in wanted} if wanted else set()
    return {folder: counts for folder, counts in sorted(found.items()) if stems[folder] & known}


def _listed(folders: Mapping[str, Counter[str]]) -> str:
    """``train/labelTxt/ (12 .txt), valid/labelTxt/ (3 .txt)``."""
    parts = [
        f"{folder or '.'}/ ({', '.join(f'{count} {suffix}' for suffix, count in sorted(counts.items()))})"
        for folder, counts in islice(folders.items(), NAMED)
    ]
    return ", ".join(parts) + (f" and {len(folders) - NAMED} more folders" if len(folders) > NAMED else "")
