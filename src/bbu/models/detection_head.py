"""DETR-style decoder: detection memory → boxes and objectness.

Two-stage (Zhu et al. 2021): every image token proposes a box, and the best proposals of each sample become queries,
which the decoder layers refine. A layer applies self-attention among queries, cross-attention to the whole memory
(text included) and deformable attention around each query's box. Queries are conditioned on their boxes (DAB-DETR,
Liu et al. 2022, arXiv:2201.12329). Learned queries fill up where an image has fewer tokens than there are queries.

In training, denoising queries (bbu.losses.denoising) run beside these matching queries. Attention between the two is
masked.

Shapes: B samples, D feature width, Lv levels, M memory tokens, Q queries of one sample, R rows, S image tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from bbu.config import DetectionConfig
from bbu.layers.attention import Boundaries, varlen_attention
from bbu.layers.transfer import to_device
from bbu.models.memory import LevelRows, Memory, full_precision, grid_centres, sample_levels, sine_embedding

ANCHOR_TOKENS = 3.0  # an anchor is three tokens wide and high
PRIOR_OBJECTNESS = 0.02  # initial objectness
LEVEL_STEPS = 4096  # x in steps of 1/4096 of the photo, modulo the levels, picks a denoising query's level evenly


@dataclass
class BoxPrediction:
    """``boxes`` (…, 4) cxcywh in [0, 1]; ``objectness`` (…,) logits. A number picks along the first dimension."""

    boxes: torch.Tensor
    objectness: torch.Tensor

    def __len__(self) -> int:
        return len(self.objectness)

    def __getitem__(self, number: int) -> BoxPrediction:
        return BoxPrediction(self.boxes[number], self.objectness[number])

    def detached(self) -> BoxPrediction:
        """The same without a gradient."""
        return BoxPrediction(self.boxes.detach(), self.objectness.detach())

    def at(self, rows: torch.Tensor) -> BoxPrediction:
        """The predictions of these rows."""
        return BoxPrediction(self.boxes.index_select(0, rows), self.objectness.index_select(0, rows))


@dataclass
class HeadOutput:
    """Predictions of the matching queries, the proposals and the denoising queries.

    Args:
        layers: (K, B, Q) predictions of the decoder layers, the last one final.
        proposals: (S,) predictions of all image tokens, samples end to end.
        proposal_counts: image tokens of each sample.
        queries_BQD: final query states.
        denoising_layers: (K, R) predictions of the denoising queries, in their order, of the decoder layers.
        denoising_states_RD: their final states.
    """

    layers: BoxPrediction
    proposals: BoxPrediction
    proposal_counts: list[int]
    queries_BQD: torch.Tensor
    denoising_layers: BoxPrediction
    denoising_states_RD: torch.Tensor

    @classmethod
    def of_no_sample(cls, memory: Memory, queries: int, layers: int) -> HeadOutput:
        """The predictions for a memory of no sample."""
        states_RD, none = memory.tokens_MD, full_precision(memory.tokens_MD)
        boxes = BoxPrediction(none.new_zeros(layers, 0, queries, 4), none.new_zeros(layers, 0, queries))
        denoising = BoxPrediction(none.new_zeros(layers, 0, 4), none.new_zeros(layers, 0))
        proposals = BoxPrediction(none.new_zeros(0, 4), none.new_zeros(0))
        return cls(boxes, proposals, [], states_RD.new_zeros(0, queries, states_RD.shape[-1]), denoising, states_RD)


@dataclass
class DenoisingQueries:
    """Boxes that extra queries start from.

    Args:
        boxes: (R, 4) cxcywh in [0, 1], samples end to end, within a sample group by group.
        group_sizes: for each sample, the size of each of its groups. A query attends only to queries of its group.
    """

    boxes: torch.Tensor
    group_sizes: Sequence[Sequence[int]]


@dataclass
class QueryRows:
    """Layout of a pack's queries: samples end to end, each with its matching queries, then its denoising groups.

    Args:
        samples_R: the sample of each query.
        parted: rows of the matching queries, then of the denoising queries.
        counts: of matching and of denoising queries.
        order: gathers the rows from all matching queries followed by all denoising queries.
        groups: boundaries of the groups within which self-attention runs.
        sample_cu_seqlens: int32 boundaries of the samples.
    """

    samples_R: torch.Tensor
    parted: torch.Tensor
    counts: tuple[int, int]
    order: torch.Tensor
    groups: Boundaries
    sample_cu_seqlens: torch.Tensor
    sample_max_seqlen: int

    @classmethod
    def of(cls, queries: int, group_sizes: Sequence[Sequence[int]], device: torch.device) -> QueryRows:
        """Lay out ``queries`` matching queries and the denoising groups of each sample."""
        groups = [size for sizes in group_sizes for size in (queries, *sizes)]
        samples = [queries + sum(sizes) for sizes in group_sizes]
        owners = np.repeat(np.arange(len(samples)), samples)
        is_denoising = np.arange(len(owners)) - np.cumsum([0, *samples])[owners] >= queries
        parted = np.argsort(is_denoising, kind="stable")
        samples_R, parted_R, order_R = to_device(np.stack((owners, parted, np.argsort(parted))), device)
        ends = to_device([0, *accumulate(groups), 0, *accumulate(samples)], device, torch.int32)
        group_ends, sample_ends = ends.split((len(groups) + 1, len(samples) + 1))
        matching = queries * len(samples)
        return cls(
            samples_R=samples_R,
            parted=parted_R,
            counts=(matching, len(owners) - matching),
            order=order_R,
            groups=Boundaries(group_ends, group_ends, max(groups), max(groups)),
            sample_cu_seqlens=sample_ends,
            sample_max_seqlen=max(samples),
        )

    @property
    def denoising_samples(self) -> torch.Tensor:
        """The sample of each denoising query."""
        return self.samples_R.index_select(0, self.parted[self.counts[0] :])

    def join(self, matching: torch.Tensor, denoising: torch.Tensor) -> torch.Tensor:
        """Interleave values of matching and of denoising queries → (R, …)."""
        return torch.cat((matching, denoising)).index_select(0, self.order)

    def part(self, values: torch.Tensor, dim: int = 0) -> tuple[torch.Tensor, ...]:
        """The other way: the values of matching and of denoising queries, from R along a dimension."""
        return values.index_select(dim, self.parted).split(self.counts, dim)


class BoxHead(nn.Module):
    """Features → objectness logit and a box offset in logit space, zero at initialisation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.objectness = nn.Linear(width, 1)
        self.step = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), last := nn.Linear(width, 4)
        )
        nn.init.constant_(self.objectness.bias, -math.log((1 - PRIOR_OBJECTNESS) / PRIOR_OBJECTNESS))
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, features: torch.Tensor, reference: torch.Tensor) -> BoxPrediction:
        """(…, D) features and (…, 4) reference boxes → predictions in float32 or better."""
        features, boxes = self.refine(features, reference)
        return BoxPrediction(boxes, in_full_precision(self.objectness, features).squeeze(-1))

    def refine(self, features: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(…, D) features and (…, 4) reference boxes → normed features and boxes."""
        features = self.norm(features)
        hidden = self.step[:-1](features)
        return features, (torch.logit(reference, eps=1e-4) + in_full_precision(self.step[-1], hidden)).sigmoid()


def objectness_of(heads: Sequence[BoxHead], normed: Sequence[torch.Tensor]) -> torch.Tensor:
    """(K, R) objectness by the heads of K layers, in float32 or better, as one product."""
    weights, biases = _stacked([head.objectness for head in heads])
    features = full_precision(torch.stack(list(normed)))
    with torch.autocast(features.device.type, enabled=False):
        weights, biases = full_precision(weights), full_precision(biases)
        return torch.baddbmm(biases[:, None], features, weights.transpose(1, 2)).squeeze(-1)


def in_full_precision(layer: nn.Module, features: torch.Tensor) -> torch.Tensor:
    """A linear layer in float32 or better, also under autocast: a logit in bfloat16 has but three digits."""
    weight, bias = full_precision(layer.weight), full_precision(layer.bias)  # type: ignore[arg-type]
    with torch.autocast(features.device.type, enabled=False):
        return F.linear(full_precision(features), weight, bias)


@dataclass
class ProjectedMemory:
    """The memory as a decoder layer attends to it.

    Args:
        keys_MD, values_MD: of the layer.
        samples: boundaries of the samples' queries and memory tokens.
        levels: where each query finds its sample's image levels.
    """

    keys_MD: torch.Tensor
    values_MD: torch.Tensor
    samples: Boundaries
    levels: LevelRows


class DecoderLayer(nn.Module):
    """Self-attention; then cross-attention and deformable attention to the memory in parallel; then an MLP."""

    def __init__(self, width: int, heads: int, points: int, levels: int) -> None:
        super().__init__()
        self.heads, self.points, self.levels = heads, points, levels
        self.norm_self = nn.LayerNorm(width)
        self.self_query_key = nn.Linear(width, 2 * width)
        self.self_value = nn.Linear(width, width)
        self.self_out = nn.Linear(width, width)
        self.norm_cross = nn.LayerNorm(width)
        self.cross_query = nn.Linear(width, width)
        self.cross_key = nn.Linear(width, width)
        self.cross_value = nn.Linear(width, width)
        self.cross_out = nn.Linear(width, width)
        self.point_offset = nn.Linear(width, heads * levels * points * 2)
        self.point_weight = nn.Linear(width, heads * levels * points)
        self.point_out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self._spread_points()

    def _spread_points(self) -> None:
        """Deformable DETR's initialisation: one direction per head, its points further and further out."""
        nn.init.zeros_(self.point_offset.weight)
        nn.init.zeros_(self.point_weight.weight)
        nn.init.zeros_(self.point_weight.bias)
        angles = torch.arange(self.heads) * (2 * math.pi / self.heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        radii = torch.arange(1, self.points + 1) / self.points
        offsets = directions[:, None, None, :] * radii[None, None, :, None]
        with torch.no_grad():
            self.point_offset.bias.copy_(offsets.expand(-1, self.levels, -1, -1).flatten())

    def forward(
        self,
        queries_RD: torch.Tensor,
        pos_embed_RD: torch.Tensor,
        boxes_R4: torch.Tensor,
        rows: QueryRows,
        memory: ProjectedMemory,
        backend: str,
    ) -> torch.Tensor:
        """Updated query states (R, D); ``boxes_R4`` are the current reference boxes, cxcywh."""
        queries_RD = queries_RD + self._self_attention(self.norm_self(queries_RD), pos_embed_RD, rows, backend)
        query, offsets, weights = self._ask(self.norm_cross(queries_RD) + pos_embed_RD)
        queries_RD = (
            queries_RD
            + self.cross_out(self._attend(query, memory.keys_MD, memory.values_MD, memory.samples, backend))
            + self._deformable_attention(offsets, weights, boxes_R4, memory)
        )
        return queries_RD + self.mlp(self.norm_mlp(queries_RD))  # type: ignore[no-any-return]

    def _ask(self, queries_RD: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Queries of cross-attention, offsets and weights of the sampled points: three projections as one product."""
        layers = (self.cross_query, self.point_offset, self.point_weight)
        weight, bias = (torch.cat(parts) for parts in zip(*((it.weight, it.bias) for it in layers), strict=True))
        return F.linear(queries_RD, weight, bias).split([layer.out_features for layer in layers], dim=-1)

    def _split(self, features: torch.Tensor) -> torch.Tensor:
        """(…, D) → (…, H, E)."""
        return features.unflatten(-1, (self.heads, -1))

    def _self_attention(
        self, queries_RD: torch.Tensor, pos_embed_RD: torch.Tensor, rows: QueryRows, backend: str
    ) -> torch.Tensor:
        query, key = self.self_query_key(queries_RD + pos_embed_RD).chunk(2, dim=-1)
        attended = self._attend(query, key, self.self_value(queries_RD), rows.groups, backend)
        return self.self_out(attended)  # type: ignore[no-any-return]

    def _attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, boundaries: Boundaries, backend: str
    ) -> torch.Tensor:
        """Attention of all heads within segments, (…, D) each → (R, D)."""
        heads = [self._split(x) for x in (query, key, value)]
        return varlen_attention(*heads, **boundaries._asdict(), causal=False, backend=backend).flatten(1)

    def _deformable_attention(
        self, offsets: torch.Tensor, weights: torch.Tensor, boxes_R4: torch.Tensor, memory: ProjectedMemory
    ) -> torch.Tensor:
        shape = (len(offsets), self.heads, self.levels, self.points)
        offsets = full_precision(offsets).view(*shape, 2)
        weights = full_precision(weights).view(*shape[:2], -1).softmax(-1).view(shape)
        centres, sides = boxes_R4[:, None, None, None].chunk(2, dim=-1)
        points = torch.addcmul(centres, offsets, sides, value=0.5)  # offset 1 = the edge of the box
        attended = sample_levels(self._split(memory.values_MD), memory.levels, points, weights)
        return self.point_out(attended.flatten(1).to(memory.values_MD.dtype))  # type: ignore[no-any-return]


class DetectionHead(nn.Module):
    """Memory → boxes and objectness of every decoder layer.

    Args:
        config: D is ``width``; Q is ``queries``, the most objects that can be detected in a photo; ``points`` are the
            sampling points per head and level.
        levels: number of image levels in the memory.
    """

    def __init__(self, config: DetectionConfig, levels: int) -> None:
        super().__init__()
        width, queries = self.width, self.queries = config.width, config.queries
        self.proposal_head = BoxHead(width)
        self.query_from_token = nn.Linear(width, width)
        self.learned_queries = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.learned_boxes = nn.Parameter(torch.randn(queries, 4) * 0.5)  # logits of cxcywh
        self.box_place = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, width))
        layers = range(config.layers)
        self.layers = nn.ModuleList(DecoderLayer(width, config.heads, config.points, levels) for _ in layers)
        self.box_heads = nn.ModuleList(BoxHead(width) for _ in layers)

    def forward(self, memory: Memory, backend: str, denoising_queries: DenoisingQueries | None = None) -> HeadOutput:
        """Detect objects in every sample of the memory. Denoising queries change ``denoising_layers`` only."""
        proposals = self._propose(memory)
        queries_BQD, boxes_BQ4 = self._choose(memory, proposals)
        queries_RD, boxes_R4 = queries_BQD.flatten(0, 1), boxes_BQ4.flatten(0, 1)
        group_sizes = denoising_queries.group_sizes if denoising_queries else [()] * len(boxes_BQ4)
        rows = QueryRows.of(self.queries, group_sizes, boxes_R4.device)
        if denoising_queries is not None:
            states_RD = self._denoising_states(denoising_queries.boxes, memory, rows)
            queries_RD = rows.join(queries_RD, states_RD.to(queries_RD.dtype))
            boxes_R4 = rows.join(boxes_R4, denoising_queries.boxes.to(boxes_R4.dtype))
        found, normed = [], []
        reference_R4 = boxes_R4  # its gradient is that of the learned boxes
        projected = self._project(memory, rows)
        heads: Sequence[BoxHead] = list(self.box_heads)  # type: ignore[assignment, arg-type]
        for layer, head, theirs in zip(self.layers, heads, projected, strict=True):
            pos_embed_RD = self.box_place(sine_embedding(reference_R4, self.width // 2).to(queries_RD.dtype))
            queries_RD = layer(queries_RD, pos_embed_RD, reference_R4, rows, theirs, backend)
            normed_RD, refined_R4 = head.refine(queries_RD, reference_R4)
            normed.append(normed_RD)
            found.append(refined_R4)
            reference_R4 = refined_R4.detach()  # no gradient from a layer's box into the layers before
        boxes, denoising_boxes = rows.part(torch.stack(found), 1)
        objectness, denoising_objectness = rows.part(objectness_of(heads, normed), 1)
        states_RD, denoising_RD = rows.part(queries_RD)
        shape = boxes_BQ4.shape[:2]
        return HeadOutput(
            BoxPrediction(boxes.unflatten(1, shape), objectness.unflatten(1, shape)),
            proposals,
            memory.image_token_counts,
            states_RD.unflatten(0, shape),
            BoxPrediction(denoising_boxes, denoising_objectness),
            denoising_RD,
        )

    def _project(self, memory: Memory, rows: QueryRows) -> list[ProjectedMemory]:
        """Keys and values of every layer; they follow from the memory alone, so one product makes those of all."""
        layers: Sequence[DecoderLayer] = list(self.layers)  # type: ignore[assignment, arg-type]
        keys = _products(memory.tokens_MD + memory.pos_embed_MD, [layer.cross_key for layer in layers])
        values = _products(memory.tokens_MD, [layer.cross_value for layer in layers])
        samples = Boundaries(rows.sample_cu_seqlens, memory.cu_seqlens, rows.sample_max_seqlen, memory.max_seqlen)
        levels = LevelRows.of(memory, rows.samples_R, layers[0].heads, layers[0].points)
        return [ProjectedMemory(key, value, samples, levels) for key, value in zip(keys, values, strict=True)]

    def _denoising_states(self, boxes_R4: torch.Tensor, memory: Memory, rows: QueryRows) -> torch.Tensor:
        """(R, D) initial states of denoising queries, as if the token at each box's centre had proposed the box.

        The level follows from the box alone, so neither the order of the queries nor the pack matters.
        """
        level = (boxes_R4[:, 0] * LEVEL_STEPS).long() % len(memory.level_table_LvB3)
        table = memory.level_table_LvB3[level, rows.denoising_samples]
        sides = table[:, 1:]  # rows, columns
        cells = (boxes_R4[:, :2].flip(-1) * sides).long().clamp(min=0).minimum(sides - 1)
        tokens = torch.addcmul(table[:, 0] + cells[:, 1], cells[:, 0], table[:, 2])
        return self.query_from_token(memory.tokens_MD.index_select(0, tokens))  # type: ignore[no-any-return]

    def _propose(self, memory: Memory) -> BoxPrediction:
        tokens_SD = memory.tokens_MD.index_select(0, to_device(_image_rows(memory), memory.tokens_MD.device))
        anchors = []
        for grids in memory.level_grids:
            for rows, columns in grids:
                sides = [min(ANCHOR_TOKENS / count, 0.9) for count in (columns, rows)]
                centres = grid_centres(rows, columns)
                anchors.append(np.concatenate([centres, np.full_like(centres, sides)], axis=1))
        anchors_S4 = to_device(np.concatenate(anchors), tokens_SD.device, full_precision(tokens_SD).dtype)
        return self.proposal_head(tokens_SD, anchors_S4)  # type: ignore[no-any-return]

    def _choose(self, memory: Memory, proposals: BoxPrediction) -> tuple[torch.Tensor, torch.Tensor]:
        """Top-Q image tokens of each sample as query states (B, Q, D) and reference boxes (B, Q, 4)."""
        counts, device = np.asarray(memory.image_token_counts), memory.tokens_MD.device
        numbers = np.arange(max(counts.max(), self.queries))
        is_token = numbers < counts[:, None]
        tokens = np.where(is_token, numbers + (counts.cumsum() - counts)[:, None], 0)
        tokens_BS, rows_BS = to_device(np.stack((tokens, _image_rows(memory)[tokens])), device)
        scores_BS = proposals.objectness.detach()[tokens_BS]
        if not is_token.all():
            scores_BS = scores_BS.masked_fill(to_device(~is_token, device), -torch.inf)
        best_BQ = scores_BS.topk(self.queries).indices
        from_tokens = self.query_from_token(memory.tokens_MD[rows_BS.gather(1, best_BQ)])
        proposed = proposals.boxes.detach()[tokens_BS.gather(1, best_BQ)]
        if counts.min() >= self.queries:
            return with_no_part(from_tokens, self.learned_queries, self.learned_boxes), proposed
        is_token_BQ1 = to_device(is_token[:, : self.queries, None], device)
        return (
            torch.where(is_token_BQ1, from_tokens, self.learned_queries.to(from_tokens.dtype)),
            torch.where(is_token_BQ1, proposed, self.learned_boxes.sigmoid()),
        )


def _image_rows(memory: Memory) -> np.ndarray:
    """(S,) memory rows of the image tokens."""
    counts = zip(memory.level_starts, memory.image_token_counts, strict=True)
    return np.concatenate([np.arange(starts[0], starts[0] + count) for starts, count in counts])


def _stacked(layers: Sequence[nn.Linear]) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (K, …) and biases (K, …) of K linear layers."""
    return torch.stack([layer.weight for layer in layers]), torch.stack([layer.bias for layer in layers])


def _products(features_MD: torch.Tensor, layers: Sequence[nn.Linear]) -> tuple[torch.Tensor, ...]:
    """The outputs (M, D) of linear layers of one input, as one product."""
    weights, biases = _stacked(layers)
    device = features_MD.device.type
    if torch.is_autocast_enabled(device):  # which would copy the input for each layer
        features_MD = features_MD.to(torch.get_autocast_dtype(device))
    return torch.baddbmm(biases[:, None], features_MD.expand(len(layers), -1, -1), weights.transpose(1, 2)).unbind()


class _NoPart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(*parameters)
        return features.view_as(features)

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        return slope, *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)


def with_no_part(features: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
    """The features as they are; parameters that take no part in the step get a gradient of zero.

    Every parameter must have a gradient in every step, or data-parallel ranks deadlock.
    """
    return _NoPart.apply(features, *parameters)  # type: ignore[no-untyped-call, no-any-return]
