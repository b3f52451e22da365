"""Find the photo that an annotation file names: tools write bare names, folders of their own machine, or both."""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from functools import cached_property
from pathlib import Path

from bbu.images import IMAGE_SUFFIXES


class PhotoFinder:
    """Photo names of annotation files → paths inside the source.

    Args:
        root: the source folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def find(self, name: str, *folders: str) -> str:
        """Path of the photo ``name``, relative to the root, with ``/``.

        It is looked for under each of ``folders`` (relative to the root; first, since the same bare name in the folders
        of two splits is two photos), then under the root; a bare name that is in none of them is found anywhere in the
        source, if it is unique there. For a photo that is not found, or outside the root, opening the path that comes
        back raises the error.
        """
        name = name.replace("\\", "/")
        guesses = [posixpath.normpath(posixpath.join(folder, name)) for folder in (*folders, "")]
        found = next(filter(self.has, guesses), None)
        places = self._places.get(name, []) if found is None and "/" not in name else []
        return found or (places[0] if len(places) == 1 else guesses[-1])

    def has(self, image: str) -> bool:
        """Whether a path, relative to the root and normalised, is a file below it."""
        return not image.startswith(("/", "../")) and os.path.isfile(self.root / image)

    @cached_property
    def _places(self) -> dict[str, list[str]]:
        """File name → all its paths in the source; built only if a photo is not in its folder."""
        places: dict[str, list[str]] = defaultdict(list)
        for folder, subfolders, names in os.walk(self.root):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in sorted(names):
                if name.lower().endswith(IMAGE_SUFFIXES):
                    places[name].append(Path(folder, name).relative_to(self.root).as_posix())
        return places
