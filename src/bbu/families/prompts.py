"""The only builder of conversations, for both training and inference.

system → (user with a photo → assistant JSON) for every teacher → user with the student's photo, preceded by context
photos if there are any → the assistant's answer, see ANSWERS. A PromptSpec holds the wording and all else that an
answer depends on; it is stored in the checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from bbu.errors import SampleError
from bbu.families.conversation import Conversation
from bbu.geometry import ImageGeometry, enclosing_box
from bbu.records import GEOMETRIES, ObjectRow
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

# What a student can be asked for: its objects as JSON, a summary of the photo as text, as JSON the objects of each of
# several photos, or a verdict on these. The instructions of the last three are absent from models that are trained
# without them.
ANSWERS = ("boxes", "summary", "group", "verdict")
ON_GROUPS = ("group", "verdict")  # answers about all photos of the turn
SUMMARY_WORDING = {"zh": "请用一段文字概括这张照片。", "en": "Summarise the photo in words."}
GROUP_WORDING = {
    "zh": (
        "这些照片来自同一站点。请找出每张照片中的所有部件，以JSON数组输出，每张照片一项："
        "photo是照片的序号，objects是其中每个部件的bbox_2d和label。"
    ),
    "en": (
        "These photos show the same site. Find all parts in each. Answer with a JSON array, one entry for each photo: "
        "photo, its number, and objects, an array of bbox_2d and label."
    ),
}
VERDICT_WORDING = {
    "zh": (
        "这些照片来自同一站点。请判断该站点是否合格：第一行写Verdict: pass（合格）或Verdict: fail（不合格），"
        "第二行写Reason: 和理由。"
    ),
    "en": (
        "These photos show the same site. Does it pass? Answer in two lines: Verdict: pass or Verdict: fail, then "
        "Reason: and why."
    ),
}
VERDICT_LINES = re.compile(r"Verdict: (pass|fail)\nReason: (\S[^\n]*)")
OWN_GEOMETRY = {"zh": "bbox_2d、poly或line", "en": "bbox_2d, poly or line"}  # what objects have in place of bbox_2d

# Precedes the instruction in a turn with context photos; absent from models that are trained without them.
CONTEXT_NOTES = {
    "zh": "前面的照片来自同一站点，仅供参考；只回答最后一张照片。",
    "en": "The earlier photos of this turn show the same site, for reference; answer for the last photo only. ",
}

LARGEST = 1e6  # coordinates must be smaller; infinities and endless digits are malformed

Message = dict[str, Any]
Shape = tuple[str, list[int]]  # name of a geometry and its numbers, as an answer has them


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
        summary_instruction: asks for a summary; "" = trained without.
        group_instruction: asks for the objects of each photo of the turn; "" = trained without.
        verdict_instruction: asks for a verdict on the photos of the turn; "" = trained without.
        geometry: what answers give of an object: "box", or "own", its polygon or line where it has one; "" = box.
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
    summary_instruction: str = ""
    group_instruction: str = ""
    verdict_instruction: str = ""
    geometry: str = ""

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
        answers: Collection[str] = ("boxes",),
        own_geometry: bool = False,
    ) -> PromptSpec:
        """The shipped wording in a language, zh or en.

        Args:
            context: with the note on context photos.
            answers: keys of ANSWERS.
            own_geometry: polygons and lines are written as such.
        """
        system, instruction = WORDING[language]
        group = GROUP_WORDING[language]
        if own_geometry:
            instruction, group = (text.replace("bbox_2d", OWN_GEOMETRY[language]) for text in (instruction, group))
        return cls(
            language,
            system,
            instruction,
            conversation.template,
            conversation.box_convention,
            min_pixels,
            max_pixels,
            context_note=CONTEXT_NOTES[language] if context else "",
            tiles=tiles,
            summary_instruction=SUMMARY_WORDING[language] if "summary" in answers else "",
            group_instruction=group if "group" in answers else "",
            verdict_instruction=VERDICT_WORDING[language] if "verdict" in answers else "",
            geometry="own" if own_geometry else "",
        )

    def to_json(self) -> dict[str, Any]:
        """What is not used is left out, which keeps the hash of checkpoints from before it was there."""
        unused = [item.name for item in fields(self) if item.default == "" and not getattr(self, item.name)]
        return {name: value for name, value in asdict(self).items() if name not in unused}

    def asking_for(self, answer: str) -> str:
        """The instruction that asks for an answer, a key of ANSWERS.

        Raises:
            SampleError: the model is not trained with any.
        """
        instruction = self.instruction if answer == "boxes" else getattr(self, f"{answer}_instruction")
        if not instruction:
            raise SampleError(
                f"the model was not trained to answer with a {answer}; train it with data.answers.{answer} above 0"
            )
        return str(instruction)

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


def text_unit(geometry: ImageGeometry, convention: str) -> float:
    """A unit of an answer's coordinates, in displayed pixels, along the coarser axis."""
    x1, y1, x2, y2 = boxes_from_text(geometry, np.array([[0, 0, 1, 1]]), convention)[0].tolist()
    return max(x2 - x1, y2 - y1)


