"""Description paths, the token map, the hierarchy, and taxonomy files."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbu.errors import ConfigError, UserError
from bbu.taxonomy import LevelRule, MirrorRules, Taxonomy, join_path, prefix, prefix_tree, split_path
from bbu.taxonomy_file import read_descriptions, read_taxonomy

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
        taxonomy = read_taxonomy(path)
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
    taxonomy = read_taxonomy(SHIPPED)
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
        ("tokens: {a: b/c}", "is one level, so 'b/c' must not contain '/'"),
        ("tokens: {a: b, b: c}", "tokens.a: 'b' is itself mapped to 'c'"),
        ("tokens: {a: b, a: c}", "a: appears twice"),
        ("hierarchy: x", "hierarchy: must be a mapping, a list or empty"),
        ("hierarchy: {a: [1]}", r"hierarchy.a\[0\]: must be text"),
        ("tokens: {a: b}\nhierarchy: {a: }", "hierarchy.a: tokens map it to 'b'; list that term instead"),
        ("levels: [a, a]", r"levels\[1\]: 'a' is listed twice"),
        ("levels: [a, {name: b, requird: true}]", r"levels\[1\].requird: is not a field; did you mean 'required'"),
        ("levels: [{name: b, required: 1}]", r"levels\[0\].required: must be true or false"),
        ("levels: [{name: b, when: {a: x}}]", r"levels\[0\].when.a: is not an earlier level"),
        ("levels: [a, {name: b, when: {a: [1]}}]", r"levels\[1\].when.a: must be text"),
        ("mirror: {horizontal: maybe}", "mirror.horizontal: must be one of swap, unless_words, forbid, allow"),
        ("mirror: {turn: swap}", "mirror.turn: must be one of unless_words, forbid, allow"),
        ("mirror: {words: {horizontal: [left]}}", r"mirror.words.horizontal\[0\]: must be a pair of words"),
        ("mirror: {words: {diagonal: []}}", "mirror.words.diagonal: is not a field"),
        ("? [a]\n: b", "is not a field|is not valid YAML"),
    ],
)
def test_a_bad_taxonomy_file_is_one_error_with_its_field(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "words.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=why) as caught:
        read_taxonomy(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_unreadable_taxonomy_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_taxonomy(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("language: zh # é".encode("latin-1"))
    with pytest.raises(ConfigError, match="is not UTF-8"):
        read_taxonomy(tmp_path / "latin.yaml")


STATE = (
    "part",
    LevelRule("kind", required=True, when={"part": ("screw", "plug")}),
    LevelRule("state", required=True, when={"part": ("screw",), "kind": ("m4", "m6")}),
)


@pytest.mark.parametrize("desc", ["cover", "plug/blue", "screw/m4/loose", "screw/m8", "screw,cover/m8", "", "plug/a/"])
def test_levels_that_stand_where_they_must(desc: str) -> None:
    assert Taxonomy(levels=STATE).problem(desc) is None


@pytest.mark.parametrize(
    ("desc", "why"),
    [
        ("screw", "kind is missing after 'screw'; add it to the label or make it optional"),
        ("screw/m4", "state is missing after 'screw/m4'"),
        ("cover/blue", "kind 'blue' is only allowed where part is screw or plug"),
        ("screw/m8/loose", "state 'loose' is only allowed where part is screw, kind is m4 or m6"),
    ],
)
def test_levels_that_are_missing_or_misplaced(desc: str, why: str) -> None:
    assert why in str(Taxonomy(levels=STATE).problem(desc))


def test_a_required_first_level_is_missing_from_nothing() -> None:
    rules = (LevelRule("part", required=True),)
    assert "part is missing;" in str(Taxonomy(levels=rules).problem(""))


def test_level_and_mirror_rules_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "words.yaml"
    path.write_text(
        "levels: [part, {name: kind, required: true, when: {part: screw}}]\n"
        "mirror: {vertical: forbid, turn: allow, words: {horizontal: [[port, starboard]]}}",
        encoding="utf-8",
    )
    taxonomy = read_taxonomy(path)
    assert taxonomy.levels == ("part", LevelRule("kind", True, {"part": ("screw",)}))
    assert taxonomy.mirror.swap("port/left", "horizontal") == "starboard/left"
    assert not taxonomy.mirror.allows("vertical", ["x"])
    assert taxonomy.mirror.allows("turn", ["port"])


@pytest.mark.parametrize(
    ("desc", "mirror", "image"),
    [
        ("left screw/Left side", "horizontal", "right screw/Right side"),
        ("LEFT/leftover, bright", "horizontal", "RIGHT/leftover, bright"),
        ("左侧螺丝/右", "horizontal", "右侧螺丝/左"),
        ("left/top", "vertical", "left/bottom"),
        ("上部/左下方", "vertical", "下部/左上方"),
        ("弯曲半径4cm以上", "vertical", "弯曲半径4cm以上"),
        ("screw", "horizontal", "screw"),
    ],
)
def test_words_that_name_a_side_are_mirrored(desc: str, mirror: str, image: str) -> None:
    rules = MirrorRules()
    assert rules.swap(desc, mirror) == image
    assert rules.swap(image, mirror) == desc


@given(st.text("leftrighTOPbomupw 左右上下方部/", max_size=30), st.sampled_from(["horizontal", "vertical"]))
def test_a_mirror_image_of_a_mirror_image_is_the_description(desc: str, mirror: str) -> None:
    rules = MirrorRules()
    assert rules.swap(rules.swap(desc, mirror), mirror).lower() == desc.lower()


def test_what_a_photo_may_go_through() -> None:
    sided, plain = ["screw/left"], ["screw/loose"]
    for rule, with_words, without in (("swap", 1, 1), ("unless_words", 0, 1), ("forbid", 0, 0), ("allow", 1, 1)):
        rules = MirrorRules(horizontal=rule)
        assert rules.allows("horizontal", sided) == bool(with_words)
        assert rules.allows("horizontal", plain) == bool(without)
    assert not MirrorRules().allows("turn", sided) and not MirrorRules().allows("turn", ["top"])
    assert MirrorRules().allows("turn", plain) and MirrorRules().allows("vertical", sided)
    assert MirrorRules(horizontal="allow").swap("left", "horizontal") == "left"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.txt", None, "cannot be read"),
        ("empty.txt", b"\n \n", "holds no description"),
        ("latin.txt", b"\xff\xfe\xff", "not UTF-8"),
        ("cut.json", b'["a"', "is not valid JSON"),
        ("number.json", b"[3]", "must be a JSON list"),
        ("table.json", b'{"a": 1}', "must be a JSON list"),
    ],
)
def test_a_bad_file_of_descriptions_is_named(name: str, content: bytes | None, words: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        read_descriptions(tmp_path / name)
    assert name in str(error.value) and "\n" not in str(error.value)
