"""Draft a taxonomy from the labels of a data set, for a person to correct."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bbu.errors import UserError
from bbu.jsonl import atomic_writer
from bbu.taxonomy import ATTRIBUTE_SEPARATOR, Taxonomy, prefix_tree, split_path
from data_conversion.base import BadSource, RawObject, SourceNote, SourceOptions, readable
from data_conversion.formats import FORMATS

RARE = 2  # objects; a label this rare is often a typo
LISTED = 20  # rare labels named at the head of the file


@dataclass(frozen=True)
class Labels:
    """Raw labels of a source and their counts."""

    counts: Counter[str]
    photos: int


def read_labels(source_format: str, root: Path) -> Labels:
    """Count the labels of a source; photos are not opened.

    Raises:
        UserError: a malformed file, or no label at all.
    """
    read = FORMATS[source_format].read
    if read is None:
        raise UserError(f"{source_format} can only be written")
    counts: Counter[str] = Counter()
    photos = 0
    for item in read(root, SourceOptions()):
        if isinstance(item, BadSource):
            if item.reason == "malformed":
                raise UserError(readable(f"{root / item.source}: {item.field}: {item.detail}"))
            continue
        if isinstance(item, SourceNote):
            continue
        photos += 1
        counts.update(it.desc for it in item.objects if isinstance(it, RawObject) and split_path(it.desc))
    if not counts:
        raise UserError(f"{root}: no labels found; check the folder and the format")
    return Labels(counts, photos)


def draft_taxonomy(counts: Mapping[str, int]) -> dict[str, Any]:
    """The content of a taxonomy file that allows all of these labels.

    Spellings that differ only in case, width or blanks are mapped to the most common one. A level that every label has
    is required; one that depends on the first level is required there and forbidden elsewhere.
    """
    tokens = _spellings(counts)
    paths = {split_path(Taxonomy(tokens=tokens).normalise(desc)) for desc in counts}
    draft: dict[str, Any] = {
        "language": "zh" if any("\u4e00" <= letter <= "\u9fff" for desc in counts for letter in desc) else "en",
        "levels": _levels(paths),
    }
    if tokens:
        draft["tokens"] = tokens
    draft["hierarchy"] = _branches(prefix_tree("/".join(path) for path in sorted(paths)))
    return draft


def write_draft(path: Path, labels: Labels) -> None:
    """Write the draft, headed by its origin and the rare labels."""
    import yaml

    rare = sorted(desc for desc, count in labels.counts.items() if count <= RARE)
    with atomic_writer(path) as stream:
        stream.write(
            f"# Drafted from {labels.counts.total()} objects of {labels.photos} photos, {len(labels.counts)} different "
            "labels. Correct it by hand.\n"
        )
        if rare:
            shown = ", ".join(" ".join(desc.split()) for desc in rare[:LISTED])
            more = f" and {len(rare) - LISTED} more" if len(rare) > LISTED else ""
            stream.write(f"# Seldom ({RARE} times or less), perhaps misspelt: {shown}{more}\n")
        yaml.safe_dump(draft_taxonomy(labels.counts), stream, allow_unicode=True, sort_keys=False, width=110)


def _spellings(counts: Mapping[str, int]) -> dict[str, str]:
    """Level text → its most common spelling, if that is another."""
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for desc, count in counts.items():
        for level in split_path(desc):
            groups[unicodedata.normalize("NFKC", level).casefold().replace(" ", "")][level] += count
    return {
        spelling: best
        for group in groups.values()
        if len(group) > 1
        for best in [max(group, key=lambda level: (group[level], level))]
        for spelling in sorted(group)
        if spelling != best
    }


def _levels(paths: Iterable[tuple[str, ...]]) -> list[Any]:
    """Names of the levels, with a rule where the labels follow one."""
    paths = list(paths)
    depth = max(len(path) for path in paths)
    names = [*(str(level) for level in Taxonomy.levels), *(f"level_{n}" for n in range(4, depth + 1))][:depth]
    levels: list[Any] = []
    for number, name in enumerate(names):
        have = {term for path in paths if len(path) > number for term in path[0].split(ATTRIBUTE_SEPARATOR)}
        lack = {term for path in paths if len(path) <= number for term in path[0].split(ATTRIBUTE_SEPARATOR)}
        if not lack:
            levels.append({"name": name, "required": True})
        elif have.isdisjoint(lack):
            levels.append({"name": name, "required": True, "when": {names[0]: sorted(have)}})
        else:
            levels.append(name)
    return levels


def _branches(tree: Mapping[str, Any]) -> Any:
    """A list if nothing follows any term, otherwise a mapping."""
    if not any(tree.values()):
        return list(tree)
    return {term: _branches(below) if below else None for term, below in tree.items()}
