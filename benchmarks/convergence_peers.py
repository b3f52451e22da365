"""transformers' strongest detectors for benchmarks/convergence.py, from random weights.

They keep their own models, denoising, losses, matchers and post-processing; their sizes are cut down to about as many
weights as the product's from-scratch model. Photos are resized to squares, as their image processors do, of as many
pixels as the product may see, and normalised with the ImageNet statistics.

transformers prepares them for pretrained weights. What would keep them from learning without, and is mended here:

- Backbones have frozen batch norms, and RT-DETRv2's other batch norms start around 0: all are trained and start at 1.
- All matrices start with a deviation of 0.01 or 0.02, as a checkpoint is expected to replace them: ``initialise``.
- Class biases start at a prior of 1 / (classes + 1), a quarter for three classes: they start at 0.01, as published.
- Under autocast, boxes and losses would be computed in bfloat16, which places a corner to 1 pixel in 256: losses,
  RF-DETR's proposals, and predictions are computed in float32.
- RF-DETR's decoder drops 10 % of its features; as published, it drops none.
- Before 5.18, RT-DETRv2 and D-FINE match their last layer to denoising queries too: ``exact_loss`` takes them out.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from convergence_arms import Arm, make_stream
from packaging.version import Version
from PIL import Image
from torch import nn
from torch.utils._pytree import tree_map_only
from transformers import (
    Deimv2Config,
    Deimv2ForObjectDetection,
    DFineConfig,
    DFineForObjectDetection,
    HGNetV2Config,
    RfDetrConfig,
    RfDetrForObjectDetection,
    RfDetrImageProcessor,
    RTDetrImageProcessor,
    RTDetrResNetConfig,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
)
from transformers.models.rf_detr import RfDetrDinov2Config

from bbu.config import Config
from bbu.data.photo import Augment, Photo, open_photo
from bbu.geometry import thicken, xyxy_to_cxcywh
from bbu.models.precision import compute_device, use_bf16
from bbu.records import FewShotSample, PredictedObject, PredictionRow, Row
from bbu.stages import PreparedData

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet statistics, as in all their processors
PRIOR = 0.01  # probability that a fresh class head gives to every class
WEIGHT_DECAY = 1e-4  # as published for all four
MAX_GRAD_NORM = 0.1  # likewise
MATCHES_DENOISING_QUERIES = Version(transformers.__version__) < Version("5.18")


@dataclass(frozen=True)
class PeerSample:
    """(3, side, side) uint8 pixels; ``labels`` for the peers' losses: (N,) class_labels and (N, 4) cxcywh boxes."""

    pixels: torch.Tensor
    labels: dict[str, torch.Tensor]


class PeerPhotos:
    """Prepares photos for the peers, in place of the product's processor in its stream.

    Args:
        max_pixels: of the square.
        multiple: of which the square's side must be one, in pixels.
        cache: keeps decoded photos in memory if given, name → photo.
    """

    def __init__(self, image_root: str, max_pixels: int, multiple: int, descriptions: Sequence[str]) -> None:
        self.image_root, self.descriptions = image_root, list(descriptions)
        self.side = int(math.sqrt(max_pixels)) // multiple * multiple
        self.cache: dict[str, Photo] | None = None

    def open(self, row: Row) -> Photo:
        """The photo of a row, decoded once if there is a cache."""
        if self.cache is None:
            return open_photo(self.image_root, row)
        name = f"{self.image_root}/{row.images[0]}"
        if name not in self.cache:
            self.cache[name] = open_photo(self.image_root, row)
        return self.cache[name]

    def process_sample(self, sample: FewShotSample, augment: Augment, salt: int) -> PeerSample:
        (photo,) = augment([self.open(sample.student)])
        size = photo.image.size
        corners = np.array([thicken(item.box, *size) for item in photo.objects]).reshape(-1, 4) / (*size, *size)
        classes = torch.tensor([self.descriptions.index(item.desc) for item in photo.objects], dtype=torch.long)
        boxes = torch.from_numpy(xyxy_to_cxcywh(corners.clip(0, 1))).float()
        return PeerSample(self.pixels(photo), {"class_labels": classes, "boxes": boxes})

    def pixels(self, photo: Photo) -> torch.Tensor:
        """(3, side, side), uint8."""
        resized = photo.image.resize((self.side, self.side), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1)


