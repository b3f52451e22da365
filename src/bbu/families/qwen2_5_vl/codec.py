"""Qwen2.5-VL's chat format, model.scratch sizes and compute cost. Needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bbu.errors import ConfigError
from bbu.families.conversation import Conversation
from bbu.families.cost import CostModel

QWEN = Conversation(
    template=Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8"),
    image_text="<|vision_start|><|image_pad|><|vision_end|>",
    image_token="<|image_pad|>",
    turn_start="<|im_start|>",
    answer_header="<|im_start|>assistant\n",
    end="<|im_end|>",
    pad="<|endoftext|>",
    special_tokens=(
        "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
        "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
        "<|image_pad|>", "<|video_pad|>",
    ),
    # splits text as Qwen2's tokenizer does: words, single digits, punctuation, line ends
    word_pattern=(
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    box_convention="model_pixels",
)  # fmt: skip


@dataclass
class Qwen25VLSizes:
    """Sizes of a randomly initialised model, the keys of ``model.scratch``.

    Raises:
        ConfigError: a size is not a multiple of its divisor, such as width and number of heads.
    """

    vision_width: int = 192
    vision_depth: int = 4
    vision_heads: int = 3
    vision_full_attention: list[int] = field(default_factory=lambda: [1, 3])  # blocks without windows
    text_width: int = 128
    text_depth: int = 2
    text_heads: int = 4
    text_kv_heads: int = 2
    vocab_size: int = 800  # upper bound; the byte-level BPE is trained on the training text

    def __post_init__(self) -> None:
        check_multiples(self)


def check_multiples(sizes: Any) -> None:
    """Check that widths are multiples of their heads.

    Raises:
        ConfigError: one is not.
    """
    for size, divisor, times in (
        ("vision_width", "vision_heads", 4),  # rows and columns, each a sine and a cosine
        ("text_width", "text_heads", 2),
        ("text_heads", "text_kv_heads", 1),
    ):
        if getattr(sizes, size) % (times * getattr(sizes, divisor)):
            raise ConfigError(
                f"model.scratch.{size} ({getattr(sizes, size)}) must be a multiple of "
                f"{f'{times} x ' if times > 1 else ''}model.scratch.{divisor} ({getattr(sizes, divisor)})"
            )


def text_cost(text: Any) -> tuple[float, float]:
    """FLOPs of a language model's layers for a token and for a pair of tokens, from its config."""
    heads, layers, width = text.num_attention_heads, text.num_hidden_layers, text.hidden_size
    head = getattr(text, "head_dim", None) or width // heads
    projections = width * head * (2 * heads + 2 * text.num_key_value_heads)
    token = 2.0 * layers * (projections + 3 * width * text.intermediate_size)
    return token, 2.0 * layers * heads * head  # 4 for scores and weighted sums, halved by the causal mask


def cost_of(config: Any) -> CostModel:
    """CostModel of a transformers config."""
    text, vision = config.text_config, config.vision_config
    depth, narrow = vision.depth, vision.hidden_size
    whole = len(vision.fullatt_block_indexes)  # blocks without windows
    block = 4 * narrow**2 + 3 * narrow * vision.intermediate_size
    merger = vision.spatial_merge_size**2 * narrow**2 + narrow * text.hidden_size
    pixels = 3 * vision.temporal_patch_size * vision.patch_size**2
    window = (vision.window_size // vision.patch_size) ** 2  # patches
    token, token_pair = text_cost(text)
    return CostModel(
        token=token,
        token_pair=token_pair,
        patch=2.0 * (pixels * narrow + depth * block + merger) + 4.0 * (depth - whole) * narrow * window,
        patch_pair=4.0 * whole * narrow,
    )
