"""Tokenizers: small ones trained on a data set, and Qwen's published one read from disk."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbu.errors import ConfigError
from bbu.families.conversation import Conversation
from bbu.families.qwen2_5_vl.codec import QWEN
from bbu.families.registry import backbone_class
from bbu.families.tokenizer import load_tokenizer, train_tokenizer
from tests.tiny import FAMILIES, tiny_tokenizer

every_family = pytest.mark.parametrize("family", FAMILIES)

PUBLISHED_IDS = {
    "<|endoftext|>": 151643,
    "<|im_start|>": 151644,
    "<|im_end|>": 151645,
    "<|vision_start|>": 151652,
    "<|vision_end|>": 151653,
    "<|image_pad|>": 151655,
}


@pytest.fixture(scope="module")
def published(shared_dir: Path) -> Any:
    return load_tokenizer(str(shared_dir / "data" / "qwen_tokenizer"), QWEN)


def talk(family: str) -> Conversation:
    return backbone_class(family).conversation


def encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


# ---------------------------------------------------------------- trained on the spot


@every_family
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_survives_the_round_trip_through_tokens(family: str, text: str) -> None:
    tokenizer = tiny_tokenizer(family)
    assert tokenizer.decode(encode(tokenizer, text)) == text


@every_family
def test_every_special_token_is_one_token_wherever_it_stands(family: str) -> None:
    tokenizer = tiny_tokenizer(family)
    ids = tokenizer.get_vocab()
    for token in talk(family).special_tokens:
        assert encode(tokenizer, token) == [ids[token]]
        inside = encode(tokenizer, f"标签{token}x")
        assert inside.count(ids[token]) == 1 and tokenizer.decode(inside) == f"标签{token}x"


@every_family
def test_special_tokens_are_left_out_of_decoded_text(family: str) -> None:
    tokenizer, end = tiny_tokenizer(family), talk(family).end
    assert tokenizer.decode(encode(tokenizer, f"标签{end}"), skip_special_tokens=True) == "标签"
    assert tokenizer.eos_token == end and tokenizer.pad_token == talk(family).pad


@every_family
def test_the_vocabulary_keeps_its_bound_and_training_is_deterministic(family: str) -> None:
    texts = ["螺丝连接点/BBU安装螺丝/连接正确 " * 5, "connect_point/screw/loose " * 5]
    first, second = (train_tokenizer(texts, 300, talk(family)) for _ in range(2))
    assert len(first) <= 300
    assert first.get_vocab() == second.get_vocab()
    assert sorted(first.get_vocab().values()) == list(range(len(first)))  # ids without a gap: rows of the embedding


@every_family
def test_training_shortens_its_own_text_and_keeps_digits_single(family: str) -> None:
    text = "挡风板/安装正确"
    trained = train_tokenizer([text] * 20, 400, talk(family))
    assert len(encode(trained, text)) < len(text)
    assert len(encode(train_tokenizer(["1024 1024 1024"] * 20, 400, talk(family)), "1024")) == 4


@every_family
def test_a_tokenizer_saved_and_read_is_the_same(family: str, tmp_path: Path) -> None:
    tokenizer, chat = tiny_tokenizer(family), talk(family)
    tokenizer.save_pretrained(tmp_path)
    again = load_tokenizer(str(tmp_path), chat)
    assert again.get_vocab() == tokenizer.get_vocab()
    for text in ("螺丝/未拧紧 1024", f"{chat.turn_start}user\nHi{chat.end}\n", "  two  spaces \n\n"):
        assert encode(again, text) == encode(tokenizer, text)
    assert again.chat_template == chat.template


@every_family
def test_a_tokenizer_without_the_tokens_that_mark_photos_is_refused(family: str, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())).save_pretrained(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(str(tmp_path), talk(family))
    assert str(tmp_path) in str(caught.value)
    assert all(token in str(caught.value) for token in talk(family).needed_tokens)


@pytest.mark.parametrize("damage", ["missing", "empty", "cut off"])
def test_a_tokenizer_that_cannot_be_read_is_named(tokenizer: Any, tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "tokenizer"
    if damage != "missing":
        tokenizer.save_pretrained(folder)
        path = folder / "tokenizer.json"
        os.truncate(path, 0 if damage == "empty" else path.stat().st_size // 2)
    with pytest.raises(ConfigError) as caught:
        load_tokenizer(str(folder), QWEN)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


# ---------------------------------------------------------------- the published one


def test_the_published_tokenizer_has_the_published_ids(published: Any) -> None:
    ids = published.get_vocab()
    assert {token: ids[token] for token in PUBLISHED_IDS} == PUBLISHED_IDS


def test_chatml_has_the_ids_worked_out_by_hand(published: Any) -> None:
    assert encode(published, "<|im_start|>user\nHi<|im_end|>\n") == [151644, 872, 198, 13048, 151645, 198]


def test_our_template_gives_the_ids_worked_out_by_hand(published: Any) -> None:
    ids = published.apply_chat_template(
        [
            {"role": "system", "content": "Hi"},
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Hi"}]},
        ],
        add_generation_prompt=True,
        return_dict=False,
    )
    newline, user, system, assistant, hi = 198, 872, 8948, 77091, 13048
    assert list(ids) == [
        *(151644, system, newline, hi, 151645, newline),
        *(151644, user, newline, 151652, 151655, 151653, hi, 151645, newline),
        *(151644, assistant, newline),
    ]


def test_the_trained_tokenizer_splits_text_as_the_published_one_does(published: Any, tokenizer: Any) -> None:
    """Same words, numbers and line ends; only the merges inside them differ."""
    text = '[{"bbox_2d": [12, 345], "label": "螺丝/BBU"}]\n\n  x don\'t 9.5'
    for other in (published, tokenizer):
        assert other.decode(encode(other, text)) == text
    splits = [
        [word for word, _ in one.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]
        for one in (published, tokenizer)
    ]
    assert splits[0] == splits[1]


def test_the_published_files_say_what_the_checkpoint_says(shared_dir: Path) -> None:
    folder = shared_dir / "data" / "qwen_tokenizer"
    added = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    assert {item["content"]: item["id"] for item in added}.items() >= PUBLISHED_IDS.items()
