"""The only builder of conversations, for both training and inference.

system → (user with a photo → assistant JSON) for every teacher → user with the student's photo, preceded by context
photos if there are any → assistant JSON. A PromptSpec holds the wording and all else that an answer depends on; it is
stored in the checkpoint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from bbu.errors import SampleError
from bbu.families.conversation import Conversation
from bbu.geometry import ImageGeometry
from bbu.tiles import Tiles

WORDING = {
    "zh": (
        "你是质检助手，负责在照片中找出每个部件并描述其状态。",
        "请找出照片中的所有部件，按从上到下、从左到右的顺序，以JSON数组输出每个部件的bbox_2d和label。",
    ),
    "en": (
        "You are an inspection assistant. You find every part in a photo and describe its state.",
        "Find all parts in the photo. Answer with a JSON array of bbox_2d and label, top to bottom, left to right.",
    ),
}

# Precedes the instruction in a turn with context photos; absent from models that are trained without them.
CONTEXT_NOTES = {
    "zh": "前面的照片来自同一站点，仅供参考；只回答最后一张照片。",
    "en": "The earlier photos of this turn show the same site, for reference; answer for the last photo only. ",
}

LARGEST = 1e6  # coordinates must be smaller; infinities and endless digits are malformed

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ChatMessage:
    """A message of a conversation with no task of ours: role, and texts with None wherever a photo is shown."""

    role: str
    parts: tuple[str | None, ...]


@dataclass(frozen=True)
class PromptSpec:
    """Everything that a prompt and its answer depend on besides the photo.

    Args:
        box_convention: how boxes are written as text, see Conversation.
        context_note: precedes the instruction in turns with context photos; "" = trained without context photos.
        tiles: how photos were cut for training, as Tiles.parse reads it; "" = they were not.
    """

    language: str
    system: str
    instruction: str
    chat_template: str
    box_convention: str
    min_pixels: int
    max_pixels: int
    context_note: str = ""
    tiles: str = ""

    @classmethod
    def create(
        cls,
        language: str,
        conversation: Conversation,
        min_pixels: int,
        max_pixels: int,
        *,
        context: bool = False,
        tiles: str = "",
    ) -> PromptSpec:
        """The shipped wording in a language, zh or en; with ``context`` including the note on context photos."""
        system, instruction = WORDING[language]
        template, boxes = conversation.template, conversation.box_convention
        note = CONTEXT_NOTES[language] if context else ""
        return cls(language, system, instruction, template, boxes, min_pixels, max_pixels, note, tiles)

    def to_json(self) -> dict[str, Any]:
        facts = asdict(self)
        for name in ("context_note", "tiles"):
            if not facts[name]:
                del facts[name]  # keeps the hash of checkpoints without context photos or tiles
        return facts

    @property
    def tiling(self) -> Tiles | None:
        """``tiles``, parsed."""
        return Tiles.parse(self.tiles) if self.tiles else None

    @property
    def hash(self) -> str:
        """SHA-256 of the whole specification."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def text_boxes(geometry: ImageGeometry, boxes: np.ndarray, convention: str) -> np.ndarray:
    """(n, 4) xyxy in displayed pixels → (n, 4) integers as written in an answer."""
    if convention == "model_pixels":
        scaled = geometry.boxes_to_model(boxes)
    elif convention == "norm1000":
        scaled = geometry.boxes_to_unit(boxes) * 1000
    else:
        raise ValueError(f"unknown box convention {convention!r}")
    return np.rint(scaled).astype(np.int64)


def boxes_from_text(geometry: ImageGeometry, boxes: np.ndarray, convention: str) -> np.ndarray:
    """(n, 4) numbers read from an answer → (n, 4) xyxy in displayed pixels."""
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    if convention == "model_pixels":
        return geometry.boxes_from_model(boxes)
    return geometry.boxes_from_unit(boxes / 1000)


