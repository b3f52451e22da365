"""DETR-style decoder: from the detection memory to boxes and objectness.

Every image token proposes a box (two-stage, Zhu et al. 2021); the best ones become queries whose boxes are
refined layer by layer. A layer looks at the other queries, at the whole memory (language included) and at
learned points around its own box. Queries are conditioned on their boxes (DAB-DETR, Liu et al. 2022,
arXiv:2201.12329). Learned queries take over where an image has fewer tokens than there are queries.

Shape legend: B samples, M memory tokens, S image tokens of all samples, D width, Q queries, H heads,
E head width, P points a level.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from bbu.models.attention import dense_attention, varlen_attention
from bbu.models.memory import Memory, full_precision, grid_centres, sample_level, sine_embedding

ANCHOR_TOKENS = 3.0  # a token first guesses a box three tokens wide and high
PRIOR_OBJECTNESS = 0.02  # share of image tokens that are parts, before anything is learned


@dataclass
class BoxPrediction:
    """``boxes`` (…, 4) cxcywh in [0, 1]; ``objectness`` (…,) logits."""

    boxes: torch.Tensor
    objectness: torch.Tensor


@dataclass
class HeadOutput:
    """
    Args:
        layers: one prediction (B, Q) for each decoder layer, last = final.
        proposals: prediction of every image token, (S,) samples end to end.
        proposal_counts: image tokens of each sample.
        queries_BQD: final query states.
    """

    layers: list[BoxPrediction]
    proposals: BoxPrediction
    proposal_counts: list[int]
    queries_BQD: torch.Tensor


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
        self, queries_BQD: torch.Tensor, places_BQD: torch.Tensor, boxes_BQ4: torch.Tensor, memory: Memory, engine: str
    ) -> torch.Tensor:
        """One round of looking; boxes are the current references, cxcywh."""
        queries_BQD = queries_BQD + self._look_at_queries(self.norm_self(queries_BQD), places_BQD)
        normed = self.norm_cross(queries_BQD) + places_BQD
        values_MD = self.cross_value(memory.tokens_MD)
        queries_BQD = (
            queries_BQD
            + self._look_at_memory(normed, values_MD, memory, engine)
            + self._look_at_points(normed, values_MD, boxes_BQ4, memory)
        )
        return queries_BQD + self.mlp(self.norm_mlp(queries_BQD))  # type: ignore[no-any-return]

    def _look_at_queries(self, queries_BQD: torch.Tensor, places_BQD: torch.Tensor) -> torch.Tensor:
        batch, count, width = queries_BQD.shape
        query, key = self.self_query_key(queries_BQD + places_BQD).chunk(2, dim=-1)
        value = self.self_value(queries_BQD)
        split = (x.view(batch, count, self.heads, -1).transpose(1, 2) for x in (query, key, value))
        attended = dense_attention(*split)
        return self.self_out(attended.transpose(1, 2).reshape(batch, count, width))  # type: ignore[no-any-return]

    def _look_at_memory(
        self, queries_BQD: torch.Tensor, values_MD: torch.Tensor, memory: Memory, engine: str
    ) -> torch.Tensor:
        batch, count, width = queries_BQD.shape
        query = self.cross_query(queries_BQD).view(batch * count, self.heads, -1)
        key = self.cross_key(memory.tokens_MD + memory.places_MD).view(-1, self.heads, width // self.heads)
        attended = varlen_attention(
            query,
            key,
            values_MD.view(-1, self.heads, width // self.heads),
            cu_seqlens_q=torch.arange(batch + 1, device=query.device, dtype=torch.int32) * count,
            cu_seqlens_k=memory.cu_seqlens,
            max_seqlen_q=count,
            max_seqlen_k=memory.max_seqlen,
            causal=False,
            engine=engine,
        )
        return self.cross_out(attended.reshape(batch, count, width))  # type: ignore[no-any-return]

    def _look_at_points(
        self, queries_BQD: torch.Tensor, values_MD: torch.Tensor, boxes_BQ4: torch.Tensor, memory: Memory
    ) -> torch.Tensor:
        batch, count, width = queries_BQD.shape
        shape = (batch, count, self.heads, self.levels, self.points)
        offsets = full_precision(self.point_offset(queries_BQD)).view(*shape, 2)
        weights = full_precision(self.point_weight(queries_BQD)).view(*shape[:3], -1).softmax(-1).view(shape)
        centres, sides = boxes_BQ4[:, :, None, None, None, :2], boxes_BQ4[:, :, None, None, None, 2:]
        places = centres + offsets * sides * 0.5  # offset 1 = the edge of the box
        values_MHE = values_MD.view(-1, self.heads, width // self.heads)
        samples_N = torch.arange(batch, device=places.device).repeat_interleave(count)
        places, weights = places.flatten(0, 1), weights.flatten(0, 1)
        seen = sum(
            sample_level(values_MHE, memory, level, samples_N, places[:, :, level], weights[:, :, level])
            for level in range(self.levels)
        )
        assert isinstance(seen, torch.Tensor)
        return self.point_out(seen.reshape(batch, count, width).to(queries_BQD.dtype))  # type: ignore[no-any-return]


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

    def forward(self, memory: Memory, engine: str) -> HeadOutput:
        """Detect in every sample of the memory."""
        proposals = self._propose(memory)
        queries_BQD, boxes_BQ4 = self._choose(memory, proposals)
        predictions = []
        for layer, head in zip(self.layers, self.box_heads, strict=True):
            reference = boxes_BQ4.detach()  # each layer learns its own step
            places = self.box_place(sine_embedding(reference, self.width // 2).to(queries_BQD.dtype))
            queries_BQD = layer(queries_BQD, places, reference, memory, engine)
            predictions.append(head(queries_BQD, reference))
            boxes_BQ4 = predictions[-1].boxes
        return HeadOutput(predictions, proposals, memory.image_token_counts, queries_BQD)

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
