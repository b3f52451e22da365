"""ChatProcessor: a few-shot sample and its photos → token ids, labels, answer spans, patches, boxes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bbu.config import DetectionConfig
from bbu.data.conversations import ConversationRow
from bbu.data.photo import Augment, Photo, open_photo
from bbu.errors import ImageError, SampleError
from bbu.families.conversation import Conversation
from bbu.families.photo_plan import PhotoPlan
from bbu.families.prompts import (
    ChatMessage,
    Message,
    PromptSpec,
    answer_text,
    build_messages,
    chat_messages,
    group_text,
    refuse_special_tokens,
    text_boxes,
    text_shapes,
)
from bbu.geometry import ImageGeometry, thicken, xyxy_to_cxcywh
from bbu.records import FewShotSample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORE = -100
MOST_CAPTIONS = 20_000  # size of the cache of caption ids; a full cache is cleared
Span = tuple[int, int]  # half-open range of token indices


@dataclass(frozen=True)
class GroundTruthObject:
    """A target of the student: description, (4,) cxcywh box in [0, 1], caption ids with the end token, weight."""

    desc: str
    box: tuple[float, float, float, float]
    caption_ids: tuple[int, ...]
    caption_weight: float = 1.0


@dataclass
class ChatProcessorOutput:
    """One sample as tensors.

    Args:
        input_ids: (L,) int64.
        labels: (L,) int64, -100 everywhere except in answers and their end tokens.
        pixel_values: (P, patch width) float32 patch rows of all photos: teachers, context, student.
        image_grid_thw: (I, 3) int64 patches of each photo.
        teacher_spans: tokens of each teacher's answer.
        student_span: tokens of the student's answer; None at inference, and in a conversation without a student.
        prompt_span: tokens that detection may attend to: the student's turn up to its answer. With context photos in
            that turn it starts at the student's own photo. None = a sample without detection: it has no targets, and
            is left out of detection altogether.
        photo_span: tokens of the student's photo, within prompt_span; None with it.
        ground_truth_objects: targets of the student's photo, in (y1, x1) order.
        geometry: maps between the student's photo and the model's input; None in a conversation without a student.
        name: the student's photo, or file and line of a conversation, for messages.
        image_keys: feature-cache key of each photo, a hash of its patches and their grid; None = its features are not
            cached; empty = all None.
        replay_spans: tokens of the answers of a conversation of data.replay.
        salt: 32 bits for whatever is drawn at random for this sample in a training step, e.g. denoising noise.
    """

    input_ids: torch.Tensor
    labels: torch.Tensor
    pixel_values: torch.Tensor
    image_grid_thw: torch.Tensor
    teacher_spans: list[Span]
    student_span: Span | None
    prompt_span: Span | None
    photo_span: Span | None
    ground_truth_objects: list[GroundTruthObject]
    geometry: ImageGeometry | None
    name: str
    image_keys: list[str | None] = field(default_factory=list)
    replay_spans: list[Span] = field(default_factory=list)
    salt: int = 0

    @property
    def detects(self) -> bool:
        """Whether the sample takes part in detection."""
        return self.photo_span is not None


class ChatProcessor:
    """Turns samples into model inputs, identically in training and inference.

    Args:
        tokenizer: with the conversation's special tokens.
        photo_plan: how photos become patches, made for the spec's resize policy.
        conversation: the family's chat format.
        spec: prompt wording, template, box convention and resize policy.
        image_root: folder that image paths are relative to.
        max_length: most tokens of a sample; a longer one is an error.
        detection: False = no sample takes part in detection, since the model has none.
        caption_max_tokens: most tokens of a caption, with its end token.
        caption_weights: description → weight of its caption in the loss; one that is not in it counts as the rarest.
            None = all weigh 1.
        name_photos: set ``image_keys`` for photos that augmentation left unchanged.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        photo_plan: PhotoPlan,
        conversation: Conversation,
        spec: PromptSpec,
        *,
        image_root: str = ".",
        max_length: int = 8192,
        detection: bool = True,
        caption_max_tokens: int = 24,
        caption_weights: Mapping[str, float] | None = None,
        name_photos: bool = False,
    ) -> None:
        self.tokenizer, self.photo_plan, self.conversation, self.spec = tokenizer, photo_plan, conversation, spec
        self.name_photos, self.detection = name_photos, detection
        self.image_root, self.max_length, self.caption_max_tokens = image_root, max_length, caption_max_tokens
        self.caption_weights = caption_weights or {}
        self._most_weight = max(self.caption_weights.values(), default=1.0)
        ids = tokenizer.get_vocab()
        self.image_token_id = ids[conversation.image_token]
        self.turn_start_id = ids[conversation.turn_start]
        self.end_token_id = ids[conversation.end]
        self.pad_token_id = ids[conversation.pad]
        self._before_image = len(self._encode(conversation.before_image))
        self._answer_header = self._encode(conversation.answer_header)
        self._captions: dict[str, tuple[int, ...]] = {}

    def process_sample(
        self, raw_sample: FewShotSample, augment: Augment | None = None, salt: int = 0
    ) -> ChatProcessorOutput:
        """A training sample, answers included.

        Args:
            augment: applied to the photos (teachers, context, student); None = they stay as they are.
            salt: see ChatProcessorOutput.

        Raises:
            SampleError: too long, a photo's size is not the record's, a record does not have exactly one photo, or it
                lacks what the sample is asked for.
            ImageError: a photo cannot be read.
        """
        group = raw_sample.answer == "group"
        context = [row if group else replace(row, objects=()) for row in raw_sample.context]  # shown without answers
        rows = (*raw_sample.teachers, *context, raw_sample.student)
        photos = [open_photo(self.image_root, row) for row in rows]
        seen = photos if augment is None else augment(photos)
        taught = len(raw_sample.teachers)
        output = self.process_photos(
            seen[:taught],
            seen[-1],
            context=seen[taught:-1],
            with_answer=True,
            answer=raw_sample.answer,
            text=raw_sample.text,
        )
        output.salt = salt
        if self.name_photos:  # a random view never comes again
            pairs = zip(output.image_keys, seen, photos, strict=True)
            output.image_keys = [key if after.image is before.image else None for key, after, before in pairs]
        return output

    def process_photos(
        self,
        teachers: Sequence[Photo],
        student: Photo,
        *,
        with_answer: bool,
        context: Sequence[Photo] = (),
        answer: str = "boxes",
        text: str = "",
    ) -> ChatProcessorOutput:
        """A sample from photos in memory; without an answer the conversation ends where the model's answer begins.

        Args:
            context: photos shown before the student's in the same turn; without answers unless the answer is group.
            answer: what is asked of the student, a key of bbu.families.prompts.ANSWERS.
            text: the answer, where it does not follow from the photos (a verdict).

        Raises:
            SampleError: too long, the photo lacks what is asked for, or the model is not trained to answer with it.
        """
        photos = [*teachers, *context, student]
        geometries = [self._plan(photo) for photo in photos]
        taught = [self._answer(photo, plan) for photo, plan in zip(teachers, geometries, strict=False)]
        turn = [*zip((*context, student), geometries[len(teachers) :], strict=True)]
        own = self._student_answer(answer, turn, text) if with_answer else None
        messages = self.messages(taught, own, len(context), answer)
        pixel_values, grid_thw = self._patchify(photos, geometries)
        input_ids = self._tokenize(messages, grid_thw, with_answer, student.name)
        spans = self._answer_spans(input_ids)
        _check_answers(spans, len(teachers) + with_answer, student.name)
        photo_span = self._student_photo(input_ids, grid_thw)
        prompt_start = photo_span[0] - self._before_image if context else self._turn_start(input_ids)
        detects = self.detection and student.annotated
        return ChatProcessorOutput(
            input_ids=input_ids,
            labels=_labels(input_ids, spans),
            pixel_values=pixel_values,
            image_grid_thw=grid_thw,
            teacher_spans=spans[: len(teachers)],
            student_span=spans[-1] if with_answer else None,
            prompt_span=(prompt_start, spans[-1][0] if with_answer else len(input_ids)) if detects else None,
            photo_span=photo_span if detects else None,
            ground_truth_objects=self._targets(student, geometries[-1]) if detects and with_answer else [],
            geometry=geometries[-1],
            name=student.name,
            image_keys=_keys(pixel_values, grid_thw) if self.name_photos else [],
        )

    def process_conversation(self, row: ConversationRow, image_root: str | Path) -> ChatProcessorOutput:
        """A training sample without detection: language is learned from every answer of a conversation.

        Args:
            image_root: folder that the row's image paths are relative to.

        Raises:
            SampleError: too long, or a photo's size has changed.
            ImageError: a photo cannot be read.
        """
        return self.process_messages(row.messages, [open_photo(image_root, photo) for photo in row.photos], row.where)

    def process_messages(
        self, messages: Sequence[ChatMessage], photos: Sequence[Photo], name: str
    ) -> ChatProcessorOutput:
        """As process_conversation, from photos in memory; ``name`` is for messages."""
        pixel_values, grid_thw = self._patchify(photos, [self._plan(photo) for photo in photos])
        input_ids = self._tokenize(chat_messages(messages, self.conversation), grid_thw, True, name)
        spans = self._answer_spans(input_ids)
        _check_answers(spans, sum(message.role == "assistant" for message in messages), name)
        return ChatProcessorOutput(
            input_ids=input_ids,
            labels=_labels(input_ids, spans),
            pixel_values=pixel_values,
            image_grid_thw=grid_thw,
            teacher_spans=[],
            student_span=None,
            prompt_span=None,
            photo_span=None,
            ground_truth_objects=[],
            geometry=None,
            name=name,
            image_keys=_keys(pixel_values, grid_thw) if self.name_photos else [],
            replay_spans=spans,
        )

    # ------------------------------------------------------------ photos

    def _patchify(
        self, photos: Sequence[Photo], geometries: Sequence[ImageGeometry]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(P, patch width) patch rows and (I, 3) grids of any number of photos, also none."""
        if not photos:
            return torch.zeros(0, self.photo_plan.patch_width), torch.zeros(0, 3, dtype=torch.long)
        return self.photo_plan.patchify([photo.image for photo in photos], geometries)

    def _plan(self, photo: Photo) -> ImageGeometry:
        try:
            return self.photo_plan.plan(*photo.image.size)
        except ValueError as error:
            raise ImageError(f"{photo.name}: {error}") from None

    # ------------------------------------------------------------ text

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _student_answer(self, answer: str, turn: Sequence[tuple[Photo, ImageGeometry]], text: str) -> str:
        """The answer of a turn with these photos, the student's last."""
        if answer == "group":
            return group_text([self._answer(*photo) for photo in turn])
        student, geometry = turn[-1]
        if answer == "boxes":
            return self._answer(student, geometry)
        own = text if answer == "verdict" else student.summary
        if not own:
            raise SampleError(f"{student.name}: has no {answer} to answer with")
        refuse_special_tokens(own, self.conversation.special_tokens, f"{student.name}: ", f"the {answer}")
        return own

    def _answer(self, photo: Photo, geometry: ImageGeometry) -> str:
        """The objects of a photo as JSON."""
        if not photo.annotated:
            raise SampleError(f'{photo.name}: is not annotated ("objects": null), so there is no answer to give')
        convention = self.spec.box_convention
        shapes = text_shapes(geometry, photo.objects, convention) if self.spec.geometry == "own" else None
        written = text_boxes(geometry, _boxes(photo), convention)
        answer = answer_text(written, [item.desc for item in photo.objects], shapes)
        refuse_special_tokens(answer, self.conversation.special_tokens, f"{photo.name}: ")
        return answer

    def messages(
        self,
        teacher_answers: Sequence[str],
        student_answer: str | None,
        context: int = 0,
        answer: str = "boxes",
    ) -> list[Message]:
        """The conversation as messages; see build_messages."""
        return build_messages(self.spec, self.conversation, teacher_answers, student_answer, context, answer)

    def text(self, messages: list[Message], *, with_answer: bool) -> str:
        """The conversation as text, with one image token for each photo."""
        rendered = self.tokenizer.apply_chat_template(
            messages, chat_template=self.spec.chat_template, tokenize=False, add_generation_prompt=not with_answer
        )
        return str(rendered)

    def _tokenize(self, messages: list[Message], grid_thw: torch.Tensor, with_answer: bool, name: str) -> torch.Tensor:
        """Conversation → (L,) ids; each photo's token is repeated to match its patch grid."""
        once = np.array(self._encode(self.text(messages, with_answer=with_answer)), dtype=np.int64)
        repeats = np.ones_like(once)
        repeats[once == self.image_token_id] = self.photo_plan.text_tokens(grid_thw.prod(-1)).numpy()
        ids = once.repeat(repeats)
        if len(ids) > self.max_length:
            raise SampleError(
                f"{name}: {len(ids)} tokens with {len(grid_thw)} photos is over data.max_length {self.max_length}; "
                "raise it, lower data.max_pixels or show fewer teachers and context photos"
            )
        return torch.from_numpy(ids)

    def _answer_spans(self, input_ids: torch.Tensor) -> list[Span]:
        """Tokens of every answer with its end token, without the header, found in the ids themselves."""
        ids, header = input_ids.numpy(), self._answer_header
        ends = np.flatnonzero(ids == self.end_token_id)
        spans = []
        for position in np.flatnonzero(ids == self.turn_start_id).tolist():
            start = position + len(header)
            following = ends[ends >= start]
            if ids[position:start].tolist() == header and len(following):
                spans.append((start, int(following[0]) + 1))
        return spans

    def _student_photo(self, input_ids: torch.Tensor, grid_thw: torch.Tensor) -> Span:
        """Tokens of the last photo, the student's own."""
        stop = int((input_ids == self.image_token_id).nonzero()[-1]) + 1
        return stop - int(self.photo_plan.text_tokens(grid_thw[-1].prod())), stop

    def _turn_start(self, input_ids: torch.Tensor) -> int:
        """First token of the student's turn."""
        return int((input_ids == self.turn_start_id).nonzero()[-2])

    def _targets(self, student: Photo, geometry: ImageGeometry) -> list[GroundTruthObject]:
        boxes = _boxes(student)
        thick = np.array([thicken(box, *student.image.size) for box in boxes.tolist()], dtype=np.float64).reshape(-1, 4)
        unit = geometry.boxes_to_unit(thick).clip(0, 1)
        order = sorted(range(len(unit)), key=lambda i: (unit[i][1], unit[i][0]))
        centred = xyxy_to_cxcywh(unit)
        return [
            GroundTruthObject(
                student.objects[i].desc,
                tuple(centred[i].tolist()),
                self._caption(student.objects[i].desc, student.name),
                self.caption_weights.get(student.objects[i].desc, self._most_weight),
            )
            for i in order
        ]

    def _caption(self, desc: str, name: str) -> tuple[int, ...]:
        ids = self._captions.get(desc)
        if ids is None:
            if len(self._captions) >= MOST_CAPTIONS:
                self._captions.clear()
            ids = self._captions[desc] = (*self._encode(desc), self.end_token_id)
        if len(ids) > self.caption_max_tokens:
            raise SampleError(
                f"{name}: description {desc!r} has {len(ids)} tokens with its end; "
                f"raise model.detection.caption_max_tokens ({self.caption_max_tokens})"
            )
        return ids


def _check_answers(spans: Sequence[Span], expected: int, name: str) -> None:
    if len(spans) != expected:
        raise SampleError(f"{name}: found {len(spans)} answers in the tokens, expected {expected}")


def _labels(input_ids: torch.Tensor, spans: Sequence[Span]) -> torch.Tensor:
    """(L,) the ids within spans, IGNORE elsewhere."""
    labels = torch.full_like(input_ids, IGNORE)
    for start, stop in spans:
        labels[start:stop] = input_ids[start:stop]
    return labels


def _boxes(photo: Photo) -> np.ndarray:
    """(n, 4) xyxy boxes of the objects, in pixels of the photo."""
    return np.array([item.box for item in photo.objects], dtype=np.float64).reshape(-1, 4)


def _keys(pixel_values: torch.Tensor, grid_thw: torch.Tensor) -> list[str | None]:
    """A hash of each photo's patches and their grid."""
    keys: list[str | None] = []
    for photo, grid in zip(pixel_values.split(grid_thw.prod(-1).tolist()), grid_thw.tolist(), strict=True):
        digest = hashlib.sha256(repr(grid).encode())
        digest.update(photo.contiguous().numpy())
        keys.append(digest.hexdigest())
    return keys


def detection_options(detection: DetectionConfig | None) -> dict[str, Any]:
    """What ChatProcessor has to know of a model's detection."""
    return {"detection": False} if detection is None else {"caption_max_tokens": detection.caption_max_tokens}
