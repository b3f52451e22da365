"""Model output → predictions: boxes in displayed pixels, captions, scores, a confidence per description level.

Shapes: C captions, De descriptions of a vocabulary, L tokens of one sample or caption, Lv levels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torchvision.ops import nms

from bbu.config import EvaluationConfig
from bbu.data.collators import unpad
from bbu.geometry import cxcywh_to_xyxy
from bbu.models.caption_decoder import CaptionResult
from bbu.models.vocabulary import DescriptionVocabulary, level_ends
from bbu.models.wrapper import DetectionOutput, DetectionVLM
from bbu.records import PredictedObject
from bbu.taxonomy import split_path

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NMS_IOU = EvaluationConfig.nms_iou  # the default: best AP on the demo's val split among 0.5, 0.6, … 1
MODEL_KEYS = (
    "input_ids", "pixel_values", "image_grid_thw", "cu_seqlens", "position_ids", "max_seqlen", "student_images",
    "prompt_spans", "photo_spans", "image_keys",
)  # fmt: skip


def model_inputs(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The arguments of the model's forward from a batch, on its device."""
    packed = unpad(dict(batch))
    return {key: packed[key].to(device) if isinstance(packed[key], torch.Tensor) else packed[key] for key in MODEL_KEYS}


@dataclass(frozen=True)
class Captions:
    """Captions of C boxes.

    Args:
        log_probs: (C,) log p of each caption as free text. Scores use it with a vocabulary too: where no description
            fits the box, the probability of the best one within the vocabulary would mean little.
        levels: probability of the first level, the first two, …; within the vocabulary where there is one.
    """

    texts: list[str]
    log_probs: torch.Tensor
    levels: list[tuple[float, ...]]


def free_captions(decoded: CaptionResult, tokenizer: PreTrainedTokenizerBase, end_token_id: int) -> Captions:
    """Decoded captions. A level is as probable as the tokens up to the one that ends it."""
    all_ids = [tuple(_until_end(ids, end_token_id)) for ids in decoded.token_ids.tolist()]
    read = {ids: level_ends(ids, tokenizer) for ids in set(all_ids)}  # few differ
    so_far = decoded.cumulative_CL.double().exp().clamp(max=1).tolist()
    levels = [
        tuple(row[min(end, len(row) - 1)] for end in read[ids][1]) for ids, row in zip(all_ids, so_far, strict=True)
    ]
    return Captions([read[ids][0] for ids in all_ids], decoded.log_probs, levels)


def known_captions(log_probs_CDe: torch.Tensor, vocabulary: DescriptionVocabulary) -> Captions:
    """The most probable description of the vocabulary for each box.

    Args:
        log_probs_CDe: of every description as free text.
    """
    log_probs_CDe = log_probs_CDe.double()
    best_log_probs, best = log_probs_CDe.max(dim=1)
    levels_CLv = vocabulary.level_probabilities(log_probs_CDe.softmax(dim=1), best)
    texts = [vocabulary.descriptions[number] for number in best.tolist()]
    levels = [tuple(row[: len(split_path(text))]) for text, row in zip(texts, levels_CLv.tolist(), strict=True)]
    return Captions(texts, best_log_probs, levels)


@torch.no_grad()
def detect(
    model: DetectionVLM,
    batch: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    end_token_id: int,
    max_detections: int,
    nms_iou: float = NMS_IOU,
    vocabulary: DescriptionVocabulary | None = None,
) -> list[list[PredictedObject]]:
    """Predictions for every sample of a batch, best first.

    Args:
        max_detections: most boxes per photo, by objectness.
        nms_iou: NMS removes a box that overlaps a better one by more than this; 1 keeps all.
        vocabulary: the only descriptions allowed; None: free text.
    """
    output = model(**model_inputs(batch, next(model.parameters()).device))
    samples, queries = _choose(output, max_detections, nms_iou)
    if vocabulary is None:
        captions = free_captions(model.describe(output, samples, queries, end_token_id), tokenizer, end_token_id)
    else:
        captions = known_captions(model.score_descriptions(output, samples, queries, vocabulary), vocabulary)
    objectness = output.pred_objectness[samples, queries].sigmoid().double()
    scores = (objectness * captions.log_probs.double().exp()).clamp(max=1)
    unit_boxes = cxcywh_to_xyxy(output.pred_boxes[samples, queries]).double().clamp(0, 1).cpu().numpy()
    owners = samples.cpu().numpy()
    results = []
    for sample, geometry in enumerate(batch["geometries"]):
        rows = (owners == sample).nonzero()[0]
        boxes = geometry.boxes_from_unit(unit_boxes[rows].clip(max=geometry.photo_in_unit[2:] * 2))
        found = [
            PredictedObject(
                (float(box[0]), float(box[1]), float(box[2]), float(box[3])),
                captions.texts[row],
                float(scores[row]),
                float(objectness[row]),
                captions.levels[row],
            )
            for row, box in zip(rows.tolist(), boxes, strict=True)
        ]
        results.append(sorted(found, key=lambda item: -item.score))
    return results


def _choose(output: DetectionOutput, max_detections: int, nms_iou: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample and query indices of each sample's best boxes after class-agnostic NMS.

    The decoder learns to detect an object once, but after a short run duplicates remain.
    """
    samples, queries = [], []
    corners = cxcywh_to_xyxy(output.pred_boxes)
    for sample, scores in enumerate(output.pred_objectness):
        best = scores.topk(min(max_detections, len(scores))).indices
        if nms_iou < 1:
            best = best[nms(corners[sample, best], scores[best].to(corners.dtype), nms_iou)]
        queries.append(best)
        samples.append(torch.full_like(best, sample))
    return torch.cat(samples), torch.cat(queries)


def _until_end(ids: list[int], end_token_id: int) -> list[int]:
    return ids[: ids.index(end_token_id)] if end_token_id in ids else ids
