"""The detecting vision-language model: backbone, adapters, detection head, caption decoder. Knows no loss.

Shape legend: B samples, T packed tokens, P patch rows, I images, Q queries, K boxes to describe, D width,
M memory tokens, C captions, L caption tokens, W language-model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from bbu.config import DetectionConfig
from bbu.errors import SampleError
from bbu.models.adapters import ResidualMLP
from bbu.models.backbones.base import Backbone, BackboneOutput
from bbu.models.caption_decoder import CaptionDecoder, CaptionResult
from bbu.models.detection_head import BoxPrediction, DetectionHead
from bbu.models.memory import Memory, grid_centres, sine_embedding
from bbu.models.vocabulary import DescriptionVocabulary


@dataclass
class DetectionOutput:
    """What one forward gives.

    Args:
        pred_boxes: (B, Q, 4) cxcywh in [0, 1], final layer.
        pred_objectness: (B, Q) logits, final layer.
        layers: predictions of every decoder layer, the last one being the two above.
        proposals: predictions of all image tokens, samples end to end; proposal_counts of each sample.
        queries_BQD: final query states, from which captions start.
        hidden_TD: (T, D) the language model's last hidden states, for the language loss.
        memory: what boxes and captions are read from.
    """

    pred_boxes: torch.Tensor
    pred_objectness: torch.Tensor
    layers: list[BoxPrediction]
    proposals: BoxPrediction
    proposal_counts: list[int]
    queries_BQD: torch.Tensor
    hidden_TD: torch.Tensor
    memory: Memory


class DetectionVLM(nn.Module):
    """Finds parts, describes them and says how sure it is.

    Parameter groups: ``backbone`` (vision, merger, llm), ``*_adapter*`` (adapter), ``detection_head`` and
    ``caption_decoder`` (detection).
    """

    def __init__(self, backbone: Backbone, config: DetectionConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        levels = len(backbone.level_widths)
        self.vision_adapters = nn.ModuleList(ResidualMLP(width, config.width) for width in backbone.level_widths)
        self.language_adapter = ResidualMLP(backbone.hidden_size, config.width)
        self.level_adapter = nn.Embedding(levels + 1, config.width)  # last row: text, which has no place
        self.detection_head = DetectionHead(
            config.width, config.queries, config.layers, config.heads, config.points, levels
        )
        self.caption_decoder = CaptionDecoder(
            config.width,
            backbone.hidden_size,
            config.caption_layers,
            config.heads,
            config.caption_region_cells,
            config.caption_max_tokens,
        )

    def forward(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor | None,
        image_grid_thw: torch.Tensor | None,
        cu_seqlens: torch.Tensor,
        *,
        position_ids: torch.Tensor,
        max_seqlen: int,
        student_images: Sequence[int],
        prompt_spans: Sequence[tuple[int, int]],
    ) -> DetectionOutput:
        """Detect in every sample of a pack; no targets go in.

        Args:
            input_ids: (1, T) samples end to end.
            pixel_values: (P, patch width) patch rows of all images.
            image_grid_thw: (I, 3).
            cu_seqlens: (B + 1,) int32 sample edges.
            position_ids: (3, 1, T) from the backbone's position function.
            max_seqlen: longest sample, a Python int.
            student_images: for each sample the number of its student's image among the I images.
            prompt_spans: for each sample the half-open token range of the student's turn up to the answer.
        """
        seen = self.backbone(input_ids, position_ids, pixel_values, image_grid_thw, cu_seqlens, max_seqlen)
        memory = self._remember(input_ids[0], seen, student_images, prompt_spans)
        found = self.detection_head(memory, self.backbone.engine)
        return DetectionOutput(
            pred_boxes=found.layers[-1].boxes,
            pred_objectness=found.layers[-1].objectness,
            layers=found.layers,
            proposals=found.proposals,
            proposal_counts=found.proposal_counts,
            queries_BQD=found.queries_BQD,
            hidden_TD=seen.hidden_TD,
            memory=memory,
        )

    def _remember(
        self,
        input_ids_T: torch.Tensor,
        seen: BackboneOutput,
        student_images: Sequence[int],
        prompt_spans: Sequence[tuple[int, int]],
    ) -> Memory:
        """Collect each sample's segment: image levels fine to coarse, then the text of the student's turn."""
        segments, places, starts, grids = [], [], [], []
        row = 0
        edges = [_level_edges(level.grids) for level in seen.vision_levels]
        for image, (start, stop) in zip(student_images, prompt_spans, strict=True):
            sample_starts, sample_grids = [], []
            is_image = input_ids_T[start:stop] == self.backbone.image_token_id
            language_LD = self.language_adapter(seen.hidden_TD[start:stop])
            for number, level in enumerate(seen.vision_levels):
                tokens = self.vision_adapters[number](level.tokens_ND[edges[number][image] : edges[number][image + 1]])
                if number == len(seen.vision_levels) - 1:
                    over_image = language_LD[is_image]
                    if len(over_image) != len(tokens):
                        raise SampleError(
                            f"the student's turn has {len(over_image)} image tokens and its image {len(tokens)}; "
                            "a student has exactly one image"
                        )
                    tokens = tokens + over_image
                sample_starts.append(row)
                sample_grids.append(level.grids[image])
                segments.append(tokens)
                places.append(self._places(level.grids[image], number, tokens))
                row += len(tokens)
            text_LD = language_LD[~is_image]
            segments.append(text_LD)
            places.append(self.level_adapter.weight[-1].to(text_LD.dtype).expand_as(text_LD))
            row += len(text_LD)
            starts.append(sample_starts)
            grids.append(sample_grids)
        lengths = [sum(len(part) for part in group) for group in _chunks(segments, len(edges) + 1)]
        cu_seqlens = torch.tensor([0, *lengths], device=input_ids_T.device).cumsum(0).to(torch.int32)
        table = [
            [
                (sample_starts[level], *sample_grids[level])
                for sample_starts, sample_grids in zip(starts, grids, strict=True)
            ]
            for level in range(len(edges))
        ]
        return Memory(
            tokens_MD=torch.cat(segments),
            places_MD=torch.cat(places),
            cu_seqlens=cu_seqlens,
            max_seqlen=max(lengths),
            level_starts=starts,
            level_grids=grids,
            level_table_KB3=torch.tensor(table, device=input_ids_T.device),
        )

    def _places(self, grid: tuple[int, int], level: int, tokens: torch.Tensor) -> torch.Tensor:
        centres = grid_centres(*grid, tokens.device, torch.float32)
        embedding = sine_embedding(centres, self.config.width // 2).to(tokens.dtype)
        return embedding + self.level_adapter.weight[level].to(tokens.dtype)

    def describe_states(
        self, output: DetectionOutput, samples_C: torch.Tensor, queries_C: torch.Tensor, token_ids_CL: torch.Tensor
    ) -> torch.Tensor:
        """Teacher-forced states (C, L, W) of captions for chosen queries.

        Args:
            samples_C, queries_C: which query of which sample each caption belongs to.
            token_ids_CL: target ids, padded; state i predicts token i.
        """
        region, states = self._caption_inputs(output, samples_C, queries_C)
        return self.caption_decoder(states, region, token_ids_CL, self.backbone.token_embedding)  # type: ignore[no-any-return]

    @torch.no_grad()
    def describe(
        self, output: DetectionOutput, samples_C: torch.Tensor, queries_C: torch.Tensor, end_token_id: int
    ) -> CaptionResult:
        """Decode captions for chosen queries, all in parallel."""
        region, states = self._caption_inputs(output, samples_C, queries_C)
        return self.caption_decoder.generate(states, region, self.backbone.token_embedding, end_token_id)

    @torch.no_grad()
    def weigh_descriptions(
        self,
        output: DetectionOutput,
        samples_C: torch.Tensor,
        queries_C: torch.Tensor,
        vocabulary: DescriptionVocabulary,
        width: int | None = None,
    ) -> torch.Tensor:
        """(C, F) log p of every description for chosen queries, see CaptionDecoder.weigh."""
        region, states = self._caption_inputs(output, samples_C, queries_C)
        return self.caption_decoder.weigh(states, region, self.backbone.token_embedding, vocabulary, width)

    def _caption_inputs(
        self, output: DetectionOutput, samples_C: torch.Tensor, queries_C: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Region tokens (C, R, D) and query states (C, D)."""
        boxes_C4 = output.pred_boxes[samples_C, queries_C].detach()  # words do not move boxes
        return self.caption_decoder.regions(output.memory, samples_C, boxes_C4), output.queries_BQD[
            samples_C, queries_C
        ]

    def group_of(self, name: str) -> str:
        """The learning-rate group of a parameter.

        Raises:
            KeyError: the parameter belongs to no group.
        """
        room, _, rest = name.partition(".")
        if room == "backbone":
            return self.backbone.group_of(rest.removeprefix("vlm."))
        groups = {
            "vision_adapters": "adapter",
            "language_adapter": "adapter",
            "level_adapter": "adapter",
            "detection_head": "detection",
            "caption_decoder": "detection",
        }
        if room not in groups:
            raise KeyError(f"no learning-rate group for parameter {name!r}")
        return groups[room]


def _level_edges(grids: Sequence[tuple[int, int]]) -> list[int]:
    edges = [0]
    for rows, columns in grids:
        edges.append(edges[-1] + rows * columns)
    return edges


def _chunks(items: list[torch.Tensor], size: int) -> list[list[torch.Tensor]]:
    return [items[first : first + size] for first in range(0, len(items), size)]
