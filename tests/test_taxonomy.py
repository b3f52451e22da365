"""Description paths, the token map, the hierarchy, and taxonomy files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbu.errors import ConfigError
from bbu.taxonomy import Taxonomy, join_path, prefix, prefix_tree, split_path

SHIPPED = Path(__file__).parents[1] / "data_conversion" / "taxonomies" / "bbu.yaml"
LEVEL = st.text(alphabet="ab螺丝, /", max_size=6)


def test_a_path_is_split_at_slashes_and_tidied() -> None:
    assert split_path(" 螺丝连接点 / BBU安装螺丝//连接  正确/ ") == ("螺丝连接点", "BBU安装螺丝", "连接 正确")
    assert split_path(" / ") == ()


@given(LEVEL)
def test_join_is_the_inverse_of_split(desc: str) -> None:
    levels = split_path(desc)
    assert split_path(join_path(levels)) == levels


def test_prefix_keeps_the_coarse_levels() -> None:
    assert prefix("a/b/c", 1) == "a"
    assert prefix("a/b/c", 2) == "a/b"
    assert prefix("a", 5) == "a"
    with pytest.raises(ValueError, match="depth must be at least 1"):
        prefix("a", 0)


def test_prefix_tree_nests_every_level() -> None:
    assert prefix_tree(["a/b", "a/c/d", "e", "a"]) == {"a": {"b": {}, "c": {"d": {}}}, "e": {}}


def test_a_bare_taxonomy_only_tidies() -> None:
    taxonomy = Taxonomy()
    assert taxonomy.normalise(" a // b ,c ") == "a/b,c"
    assert taxonomy.problem("anything/at all") is None


def test_tokens_apply_level_by_level_and_attribute_by_attribute() -> None:
    taxonomy = Taxonomy(tokens={"标签": "标签贴纸", "连接正确": "安装正确", "无": ""})
    assert taxonomy.normalise("标签/连接正确,生锈/无") == "标签贴纸/安装正确,生锈"
    assert taxonomy.normalise("无") == ""
    assert taxonomy.normalise("我的标签") == "我的标签", "a token is a whole level, never a part of a word"


@given(st.dictionaries(LEVEL, LEVEL, max_size=4), st.text(alphabet="ab螺丝, /", max_size=12))
def test_normalising_twice_changes_nothing(tmp_path_factory: pytest.TempPathFactory, tokens: dict, desc: str) -> None:
    path = tmp_path_factory.getbasetemp() / "taxonomy.yaml"
    lines = "".join(f"  '{raw}': '{final}'\n" for raw, final in tokens.items())
    path.write_text(f"tokens:\n{lines}" if lines else "{}", encoding="utf-8")
    try:
        taxonomy = Taxonomy.from_yaml(path)
    except ConfigError:
        return  # blank keys, levels with a slash, chains: refused when the file is read
    once = taxonomy.normalise(desc)
    assert taxonomy.normalise(once) == once


HIERARCHY = {"screw": {"m4": None, "m6": {"tight": {}, "loose": {}}}, "label": None}


@pytest.mark.parametrize("desc", ["screw", "screw/m4/any/thing", "screw/m6/loose", "screw/m6/tight,loose", "label/x/y"])
def test_paths_inside_the_hierarchy(desc: str) -> None:
    assert Taxonomy(hierarchy=HIERARCHY).problem(desc) is None


@pytest.mark.parametrize(
    ("desc", "why"),
    [
        ("scrow/m4", "object_type 'scrow' is not in the hierarchy; did you mean 'screw'?"),
        ("screw/m4,m8", "property 'm8' is not under 'screw'; known: m4, m6"),
        ("screw/m6/rusty", "extra_info 'rusty' is not under 'm6'; known: tight, loose"),
        ("screw/m6/loose/really", "level 4 'really': nothing may follow 'loose'"),
    ],
)
def test_paths_outside_name_the_raw_term(desc: str, why: str) -> None:
    assert why in str(Taxonomy(hierarchy=HIERARCHY).problem(desc))


def test_the_raw_term_is_named_with_what_it_became() -> None:
    taxonomy = Taxonomy(tokens={"Schraube": "skrew"}, hierarchy=HIERARCHY)
    assert "'Schraube' (mapped to 'skrew')" in str(taxonomy.problem("Schraube/m4"))


@pytest.mark.parametrize(
    ("raw", "final"),
    [
        ("标签", "标签贴纸"),
        ("BBU品牌/华为", "bbu基带处理单元/华为"),
        ("连接点（螺丝）/BBU安装螺丝/连接正确", "螺丝连接点/BBU安装螺丝/安装正确"),
        ("connection_point/install_screw/install_screw_true", "螺丝连接点/BBU安装螺丝/安装正确"),
        ("connect_point/地排处螺丝/未拧紧,生锈", "螺丝连接点/地排处螺丝/未拧紧,生锈"),
        ("bbu_shield", "挡风板"),
        ("fiber/蛇形管,铠装", "光纤/蛇形管,铠装"),
        ("机柜空间/非满载", "机柜空间/非满载"),
    ],
)
def test_the_shipped_bbu_taxonomy_takes_both_schemes(raw: str, final: str) -> None:
    taxonomy = Taxonomy.from_yaml(SHIPPED)
    assert taxonomy.normalise(raw) == final
    assert taxonomy.problem(raw) is None
    assert taxonomy.problem(final) is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[a, b]", "file: must hold a mapping"),
        ("tokens: [", "is not valid YAML"),
        ("token: {a: b}", "token: is not a field; did you mean 'tokens'"),
        ("language: fr", "language: must be zh or en"),
        ("levels: []", "levels: must be a non-empty list"),
        ("tokens: [a]", "tokens: must be a mapping"),
        ("tokens: {a: 1}", "tokens.a: must be text, is 1; put it in quotes"),
        ("tokens: {yes: b}", "must be text, is True; put it in quotes"),
        ("tokens: {a: b/c}", "names one level, so 'b/c' may not hold '/'"),
        ("tokens: {a: b, b: c}", "tokens.a: 'b' is itself mapped to 'c'"),
        ("tokens: {a: b, a: c}", "a: appears twice"),
        ("hierarchy: x", "hierarchy: must be a mapping, a list or empty"),
        ("hierarchy: {a: [1]}", r"hierarchy.a\[0\]: must be text"),
        ("tokens: {a: b}\nhierarchy: {a: }", "hierarchy.a: tokens map it to 'b'; list that term instead"),
        ("? [a]\n: b", "is not a field|is not valid YAML"),
    ],
)
def test_a_bad_taxonomy_file_is_one_error_with_its_field(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "words.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=why) as caught:
        Taxonomy.from_yaml(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_unreadable_taxonomy_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Taxonomy.from_yaml(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("language: zh # é".encode("latin-1"))
    with pytest.raises(ConfigError, match="is not UTF-8"):
        Taxonomy.from_yaml(tmp_path / "latin.yaml")
