"""Caption decoder: the words for a box, read from the memory inside and around that box.

A caption starts from its query's final state and attends to a grid of memory tokens sampled in its box, so
what it says follows the pixels there. Token embedding and output layer are the language model's embedding.
It says any words (``generate``), or weighs the descriptions of a vocabulary against one another (``weigh``).

Shape legend: C captions, L tokens of a caption, R region tokens, D width, H heads, E width of a head, W language-model
width, V tokens, F descriptions, N nodes of their tree that are followed at once, K children of a node at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from bbu.layers.attention import dense_attention
from bbu.models.memory import Memory, full_precision, sample_level, sine_embedding
from bbu.models.vocabulary import DescriptionVocabulary

REGION_SCALE = 1.2  # look a little beyond the box: a shadow or a gap lies at its edge
EXACT_NODES = 2000  # a tree of descriptions up to this many nodes is weighed whole, see docs/descriptions.md
BEAM_WIDTH = 32  # beginnings of descriptions that are followed at once in a larger tree
FIRST_LOOK = 4  # beginnings that are followed to learn which others can matter
LEFT_OUT = 1e-6  # most probability, within the vocabulary, that is not looked at; predictions have six decimals
ROWS_AT_ONCE = 8192  # nodes of all captions together: bounds their keys and values in memory
LOGITS_AT_ONCE = 2**28  # 1 GB in float32


@dataclass
class CaptionResult:
    """``token_ids`` (C, L) without the end token, padded with it; ``log_probs`` (C,): Σ log p, end token included.

    ``cumulative_CL``: the same sum up to and including each token.
    """

    token_ids: torch.Tensor
    log_probs: torch.Tensor
    cumulative_CL: torch.Tensor


@dataclass
class _LayerCache:
    key: torch.Tensor | None = None  # (C, H, tokens so far, E); in a tree C · N rows
    value: torch.Tensor | None = None
    region: tuple[torch.Tensor, torch.Tensor] | None = None  # (C, H, R, E) keys and values, the same at every step

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows, in this order; a row may be asked for more than once. Regions are those of captions."""
        if self.key is not None and self.value is not None:
            self.key, self.value = self.key[rows], self.value[rows]


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
        """With a cache, x may have N rows of one token for each caption: nodes of a tree that share its region."""
        query, key, value = (self._split(part) for part in self.self_qkv(self.norm_self(x_CLD)).chunk(3, dim=-1))
        if cache is not None:
            if cache.key is not None and cache.value is not None:
                key, value = torch.cat((cache.key, key), dim=2), torch.cat((cache.value, value), dim=2)
            cache.key, cache.value = key, value
        attended = dense_attention(query, key, value, causal=cache is None)
        x_CLD = x_CLD + self.self_out(attended.transpose(1, 2).flatten(2))
        by_caption = x_CLD.flatten(0, 1).unflatten(0, (len(region_CRD), -1)) if len(region_CRD) else x_CLD
        query = self._split(self.region_query(self.norm_region(by_caption)))
        seen = dense_attention(query, *self._region(region_CRD, cache))
        x_CLD = x_CLD + self.region_out(seen.transpose(1, 2).flatten(2)).view_as(x_CLD)
        return x_CLD + self.mlp(self.norm_mlp(x_CLD))  # type: ignore[no-any-return]

    def _region(self, region_CRD: torch.Tensor, cache: _LayerCache | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the region; with a cache they are computed at the first step alone."""
        if cache is not None and cache.region is not None:
            return cache.region
        key, value = (self._split(part) for part in self.region_key_value(region_CRD).chunk(2, dim=-1))
        if cache is not None:
            cache.region = key, value
        return key, value


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
        cumulative_CL = log_probs[:, None].repeat(1, self.max_tokens)
        alive = torch.ones(captions, dtype=torch.bool, device=queries_CD.device)
        x_CLD = self.start(queries_CD)[:, None] + self.position[:1]
        for step in range(self.max_tokens):
            state_CW = self._run(x_CLD, region_CRD, caches)[:, 0]
            scores_CV = full_precision(F.linear(state_CW, embedding.weight)).log_softmax(dim=-1)
            best, chosen = scores_CV.max(dim=-1)
            log_probs = log_probs + torch.where(alive, best, 0)
            cumulative_CL[:, step:] = log_probs[:, None]
            token_ids[:, step] = torch.where(alive, chosen, end_token_id)
            alive = alive & (chosen != end_token_id)
            if step + 1 == self.max_tokens or not bool(alive.any()):
                break
            x_CLD = (self.from_embedding(embedding(token_ids[:, step])) + self.position[step + 1])[:, None]
        return CaptionResult(token_ids, log_probs, cumulative_CL)

    @torch.no_grad()
    def weigh(
        self,
        queries_CD: torch.Tensor,
        region_CRD: torch.Tensor,
        embedding: nn.Embedding,
        vocabulary: DescriptionVocabulary,
        width: int | None = None,
        left_out: float = LEFT_OUT,
    ) -> torch.Tensor:
        """(C, F) log p of every description of a vocabulary as free text, its end token included.

        A description that was not reached has −inf.

        Args:
            width: beginnings that are followed at once, the most probable ones. None: all that matter, or BEAM_WIDTH
                where the tree has more than EXACT_NODES nodes.
            left_out: those that matter not are together at most this share of the vocabulary's probability. A
                description is no more probable than its beginning, so a beginning less probable than this share of
                what a first look finds, divided by the number of nodes, need not be followed.
        """
        if not len(queries_CD):
            return full_precision(queries_CD).new_zeros(0, len(vocabulary.descriptions))
        exact = width is None and vocabulary.nodes <= EXACT_NODES
        widest = vocabulary.nodes if exact else width or BEAM_WIDTH
        rows = min(ROWS_AT_ONCE, LOGITS_AT_ONCE // embedding.num_embeddings)
        chunk = max(1, rows // min(widest, max(vocabulary.nodes_at_depth)))
        tables = vocabulary.child_tokens_NK.to(queries_CD.device), vocabulary.children_NK.to(queries_CD.device)
        found = []
        for queries, region in zip(queries_CD.split(chunk), region_CRD.split(chunk), strict=True):
            floor_C = torch.full_like(full_precision(queries[:, 0]), -torch.inf)
            if exact and left_out > 0:
                first = self._weigh(queries, region, embedding, vocabulary, tables, FIRST_LOOK, floor_C)
                floor_C = first.logsumexp(dim=1) + math.log(left_out / vocabulary.nodes)
            found.append(self._weigh(queries, region, embedding, vocabulary, tables, widest, floor_C))
        return torch.cat(found)

    def _weigh(
        self,
        queries_CD: torch.Tensor,
        region_CRD: torch.Tensor,
        embedding: nn.Embedding,
        vocabulary: DescriptionVocabulary,
        tables: tuple[torch.Tensor, torch.Tensor],
        width: int,
        floor_C: torch.Tensor,
    ) -> torch.Tensor:
        """Go down the tree, all captions and all followed nodes of one depth in parallel.

        Args:
            floor_C: beginnings below this log p need not be followed.
        """
        captions, leaves = len(queries_CD), len(vocabulary.descriptions)
        caches: list[_LayerCache | None] = [_LayerCache() for _ in self.layers]
        nodes_CN = torch.zeros(captions, 1, dtype=torch.long, device=queries_CD.device)
        log_probs_CN = full_precision(queries_CD).new_zeros(captions, 1)
        ends_CF = log_probs_CN.new_full((captions, leaves + 1), -torch.inf)  # the last column takes what ends nowhere
        x_CLD = self.start(queries_CD)[:, None] + self.position[:1]
        for depth in range(len(vocabulary.nodes_at_depth)):
            tokens_CNK, children_CNK = (table[nodes_CN] for table in tables)
            state_CNW = self._run(x_CLD, region_CRD, caches).view(*nodes_CN.shape, -1)
            logits_CNV = full_precision(F.linear(state_CNW, embedding.weight))
            step_CNK = logits_CNV.gather(2, tokens_CNK) - logits_CNV.logsumexp(dim=-1, keepdim=True)
            total_CNK = (log_probs_CN[:, :, None] + step_CNK).masked_fill(children_CNK < 0, -torch.inf)
            is_end = children_CNK >= vocabulary.nodes
            ended = torch.where(is_end, children_CNK - vocabulary.nodes, leaves).flatten(1)
            ends_CF.scatter_reduce_(1, ended, total_CNK.flatten(1), "amax")
            if depth + 1 == len(vocabulary.nodes_at_depth):
                break
            open_CM = total_CNK.masked_fill(is_end, -torch.inf).flatten(1)
            follow = min(width, vocabulary.nodes_at_depth[depth + 1], open_CM.shape[1])
            log_probs_CN, picked = open_CM.topk(follow, dim=1)
            matter = int((log_probs_CN >= floor_C[:, None]).sum(dim=1).max())
            if not matter:
                break
            log_probs_CN, picked = log_probs_CN[:, :matter], picked[:, :matter]
            # A caption with fewer open nodes than others has idle places: probability 0, whatever their node.
            nodes_CN = children_CNK.flatten(1).gather(1, picked).masked_fill(log_probs_CN == -torch.inf, 0)
            self._follow(caches, picked // tokens_CNK.shape[2], tokens_CNK.shape[1])
            tokens = tokens_CNK.flatten(1).gather(1, picked).flatten()
            x_CLD = (self.from_embedding(embedding(tokens)) + self.position[depth + 1])[:, None]
        return ends_CF[:, :-1]

    @staticmethod
    def _follow(caches: Sequence[_LayerCache | None], parents_CN: torch.Tensor, before: int) -> None:
        """What each caption's new nodes have said so far, ``before`` being how many nodes it had."""
        first_row = torch.arange(len(parents_CN), device=parents_CN.device)[:, None] * before
        for cache in caches:
            if cache is not None:
                cache.select((first_row + parents_CN).flatten())
