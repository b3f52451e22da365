"""Description paths: levels, token map, hierarchy, words that a mirror swaps, prefix tree.

A description is a slash path, coarse to fine: ``object_type/property/extra_info``. Commas separate the attributes of
one level. A taxonomy maps raw level texts to final ones and lists the allowed paths.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SEPARATOR = "/"
ATTRIBUTE_SEPARATOR = ","

# What may follow a term: None = anything; a mapping = only these terms, each with what may follow it.
Children = Mapping[str, Any] | None


def split_path(desc: str) -> tuple[str, ...]:
    """Levels of a description, coarse to fine, with blanks tidied and without empty levels."""
    levels = (" ".join(level.split()) for level in desc.split(SEPARATOR))
    return tuple(level for level in levels if level)


def join_path(levels: Iterable[str]) -> str:
    """Levels → description; the inverse of split_path."""
    return SEPARATOR.join(levels)


def prefix(desc: str, depth: int) -> str:
    """The first ``depth`` levels of a description (all of them if it has fewer).

    Raises:
        ValueError: depth below 1.
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, is {depth}")
    return join_path(split_path(desc)[:depth])


def prefix_tree(descriptions: Iterable[str]) -> dict[str, Any]:
    """Nested dict of all levels: ``["a/b", "a/c"]`` → ``{"a": {"b": {}, "c": {}}}``; a leaf is ``{}``."""
    tree: dict[str, Any] = {}
    for desc in descriptions:
        node = tree
        for level in split_path(desc):
            node = node.setdefault(level, {})
    return tree


MIRRORS = ("horizontal", "vertical")
SIDE_WORDS = (  # (word, its mirror image, the mirror that swaps them)
    ("left", "right", "horizontal"),
    ("左", "右", "horizontal"),
    ("top", "bottom", "vertical"),
    ("upper", "lower", "vertical"),
    ("above", "below", "vertical"),
    # 上 and 下 alone also mean "at least" and "at most": 4cm以上.
    *((f"上{place}", f"下{place}", "vertical") for place in ("部", "方", "侧", "端", "边", "面", "层")),
)


@dataclass(frozen=True)
class MirrorRules:
    """How mirroring or turning a photo changes descriptions that name a side.

    Args:
        horizontal, vertical: rule for flips left to right and top to bottom. ``swap``: flip, and swap the words;
            ``unless_words``: flip only if no description has such a word; ``forbid``: never flip; ``allow``: always
            flip, words stay.
        turn: rule for quarter turns, which no swap can express: ``unless_words``, ``forbid`` or ``allow``.
        words: (word, its mirror image, horizontal or vertical). Latin words match as whole words in any case, others
            anywhere.
    """

    horizontal: str = "swap"
    vertical: str = "swap"
    turn: str = "unless_words"
    words: tuple[tuple[str, str, str], ...] = SIDE_WORDS

    def allows(self, change: str, descs: Iterable[str]) -> bool:
        """Whether a photo with these descriptions may go through ``horizontal``, ``vertical`` or ``turn``."""
        rule = getattr(self, change)
        if rule == "unless_words":
            return not any(self.names_a_side(desc, change) for desc in descs)
        return bool(rule != "forbid")

    def swap(self, desc: str, mirror: str) -> str:
        """The description of the mirrored object; ``mirror`` is ``horizontal`` or ``vertical``."""
        pattern, pairs = self._pattern(mirror)
        if getattr(self, mirror) != "swap" or not pairs:
            return desc
        return pattern.sub(lambda found: _like(found.group(), pairs[found.group().lower()]), desc)

    def names_a_side(self, desc: str, change: str) -> bool:
        """Whether the description has a word that is wrong after ``change``; a turn affects all words."""
        mirrors = MIRRORS if change == "turn" else (change,)
        return any(pairs and pattern.search(desc) for pattern, pairs in map(self._pattern, mirrors))

    def _pattern(self, mirror: str) -> tuple[re.Pattern[str], dict[str, str]]:
        """Pattern of all words, longest first, and lower-case word → its mirror image."""
        pairs = {}
        for word, image, kind in self.words:
            if kind == mirror:
                pairs[word.lower()], pairs[image.lower()] = image, word
        ordered = sorted(pairs, key=len, reverse=True)
        words = (rf"(?<![a-z]){re.escape(word)}(?![a-z])" if word.isascii() else re.escape(word) for word in ordered)
        return re.compile("|".join(words), re.IGNORECASE), pairs


def _like(word: str, image: str) -> str:
    """The image in the letter case of the word: left → right, Left → Right, LEFT → RIGHT."""
    if word.isupper() and len(word) > 1:
        return image.upper()
    return image.capitalize() if word[:1].isupper() else image


