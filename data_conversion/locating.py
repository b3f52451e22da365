"""Where the photo is that an annotation file names: tools write bare names, folders of their own machine, or both."""

from __future__ import annotations

import os
import posixpath
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
        """Path relative to the root, with ``/``, of the photo that ``name`` means.

        Looked for under the root and then under each of ``folders`` (relative to the root); a bare name that is in
        none of them and is unique in the source is taken from wherever it lies. A photo that is not found comes
        back as the first guess: opening it then gives the error, and so does a path that leaves the root.
        """
        name = name.replace("\\", "/")
        guesses = [posixpath.normpath(posixpath.join(folder, name)) for folder in ("", *folders)]
        for guess in guesses:
            if not guess.startswith(("/", "../")) and os.path.isfile(self.root / guess):
                return guess
        if "/" not in name and len(self._places.get(name, ())) == 1:
            return self._places[name][0]
        return guesses[0]

    @cached_property
    def _places(self) -> dict[str, list[str]]:
        """File name → every place in the source; made only when a name is not where it should be."""
        places: dict[str, list[str]] = {}
        for folder, subfolders, names in os.walk(self.root):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in sorted(names):
                if name.lower().endswith(IMAGE_SUFFIXES):
                    path = Path(folder, name).relative_to(self.root).as_posix()
                    places.setdefault(name, []).append(path)
        return places
