"""Ovis2.5's chat format, model.scratch sizes, options and compute cost. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bbu.errors import ConfigError
from bbu.families.conversation import Conversation
from bbu.families.cost import CostModel
from bbu.families.qwen2_5_vl.codec import QWEN, check_multiples, text_cost

NO_THOUGHT = "<think>\n\n</think>\n\n"  # what an answer without reasoning begins with, and no loss is taken of
INDICATORS = 4  # last rows of the visual embedding table: a photo's start and end, a video's start and end

# The turns of Qwen3 in the form without reasoning, in every assistant turn, as the authors' trainer writes them
# (AIDC-AI/Ovis@0a8deb3, ovis/model/conversation_formatter.py). Parts of a turn stand on lines of their own.
OVIS: Conversation = replace(
    QWEN,
    template=Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8"),
    answer_header=f"<|im_start|>assistant\n{NO_THOUGHT}",
    special_tokens=(*QWEN.special_tokens, "<think>", "</think>"),
    box_convention="norm1000",
)


@dataclass
class Ovis25Sizes:
    """Sizes of a randomly initialised model, the keys of ``model.scratch``.

    Raises:
        ConfigError: a size is not a multiple of its divisor, such as width and number of heads, or there are no words.
    """

    vision_width: int = 192
    vision_depth: int = 3
    vision_heads: int = 3
    vision_positions: int = 16  # rows and columns of the table of learned positions
    visual_vocab: int = 256  # rows of the visual embedding table, the four indicators included
    text_width: int = 128
    text_depth: int = 2
    text_heads: int = 4
    text_kv_heads: int = 2
    vocab_size: int = 800  # upper bound; the byte-level BPE is trained on the training text

    def __post_init__(self) -> None:
        check_multiples(self)
        if self.visual_vocab < INDICATORS + 2:
            raise ConfigError(
                f"model.scratch.visual_vocab ({self.visual_vocab}) must be at least {INDICATORS + 2}: two words to "
                f"choose from, and {INDICATORS} indicators"
            )


@dataclass
class Ovis25Options:
    """Keys of ``model.options``."""

    tower_rotary: bool = True  # the tower's rotary positions beside its learned ones; False as in the first phase


def cost_of(config: Any) -> CostModel:
    """CostModel of a model's config; the visual head is 872 MFLOP an image token in the 2B model."""
    text, vision = config.llm_config, config.vit_config
    depth, narrow, unit = vision.num_hidden_layers, vision.hidden_size, vision.hidden_stride**2
    block = 4 * narrow**2 + 2 * narrow * vision.intermediate_size
    head = (config.visual_vocab_size - INDICATORS) * (unit * narrow + text.hidden_size)  # of a token: choice, embedding
    pixels = vision.num_channels * vision.temporal_patch_size * vision.patch_size**2
    token, token_pair = text_cost(text)
    return CostModel(
        token=token,
        token_pair=token_pair,
        patch=2.0 * (pixels * narrow + depth * block + head / unit),
        patch_pair=4.0 * depth * narrow,
    )
