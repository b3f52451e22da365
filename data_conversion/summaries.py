"""Summaries of photos that have none: how many objects of each description there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

LANGUAGES = ("", "zh", "en")


def count_objects(descriptions: Iterable[str], language: str) -> str:
    """One sentence that counts the descriptions of a photo, the most frequent first, equal counts by name.

    Args:
        language: ``zh`` or ``en``; "" makes none. The descriptions stay as they are.
    """
    counts = Counter(descriptions)
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    if language == "zh":
        listed = "，".join(f"{desc}×{count}" for desc, count in ordered)
        return f"共{counts.total()}个目标" + (f"：{listed}" if ordered else "")
    if language == "en":
        listed = ", ".join(f"{count} × {desc}" for desc, count in ordered)
        return f"{counts.total()} object{'s' * (counts.total() != 1)}" + (f": {listed}" if ordered else "")
    return ""
