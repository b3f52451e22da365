"""The only path from pixels to PredictedObject, for evaluation and inference."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch

from bbu.data.chat_processor import ChatProcessor, ChatProcessorOutput
from bbu.data.collators import PackedDataCollator
from bbu.data.photo import Photo
from bbu.errors import UserError
from bbu.evaluation.calibration import Calibration
from bbu.images import load_image
from bbu.inference.postprocess import NMS_IOU, detect
from bbu.inference.tiling import View, merge_views, views_of
from bbu.models.vocabulary import DescriptionVocabulary
from bbu.models.wrapper import DetectionVLM
from bbu.records import PredictedObject, PredictionRow, Row, resolve_image
from bbu.taxonomy import MirrorRules
from bbu.tiles import Size, Tiles

T = TypeVar("T")
R = TypeVar("R")

# A photo's path → the photos shown before it: worked examples (teachers) and context photos of its site.
Shown = Callable[[str], tuple[Sequence[Photo], Sequence[Photo]]]


@dataclass(frozen=True)
class PredictOptions:
    """Settings of prediction.

    Args:
        batch_size: photos (or tiles) in a pack.
        max_detections: most boxes for each photo.
        nms_iou: a box whose IoU with a higher-ranked one exceeds this is suppressed; 1 keeps all.
        autocast: compute matrix products in this 16-bit dtype; None = float32.
        vocabulary: the only allowed descriptions; None = free captions.
        tiles: also predict overlapping tiles of each photo; None = those that the model was trained on, if any.
        flips: also predict everything mirrored left to right, where ``mirror`` allows it.
        mirror: how mirroring changes descriptions that name a side.
        calibration: applied to the final scores.
        min_score: predictions with a lower final score are dropped.
    """

    batch_size: int = 8
    max_detections: int = 100
    nms_iou: float = NMS_IOU
    autocast: torch.dtype | None = None
    vocabulary: DescriptionVocabulary | None = None
    tiles: Tiles | None = None
    flips: bool = False
    mirror: MirrorRules = field(default_factory=MirrorRules)
    calibration: Calibration | None = None
    min_score: float = 0.0


class Predictor:
    """A model with the processor it was trained with.

    Args:
        options: settings; any field can also be given by name.
    """

    def __init__(
        self, model: DetectionVLM, processor: ChatProcessor, options: PredictOptions | None = None, **changes: Any
    ) -> None:
        self.model, self.processor = model, processor
        self.options = replace(options or PredictOptions(), **changes)
        self.collator = PackedDataCollator(model.backbone.position_function())

    # ------------------------------------------------------------ photos in memory

    def predict_photos(
        self, photos: Sequence[Photo], teachers: Sequence[Photo] = (), shown: Shown | None = None
    ) -> list[list[PredictedObject]]:
        """Predictions for photos in memory, best first.

        Args:
            teachers: the same worked examples for all.
            shown: instead, the teachers and context of each photo.
        """
        views = [self.views(photo.image.size) for photo in photos]
        pairs = [(photo, view) for photo, some in zip(photos, views, strict=True) for view in some]
        found: list[list[PredictedObject]] = []
        for first in range(0, len(pairs), self.options.batch_size):
            pack = pairs[first : first + self.options.batch_size]
            found += self.detect([prepare(self.processor, *pair, teachers, shown) for pair in pack])
        results = iter(found)
        return [self.merge(some, [next(results) for _ in some]) for some in views]

    def views(self, size: Size) -> list[View]:
        """The views of a photo of this width and height; the whole photo first."""
        options, spec = self.options, self.processor.spec
        flips = options.flips and options.mirror.allows("horizontal", ())
        return views_of(size, options.tiles or spec.tiling, flips, spec.max_pixels)

    def detect(self, samples: Sequence[ChatProcessorOutput]) -> list[list[PredictedObject]]:
        """One pack through the model → the detections of each view, in pixels of the view, best first."""
        options, training = self.options, self.model.training
        if training:  # setting the mode visits every module
            self.model.eval()
        try:
            with self.precision():
                return detect(
                    self.model,
                    self.collator(samples),
                    self.processor.tokenizer,
                    self.processor.end_token_id,
                    options.max_detections,
                    options.nms_iou,
                    options.vocabulary,
                )
        finally:
            if training:
                self.model.train()

    def merge(self, views: Sequence[View], found: Sequence[Sequence[PredictedObject]]) -> list[PredictedObject]:
        """Merge the detections of a photo's views, in pixels of the photo, with final scores, best first."""
        options = self.options
        items = merge_views(views, found, options.mirror)
        if len(views) > 1:
            best = sorted(range(len(items)), key=lambda index: -items[index].objectness)[: options.max_detections]
            items = [items[index] for index in sorted(best)]
        if options.calibration is not None:
            scores = options.calibration.apply([item.score for item in items]).tolist()
            items = [replace(item, score=score) for item, score in zip(items, scores, strict=True)]
        return [item for item in items if item.score >= options.min_score]

    def precision(self) -> contextlib.AbstractContextManager[object]:
        """Context in which matrix products use ``options.autocast``."""
        if self.options.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(next(self.model.parameters()).device.type, dtype=self.options.autocast)

    # ------------------------------------------------------------ files

    def predict_files(
        self, names: Sequence[str], image_root: str, teachers: Sequence[Photo] = (), shown: Shown | None = None
    ) -> Iterator[PredictionRow]:
        """As predict_photos, from files: one row for each, in order; an unreadable photo gives an error row."""
        for first in range(0, len(names), self.options.batch_size):
            photos: list[Photo] = []
            errors: dict[str, str] = {}
            chunk = names[first : first + self.options.batch_size]
            for name in chunk:
                try:
                    photos.append(Photo(load_image(resolve_image(image_root, name)), name))
                except UserError as error:
                    errors[name] = str(error)
            found = each_or_error(photos, lambda some: self.predict_photos(some, teachers, shown))
            read = {photo.name: (photo, items) for photo, items in zip(photos, found, strict=True)}
            for name in chunk:
                if name in errors:
                    yield PredictionRow((name,), error=errors[name])
                    continue
                photo, items = read[name]
                if isinstance(items, str):
                    yield PredictionRow((name,), error=items)
                else:
                    yield PredictionRow((name,), *photo.image.size, tuple(items))


def each_or_error(items: Sequence[T], work: Callable[[Sequence[T]], Sequence[R]]) -> list[R | str]:
    """Process a batch; if an item fails, process them one by one, so that only its own result is an error message."""
    try:
        return list(work(items)) if items else []
    except UserError as error:
        if len(items) == 1:
            return [str(error)]
        return [found for item in items for found in each_or_error([item], work)]


def prepare(
    processor: ChatProcessor, photo: Photo, view: View, teachers: Sequence[Photo] = (), shown: Shown | None = None
) -> ChatProcessorOutput:
    """One view of a photo as a sample for the model.

    Raises:
        SampleError, ImageError: the view cannot be turned into one.
    """
    examples, context = shown(photo.name) if shown else (teachers, ())
    student = Photo(view.of(photo.image), photo.name)
    return processor.process_photos(examples, student, context=context, with_answer=False)


def teacher_photos(rows: Sequence[Row], image_root: str) -> list[Photo]:
    """Worked examples from annotated rows."""
    return [Photo(load_image(resolve_image(image_root, row.images[0])), row.images[0], row.objects) for row in rows]
