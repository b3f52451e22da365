"""Photos in, predictions out: the one way from pixels to PredictedObject, in evaluation and in inference."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch

from bbu.data.chat_processor import ChatProcessor, ChatProcessorOutput
from bbu.data.collators import PackedDataCollator
from bbu.data.photo import Photo
from bbu.errors import UserError
from bbu.images import load_image
from bbu.models.postprocess import DUPLICATE_IOU, detect
from bbu.models.wrapper import DetectionVLM
from bbu.records import PredictedObject, PredictionRow, Row, resolve_image

# A photo's path → what is shown before it: worked examples, and other photos of its site.
Shown = Callable[[str], tuple[Sequence[Photo], Sequence[Photo]]]


class Predictor:
    """A model with the processor it was trained with.

    Args:
        batch_size: photos in a pack.
        top_k: most boxes a photo.
        duplicate_iou: overlap with a surer box above which one is left out; 1 keeps all.
        autocast: compute matrix products in this 16-bit dtype.
    """

    def __init__(
        self,
        model: DetectionVLM,
        processor: ChatProcessor,
        *,
        batch_size: int = 8,
        top_k: int = 100,
        duplicate_iou: float = DUPLICATE_IOU,
        autocast: torch.dtype | None = None,
    ) -> None:
        self.model, self.processor = model, processor
        self.batch_size, self.top_k, self.duplicate_iou, self.autocast = batch_size, top_k, duplicate_iou, autocast
        self.collator = PackedDataCollator(model.backbone.position_function())

    def predict_photos(
        self, photos: Sequence[Photo], teachers: Sequence[Photo] = (), shown: Shown | None = None
    ) -> list[list[PredictedObject]]:
        """Predictions for photos in memory, best first.

        Args:
            teachers: the same worked examples for all.
            shown: instead, what is shown with each photo.
        """
        training = self.model.training
        self.model.eval()
        results: list[list[PredictedObject]] = []
        try:
            for first in range(0, len(photos), self.batch_size):
                samples = [
                    self._prompt(photo, shown(photo.name) if shown else (teachers, ()))
                    for photo in photos[first : first + self.batch_size]
                ]
                with self._precision():
                    results += detect(
                        self.model,
                        self.collator(samples),
                        self.processor.tokenizer,
                        self.processor.end_token_id,
                        self.top_k,
                        self.duplicate_iou,
                    )
        finally:
            self.model.train(training)
        return results

    def _prompt(self, photo: Photo, shown: tuple[Sequence[Photo], Sequence[Photo]]) -> ChatProcessorOutput:
        teachers, context = shown
        return self.processor.process_photos(teachers, photo, context=context, with_answer=False)

    def _precision(self) -> contextlib.AbstractContextManager[object]:
        if self.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(next(self.model.parameters()).device.type, dtype=self.autocast)

    def predict_files(
        self, names: Sequence[str], image_root: str, teachers: Sequence[Photo] = (), shown: Shown | None = None
    ) -> Iterator[PredictionRow]:
        """One row a file, in order; a photo that cannot be read gives a row with its error. As predict_photos."""
        for first in range(0, len(names), self.batch_size):
            photos: list[Photo] = []
            errors: dict[str, str] = {}
            chunk = names[first : first + self.batch_size]
            for name in chunk:
                try:
                    photos.append(Photo(load_image(resolve_image(image_root, name)), name))
                except UserError as error:
                    errors[name] = str(error)
            found = self._predict_each(photos, teachers, shown, errors)
            for name in chunk:
                if name in errors:
                    yield PredictionRow((name,), error=errors[name])
                else:
                    photo, predictions = found[name]
                    yield PredictionRow((name,), *photo.image.size, tuple(predictions))

    def _predict_each(
        self, photos: list[Photo], teachers: Sequence[Photo], shown: Shown | None, errors: dict[str, str]
    ) -> dict[str, tuple[Photo, list[PredictedObject]]]:
        """Predict a batch; if one photo breaks it, one by one, so that only that photo is lost."""
        try:
            return dict(
                zip(
                    [p.name for p in photos],
                    zip(photos, self.predict_photos(photos, teachers, shown), strict=True),
                    strict=True,
                )
            )
        except UserError:
            found = {}
            for photo in photos:
                try:
                    found[photo.name] = (photo, self.predict_photos([photo], teachers, shown)[0])
                except UserError as error:
                    errors[photo.name] = str(error)
            return found


def teacher_photos(rows: Sequence[Row], image_root: str) -> list[Photo]:
    """Worked examples from annotated rows."""
    return [Photo(load_image(resolve_image(image_root, row.images[0])), row.images[0], row.objects) for row in rows]
