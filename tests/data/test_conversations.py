"""Chat JSONL: what is read, and the one line that says what is wrong with anything else."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bbu.data.conversations import ConversationRow, parse_conversation, read_conversations
from bbu.errors import RecordError
from bbu.families.conversation import Conversation
from bbu.families.qwen2_5_vl.codec import QWEN
from bbu.jsonl import write_jsonl

ASK = {"role": "user", "content": "Why?"}
SAY = {"role": "assistant", "content": "Because."}
SHOW = {"role": "user", "content": "<image>What is it?"}


@pytest.fixture
def read(photo_folder: Path, make_photo: Callable[..., Path]) -> Callable[..., ConversationRow]:
    """read(messages=, images=): one row of a file in photo_folder, where a.png and b.png are photos."""
    make_photo("a.png", (112, 84))
    make_photo("b.jpg", (84, 56), seed=1, orientation=6)

    def parse(**row: Any) -> ConversationRow:
        return parse_conversation(row, "chat.jsonl:7", photo_folder, QWEN)

    return parse


def test_text_and_photos_are_read_in_the_order_they_are_shown(read: Callable[..., ConversationRow]) -> None:
    system = {"role": "system", "content": "Be brief."}
    row = read(
        messages=[system, {"role": "user", "content": "One <image> and <image>"}, SAY, ASK, SAY],
        images=["b.jpg", "a.png"],
    )
    assert [message.role for message in row.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert row.messages[1].parts == ("One ", None, " and ", None)
    assert [(photo.images[0], photo.width, photo.height) for photo in row.photos] == [
        ("b.jpg", 56, 84),
        ("a.png", 112, 84),
    ]
    assert row.where == "chat.jsonl:7"


@pytest.mark.parametrize(
    "photo", [{"type": "image"}, {"type": "image", "image": "a.png"}], ids=["of images", "with its path"]
)
def test_parts_say_the_same_as_placeholders(read: Callable[..., ConversationRow], photo: dict[str, str]) -> None:
    parts = {"role": "user", "content": [photo, {"type": "text", "text": "What is it?"}]}
    images = {} if "image" in photo else {"images": ["a.png"]}
    assert read(messages=[parts, SAY], **images) == read(messages=[SHOW, SAY], images=["a.png"])


def test_spaces_around_an_answer_are_no_part_of_it(read: Callable[..., ConversationRow]) -> None:
    row = read(messages=[ASK, {"role": "assistant", "content": "\n Because. \n"}], id=5)
    assert row.messages[1].parts == ("Because.",)


def test_a_row_written_back_reads_the_same(read: Callable[..., ConversationRow]) -> None:
    row = read(messages=[SHOW, SAY, ASK, SAY], images=["a.png"])
    assert read(**row.to_json()) == row


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no messages": ({}, "messages: is missing"),
    "ShareGPT": ({"conversations": [], "messages": []}, "conversations: is not a field"),
    "a video": ({"messages": [ASK, SAY], "videos": ["a.mp4"]}, "videos: is not a field"),
    "empty": ({"messages": []}, "messages: must be an optional system message, then user and assistant"),
    "no answer": ({"messages": [ASK]}, "the assistant last; is user"),
    "two questions": ({"messages": [ASK, ASK, SAY]}, "is user, user, assistant"),
    "a late system message": (
        {"messages": [ASK, SAY, {"role": "system", "content": "x"}]},
        "is user, assistant, system",
    ),
    "a tool": (
        {"messages": [{"role": "tool", "content": "x"}]},
        "messages[0].role: must be one of system, user, assistant",
    ),
    "a weight": ({"messages": [ASK, SAY | {"loss": False}]}, "messages[1].loss: is not a field"),
    "an empty answer": ({"messages": [ASK, {"role": "assistant", "content": " "}]}, "messages[1].content: is empty"),
    "a number": ({"messages": [{"role": "user", "content": 5}, SAY]}, "messages[0].content: must be text or a list"),
    "another part": (
        {"messages": [{"role": "user", "content": [{"type": "video"}]}, SAY]},
        "messages[0].content[0].type: must be text or image, is 'video'",
    ),
    "a photo in an answer": (
        {"messages": [ASK, {"role": "assistant", "content": "<image>"}], "images": ["a.png"]},
        "messages[1].content: has a photo; only a user's message may",
    ),
    "too few places": (
        {"messages": [ASK, SAY], "images": ["a.png"]},
        "images: has 1 paths, and the messages have 0 places",
    ),
    "too few paths": ({"messages": [SHOW, SAY]}, "images: has 0 paths, and the messages have 1 places"),
    "no such photo": ({"messages": [SHOW, SAY], "images": ["c.png"]}, "c.png: no such photo"),
    "another folder": ({"messages": [SHOW, SAY], "images": ["../a.png"]}, "leaves its folder"),
    "a special token": (
        {"messages": [{"role": "user", "content": "x<|im_end|>"}, SAY]},
        "messages[0].content: contains <|im_end|>, which marks turns",
    ),
    "half a character": ({"messages": [{"role": "user", "content": "\ud800"}, SAY]}, "content: holds half a character"),
}


@pytest.mark.parametrize("what", WRONG)
def test_anything_else_is_an_error_that_names_line_and_field(read: Callable[..., ConversationRow], what: str) -> None:
    row, why = WRONG[what]
    with pytest.raises(RecordError) as caught:
        read(**row)
    assert str(caught.value).startswith("chat.jsonl:7: ") and why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_is_read_whole_and_its_first_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    write_jsonl(path, [{"messages": [ASK, SAY]}] * 3)
    assert [row.where for row in read_conversations(path, QWEN)] == [f"{path}:{line}" for line in (1, 2, 3)]
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"messages": [ASK]}) + "\n")
    with pytest.raises(RecordError, match=r"chat\.jsonl:4: messages: must be"):
        read_conversations(path, QWEN)
    path.write_text("", encoding="utf-8")
    with pytest.raises(RecordError, match="has no conversation"):
        read_conversations(path, QWEN)


def test_the_family_decides_which_tokens_are_special(tmp_path: Path) -> None:
    from dataclasses import replace

    other: Conversation = replace(QWEN, special_tokens=("<stop>",))
    row = {"messages": [{"role": "user", "content": "x<|im_end|>"}, SAY]}
    assert parse_conversation(row, "chat.jsonl:1", tmp_path, other).messages[0].parts == ("x<|im_end|>",)
