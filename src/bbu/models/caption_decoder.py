"""Caption decoder: writes the description of a box from the memory inside and around that box.

A caption starts from its query's final state and attends to memory features sampled on a grid in its box, so it
follows the pixels there. Token embedding and output layer are the language model's embedding and head. ``generate``
decodes freely; ``score_descriptions`` scores every description of a vocabulary.

Shapes: B samples, C captions, Ce cells of a region, Ch children of a node, D feature width, De descriptions of a
vocabulary, L tokens of one sample or caption, Lv levels, M memory tokens, No nodes of the description tree, R rows,
V vocabulary entries, W width of the language model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional as F

from bbu.config import DetectionConfig
from bbu.layers.attention import dense_attention
from bbu.models.memory import LevelRows, Memory, full_precision, sample_levels, sine_embedding
from bbu.models.vocabulary import DescriptionVocabulary

REGION_SCALE = 1.2  # look a little beyond the box: a shadow or a gap lies at its edge
EXACT_NODES = 2000  # a description tree of up to this many nodes is scored exactly, see docs/descriptions.md
BEAM_WIDTH = 32  # beam width in a larger tree
FIRST_BEAM = 4  # beam width of the first pass, which bounds what the exact pass may prune
PRUNED_MASS = 1e-6  # most probability mass, within the vocabulary, that is pruned; predictions have six decimals
ROWS_AT_ONCE = 8192  # nodes of all captions together: bounds the memory of their keys and values
LOGITS_AT_ONCE = 2**28  # 1 GB in float32

KeyValue = tuple[torch.Tensor, torch.Tensor]


@dataclass
class CaptionResult:
    """Decoded captions.

    Args:
        token_ids: (C, L), padded with the end token.
        log_probs: (C,) Σ log p, end token included.
        cumulative_CL: the same sum up to and including each token.
    """

    token_ids: torch.Tensor
    log_probs: torch.Tensor
    cumulative_CL: torch.Tensor


@dataclass
class _LayerCache:
    """Keys and values of a layer."""

    tokens: KeyValue | None = None  # (R, H, L, E): a row for each caption, in a tree for each of its nodes
    region: KeyValue | None = None  # (C, H, Ce, E), the same at every step

    def select(self, rows: torch.Tensor) -> None:
        """Gather rows of the tokens, with repeats; regions belong to captions and stay."""
        if self.tokens is not None:
            self.tokens = self.tokens[0][rows], self.tokens[1][rows]


class CaptionLayer(nn.Module):
    """Causal self-attention, cross-attention to the region, MLP."""

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
        """(R, L, D) → (R, H, L, E)."""
        return x.view(*x.shape[:2], self.heads, x.shape[-1] // self.heads).transpose(1, 2)

    def forward(self, x_RLD: torch.Tensor, region_CCeD: torch.Tensor, cache: _LayerCache | None) -> torch.Tensor:
        """One row per caption; with a cache, a caption may have several rows, tree nodes that share its region."""
        query, key, value = (self._split(x) for x in self.self_qkv(self.norm_self(x_RLD)).chunk(3, dim=-1))
        if cache is not None:
            if cache.tokens is not None:
                key, value = torch.cat((cache.tokens[0], key), dim=2), torch.cat((cache.tokens[1], value), dim=2)
            cache.tokens = key, value
        attended = dense_attention(query, key, value, causal=cache is None)
        x_RLD = x_RLD + self.self_out(attended.transpose(1, 2).flatten(2))
        by_caption = x_RLD.flatten(0, 1).unflatten(0, (len(region_CCeD), -1)) if len(region_CCeD) else x_RLD
        query = self._split(self.region_query(self.norm_region(by_caption)))
        attended = dense_attention(query, *self._region(region_CCeD, cache))
        x_RLD = x_RLD + self.region_out(attended.transpose(1, 2).flatten(2)).view_as(x_RLD)
        return x_RLD + self.mlp(self.norm_mlp(x_RLD))  # type: ignore[no-any-return]

    def _region(self, region_CCeD: torch.Tensor, cache: _LayerCache | None) -> KeyValue:
        """Keys and values of the region; a cache keeps them from the first step on."""
        if cache is not None and cache.region is not None:
            return cache.region
        key, value = (self._split(x) for x in self.region_key_value(region_CCeD).chunk(2, dim=-1))
        if cache is not None:
            cache.region = key, value
        return key, value


@lru_cache(maxsize=8)
def _region_grid(cells: int, width: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(Ce, 2) centres of a region's cells, from its middle and in its sides, and their (Ce, D) embedding.

    Made once, not to be changed.
    """
    with torch.inference_mode(False), torch.no_grad():
        ticks = (torch.arange(cells, device=device, dtype=dtype) + 0.5) / cells - 0.5
        grid_Ce2 = torch.stack((ticks.repeat(cells), ticks.repeat_interleave(cells)), dim=-1)
        return grid_Ce2, sine_embedding(grid_Ce2 + 0.5, width // 2)


class CaptionDecoder(nn.Module):
    """Decodes captions of boxes.

    Args:
        config: a box is sampled on a grid of caption_region_cells × caption_region_cells; caption_max_tokens is the
            longest caption, its end token included.
        lm_width: W of the language model's embedding.
    """

    def __init__(self, config: DetectionConfig, lm_width: int) -> None:
        super().__init__()
        width = config.width
        self.region_cells, self.max_tokens = config.caption_region_cells, config.caption_max_tokens
        self.start = nn.Linear(width, width)
        self.from_embedding = nn.Linear(lm_width, width)
        self.position = nn.Parameter(torch.randn(self.max_tokens, width) * 0.02)
        self.region_value = nn.Linear(width, width)
        self.region_place = nn.Linear(width, width)
        self.norm_region = nn.LayerNorm(width)
        self.layers = nn.ModuleList(CaptionLayer(width, config.heads) for _ in range(config.caption_layers))
        self.norm_out = nn.LayerNorm(width)
        self.to_embedding = nn.Linear(width, lm_width)

    def regions(self, memory: Memory, samples_C: torch.Tensor, boxes_C4: torch.Tensor) -> torch.Tensor:
        """Sample all image levels on a grid in each cxcywh box → (C, Ce, D)."""
        cells, levels = self.region_cells**2, len(memory.level_table_LvB3)
        values = self.region_value(memory.tokens_MD)[:, None]
        grid_Ce2, places_CeD = _region_grid(self.region_cells, values.shape[-1], boxes_C4.dtype, boxes_C4.device)
        points_CCe2 = torch.addcmul(boxes_C4[:, None, :2], grid_Ce2, boxes_C4[:, None, 2:], value=REGION_SCALE)
        points = points_CCe2.flatten(0, 1)[:, None, None, None].expand(-1, -1, levels, -1, -1)
        rows = LevelRows.of(memory, samples_C.repeat_interleave(cells), heads=1, points=1)
        region = sample_levels(values, rows, points, None).view(len(boxes_C4), cells, values.shape[-1])
        region, place = region.to(memory.tokens_MD.dtype), self.region_place(places_CeD.to(memory.tokens_MD.dtype))
        return self.norm_region(region + place)  # type: ignore[no-any-return]

    def forward(
        self, queries_CD: torch.Tensor, region_CCeD: torch.Tensor, embedding: nn.Embedding, token_ids_CL: torch.Tensor
    ) -> torch.Tensor:
        """Teacher forcing: target ids → (C, L, W) states, state i predicting token i.

        A state's logits are its product with the language model's head, which the caller takes for few rows at a time.
        """
        tokens = self.from_embedding(embedding(token_ids_CL[:, :-1]))
        x_RLD = torch.cat((self.start(queries_CD)[:, None], tokens), dim=1) + self.position[: token_ids_CL.shape[1]]
        return self._run(x_RLD, region_CCeD, [None] * len(self.layers))

    def _run(
        self, x_RLD: torch.Tensor, region_CCeD: torch.Tensor, caches: Sequence[_LayerCache | None]
    ) -> torch.Tensor:
        for layer, cache in zip(self.layers, caches, strict=True):
            x_RLD = layer(x_RLD, region_CCeD, cache)
        return self.to_embedding(self.norm_out(x_RLD))  # type: ignore[no-any-return]

    @torch.no_grad()
    def generate(
        self,
        queries_CD: torch.Tensor,
        region_CCeD: torch.Tensor,
        embedding: nn.Embedding,
        head_VW: torch.Tensor,
        end_token_id: int,
    ) -> CaptionResult:
        """Greedy decoding of all captions in parallel with a KV cache."""
        captions = queries_CD.shape[0]
        caches = [_LayerCache() for _ in self.layers]
        token_ids = torch.full((captions, self.max_tokens), end_token_id, device=queries_CD.device)
        log_probs = full_precision(queries_CD).new_zeros(captions)
        cumulative_CL = log_probs[:, None].repeat(1, self.max_tokens)
        alive = torch.ones(captions, dtype=torch.bool, device=queries_CD.device)
        x_RLD = self.start(queries_CD)[:, None] + self.position[:1]
        for step in range(self.max_tokens):
            state_CW = self._run(x_RLD, region_CCeD, caches)[:, 0]
            scores_CV = full_precision(F.linear(state_CW, head_VW)).log_softmax(dim=-1)
            best, chosen = scores_CV.max(dim=-1)
            log_probs = log_probs + torch.where(alive, best, 0)
            cumulative_CL[:, step:] = log_probs[:, None]
            token_ids[:, step] = torch.where(alive, chosen, end_token_id)
            alive = alive & (chosen != end_token_id)
            if step + 1 == self.max_tokens or not bool(alive.any()):
                break
            x_RLD = (self.from_embedding(embedding(token_ids[:, step])) + self.position[step + 1])[:, None]
        return CaptionResult(token_ids, log_probs, cumulative_CL)

    @torch.no_grad()
    def score_descriptions(
        self,
        queries_CD: torch.Tensor,
        region_CCeD: torch.Tensor,
        embedding: nn.Embedding,
        head_VW: torch.Tensor,
        vocabulary: DescriptionVocabulary,
        beam_width: int | None = None,
        pruned_mass: float = PRUNED_MASS,
    ) -> torch.Tensor:
        """(C, De) log p of every description of a vocabulary as free text, its end token included.

        A description that was not reached has −inf.

        Args:
            beam_width: most prefixes followed at once. None: all that are not pruned, or BEAM_WIDTH where the tree has
                more than EXACT_NODES nodes.
            pruned_mass: prune prefixes that together hold at most this share of the vocabulary's probability. No
                description is more probable than its prefix, so a prefix may be pruned whose probability is below this
                share of what a first pass finds, divided by the number of nodes.
        """
        if not len(queries_CD):
            return full_precision(queries_CD).new_zeros(0, len(vocabulary.descriptions))
        exact = beam_width is None and vocabulary.nodes <= EXACT_NODES
        widest = vocabulary.nodes if exact else beam_width or BEAM_WIDTH
        rows = min(ROWS_AT_ONCE, LOGITS_AT_ONCE // embedding.num_embeddings)
        chunk = max(1, rows // min(widest, max(vocabulary.nodes_at_depth)))
        tables = vocabulary.child_tokens_NoCh.to(queries_CD.device), vocabulary.children_NoCh.to(queries_CD.device)
        found = []
        for queries, region in zip(queries_CD.split(chunk), region_CCeD.split(chunk), strict=True):
            floor_C = torch.full_like(full_precision(queries[:, 0]), -torch.inf)
            if exact and pruned_mass > 0:
                first = self._search(queries, region, embedding, head_VW, vocabulary, tables, FIRST_BEAM, floor_C)
                floor_C = first.logsumexp(dim=1) + math.log(pruned_mass / vocabulary.nodes)
            found.append(self._search(queries, region, embedding, head_VW, vocabulary, tables, widest, floor_C))
        return torch.cat(found)

    def _search(
        self,
        queries_CD: torch.Tensor,
        region_CCeD: torch.Tensor,
        embedding: nn.Embedding,
        head_VW: torch.Tensor,
        vocabulary: DescriptionVocabulary,
        tables: tuple[torch.Tensor, torch.Tensor],
        beam_width: int,
        floor_C: torch.Tensor,
    ) -> torch.Tensor:
        """Beam search down the tree, depth by depth, all captions in parallel; prefixes below floor_C are pruned."""
        captions, leaves = len(queries_CD), len(vocabulary.descriptions)
        caches = [_LayerCache() for _ in self.layers]
        nodes_CNo = torch.zeros(captions, 1, dtype=torch.long, device=queries_CD.device)
        log_probs_CNo = full_precision(queries_CD).new_zeros(captions, 1)
        ends_CDe = log_probs_CNo.new_full((captions, leaves + 1), -torch.inf)  # last column: children that end nothing
        x_RLD = self.start(queries_CD)[:, None] + self.position[:1]
        for depth in range(len(vocabulary.nodes_at_depth)):
            tokens_CNoCh, children_CNoCh = (table[nodes_CNo] for table in tables)
            state_CNoW = self._run(x_RLD, region_CCeD, caches).view(*nodes_CNo.shape, -1)
            logits_CNoV = full_precision(F.linear(state_CNoW, head_VW))
            step_CNoCh = logits_CNoV.gather(2, tokens_CNoCh) - logits_CNoV.logsumexp(dim=-1, keepdim=True)
            total_CNoCh = (log_probs_CNo[:, :, None] + step_CNoCh).masked_fill(children_CNoCh < 0, -torch.inf)
            is_end = children_CNoCh >= vocabulary.nodes
            ended = torch.where(is_end, children_CNoCh - vocabulary.nodes, leaves).flatten(1)
            ends_CDe.scatter_reduce_(1, ended, total_CNoCh.flatten(1), "amax")
            if depth + 1 == len(vocabulary.nodes_at_depth):
                break
            open_CR = total_CNoCh.masked_fill(is_end, -torch.inf).flatten(1)
            follow = min(beam_width, vocabulary.nodes_at_depth[depth + 1], open_CR.shape[1])
            log_probs_CNo, picked = open_CR.topk(follow, dim=1)
            kept = int((log_probs_CNo >= floor_C[:, None]).sum(dim=1).max())
            if not kept:
                break
            log_probs_CNo, picked = log_probs_CNo[:, :kept], picked[:, :kept]
            # A caption with fewer open nodes than others has idle rows of probability 0, whatever their node.
            nodes_CNo = children_CNoCh.flatten(1).gather(1, picked).masked_fill(log_probs_CNo == -torch.inf, 0)
            parents = picked // tokens_CNoCh.shape[2]
            first_row = torch.arange(captions, device=parents.device)[:, None] * tokens_CNoCh.shape[1]
            for cache in caches:
                cache.select((first_row + parents).flatten())
            tokens = tokens_CNoCh.flatten(1).gather(1, picked).flatten()
            x_RLD = (self.from_embedding(embedding(tokens)) + self.position[depth + 1])[:, None]
        return ends_CDe[:, :-1]
