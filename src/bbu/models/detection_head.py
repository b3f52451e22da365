"""DETR-style decoder: from the detection memory to boxes and objectness.

Every image token proposes a box (two-stage, Zhu et al. 2021); the best ones become queries whose boxes are
refined layer by layer. A layer looks at the other queries, at the whole memory (language included) and at
learned points around its own box. Queries are conditioned on their boxes (DAB-DETR, Liu et al. 2022,
arXiv:2201.12329). Learned queries take over where an image has fewer tokens than there are queries.
Beside its own queries the decoder takes hinted ones, which start from boxes that are given (in training: parts with
noise, bbu.losses.denoising). The two see nothing of each other.

Shape legend: B samples, M memory tokens, S image tokens of all samples, D width, Q own queries of a sample, R queries
of all samples, own and hinted, H heads, E head width, P points a level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import nn

from bbu.layers.attention import varlen_attention
from bbu.layers.transfer import to_device
from bbu.models.memory import Memory, full_precision, grid_centres, sample_level, sine_embedding

ANCHOR_TOKENS = 3.0  # a token first guesses a box three tokens wide and high
PRIOR_OBJECTNESS = 0.02  # share of image tokens that are parts, before anything is learned
HINT_GRAIN = 4096  # x in steps of 1/4096 of the photo is as good as a coin for choosing a hint's level


@dataclass
class BoxPrediction:
    """``boxes`` (…, 4) cxcywh in [0, 1]; ``objectness`` (…,) logits."""

    boxes: torch.Tensor
    objectness: torch.Tensor

    def at(self, rows: torch.Tensor) -> BoxPrediction:
        """Those of some rows."""
        return BoxPrediction(self.boxes.index_select(0, rows), self.objectness.index_select(0, rows))


@dataclass
class HeadOutput:
    """
    Args:
        layers: one prediction (B, Q) for each decoder layer, last = final.
        proposals: prediction of every image token, (S,) samples end to end.
        proposal_counts: image tokens of each sample.
        queries_BQD: final query states.
        hinted: one prediction (hints,) for each decoder layer, in the order of the hints.
    """

    layers: list[BoxPrediction]
    proposals: BoxPrediction
    proposal_counts: list[int]
    queries_BQD: torch.Tensor
    hinted: list[BoxPrediction]


@dataclass
class Hints:
    """Boxes that further queries start from.

    Args:
        boxes: (hints, 4) cxcywh in [0, 1], samples end to end, in each sample group by group.
        group_sizes: for each sample the hints of each of its groups. Queries of a group see each other and no others.
    """

    boxes: torch.Tensor
    group_sizes: Sequence[Sequence[int]]


@dataclass
class QueryRows:
    """Where the queries of a pack are: sample by sample, in each its own ones and then its hinted ones by group.

    Args:
        samples_R: the sample of each.
        own, hinted: rows of own and of hinted queries.
        order: numbers of the own queries and then the hinted ones, in the order of rows.
        group_edges, sample_edges: int32 edges of those that see each other, and of samples; with the longest of each.
    """

    samples_R: torch.Tensor
    own: torch.Tensor
    hinted: torch.Tensor
    order: torch.Tensor
    group_edges: torch.Tensor
    most_in_group: int
    sample_edges: torch.Tensor
    most_in_sample: int

    @classmethod
    def of(cls, queries: int, group_sizes: Sequence[Sequence[int]], device: torch.device) -> QueryRows:
        """For ``queries`` own ones in each sample."""
        groups = [size for sizes in group_sizes for size in (queries, *sizes)]
        samples = [queries + sum(sizes) for sizes in group_sizes]
        owners = np.repeat(np.arange(len(samples)), samples)
        is_own = np.arange(len(owners)) - np.cumsum([0, *samples])[owners] < queries
        own, hinted = np.flatnonzero(is_own), np.flatnonzero(~is_own)
        return cls(
            samples_R=to_device(owners, device),
            own=to_device(own, device),
            hinted=to_device(hinted, device),
            order=to_device(np.argsort(np.concatenate((own, hinted))), device),
            group_edges=to_device([0, *accumulate(groups)], device, torch.int32),
            most_in_group=max(groups),
            sample_edges=to_device([0, *accumulate(samples)], device, torch.int32),
            most_in_sample=max(samples),
        )

    def join(self, own: torch.Tensor, hinted: torch.Tensor) -> torch.Tensor:
        """Own and hinted ones, each in their order → (R, …)."""
        return torch.cat((own, hinted)).index_select(0, self.order)


def inverse_sigmoid(unit: torch.Tensor) -> torch.Tensor:
    """Logit of numbers in [0, 1], finite at both ends."""
    return torch.logit(unit, eps=1e-4)


def mlp(in_width: int, hidden: int, out_width: int) -> nn.Sequential:
    """Two hidden layers, as DETR's box head."""
    return nn.Sequential(
        nn.Linear(in_width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, out_width)
    )


