"""One forward: model → matching → captions of matched queries → the sum of each loss term.

DDP, ZeRO and FSDP hook a single forward, so everything happens in this one, and every parameter takes part in every
step. The trainer divides the sums by global counts, weights them and adds them up.

Shapes: T packed tokens, D feature width.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from bbu.config import LossConfig
from bbu.data.collators import unpad
from bbu.inference.postprocess import MODEL_KEYS
from bbu.layers.transfer import to_device
from bbu.losses.denoising import denoising_targets
from bbu.losses.detection_loss import Denoising, detection_sums
from bbu.losses.language_loss import answer_loss_sum, linear_cross_entropy_sum
from bbu.losses.matcher import MatchCosts, Matches
from bbu.losses.weighting import TERMS
from bbu.models.wrapper import DetectionOutput, DetectionVLM


class DetectionObjective(nn.Module):
    """Model and losses as the one module that is handed to the Trainer."""

    def __init__(self, model: DetectionVLM, config: LossConfig) -> None:
        super().__init__()
        self.model = model
        self.loss_config = config

    def forward(self, **batch: Any) -> dict[str, torch.Tensor]:
        """Batch from a collator → the sum of each term in losses.weighting.TERMS, as scalars with gradients."""
        batch = unpad(batch)
        target_boxes = batch["boxes"].to(next(self.parameters()).device, non_blocking=True)
        groups = self.loss_config.denoising_groups if batch["detecting"] else 0
        noisy = denoising_targets(target_boxes, batch["box_counts"], groups) if groups else None
        queries = noisy.queries if noisy else None
        output = self.model(**{key: batch[key] for key in MODEL_KEYS}, denoising_queries=queries)
        teacher, student = self._compute_teacher_student_losses(output, batch)
        nothing = output.hidden_TD[:0].sum().to(student.dtype)
        # An empty term is not computed: its gradient would take as much memory as the vocabulary's weights.
        replayed = self._replay_sum(output, batch) if any(batch["replay_spans"]) else nothing
        language = {"teacher_lm": teacher, "student_lm": student, "replay_lm": replayed}
        if not batch["detecting"]:
            return language | {term: nothing for term in TERMS if term not in language}
        boxes = detection_sums(
            torch.stack([layer.boxes for layer in output.layers]),
            torch.stack([layer.objectness for layer in output.layers]),
            output.proposals.boxes,
            output.proposals.objectness,
            output.proposal_counts,
            target_boxes,
            batch["box_counts"],
            costs=MatchCosts(self.loss_config.match_l1, self.loss_config.match_giou, self.loss_config.match_objectness),
            denoising=Denoising(noisy, output.denoising_layers) if noisy else None,
        )
        sums = {
            **language,
            "bbox_l1": boxes.bbox_l1,
            "bbox_giou": boxes.bbox_giou,
            "objectness": boxes.objectness,
            "caption": self._caption_sum(output, batch, boxes.final),
        }
        return {term: value * 0 for term, value in sums.items()} if batch.get("blank") else sums

    def _compute_teacher_student_losses(
        self, output: DetectionOutput, batch: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums of the language loss over the teachers' and over the students' answers, separated by their spans."""
        labels = batch["labels"][0].to(output.hidden_TD.device)
        head = self.model.backbone.lm_head_weight
        teacher_spans = [span for spans in batch["teacher_spans"] for span in spans]
        student_spans = [span for span in batch["student_spans"] if span is not None]
        return (
            answer_loss_sum(output.hidden_TD, labels, head, teacher_spans),
            answer_loss_sum(output.hidden_TD, labels, head, student_spans),
        )

    def _replay_sum(self, output: DetectionOutput, batch: dict[str, Any]) -> torch.Tensor:
        """Sum of the language loss over the answers of replayed conversations."""
        labels = batch["labels"][0].to(output.hidden_TD.device)
        spans = [span for of_sample in batch["replay_spans"] for span in of_sample]
        return answer_loss_sum(output.hidden_TD, labels, self.model.backbone.lm_head_weight, spans)

    def _caption_sum(self, output: DetectionOutput, batch: dict[str, Any], matches: Matches) -> torch.Tensor:
        """Sum of the caption loss over matched queries, with targets in the order of the matches."""
        captions = [batch["caption_ids"][target] for target in matches.host[3].tolist()]
        lengths = np.array([len(ids) for ids in captions], dtype=np.int64)
        supervised = np.arange(lengths.max(initial=1)) < lengths[:, None]
        targets = np.concatenate([np.zeros(0, dtype=np.int64), *captions])
        inputs = np.zeros(supervised.shape, dtype=np.int64)  # positions after the end of a caption are not supervised
        inputs[supervised] = targets
        device = output.hidden_TD.device
        states = self.model.describe_states(output, matches.samples, matches.predictions, to_device(inputs, device))
        rows = to_device(supervised.ravel().nonzero()[0], device)
        weight = self.model.backbone.token_embedding.weight
        return linear_cross_entropy_sum(states.flatten(0, 1)[rows], weight, to_device(targets, device))
