"""transformers' detectors for benchmarks/convergence.py: DETR and RT-DETR, from random weights.

They keep their own models, losses, matchers and post-processing; their sizes are cut down to about as many weights as
the product's from-scratch model. Photos are resized to squares, as RT-DETR's image processor does, of as many pixels
as the product may see, and normalised with the ImageNet statistics. Batch norms are trained (both models freeze them
by default, which suits only pretrained backbones), and so are all stages of DETR's backbone.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from convergence_arms import Arm, make_stream
from PIL import Image
from torch import nn
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    DetrImageProcessor,
    ResNetConfig,
    RTDetrConfig,
    RTDetrForObjectDetection,
    RTDetrImageProcessor,
    RTDetrResNetConfig,
)

from bbu.config import Config
from bbu.data.photo import Augment, Photo, open_photo
from bbu.geometry import thicken, xyxy_to_cxcywh
from bbu.models.precision import compute_device, use_bf16
from bbu.records import FewShotSample, PredictedObject, PredictionRow, Row
from bbu.stages import PreparedData

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet statistics, as in both image processors


@dataclass(frozen=True)
class PeerSample:
    """(3, side, side) pixels; ``labels`` for the peers' losses: (N,) class_labels and (N, 4) cxcywh boxes."""

    pixels: torch.Tensor
    labels: dict[str, torch.Tensor]


class PeerPhotos:
    """Prepares photos for the peers, in place of the product's processor in its stream."""

    def __init__(self, image_root: str, max_pixels: int, descriptions: Sequence[str]) -> None:
        self.image_root, self.descriptions = image_root, list(descriptions)
        self.side = int(math.sqrt(max_pixels)) // 32 * 32  # one token of the coarsest level covers 32 x 32 pixels

    def process_sample(self, sample: FewShotSample, augment: Augment) -> PeerSample:
        (photo,) = augment([open_photo(self.image_root, sample.student)])
        size = photo.image.size
        corners = np.array([thicken(item.box, *size) for item in photo.objects]).reshape(-1, 4) / (*size, *size)
        classes = torch.tensor([self.descriptions.index(item.desc) for item in photo.objects], dtype=torch.long)
        boxes = torch.from_numpy(xyxy_to_cxcywh(corners.clip(0, 1))).float()
        return PeerSample(self.pixels(photo), {"class_labels": classes, "boxes": boxes})

    def pixels(self, photo: Photo) -> torch.Tensor:
        """(3, side, side), normalised."""
        resized = photo.image.resize((self.side, self.side), Image.Resampling.BILINEAR)
        pixels = (np.asarray(resized, dtype=np.float32) / 255 - MEAN) / DEVIATION
        return torch.from_numpy(pixels).permute(2, 0, 1).float()


