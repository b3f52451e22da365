"""Description paths: levels, token map, hierarchy check, prefix tree.

A description is a slash path, coarse to fine: ``object_type/property/extra_info``. Within one level, commas
separate attributes. A taxonomy says how raw level texts become final ones and which paths are known.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bbu.errors import ConfigError

SEPARATOR = "/"
ATTRIBUTE_SEPARATOR = ","

# What may follow a term: None = anything, a mapping = only these terms, each with what may follow it.
Children = Mapping[str, Any] | None


def split_path(desc: str) -> tuple[str, ...]:
    """Levels of a description, coarse to fine; blanks at the ends and empty levels are dropped."""
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


@dataclass(frozen=True)
class Taxonomy:
    """The words of one labelling project. ``Taxonomy()`` only tidies blanks and allows every path.

    Args:
        language: ``zh`` or ``en``: which raw label is read where the source has both.
        levels: names of the levels, for messages.
        tokens: raw level text (or raw attribute) → final text; "" drops the level.
        hierarchy: allowed paths, see Children; None allows every path.
    """

    language: str = "zh"
    levels: tuple[str, ...] = ("object_type", "property", "extra_info")
    tokens: Mapping[str, str] = field(default_factory=dict)
    hierarchy: Children = None

    @classmethod
    def from_yaml(cls, path: str | Path) -> Taxonomy:
        """Read and check a taxonomy file.

        Raises:
            ConfigError: names the file, the field and the fix.
        """
        return _Reader(str(path)).taxonomy(_load_yaml(Path(path)))

    def normalise(self, desc: str) -> str:
        """Raw description → final one: token map level by level, blanks stripped, empty levels dropped.

        Doing it twice changes nothing. May return "" when nothing is left.
        """
        return join_path(final for _, final in self._levels(desc))

    def problem(self, desc: str) -> str | None:
        """Why a (raw or final) description is outside the hierarchy, naming the raw term; None if it is inside."""
        allowed, parent = self.hierarchy, ""
        for depth, (raw, final) in enumerate(self._levels(desc)):
            if allowed is None:
                return None
            found, missing = _look_up(final, allowed)
            if missing is not None:
                return self._explain(raw, missing, depth, parent, allowed)
            allowed, parent = _merge(found), final
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
        name = self.levels[depth] if depth < len(self.levels) else f"level {depth + 1}"
        written = [raw, *(part.strip() for part in raw.split(ATTRIBUTE_SEPARATOR))]
        shown = repr(term) if term in written else f"{raw!r} (mapped to {term!r})"
        place = f"under {parent!r}" if parent else "in the hierarchy"
        if not allowed:
            return f"{name} {shown}: nothing may follow {parent!r}; map it to '' in tokens or add it to hierarchy"
        near = difflib.get_close_matches(term, allowed, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(allowed)}"
        return f"{name} {shown} is not {place}; {hint}; map it in tokens or add it to hierarchy"


def _look_up(level: str, allowed: Mapping[str, Any]) -> tuple[list[Children], str | None]:
    """What may follow each attribute of a level, or the first attribute that is not allowed."""
    if level in allowed:
        return [allowed[level]], None
    found: list[Children] = []
    for part in level.split(ATTRIBUTE_SEPARATOR):
        if part not in allowed:
            return [], part
        found.append(allowed[part])
    return found, None


def _merge(children: list[Children]) -> Children:
    """What may follow a level of several attributes: whatever may follow any of them."""
    merged: dict[str, Any] = {}
    for child in children:
        if child is None:
            return None
        merged.update(child)
    return merged


# ---------------------------------------------------------------- reading the file


def _load_yaml(path: Path) -> Any:
    """One YAML document in which a key may stand only once."""
    yaml: Any = importlib.import_module("yaml")
    unique_keys: Any = type("UniqueKeys", (yaml.SafeLoader,), {})

    def mapping(loader: Any, node: Any) -> dict[Any, Any]:
        keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
        twice = next((key for index, key in enumerate(keys) if key in keys[:index]), None)
        if twice is not None:
            raise ConfigError(f"{path}: {twice}: appears twice in one mapping; remove one of the two")
        return dict(zip(keys, (loader.construct_object(value, deep=True) for _, value in node.value), strict=True))

    unique_keys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        return yaml.load(path.read_text(encoding="utf-8-sig"), Loader=unique_keys)
    except OSError as error:
        raise ConfigError(f"{path}: file: cannot be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: file: is not UTF-8 ({error.reason}); save it as UTF-8") from None
    except (yaml.YAMLError, TypeError) as error:
        raise ConfigError(f"{path}: file: is not valid YAML: {' '.join(str(error).split())}") from None


class _Reader:
    """Checks a decoded taxonomy file and names the field that is wrong."""

    def __init__(self, where: str) -> None:
        self.where = where

    def fail(self, name: str, why: str) -> ConfigError:
        return ConfigError(f"{self.where}: {name}: {why}")

    def taxonomy(self, value: Any) -> Taxonomy:
        if not isinstance(value, dict):
            raise self.fail("file", f"must hold a mapping, holds {type(value).__name__}")
        known = ("language", "levels", "tokens", "hierarchy")
        for key in value:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                raise self.fail(str(key), f"is not a field; {f'did you mean {near[0]!r}?' if near else known}")
        language = value.get("language", "zh")
        if language not in ("zh", "en"):
            raise self.fail("language", f"must be zh or en, is {language!r}")
        levels = value.get("levels", list(Taxonomy.levels))
        if not isinstance(levels, list) or not levels:
            raise self.fail("levels", f"must be a non-empty list of names, is {levels!r}")
        for index, name in enumerate(levels):
            self.text(name, f"levels[{index}]")
        tokens = self.tokens(value.get("tokens") or {})
        hierarchy = self.children(value.get("hierarchy"), "hierarchy")
        self.reachable(hierarchy, tokens, "hierarchy")
        return Taxonomy(language, tuple(levels), tokens, hierarchy)

    def text(self, value: Any, name: str) -> str:
        if not isinstance(value, str) or not value.strip():
            raise self.fail(name, f"must be text, is {value!r}; put it in quotes")
        return value

    def level(self, value: Any, name: str) -> str:
        """Text of one level, with its blanks tidied as split_path tidies them."""
        if SEPARATOR in self.text(value, name):
            raise self.fail(name, f"names one level, so {value!r} may not hold '/'")
        return join_path(split_path(value))

    def tokens(self, value: Any) -> dict[str, str]:
        if not isinstance(value, dict):
            raise self.fail("tokens", f"must be a mapping raw: final, is {type(value).__name__}")
        tokens = {}
        for raw, final in value.items():
            name = f"tokens.{raw}"
            tokens[self.level(raw, name)] = "" if final == "" else self.level(final, name)
        mapping = Taxonomy(tokens=tokens)
        for raw, final in tokens.items():
            # A chain would make the result depend on how often the map is applied.
            again = mapping.normalise(final)
            if again != final:
                raise self.fail(f"tokens.{raw}", f"{final!r} is itself mapped to {again!r}; map straight to that")
        return tokens

    def children(self, value: Any, name: str) -> Children:
        if value is None:
            return None
        if isinstance(value, list):  # a list is short for terms that anything may follow
            value = dict.fromkeys((self.level(term, f"{name}[{i}]") for i, term in enumerate(value)), None)
        if not isinstance(value, dict):
            raise self.fail(name, f"must be a mapping, a list or empty, is {value!r}")
        return {self.level(term, f"{name}.{term}"): self.children(sub, f"{name}.{term}") for term, sub in value.items()}

    def reachable(self, hierarchy: Children, tokens: Mapping[str, str], name: str) -> None:
        """A term that the token map rewrites can never be met: it is a mistake in one of the two tables."""
        for term, sub in (hierarchy or {}).items():
            if tokens.get(term, term) != term:
                raise self.fail(f"{name}.{term}", f"tokens map it to {tokens[term]!r}; list that term instead")
            self.reachable(sub, tokens, f"{name}.{term}")
