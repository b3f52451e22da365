"""Arms of benchmarks/convergence.py: their base class, the product's model, and the same with plain learned queries.

Shapes: B samples, D feature width, M memory tokens, Q queries of one sample, S image tokens.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from bbu.config import Config
from bbu.data.collators import PackedDataCollator
from bbu.data.dataset import TrainingStream
from bbu.inference.predictor import Predictor
from bbu.losses.weighting import count_terms, term_weights, weigh
from bbu.models.build import build_model, build_processor, training_samples
from bbu.models.detection_head import BoxPrediction, DenoisingQueries, DetectionHead, HeadOutput
from bbu.models.memory import Memory
from bbu.models.precision import compute_device, use_bf16
from bbu.records import FewShotSample, PredictionRow, Row
from bbu.stages import PreparedData
from bbu.training.closing import keep_captions, train_captions
from bbu.training.objective import DetectionObjective
from bbu.training.param_groups import optimizer_groups

CLOSING_SHARE = 0.15  # what the closing phase of configs/bccd.yaml took on the screws: 45 of 300 CPU seconds


class Arm(ABC):
    """A detector that trains on the run's stream, one optimizer step at a time.

    Args:
        module: the module to train.
        groups: AdamW's parameter groups, each with its peak learning rate.
        stream: training samples, the same photos in the same views for every arm.
        batch: samples per step.
        adam_beta2, max_grad_norm: AdamW's second beta and the gradient clipping norm.
    """

    closing_share = 0.0  # of the training time, for ``close``

    def __init__(
        self,
        module: nn.Module,
        groups: list[dict[str, Any]],
        stream: TrainingStream,
        batch: int,
        *,
        adam_beta2: float = 0.999,
        max_grad_norm: float,
    ) -> None:
        self.module, self.stream, self.batch, self.max_grad_norm = module, stream, batch, max_grad_norm
        self.optimizer = torch.optim.AdamW(groups, betas=(0.9, adam_beta2), fused=True)  # as the product's
        self.peak_rates = [group["lr"] for group in self.optimizer.param_groups]
        self.steps = 0

    @property
    def parameters(self) -> int:
        """Number of trainable weights."""
        return sum(p.numel() for p in self.module.parameters() if p.requires_grad)

    def learn(self, rate: float) -> None:
        """One optimizer step on the next samples, at this fraction of the peak learning rates."""
        for group, peak_rate in zip(self.optimizer.param_groups, self.peak_rates, strict=True):
            group["lr"] = rate * peak_rate
        self.module.train()
        first = self.steps * self.batch
        self.loss([self.stream[position] for position in range(first, first + self.batch)]).backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1

    def close(self) -> None:  # noqa: B027 (most arms have no such phase)
        """What is trained after the last step, counted as training time."""

    @abstractmethod
    def loss(self, samples: Sequence[Any]) -> torch.Tensor:
        """The scalar to backpropagate."""

    @abstractmethod
    def predict(self, rows: Sequence[Row]) -> list[PredictionRow]:
        """Predictions for annotated photos."""


def rate_at(share: float, warm_up: float) -> float:
    """Fraction of the peak learning rate after this share of the time: linear warm-up, then cosine decay to zero."""
    if share < warm_up:
        return share / warm_up
    return 0.5 * (1 + math.cos(math.pi * (min(share, 1.0) - warm_up) / (1 - warm_up)))


def make_stream(config: Config, samples: Sequence[FewShotSample], processor: Any) -> TrainingStream:
    """An endless stream of the training photos, tiled and augmented as the config says."""
    samples = training_samples(config, samples)
    return TrainingStream(samples, processor, length=10**9, seed=config.seed, augment=config.data.augment)


class OwnArm(Arm):
    """The product's model, objective and optimizer groups, built from a config."""

    def __init__(self, config: Config, data: PreparedData) -> None:
        samples, device = data.samples("train"), compute_device()
        self.autocast = use_bf16(config.training.precision, device)
        dtype = torch.bfloat16 if self.autocast else torch.float32
        processor = build_processor(config, samples, data.image_root)
        model = build_model(config, processor.tokenizer, device=device, dtype=dtype)
        self.prepare(model)
        self.objective = DetectionObjective(model, config.loss).to(device)
        self.weights = term_weights(config.loss)
        self.collator = PackedDataCollator(model.backbone.position_function())
        self.predictor = Predictor(
            model,
            processor,
            batch_size=config.evaluation.batch_size,
            max_detections=config.evaluation.max_detections,
            nms_iou=config.evaluation.nms_iou,
            autocast=torch.bfloat16 if self.autocast else None,
        )
        training = config.training
        self.closing, self.seed = training.closing, config.seed
        self.closing_share = CLOSING_SHARE if training.closing.epochs else 0.0
        super().__init__(
            self.objective,
            optimizer_groups(model, training.learning_rates, training.weight_decay),
            make_stream(config, samples, processor),
            training.batch_size,
            adam_beta2=training.adam_beta2,
            max_grad_norm=training.max_grad_norm,
        )

    def prepare(self, model: Any) -> None:
        """Change the model before training."""

    def loss(self, samples: Sequence[Any]) -> torch.Tensor:
        device = next(self.objective.parameters()).device
        batch = self.collator(samples)
        inputs = {key: value.to(device) if torch.is_tensor(value) else value for key, value in batch.items()}
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.autocast):
            sums = self.objective(**inputs)
        return torch.stack(list(weigh(sums, count_terms(batch), self.weights).values())).sum()

    def close(self) -> None:
        """The closing phase of the captions, as a run has it (bbu.training.closing)."""
        if not self.closing.epochs:
            return
        first, samples = self.steps * self.batch, round(self.stream.epoch_length) * self.closing.views
        autocast = torch.bfloat16 if self.autocast else None
        kept = keep_captions(self.objective, self.stream, range(first, first + samples), self.closing.groups, autocast)
        train_captions(self.objective, kept, self.closing, self.seed, autocast)

    def predict(self, rows: Sequence[Row]) -> list[PredictionRow]:
        return list(self.predictor.predict_files([row.images[0] for row in rows], self.stream.processor.image_root))


class LearnedQueryArm(OwnArm):
    """The same model with a plain decoder: learned queries, no proposals, no denoising."""

    def __init__(self, config: Config, data: PreparedData) -> None:
        super().__init__(replace(config, loss=replace(config.loss, denoising_queries=0)), data)

    def prepare(self, model: Any) -> None:
        learn_queries(model.detection_head)


def learn_queries(head: DetectionHead) -> None:
    """Turn a fresh head into the plain decoder: no proposals; queries and their boxes are learned."""
    head.__class__ = LearnedQueryHead
    del head.proposal_head, head.query_from_token


class LearnedQueryHead(DetectionHead):
    """Learned queries and reference boxes, identical for every photo."""

    def forward(self, memory: Memory, backend: str, denoising_queries: DenoisingQueries | None = None) -> HeadOutput:
        output = super().forward(memory, backend, denoising_queries)
        output.proposal_counts = [0] * len(output.proposal_counts)
        return output

    def _propose(self, memory: Memory) -> BoxPrediction:
        boxes_S4 = self.learned_boxes[:0].sigmoid()
        return BoxPrediction(boxes_S4, boxes_S4.sum(-1))

    def _choose(self, memory: Memory, proposals: BoxPrediction) -> tuple[torch.Tensor, torch.Tensor]:
        samples = len(memory.level_starts)
        queries_BQD = self.learned_queries.to(memory.tokens_MD.dtype).expand(samples, -1, -1)
        return queries_BQD, self.learned_boxes.sigmoid().expand(samples, -1, -1)
