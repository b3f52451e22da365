"""Conversations as chat JSONL, the rows of data.replay: text and photos, no boxes. Read strictly, like records.

    {"messages": [{"role": "system" | "user" | "assistant", "content": text or parts}, …],
     "images"?: [path, …], "id"?: any}

A photo in a user's message is ``<image>`` in its text, or a part {"type": "image"}, and takes the next path of images;
a part {"type": "image", "image": path} brings its own. The other parts are {"type": "text", "text": str}. Paths are
relative to the file's folder. docs/data_schema.md has the rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bbu.errors import RecordError, UserError, shown
from bbu.families.conversation import Conversation
from bbu.families.prompts import ChatMessage
from bbu.images import photo_size
from bbu.jsonl import iter_json_lines
from bbu.records import FieldChecker, Row, resolve_image

PLACEHOLDER = "<image>"
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class ConversationRow:
    """One conversation: its messages, the last one the assistant's, and its photos in the order they are shown.

    ``where`` is file and line, for messages.
    """

    messages: tuple[ChatMessage, ...]
    photos: tuple[Row, ...]
    where: str

    def to_json(self) -> dict[str, Any]:
        """Its content as a row that reads back the same; where it stood is no part of it."""
        messages = [
            {
                "role": message.role,
                "content": [
                    {"type": "image"} if part is None else {"type": "text", "text": part} for part in message.parts
                ],
            }
            for message in self.messages
        ]
        return {"messages": messages, "images": [photo.images[0] for photo in self.photos]}


def read_conversations(path: str | Path, conversation: Conversation) -> list[ConversationRow]:
    """All conversations of a JSONL file. Only the headers of their photos are read.

    Args:
        conversation: the family's chat format, whose special tokens no text may contain.

    Raises:
        RecordError: the first row that breaks the contract, or whose photo cannot be read; or there is no row.
    """
    root = Path(path).parent
    rows = [parse_conversation(value, where, root, conversation) for where, value in iter_json_lines(path)]
    if not rows:
        raise RecordError(str(path), "file", "has no conversation; name a JSONL file with one in each line")
    return rows


def parse_conversation(value: Any, where: str, root: Path, conversation: Conversation) -> ConversationRow:
    """Check one decoded row.

    Args:
        root: folder that its image paths are relative to.

    Raises:
        RecordError: names ``where``, the field and the fix.
    """
    check = FieldChecker(where, "")
    check.keys(value, required=("messages",), optional=("images", "id"))
    listed = check.list(value.get("images", []), "images")
    names = [check.text(name, f"images[{index}]") for index, name in enumerate(listed)]
    messages, own = [], []
    for index, item in enumerate(check.list(value["messages"], "messages")):
        inner = FieldChecker(where, f"messages[{index}].")
        message, images = _parse_message(item, inner)
        _refuse_special_tokens(message, inner, conversation)
        messages.append(message)
        own += images
    _check_turns(messages, check)
    photos = _join(own, names, check)
    return ConversationRow(tuple(messages), tuple(_measure(name, root, check) for name in photos), where)


def _parse_message(value: Any, check: FieldChecker) -> tuple[ChatMessage, list[str | None]]:
    """A message, and for each of its photos the path it brings; None = the next one of images."""
    check.keys(value, required=("role", "content"))
    role, content = value["role"], value["content"]
    if role not in ROLES:
        check.fail("role", f"must be one of {', '.join(ROLES)}, is {shown(role)}")
    parts: list[str | None] = []
    images: list[str | None] = []
    for part in _parts(content, check):
        parts.append(part if isinstance(part, str) else None)
        images += [] if isinstance(part, str) else part
    if images and role != "user":
        check.fail("content", f"has a photo; only a user's message may show one, not the {role}'s")
    if role == "assistant":
        parts = ["".join(text or "" for text in parts).strip()]
    if not any(part is None or part.strip() for part in parts):
        check.fail("content", "is empty")
    return ChatMessage(role, tuple(part for part in parts if part != "")), images


def _parts(content: Any, check: FieldChecker) -> list[str | list[str | None]]:
    """Texts, and for each photo between them a list with the path it brings or None."""
    if isinstance(content, str):
        texts = check.string(content, "content").split(PLACEHOLDER)
        found: list[str | list[str | None]] = [texts[0]]
        for text in texts[1:]:
            found += [[None], text]
        return found
    if not isinstance(content, list):
        check.fail("content", f"must be text or a list of parts, is {shown(content)}")
    return [_part(part, FieldChecker(check.where, f"{check.prefix}content[{n}].")) for n, part in enumerate(content)]


def _part(value: Any, check: FieldChecker) -> str | list[str | None]:
    kind = value.get("type") if isinstance(value, dict) else None
    if kind == "text":
        check.keys(value, required=("type", "text"))
        return check.string(value["text"], "text")
    if kind == "image":
        check.keys(value, required=("type",), optional=("image",))
        return [check.text(value["image"], "image") if "image" in value else None]
    check.fail("type", f"must be text or image, is {shown(kind)}")


def _check_turns(messages: Sequence[ChatMessage], check: FieldChecker) -> None:
    """An optional system message, then user and assistant in turn, the assistant last."""
    roles = [message.role for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if not turns or turns != ["user", "assistant"] * (len(turns) // 2):
        check.fail(
            "messages",
            "must be an optional system message, then user and assistant in turn, the assistant last; is "
            f"{', '.join(roles) or 'empty'}",
        )


def _refuse_special_tokens(message: ChatMessage, check: FieldChecker, conversation: Conversation) -> None:
    for token in conversation.special_tokens:
        if any(token in part for part in message.parts if part is not None):
            check.fail("content", f"contains {token}, which marks turns and photos for the model; remove it")


def _join(own: Sequence[str | None], listed: Sequence[str], check: FieldChecker) -> list[str]:
    """The path of every photo in the order they are shown."""
    places = own.count(None)
    if places != len(listed):
        check.fail("images", f"has {len(listed)} paths, and the messages have {places} places for them ({PLACEHOLDER})")
    following = iter(listed)
    return [next(following) if name is None else name for name in own]


def _measure(name: str, root: Path, check: FieldChecker) -> Row:
    """A photo and its size as displayed."""
    try:
        return Row((name,), (), *photo_size(resolve_image(root, name)))
    except UserError as error:
        check.fail("images", str(error))
