"""Assign photos to train, val or test. Photos with the same bytes, or of one group, are drawn into the same split.

The source's own splits hold, merged as the user says. A share that the user asks for is drawn from train if the source
has no such split; where it has, the share is without effect, and a remark says so.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from bbu.errors import UserError
from data_conversion.base import SPLITS
from data_conversion.report import GROUP_ACROSS_SPLITS, NO_EFFECT, NOTHING_HELD_OUT

# Where the source puts copies into different splits, the held-out split wins, so that none is trained on.
HELD_OUT_FIRST = ("test", "val", "train")
NO_HINT = "train"  # for photos without a hint where others have one
DEFAULT_FRACTIONS = {"test": 0.0, "val": 0.1}  # where the source has no splits; in the order in which they are drawn


@dataclass(frozen=True, slots=True)
class Candidate:
    """The facts about a photo that splitting needs: its content hash, the source's split and its group, if any."""

    digest: str
    hint: str | None
    group: str | None = None


@dataclass(frozen=True)
class SplitOptions:
    """What the user asks for.

    Args:
        splits: target split → source splits joined by ``+``; other source splits are left out. None: as they are.
        val_fraction, test_fraction: share of the photos that are not held out already, in [0, 1). None: not asked for.
        group_by: how photos are grouped, see ``grouping.py``; "" takes the groups that the source names.
        seed: of the draw.
    """

    splits: Mapping[str, str] | None = None
    val_fraction: float | None = None
    test_fraction: float | None = None
    group_by: str = ""
    seed: int = 0

    def check(self) -> None:
        """Raises UserError for a value that cannot be met."""
        given = {"val_fraction": self.val_fraction or 0.0, "test_fraction": self.test_fraction or 0.0}
        for name, value in given.items():
            if not (math.isfinite(value) and 0 <= value < 1):
                raise UserError(f"{name} must lie in [0, 1), is {value}")
        if sum(given.values()) >= 1:
            raise UserError(f"val_fraction + test_fraction = {sum(given.values()):g} leaves nothing to train on")
        parse_splits(self.splits)

    def fraction(self, split: str) -> float | None:
        return self.val_fraction if split == "val" else self.test_fraction


@dataclass
class Assignment:
    """The split of every photo (None: left out), counts for the notes, and remarks (code → sentences)."""

    splits: list[str | None]
    counts: dict[str, int] = field(default_factory=dict)
    remarks: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))


def parse_splits(value: Mapping[str, str] | None) -> dict[str, str]:
    """``{"train": "train+val", "test": "test"}`` → source split → target split.

    Raises:
        UserError: an unknown name, or a source split in two targets.
    """
    if value is None:
        return {name: name for name in SPLITS}
    targets: dict[str, str] = {}
    for target, sources in value.items():
        for source in sources.split("+"):
            for name in (target, source):
                if name not in SPLITS:
                    raise UserError(f"splits: {name!r} is not one of {', '.join(SPLITS)}")
            if targets.setdefault(source, target) != target:
                raise UserError(f"splits: {source!r} goes to both {targets[source]} and {target}; name it once")
    if "train" not in targets.values():
        raise UserError("splits: nothing goes to train; write for example train=train+val,test=test")
    return targets


def assign_splits(photos: Sequence[Candidate], options: SplitOptions) -> Assignment:
    """The split of every photo; draws follow seed and content, so that file names and their order do not matter.

    Raises:
        UserError: no photo is left for train, or all photos are of the one group that ``group_by`` finds.
    """
    own = Counter(photo.hint for photo in photos if photo.hint)
    result = _follow_hints(photos, parse_splits(options.splits)) if own else Assignment([NO_HINT] * len(photos))
    if "train" not in result.splits:
        raise UserError(_no_train(own))
    result.remarks[NO_EFFECT] += _idle_merges(own, options.splits)
    shares = _shares(result, options, hinted=bool(own))
    units = _units(photos, options)
    _draw(result, photos, units, shares, options)
    if own:
        _remark_on_held_out(result, photos, units, options)
    result.remarks = {code: texts for code, texts in result.remarks.items() if texts}
    return result


def _no_train(own: Mapping[str, int]) -> str:
    held = ", ".join(f"{name} ({count} photos)" for name, count in sorted(own.items()))
    return (
        f"no photo is left for train: the source's own splits are {held}; to learn from them, write "
        f"--splits train={'+'.join(sorted(own))} (data.source.splits)"
    )


def _follow_hints(photos: Sequence[Candidate], targets: Mapping[str, str]) -> Assignment:
    wanted = [targets.get(photo.hint) if photo.hint else NO_HINT for photo in photos]
    by_digest: dict[str, str] = {}
    for photo, split in zip(photos, wanted, strict=True):
        if split:
            other = by_digest.get(photo.digest, split)
            by_digest[photo.digest] = min(split, other, key=HELD_OUT_FIRST.index)
    final = [by_digest[photo.digest] if split else None for photo, split in zip(photos, wanted, strict=True)]
    counts = {
        "photos_without_split_put_in_train": sum(photo.hint is None for photo in photos),
        "copies_moved_to_one_split": sum(a != b for a, b in zip(wanted, final, strict=True)),
    }
    return Assignment(final, {name: count for name, count in counts.items() if count})


