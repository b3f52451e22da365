"""Inference: boxes, descriptions and scores for photos; the language model's own text for comparison."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from bbu.config import Config
from bbu.data.chat_processor import ChatProcessor, ChatProcessorOutput
from bbu.data.photo import Photo
from bbu.errors import CheckpointError, UserError
from bbu.evaluation.calibration import Calibration
from bbu.families.prompts import boxes_from_text, parse_answer, verdict_text
from bbu.images import load_image
from bbu.inference.answers import pass_probabilities, prompt_of, write
from bbu.inference.predictor import PredictOptions, Predictor, teacher_photos
from bbu.judging.verdicts import FAIL, PASS
from bbu.layers.attention import choose_attention_backend
from bbu.models.checkpoint import check_model, load_model, load_processor
from bbu.models.precision import compute_device, use_bf16
from bbu.models.vocabulary import choose_vocabulary
from bbu.models.wrapper import DetectionVLM
from bbu.records import PredictionRow, Row

__all__ = ["DetectionResult", "ImageLike", "Inference", "TextResult"]

ImageLike = Image.Image | str | Path


@dataclass(frozen=True)
class DetectionResult:
    """Predictions for one photo, best first; ``boxes, captions = result`` works.

    Args:
        boxes: (n, 4) xyxy in pixels of the photo as given (files: after the EXIF transpose).
        captions: n descriptions.
        scores: (n,) objectness × probability of the description, calibrated if the folder has a calibration.
        objectness: (n,) confidence in [0, 1] that there is an object, whatever its description.
    """

    boxes: np.ndarray
    captions: list[str]
    scores: np.ndarray
    objectness: np.ndarray

    def __iter__(self) -> Iterator[Any]:
        return iter((self.boxes, self.captions))


@dataclass(frozen=True)
class TextResult:
    """An answer that the language model generated as text: boxes and captions without scores.

    Args:
        boxes: (n, 4) xyxy in pixels of the photo.
        malformed: number of objects in the text that could not be parsed.
        tokens: number of generated tokens, end token included.
        finished: whether the model ended its answer before the token limit.
    """

    boxes: np.ndarray
    captions: list[str]
    text: str
    malformed: int
    tokens: int
    finished: bool


@dataclass(frozen=True)
class Summary:
    """A summary that the language model generated; ``finished``: it ended before the token limit."""

    text: str
    finished: bool


@dataclass(frozen=True)
class VerdictText:
    """A verdict on a group, as the language model wrote it.

    Args:
        text: two lines, see bbu.families.prompts.verdict_text; or anything else, which is malformed.
        finished: it ended before the token limit.
        pass_probability: of ``pass`` against ``fail``, in [0, 1].
    """

    text: str
    finished: bool
    pass_probability: float


class Inference:
    """A trained model folder, ready to predict.

    Args:
        folder: a ``model`` folder of a run, or one of its checkpoints.
        device: default CUDA if available, else the CPU.
        precision: auto, fp32 or bf16 (of matrix products).
        attention: attention backend, as in the config.
        calibrated: apply the folder's calibration.json, if it has one.
        descriptions: free, known (the folder's own list) or a file of them: docs/descriptions.md.
        options: settings of prediction; any PredictOptions field can also be given by name (``max_detections=20``).

    Raises:
        CheckpointError: the folder is incomplete or was changed after training.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        device: str | torch.device | None = None,
        precision: str = "auto",
        attention: str = "auto",
        calibrated: bool = True,
        descriptions: str = "free",
        options: PredictOptions | None = None,
        **changes: Any,
    ) -> None:
        self.folder = folder = Path(folder)
        place = torch.device(device) if device is not None else compute_device()
        bf16 = use_bf16(precision, place)
        check_model(folder)
        self.processor: ChatProcessor = load_processor(folder)
        self.model: DetectionVLM = load_model(folder).to(place)
        self.model.backbone.use_attention_backend(
            choose_attention_backend(attention, place, torch.bfloat16 if bf16 else torch.float32)
        )
        calibration = Calibration.load(folder) if calibrated else None
        own = {
            "autocast": torch.bfloat16 if bf16 else None,
            "calibration": calibration,
            "vocabulary": choose_vocabulary(descriptions, folder, self.processor),
        }
        self.predictor = Predictor(self.model, self.processor, options, **own | changes)

    @classmethod
    def as_configured(cls, folder: str | Path, config: Config) -> Inference:
        """A model with the settings of a run's config."""
        evaluation = config.evaluation
        return cls(
            folder,
            precision=config.training.precision,
            attention=config.model.attention,
            descriptions=evaluation.descriptions,
            batch_size=evaluation.batch_size,
            max_detections=evaluation.max_detections,
            nms_iou=evaluation.nms_iou,
        )

    def predict_detection(
        self,
        images: ImageLike | Sequence[ImageLike],
        prompt: str | None = None,
        teachers: Sequence[Row] = (),
        image_root: str = ".",
    ) -> DetectionResult | list[DetectionResult]:
        """Detect and describe the objects of one photo, or of many.

        Args:
            images: a photo (PIL or path), or a sequence of them; a sequence gives a list.
            prompt: the instruction; None, or the one the model was trained with. The model cannot follow any other, so
                others are refused.
            teachers: annotated rows shown as worked examples; their photos lie under ``image_root``.

        Raises:
            CheckpointError: not the prompt of training.
            ImageError: a photo cannot be read.
            UserError: the model was trained without a detection head.
        """
        self.check_detects()
        self._check_prompt(prompt)
        single = isinstance(images, Image.Image | str | Path)
        given: Sequence[ImageLike] = [images] if single else images  # type: ignore[assignment, list-item]
        photos = [_photo(image, number) for number, image in enumerate(given)]
        found = self.predictor.predict_photos(photos, teacher_photos(teachers, image_root))
        results = [
            DetectionResult(
                boxes=np.array([item.box for item in items], dtype=np.float64).reshape(-1, 4),
                captions=[item.desc for item in items],
                scores=np.array([item.score for item in items]),
                objectness=np.array([item.objectness for item in items]),
            )
            for items in found
        ]
        return results[0] if single else results

    def check_detects(self) -> None:
        """Refuse a model that predicts no boxes.

        Raises:
            UserError: it was trained without a detection head.
        """
        if self.model.config is None:
            raise UserError(
                f"{self.folder}: was trained without a detection head (model.detection: null); ask it for text, with "
                "bbu summarize or Inference.generate_text, or train one with detection"
            )

    def _check_prompt(self, prompt: str | None) -> None:
        trained = self.processor.spec.instruction
        if prompt is not None and prompt != trained:
            raise CheckpointError(
                f"prompt {prompt!r}: the model was trained with {trained!r}; leave it out or pass that"
            )

    def predict_rows(
        self, names: Sequence[str], image_root: str, teachers: Sequence[Row] = ()
    ) -> Iterator[PredictionRow]:
        """One prediction row for each file, in order; an unreadable file gives an error row.

        Raises:
            UserError: the model was trained without a detection head.
        """
        self.check_detects()
        yield from self.predictor.predict_files(names, image_root, teacher_photos(teachers, image_root))

    def generate_text(
        self,
        image: ImageLike,
        teachers: Sequence[Row] = (),
        image_root: str = ".",
        max_new_tokens: int = 1024,
    ) -> TextResult:
        """The language model's own answer, generated as text and parsed into boxes; for comparison."""
        photo = _photo(image, 0)
        sample = self.processor.process_photos(teacher_photos(teachers, image_root), photo, with_answer=False)
        return self.write_answer(sample, max_new_tokens=max_new_tokens)

    def write_answer(
        self, sample: ChatProcessorOutput, *, max_new_tokens: int = 1024, min_new_tokens: int = 0
    ) -> TextResult:
        """As ``generate_text``, for a prepared prompt. Greedy decoding with a KV cache.

        Args:
            min_new_tokens: the answer does not end earlier; for timing.
        """
        prompts = [prompt_of(sample)]
        (written,) = write(self.predictor, prompts, max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens)
        objects, malformed = parse_answer(written.text)
        numbers = np.array([box for box, _ in objects], dtype=np.float64).reshape(-1, 4)
        assert sample.geometry is not None  # made from a photo to predict
        boxes = boxes_from_text(sample.geometry, numbers, self.processor.spec.box_convention)
        labels = [label for _, label in objects]
        return TextResult(boxes, labels, written.text, malformed, written.tokens, written.finished)

    def write_summaries(self, samples: Sequence[ChatProcessorOutput], *, max_new_tokens: int = 512) -> list[Summary]:
        """Summaries of photos, from prompts that ask for them; one batch, each as if it were alone."""
        rows = write(self.predictor, [*map(prompt_of, samples)], max_new_tokens=max_new_tokens)
        return [Summary(row.text.strip(), row.finished) for row in rows]

    def summarize(self, images: ImageLike | Sequence[ImageLike], max_new_tokens: int = 512) -> str | list[str]:
        """The language model's summary of one photo, or of each of many.

        Raises:
            SampleError: the model was not trained to answer with a summary.
            ImageError: a photo cannot be read.
        """
        single = isinstance(images, Image.Image | str | Path)
        given: Sequence[ImageLike] = [images] if single else images  # type: ignore[assignment, list-item]
        photos = [_photo(image, number) for number, image in enumerate(given)]
        process, size = self.processor.process_photos, self.predictor.options.batch_size
        texts: list[str] = []
        for first in range(0, len(photos), size):
            pack = [process([], photo, with_answer=False, answer="summary") for photo in photos[first : first + size]]
            texts += [summary.text for summary in self.write_summaries(pack, max_new_tokens=max_new_tokens)]
        return texts[0] if single else texts

    def write_verdicts(self, groups: Sequence[Sequence[Photo]], *, max_new_tokens: int = 256) -> list[VerdictText]:
        """Verdicts on groups of photos; one batch, each as if it were alone.

        Raises:
            SampleError: the model was not trained to answer with a verdict, or a group's photos are too many.
        """
        if not groups:
            return []
        pairs = [(self._with_verdict(photos, PASS), self._with_verdict(photos, FAIL)) for photos in groups]
        chances = [chance for pair in pairs for chance in pass_probabilities(self.predictor, [pair])]
        texts = write(self.predictor, [prompt_of(pair[0]) for pair in pairs], max_new_tokens=max_new_tokens)
        return [
            VerdictText(found.text.strip(), found.finished, chance)
            for found, chance in zip(texts, chances, strict=True)
        ]

    def _with_verdict(self, photos: Sequence[Photo], verdict: str) -> ChatProcessorOutput:
        text = verdict_text(verdict, "?")
        return self.processor.process_photos(
            [], photos[-1], context=photos[:-1], with_answer=True, answer="verdict", text=text
        )


def _photo(image: ImageLike, number: int) -> Photo:
    if isinstance(image, Image.Image):
        return Photo(image.convert("RGB"), f"image {number}")
    return Photo(load_image(image), str(image))