def answer_text(boxes: np.ndarray, descriptions: Sequence[str]) -> str:
    """The assistant's JSON for (n, 4) boxes as written in text, in (y1, x1) order; no objects = ``[]``."""
    order = sorted(range(len(descriptions)), key=lambda i: (boxes[i][1], boxes[i][0], boxes[i][3], boxes[i][2]))
    objects = [{"bbox_2d": [int(v) for v in boxes[i]], "label": descriptions[i]} for i in order]
    return json.dumps(objects, ensure_ascii=False)


def parse_answer(text: str) -> tuple[list[tuple[list[float], str]], int]:
    """Parse boxes and labels of a generated answer, tolerating malformed text.

    Returns:
        The well-formed objects, and the number of malformed or truncated ones.
    """
    objects: list[tuple[list[float], str]] = []
    malformed = 0
    decoder = json.JSONDecoder()
    position = text.find("{")
    while position >= 0:
        try:
            value, end = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            malformed += 1
            position = text.find("{", position + 1)
            continue
        box = value.get("bbox_2d")
        label = value.get("label")
        numbers = (
            isinstance(box, list) and len(box) == 4 and all(type(v) in (int, float) and abs(v) < LARGEST for v in box)
        )
        if numbers and isinstance(label, str) and label and box[0] < box[2] and box[1] < box[3]:
            objects.append(([float(v) for v in box], label))
        else:
            malformed += 1
        position = text.find("{", end)
    return objects, malformed


def build_messages(
    spec: PromptSpec,
    conversation: Conversation,
    teacher_answers: Sequence[str],
    student_answer: str | None,
    context_photos: int = 0,
) -> list[Message]:
    """The conversation as chat messages; teachers precede the student.

    Args:
        student_answer: None at inference: the conversation ends before the model's answer.
        context_photos: photos in the student's turn before the student's own.

    Raises:
        SampleError: an answer contains a special token, or there are context photos and the model was trained
            without any.
    """
    system_turn = not conversation.system_in_first_turn
    messages: list[Message] = [{"role": "system", "content": spec.system}] if system_turn else []
    answers = [*teacher_answers, student_answer]
    for turn, answer in enumerate(answers):
        opening = "" if system_turn or turn else f"{spec.system}\n"
        messages.append(_question(spec, opening, context_photos if turn == len(answers) - 1 else 0))
        if answer is not None:
            refuse_special_tokens(answer, conversation.special_tokens)
            messages.append({"role": "assistant", "content": answer})
    return messages


def chat_messages(messages: Sequence[ChatMessage], conversation: Conversation) -> list[Message]:
    """Any conversation as chat messages, with the system prompt where the family has it."""
    first = messages[0]
    if conversation.system_in_first_turn and first.role == "system":
        user = messages[1]
        messages = [ChatMessage(user.role, (*first.parts, "\n", *user.parts)), *messages[2:]]
    return [{"role": message.role, "content": _content(message.parts)} for message in messages]


def _content(parts: Sequence[str | None]) -> str | list[dict[str, str]]:
    if None not in parts:
        return "".join(part for part in parts if part is not None)
    return [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]


def _question(spec: PromptSpec, opening: str, context_photos: int) -> Message:
    if context_photos and not spec.context_note:
        raise SampleError(
            f"{context_photos} context photos: the model was not trained with any; train it with "
            "data.episodes.context_photos, or show none"
        )
    text = opening + (spec.context_note if context_photos else "") + spec.instruction
    return {"role": "user", "content": [{"type": "image"}] * (context_photos + 1) + [{"type": "text", "text": text}]}


def refuse_special_tokens(answer: str, special_tokens: Iterable[str], where: str = "") -> None:
    """Answers must not contain tokens that end a turn or stand for a photo.

    Args:
        where: prefix of the message, photo and colon.

    Raises:
        SampleError: an answer does; the message names the token.
    """
    found = next((token for token in special_tokens if token in answer), None)
    if found:
        raise SampleError(f"{where}a description contains {found}, which marks turns in the conversation; remove it")
