"""Groups of photos: the predictions of one site or series, which are judged together.

Annotated photos become groups as well, with a score of 1 for every object, so the same rules give the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from bbu.errors import UserError
from bbu.records import PredictedObject, PredictionRow, Row

NO_PREDICTION = "has no prediction"

GroupOf = Callable[[str], str | None]  # path of a photo → its group


@dataclass(frozen=True)
class Group:
    """One group: its name and its photos in order of name."""

    name: str
    photos: tuple[PredictionRow, ...]

    @property
    def images(self) -> list[str]:
        return [photo.images[0] for photo in self.photos]


def group_photos(photos: Iterable[PredictionRow], group_of: GroupOf) -> list[Group]:
    """Groups in order of name; the order of the photos does not matter.

    Raises:
        UserError: a photo that is listed twice or has no group, or no photo at all. The message names the photo.
    """
    by_name: dict[str, PredictionRow] = {}
    for photo in photos:
        name = photo.images[0]
        if name in by_name:
            raise UserError(f"photo {name!r} appears twice among the predictions; keep one of the two lines")
        by_name[name] = photo
    if not by_name:
        raise UserError("there are no predictions to judge; check the file")
    groups = names_by_group(by_name, group_of)
    return [Group(group, tuple(by_name[name] for name in names)) for group, names in groups.items()]


def names_by_group(names: Iterable[str], group_of: GroupOf) -> dict[str, list[str]]:
    """Group → its photos; both in order of name.

    Raises:
        UserError: a photo has no group; the message names it.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        group = group_of(name)
        if not group:
            raise UserError(
                f"photo {name!r} has no group: give rows of it that have metadata.group (bbu judge: --annotations), or "
                "--group-by folder or a regular expression that matches its path"
            )
        found.setdefault(group, []).append(name)
    return {group: sorted(found[group]) for group in sorted(found)}


def with_missing(groups: Sequence[Group], annotated: Iterable[str], group_of: GroupOf) -> list[Group]:
    """The groups, with annotated photos that have no prediction as photos with an error; no group is added.

    Args:
        annotated: photos that should have been predicted.
    """
    there = {image for group in groups for image in group.images}
    missing: dict[str, list[PredictionRow]] = {}
    for name in annotated:
        group = group_of(name)
        if name not in there and group:
            missing.setdefault(group, []).append(PredictionRow((name,), error=NO_PREDICTION))
    return [
        replace(group, photos=tuple(sorted((*group.photos, *missing[group.name]), key=lambda photo: photo.images)))
        if group.name in missing
        else group
        for group in groups
    ]


def as_predicted(row: Row) -> PredictionRow:
    """The annotated objects as if predicted with a score of 1."""
    objects = tuple(PredictedObject(item.box, item.desc, 1.0, 1.0) for item in row.objects)
    return PredictionRow(row.images, row.width, row.height, objects)
