"""A model family that is nothing like the shipped ones, written from docs/add_a_backbone.md.

Patches of 10 pixels in raster order, joined 3 by 3; photos on a padded canvas; two vision levels of equal resolution;
one text token a photo, so no language states lie at image tokens; plain rotary positions; another template and other
tokens.

Shapes: T packed tokens, D feature width, P patch rows, S image tokens, X numbers of a patch row.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.modeling_layers import GradientCheckpointingLayer

from bbu.families.base import Backbone, Grid, PositionFunction, VisionLevel
from bbu.families.conversation import Conversation
from bbu.families.cost import CostModel
from bbu.families.generation import Prompt, pad_left, until_end
from bbu.families.photo_plan import PhotoPlan
from bbu.families.prompts import PromptSpec
from bbu.families.registry import FAMILIES, Family
from bbu.geometry import MAX_ASPECT_RATIO, ImageGeometry
from bbu.layers.attention import implementation_name, varlen_attention
from bbu.layers.lean_layers import make_lean
from bbu.layers.placing import place

PATCH, MERGE = 10, 3
CELL = PATCH * MERGE
SETTINGS = "toy_photos.json"

TOY = Conversation(
    template=(
        "{%- for message in messages -%}<turn>{{ message['role'] }}: "
        "{%- if message['content'] is string -%}{{ message['content'] }}{%- else -%}"
        "{%- for part in message['content'] -%}"
        "{%- if part['type'] == 'image' -%}<look><snap>{%- else -%}{{ part['text'] }}{%- endif -%}"
        "{%- endfor -%}{%- endif -%}<stop>{%- endfor -%}"
        "{%- if add_generation_prompt -%}<turn>assistant: {%- endif -%}"
    ),
    image_text="<look><snap>",
    image_token="<snap>",
    turn_start="<turn>",
    answer_header="<turn>assistant:",
    end="<stop>",
    pad="<fill>",
    special_tokens=("<fill>", "<turn>", "<stop>", "<look>", "<snap>"),
    word_pattern=r"\p{L}+|\p{N}|[^\p{L}\p{N}]",
    box_convention="norm1000",
    system_in_first_turn=True,
)


@dataclass
class ToySizes:
    """Keys of ``model.scratch``."""

    vision_width: int = 32
    vision_depth: int = 2
    vision_heads: int = 2
    text_width: int = 64
    text_depth: int = 2
    text_heads: int = 4
    text_kv_heads: int = 2
    vocab_size: int = 400


class ToyPlan(PhotoPlan):
    """Photos keep their shape on a canvas of whole cells, padded to the right and below."""

    patch_size, patch_width, token_size = PATCH, 3 * PATCH**2, CELL

    def __init__(self, min_pixels: int, max_pixels: int) -> None:
        self.min_pixels, self.max_pixels = min_pixels, max_pixels

    def plan(self, width: int, height: int) -> ImageGeometry:
        if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
            raise ValueError(f"image size {width}x{height}: aspect ratio is over {MAX_ASPECT_RATIO}")
        scale = math.sqrt(min(max(width * height, self.min_pixels), self.max_pixels) / (width * height))
        across, down = (max(1, math.floor(side * scale)) for side in (width, height))
        return ImageGeometry(width, height, across, down, *(math.ceil(side / CELL) * CELL for side in (across, down)))

    def grid(self, geometry: ImageGeometry) -> Grid:
        return 1, geometry.canvas_height // PATCH, geometry.canvas_width // PATCH

    def text_tokens(self, patches: Any) -> Any:
        return patches * 0 + 1

    def most_patches(self, width: int, height: int) -> int:
        cells = max(self.max_pixels, self.min_pixels) / CELL**2  # a · b, of which each side is rounded up
        shape = math.sqrt(MAX_ASPECT_RATIO)
        return math.floor(cells + math.sqrt(cells) * (shape + 1 / shape) + 1) * MERGE**2

    def longest_side(self, width: int, height: int, *, cropped: bool) -> int:
        plan = self.plan(width, height)
        longest = max(plan.canvas_width, plan.canvas_height)
        return max(longest, math.ceil(math.sqrt(self.max_pixels * MAX_ASPECT_RATIO)) + CELL) if cropped else longest

    def patchify(
        self, images: Sequence[Image.Image], geometries: Sequence[ImageGeometry]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows = []
        for image, plan in zip(images, geometries, strict=True):
            small = image.convert("RGB").resize((plan.model_width, plan.model_height), Image.Resampling.BILINEAR)
            canvas = np.zeros((plan.canvas_height, plan.canvas_width, 3), dtype=np.float32)
            canvas[: plan.model_height, : plan.model_width] = np.asarray(small, dtype=np.float32) / 127.5 - 1
            cut = canvas.reshape(plan.canvas_height // PATCH, PATCH, plan.canvas_width // PATCH, PATCH, 3)
            rows.append(torch.from_numpy(cut.transpose(0, 2, 4, 1, 3).reshape(-1, self.patch_width)))
        return torch.cat(rows), torch.tensor([self.grid(plan) for plan in geometries])

    def facts(self) -> dict[str, str]:
        return {"patch": str(PATCH), "merge": str(MERGE), "mean": "0.5"}

    def save(self, folder: Path) -> None:
        (folder / SETTINGS).write_text(json.dumps(self.facts()), encoding="utf-8")


class ToyConfig(Qwen3Config):
    """The language model's, with the tower's sizes beside them."""

    model_type = "toy"
    vision_width: int = 32
    vision_depth: int = 2
    vision_heads: int = 2
    image_token_id: int = 4


class ToyBlock(GradientCheckpointingLayer):
    """Attention within photos and an MLP."""

    attention_backend = "sdpa"

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_in, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, states_PD: torch.Tensor, cu_seqlens: torch.Tensor, max_seqlen: int) -> torch.Tensor:
        query, key, value = self.qkv(self.norm_in(states_PD)).unflatten(-1, (3, self.heads, -1)).unbind(1)
        attended = varlen_attention(
            query,
            key,
            value,
            cu_seqlens_q=cu_seqlens,
            cu_seqlens_k=cu_seqlens,
            max_seqlen_q=max_seqlen,
            max_seqlen_k=max_seqlen,
            causal=False,
            backend=self.attention_backend,
        )
        states_PD = states_PD + self.proj(attended.flatten(1))
        return states_PD + self.down(torch.nn.functional.gelu(self.up(self.norm_out(states_PD))))  # type: ignore[no-any-return]


class ToyTower(nn.Module):
    """Patches → states, and the two joins of 3 x 3 states."""

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        width = config.vision_width
        self.embed = nn.Linear(3 * PATCH**2, width)
        self.place = nn.Linear(2, width)
        self.blocks = nn.ModuleList(ToyBlock(width, config.vision_heads) for _ in range(config.vision_depth))
        self.join = nn.ModuleDict(
            {
                "states": nn.Linear(MERGE**2 * width, width),
                "words": nn.Linear(MERGE**2 * width, config.hidden_size),
            }
        )


class ToyModel(Qwen3ForCausalLM):
    """Qwen3's language model with a tower beside it."""

    config_class = ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        self.visual = ToyTower(config)
        self.post_init()


