"""The group of a photo, for commands that work on groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from bbu.cli.arguments import note
from bbu.errors import UserError

if TYPE_CHECKING:
    from bbu.records import Row

HELP = "groups by path: folder, or a regular expression, such as ^(.+)_ (default: metadata.group of the rows)"


NAMED = 5  # groups in a message


def check_single(groups: Mapping[str, Sequence[str]], allowed: bool) -> None:
    """A group of one photo is usually a group that was split by mistake.

    Args:
        groups: name → paths of the photos.

    Raises:
        UserError: there is one, and it is not allowed.
    """
    single = [(group, photos[0]) for group, photos in groups.items() if len(photos) == 1]
    if not single:
        return
    named = ", ".join(f"{group} ({photo})" for group, photo in single[:NAMED])
    more = f" and {len(single) - NAMED} more" if len(single) > NAMED else ""
    text = f"{len(single)} of {len(groups)} groups have one photo: {named}{more}"
    if not allowed:
        raise UserError(
            f"{text}; correct metadata.group or --group-by, add the missing photos, or give --allow-single-photos"
        )
    note(text)


def group_of_photos(group_by: str, rows: Iterable[Row]) -> Callable[[str], str | None]:
    """Path of a photo → its group: by path as in conversion, else that of its row; None = it has none.

    Raises:
        UserError: ``group_by`` is no regular expression, or a photo has two rows.
    """
    from data_conversion.grouping import group_function

    own: dict[str, str | None] = {}
    for row in rows:
        name = row.images[0]
        if name in own:
            raise UserError(f"photo {name!r} appears twice among the annotated rows; keep one of the two lines")
        own[name] = row.group
    by_path = group_function(group_by)
    return lambda name: by_path(name, own.get(name))
