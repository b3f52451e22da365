"""Photos of one site or series. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence

from bbu.records import Row


def groups_of(rows: Sequence[Row]) -> dict[str | None, list[Row]]:
    """Group → its photos, in order; photos without a group are left out."""
    groups: dict[str | None, list[Row]] = {}
    for row in rows:
        if row.group is not None:
            groups.setdefault(row.group, []).append(row)
    return groups
