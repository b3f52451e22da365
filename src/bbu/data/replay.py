"""Conversations that training mixes among its photos (data.replay), with their lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bbu.config import ReplayConfig
from bbu.data.conversations import ConversationRow, read_conversations
from bbu.errors import ConfigError, RecordError
from bbu.families.prompts import chat_messages

if TYPE_CHECKING:
    from bbu.data.chat_processor import ChatProcessor

BATCH = 4096  # conversations given to the tokenizer at a time, which shares them out over all cores


@dataclass(frozen=True)
class Replay:
    """Conversations and their share of the training samples.

    Args:
        image_root: folder that their image paths are relative to.
        tokens: (R,) int64 of each conversation, text and image tokens.
        patches: of each photo of each conversation.
    """

    rows: Sequence[ConversationRow]
    share: float
    image_root: Path
    tokens: np.ndarray
    patches: Sequence[Sequence[int]]


def load_replay(config: ReplayConfig, processor: ChatProcessor) -> Replay | None:
    """Read and measure the conversations of a config; None if it replays none.

    Raises:
        ConfigError: there is a share and no file.
        RecordError: the first row that breaks the contract, or is longer than data.max_length.
    """
    if not config.share:
        return None
    if not config.path:
        raise ConfigError("data.replay.path: name a JSONL file of conversations, or set data.replay.share=0")
    rows = read_conversations(config.path, processor.conversation)
    patches = [_patches(row, processor) for row in rows]
    image_tokens = [sum(map(int, map(processor.photo_plan.text_tokens, photos))) - len(photos) for photos in patches]
    tokens = _text_tokens(rows, processor) + np.array(image_tokens, dtype=np.int64)
    longest = int(tokens.argmax())
    if tokens[longest] > processor.max_length:
        raise RecordError(
            rows[longest].where,
            "messages",
            f"has {tokens[longest]} tokens with its photos, which is over data.max_length {processor.max_length}; "
            "raise it, or leave the conversation out",
        )
    return Replay(rows, config.share, Path(config.path).parent, tokens, patches)


def _text_tokens(rows: Sequence[ConversationRow], processor: ChatProcessor) -> np.ndarray:
    """(R,) tokens of each conversation with one token for each photo."""
    found: list[int] = []
    for start in range(0, len(rows), BATCH):
        batch = [chat_messages(row.messages, processor.conversation) for row in rows[start : start + BATCH]]
        texts = [processor.text(messages, with_answer=True) for messages in batch]
        found += map(len, processor.tokenizer(texts, add_special_tokens=False)["input_ids"])
    return np.array(found, dtype=np.int64)


def _patches(row: ConversationRow, processor: ChatProcessor) -> list[int]:
    plan = processor.photo_plan
    try:
        return [int(np.prod(plan.grid(plan.plan(photo.width, photo.height)))) for photo in row.photos]
    except ValueError as error:
        raise RecordError(row.where, "images", str(error)) from None
