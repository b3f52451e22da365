"""A JSON file read item by item gives what the json module gives, whatever the size of the chunks, or one error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bbu.errors import RecordError
from data_conversion.formats import json_stream
from data_conversion.formats.disk_multimap import DiskMultimap
from data_conversion.formats.files import named_split
from data_conversion.formats.json_stream import stream_json
from tests.data_conversion.formats.exporting import damaged

SCALAR = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUE = st.recursive(SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))
DOCUMENT = st.dictionaries(st.text(), VALUE, max_size=4) | st.lists(VALUE, max_size=6)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "CHUNK", 7)


def put_together(path: Path) -> Any:
    """The document again, from its items."""
    whole: Any = {}
    for item in stream_json(path, "x.json"):
        if item.number is None:
            assert item.name not in whole
            whole[item.name] = item.value
        else:
            assert item.number == len(whole[item.name]) and item.field == f"{item.name}[{item.number}]"
            whole[item.name].append(item.value)
    return whole


@settings(max_examples=150, deadline=None)
@given(value=DOCUMENT, indent=st.sampled_from([None, 1]), escaped=st.booleans())
def test_items_put_together_are_the_document(
    tmp_path_factory: pytest.TempPathFactory, value: Any, indent: int | None, escaped: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "whole.json"
    path.write_text(json.dumps(value, indent=indent, ensure_ascii=escaped), encoding="utf-8")
    assert put_together(path) == (value if isinstance(value, dict) else {"": value})


SOUND = json.dumps(
    {"a": [1, {"b": "标签", "c": [-1.5e3, True]}, "x" * 40], "d": {"e": None}, "f": []}, ensure_ascii=False
)


@settings(max_examples=200, deadline=None)
@given(content=damaged(SOUND.encode()))
def test_a_damaged_file_is_what_json_reads_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_bytes(content)
    try:
        found = put_together(path)
    except RecordError as error:
        assert error.where == "x.json" and "\n" not in str(error)
    else:
        expected = json.loads(content.decode("utf-8-sig"))
        assert found == (expected if isinstance(expected, dict) else {"": expected})


def test_the_window_never_holds_much_more_than_an_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    longest = 0
    read_on = json_stream._Document._read_on

    def measured(document: json_stream._Document) -> bool:
        nonlocal longest
        more = read_on(document)
        longest = max(longest, len(document.text))
        return more

    monkeypatch.setattr(json_stream._Document, "_read_on", measured)
    path = tmp_path / "long.json"
    path.write_text(json.dumps({"images": [{"id": number, "text": "x" * 50} for number in range(2_000)]}))
    assert len(put_together(path)["images"]) == 2_000
    assert longest < 4 * 80 < path.stat().st_size / 100


def test_an_item_longer_than_any_photo_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_stream, "MAX_ITEM", 100)
    path = tmp_path / "long.json"
    path.write_text(json.dumps(["short", "x" * 1000]))
    with pytest.raises(RecordError, match=r"x.json: \[1\]: is longer than 100 characters"):
        put_together(path)


def test_an_error_says_where_in_the_file_it_is(tmp_path: Path) -> None:
    text = '{"images": [{"id": 1}, {"id": 2,}]}'
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(text)
    with pytest.raises(RecordError, match=rf"images\[1\]: .* at character {expected.value.pos + 1}$"):
        put_together(tmp_path / "x.json")


# ---------------------------------------------------------------- putting together by photo


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.tuples(st.sampled_from("ab"), st.none() | st.integers(0, 3) | st.sampled_from("0123"), VALUE)))
def test_values_come_back_in_the_order_in_which_they_were_put(rows: list[tuple[str, Any, Any]]) -> None:
    with DiskMultimap() as store:
        for row in rows:
            store.put(*row)
        mine = [(key, value) for name, key, value in rows if name == "a"]
        other = [key for name, key, _ in rows if name == "b"]
        keys = list(dict.fromkeys(key for key, _ in mine))
        assert list(store.keys("a")) == keys
        assert list(store.keys("a", not_in="b")) == [key for key in keys if key not in other]
        assert list(store.keys("a", at_least=2)) == [key for key in keys if [k for k, _ in mine].count(key) > 1]
        for key in [*keys, "4"]:
            assert store.get("a", key) == [value for found, value in mine if found == key]
            assert store.has("a", key) == (key in keys)


def test_a_multimap_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with DiskMultimap() as store:
        store.put("a", 1)
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("instances_train2017", "train"),
        ("validation", "val"),
        ("VALID", "val"),
        ("test-dev2017", "test"),
        ("captions.val", "val"),
        ("train_labels", "train"),
        ("Testing", "test"),
        ("dev", "val"),
        ("eval", "val"),
        ("trainval", None),
        ("train_val", None),
        ("minitrain", None),
        ("test_bench", None),
        ("val_di_sole", None),
        ("screws_test_rig", None),
        ("test2", None),
        ("train station", None),
        ("2017", None),
        ("default", None),
        ("", None),
    ],
)
def test_a_name_tells_its_split(name: str, split: str | None) -> None:
    assert named_split(name) == split