class ToyBackbone(Backbone):
    """The family behind the protocol."""

    family = "toy"
    conversation = TOY
    group_prefixes: ClassVar[Mapping[str, str]] = {
        "visual.": "vision",
        "visual.join.": "merger",
        "model.": "llm",
        "lm_head.": "llm",
    }
    lora_targets: ClassVar[Mapping[str, str]] = {
        "llm": r".*model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
        "vision": r".*visual\.blocks\.\d+\.(qkv|proj|up|down)",
    }
    language_at_image = False

    def __init__(self, vlm: ToyModel) -> None:
        super().__init__()
        self.vlm = vlm
        layer = vlm.model.layers[0]
        make_lean(vlm, {type(layer.input_layernorm)}, {type(layer.mlp)})
        self.use_attention_backend("sdpa")

    # ------------------------------------------------------------ construction

    @classmethod
    def from_pretrained(cls, path: str, dtype: torch.dtype, trust_remote_code: bool = False) -> ToyBackbone:
        return cls(ToyModel.from_pretrained(path, dtype=dtype, use_safetensors=True))

    @classmethod
    def from_scratch(cls, sizes: ToySizes, vocab_size: int, token_ids: Mapping[str, int]) -> ToyBackbone:
        config = ToyConfig(
            vocab_size=vocab_size,
            hidden_size=sizes.text_width,
            intermediate_size=2 * sizes.text_width,
            num_hidden_layers=sizes.text_depth,
            num_attention_heads=sizes.text_heads,
            num_key_value_heads=sizes.text_kv_heads,
            head_dim=sizes.text_width // sizes.text_heads,
            tie_word_embeddings=True,
            initializer_range=0.06,
            eos_token_id=token_ids[TOY.end],
            pad_token_id=token_ids[TOY.pad],
            bos_token_id=None,
            vision_width=sizes.vision_width,
            vision_depth=sizes.vision_depth,
            vision_heads=sizes.vision_heads,
            image_token_id=token_ids[TOY.image_token],
        )
        return cls(ToyModel(config))

    @classmethod
    def empty(cls, path: str, trust_remote_code: bool = False) -> ToyBackbone:
        return cls(ToyModel(ToyConfig.from_pretrained(path)))

    @classmethod
    def photo_plan(cls, path: str, spec: PromptSpec) -> ToyPlan:
        if path:
            json.loads((Path(path) / SETTINGS).read_text(encoding="utf-8"))
        return ToyPlan(spec.min_pixels, spec.max_pixels)

    # ------------------------------------------------------------ facts

    @property
    def hidden_size(self) -> int:
        return int(self.vlm.config.hidden_size)

    @property
    def level_widths(self) -> list[int]:
        return [int(self.vlm.config.vision_width), self.hidden_size]

    @property
    def level_sides(self) -> list[int]:
        return [CELL, CELL]

    def picture(self, rows_PX: torch.Tensor, grid: Grid) -> torch.Tensor:
        _, rows, columns = grid
        cut = rows_PX.view(rows, columns, 3, PATCH, PATCH)
        return cut.permute(2, 0, 3, 1, 4).reshape(3, rows * PATCH, columns * PATCH)

    @property
    def image_token_id(self) -> int:
        return int(self.vlm.config.image_token_id)

    @property
    def vision_depth_width(self) -> tuple[int, int]:
        return len(self.vlm.visual.blocks), int(self.vlm.config.vision_width)

    @property
    def text_depth_width(self) -> tuple[int, int]:
        return len(self.vlm.model.layers), self.hidden_size

    def cost(self) -> CostModel:
        wide, narrow = self.hidden_size, int(self.vlm.config.vision_width)
        deep = len(self.vlm.visual.blocks)
        return CostModel(
            token=2.0 * len(self.vlm.model.layers) * 9 * wide**2,
            token_pair=2.0 * len(self.vlm.model.layers) * wide,
            patch=2.0 * (300 * narrow + deep * 8 * narrow**2 + narrow * (narrow + wide)),
            patch_pair=4.0 * deep * narrow,
        )

    def position_function(self) -> PositionFunction:
        return positions

    def blocks(self, part: str) -> Sequence[nn.Module]:
        return list({"llm": self.vlm.model.layers, "vision": self.vlm.visual.blocks}[part])

    def use_attention_backend(self, backend: str) -> None:
        self.attention_backend = backend
        self.vlm.set_attn_implementation(implementation_name(backend))
        for block in self.vlm.visual.blocks:
            block.attention_backend = backend

    # ------------------------------------------------------------ work

    def tower_states(self, pixels_PX: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
        tower, device = self.vlm.visual, pixels_PX.device
        places = [
            torch.cartesian_prod(torch.linspace(0, 1, rows), torch.linspace(0, 1, columns))
            for _, rows, columns in grids
        ]
        states_PD = tower.embed(pixels_PX) + tower.place(torch.cat(places).to(device, pixels_PX.dtype))
        sizes = [rows * columns for _, rows, columns in grids]
        cu_seqlens = torch.tensor([0, *sizes], device=device).cumsum(0).to(torch.int32)
        for block in tower.blocks:
            states_PD = block(states_PD, cu_seqlens=cu_seqlens, max_seqlen=max(sizes))
        return states_PD  # type: ignore[no-any-return]

    def levels_of(self, states_PD: torch.Tensor, grids: Sequence[Grid]) -> list[VisionLevel]:
        cells = []
        for (_, rows, columns), photo in zip(grids, states_PD.split([r * c for _, r, c in grids]), strict=True):
            units = photo.view(rows // MERGE, MERGE, columns // MERGE, MERGE, -1).transpose(1, 2)
            cells.append(units.reshape(rows * columns // MERGE**2, -1))
        joined, coarse = torch.cat(cells), [(rows // MERGE, columns // MERGE) for _, rows, columns in grids]
        join = self.vlm.visual.join
        return [VisionLevel(join["states"](joined), coarse), VisionLevel(join["words"](joined), coarse)]

    def read(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        levels: Sequence[VisionLevel],
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
    ) -> torch.Tensor:
        hidden_1TD = self.vlm.model(
            inputs_embeds=self._embed(input_ids, levels),
            position_ids=position_ids[0],
            attention_mask={"full_attention": None},
            use_cache=False,
            cu_seq_lens_q=cu_seqlens,
            cu_seq_lens_k=cu_seqlens,
            max_length_q=max_seqlen,
            max_length_k=max_seqlen,
        ).last_hidden_state
        return hidden_1TD[0]  # type: ignore[no-any-return]

    def _embed(self, input_ids: torch.Tensor, levels: Sequence[VisionLevel]) -> torch.Tensor:
        """A photo's one token is the mean of its coarse tokens."""
        embeds_1TD = self.token_embedding(input_ids)
        if not levels:
            return embeds_1TD
        by_photo = levels[-1].tokens_SD.split([rows * columns for rows, columns in levels[-1].grids])
        photos_ID = torch.stack([photo.mean(0) for photo in by_photo])
        return place(embeds_1TD, input_ids == self.image_token_id, photos_ID.to(embeds_1TD.dtype))

    def generate(
        self, prompts: Sequence[Prompt], *, end_token_id: int, max_new_tokens: int, min_new_tokens: int = 0
    ) -> list[list[int]]:
        with torch.no_grad():
            embeds, known = pad_left(
                [
                    self._embed(prompt.input_ids[None], self.see(prompt.pixel_values, prompt.image_grid_thw))[0]
                    for prompt in prompts
                ]
            )
        written = self.vlm.generate(
            inputs_embeds=embeds,
            attention_mask=known,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            do_sample=False,
            eos_token_id=end_token_id,
            pad_token_id=end_token_id,
        ).tolist()
        return [until_end(row, end_token_id) for row in written]


def positions(token_ids: Sequence[int], grids: Sequence[Grid]) -> torch.Tensor:
    """(1, L): text counts up, and a photo is one token of it."""
    return torch.arange(len(token_ids))[None]


FAMILIES["toy"] = Family("tests.toy_family:ToyBackbone", ToySizes, 4 * CELL**2, 400 * CELL**2)
