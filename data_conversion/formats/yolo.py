"""Read YOLO: ``data.yaml``, photos in ``images/…`` and a text file for each in ``labels/…`` (Ultralytics layout).

    data.yaml      names: [screw, cable]      train: images/train      val: images/val
    images/train/a.jpg ↔ labels/train/a.txt   one object per line: ``class cx cy w h`` or ``class x1 y1 x2 y2 x3 y3 …``

The path of a photo gives that of its label file: the last folder ``images`` becomes ``labels``; without such a folder
the file lies beside the photo. A photo with an empty label file, or none, is a background photo. All numbers are
fractions, 0 to 1, of the displayed photo, since Ultralytics applies the EXIF orientation when it loads one.

``train``, ``val`` and ``test`` are a folder, a list of folders, or a .txt that lists photos. Without them, or with only
``classes.txt`` or ``obj.names`` for the class names, every photo is read and folder names give the split. Label files
in folders that the entries leave out are counted. A val or test folder that is not there, or is the train folder, is
noted.

With ``kpt_shape`` rows are boxes with key points, which are counted as not read. Without it rows of many numbers are
polygons; where all of them read as poses too (``pose_rows``), that is an error until ``task: segment`` (or obb) or
``kpt_shape`` says which.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from bbu.errors import RecordError, shown
from bbu.geometry import cxcywh_to_xyxy
from bbu.images import IMAGE_SUFFIXES
from data_conversion.base import (
    BadSource,
    Dropped,
    RawObject,
    SourceImage,
    SourceItem,
    SourceNote,
    SourceOptions,
    readable,
)
from data_conversion.formats.checks import check_text
from data_conversion.formats.disk_multimap import DiskMultimap
from data_conversion.formats.files import bad_source, read_each, read_text, split_of
from data_conversion.formats.pose_rows import pose_rows
from data_conversion.formats.salvage import salvage
from data_conversion.formats.yolo_data_file import SPLIT_KEYS, class_number, inside, read_yaml, yaml_file
from data_conversion.locating import OTHER_SUFFIXES, Found, PhotoFinder, cannot_be_read, folded
from data_conversion.source_folder import walk_files

CLASS_FILES = ("classes.txt", "obj.names", "labels/classes.txt")
OUTSIDE = 0.1  # fractions may lie this far outside 0 to 1, by rounding or a careless hand; pixels lie farther out
NO_LABEL_FILE = "no_label_file"  # note
KEYPOINTS = "key points not read"  # note

PHOTOS = "photos"  # map: path → split
LABELS = "labels"  # map: label file → the photo that it was read for
CLAIMED = "claimed"  # map: label files that a photo has by its very name
SPELLINGS = "spellings"  # map: path in one case and Unicode form → any other label file


@dataclass(frozen=True)
class _Source:
    """A source folder.

    Args:
        ignore: a folder inside that is not part of it.
        file: data.yaml, or a list of class names.
        names: class number → description.
        base: folder that the entries are relative to, itself relative to the root.
        entries: (key, folder or list); empty means every photo below the root.
        keypoints: numbers that a row has after its box, 0 for none.
        polygons: whether the file says that rows of many numbers are polygons.
        notes: oddities of the file.
        store: what was found so far: the maps PHOTOS and LABELS.
    """

    root: Path
    ignore: Path | None
    file: str
    names: Mapping[int, str]
    base: str = ""
    entries: tuple[tuple[str, str], ...] = ()
    keypoints: int = 0
    polygons: bool = False
    notes: tuple[str, ...] = ()
    store: DiskMultimap = field(default_factory=DiskMultimap)

    @cached_property
    def finder(self) -> PhotoFinder:
        return PhotoFinder(self.root, self.ignore)

    def label_in_another_spelling(self, label: str) -> str:
        """A label file whose path differs in case or Unicode form alone, as photos and labels of two systems do."""
        if not self.store.has(SPELLINGS, ""):
            self.store.put(SPELLINGS, "", "")  # marks that the others are there
            for image in self.store.keys(PHOTOS):
                self.store.put(CLAIMED, label_place(image))
            for path in walk_files(self.root, self.ignore):
                place = path.relative_to(self.root).as_posix()
                if path.suffix.lower() == ".txt" and readable(place) == place and not self.store.has(CLAIMED, place):
                    self.store.put(SPELLINGS, folded(place), place)
        found = self.store.get(SPELLINGS, folded(label)) if readable(label) == label else []
        return found[0] if len(found) == 1 else ""


def iter_records(root: Path, options: SourceOptions = SourceOptions()) -> Iterator[SourceItem]:  # noqa: B008 (frozen)
    """Yield one item for each photo, by split and name, and one for each label file that no photo uses."""
    try:
        source = _open_source(root, options.ignore)
    except RecordError as error:
        yield bad_source(error)
        return
    with source.store:
        yield from (SourceNote(source.file, note) for note in source.notes)
        yield from _find_photos(source)
        doubt = None if source.polygons or source.keypoints else pose_rows(_many_numbers(source))
        if doubt is not None:
            yield BadSource(source.file, "kpt_shape", doubt)
            return
        files = (root / image for image in source.store.keys(PHOTOS))
        yield from read_each(root, files, partial(_read_photo, source=source))
        yield from _unused_labels(source)


# ---------------------------------------------------------------- data.yaml


def _open_source(root: Path, ignore: Path | None) -> _Source:
    """A source with what data.yaml, the only other YAML file, or a plain list of class names says.

    Raises:
        RecordError: there is none of them, or its content is wrong.
    """
    found = yaml_file(root)
    if found is not None:
        return _Source(root, ignore, found, **read_yaml(root, found))
    for name in CLASS_FILES:
        if (root / name).is_file():
            lines = read_text(root / name, name).rstrip().splitlines()
            return _Source(root, ignore, name, names={index: line.strip() for index, line in enumerate(lines)})
    below = [path.parent.name for path in sorted(root.glob("*/data.yaml")) if path.parent.name[0] != "."]
    if below:
        raise RecordError("data.yaml", "file", f"is missing; there is {below[0]}/data.yaml: convert that folder")
    others = ", ".join(CLASS_FILES)
    raise RecordError("data.yaml", "file", f"is missing, and so are {others}: the classes have no names; add one")


# ---------------------------------------------------------------- photos


def _find_photos(source: _Source) -> Iterator[SourceItem]:
    """Put every photo into the map PHOTOS; yields an item for each bad entry, and each bad photo in one."""
    if not source.entries:
        for image in _photos_below(source, source.root):
            source.store.put(PHOTOS, image, split_of(image))
    for key, entry in source.entries:
        try:
            place = _locate(source, key, entry)
            if place is None:
                yield SourceNote(source.file, f"{key} {shown(entry)} does not exist")
            elif other := _split_of_all(source, place, key):
                yield SourceNote(source.file, f"{key} lists the photos of {other}; they count as {other}")
            else:
                for photo in _photos_of(source, place, key):
                    yield from _add_photo(source, photo, key)
        except RecordError as error:
            yield bad_source(error)


def _split_of_all(source: _Source, place: str, key: str) -> str:
    """The other split that has all photos of an entry already, "" if there is none."""
    found: set[str] = set()
    for photo in _photos_of(source, place, key):
        found |= set(source.store.get(PHOTOS, photo.image)) or {""}
        if len(found) > 1 or found <= {"", SPLIT_KEYS[key]}:
            return ""
    return found.pop() if found else ""


def _locate(source: _Source, key: str, entry: str) -> str | None:
    """The folder or list that an entry means, relative to the root; None if nothing is there, as tools leave it.

    Roboflow writes ``../train/images`` for a folder beside data.yaml. If nothing is there, Ultralytics drops the
    ``../``, and so does this.
    """
    guesses = [inside(source.root, posixpath.join(source.base, entry))]
    if entry.startswith("../"):
        guesses.append(inside(source.root, posixpath.join(source.base, entry.removeprefix("../"))))
    for guess in guesses:
        if guess is not None and os.path.exists(source.root / guess):
            return guess
    if guesses[0] is None and os.path.exists(os.path.join(source.root, source.base, entry)):
        why = f"{shown(entry)} leaves the source folder; move it inside, or remove the line"
        raise RecordError(source.file, key, why)
    if key == "train" and sum(other == "train" for other, _ in source.entries) == 1:
        raise RecordError(source.file, key, f"{shown(entry)} does not exist; add it, or remove the line")
    return None


def _photos_of(source: _Source, place: str, key: str) -> Iterator[Found]:
    path = source.root / place
    if path.is_dir():
        yield from map(Found, _photos_below(source, path))
    elif path.suffix.lower() != ".txt":
        raise RecordError(source.file, key, f"{shown(place)} must be a folder, or a .txt of photos")
    else:
        for number, line in enumerate(read_text(path, place).splitlines(), start=1):
            if line.strip():
                name = check_text(line.strip(), place, f"line {number}")
                yield source.finder.find(name, source.base, posixpath.dirname(place))


def _photos_below(source: _Source, folder: Path) -> Iterator[str]:
    for path in walk_files(folder, source.ignore):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            yield path.relative_to(source.root).as_posix()


def _add_photo(source: _Source, photo: Found, key: str) -> Iterator[SourceItem]:
    image, split = photo.image, SPLIT_KEYS[key]
    found = source.store.get(PHOTOS, image)
    if photo.missing:  # labels beside it are not read
        source.store.put(LABELS, label_place(image), image)
        yield SourceImage(image, source.file, (), split=split, missing=photo.missing)
    elif not found:
        source.store.put(PHOTOS, image, split)
    elif found != [split]:
        yield BadSource(source.file, key, f"{image} is in {found[0]} and in {split}; keep it in one split")


# ---------------------------------------------------------------- label files


def _many_numbers(source: _Source) -> Iterator[tuple[str, list[float]]]:
    """(place, numbers after the class) of every row that is read as a polygon, and of boxes as they are."""
    for image in source.store.keys(PHOTOS):
        label = label_place(image)
        with suppress(RecordError, ValueError):  # reported when the rows are read
            if os.path.isfile(source.root / label):
                for number, line in enumerate(read_text(source.root / label, label).splitlines(), start=1):
                    if line.strip():
                        yield f"{label} line {number}", [float(text) for text in line.split()[1:]]


def label_place(image: str) -> str:
    """Path of a photo's label file."""
    path = re.sub("(?is)(.*/)images/", r"\1labels/", f"/{image}", count=1).removeprefix("/")
    return f"{posixpath.splitext(path)[0]}.txt"