class PeerArm(Arm):
    """One of transformers' detectors.

    Args:
        rate: peak learning rate of all weights.
        batch: photos per step.
    """

    post_processor: Any = RTDetrImageProcessor()
    multiple = 32  # one token of the coarsest level covers 32 x 32 pixels

    def __init__(self, config: Config, data: PreparedData, *, rate: float, batch: int) -> None:
        samples = data.samples("train")
        descriptions = sorted({item.desc for sample in samples for item in sample.student.objects})
        self.photos = PeerPhotos(data.image_root, config.data.max_pixels, self.multiple, descriptions)
        self.device = compute_device()
        self.autocast = use_bf16(config.training.precision, self.device)
        torch.manual_seed(config.seed)
        self.model = self.build(len(descriptions), config.model.detection.queries)
        self.model.loss_function = exact_loss(self.model.loss_function)
        self.model.to(self.device, memory_format=torch.channels_last)
        self.mean, self.deviation = (torch.tensor(v, device=self.device).view(3, 1, 1) for v in (MEAN, DEVIATION))
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        vectors = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [
            {"params": matrices, "lr": rate, "weight_decay": WEIGHT_DECAY},
            {"params": vectors, "lr": rate, "weight_decay": 0.0},
        ]
        stream = make_stream(config, samples, self.photos)
        super().__init__(self.model, groups, stream, batch, max_grad_norm=MAX_GRAD_NORM)

    @abstractmethod
    def build(self, classes: int, queries: int) -> Any:
        """The untrained model."""

    def run_model(self, pixels: Sequence[torch.Tensor], autocast: bool, **labels: Any) -> Any:
        """The model's output for photos."""
        stacked = torch.stack(list(pixels)).to(self.device, memory_format=torch.channels_last)
        normalised = (stacked / 255 - self.mean) / self.deviation
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=autocast):
            return self.model(pixel_values=normalised, **labels)

    def loss(self, samples: Sequence[PeerSample]) -> torch.Tensor:
        labels = [{name: value.to(self.device) for name, value in sample.labels.items()} for sample in samples]
        output = self.run_model([sample.pixels for sample in samples], self.autocast, labels=labels)
        loss: torch.Tensor = output.loss
        return loss

    @torch.no_grad()
    def predict(self, rows: Sequence[Row]) -> list[PredictionRow]:
        self.model.eval()
        found: list[PredictionRow] = []
        for first in range(0, len(rows), 8):
            some = rows[first : first + 8]
            output = self.run_model([self.photos.pixels(self.photos.open(row)) for row in some], autocast=False)
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


def hybrid_encoder(width: int, heads: int, levels: int = 3) -> dict[str, Any]:
    """Config keys that RT-DETRv2, D-FINE and DEIMv2 share: the hybrid encoder's size and what is trained."""
    return {
        "freeze_backbone_batch_norms": False,
        "initializer_bias_prior_prob": PRIOR,
        "encoder_hidden_dim": width,
        "encoder_ffn_dim": 4 * width,
        "encoder_attention_heads": heads,
        "decoder_in_channels": [width] * levels,
    }


def decoder(width: int, heads: int, layers: int = 3) -> dict[str, Any]:
    """Config keys of the decoder's size, likewise shared."""
    return {
        "d_model": width,
        "decoder_ffn_dim": 4 * width,
        "decoder_attention_heads": heads,
        "decoder_layers": layers,
    }


def hgnet(outputs: Sequence[str] = ("stage2", "stage3", "stage4")) -> HGNetV2Config:
    """HGNet-V2 B0, the backbone of the small D-FINE and DEIMv2: 256, 512 and 1,024 channels at strides 8, 16, 32."""
    return HGNetV2Config(
        stem_channels=[3, 16, 16],
        stage_in_channels=[16, 64, 256, 512],
        stage_mid_channels=[16, 32, 64, 128],
        stage_out_channels=[64, 256, 512, 1024],
        stage_num_blocks=[1, 1, 2, 1],
        stage_numb_of_layers=[3, 3, 3, 3],
        hidden_sizes=[64, 256, 512, 1024],
        use_learnable_affine_block=True,
        out_features=list(outputs),
    )


class RTDetrV2Arm(PeerArm):
    """RT-DETRv2 (Lv et al. 2024, arXiv:2407.17140), with its contrastive denoising."""

    def build(self, classes: int, queries: int) -> nn.Module:
        widths = [40, 80, 160, 320]
        backbone = RTDetrResNetConfig(
            embedding_size=40,
            hidden_sizes=widths,
            depths=[2, 2, 2, 2],
            layer_type="basic",
            out_features=["stage2", "stage3", "stage4"],
        )
        model = RTDetrV2ForObjectDetection(
            RTDetrV2Config(
                backbone_config=backbone,
                encoder_in_channels=widths[1:],
                hidden_expansion=0.5,
                num_queries=queries,
                num_labels=classes,
                **hybrid_encoder(width=120, heads=6),
                **decoder(width=192, heads=6),
            )
        )
        return initialise(model)


class DFineArm(PeerArm):
    """D-FINE (Peng et al. 2024, arXiv:2410.13842) on HGNet-V2, with its denoising and distributions of box edges."""

    def build(self, classes: int, queries: int) -> nn.Module:
        model = DFineForObjectDetection(
            DFineConfig(
                backbone_config=hgnet(),
                encoder_in_channels=[256, 512, 1024],
                hidden_expansion=0.5,
                depth_mult=0.34,
                num_queries=queries,
                num_labels=classes,
                **hybrid_encoder(width=208, heads=8),
                **decoder(width=208, heads=8),
            )
        )
        return initialise(model)


