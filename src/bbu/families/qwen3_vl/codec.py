"""Qwen3-VL's chat format, model.scratch sizes and compute cost. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from bbu.errors import ConfigError
from bbu.families.cost import CostModel
from bbu.families.qwen2_5_vl.codec import QWEN, check_multiples, text_cost

# The turns, tokens and word splits of Qwen2.5-VL; boxes are written in thousandths of the photo.
QWEN3 = replace(QWEN, box_convention="norm1000")


@dataclass
class Qwen3VLSizes:
    """Sizes of a randomly initialised model, the keys of ``model.scratch``.

    Raises:
        ConfigError: a size is not a multiple of its divisor, such as width and number of heads; or the tower shows
            more states than there are text layers to add them to.
    """

    vision_width: int = 192
    vision_depth: int = 3
    vision_heads: int = 3
    vision_positions: int = 16  # rows and columns of the table of learned positions
    vision_deepstack: int = 1  # states of earlier blocks, evenly spaced, that are added after the first text layers
    text_width: int = 128
    text_depth: int = 2
    text_heads: int = 4
    text_kv_heads: int = 2
    vocab_size: int = 800  # upper bound; the byte-level BPE is trained on the training text

    def __post_init__(self) -> None:
        check_multiples(self)
        for depth in ("vision_depth", "text_depth"):
            if self.vision_deepstack > getattr(self, depth):
                raise ConfigError(
                    f"model.scratch.vision_deepstack ({self.vision_deepstack}) must be at most model.scratch.{depth} "
                    f"({getattr(self, depth)})"
                )

    @property
    def deepstack_blocks(self) -> list[int]:
        """Blocks whose states are shown, as far apart as the published 5, 11 and 17 of 24."""
        shown = self.vision_deepstack
        return [math.ceil(self.vision_depth * number / (shown + 1)) - 1 for number in range(1, shown + 1)]


def cost_of(config: Any) -> CostModel:
    """CostModel of a transformers config."""
    text, vision = config.text_config, config.vision_config
    depth, narrow, unit = vision.depth, vision.hidden_size, vision.spatial_merge_size**2
    block = 4 * narrow**2 + 2 * narrow * vision.intermediate_size
    merger = unit * narrow**2 + narrow * text.hidden_size
    pixels = 3 * vision.temporal_patch_size * vision.patch_size**2
    mergers = 1 + len(vision.deepstack_visual_indexes)
    token, token_pair = text_cost(text)
    return CostModel(
        token=token,
        token_pair=token_pair,
        patch=2.0 * (pixels * narrow + depth * block + mergers * merger),
        patch_pair=4.0 * depth * narrow,
    )