def _read_photo(path: Path, image: str, source: _Source) -> SourceImage:
    label = label_place(image)
    (split,) = source.store.get(PHOTOS, image)
    item = partial(SourceImage, image, displayed=True, relative=True, split=split)
    if not os.path.lexists(source.root / label):
        label = source.label_in_another_spelling(label)
    if not label:
        return item(source=image, objects=(), notes=(NO_LABEL_FILE,))
    others = source.store.get(LABELS, label)
    if others:
        raise RecordError(label, "file", f"is beside {others[0]} and {path.name}; rename one photo and its labels")
    source.store.put(LABELS, label, image)
    lines = enumerate(read_text(source.root / label, label).splitlines(), start=1)
    notes: list[str] = []
    objects = [
        salvage(partial(_read_row, row, source, label, place, notes), _class_name(row[0], source), place)
        for place, row in ((f"line {number}", line.split()) for number, line in lines if line.strip())
    ]
    return item(source=label, objects=tuple(objects), notes=tuple(notes))


def _class_name(text: str, source: _Source) -> str:
    """Name of the class that a row starts with, "" if it has none; for reports."""
    try:
        return source.names.get(int(float(text)), "")
    except (ValueError, OverflowError):
        return ""


def _read_row(row: list[str], source: _Source, where: str, place: str, notes: list[str]) -> RawObject | Dropped:
    """One line: a class number and a box (4 numbers), a box and key points, or a polygon (3 points or more)."""
    number, names = class_number(row[0], where, place), source.names
    if number not in names:
        known = f"{len(names)} names in {source.file}"
        raise RecordError(where, place, f"class {number} is none of the {known}; add its name or correct the number")
    count = len(row) - 1
    if source.keypoints:
        if count not in (4, 4 + source.keypoints):
            why = f"needs cx cy w h and {source.keypoints} numbers of key points (kpt_shape) after the class"
            raise RecordError(where, place, f"{why}; has {count} numbers")
        notes += [KEYPOINTS] * (count > 4)
        row, count = row[:5], 4
    if count == 5 or (count > 6 and count % 2):
        why = f"has {count} numbers after the class: one too many, as in predictions with a confidence (save_conf)"
        raise RecordError(where, place, f"{why}; remove it, or write kpt_shape into data.yaml if these are key points")
    if count != 4 and count < 6:
        raise RecordError(where, place, f"needs cx cy w h, or at least 3 points, after the class; has {count} numbers")
    fractions = [_fraction(text, where, place) for text in row[1:]]
    if count > 4:
        return RawObject(names[number], "poly", tuple(fractions), place)
    if min(fractions[2:]) <= 0:
        return Dropped(names[number], "zero_area", f"width {row[3]} and height {row[4]} leave no area", place)
    return RawObject(names[number], "bbox_2d", tuple(cxcywh_to_xyxy(np.array(fractions)).tolist()), place)