def text_shapes(geometry: ImageGeometry, objects: Sequence[ObjectRow], convention: str) -> list[Shape]:
    """Name and numbers of each object's own geometry, as written in an answer; objects are in displayed pixels."""
    shapes = []
    for item in objects:
        points = np.array(item.points, dtype=np.float64).reshape(-1, 2)
        corners = text_boxes(geometry, np.concatenate([points, points], axis=1), convention)  # points as boxes
        shapes.append((item.kind, corners[:, :2].flatten().tolist()))
    return shapes


def answer_text(boxes: np.ndarray, descriptions: Sequence[str], shapes: Sequence[Shape] | None = None) -> str:
    """The assistant's JSON for (n, 4) boxes as written in text, in (y1, x1) order; no objects = ``[]``.

    Args:
        shapes: written in place of the boxes; see text_shapes.
    """
    order = sorted(range(len(descriptions)), key=lambda i: (boxes[i][1], boxes[i][0], boxes[i][3], boxes[i][2]))
    written = shapes if shapes is not None else [("bbox_2d", [int(v) for v in box]) for box in boxes]
    objects = [{written[i][0]: written[i][1], "label": descriptions[i]} for i in order]
    return json.dumps(objects, ensure_ascii=False)


def group_text(answers: Sequence[str]) -> str:
    """The assistant's JSON for the photos of a turn, from the JSON of each."""
    photos = (f'{{"photo": {number}, "objects": {answer}}}' for number, answer in enumerate(answers, start=1))
    return f"[{', '.join(photos)}]"


def parse_answer(text: str) -> tuple[list[tuple[list[float], str]], int]:
    """Parse boxes and labels of a generated answer, tolerating malformed text; of polygons and lines, their boxes.

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
        box, label = _box_of(value), value.get("label")
        if box is not None and isinstance(label, str) and label:
            objects.append((box, label))
        else:
            malformed += 1
        position = text.find("{", end)
    return objects, malformed


def _box_of(value: Mapping[str, Any]) -> list[float] | None:
    """The enclosing box of a parsed object's one geometry; None = it is malformed."""
    kinds = [kind for kind in GEOMETRIES if kind in value]
    points = value[kinds[0]] if len(kinds) == 1 else None
    if not isinstance(points, list) or not all(type(v) in (int, float) and abs(v) < LARGEST for v in points):
        return None
    if kinds == ["bbox_2d"]:
        fits = len(points) == 4 and points[0] < points[2] and points[1] < points[3]
        return [float(v) for v in points] if fits else None
    if len(points) < GEOMETRIES[kinds[0]] or len(points) % 2:
        return None
    return [float(v) for v in enclosing_box(points)]