@dataclass(frozen=True)
class LevelRule:
    """One level of the description path.

    Args:
        name: for messages.
        required: a description without this level is outside the taxonomy.
        when: earlier level's name → its terms: the level is allowed (and, if required, needed) only below these; None
            means always.
    """

    name: str
    required: bool = False
    when: Mapping[str, tuple[str, ...]] | None = None


def _rules(levels: Iterable[str | LevelRule]) -> tuple[LevelRule, ...]:
    return tuple(level if isinstance(level, LevelRule) else LevelRule(level) for level in levels)


@dataclass(frozen=True)
class Taxonomy:
    """The vocabulary of one labelling project. ``Taxonomy()`` only tidies blanks and allows every path.

    Args:
        language: ``zh`` or ``en``: the raw label to read where the source has both.
        levels: names of the levels, or rules for them (see LevelRule).
        tokens: raw level text (or raw attribute) → final text; "" drops it.
        hierarchy: allowed paths, see Children; None allows every path.
        mirror: rules for mirrored and turned photos.
    """

    language: str = "zh"
    levels: tuple[str | LevelRule, ...] = ("object_type", "property", "extra_info")
    tokens: Mapping[str, str] = field(default_factory=dict)
    hierarchy: Children = None
    mirror: MirrorRules = MirrorRules()

    def normalise(self, desc: str) -> str:
        """Raw description → final one: token map level by level, blanks tidied, empty levels dropped.

        Idempotent; returns "" if nothing is left.
        """
        return join_path(final for _, final in self._levels(desc))

    def problem(self, desc: str) -> str | None:
        """Why a raw or final description is outside the taxonomy, naming the raw term; None if it is inside."""
        levels = self._levels(desc)
        return self._outside_hierarchy(levels) or self._breaks_level_rule([final for _, final in levels])

    def _outside_hierarchy(self, levels: Sequence[tuple[str, str]]) -> str | None:
        allowed, parent = self.hierarchy, ""
        for depth, (raw, final) in enumerate(levels):
            if allowed is None:
                return None
            terms = [final] if final in allowed else final.split(ATTRIBUTE_SEPARATOR)
            for term in terms:
                if term not in allowed:
                    return self._explain(raw, term, depth, parent, allowed)
            below = [allowed[term] for term in terms]  # what may follow one attribute, may follow the level
            allowed = None if None in below else {term: sub for some in below for term, sub in some.items()}
            parent = final
        return None

    def _breaks_level_rule(self, path: Sequence[str]) -> str | None:
        """A required level that is missing, or a level that is not allowed there."""
        rules = _rules(self.levels)
        at = {rule.name: depth for depth, rule in enumerate(rules)}
        for depth, rule in enumerate(rules):
            applies = all(
                at[name] < len(path) and not set(path[at[name]].split(ATTRIBUTE_SEPARATOR)).isdisjoint(terms)
                for name, terms in (rule.when or {}).items()
            )
            if rule.required and applies and depth >= len(path):
                after = f" after {join_path(path)!r}" if path else ""
                return f"{rule.name} is missing{after}; add it to the label or make it optional in levels"
            if not applies and depth < len(path):
                where = ", ".join(f"{name} is {' or '.join(terms)}" for name, terms in (rule.when or {}).items())
                return f"{rule.name} {path[depth]!r} is only allowed where {where}; map it in tokens or change levels"
        return None

    def _levels(self, desc: str) -> list[tuple[str, str]]:
        """(raw, final) text of every level that survives the token map."""
        pairs = ((raw, self._map_level(raw)) for raw in split_path(desc))
        return [(raw, final) for raw, final in pairs if final]

    def _map_level(self, raw: str) -> str:
        if raw in self.tokens:
            return self.tokens[raw]
        attributes = (part.strip() for part in raw.split(ATTRIBUTE_SEPARATOR))
        mapped = (self.tokens.get(part, part) for part in attributes)
        level = ATTRIBUTE_SEPARATOR.join(part for part in mapped if part)
        return self.tokens.get(level, level)

    def _explain(self, raw: str, term: str, depth: int, parent: str, allowed: Mapping[str, Any]) -> str:
        name = _rules(self.levels)[depth].name if depth < len(self.levels) else f"level {depth + 1}"
        written = [raw, *(part.strip() for part in raw.split(ATTRIBUTE_SEPARATOR))]
        shown = repr(term) if term in written else f"{raw!r} (mapped to {term!r})"
        place = f"under {parent!r}" if parent else "in the hierarchy"
        if not allowed:
            return f"{name} {shown}: nothing may follow {parent!r}; map it to '' in tokens or add it to hierarchy"
        near = difflib.get_close_matches(term, allowed, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(allowed)}"
        return f"{name} {shown} is not {place}; {hint}; map it in tokens or add it to hierarchy"
