"""What belongs to a source folder: its files, and nothing that a link shows from elsewhere, unless the user allows it.

An annotation file may come from anyone: without this rule a link called ``labels/a.txt`` would show a line of any file
of the machine in an error or a row. The permission is a context variable, set once around a conversion, so that no
reader can forget to hand it on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path, PurePosixPath

from bbu.errors import RecordError
from data_conversion.base import BadSource, readable

LEADS_OUTSIDE = (
    "is behind a link that leads outside the source folder; add --follow-links (data.source.follow_links: true) "
    "to read it, or move it inside"
)

_FOLLOW: ContextVar[bool] = ContextVar("follow_links", default=False)


@contextmanager
def following_links(follow: bool) -> Iterator[None]:
    """Allow, or forbid, links that lead outside the source within this block."""
    token = _FOLLOW.set(follow)
    try:
        yield
    finally:
        _FOLLOW.reset(token)


def is_outside(path: str | Path, root: str | Path) -> bool:
    """Whether a path, with all its links followed, is neither the root nor below it; a broken path is outside."""
    try:
        real, top = os.path.realpath(path), os.path.realpath(root)
    except (OSError, ValueError):
        return True
    return real != top and not real.startswith(top.rstrip(os.sep) + os.sep)


def check_inside(path: Path, where: str) -> None:
    """Refuse a file outside the source, unless links are followed.

    Args:
        where: its path below the source folder, which is therefore so many folders above it.

    Raises:
        RecordError: before anything is read.
    """
    root = Path(*path.parts[: -len(PurePosixPath(where).parts)])
    if not _FOLLOW.get() and is_outside(path, root):
        raise RecordError(where, "file", LEADS_OUTSIDE)


def walk_files(root: Path, ignore: Path | None = None, outside: list[str] | None = None) -> Iterator[Path]:
    """All files below a folder, by name, except hidden ones and those in the ``ignore`` folder.

    Linked folders inside the root would come twice and are left out; those outside are walked once if links are
    followed, otherwise they are added to the list ``outside``, relative to the root.

    Raises:
        RecordError: a folder cannot be opened, so what it holds would be missing.
    """

    def closed(error: OSError) -> None:
        why = "give yourself the right to read it, or move it out of the source"
        raise RecordError(readable(os.fspath(error.filename)), "folder", f"cannot be opened: {error.strerror}; {why}")

    followed: set[str] = set()
    left_out = os.fspath(ignore) if ignore else ""
    for folder, subfolders, names in os.walk(root, onerror=closed, followlinks=_FOLLOW.get()):
        here = Path(folder)
        subfolders[:] = sorted(
            name for name in subfolders if name[0] != "." and os.path.realpath(here / name) != left_out
        )
        for name in [name for name in subfolders if (here / name).is_symlink()]:
            real = os.path.realpath(here / name)
            leads_outside = is_outside(real, root)
            if leads_outside and outside is not None and not _FOLLOW.get():
                outside.append(readable((here / name).relative_to(root).as_posix()))
            if not leads_outside or not _FOLLOW.get() or _holds(followed, real):
                subfolders.remove(name)
            followed.add(real)
        yield from (here / name for name in sorted(names) if name[0] != ".")


def _holds(folders: set[str], path: str) -> bool:
    """Whether one of the folders is a path, or holds it."""
    return any(f"{path}/".startswith(f"{folder}/") for folder in folders)


def links_not_followed(root: Path, ignore: Path | None = None) -> Iterator[BadSource]:
    """One item for each folder of the source that is a link to another place, none if links are followed."""
    links: list[str] = []
    for _ in walk_files(root, ignore, links):
        pass
    for name in links:
        yield BadSource(name, "folder", LEADS_OUTSIDE, reason="link_not_followed")