def parse_group(text: str, photos: int) -> tuple[list[list[tuple[list[float], str]]], int]:
    """Parse a generated answer for several photos, tolerating malformed text.

    Returns:
        The well-formed objects of each photo, and the number of malformed or truncated objects and of entries for no
        photo of the turn.
    """
    found: list[list[tuple[list[float], str]]] = [[] for _ in range(photos)]
    malformed = 0
    starts = [*re.finditer(r'\{\s*"photo"\s*:\s*(\d{1,6})', text)]
    ends = [*(start.start() for start in starts[1:]), len(text)]
    for start, end in zip(starts, ends, strict=False):
        objects, bad = parse_answer(text[start.end() : end])
        number = int(start[1])
        if 1 <= number <= photos:
            found[number - 1] += objects
            malformed += bad
        else:
            malformed += 1
    return found, malformed


def read_answer(text: str) -> list[tuple[list[float], str]]:
    """Boxes and labels of an answer that this module has written, also those of lines without width or height.

    Raises:
        ValueError, KeyError: it is another text.
    """
    found = []
    for value in json.loads(text):
        kind = next(kind for kind in GEOMETRIES if kind in value)
        points = value[kind]
        found.append(([float(v) for v in (points if kind == "bbox_2d" else enclosing_box(points))], value["label"]))
    return found


def verdict_text(verdict: str, reason: str) -> str:
    """The assistant's verdict, ``pass`` or ``fail``, and its reason in one line."""
    return f"Verdict: {verdict}\nReason: {reason}"


def parse_verdict(text: str) -> tuple[str, str] | None:
    """Verdict and reason of a generated answer; None = it does not have the two lines of verdict_text, and no other."""
    found = VERDICT_LINES.fullmatch(text.strip())
    return (found[1], found[2].strip()) if found else None


def build_messages(
    spec: PromptSpec,
    conversation: Conversation,
    teacher_answers: Sequence[str],
    student_answer: str | None,
    context_photos: int = 0,
    answer: str = "boxes",
) -> list[Message]:
    """The conversation as chat messages; teachers precede the student.

    Args:
        student_answer: None at inference: the conversation ends before the model's answer.
        context_photos: photos in the student's turn before the student's own.
        answer: what is asked of the student, a key of ANSWERS; of teachers, boxes.

    Raises:
        SampleError: an answer contains a special token, or there are context photos or the student is asked for an
            answer and the model was trained without any.
    """
    system_turn = not conversation.system_in_first_turn
    messages: list[Message] = [{"role": "system", "content": spec.system}] if system_turn else []
    answers = [*teacher_answers, student_answer]
    for turn, text in enumerate(answers):
        opening = "" if system_turn or turn else f"{spec.system}\n"
        last = turn == len(answers) - 1
        messages.append(_question(spec, opening, context_photos if last else 0, answer if last else "boxes"))
        if text is not None:
            refuse_special_tokens(text, conversation.special_tokens)
            messages.append({"role": "assistant", "content": text})
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


def _question(spec: PromptSpec, opening: str, context_photos: int, answer: str) -> Message:
    asked, noted = spec.asking_for(answer), context_photos and answer not in ON_GROUPS
    if noted and not spec.context_note:
        raise SampleError(
            f"{context_photos} context photos: the model was not trained with any; train it with "
            "data.episodes.context_photos, or show none"
        )
    text = opening + (spec.context_note if noted else "") + asked
    return {"role": "user", "content": [{"type": "image"}] * (context_photos + 1) + [{"type": "text", "text": text}]}


def refuse_special_tokens(
    answer: str, special_tokens: Iterable[str], where: str = "", what: str = "a description"
) -> None:
    """Answers must not contain tokens that end a turn or stand for a photo.

    Args:
        where: prefix of the message, photo and colon.
        what: holds the token.

    Raises:
        SampleError: an answer does; the message names the token.
    """
    found = next((token for token in special_tokens if token in answer), None)
    if found:
        raise SampleError(f"{where}{what} contains {found}, which marks turns in the conversation; remove it")
