"""The detecting vision-language model: backbone, adapters, detection head, caption decoder. Knows no loss.

Shape legend: B samples, T packed tokens, P patch rows, I images, Q queries, K boxes to describe, D width,
M memory tokens, C captions, L caption tokens, W language-model width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import nn

from bbu.config import DetectionConfig
from bbu.errors import SampleError
from bbu.families.base import Backbone, BackboneOutput, Grid, VisionLevel
from bbu.layers.transfer import to_device
from bbu.models.caption_decoder import CaptionDecoder, CaptionResult
from bbu.models.detection_head import BoxPrediction, DetectionHead, Hints
from bbu.models.memory import Memory, grid_centres, sine_embedding
from bbu.models.pyramid import LocalPyramid, ResidualMLP
from bbu.models.vocabulary import DescriptionVocabulary

Span = tuple[int, int]


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
        hinted: predictions of the hinted queries, (hints,) for every decoder layer.
    """

    pred_boxes: torch.Tensor
    pred_objectness: torch.Tensor
    layers: list[BoxPrediction]
    proposals: BoxPrediction
    proposal_counts: list[int]
    queries_BQD: torch.Tensor
    hidden_TD: torch.Tensor
    memory: Memory
    hinted: list[BoxPrediction]


class DetectionVLM(nn.Module):
    """Finds parts, describes them and says how sure it is.

    Parameter groups: ``backbone`` (vision, merger, llm), ``*_adapter*`` and ``local_pyramid`` (adapter),
    ``detection_head`` and ``caption_decoder`` (detection).
    """

    def __init__(self, backbone: Backbone, config: DetectionConfig) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        levels = len(backbone.level_widths)
        self.vision_adapters = nn.ModuleList(ResidualMLP(width, config.width) for width in backbone.level_widths)
        self.language_adapter = ResidualMLP(backbone.hidden_size, config.width)
        self.level_adapter = nn.Embedding(levels + 1, config.width)  # last row: text, which has no place
        self.local_pyramid = LocalPyramid(config.width, levels, backbone.patch_size)
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
        image_grid_thw: Sequence[Grid] | torch.Tensor | None,
        cu_seqlens: torch.Tensor,
        *,
        position_ids: torch.Tensor,
        max_seqlen: int,
        student_images: Sequence[int],
        prompt_spans: Sequence[Span],
        photo_spans: Sequence[Span],
        image_keys: Sequence[str | None] | None = None,
        hints: Hints | None = None,
    ) -> DetectionOutput:
        """Detect in every sample of a pack; no targets go in, and no hint changes what is detected.

        Args:
            input_ids: (1, T) samples end to end.
            pixel_values: (P, patch width) patch rows of all images.
            image_grid_thw: (I, 3), best as Python numbers.
            cu_seqlens: (B + 1,) int32 sample edges.
            position_ids: (3, 1, T) from the backbone's position function.
            max_seqlen: longest sample, a Python int.
            student_images: for each sample the number of its student's image among the I images.
            prompt_spans: for each sample the half-open token range of the student's turn up to the answer.
            photo_spans: for each sample the range of its student's image tokens, within its prompt span.
            image_keys: names of the I images in the backbone's feature cache, where there is one.
            hints: boxes that further queries start from; their predictions come out as ``hinted``.
        """
        inputs = (input_ids, position_ids, pixel_values, image_grid_thw, cu_seqlens, max_seqlen)
        seen = self.backbone(*inputs, image_keys=image_keys)
        assert pixel_values is not None and image_grid_thw is not None  # every student has a photo
        patches = _patches_of_images(pixel_values, image_grid_thw, student_images)
        memory = self._remember(seen, patches, student_images, prompt_spans, photo_spans)
        found = self.detection_head(memory, self.backbone.attention_backend, hints)
        return DetectionOutput(
            pred_boxes=found.layers[-1].boxes,
            pred_objectness=found.layers[-1].objectness,
            layers=found.layers,
            proposals=found.proposals,
            proposal_counts=found.proposal_counts,
            queries_BQD=found.queries_BQD,
            hidden_TD=seen.hidden_TD,
            memory=memory,
            hinted=found.hinted,
        )

    def _remember(
        self,
        seen: BackboneOutput,
        patches: Sequence[torch.Tensor],
        student_images: Sequence[int],
        prompt_spans: Sequence[Span],
        photo_spans: Sequence[Span],
    ) -> Memory:
        """Collect each sample's segment: image levels fine to coarse, then the text of the student's turn."""
        levels = [_of_images(level, student_images) for level in seen.vision_levels]
        sizes = [[rows * columns for rows, columns in level.grids] for level in levels]
        _check_photos(photo_spans, sizes[-1])
        photos_SD, texts_SD = self._adapt_language(seen.hidden_TD, prompt_spans, photo_spans)
        tokens = [
            adapter(level.tokens_ND) for adapter, level in zip(self.vision_adapters, levels, strict=True)
        ]  # all samples at once: (N, D) a level
        tokens[-1] = tokens[-1] + photos_SD
        tokens = self.local_pyramid(patches, tokens, [level.grids for level in levels])
        places = [self._places(level.grids, number, tokens[number]) for number, level in enumerate(levels)]
        text_sizes = [
            stop - start - (photo[1] - photo[0]) for (start, stop), photo in zip(prompt_spans, photo_spans, strict=True)
        ]
        places.append(self.level_adapter.weight[-1].to(texts_SD.dtype).expand_as(texts_SD))
        sizes.append(text_sizes)
        device, lengths = seen.hidden_TD.device, [sum(parts) for parts in zip(*sizes, strict=True)]
        first_rows = _first_rows(sizes)
        grids = [list(of_sample) for of_sample in zip(*(level.grids for level in levels), strict=True)]
        table = [
            [(rows[number], *sample[number]) for rows, sample in zip(first_rows, grids, strict=True)]
            for number in range(len(levels))
        ]
        return Memory(
            tokens_MD=_by_sample([*tokens, texts_SD], sizes),
            places_MD=_by_sample(places, sizes),
            cu_seqlens=to_device([0, *accumulate(lengths)], device, torch.int32),
            max_seqlen=max(lengths),
            level_starts=[rows[:-1] for rows in first_rows],
            level_grids=grids,
            level_table_KB3=to_device(table, device),
        )

    def _adapt_language(
        self, hidden_TD: torch.Tensor, prompt_spans: Sequence[Span], photo_spans: Sequence[Span]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states of the students' photos and of the text around them, samples end to end, adapted."""
        photos = [hidden_TD[start:stop] for start, stop in photo_spans]
        texts = [
            hidden_TD[start:stop]
            for (first, last), photo in zip(prompt_spans, photo_spans, strict=True)
            for start, stop in ((first, photo[0]), (photo[1], last))
        ]
        adapted_SD = self.language_adapter(torch.cat(photos + texts))
        count = sum(stop - start for start, stop in photo_spans)
        return adapted_SD[:count], adapted_SD[count:]

    def _places(self, grids: Sequence[tuple[int, int]], level: int, like_ND: torch.Tensor) -> torch.Tensor:
        centres = torch.cat([grid_centres(*grid, like_ND.device, torch.float32) for grid in grids])
        embedding = sine_embedding(centres, self.config.width // 2).to(like_ND.dtype)
        return embedding + self.level_adapter.weight[level].to(like_ND.dtype)

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
            "local_pyramid": "adapter",
            "detection_head": "detection",
            "caption_decoder": "detection",
        }
        if room not in groups:
            raise KeyError(f"no learning-rate group for parameter {name!r}")
        return groups[room]


def _of_images(level: VisionLevel, images: Sequence[int]) -> VisionLevel:
    """The tokens of these images alone, in this order."""
    edges = [0, *accumulate(rows * columns for rows, columns in level.grids)]
    tokens = [level.tokens_ND[edges[image] : edges[image + 1]] for image in images]
    return VisionLevel(torch.cat(tokens), [level.grids[image] for image in images])


def _patches_of_images(
    pixels_PX: torch.Tensor, grids: Sequence[Grid] | torch.Tensor, images: Sequence[int]
) -> list[torch.Tensor]:
    """The patch rows of each of these images."""
    sizes = torch.as_tensor(grids).prod(-1).tolist()
    by_image = pixels_PX.split(sizes)
    return [by_image[image] for image in images]


def _check_photos(photo_spans: Sequence[Span], sizes: Sequence[int]) -> None:
    for (start, stop), size in zip(photo_spans, sizes, strict=True):
        if stop - start != size:
            raise SampleError(
                f"the student's turn has {stop - start} image tokens and its image {size}; "
                "a student has exactly one image"
            )


def _first_rows(sizes: Sequence[Sequence[int]]) -> list[list[int]]:
    """``sizes[part][sample]`` rows → for each sample, the first row of each of its parts in the memory."""
    edges = [0, *accumulate(size for parts in zip(*sizes, strict=True) for size in parts)]
    return [edges[first : first + len(sizes)] for first in range(0, len(edges) - 1, len(sizes))]


def _by_sample(parts: Sequence[torch.Tensor], sizes: Sequence[Sequence[int]]) -> torch.Tensor:
    """Parts that each hold all samples end to end → samples end to end that each hold all parts."""
    split = [part.split(list(of_samples)) for part, of_samples in zip(parts, sizes, strict=True)]
    return torch.cat([piece for sample in zip(*split, strict=True) for piece in sample])
