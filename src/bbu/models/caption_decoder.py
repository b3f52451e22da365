"""Caption decoder: the words for a box, read from the memory inside and around that box.

A caption starts from its query's final state and attends to a grid of memory tokens sampled in its box, so
what it says follows the pixels there. Token embedding and output layer are the language model's embedding.

Shape legend: C captions, L tokens of a caption, R region tokens, D width, H heads, W language-model width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from bbu.models.attention import dense_attention
from bbu.models.memory import Memory, full_precision, sample_level, sine_embedding

REGION_SCALE = 1.2  # look a little beyond the box: a shadow or a gap lies at its edge


@dataclass
class CaptionResult:
    """``token_ids`` (C, L) without the end token, padded with it; ``log_probs`` (C,): Σ log p, end token included."""

    token_ids: torch.Tensor
    log_probs: torch.Tensor


@dataclass
class _LayerCache:
    key: torch.Tensor | None = None  # (C, H, tokens so far, E)
    value: torch.Tensor | None = None


class CaptionLayer(nn.Module):
    """Causal self-attention, attention to the region, MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_self = nn.LayerNorm(width)
        self.self_qkv = nn.Linear(width, 3 * width)
        self.self_out = nn.Linear(width, width)
        self.norm_region = nn.LayerNorm(width)
        self.region_query = nn.Linear(width, width)
        self.region_key_value = nn.Linear(width, 2 * width)
        self.region_out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        """(C, L, D) → (C, H, L, E)."""
        return x.view(*x.shape[:2], self.heads, x.shape[-1] // self.heads).transpose(1, 2)

    def forward(self, x_CLD: torch.Tensor, region_CRD: torch.Tensor, cache: _LayerCache | None) -> torch.Tensor:
        query, key, value = (self._split(part) for part in self.self_qkv(self.norm_self(x_CLD)).chunk(3, dim=-1))
        if cache is not None:
            if cache.key is not None and cache.value is not None:
                key, value = torch.cat((cache.key, key), dim=2), torch.cat((cache.value, value), dim=2)
            cache.key, cache.value = key, value
        attended = dense_attention(query, key, value, causal=cache is None)
        x_CLD = x_CLD + self.self_out(attended.transpose(1, 2).flatten(2))
        query = self._split(self.region_query(self.norm_region(x_CLD)))
        key, value = (self._split(part) for part in self.region_key_value(region_CRD).chunk(2, dim=-1))
        seen = dense_attention(query, key, value)
        x_CLD = x_CLD + self.region_out(seen.transpose(1, 2).flatten(2))
        return x_CLD + self.mlp(self.norm_mlp(x_CLD))  # type: ignore[no-any-return]


class CaptionDecoder(nn.Module):
    """
    Args:
        width: D of memory and queries.
        lm_width: W of the language model's embedding.
        layers, heads: of the decoder.
        region_cells: a box is read as region_cells × region_cells tokens.
        max_tokens: longest caption with its end token.
    """

    def __init__(self, width: int, lm_width: int, layers: int, heads: int, region_cells: int, max_tokens: int) -> None:
        super().__init__()
        self.region_cells, self.max_tokens = region_cells, max_tokens
        self.start = nn.Linear(width, width)
        self.from_embedding = nn.Linear(lm_width, width)
        self.position = nn.Parameter(torch.randn(max_tokens, width) * 0.02)
        self.region_value = nn.Linear(width, width)
        self.region_place = nn.Linear(width, width)
        self.norm_region = nn.LayerNorm(width)
        self.layers = nn.ModuleList(CaptionLayer(width, heads) for _ in range(layers))
        self.norm_out = nn.LayerNorm(width)
        self.to_embedding = nn.Linear(width, lm_width)

    def regions(self, memory: Memory, samples_C: torch.Tensor, boxes_C4: torch.Tensor) -> torch.Tensor:
        """(C,) samples and (C, 4) cxcywh boxes → (C, R, D): all image levels sampled on a grid in each box."""
        cells = self.region_cells
        ticks = (torch.arange(cells, device=boxes_C4.device, dtype=boxes_C4.dtype) + 0.5) / cells - 0.5
        grid_R2 = torch.stack((ticks.repeat(cells), ticks.repeat_interleave(cells)), dim=-1)
        places_CR2 = boxes_C4[:, None, :2] + grid_R2 * boxes_C4[:, None, 2:] * REGION_SCALE
        places = places_CR2.flatten(0, 1)[:, None, None]
        samples_N = samples_C.repeat_interleave(cells**2)
        values = self.region_value(memory.tokens_MD)[:, None]
        ones = places.new_ones(places.shape[:-1])
        levels = range(len(memory.level_table_KB3))
        sampled = sum(sample_level(values, memory, level, samples_N, places, ones) for level in levels)
        assert isinstance(sampled, torch.Tensor)
        region = sampled.view(len(boxes_C4), cells**2, values.shape[-1]).to(memory.tokens_MD.dtype)
        inside = sine_embedding(grid_R2 + 0.5, region.shape[-1] // 2).to(region.dtype)
        return self.norm_region(region + self.region_place(inside))  # type: ignore[no-any-return]

    def forward(
        self, queries_CD: torch.Tensor, region_CRD: torch.Tensor, token_ids_CL: torch.Tensor, embedding: nn.Embedding
    ) -> torch.Tensor:
        """Teacher forcing: (C, L) target ids → (C, L, W) states, state i predicting token i.

        Multiply a state by the embedding's weight for its logits; that is left to the caller, who needs
        them for few rows at a time.
        """
        words = self.from_embedding(embedding(token_ids_CL[:, :-1]))
        x_CLD = torch.cat((self.start(queries_CD)[:, None], words), dim=1) + self.position[: token_ids_CL.shape[1]]
        return self._run(x_CLD, region_CRD, [None] * len(self.layers))

    def _run(self, x_CLD: torch.Tensor, region_CRD: torch.Tensor, caches: list[_LayerCache | None]) -> torch.Tensor:
        for layer, cache in zip(self.layers, caches, strict=True):
            x_CLD = layer(x_CLD, region_CRD, cache)
        return self.to_embedding(self.norm_out(x_CLD))  # type: ignore[no-any-return]

    @torch.no_grad()
    def generate(
        self, queries_CD: torch.Tensor, region_CRD: torch.Tensor, embedding: nn.Embedding, end_token_id: int
    ) -> CaptionResult:
        """Greedy decoding of all captions in parallel with a key/value cache."""
        captions = queries_CD.shape[0]
        caches: list[_LayerCache | None] = [_LayerCache() for _ in self.layers]
        token_ids = torch.full((captions, self.max_tokens), end_token_id, device=queries_CD.device)
        log_probs = full_precision(queries_CD).new_zeros(captions)
        alive = torch.ones(captions, dtype=torch.bool, device=queries_CD.device)
        x_CLD = self.start(queries_CD)[:, None] + self.position[:1]
        for step in range(self.max_tokens):
            state_CW = self._run(x_CLD, region_CRD, caches)[:, 0]
            scores_CV = full_precision(F.linear(state_CW, embedding.weight)).log_softmax(dim=-1)
            best, chosen = scores_CV.max(dim=-1)
            log_probs = log_probs + torch.where(alive, best, 0)
            token_ids[:, step] = torch.where(alive, chosen, end_token_id)
            alive = alive & (chosen != end_token_id)
            if step + 1 == self.max_tokens or not bool(alive.any()):
                break
            x_CLD = (self.from_embedding(embedding(token_ids[:, step])) + self.position[step + 1])[:, None]
        return CaptionResult(token_ids, log_probs)
