"""Backbone: the interface of a vision-language family; all code outside this package is shared by all families.

Shapes: T packed tokens, D feature width, P patch rows, S image tokens, X numbers of a patch row, Y height in pixels or
tokens, Z width in pixels or tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from bbu.families.conversation import Conversation
from bbu.families.cost import CostModel
from bbu.families.feature_cache import FeatureCache
from bbu.families.generation import Prompt
from bbu.families.photo_plan import PhotoPlan
from bbu.geometry import Grid
from bbu.layers.transfer import to_device

if TYPE_CHECKING:
    from bbu.families.prompts import PromptSpec

__all__ = [
    "Backbone",
    "BackboneOutput",
    "Grid",
    "PositionFunction",
    "VisionLevel",
    "VisualWords",
    "grid_list",
    "no_part",
]

PositionFunction = Callable[[Sequence[int], Sequence[Grid]], torch.Tensor]
"""(token ids of one sample, patch grids of its images) → (axes, L) rotary positions."""


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
class VisualWords:
    """What the image tokens of a photo are, in a family whose tokens are choices from a visual vocabulary.

    Args:
        words_YZ: (rows, columns) int64 numbers of the likeliest words.
        entropy_YZ: (rows, columns) of the choice, in nats: 0 = one word alone, ln of the number of words = all alike.
        vocabulary: number of words.
    """

    words_YZ: torch.Tensor
    entropy_YZ: torch.Tensor
    vocabulary: int


@dataclass
class BackboneOutput:
    """Outputs of a backbone for a pack.

    Args:
        hidden_TD: last hidden states of the language model.
        vision_levels: fine to coarse; empty without photos.
        language_at_image: whether hidden states at image tokens correspond one to one to the tokens of the coarsest
            level. If so, detection reads both, otherwise the vision tokens alone.
    """

    hidden_TD: torch.Tensor
    vision_levels: list[VisionLevel]
    language_at_image: bool = True


def grid_list(image_grid_thw: Sequence[Grid] | torch.Tensor) -> list[Grid]:
    """Patch grids as tuples of Python ints; an (I, 3) tensor on a GPU forces a synchronisation."""
    return [(t, h, w) for t, h, w in torch.as_tensor(image_grid_thw).tolist()]


def no_part(tensors: Iterable[torch.Tensor]) -> torch.Tensor | int:
    """Zero, to be added where these take no part in a step: their gradient is then zero instead of none.

    Every parameter must take part in every step, or data-parallel ranks deadlock.
    """
    if not torch.is_grad_enabled():
        return 0
    return sum((tensor.flatten()[:1].sum() * 0 for tensor in tensors if tensor.requires_grad), 0)


class Backbone(nn.Module, ABC):
    """The interface that the detector needs of a vision-language model.

    Subclasses wrap the family's Hugging Face class as ``self.vlm`` and set the class attributes.
    """

    family: ClassVar[str]
    conversation: ClassVar[Conversation]
    group_prefixes: ClassVar[Mapping[str, str]]  # parameter-name prefix inside ``vlm`` → learning-rate group
    lora_targets: ClassVar[Mapping[str, str]]  # part ("llm", "vision") → regular expression of its linear layers
    language_at_image: ClassVar[bool] = True  # as in BackboneOutput

    vlm: Any
    attention_backend: str
    feature_cache: FeatureCache | None = None  # used while the vision tower is frozen

    # ------------------------------------------------------------ construction

    @classmethod
    @abstractmethod
    def from_pretrained(cls, path: str, dtype: torch.dtype, trust_remote_code: bool = False) -> Backbone:
        """Load weights from a local folder or a hub name."""

    @classmethod
    @abstractmethod
    def from_scratch(cls, sizes: Any, vocab_size: int, token_ids: Mapping[str, int]) -> Backbone:
        """The family's real classes with random weights.

        Args:
            sizes: the family's sizes, validated (bbu.families.registry.scratch_sizes).
            token_ids: token → id of the tokenizer in use.
        """

    @classmethod
    @abstractmethod
    def empty(cls, path: str, trust_remote_code: bool = False) -> Backbone:
        """The model of a folder or hub name without its weights, on torch's current device (use ``meta``).

        Raises:
            OSError: there is no config.json.
        """

    @classmethod
    @abstractmethod
    def photo_plan(cls, path: str, spec: PromptSpec) -> PhotoPlan:
        """Photo preprocessing with a model folder's settings, or the family's defaults if ``path`` is empty."""

    def use_options(self, options: Any) -> None:
        """Apply ``model.options``, validated and with defaults (bbu.families.registry.family_options)."""

    @property
    def options(self) -> Mapping[str, Any]:
        """The options in force, as ``model.options`` has them."""
        return {}

    def save(self, folder: Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        """Write a standard Hugging Face model folder."""
        self.vlm.save_pretrained(folder, state_dict=state_dict, safe_serialization=True)

    # ------------------------------------------------------------ facts

    @property
    @abstractmethod
    def hidden_size(self) -> int:
        """Width of ``hidden_TD``."""

    @property
    @abstractmethod
    def level_widths(self) -> list[int]:
        """Width of each vision level's tokens, fine to coarse."""

    @property
    @abstractmethod
    def level_sides(self) -> list[int]:
        """Side in pixels of the square that a token of each level covers; the first is even, each divides the next."""

    @abstractmethod
    def picture(self, rows_PX: torch.Tensor, grid: Grid) -> torch.Tensor:
        """A photo's patch rows → (3, Y, Z) pixels as the model sees them, still normalised."""

    @property
    @abstractmethod
    def image_token_id(self) -> int:
        """Id of the image token."""

    @property
    @abstractmethod
    def vision_depth_width(self) -> tuple[int, int]:
        """Blocks and width of the vision tower."""

    @property
    @abstractmethod
    def text_depth_width(self) -> tuple[int, int]:
        """Layers and width of the language model."""

    @abstractmethod
    def cost(self) -> CostModel:
        """Forward FLOPs as a function of a sample's size."""

    @property
    def token_embedding(self) -> nn.Embedding:
        """The language model's input embedding (V, D)."""
        return self.vlm.get_input_embeddings()  # type: ignore[no-any-return]

    @property
    def lm_head_weight(self) -> torch.Tensor:
        """(V, D) weight of the language model's head."""
        return self.vlm.get_output_embeddings().weight  # type: ignore[no-any-return]

    @abstractmethod
    def position_function(self) -> PositionFunction:
        """Rotary positions of one sample; can be pickled for loader processes."""

    @abstractmethod
    def blocks(self, part: str) -> Sequence[nn.Module]:
        """The transformer blocks of ``llm`` or ``vision``, in order."""

    @abstractmethod
    def use_attention_backend(self, backend: str) -> None:
        """Switch all attention of tower and language model to a backend of bbu.layers.attention."""

    # ------------------------------------------------------------ work

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
            position_ids: (axes, 1, T), each sample counted from its own start.
            pixel_values: (P, patch width) patch rows of all images, or None.
            image_grid_thw: patch grid of each image, or None; an (I, 3) tensor on a GPU forces a synchronisation.
            cu_seqlens: (B + 1,) int32 sequence boundaries of the samples.
            image_keys: keys of the images in ``feature_cache``; None = not cached.
        """
        levels: list[VisionLevel] = []
        if pixel_values is not None and image_grid_thw is not None and len(image_grid_thw):
            levels = self.see(pixel_values, image_grid_thw, image_keys)
        hidden_TD = self.read(input_ids, position_ids, levels, cu_seqlens, max_seqlen)
        if not levels:
            hidden_TD = hidden_TD + no_part(self._photo_parameters())
        return BackboneOutput(hidden_TD, levels, self.language_at_image)

    def see(
        self,
        pixel_values: torch.Tensor,
        image_grid_thw: Sequence[Grid] | torch.Tensor,
        image_keys: Sequence[str | None] | None = None,
    ) -> list[VisionLevel]:
        """Patch rows → vision levels, fine to coarse."""
        grids = grid_list(image_grid_thw)
        pixels_PX, learns = pixel_values.to(self._vision_dtype()), self._tower_learns()
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
            if self.feature_cache is None or image_keys is None or learns:
                states_PD = self.tower_states(pixels_PX, grids)
            else:
                states_PD = self._kept_states(self.feature_cache, pixels_PX, grids, image_keys)
        return self.levels_of(states_PD, grids)

    @abstractmethod
    def tower_states(self, pixels_PX: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
        """(P, D) tower states that ``levels_of`` needs, one row for each patch, photos end to end.

        Photos must not attend to each other, so that the states of each can be cached.
        """

    @abstractmethod
    def levels_of(self, states_PD: torch.Tensor, grids: Sequence[Grid]) -> list[VisionLevel]:
        """Vision levels from the tower states; parameters used here belong to the group ``merger``."""

    def visual_words(
        self, pixel_values: torch.Tensor, image_grid_thw: Sequence[Grid] | torch.Tensor
    ) -> list[VisualWords] | None:
        """The words that each photo's image tokens choose; None in a family without a visual vocabulary."""
        return None

    @abstractmethod
    def read(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        levels: Sequence[VisionLevel],
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
    ) -> torch.Tensor:
        """(T, D) last hidden states of the language model, given the photos in ``levels`` (empty: no photo)."""

    @abstractmethod
    def generate(
        self, prompts: Sequence[Prompt], *, end_token_id: int, max_new_tokens: int, min_new_tokens: int = 0
    ) -> list[list[int]]:
        """Ids that the language model generates after each prompt, end token included; greedy, with a KV cache."""

    # ------------------------------------------------------------ groups, frozen towers

    def group_of(self, name: str) -> str:
        """The learning-rate group of a parameter of ``vlm``, by its longest matching prefix.

        LoRA inserts ``base_layer`` and ``lora_`` below the adapted module, so the prefix still matches.

        Raises:
            KeyError: no prefix matches.
        """
        matches = [prefix for prefix in self.group_prefixes if name.startswith(prefix)]
        if not matches:
            raise KeyError(f"no learning-rate group for parameter {name!r}; add its prefix to {type(self).__name__}")
        return self.group_prefixes[max(matches, key=len)]

    def _of_groups(self, *groups: str) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.vlm.named_parameters() if self.group_of(name) in groups}

    def _photo_parameters(self) -> Sequence[nn.Parameter]:
        """Parameters that a step without photos does not use."""
        return list(self._of_groups("vision", "merger").values())

    def _tower_learns(self) -> bool:
        return any(p.requires_grad for p in self._of_groups("vision").values())

    def _vision_dtype(self) -> torch.dtype:
        return next(iter(self._of_groups("vision").values())).dtype

    def _kept_states(
        self, cache: FeatureCache, pixels_PX: torch.Tensor, grids: Sequence[Grid], keys: Sequence[str | None]
    ) -> torch.Tensor:
        """As tower_states, photo by photo, through the cache."""
        device = pixels_PX.device
        autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
        facts = f"{self.family} {self.attention_backend} {device.type} {autocast} {self.vlm.config.to_json_string()}"
        tower = cache.tower(self._of_groups("vision"), facts)
        photos = []
        sizes = [frames * rows * columns for frames, rows, columns in grids]
        for grid, pixels, key in zip(grids, pixels_PX.split(sizes), keys, strict=True):
            states_PD = cache.get(tower, key) if key else None
            if states_PD is None or len(states_PD) != len(pixels):
                states_PD = self.tower_states(pixels, [grid])
                if key:
                    cache.put(tower, key, states_PD)
            photos.append(to_device(states_PD, device))
        return torch.cat(photos)
