"""Rule files: what they say, and one line for everything that is wrong in them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bbu.errors import UserError
from bbu.judging.rules import Rule, check_descriptions, read_rules

THREE = """
rules:
  - {name: no loose screw, description: screw/loose, at_most: 0}
  - {name: four screws, description: screw, at_least: 4, per: photo, min_score: 0.4}
  - {name: one label, description: " label / ", exactly: 1}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "rules.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_three_sentences_are_three_lines(tmp_path: Path) -> None:
    assert read_rules(written(tmp_path, THREE)) == (
        Rule("no loose screw", "screw/loose", None, 0, "group", None),
        Rule("four screws", "screw", 4, None, "photo", 0.4),
        Rule("one label", "label", 1, 1, "group", None),
    )


@pytest.mark.parametrize(
    ("desc", "covered"),
    [("screw", True), ("screw/loose", True), ("screw/loose/m4", True), ("screwdriver", False), ("a/screw", False)],
)
def test_a_description_covers_whole_levels_below_it(desc: str, covered: bool) -> None:
    assert Rule("x", "screw", at_most=0).covers(desc) is covered


@pytest.mark.parametrize(
    ("limits", "words", "allowed"),
    [
        ((None, 0), "at most 0", {0}),
        ((4, None), "at least 4", {4, 5, 6}),
        ((1, 1), "exactly 1", {1}),
        ((2, 3), "2 to 3", {2, 3}),
    ],
)
def test_limits_are_included(limits: tuple[int | None, int | None], words: str, allowed: set[int]) -> None:
    rule = Rule("x", "screw", *limits)
    assert rule.limits == words and {n for n in range(7) if rule.allows(n)} == allowed


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        ("rules: [", "file", "is not valid YAML"),
        ("- 1", "file", "must hold a mapping with 'rules', holds list"),
        ("", "file", "holds NoneType"),
        ("rule: []", "rules", "is missing"),
        ("rules: []", "rules", "every group would pass"),
        ("rules: {}", "rules", "must be a list"),
        ("rules: [3]", "rules[0].name", "a rule is a mapping"),
        ("rules: [{name: a, description: b}]", "rules[0].at_most", "is missing"),
        ("rules: [{description: b, at_most: 0}]", "rules[0].name", "is missing"),
        ("rules: [{name: a, at_most: 0}]", "rules[0].description", "is missing"),
        ("rules: [{name: a, description: 3, at_most: 0}]", "rules[0].description", "must be non-empty text, is 3"),
        ("rules: [{name: a, description: /, at_most: 0}]", "rules[0].description", "has no level"),
        ("rules: [{name: a, description: b, atmost: 0}]", "rules[0].atmost", "did you mean 'at_most'?"),
        ("rules: [{name: a, description: b, at_most: -1}]", "rules[0].at_most", "whole number of 0 or more, is -1"),
        ("rules: [{name: a, description: b, at_most: true}]", "rules[0].at_most", "is True"),
        ("rules: [{name: a, description: b, at_most: 1.0}]", "rules[0].at_most", "is 1.0"),
        ("rules: [{name: a, description: b, at_least: 0}]", "rules[0].at_least", "0 holds always"),
        ("rules: [{name: a, description: b, at_least: 3, at_most: 2}]", "rules[0].at_least", "every group would fail"),
        ("rules: [{name: a, description: b, exactly: 1, at_most: 1}]", "rules[0].exactly", "excludes"),
        ("rules: [{name: a, description: b, exactly: 1, per: site}]", "rules[0].per", "group or photo, is 'site'"),
        ("rules: [{name: a, description: b, exactly: 1, min_score: 30}]", "rules[0].min_score", "in [0, 1], is 30"),
        ("rules: [{name: a, description: b, exactly: 1, min_score: high}]", "rules[0].min_score", "must be a number"),
        (
            "rules: [{name: a, description: b, exactly: 1}, {name: a, description: c, exactly: 1}]",
            "rules[1].name",
            "earlier rule",
        ),
        ("rules: [{name: a, name: b, description: c, exactly: 1}]", "name", "appears twice"),
    ],
)
def test_whatever_is_wrong_is_one_line_with_file_and_field(tmp_path: Path, text: str, field: str, words: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(UserError) as error:
        read_rules(path)
    assert str(error.value).startswith(f"{path}: {field}: ") and words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml: file: cannot be read"):
        read_rules(tmp_path / "none.yaml")


@pytest.mark.parametrize("description", ["screw", "screw/loose", "label"])
def test_a_known_description_or_the_beginning_of_one_is_accepted(description: str) -> None:
    check_descriptions([Rule("x", description, at_most=0)], ["screw/loose", " label "], "rules.yaml")


@pytest.mark.parametrize(
    ("description", "hint"),
    [
        ("screw/lose", "the nearest is 'screw/loose'"),
        ("scew", "the nearest is 'screw'"),
        ("zzz", "known: label, screw, screw/loose"),
        ("label/torn", "the nearest is 'label'"),
    ],
)
def test_an_unknown_description_names_the_nearest(description: str, hint: str) -> None:
    rules = [Rule("a", "screw", at_most=0), Rule("b", description, at_most=0)]
    with pytest.raises(UserError) as error:
        check_descriptions(rules, ["screw/loose", "label"], "rules.yaml")
    assert str(error.value).startswith(f"rules.yaml: rules[1].description: {description!r} is no known description")
    assert hint in str(error.value) and "--descriptions" in str(error.value)
