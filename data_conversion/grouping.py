"""Groups of photos that drawn splits keep together: all photos of one site, cabinet or series."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePosixPath

from bbu.errors import UserError
from data_conversion.formats.files import named_split

FOLDER = "folder"

GroupOf = Callable[[str, str | None], str | None]  # path of a photo, the group that the source names → its group


def group_function(group_by: str) -> GroupOf:
    """How a photo gets its group; None leaves it alone.

    Args:
        group_by: "" takes the group that the source names; ``folder`` the photo's folder without the names of splits;
            anything else is a regular expression that is searched in the photo's path: its first group that takes part,
            or all that it matches, is the name.

    Raises:
        UserError: not a regular expression.
    """
    if not group_by:
        return lambda image, own: own
    if group_by == FOLDER:
        return lambda image, own: _folder(image)
    try:
        pattern = re.compile(group_by)
    except re.error as error:
        raise UserError(
            f"group_by {group_by!r} is not a regular expression ({error}); write folder, or for example ^(.+)_"
        ) from None

    def matched(image: str, own: str | None) -> str | None:
        found = pattern.search(image)
        return next((text for text in (*found.groups(), found[0]) if text is not None), None) if found else None

    return matched


def _folder(image: str) -> str:
    return "/".join(part for part in PurePosixPath(image).parts[:-1] if named_split(part) is None)
