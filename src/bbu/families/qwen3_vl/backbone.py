"""Qwen3-VL (Bai et al. 2025, arXiv:2511.21631) as a Backbone.

The tower has learned positions beside the rotary ones and full attention in every block. States of some blocks, each
through a merger of its own, are added to the language model's states at the image tokens after its first layers
(DeepStack, Meng et al. 2024, arXiv:2406.04334).

Shapes: T packed tokens, D feature width, P patch rows, S image tokens, X numbers of a patch row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import torch
from transformers import Qwen2VLImageProcessor, Qwen3VLConfig, Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
)

from bbu.families.base import Grid, VisionLevel
from bbu.families.cost import CostModel
from bbu.families.patches import units_to_raster
from bbu.families.qwen3_vl.codec import QWEN3, Qwen3VLSizes, cost_of
from bbu.families.qwen_vl import SCRATCH_INIT, QwenVL, scratch_ids, scratch_text
from bbu.layers.lean_layers import make_lean
from bbu.layers.placing import place
from bbu.layers.transfer import to_device


class QueuedDeepStack(Qwen3VLTextModel):
    """The language model, whose DeepStack the device can queue: stock boolean indexing waits for a GPU."""

    def _deepstack_process(
        self, hidden_states: torch.Tensor, visual_pos_masks: torch.Tensor, visual_embeds: torch.Tensor
    ) -> torch.Tensor:
        shown = torch.zeros_like(hidden_states)
        return hidden_states + place(shown, visual_pos_masks, visual_embeds.to(shown.dtype))


class Qwen3VL(QwenVL):
    """Qwen3-VL: two vision levels, the tower's last states (16 pixels a token) and merged tokens (32).

    A merged token's channels are those of the last states, then those of each DeepStack block.
    """

    family = "qwen3_vl"
    conversation = QWEN3
    group_prefixes: ClassVar[Mapping[str, str]] = {
        "model.visual.": "vision",
        "model.visual.merger.": "merger",
        "model.visual.deepstack_merger_list.": "merger",
        "model.language_model.": "llm",
        "lm_head.": "llm",
    }
    lora_targets: ClassVar[Mapping[str, str]] = {
        "llm": r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
        "vision": r".*visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.linear_fc[12])",
    }
    library = Qwen3VLForConditionalGeneration
    model_type = "qwen3_vl"

    def __init__(self, vlm: Qwen3VLForConditionalGeneration, backend: str = "sdpa") -> None:
        super().__init__(vlm, backend)
        vlm.model.language_model.__class__ = QueuedDeepStack  # the same parameters and names
        layer = vlm.model.language_model.layers[0]
        tower_mlp = type(vlm.model.visual.blocks[0].mlp)
        make_lean(vlm, {type(layer.input_layernorm)}, {type(layer.mlp), tower_mlp})

    @classmethod
    def from_scratch(cls, sizes: Qwen3VLSizes, vocab_size: int, token_ids: Mapping[str, int]) -> Qwen3VL:
        config = Qwen3VLConfig(
            vision_config={
                "initializer_range": SCRATCH_INIT,
                "depth": sizes.vision_depth,
                "hidden_size": sizes.vision_width,
                "intermediate_size": sizes.vision_width * 4,
                "num_heads": sizes.vision_heads,
                "num_position_embeddings": sizes.vision_positions**2,
                "out_hidden_size": sizes.text_width,
                "deepstack_visual_indexes": sizes.deepstack_blocks,
            },
            text_config=scratch_text(sizes, vocab_size, token_ids, mrope_interleaved=True)
            | {"head_dim": sizes.text_width // sizes.text_heads},
            **scratch_ids(token_ids),
        )
        return cls(Qwen3VLForConditionalGeneration(config))

    @classmethod
    def _image_processor(cls) -> Qwen2VLImageProcessor:
        return Qwen2VLImageProcessor(patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3)

    @property
    def _shown_blocks(self) -> list[int]:
        return list(self._vision.deepstack_visual_indexes)

    @property
    def level_widths(self) -> list[int]:
        return [int(self._vision.hidden_size), int(self._vision.out_hidden_size) * (1 + len(self._shown_blocks))]

    def cost(self) -> CostModel:
        return cost_of(self.vlm.config)

    # ------------------------------------------------------------ work

    def tower_states(self, pixels_PX: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
        """States after the last block, then those after each DeepStack block, side by side; in merge units."""
        tower = self.vlm.model.visual
        plan = _plan_of(tuple(grids), tower.spatial_merge_size, tower.num_grid_per_side)
        plan = {k: to_device(v, pixels_PX.device) if isinstance(v, torch.Tensor) else v for k, v in plan.items()}
        states_PD = tower.patch_embed(pixels_PX)
        places = tower.pos_embed(plan["places"]) * plan["shares"][:, :, None]  # (P, 4, D): bilinear
        states_PD = states_PD + places.sum(1).to(states_PD.dtype)
        rotary = tower.rotary_pos_emb(states_PD, plan["position_ids"])
        boundaries = {name: plan[name] for name in ("cu_seqlens", "max_seqlen")}
        shown: dict[int, torch.Tensor] = {}
        for number, block in enumerate(tower.blocks):
            states_PD = block(states_PD, **boundaries, position_embeddings=rotary)
            if number in self._shown_blocks:
                shown[number] = states_PD
        return torch.cat([states_PD, *(shown[number] for number in self._shown_blocks)], dim=-1)

    def levels_of(self, states_PD: torch.Tensor, grids: Sequence[Grid]) -> list[VisionLevel]:
        """The last states, and the merged tokens of all states side by side; both in raster order."""
        tower, merge = self.vlm.model.visual, self.vlm.model.visual.spatial_merge_size
        last_PD, *shown = states_PD.chunk(1 + len(self._shown_blocks), dim=-1)
        mergers = (tower.merger, *tower.deepstack_merger_list)
        joined = [merger(each.contiguous()) for merger, each in zip(mergers, (last_PD, *shown), strict=True)]
        merged_SD = torch.cat(joined, dim=-1)
        units = torch.arange(len(merged_SD))
        raster = to_device(units_to_raster(units, grids, merge), states_PD.device)
        return [
            VisionLevel(last_PD[raster], [(t * h, w) for t, h, w in grids]),
            VisionLevel(merged_SD, [(t * h // merge, w // merge) for t, h, w in grids]),
        ]

    def _shown(self, tokens_SD: torch.Tensor, is_image_1T: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
        last_SD, *shown = tokens_SD.chunk(1 + len(self._shown_blocks), dim=-1)
        return last_SD, {"visual_pos_masks": is_image_1T, "deepstack_visual_embeds": shown} if shown else {}


@lru_cache(maxsize=4)
def _plan_of(grids: tuple[Grid, ...], merge: int, table: int) -> dict[str, Any]:
    """Sequence boundaries and positions that the tower derives from the grids, on the CPU.

    ``places`` and ``shares`` (P, 4): the entries of the (table, table) learned positions around each patch's place in
    its photo, and their bilinear weights.
    """
    grid_thw = torch.tensor(grids)
    cu_frames = get_vision_cu_seqlens(grid_thw)
    places, shares = get_vision_interpolation_indices_and_weights(
        grid_thw, num_grid_per_side=table, mode="bilinear", align_corners=True, spatial_merge_size=merge
    )
    return {
        "position_ids": get_vision_position_ids(grid_thw, merge),
        "cu_seqlens": cu_frames,
        "max_seqlen": int(cu_frames.diff().max()),
        "places": places,
        "shares": shares,
    }
