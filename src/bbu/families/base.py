"""What a vision-language family must offer; everything above this file is the same for all families.

Shape legend: T packed tokens, L tokens of one sample, D width, P patch rows, I images, N tokens of a level.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from bbu.config import ScratchConfig
from bbu.families.feature_cache import FeatureCache

Grid = tuple[int, int, int]  # (frames, rows, columns) of patches of one image

PositionFunction = Callable[[Sequence[int], Sequence[Grid]], torch.Tensor]
"""(token ids of one sample, grids of its images) → (3, L) positions."""


@dataclass
class VisionLevel:
    """Tokens of all images at one resolution, images end to end, each in raster order.

    Args:
        tokens_SD: (S, D) features.
        grids: (rows, columns) of each image; S = Σ rows · columns.
    """

    tokens_SD: torch.Tensor
    grids: list[tuple[int, int]]


@dataclass
class BackboneOutput:
    """``hidden_TD`` (T, D): last hidden states of the language model. ``vision_levels``: fine to coarse."""

    hidden_TD: torch.Tensor
    vision_levels: list[VisionLevel]


class Backbone(nn.Module):
    """A vision-language model seen through the few things the detector needs.

    Subclasses wrap the family's Hugging Face class as ``self.vlm`` and set the class attributes.
    """

    family: ClassVar[str]
    group_prefixes: ClassVar[Mapping[str, str]]  # parameter-name prefix inside ``vlm`` → learning-rate group
    lora_targets: ClassVar[Mapping[str, str]]  # part ("llm", "vision") → regular expression of its linear layers
    text_box_convention: ClassVar[str]  # how the family writes boxes as text: "model_pixels" or "norm1000"

    vlm: Any
    attention_backend: str
    feature_cache: FeatureCache | None = None  # used while the tower does not learn

    @property
    def hidden_size(self) -> int:
        """Width of ``hidden_TD``."""
        raise NotImplementedError

    @property
    def level_widths(self) -> list[int]:
        """Width of each vision level's tokens, fine to coarse."""
        raise NotImplementedError

    @property
    def patch_size(self) -> int:
        """Side in pixels of what a token of the finest vision level stands for."""
        raise NotImplementedError

    @property
    def image_token_id(self) -> int:
        """The id that stands for one merged image token."""
        raise NotImplementedError

    @property
    def token_embedding(self) -> nn.Embedding:
        """The language model's input embedding (V, D)."""
        raise NotImplementedError

    @property
    def lm_head_weight(self) -> torch.Tensor:
        """(V, D) weight of the language model's head."""
        raise NotImplementedError

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        pixel_values: torch.Tensor | None,
        image_grid_thw: Sequence[Grid] | torch.Tensor | None,
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
        image_keys: Sequence[str | None] | None = None,
    ) -> BackboneOutput:
        """One packed row through tower and language model.

        Args:
            input_ids: (1, T).
            position_ids: (3, 1, T), each sample counted from its own start.
            pixel_values: (P, patch width) patch rows of all images, or None.
            image_grid_thw: patches of each image, or None; a tensor (I, 3) on a GPU is waited for.
            cu_seqlens: (B + 1,) int32 sample edges.
            image_keys: names of the images in ``feature_cache``; None = not to be kept there.
        """
        raise NotImplementedError

    def position_function(self) -> PositionFunction:
        """Rotary positions of one sample; can be pickled for loader processes."""
        raise NotImplementedError

    @classmethod
    def image_processor(cls, path: str) -> Any:
        """The family's image processor: the one in a model folder, or the family's default for an empty path."""
        raise NotImplementedError

    @classmethod
    def from_pretrained(cls, path: str, dtype: torch.dtype, trust_remote_code: bool = False) -> Backbone:
        """Weights from a local folder or a hub name."""
        raise NotImplementedError

    @classmethod
    def from_scratch(cls, sizes: ScratchConfig, vocab_size: int, token_ids: Mapping[str, int]) -> Backbone:
        """Random weights of the family's real classes.

        Args:
            token_ids: the vocabulary of the tokenizer in use.
        """
        raise NotImplementedError

    def blocks(self, part: str) -> Sequence[nn.Module]:
        """The transformer blocks of ``llm`` or ``vision``, in order."""
        raise NotImplementedError

    def use_attention_backend(self, backend: str) -> None:
        """Switch every attention of tower and language model to a backend of bbu.layers.attention."""
        raise NotImplementedError

    def save(self, folder: Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write a standard Hugging Face model folder."""
        raise NotImplementedError

    def group_of(self, name: str) -> str:
        """The learning-rate group of a parameter of ``vlm``, by its longest matching prefix.

        LoRA puts ``base_layer`` and ``lora_`` below the module it adapts, so the prefix still matches.

        Raises:
            KeyError: no prefix matches.
        """
        matches = [prefix for prefix in self.group_prefixes if name.startswith(prefix)]
        if not matches:
            raise KeyError(f"no learning-rate group for parameter {name!r}; add its prefix to {type(self).__name__}")
        return self.group_prefixes[max(matches, key=len)]
