"""Taxonomy files (YAML) and lists of descriptions, read and checked; every error names the field."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from bbu.errors import ConfigError, UserError
from bbu.jsonl import decode_json
from bbu.taxonomy import (
    MIRRORS,
    SEPARATOR,
    SIDE_WORDS,
    Children,
    LevelRule,
    MirrorRules,
    Taxonomy,
    join_path,
    split_path,
)

MIRROR_CHOICES = ("swap", "unless_words", "forbid", "allow")


def read_taxonomy(path: str | Path) -> Taxonomy:
    """Read and check a taxonomy file.

    Raises:
        ConfigError: names the file, the field and the fix.
    """
    return _Reader(str(path)).taxonomy(read_yaml(Path(path)))


def read_yaml(path: Path) -> Any:
    """One YAML document without repeated keys.

    Raises:
        ConfigError: names the file and the fix.
    """
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


def read_descriptions(path: Path) -> list[str]:
    """Read a JSON list of descriptions, or a text file with one per line; empty lines are skipped.

    Raises:
        UserError: names file and fix.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        found: Any = decode_json(text, str(path)) if path.suffix == ".json" else text.splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
        raise UserError(f"{path}: must be a JSON list of descriptions, or a text file (.txt) with one per line")
    descriptions = [item.strip() for item in found if item.strip()]
    if not descriptions:
        raise UserError(f"{path}: holds no description; write one per line")
    return descriptions


class _Reader:
    """Checks a decoded taxonomy file."""

    def __init__(self, where: str) -> None:
        self.where = where

    def fail(self, name: str, why: str) -> ConfigError:
        return ConfigError(f"{self.where}: {name}: {why}")

    def taxonomy(self, value: Any) -> Taxonomy:
        if not isinstance(value, dict):
            raise self.fail("file", f"must hold a mapping, holds {type(value).__name__}")
        self.known_keys(value, ("language", "levels", "tokens", "hierarchy", "mirror"))
        language = value.get("language", "zh")
        if language not in ("zh", "en"):
            raise self.fail("language", f"must be zh or en, is {language!r}")
        levels = self.levels(value.get("levels", list(Taxonomy.levels)))
        tokens = self.tokens(value.get("tokens") or {})
        hierarchy = self.children(value.get("hierarchy"), "hierarchy")
        self.reachable(hierarchy, tokens, "hierarchy")
        return Taxonomy(language, levels, tokens, hierarchy, self.mirror(value.get("mirror") or {}))

    def known_keys(self, value: Mapping[Any, Any], known: Sequence[str], prefix: str = "") -> None:
        for key in value:
            if key not in known:
                near = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"fields are {', '.join(known)}"
                raise self.fail(f"{prefix}{key}", f"is not a field; {hint}")

    def levels(self, value: Any) -> tuple[str | LevelRule, ...]:
        if not isinstance(value, list) or not value:
            raise self.fail("levels", f"must be a non-empty list of names, is {value!r}")
        levels: dict[str, str | LevelRule] = {}
        for index, item in enumerate(value):
            rule = self.level_rule(item, f"levels[{index}]", levels)
            name = rule if isinstance(rule, str) else rule.name
            if name in levels:
                raise self.fail(f"levels[{index}]", f"{name!r} is listed twice")
            levels[name] = rule
        return tuple(levels.values())

    def level_rule(self, value: Any, name: str, earlier: Collection[str]) -> str | LevelRule:
        """A name, or ``{name, required, when: {earlier level: term or terms}}``."""
        if not isinstance(value, dict):
            return self.text(value, name)
        self.known_keys(value, ("name", "required", "when"), f"{name}.")
        required, when = value.get("required", False), value.get("when")
        if not isinstance(required, bool):
            raise self.fail(f"{name}.required", f"must be true or false, is {required!r}")
        if when is not None and (not isinstance(when, dict) or not when):
            raise self.fail(f"{name}.when", f"must be a mapping of an earlier level to its terms, is {when!r}")
        conditions = {}
        for level, terms in (when or {}).items():
            if level not in earlier:
                raise self.fail(f"{name}.when.{level}", f"is not an earlier level; those are {', '.join(earlier)}")
            terms = terms if isinstance(terms, list) else [terms]
            conditions[level] = tuple(self.level(term, f"{name}.when.{level}") for term in terms)
        return LevelRule(self.text(value.get("name"), f"{name}.name"), required, conditions or None)

    def mirror(self, value: Any) -> MirrorRules:
        if not isinstance(value, dict):
            raise self.fail("mirror", f"must be a mapping, is {value!r}")
        self.known_keys(value, (*MIRRORS, "turn", "words"), "mirror.")
        rules = {}
        for change in (*MIRRORS, "turn"):
            choices = MIRROR_CHOICES[1:] if change == "turn" else MIRROR_CHOICES
            rules[change] = value.get(change, getattr(MirrorRules, change))
            if rules[change] not in choices:
                raise self.fail(f"mirror.{change}", f"must be one of {', '.join(choices)}, is {rules[change]!r}")
        return MirrorRules(**rules, words=self.side_words(value.get("words")))

    def side_words(self, value: Any) -> tuple[tuple[str, str, str], ...]:
        """``{horizontal: [[left, right]], vertical: []}``; a mirror that is left out keeps its default words."""
        if value is None:
            return SIDE_WORDS
        if not isinstance(value, dict):
            raise self.fail("mirror.words", f"must be a mapping horizontal, vertical: pairs, is {value!r}")
        self.known_keys(value, MIRRORS, "mirror.words.")
        words = [entry for entry in SIDE_WORDS if entry[2] not in value]
        for mirror, pairs in value.items():
            for index, pair in enumerate(pairs or []):
                name = f"mirror.words.{mirror}[{index}]"
                if not isinstance(pair, list) or len(pair) != 2:
                    raise self.fail(name, f"must be a pair of words, is {pair!r}")
                words.append((self.text(pair[0], name), self.text(pair[1], name), mirror))
        return tuple(words)

    def text(self, value: Any, name: str) -> str:
        if not isinstance(value, str) or not value.strip():
            raise self.fail(name, f"must be text, is {value!r}; put it in quotes")
        return value

    def level(self, value: Any, name: str) -> str:
        """Text of one level, with blanks tidied as by split_path."""
        if SEPARATOR in self.text(value, name):
            raise self.fail(name, f"is one level, so {value!r} must not contain '/'")
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
            # With a chain the result would depend on how often the map is applied.
            again = mapping.normalise(final)
            if again != final:
                raise self.fail(f"tokens.{raw}", f"{final!r} is itself mapped to {again!r}; map straight to that")
        return tokens

    def children(self, value: Any, name: str) -> Children:
        if value is None:
            return None
        if isinstance(value, list):  # a list means terms that anything may follow
            value = dict.fromkeys((self.level(term, f"{name}[{i}]") for i, term in enumerate(value)), None)
        if not isinstance(value, dict):
            raise self.fail(name, f"must be a mapping, a list or empty, is {value!r}")
        return {self.level(term, f"{name}.{term}"): self.children(sub, f"{name}.{term}") for term, sub in value.items()}

    def reachable(self, hierarchy: Children, tokens: Mapping[str, str], name: str) -> None:
        """A term that the token map rewrites never occurs, so one of the two tables is wrong."""
        for term, sub in (hierarchy or {}).items():
            if tokens.get(term, term) != term:
                raise self.fail(f"{name}.{term}", f"tokens map it to {tokens[term]!r}; list that term instead")
            self.reachable(sub, tokens, f"{name}.{term}")
