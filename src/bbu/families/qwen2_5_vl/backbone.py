"""Qwen2.5-VL (Bai et al. 2025, arXiv:2502.13923) as a Backbone.

Shapes: D feature width, P patch rows, S image tokens, X numbers of a patch row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, ClassVar

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessor
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

from bbu.families.base import Grid, VisionLevel
from bbu.families.cost import CostModel
from bbu.families.patches import units_to_raster
from bbu.families.qwen2_5_vl.codec import QWEN, Qwen25VLSizes, cost_of
from bbu.families.qwen_vl import SCRATCH_INIT, QwenVL, scratch_ids, scratch_text
from bbu.layers.lean_layers import make_lean
from bbu.layers.transfer import to_device


class Qwen25VL(QwenVL):
    """Qwen2.5-VL: two vision levels, before the merger (14 pixels a token) and after it (28)."""

    family = "qwen2_5_vl"
    conversation = QWEN
    group_prefixes: ClassVar[Mapping[str, str]] = {
        "model.visual.": "vision",
        "model.visual.merger.": "merger",
        "model.language_model.": "llm",
        "lm_head.": "llm",
    }
    lora_targets: ClassVar[Mapping[str, str]] = {
        "llm": r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
        "vision": r".*visual\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(gate|up|down)_proj)",
    }

    library = Qwen2_5_VLForConditionalGeneration
    model_type = "qwen2_5_vl"
    _no_mask: ClassVar[Mapping[str, None]] = {"full_attention": None, "sliding_attention": None}

    def __init__(self, vlm: Qwen2_5_VLForConditionalGeneration, backend: str = "sdpa") -> None:
        super().__init__(vlm, backend)
        block, layer = vlm.model.visual.blocks[0], vlm.model.language_model.layers[0]
        make_lean(vlm, {type(block.norm1), type(layer.input_layernorm)}, {type(block.mlp), type(layer.mlp)})

    @classmethod
    def from_scratch(cls, sizes: Qwen25VLSizes, vocab_size: int, token_ids: Mapping[str, int]) -> Qwen25VL:
        config = Qwen2_5_VLConfig(
            vision_config={
                "initializer_range": SCRATCH_INIT,
                "depth": sizes.vision_depth,
                "hidden_size": sizes.vision_width,
                "intermediate_size": sizes.vision_width * 3,
                "num_heads": sizes.vision_heads,
                "out_hidden_size": sizes.text_width,
                "fullatt_block_indexes": list(sizes.vision_full_attention),
            },
            text_config=scratch_text(sizes, vocab_size, token_ids),
            **scratch_ids(token_ids),
        )
        return cls(Qwen2_5_VLForConditionalGeneration(config))

    @classmethod
    def _image_processor(cls) -> Qwen2VLImageProcessor:
        return Qwen2VLImageProcessor()

    @property
    def level_widths(self) -> list[int]:
        return [int(self._vision.hidden_size), int(self._vision.out_hidden_size)]

    def cost(self) -> CostModel:
        return cost_of(self.vlm.config)

    # ------------------------------------------------------------ work

    def tower_states(self, pixels_PX: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
        """States after the last block, in window order; attention windows do not cross photos."""
        tower = self.vlm.model.visual
        plan = _tower_plan(tower, tuple(grids))
        plan = {k: to_device(v, pixels_PX.device) if isinstance(v, torch.Tensor) else v for k, v in plan.items()}
        rows, units = len(pixels_PX), plan["window_index"]
        states_PD = tower.permute_input_for_window_attn(tower.patch_embed(pixels_PX), units, rows)
        rotary = tower.rotary_pos_emb(states_PD, plan["position_ids"])
        rotary = tuple(tower.permute_input_for_window_attn(each, units, rows) for each in rotary)
        for number, block in enumerate(tower.blocks):
            names = ("cu_seqlens", "max_seqlen")
            if number not in tower.fullatt_block_indexes:
                names = ("cu_window_seqlens", "max_window_seqlen")
            cu_seqlens, max_seqlen = (plan[name] for name in names)
            states_PD = block(states_PD, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen, position_embeddings=rotary)
        return states_PD  # type: ignore[no-any-return]

    def levels_of(self, states_PD: torch.Tensor, grids: Sequence[Grid]) -> list[VisionLevel]:
        """Patch states before the merger, and merged tokens; both in raster order."""
        tower, device = self.vlm.model.visual, states_PD.device
        merge = tower.spatial_merge_size
        unit_rows = torch.argsort(_tower_plan(tower, tuple(grids))["window_index"])
        merged_SD = tower.merger(states_PD)[to_device(unit_rows, device)]
        fine_PD = states_PD[to_device(units_to_raster(unit_rows, grids, merge), device)]
        return [
            VisionLevel(fine_PD, [(t * h, w) for t, h, w in grids]),
            VisionLevel(merged_SD, [(t * h // merge, w // merge) for t, h, w in grids]),
        ]


def _tower_plan(tower: Any, grids: tuple[Grid, ...]) -> dict[str, Any]:
    """Window order, sequence boundaries and positions that the tower derives from the grids, on the CPU."""
    return _plan_of(grids, tower.spatial_merge_size, tower.window_size, tower.patch_size)


@lru_cache(maxsize=4)  # called twice per step
def _plan_of(grids: tuple[Grid, ...], merge: int, window: int, patch: int) -> dict[str, Any]:
    grid_thw = torch.tensor(grids)
    window_index, cu_windows = get_vision_window_index(grid_thw, merge, window, patch)
    cu_frames = get_vision_cu_seqlens(grid_thw)
    return {
        "position_ids": get_vision_position_ids(grid_thw, merge),
        "cu_seqlens": cu_frames,
        "max_seqlen": int(cu_frames.diff().max()),
        "window_index": window_index,
        "cu_window_seqlens": cu_windows,
        "max_window_seqlen": int(cu_windows.diff().max()),
    }