class BoxHead(nn.Module):
    """Features → objectness logit and a step of the box in logit space, which starts at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.objectness = nn.Linear(width, 1)
        self.step = mlp(width, width, 4)
        nn.init.constant_(self.objectness.bias, -math.log((1 - PRIOR_OBJECTNESS) / PRIOR_OBJECTNESS))
        last = self.step[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, features: torch.Tensor, reference: torch.Tensor) -> BoxPrediction:
        """(…, D) features and (…, 4) reference boxes → prediction in float32 or better."""
        features = self.norm(features)
        boxes = (inverse_sigmoid(reference) + full_precision(self.step(features))).sigmoid()
        return BoxPrediction(boxes, full_precision(self.objectness(features)).squeeze(-1))


class DecoderLayer(nn.Module):
    """Queries look at each other, at the whole memory and at points around their boxes; then an MLP."""

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
        """Each head starts looking in its own direction, its points further and further out."""
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
        places_RD: torch.Tensor,
        boxes_R4: torch.Tensor,
        rows: QueryRows,
        memory: Memory,
        backend: str,
    ) -> torch.Tensor:
        """One round of looking; boxes are the current references, cxcywh."""
        queries_RD = queries_RD + self._look_at_queries(self.norm_self(queries_RD), places_RD, rows, backend)
        normed = self.norm_cross(queries_RD) + places_RD
        values_MD = self.cross_value(memory.tokens_MD)
        queries_RD = (
            queries_RD
            + self._look_at_memory(normed, values_MD, rows, memory, backend)
            + self._look_at_points(normed, values_MD, boxes_R4, rows, memory)
        )
        return queries_RD + self.mlp(self.norm_mlp(queries_RD))  # type: ignore[no-any-return]

    def _split(self, features: torch.Tensor) -> torch.Tensor:
        """(…, D) → (…, H, E)."""
        return features.unflatten(-1, (self.heads, -1))

    def _look_at_queries(
        self, queries_RD: torch.Tensor, places_RD: torch.Tensor, rows: QueryRows, backend: str
    ) -> torch.Tensor:
        query, key = self.self_query_key(queries_RD + places_RD).chunk(2, dim=-1)
        attended = varlen_attention(
            self._split(query),
            self._split(key),
            self._split(self.self_value(queries_RD)),
            cu_seqlens_q=rows.group_edges,
            cu_seqlens_k=rows.group_edges,
            max_seqlen_q=rows.most_in_group,
            max_seqlen_k=rows.most_in_group,
            causal=False,
            backend=backend,
        )
        return self.self_out(attended.flatten(1))  # type: ignore[no-any-return]

    def _look_at_memory(
        self, queries_RD: torch.Tensor, values_MD: torch.Tensor, rows: QueryRows, memory: Memory, backend: str
    ) -> torch.Tensor:
        attended = varlen_attention(
            self._split(self.cross_query(queries_RD)),
            self._split(self.cross_key(memory.tokens_MD + memory.places_MD)),
            self._split(values_MD),
            cu_seqlens_q=rows.sample_edges,
            cu_seqlens_k=memory.cu_seqlens,
            max_seqlen_q=rows.most_in_sample,
            max_seqlen_k=memory.max_seqlen,
            causal=False,
            backend=backend,
        )
        return self.cross_out(attended.flatten(1))  # type: ignore[no-any-return]

    def _look_at_points(
        self, queries_RD: torch.Tensor, values_MD: torch.Tensor, boxes_R4: torch.Tensor, rows: QueryRows, memory: Memory
    ) -> torch.Tensor:
        shape = (len(queries_RD), self.heads, self.levels, self.points)
        offsets = full_precision(self.point_offset(queries_RD)).view(*shape, 2)
        weights = full_precision(self.point_weight(queries_RD)).view(*shape[:2], -1).softmax(-1).view(shape)
        centres, sides = boxes_R4[:, None, None, None, :2], boxes_R4[:, None, None, None, 2:]
        places = centres + offsets * sides * 0.5  # offset 1 = the edge of the box
        values_MHE = self._split(values_MD)
        seen = sum(
            sample_level(values_MHE, memory, level, rows.samples_R, places[:, :, level], weights[:, :, level])
            for level in range(self.levels)
        )
        assert isinstance(seen, torch.Tensor)
        return self.point_out(seen.flatten(1).to(queries_RD.dtype))  # type: ignore[no-any-return]


class DetectionHead(nn.Module):
    """Memory → boxes and objectness of every decoder layer.

    Args:
        width: D.
        queries: Q, the most parts a photo can have.
        layers, heads, points: of the decoder.
        levels: image levels in the memory.
    """

    def __init__(self, width: int, queries: int, layers: int, heads: int, points: int, levels: int) -> None:
        super().__init__()
        self.width, self.queries = width, queries
        self.proposal_head = BoxHead(width)
        self.query_from_token = nn.Linear(width, width)
        self.learned_queries = nn.Parameter(torch.randn(queries, width) * 0.02)
        self.learned_boxes = nn.Parameter(torch.randn(queries, 4) * 0.5)  # logits of cxcywh
        self.box_place = nn.Sequential(nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, width))
        self.layers = nn.ModuleList(DecoderLayer(width, heads, points, levels) for _ in range(layers))
        self.box_heads = nn.ModuleList(BoxHead(width) for _ in range(layers))

    def forward(self, memory: Memory, backend: str, hints: Hints | None = None) -> HeadOutput:
        """Detect in every sample of the memory; hints change nothing but ``hinted``."""
        proposals = self._propose(memory)
        queries_BQD, boxes_BQ4 = self._choose(memory, proposals)
        queries_RD, boxes_R4 = queries_BQD.flatten(0, 1), boxes_BQ4.flatten(0, 1)
        rows = QueryRows.of(self.queries, hints.group_sizes if hints else [()] * len(boxes_BQ4), boxes_R4.device)
        if hints is not None:
            queries_RD = rows.join(queries_RD, self._at_centres(hints.boxes, memory, rows).to(queries_RD.dtype))
            boxes_R4 = rows.join(boxes_R4, hints.boxes.to(boxes_R4.dtype))
        own, hinted = [], []
        for layer, head in zip(self.layers, self.box_heads, strict=True):
            reference_R4 = boxes_R4.detach()  # each layer learns its own step
            places = self.box_place(sine_embedding(reference_R4, self.width // 2).to(queries_RD.dtype))
            queries_RD = layer(queries_RD, places, reference_R4, rows, memory, backend)
            found = head(queries_RD, reference_R4)
            boxes_R4 = found.boxes
            by_sample = found.at(rows.own)
            own.append(
                BoxPrediction(by_sample.boxes.view_as(boxes_BQ4), by_sample.objectness.view(boxes_BQ4.shape[:2]))
            )
            hinted.append(found.at(rows.hinted))
        states_BQD = queries_RD.index_select(0, rows.own).view_as(queries_BQD)
        return HeadOutput(own, proposals, memory.image_token_counts, states_BQD, hinted)

    def _at_centres(self, boxes: torch.Tensor, memory: Memory, rows: QueryRows) -> torch.Tensor:
        """(hints, D) queries as if the tokens at the centres of the hints had proposed them, of any level.

        Which level follows from the box alone, so that neither the order of hints nor the pack matters.
        """
        samples = rows.samples_R.index_select(0, rows.hinted)
        level = (boxes[:, 0] * HINT_GRAIN).long() % len(memory.level_table_KB3)
        start, tall, wide = memory.level_table_KB3[level, samples].unbind(-1)
        column = (boxes[:, 0] * wide).long().clamp(min=0).minimum(wide - 1)
        row = (boxes[:, 1] * tall).long().clamp(min=0).minimum(tall - 1)
        return self.query_from_token(memory.tokens_MD[start + row * wide + column])  # type: ignore[no-any-return]

    def _image_rows(self, memory: Memory) -> torch.Tensor:
        """(S,) memory rows of the image tokens."""
        device = memory.tokens_MD.device
        ranges = [
            torch.arange(starts[0], starts[0] + count, device=device)
            for starts, count in zip(memory.level_starts, memory.image_token_counts, strict=True)
        ]
        return torch.cat(ranges)

    def _propose(self, memory: Memory) -> BoxPrediction:
        tokens_SD = memory.tokens_MD[self._image_rows(memory)]
        anchors = []
        for grids in memory.level_grids:
            for rows, columns in grids:
                centres = grid_centres(rows, columns, tokens_SD.device, full_precision(tokens_SD).dtype)
                sides = [min(ANCHOR_TOKENS / count, 0.9) for count in (columns, rows)]
                anchors.append(torch.cat([centres, *(torch.full_like(centres[:, :1], side) for side in sides)], dim=-1))
        return self.proposal_head(tokens_SD, torch.cat(anchors))  # type: ignore[no-any-return]

    def _choose(self, memory: Memory, proposals: BoxPrediction) -> tuple[torch.Tensor, torch.Tensor]:
        """The Q best image tokens of each sample as queries (B, Q, D) and their boxes (B, Q, 4)."""
        image_rows = self._image_rows(memory)
        queries, boxes = [], []
        first = 0
        for count in memory.image_token_counts:
            taken = min(count, self.queries)
            best = proposals.objectness[first : first + count].detach().topk(taken).indices + first
            from_tokens = self.query_from_token(memory.tokens_MD[image_rows[best]])
            queries.append(torch.cat((from_tokens, self.learned_queries[taken:].to(from_tokens.dtype))))
            boxes.append(torch.cat((proposals.boxes[best].detach(), self.learned_boxes[taken:].sigmoid())))
            first += count
        unused = (self.learned_queries.sum() + self.learned_boxes.sum()) * 0  # takes part in every step
        return torch.stack(queries) + unused, torch.stack(boxes)