class PeerArm(Arm):
    """One of transformers' detectors.

    Args:
        rate: peak learning rate of all weights.
        batch: photos per step.
    """

    post_processor: Any

    def __init__(self, config: Config, data: PreparedData, *, rate: float, batch: int) -> None:
        samples = data.samples("train")
        descriptions = sorted({item.desc for sample in samples for item in sample.student.objects})
        self.photos = PeerPhotos(data.image_root, config.data.max_pixels, descriptions)
        self.device = compute_device()
        self.autocast = use_bf16(config.training.precision, self.device)
        torch.manual_seed(config.seed)
        self.model = self.build(len(descriptions), config).to(self.device, memory_format=torch.channels_last)
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        vectors = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [
            {"params": matrices, "lr": rate, "weight_decay": config.training.weight_decay},
            {"params": vectors, "lr": rate, "weight_decay": 0.0},
        ]
        stream = make_stream(config, samples, self.photos)
        super().__init__(self.model, groups, stream, batch, max_grad_norm=0.1)

    @abstractmethod
    def build(self, classes: int, config: Config) -> nn.Module:
        """The untrained model."""

    def run_model(self, pixels: Sequence[torch.Tensor], **labels: Any) -> Any:
        """The model's output for photos."""
        stacked = torch.stack(list(pixels)).to(self.device, memory_format=torch.channels_last)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            return self.model(pixel_values=stacked, **labels)

    def loss(self, samples: Sequence[PeerSample]) -> torch.Tensor:
        labels = [{name: value.to(self.device) for name, value in sample.labels.items()} for sample in samples]
        loss: torch.Tensor = self.run_model([sample.pixels for sample in samples], labels=labels).loss
        return loss

    @torch.no_grad()
    def predict(self, rows: Sequence[Row]) -> list[PredictionRow]:
        self.model.eval()
        found: list[PredictionRow] = []
        for first in range(0, len(rows), 8):
            some = rows[first : first + 8]
            output = self.run_model([self.photos.pixels(open_photo(self.photos.image_root, row)) for row in some])
            sizes = torch.tensor([(row.height, row.width) for row in some], device=self.device)
            results = self.post_processor.post_process_object_detection(output, threshold=0.0, target_sizes=sizes)
            found += [self._row(row, result) for row, result in zip(some, results, strict=True)]
        return found

    def _row(self, row: Row, result: dict[str, torch.Tensor]) -> PredictionRow:
        columns = (result["scores"].tolist(), result["labels"].tolist(), result["boxes"].tolist())
        items = [
            PredictedObject(tuple(box), self.photos.descriptions[label], score, score)  # type: ignore[arg-type]
            for score, label, box in zip(*columns, strict=True)
        ]
        return PredictionRow(row.images, row.width, row.height, tuple(sorted(items, key=lambda item: -item.score)))


class DetrArm(PeerArm):
    """DETR (Carion et al. 2020, arXiv:2005.12872), with its losses on every decoder layer."""

    post_processor = DetrImageProcessor()

    def build(self, classes: int, config: Config) -> nn.Module:
        detection = config.model.detection
        model = DetrForObjectDetection(
            DetrConfig(
                backbone_config=ResNetConfig(
                    embedding_size=40,
                    hidden_sizes=[40, 80, 160, 320],
                    depths=[2, 2, 2, 2],
                    layer_type="basic",
                    out_features=["stage4"],
                ),
                d_model=192,
                encoder_layers=3,
                encoder_ffn_dim=768,
                encoder_attention_heads=6,
                decoder_layers=3,
                decoder_ffn_dim=768,
                decoder_attention_heads=6,
                num_queries=detection.queries,
                dropout=0.0,
                auxiliary_loss=True,
                num_labels=classes,
            )
        )
        thaw_batch_norms(model)
        return model.requires_grad_(True)


class RTDetrArm(PeerArm):
    """RT-DETR (Zhao et al. 2023, arXiv:2304.08069), with its contrastive denoising."""

    post_processor = RTDetrImageProcessor()

    def build(self, classes: int, config: Config) -> nn.Module:
        detection = config.model.detection
        widths = [40, 80, 160, 320]
        model = RTDetrForObjectDetection(
            RTDetrConfig(
                backbone_config=RTDetrResNetConfig(
                    embedding_size=40,
                    hidden_sizes=widths,
                    depths=[2, 2, 2, 2],
                    layer_type="basic",
                    out_features=["stage2", "stage3", "stage4"],
                ),
                freeze_backbone_batch_norms=False,
                encoder_in_channels=widths[1:],
                encoder_hidden_dim=120,
                encoder_ffn_dim=480,
                encoder_attention_heads=6,
                hidden_expansion=0.5,
                d_model=192,
                decoder_in_channels=[120, 120, 120],
                decoder_ffn_dim=768,
                decoder_layers=3,
                decoder_attention_heads=6,
                num_queries=detection.queries,
                num_labels=classes,
            )
        )
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.ones_(module.weight)  # transformers initialises them around 0
        return model


def thaw_batch_norms(module: nn.Module) -> None:
    """Replace DETR's frozen batch norms by trainable ones."""
    for name, child in module.named_children():
        if type(child).__name__ == "DetrFrozenBatchNorm2d":
            setattr(module, name, nn.BatchNorm2d(child.weight.shape[0]))
        else:
            thaw_batch_norms(child)