def _idle_merges(own: Mapping[str, int], splits: Mapping[str, str] | None) -> Iterator[str]:
    """What ``splits`` names and the source does not have."""
    if splits and not own:
        yield "splits has no effect: the source has no splits of its own"
    for source in sorted(set(parse_splits(splits)) - set(own)) if splits and own else ():
        yield f"splits names {source}, but the source has no {source} split"


def _shares(result: Assignment, options: SplitOptions, hinted: bool) -> dict[str, float]:
    """Share of each split to draw, in order."""
    present = Counter(result.splits)
    shares = {}
    for split, default in DEFAULT_FRACTIONS.items():
        asked = options.fraction(split)
        if asked is not None and present[split]:
            result.remarks[NO_EFFECT].append(
                f"{split}_fraction {asked:g} has no effect: the source has a {split} split of its own "
                f"({present[split]} photos); --splits train=train+{split} (data.source.splits) merges it with train "
                "first"
            )
        elif asked is not None or not hinted:
            shares[split] = default if asked is None else asked
    return {split: share for split, share in shares.items() if share > 0}


def _remark_on_held_out(
    result: Assignment, photos: Sequence[Candidate], units: Sequence[Sequence[int]], options: SplitOptions
) -> None:
    """Where the source's own splits leave nothing out, or photos of one group in train and outside."""
    if set(result.splits) == {"train"} and options.splits is None and options.val_fraction is None:
        result.remarks[NOTHING_HELD_OUT].append(
            "the source has no split besides train, so nothing is held out; --val-fraction 0.1 "
            "(data.source.val_fraction) draws val from it"
        )
    straddling = sorted(
        next(filter(None, (photos[index].group for index in unit)), "")
        for unit in units
        if len({result.splits[index] for index in unit} - {None}) > 1
    )
    if straddling:
        result.remarks[GROUP_ACROSS_SPLITS].append(
            f"the source's own splits put {len(straddling)} groups into several splits, such as {straddling[0]}; to "
            "draw them by group instead, merge them (--splits train=train+val) and ask for --val-fraction"
        )


# ---------------------------------------------------------------- drawing


def _units(photos: Sequence[Candidate], options: SplitOptions) -> list[list[int]]:
    """Photos that stay together, by position: copies, and photos of one group, also through each other's copies."""
    groups = {photo.group for photo in photos}
    use_groups = bool(options.group_by) or len(groups) > 1  # one group of all photos says nothing about them
    parent: dict[str, str] = {}

    def first(key: str) -> str:
        while key in parent:
            key = parent[key]
        return key

    for photo in photos if use_groups else ():
        group, digest = first(f"group {photo.group}"), first(photo.digest)
        if photo.group is not None and group != digest:
            parent[digest] = group
    units: dict[str, list[int]] = defaultdict(list)
    for index, photo in enumerate(photos):
        units[first(photo.digest)].append(index)
    return list(units.values())


def _draw(
    result: Assignment,
    photos: Sequence[Candidate],
    units: Sequence[list[int]],
    shares: Mapping[str, float],
    options: SplitOptions,
) -> None:
    """Take units of train, in an order fixed by seed and content: first for test, then for val; the rest stays.

    A unit is taken if that brings the number of photos nearer to the share; if every unit is too large, the smallest is
    taken. One unit stays for train, whatever the rounding.
    """
    if not shares and options.group_by:
        result.remarks[NO_EFFECT].append("group_by has no effect: no split is drawn; ask for one with val_fraction")
    if shares and options.group_by and len(units) == 1 < len(photos):
        raise UserError(
            f"group_by {options.group_by!r} puts all {len(photos)} photos into one group, so none can be held out; "
            "choose smaller groups"
        )
    free = [unit for unit in units if {result.splits[index] for index in unit} <= {"train", None}]
    order = sorted(free, key=lambda unit: _rank(photos, unit, options.seed))
    photos_to_split = result.splits.count("train")
    for split, share in shares.items():
        taken = _take(order, max(1, round(share * photos_to_split)), result.splits)
        if not taken and options.fraction(split):
            result.remarks[NO_EFFECT].append(
                f"{split}_fraction {share:g} has no effect: {len(photos)} photos"
                f"{f' in {len(units)} groups' if len(units) < len(photos) else ''} are too few to hold any out"
            )
        for index in (index for unit in taken for index in unit):
            result.splits[index] = split if result.splits[index] else None
        order = [unit for unit in order if result.splits[unit[0]] in ("train", None)]


def _rank(photos: Sequence[Candidate], unit: Sequence[int], seed: int) -> bytes:
    digest = min(photos[index].digest for index in unit)
    return hashlib.sha256(f"{seed}:{digest}".encode()).digest()


def _take(units: Sequence[list[int]], wanted: int, splits: Sequence[str | None]) -> list[list[int]]:
    sizes = [sum(splits[index] is not None for index in unit) for unit in units]
    taken: list[int] = []
    count = 0
    for place, size in enumerate(sizes):
        if count < wanted and len(taken) + 1 < len(units) and abs(count + size - wanted) <= wanted - count:
            taken.append(place)
            count += size
    if not taken and len(units) > 1:
        taken = [min(range(len(units)), key=lambda place: sizes[place])]
    return [units[place] for place in taken]
