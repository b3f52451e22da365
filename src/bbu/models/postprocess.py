"""Model output → predictions: boxes in displayed pixels, words, scores."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from bbu.data.collators import unpad
from bbu.geometry import cxcywh_to_xyxy
from bbu.models.wrapper import DetectionOutput, DetectionVLM
from bbu.records import PredictedObject

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MODEL_KEYS = (
    "input_ids", "pixel_values", "image_grid_thw", "cu_seqlens", "position_ids", "max_seqlen", "student_images",
    "prompt_spans",
)  # fmt: skip


def model_inputs(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """The part of a batch that the model's forward takes, on its device."""
    packed = unpad(dict(batch))
    return {key: packed[key].to(device) if isinstance(packed[key], torch.Tensor) else packed[key] for key in MODEL_KEYS}


@torch.no_grad()
def detect(
    model: DetectionVLM, batch: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, end_token_id: int, top_k: int
) -> list[list[PredictedObject]]:
    """Predictions for every sample of a batch, best first.

    Args:
        top_k: boxes, by objectness, that are described and returned.
    """
    output = model(**model_inputs(batch, next(model.parameters()).device))
    kept = min(top_k, output.pred_objectness.shape[1])
    samples, queries = _best(output, kept)
    captions = model.describe(output, samples, queries, end_token_id)
    words = tokenizer.batch_decode(
        [_until_end(ids, end_token_id) for ids in captions.token_ids.tolist()], skip_special_tokens=True
    )
    objectness = output.pred_objectness[samples, queries].sigmoid().double()
    scores = objectness * captions.log_probs.double().exp()
    unit_boxes = cxcywh_to_xyxy(output.pred_boxes[samples, queries]).double().clamp(0, 1).cpu().numpy()
    results = []
    for sample, geometry in enumerate(batch["geometries"]):
        rows = range(sample * kept, (sample + 1) * kept)
        boxes = geometry.boxes_from_unit(unit_boxes[rows.start : rows.stop])
        found = [
            PredictedObject(
                (float(box[0]), float(box[1]), float(box[2]), float(box[3])),
                words[row],
                min(float(scores[row]), 1.0),
                float(objectness[row]),
            )
            for row, box in zip(rows, boxes, strict=True)
        ]
        results.append(sorted(found, key=lambda item: -item.score))
    return results


def _best(output: DetectionOutput, kept: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample and query numbers (B · kept,) of each sample's surest boxes."""
    queries = output.pred_objectness.topk(kept, dim=1).indices
    samples = torch.arange(len(queries), device=queries.device)[:, None].expand_as(queries)
    return samples.reshape(-1), queries.reshape(-1)


def _until_end(ids: list[int], end_token_id: int) -> list[int]:
    return ids[: ids.index(end_token_id)] if end_token_id in ids else ids
