"""Assign photos to train, val or test. Photos with the same bytes go to the same split."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bbu.errors import UserError
from data_conversion.base import SPLITS

# Where the source puts copies into different splits, the held-out split wins, so that none is trained on.
HELD_OUT_FIRST = ("test", "val", "train")
NO_HINT = "train"  # for photos without a hint where others have one


@dataclass(frozen=True, slots=True)
class Candidate:
    """The facts about a photo that splitting needs: its content hash and the source's split, if any."""

    digest: str
    hint: str | None


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


def assign_splits(
    photos: Sequence[Candidate], targets: Mapping[str, str], val_fraction: float, test_fraction: float, seed: int
) -> tuple[list[str | None], dict[str, int]]:
    """The split of every photo (None if ``targets`` leaves it out), and counts for the report.

    The source's splits are used if it has any. Otherwise photos are drawn by seed and content, so that file names and
    their order do not matter.
    """
    if any(photo.hint for photo in photos):
        return _follow_hints(photos, targets)
    return _draw(photos, val_fraction, test_fraction, seed), {}


def _follow_hints(photos: Sequence[Candidate], targets: Mapping[str, str]) -> tuple[list[str | None], dict[str, int]]:
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
    return final, {name: count for name, count in counts.items() if count}


def _draw(photos: Sequence[Candidate], val_fraction: float, test_fraction: float, seed: int) -> list[str | None]:
    """Take groups of equal content, in an order fixed by seed and content: first test, then val; the rest is train."""
    groups = Counter(photo.digest for photo in photos)
    order = sorted(groups, key=lambda digest: hashlib.sha256(f"{seed}:{digest}".encode()).digest())
    chosen: dict[str, str] = {}
    for split, fraction in (("test", test_fraction), ("val", val_fraction)):
        wanted = max(1, round(fraction * len(photos))) if fraction > 0 else 0
        taken = 0
        # At least one group stays for train, whatever the rounding.
        while taken < wanted and len(order) - len(chosen) > 1:
            digest = order[len(chosen)]
            chosen[digest] = split
            taken += groups[digest]
    return [chosen.get(photo.digest, "train") for photo in photos]