def _fraction(text: str, where: str, place: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise RecordError(where, place, f"must hold numbers, has {shown(text)}") from None
    if not -OUTSIDE <= number <= 1 + OUTSIDE:
        raise RecordError(where, place, f"must hold fractions of the photo, 0 to 1, has {shown(text)}")
    return number


def _unused_labels(source: _Source) -> Iterator[BadSource]:
    """Label files without a photo, or whose photo no entry names."""
    for path in walk_files(source.root, source.ignore):
        place = path.relative_to(source.root).as_posix()
        if place.lower().endswith(OTHER_SUFFIXES):
            yield BadSource(place, "file", cannot_be_read(place), reason="not_readable")
        head, found, tail = f"/{place}".rpartition("/labels/")
        if not found or path.suffix != ".txt" or path.name == "classes.txt" or source.store.has(LABELS, place):
            continue
        stem = f"{head}/images/{tail}".removeprefix("/").removesuffix(".txt")
        photos = [f"{stem}{variant}" for suffix in IMAGE_SUFFIXES for variant in (suffix, suffix.upper())]
        if any(os.path.isfile(source.root / photo) for photo in photos):
            why = f"its photo is in none of the folders that {source.file} names"
            yield BadSource(place, "file", why, reason="not_in_image_sets")
        else:
            photo = source.finder.find(stem)
            hint = photo.missing or f"is it {photo.image}? Then label and photo need like paths"
            yield BadSource(place, "file", f"has no photo {stem}.jpg; add it or remove the file ({hint})")
