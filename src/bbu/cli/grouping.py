"""The group of a photo, for commands that work on groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from bbu.errors import UserError

if TYPE_CHECKING:
    from bbu.records import Row

HELP = "groups by path: folder, or a regular expression, such as ^(.+)_ (default: metadata.group of the rows)"


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
