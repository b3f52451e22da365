"""The shipped taxonomies, and the look-up of a taxonomy by file or name."""

from __future__ import annotations

from pathlib import Path

from bbu.errors import UserError
from bbu.taxonomy import Taxonomy
from bbu.taxonomy_file import read_taxonomy


def load_taxonomy(name: str) -> Taxonomy:
    """Read a taxonomy file, or a shipped taxonomy by name.

    Raises:
        UserError: there is neither; the message lists the shipped names.
    """
    if Path(name).is_file():
        return read_taxonomy(name)
    shipped = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.yaml"))}
    if name not in shipped:
        raise UserError(f"taxonomy {name!r} is neither a file nor one of the shipped taxonomies: {', '.join(shipped)}")
    return read_taxonomy(shipped[name])