class Deimv2Arm(PeerArm):
    """DEIMv2 (Huang et al. 2025, arXiv:2509.20787) on HGNet-V2, with its matching-aware loss and denoising.

    Its other backbone, DINOv3, is one to distil from; HGNet-V2 is the one that it trains itself.
    """

    def build(self, classes: int, queries: int) -> nn.Module:
        model = Deimv2ForObjectDetection(
            Deimv2Config(
                backbone_config=hgnet(),
                encoder_in_channels=[256, 512, 1024],
                hidden_expansion=0.5,
                depth_mult=0.34,
                num_queries=queries,
                num_labels=classes,
                **hybrid_encoder(width=224, heads=8),
                **decoder(width=224, heads=8),
            )
        )
        return initialise(model)


class RFDetrArm(PeerArm):
    """RF-DETR (Robinson et al. 2025, arXiv:2511.09554): windowed DINOv2, one level, 13 groups of queries."""

    post_processor = RfDetrImageProcessor()
    multiple = 32  # patches of 16 x 16 pixels in 2 x 2 windows

    def build(self, classes: int, queries: int) -> nn.Module:
        backbone = RfDetrDinov2Config(
            hidden_size=192,
            num_hidden_layers=7,
            num_attention_heads=6,
            patch_size=16,
            image_size=self.photos.side,
            num_windows=2,
            out_features=["stage1", "stage3", "stage5", "stage7"],
            use_mask_token=False,
        )
        model = RfDetrForObjectDetection(
            RfDetrConfig(
                backbone_config=backbone,
                dropout=0.0,
                d_model=192,
                decoder_layers=3,
                decoder_ffn_dim=768,
                decoder_self_attention_heads=6,
                decoder_cross_attention_heads=12,
                num_queries=queries,
                num_labels=classes,
            )
        )
        encoder = model.model.backbone
        initialise(model, but=encoder.backbone)
        nn.init.zeros_(model.model.reference_point_embed.weight)
        nn.init.normal_(model.model.query_feat.weight)
        encoder.register_forward_hook(lambda module, inputs, output: (output[0].float(), output[1]))
        return model


PEERS: dict[str, type[PeerArm]] = {
    "dfine": DFineArm,
    "deimv2": Deimv2Arm,
    "rfdetr": RFDetrArm,
    "rtdetrv2": RTDetrV2Arm,
}
# (arm, data set) → peak learning rate and photos per step: docs/convergence.md has the settings that were tried.
SETTINGS = {
    ("dfine", "bccd"): (8e-4, 2),
    ("dfine", "screws"): (8e-4, 2),
    ("deimv2", "bccd"): (8e-4, 2),
    ("deimv2", "screws"): (8e-4, 2),
    ("rfdetr", "bccd"): (4e-4, 2),
    ("rfdetr", "screws"): (4e-4, 2),
    ("rtdetrv2", "bccd"): (4e-4, 2),
    ("rtdetrv2", "screws"): (8e-4, 2),
}


def initialise(model: Any, but: nn.Module | None = None) -> Any:
    """Draw weights as the detectors' authors do; transformers draws small ones for a checkpoint to replace.

    Linear layers are Xavier-uniform, convolutions as torch draws them; batch norms start at 1, box heads at no change,
    class heads at a probability of 0.01. Matrices that are 0 (offsets, attention, gates) stay so.

    Args:
        but: a part that keeps its weights.
    """
    kept = set(but.modules()) if but is not None else set()
    for name, module in model.named_modules():
        if module in kept:
            continue
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        elif isinstance(module, nn.Linear) and module.weight.any():
            nn.init.xavier_uniform_(module.weight)
            if "class_embed" in name or "score_head" in name:
                nn.init.constant_(module.bias, -math.log((1 - PRIOR) / PRIOR))
    for name, module in model.named_modules():
        if name.rpartition("bbox_")[2].rstrip(".0123456789") in ("head", "embed") and hasattr(module, "layers"):
            nn.init.zeros_(module.layers[-1].weight)
            nn.init.zeros_(module.layers[-1].bias)
    return model


def exact_loss(loss_function: Callable[..., Any]) -> Callable[..., Any]:
    """The same loss in float32, of the last layer's own queries."""

    def compute(*outputs: Any, **others: Any) -> Any:
        outputs, others = tree_map_only(torch.Tensor, in_float32, (outputs, others))
        logits, labels, device, boxes, *rest = outputs
        denoising = others.get("denoising_meta_values")
        if denoising is not None and MATCHES_DENOISING_QUERIES and "deimv2" not in loss_function.__name__.lower():
            queries = denoising["dn_num_split"][1]
            logits, boxes = logits[:, -queries:], boxes[:, -queries:]
        with torch.autocast(torch.device(device).type, enabled=False):
            return loss_function(logits, labels, device, boxes, *rest, **others)

    return compute


def in_float32(value: torch.Tensor) -> torch.Tensor:
    """The tensor in float32 if it is of a floating type."""
    return value.float() if value.is_floating_point() else value
