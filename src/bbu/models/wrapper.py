"""The vision-language detector: backbone, adapters, detection head and caption decoder. It computes no loss.

Without detection it is the backbone alone, whose samples then take part in none.

Shapes: B samples, C captions, Ce cells of a region, D feature width, L tokens of one sample or caption, P patch rows,
Q queries of one sample, R rows, S image tokens, T packed tokens, X numbers of a patch row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from bbu.config import DetectionConfig
from bbu.errors import SampleError
from bbu.families.base import Backbone, BackboneOutput, Grid, VisionLevel, no_part
from bbu.layers.transfer import to_device, together
from bbu.models.caption_decoder import CaptionDecoder, CaptionResult
from bbu.models.detection_head import DenoisingQueries, DetectionHead, HeadOutput
from bbu.models.memory import Memory, grid_centres, sine_embedding
from bbu.models.pyramid import LocalPyramid, ResidualMLP
from bbu.models.vocabulary import DescriptionVocabulary

Span = tuple[int, int]
Grid2 = tuple[int, int]  # rows and columns of tokens


@dataclass
class BoxStates:
    """What captions are made from: final states (C, D) and boxes (C, 4) of queries, cxcywh in [0, 1]."""

    states_CD: torch.Tensor
    boxes_C4: torch.Tensor

    def padded(self, count: int) -> BoxStates:
        """These queries, and zeros up to so many."""
        more = count - len(self.states_CD)
        return BoxStates(F.pad(self.states_CD, (0, 0, 0, more)), F.pad(self.boxes_C4, (0, 0, 0, more)))

    def join(self, other: BoxStates) -> BoxStates:
        """These queries, then the others."""
        return BoxStates(torch.cat((self.states_CD, other.states_CD)), torch.cat((self.boxes_C4, other.boxes_C4)))


@dataclass
class DetectionOutput(HeadOutput):
    """Output of one forward pass.

    Args:
        hidden_TD: last hidden states of the language model, for the language loss.
        memory: the tokens that boxes and captions attend to.
    """

    hidden_TD: torch.Tensor
    memory: Memory

    @property
    def pred_boxes(self) -> torch.Tensor:
        """(B, Q, 4) cxcywh in [0, 1], final layer."""
        return self.layers[-1].boxes

    @property
    def pred_objectness(self) -> torch.Tensor:
        """(B, Q) logits, final layer."""
        return self.layers[-1].objectness

    def at(self, samples_C: torch.Tensor, queries_C: torch.Tensor) -> BoxStates:
        """These queries of these samples."""
        return BoxStates(self.queries_BQD[samples_C, queries_C], self.pred_boxes[samples_C, queries_C])

    def denoising_at(self, rows_C: torch.Tensor) -> BoxStates:
        """These denoising queries."""
        return BoxStates(self.denoising_states_RD[rows_C], self.denoising_layers[-1].boxes[rows_C])


class DetectionVLM(nn.Module):
    """Predicts boxes, objectness and captions.

    Parameter groups: ``backbone`` (vision, merger, llm), ``*_adapter*`` and ``local_pyramid`` (adapter),
    ``detection_head`` and ``caption_decoder`` (detection).

    Args:
        config: None = the backbone alone, for samples that do not detect.
    """

    def __init__(self, backbone: Backbone, config: DetectionConfig | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = config
        if config is not None:
            self._add_detection(backbone, config)

    def _add_detection(self, backbone: Backbone, config: DetectionConfig) -> None:
        levels = len(backbone.level_widths)
        self.vision_adapters = nn.ModuleList(ResidualMLP(width, config.width) for width in backbone.level_widths)
        self.language_adapter = ResidualMLP(backbone.hidden_size, config.width)
        self.level_adapter = nn.Embedding(levels + 1, config.width)  # last row: text, which has no position
        self.local_pyramid = LocalPyramid(config.width, backbone.level_sides)
        self.detection_head = DetectionHead(config, levels)
        self.caption_decoder = CaptionDecoder(config, backbone.hidden_size)

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
        denoising_queries: DenoisingQueries | None = None,
    ) -> DetectionOutput:
        """Read a pack, and detect objects in those of its samples that take part in detection.

        All about detection, in and out, has an entry for each of these alone; there may be none. Denoising queries do
        not change the detections.

        Args:
            input_ids: (1, T) samples end to end.
            pixel_values: (P, patch width) patch rows of all images.
            image_grid_thw: (I, 3), best as Python numbers.
            cu_seqlens: (B + 1,) int32 sequence boundaries.
            position_ids: (axes, 1, T) from the backbone's position function.
            max_seqlen: longest sample, a Python int.
            student_images: for each sample that detects, the index of its student's image among the I images.
            prompt_spans: for each of them, the half-open token range of the student's turn up to the answer.
            photo_spans: for each of them, the range of its student's image tokens, within its prompt span.
            image_keys: keys of the I images in the backbone's feature cache, if it has one.
            denoising_queries: boxes that extra queries start from; their predictions are ``denoising_layers``.
        """
        inputs = (input_ids, position_ids, pixel_values, image_grid_thw, cu_seqlens, max_seqlen)
        features = self.backbone(*inputs, image_keys=image_keys)
        if not photo_spans:
            return self._detect_nothing(features)
        assert pixel_values is not None and image_grid_thw is not None  # every student has a photo
        pictures = self._pictures(pixel_values, image_grid_thw, student_images)
        memory = self._build_memory(features, pictures, student_images, prompt_spans, photo_spans)
        detected = self.detection_head(memory, self.backbone.attention_backend, denoising_queries)
        return DetectionOutput(**vars(detected), hidden_TD=features.hidden_TD, memory=memory)

    def _detect_nothing(self, features: BackboneOutput) -> DetectionOutput:
        """The output for a pack in which no sample detects."""
        idle = [p for name, p in self.named_parameters() if not name.startswith("backbone.")]
        hidden_TD = features.hidden_TD + no_part([*idle, *(level.tokens_SD for level in features.vision_levels)])
        sizes = self.config
        width, queries, layers = (sizes.width, sizes.queries, sizes.layers) if sizes else (0, 0, 0)
        memory = Memory.of_no_sample(hidden_TD, width, len(self.backbone.level_widths))
        nothing = HeadOutput.of_no_sample(memory, queries, layers)
        return DetectionOutput(**vars(nothing), hidden_TD=hidden_TD, memory=memory)

    def _build_memory(
        self,
        features: BackboneOutput,
        pictures: Sequence[torch.Tensor],
        student_images: Sequence[int],
        prompt_spans: Sequence[Span],
        photo_spans: Sequence[Span],
    ) -> Memory:
        """Build each sample's segment: image levels from fine to coarse, then the text of the student's turn."""
        levels = [_of_images(level, student_images) for level in features.vision_levels]
        sizes = [[rows * columns for rows, columns in level.grids] for level in levels]
        photos_SD, texts_RD = self._adapt_language(features.hidden_TD, prompt_spans, photo_spans)
        tokens = [  # (S, D) a level, all samples at once
            adapter(level.tokens_SD) for adapter, level in zip(self.vision_adapters, levels, strict=True)
        ]
        if features.language_at_image:
            _check_photos(photo_spans, sizes[-1])
            tokens[-1] = tokens[-1] + photos_SD
        tokens = self.local_pyramid(pictures, tokens, [level.grids for level in levels])
        spans = zip(prompt_spans, photo_spans, strict=True)
        sizes.append([stop - start - (last - first) for (start, stop), (first, last) in spans])
        device, lengths = features.hidden_TD.device, [sum(of_sample) for of_sample in zip(*sizes, strict=True)]
        first_rows = _first_rows(sizes)
        grids = [list(of_sample) for of_sample in zip(*(level.grids for level in levels), strict=True)]
        table = [
            [(rows[number], *sample[number]) for rows, sample in zip(first_rows, grids, strict=True)]
            for number in range(len(levels))
        ]
        order, level_table = together([_by_sample(sizes), np.asarray(table)], device, torch.long)
        return Memory(
            tokens_MD=torch.cat([*tokens, texts_RD]).index_select(0, order),
            pos_embed_MD=self._pos_embed(grids, sizes, texts_RD),
            cu_seqlens=to_device([0, *accumulate(lengths)], device, torch.int32),
            max_seqlen=max(lengths),
            level_starts=[rows[:-1] for rows in first_rows],
            level_grids=grids,
            level_table_LvB3=level_table,
        )

    def _pictures(
        self, pixels_PX: torch.Tensor, image_grid_thw: Sequence[Grid] | torch.Tensor, images: Sequence[int]
    ) -> list[torch.Tensor]:
        """(3, Y, Z) pixels of each of these images."""
        grids: list[Grid] = [(t, h, w) for t, h, w in torch.as_tensor(image_grid_thw).tolist()]
        by_image = pixels_PX.split([t * h * w for t, h, w in grids])
        return [self.backbone.picture(by_image[image], grids[image]) for image in images]

    def _adapt_language(
        self, hidden_TD: torch.Tensor, prompt_spans: Sequence[Span], photo_spans: Sequence[Span]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Adapted hidden states of the students' image tokens and of the text around them, samples end to end."""
        photos = [np.arange(*span) for span in photo_spans]
        texts = [
            np.arange(*span)
            for (first, last), photo in zip(prompt_spans, photo_spans, strict=True)
            for span in ((first, photo[0]), (photo[1], last))
        ]
        rows = to_device(np.concatenate(photos + texts), hidden_TD.device)
        photos_SD, texts_RD = self.language_adapter(hidden_TD.index_select(0, rows)).split(
            [sum(map(len, photos)), sum(map(len, texts))]
        )
        return photos_SD, texts_RD

    def _pos_embed(
        self, grids: Sequence[Sequence[Grid2]], sizes: Sequence[Sequence[int]], like: torch.Tensor
    ) -> torch.Tensor:
        """(M, D) embeddings of each token's position and level; text has a level of its own and no position.

        Args:
            grids: of each sample and level.
            sizes: tokens of each stream (a level, or the text) and sample.
        """
        of_sample = np.asarray(sizes).T
        streams = np.arange(len(sizes))
        level = np.repeat(np.tile(streams, len(of_sample)), of_sample.ravel())
        centres = np.zeros((len(level), 2))
        centres[level < streams[-1]] = np.concatenate([grid_centres(*grid) for sample in grids for grid in sample])
        known = [centres, level[:, None] < streams[-1], level[:, None] == streams]
        places, has_place, is_level = together(known, like.device, torch.float32)
        embedding = (sine_embedding(places, like.shape[-1] // 2) * has_place).to(like.dtype)
        with torch.autocast(like.device.type, enabled=False):  # a row of the table each, in the tokens' precision
            return torch.addmm(embedding, is_level.to(like.dtype), self.level_adapter.weight.to(like.dtype))

    def describe_states(
        self, memory: Memory, samples_C: torch.Tensor, queries: BoxStates, token_ids_CL: torch.Tensor
    ) -> torch.Tensor:
        """Teacher-forced states (C, L, W) of captions; ``lm_head_weight`` of the backbone makes them logits.

        Args:
            samples_C: sample of each caption.
            queries: what each caption describes.
            token_ids_CL: target ids, padded; state i predicts token i.
        """
        region_CCeD = self.caption_decoder.regions(memory, samples_C, queries.boxes_C4.detach())  # boxes stay
        embedding = self.backbone.token_embedding
        return self.caption_decoder(queries.states_CD, region_CCeD, embedding, token_ids_CL)  # type: ignore[no-any-return]

    @torch.no_grad()
    def describe(
        self, output: DetectionOutput, samples_C: torch.Tensor, queries_C: torch.Tensor, end_token_id: int
    ) -> CaptionResult:
        """Decode captions for chosen queries, all in parallel."""
        inputs = self._caption_inputs(output, samples_C, queries_C)
        return self.caption_decoder.generate(*inputs, end_token_id)

    @torch.no_grad()
    def score_descriptions(
        self,
        output: DetectionOutput,
        samples_C: torch.Tensor,
        queries_C: torch.Tensor,
        vocabulary: DescriptionVocabulary,
        beam_width: int | None = None,
    ) -> torch.Tensor:
        """(C, De) log p of every description for chosen queries, see CaptionDecoder.score_descriptions."""
        inputs = self._caption_inputs(output, samples_C, queries_C)
        return self.caption_decoder.score_descriptions(*inputs, vocabulary, beam_width)

    def _caption_inputs(
        self, output: DetectionOutput, samples_C: torch.Tensor, queries_C: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, nn.Embedding, torch.Tensor]:
        """Query states (C, D), region tokens (C, Ce, D), embedding and head of the language model."""
        chosen = output.at(samples_C, queries_C)
        region_CCeD = self.caption_decoder.regions(output.memory, samples_C, chosen.boxes_C4)
        return chosen.states_CD, region_CCeD, self.backbone.token_embedding, self.backbone.lm_head_weight

    def group_of(self, name: str) -> str:
        """The learning-rate group of a parameter.

        Raises:
            KeyError: the parameter belongs to no group.
        """
        module, _, rest = name.partition(".")
        if module == "backbone":
            return self.backbone.group_of(rest.removeprefix("vlm."))
        if module in ("vision_adapters", "language_adapter", "level_adapter", "local_pyramid"):
            return "adapter"
        if module in ("detection_head", "caption_decoder"):
            return "detection"
        raise KeyError(f"no learning-rate group for parameter {name!r}")


def _of_images(level: VisionLevel, images: Sequence[int]) -> VisionLevel:
    """The tokens of these images only, in this order."""
    if list(images) == list(range(len(level.grids))):
        return level
    starts = [0, *accumulate(rows * columns for rows, columns in level.grids)]
    rows = np.concatenate([np.arange(starts[image], starts[image + 1]) for image in images])
    tokens_SD = level.tokens_SD.index_select(0, to_device(rows, level.tokens_SD.device))
    return VisionLevel(tokens_SD, [level.grids[image] for image in images])


def _check_photos(photo_spans: Sequence[Span], sizes: Sequence[int]) -> None:
    for (start, stop), size in zip(photo_spans, sizes, strict=True):
        if stop - start != size:
            raise SampleError(
                f"the student's turn has {stop - start} image tokens and its image {size}; "
                "a student has exactly one image"
            )


def _first_rows(sizes: Sequence[Sequence[int]]) -> list[list[int]]:
    """``sizes[stream][sample]`` rows → for each sample, the first memory row of each stream (a level, or the text)."""
    starts = [0, *accumulate(size for of_sample in zip(*sizes, strict=True) for size in of_sample)]
    return [starts[first : first + len(sizes)] for first in range(0, len(starts) - 1, len(sizes))]


def _by_sample(sizes: Sequence[Sequence[int]]) -> np.ndarray:
    """(M,) rows that regroup streams that each hold all samples, end to end, into samples that each hold all streams.

    Args:
        sizes: rows of each stream and sample.
    """
    counts = np.asarray(sizes)
    starts = (counts.cumsum() - counts.ravel()).reshape(counts.shape).T.ravel()
    return np.concatenate(
        [np.arange(start, start + size) for start, size in zip(starts, counts.T.ravel(), strict=True)]
    )
