"""A drafted taxonomy fits the data it came from, and says what it noticed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bbu.taxonomy import split_path
from bbu.taxonomy_file import read_taxonomy
from data_conversion.__main__ import main
from data_conversion.taxonomy_draft import Labels, draft_taxonomy, write_draft

TERM = st.text("abcA 螺丝,ＡＢ", min_size=1, max_size=4).filter(lambda text: bool(text.strip(" ,")))
DESCS = st.lists(st.lists(TERM, min_size=1, max_size=4).map("/".join), min_size=1, max_size=12)


@given(DESCS)
def test_every_label_it_came_from_is_inside(tmp_path_factory: pytest.TempPathFactory, descs: list[str]) -> None:
    path = tmp_path_factory.getbasetemp() / "draft.yaml"
    counts = Counter(desc for desc in descs if split_path(desc))
    if not counts:
        return
    write_draft(path, Labels(counts, 3))
    taxonomy = read_taxonomy(path)
    for desc in counts:
        assert taxonomy.problem(desc) is None
        assert taxonomy.normalise(desc)


def test_levels_that_hang_on_the_first_are_required_there() -> None:
    draft = draft_taxonomy(Counter({"screw/bbu/loose": 3, "screw/odf/tight": 9, "cover": 4, "label/torn": 2}))
    assert draft["levels"] == [
        {"name": "object_type", "required": True},
        {"name": "property", "required": True, "when": {"object_type": ["label", "screw"]}},
        {"name": "extra_info", "required": True, "when": {"object_type": ["screw"]}},
    ]
    assert draft["hierarchy"] == {
        "cover": None,
        "label": ["torn"],
        "screw": {"bbu": ["loose"], "odf": ["tight"]},
    }


def test_spellings_are_mapped_to_the_most_frequent() -> None:
    draft = draft_taxonomy(Counter({"Screw/loose": 9, "screw/Loose": 1, "Screw/loose ": 2}))
    assert draft["tokens"] == {"screw": "Screw", "Loose": "loose"}
    assert draft["hierarchy"] == {"Screw": ["loose"]}


def test_the_command_writes_a_file_that_the_converter_takes(source: Any, bbu_object: Any, capsys: Any) -> None:
    for index in range(3):
        source.bbu(f"p{index}", [bbu_object("标签/可读"), bbu_object("机柜空间/满载", (1, 1, 9, 9))])
    source.bbu("q", [bbu_object("标签/撕毁")])
    path = Path(source.root.parent / "draft.yaml")
    assert main(["taxonomy", "bbu_json", str(source.root), str(path)]) == 0
    assert "3 labels of 7 objects" in capsys.readouterr().out
    assert "perhaps misspelt: 标签/撕毁" in path.read_text(encoding="utf-8")
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["language"] == "zh"
    assert source.convert(taxonomy=read_taxonomy(path)).objects_dropped == 0
    source.bbu("r", [bbu_object("标签/可读"), bbu_object("猫", (1, 1, 9, 9))])
    assert main(["bbu_json", str(source.root), str(source.out), "--taxonomy", str(path)]) == 1
    assert "outside the taxonomy: 1 objects of 1 labels" in capsys.readouterr().out


def test_a_source_without_labels_is_an_error(source: Any, capsys: Any) -> None:
    assert main(["taxonomy", "bbu_json", str(source.root), str(source.out)]) == 2
    assert "no labels found" in capsys.readouterr().err
    source.photo("a.jpg")
    source.write("a.json", "{")
    assert main(["taxonomy", "bbu_json", str(source.root), str(source.out)]) == 2
    assert "a.json: row: is not valid JSON" in capsys.readouterr().err
