"""One forward: model → matching → captions of matched queries → the sum of each loss term.

DDP, ZeRO and FSDP hook a single forward, so everything happens in this one, and every parameter takes part in every
step. The trainer divides the sums by global counts, weights them and adds them up.

Shapes: C captions, D feature width, T packed tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from bbu.config import LossConfig
from bbu.data.collators import unpad
from bbu.inference.postprocess import MODEL_KEYS
from bbu.layers.transfer import to_device, together
from bbu.losses.denoising import DenoisingTargets, denoising_targets
from bbu.losses.detection_loss import Denoising, PendingSums, begin_sums
from bbu.losses.language_loss import answer_loss_sum, linear_cross_entropy_sum
from bbu.losses.matcher import MatchCosts, Matches
from bbu.losses.weighting import TERMS
from bbu.models.memory import Memory
from bbu.models.wrapper import BoxStates, DetectionOutput, DetectionVLM

# Devices whose captions are padded to a few shapes: graphs, and plans of kernels, that are made for one serve again.
FEW_SHAPES = ("cuda",)
FEWEST, FEWEST_TOKENS = 32, 8


class DetectionObjective(nn.Module):
    """Model and losses as the one module that is handed to the Trainer."""

    def __init__(self, model: DetectionVLM, config: LossConfig) -> None:
        super().__init__()
        self.model = model
        self.loss_config = config

    def forward(self, **batch: Any) -> dict[str, torch.Tensor]:
        """Batch from a collator → the sum of each term in losses.weighting.TERMS, as scalars with gradients."""
        batch = unpad(batch)
        output, noisy = self._detect(batch)
        # The matching goes first and ends last: its costs cross to the host while a GPU computes the language loss.
        pending = self._begin_box_sums(output, batch, noisy) if batch["detecting"] else None
        teacher, student = self._compute_teacher_student_losses(output, batch)
        nothing = output.hidden_TD[:0].sum().to(student.dtype)
        # An empty term is not computed: its gradient would take as much memory as the vocabulary's weights.
        replayed = self._replay_sum(output, batch) if any(batch["replay_spans"]) else nothing
        sums = dict.fromkeys(TERMS, nothing) | {"student_lm": student, "replay_lm": replayed}
        sums["teacher_lm"] = nothing if teacher is None else teacher
        if pending is not None:
            boxes = pending.finish()
            sums |= {"bbox_l1": boxes.bbox_l1, "bbox_giou": boxes.bbox_giou, "objectness": boxes.objectness}
            sums["caption"] = self._caption_sum(output, batch, boxes.final, noisy)
        return {term: value * 0 for term, value in sums.items()} if batch.get("blank") else sums

    def captioned(self, batch: dict[str, Any], groups: int) -> tuple[Memory, torch.Tensor, BoxStates, np.ndarray]:
        """What captions are learned from: the memory; sample, queries and targets, with so many denoising groups."""
        batch = unpad(batch)
        output, noisy = self._detect(batch)
        boxes = self._begin_box_sums(output, batch, noisy).finish()
        return output.memory, *_describing(output, boxes.final, noisy, groups)

    def _detect(self, batch: dict[str, Any]) -> tuple[DetectionOutput, DenoisingTargets | None]:
        """The model's output, and the denoising targets if there are any."""
        device, counts, salts = next(self.parameters()).device, batch["box_counts"], batch["salts"]
        wanted = self.loss_config.denoising_queries if batch["detecting"] else 0
        noisy = denoising_targets(target_boxes(batch), counts, wanted, salts, device) if wanted else None
        queries = noisy.queries if noisy else None
        return self.model(**{key: batch[key] for key in MODEL_KEYS}, denoising_queries=queries), noisy

    def _begin_box_sums(
        self, output: DetectionOutput, batch: dict[str, Any], noisy: DenoisingTargets | None
    ) -> PendingSums:
        """Box terms and matches, of which the matching has begun."""
        return begin_sums(
            output.layers,
            output.proposals,
            output.proposal_counts,
            to_device(target_boxes(batch), output.hidden_TD.device),
            batch["box_counts"],
            MatchCosts(self.loss_config.match_l1, self.loss_config.match_giou, self.loss_config.match_objectness),
            Denoising(noisy, output.denoising_layers) if noisy else None,
        )

    def _compute_teacher_student_losses(
        self, output: DetectionOutput, batch: dict[str, Any]
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        """Sums of the language loss over the teachers' and over the students' answers, separated by their spans.

        None without teachers. The students' is computed in any case, so that the head takes part in every step.
        """
        labels = batch["labels"][0].to(output.hidden_TD.device)
        head = self.model.backbone.lm_head_weight
        teacher_spans = [span for spans in batch["teacher_spans"] for span in spans]
        student_spans = [span for span in batch["student_spans"] if span is not None]
        return (
            answer_loss_sum(output.hidden_TD, labels, head, teacher_spans) if teacher_spans else None,
            answer_loss_sum(output.hidden_TD, labels, head, student_spans),
        )

    def _replay_sum(self, output: DetectionOutput, batch: dict[str, Any]) -> torch.Tensor:
        """Sum of the language loss over the answers of replayed conversations."""
        labels = batch["labels"][0].to(output.hidden_TD.device)
        spans = [span for of_sample in batch["replay_spans"] for span in of_sample]
        return answer_loss_sum(output.hidden_TD, labels, self.model.backbone.lm_head_weight, spans)

    def _caption_sum(
        self, output: DetectionOutput, batch: dict[str, Any], matches: Matches, noisy: DenoisingTargets | None
    ) -> torch.Tensor:
        """Weighted sum of the caption loss over the targets, each the mean of the queries that describe it."""
        samples, queries, targets = _describing(output, matches, noisy, self.loss_config.caption_groups)
        times = np.bincount(targets)
        described = [(batch["caption_ids"][t], batch["caption_weights"][t] / int(times[t])) for t in targets.tolist()]
        states, labels, weights = supervised_states(self.model, output.memory, samples, queries, described)
        head = self.model.backbone.lm_head_weight
        return linear_cross_entropy_sum(states, head, labels, weights)


def target_boxes(batch: Mapping[str, Any]) -> np.ndarray:
    """(N, 4) float32 boxes of a batch's targets, cxcywh in [0, 1], on the host; as a tensor if it is replayed."""
    return np.asarray(batch["boxes"])


def _describing(
    output: DetectionOutput, matches: Matches, noisy: DenoisingTargets | None, groups: int
) -> tuple[torch.Tensor, BoxStates, np.ndarray]:
    """The queries that describe a target: the matched one and the positives of the first denoising groups.

    Several boxes a target teach captions more from each photo, also where a box does not quite fit.

    Returns:
        The sample (C,) of each query, the queries, and their targets on the host.
    """
    samples, queries = matches.samples, output.at(matches.samples, matches.predictions)
    if noisy is None or not groups:
        return samples, queries, matches.host[3]
    wanted = noisy.group_numbers < groups
    rows, their_samples = to_device(np.stack((noisy.positives[wanted], noisy.samples[wanted])), samples.device)
    queries, samples = queries.join(output.denoising_at(rows)), torch.cat((samples, their_samples))
    return samples, queries, np.concatenate((matches.host[3], noisy.targets[wanted]))


def supervised_states(
    model: DetectionVLM,
    memory: Memory,
    samples_C: torch.Tensor,
    queries: BoxStates,
    described: Sequence[tuple[Sequence[int], float]],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(R, W) states of the caption decoder that predict a token, with their labels and weights.

    Args:
        samples_C, queries: of each caption.
        described: token ids and weight of each caption.
    """
    device, count, length = samples_C.device, 0, 0
    if device.type in FEW_SHAPES and described:
        count, length = few_shapes(described, model.caption_decoder.max_tokens)
        samples_C, queries = F.pad(samples_C, (0, count - len(samples_C))), queries.padded(count)
    *known, importance = caption_rows(described, count, length)
    ids, rows, labels = together(known, device, torch.long)
    states = model.describe_states(memory, samples_C, queries, ids).flatten(0, 1)
    return states.index_select(0, rows), labels, to_device(importance, device)


def few_shapes(described: Sequence[tuple[Sequence[int], float]], max_tokens: int) -> tuple[int, int]:
    """Captions of a step → rows and columns of a decoder input that holds them, from a handful of sizes.

    A power of two of at least FEWEST captions, and a multiple of FEWEST_TOKENS tokens, or the most there are.
    """
    longest = max(len(ids) for ids, _ in described)
    rows = max(FEWEST, 1 << (len(described) - 1).bit_length())
    return rows, min(-(-longest // FEWEST_TOKENS) * FEWEST_TOKENS, max(max_tokens, longest))


def caption_rows(
    described: Sequence[tuple[Sequence[int], float]], count: int = 0, length: int = 0
) -> tuple[np.ndarray, ...]:
    """Captions and weights → (C, L) decoder inputs; supervised rows of their C · L states, label and weight of each.

    Args:
        count, length: C and L are at least as large; what is added is not supervised.
    """
    captions = [ids for ids, _ in described]
    lengths = np.zeros(max(len(captions), count), dtype=np.int64)
    lengths[: len(captions)] = [len(ids) for ids in captions]
    supervised = np.arange(max(lengths.max(initial=1), length)) < lengths[:, None]
    labels = np.concatenate([np.zeros(0, dtype=np.int64), *captions])
    inputs = np.zeros(supervised.shape, dtype=np.int64)  # positions after the end of a caption are not supervised
    inputs[supervised] = labels
    weights = np.repeat(np.array([weight for _, weight in described], dtype=np.float64), lengths[: len(captions)])
    return inputs, supervised.ravel().nonzero()[0], labels, weights
