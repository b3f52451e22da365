"""Qwen2.5-VL (Bai et al. 2025, arXiv:2502.13923) behind the backbone protocol.

Shape legend: T packed tokens, L tokens of one sample, D width, P patch rows, I images, H heads, E head width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessor
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionAttention, apply_rotary_pos_emb_vision
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids, get_vision_window_index

from bbu.config import ScratchConfig
from bbu.families.base import Backbone, BackboneOutput, Grid, PositionFunction, VisionLevel
from bbu.families.feature_cache import FeatureCache
from bbu.layers.attention import implementation_name, varlen_attention
from bbu.layers.lean_layers import make_lean
from bbu.layers.transfer import to_device

# Standard deviation of fresh weights. The published 0.02 suits widths of thousands; at a few hundred it leaves
# every layer nearly silent. 0.06 is about 1 / sqrt(width), which keeps a layer's output as large as its input.
SCRATCH_INIT = 0.06


class PackedVisionAttention(Qwen2_5_VLVisionAttention):
    """The tower's attention through our backends.

    The stock layer splits its windows in a Python loop unless the implementation's name has "flash" in
    it, and a custom name with "flash" is refused, so the tower needs this seam of its own.
    """

    attention_backend = "sdpa"

    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        max_seqlen: int | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """(P, D) → (P, D), attending within the segments of ``cu_seqlens``."""
        rows = hidden_states.shape[0]
        query, key, value = self.qkv(hidden_states).reshape(rows, 3, self.num_heads, -1).unbind(1)
        assert position_embeddings is not None
        query, key = apply_rotary_pos_emb_vision(query, key, *position_embeddings)
        if max_seqlen is None:
            max_seqlen = int((cu_seqlens[1:] - cu_seqlens[:-1]).max())
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
            scale=self.scaling,
        )
        return self.proj(attended.reshape(rows, -1))  # type: ignore[no-any-return]


class PatchProjection(nn.Conv3d):
    """The tower's first layer as the matrix product that it is: its kernel covers exactly one patch.

    A CPU takes a sixth of the convolution's time for it.
    """

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        return F.linear(patches.flatten(1), self.weight.flatten(1), self.bias)


class Qwen25VL(Backbone):
    """Qwen2.5-VL: two vision levels, before the merger (14 pixels a token) and after it (28)."""

    family = "qwen2_5_vl"
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
    text_box_convention = "model_pixels"

    def __init__(self, vlm: Qwen2_5_VLForConditionalGeneration, backend: str = "sdpa") -> None:
        super().__init__()
        self.vlm = vlm
        for block in vlm.model.visual.blocks:
            block.attn.__class__ = PackedVisionAttention  # same parameters and names, another forward
        vlm.model.visual.patch_embed.proj.__class__ = PatchProjection  # the same parameter and name
        block, layer = vlm.model.visual.blocks[0], vlm.model.language_model.layers[0]
        make_lean(vlm, {type(block.norm1), type(layer.input_layernorm)}, {type(block.mlp), type(layer.mlp)})
        self.use_attention_backend(backend)

    # ------------------------------------------------------------ construction

    @classmethod
    def from_pretrained(cls, path: str, dtype: torch.dtype, trust_remote_code: bool = False) -> Qwen25VL:
        vlm = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            path, dtype=dtype, trust_remote_code=trust_remote_code, use_safetensors=True
        )
        return cls(vlm)

    @classmethod
    def from_scratch(cls, sizes: ScratchConfig, vocab_size: int, token_ids: Mapping[str, int]) -> Qwen25VL:
        head_width = sizes.text_width // sizes.text_heads
        third = head_width // 2 // 3
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
            text_config={
                "initializer_range": SCRATCH_INIT,
                "vocab_size": vocab_size,
                "hidden_size": sizes.text_width,
                "intermediate_size": sizes.text_width * 3,
                "num_hidden_layers": sizes.text_depth,
                "num_attention_heads": sizes.text_heads,
                "num_key_value_heads": sizes.text_kv_heads,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000.0,
                    # the three sections share half of the head width, as in the published [16, 24, 24] of 64
                    "mrope_section": [head_width // 2 - 2 * third, third, third],
                },
                "bos_token_id": token_ids["<|endoftext|>"],
                "eos_token_id": token_ids["<|im_end|>"],
                "pad_token_id": token_ids["<|endoftext|>"],
            },
            image_token_id=token_ids["<|image_pad|>"],
            video_token_id=token_ids["<|video_pad|>"],
            vision_start_token_id=token_ids["<|vision_start|>"],
            vision_end_token_id=token_ids["<|vision_end|>"],
            tie_word_embeddings=True,
        )
        return cls(Qwen2_5_VLForConditionalGeneration(config))

    # ------------------------------------------------------------ facts

    @property
    def hidden_size(self) -> int:
        return int(self.vlm.config.text_config.hidden_size)

    @property
    def level_widths(self) -> list[int]:
        vision = self.vlm.config.vision_config
        return [int(vision.hidden_size), int(vision.out_hidden_size)]

    @property
    def patch_size(self) -> int:
        return int(self.vlm.config.vision_config.patch_size)

    @property
    def image_token_id(self) -> int:
        return int(self.vlm.config.image_token_id)

    @property
    def token_embedding(self) -> nn.Embedding:
        return self.vlm.get_input_embeddings()  # type: ignore[no-any-return]

    @property
    def lm_head_weight(self) -> torch.Tensor:
        return self.vlm.get_output_embeddings().weight  # type: ignore[no-any-return]

    # ------------------------------------------------------------ work

    def position_function(self) -> PositionFunction:
        merge = int(self.vlm.config.vision_config.spatial_merge_size)
        return partial(mrope_positions, image_token_id=self.image_token_id, merge=merge)

    @classmethod
    def image_processor(cls, path: str) -> Any:
        return Qwen2VLImageProcessor.from_pretrained(path) if path else Qwen2VLImageProcessor()

    def blocks(self, part: str) -> Sequence[nn.Module]:
        model = self.vlm.model
        return list({"llm": model.language_model.layers, "vision": model.visual.blocks}[part])

    def use_attention_backend(self, backend: str) -> None:
        self.attention_backend = backend
        self.vlm.set_attn_implementation({"": "sdpa", "text_config": implementation_name(backend)})
        for block in self.vlm.model.visual.blocks:
            block.attn.attention_backend = backend

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
        embeds_1TD = self.token_embedding(input_ids)
        levels: list[VisionLevel] = []
        if pixel_values is not None and image_grid_thw is not None and len(image_grid_thw):
            levels, merged_ND = self._see(pixel_values, image_grid_thw, image_keys)
            is_image = (input_ids == self.image_token_id).unsqueeze(-1)
            embeds_1TD = embeds_1TD.masked_scatter(is_image, merged_ND.to(embeds_1TD.dtype))
        elif torch.is_grad_enabled():
            # every parameter takes part in every step, or data-parallel ranks wait for each other for ever
            tower = self.vlm.model.visual.parameters()
            embeds_1TD = embeds_1TD + sum(p.flatten()[:1].sum() * 0 for p in tower if p.requires_grad)
        hidden_1TD = self.vlm.model.language_model(
            inputs_embeds=embeds_1TD,
            position_ids=position_ids,
            attention_mask={"full_attention": None, "sliding_attention": None},  # the edges below are the mask
            use_cache=False,
            cu_seq_lens_q=cu_seqlens,
            cu_seq_lens_k=cu_seqlens,
            max_length_q=max_seqlen,
            max_length_k=max_seqlen,
        ).last_hidden_state
        return BackboneOutput(hidden_1TD[0], levels)

    def _see(
        self,
        pixel_values: torch.Tensor,
        image_grid_thw: Sequence[Grid] | torch.Tensor,
        image_keys: Sequence[str | None] | None,
    ) -> tuple[list[VisionLevel], torch.Tensor]:
        """Patch rows → fine level (patches, raster order), coarse level (merged tokens, raster order)."""
        tower = self.vlm.model.visual
        grid_thw = torch.as_tensor(image_grid_thw).cpu()
        grids: list[Grid] = [(t, h, w) for t, h, w in grid_thw.tolist()]
        plan = _tower_plan(tower, grid_thw)
        raster_rows = _raster_rows(plan["window_index"], grids, tower.spatial_merge_size)
        device, learns = pixel_values.device, self._tower_learns()
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
            if self.feature_cache is None or image_keys is None or learns:
                states_PD = _tower_states(tower, pixel_values.to(tower.dtype), plan)
            else:
                states_PD = self._kept_states(self.feature_cache, pixel_values.to(tower.dtype), grid_thw, image_keys)
        unit_rows = to_device(torch.argsort(plan["window_index"]), device)
        merged_ND = tower.merger(states_PD)[unit_rows]
        fine_PD = states_PD[to_device(raster_rows, device)]
        merge = tower.spatial_merge_size
        fine = VisionLevel(fine_PD, [(t * h, w) for t, h, w in grids])
        coarse = VisionLevel(merged_ND, [(t * h // merge, w // merge) for t, h, w in grids])
        return [fine, coarse], merged_ND

    def _kept_states(
        self, cache: FeatureCache, pixels_PC: torch.Tensor, grid_thw: torch.Tensor, keys: Sequence[str | None]
    ) -> torch.Tensor:
        """As _tower_states, photo by photo, those that the cache has from there."""
        tower, device = self.vlm.model.visual, pixels_PC.device
        weights = {name: p for name, p in tower.named_parameters() if not name.startswith("merger.")}
        autocast = torch.is_autocast_enabled(device.type) and torch.get_autocast_dtype(device.type)
        facts = f"{self.family} {self.attention_backend} {device.type} {autocast} {tower.config.to_json_string()}"
        name = cache.tower(weights, facts)
        photos = []
        for grid, pixels, key in zip(grid_thw, pixels_PC.split(grid_thw.prod(-1).tolist()), keys, strict=True):
            states_PD = cache.get(name, key) if key else None
            if states_PD is None or len(states_PD) != len(pixels):
                states_PD = _tower_states(tower, pixels, _tower_plan(tower, grid[None]))
                if key:
                    cache.put(name, key, states_PD)
            photos.append(to_device(states_PD, device))
        return torch.cat(photos)

    def _tower_learns(self) -> bool:
        """Whether anything before the merger learns."""
        named = self.vlm.model.visual.named_parameters()
        return any(p.requires_grad and not name.startswith("merger.") for name, p in named)

    def save(self, folder: Path, state_dict: Mapping[str, torch.Tensor] | None = None) -> None:
        self.vlm.save_pretrained(folder, state_dict=state_dict, safe_serialization=True)


def _tower_plan(tower: Any, grid_thw: torch.Tensor) -> dict[str, Any]:
    """What the tower derives from the grids, made once on the CPU."""
    merge = tower.spatial_merge_size
    window_index, cu_windows = get_vision_window_index(grid_thw, merge, tower.window_size, tower.patch_size)
    cu_frames = get_vision_cu_seqlens(grid_thw)
    return {
        "position_ids": get_vision_position_ids(grid_thw, merge),
        "cu_seqlens": cu_frames,
        "max_seqlen": int(cu_frames.diff().max()),
        "window_index": window_index,
        "cu_window_seqlens": cu_windows,
        "max_window_seqlen": int(cu_windows.diff().max()),
    }


def _tower_states(tower: Any, pixels_PC: torch.Tensor, plan: Mapping[str, Any]) -> torch.Tensor:
    """(P, D) states of patches after the tower's blocks, in the order of its windows: its forward up to the merger.

    Windows do not cross photos: the states of several are those of each, end to end.
    """
    plan = {k: to_device(v, pixels_PC.device) if isinstance(v, torch.Tensor) else v for k, v in plan.items()}
    rows, units = len(pixels_PC), plan["window_index"]
    states_PD = tower.permute_input_for_window_attn(tower.patch_embed(pixels_PC), units, rows)
    turns = tower.rotary_pos_emb(states_PD, plan["position_ids"])
    turns = tuple(tower.permute_input_for_window_attn(turn, units, rows) for turn in turns)
    for number, block in enumerate(tower.blocks):
        edges = ("cu_seqlens", "max_seqlen")
        if number not in tower.fullatt_block_indexes:
            edges = ("cu_window_seqlens", "max_window_seqlen")
        cu_seqlens, max_seqlen = (plan[name] for name in edges)
        states_PD = block(states_PD, cu_seqlens=cu_seqlens, max_seqlen=max_seqlen, position_embeddings=turns)
    return states_PD


def _raster_rows(window_index: torch.Tensor, grids: Sequence[Grid], merge: int) -> torch.Tensor:
    """(P,) row in the tower's output of each patch in raster order.

    The tower orders 2×2 merge units by attention window, and patches within a unit row by row.
    """
    unit_row = torch.empty_like(window_index)
    unit_row[window_index] = torch.arange(len(window_index))
    rows = []
    first_unit = 0
    for t, h, w in grids:
        units = unit_row[first_unit : first_unit + t * h * w // merge**2].reshape(t, h // merge, w // merge)
        inner = torch.arange(merge**2).reshape(merge, merge)
        patches = units[:, :, None, :, None] * merge**2 + inner[None, None, :, None, :]
        rows.append(patches.reshape(-1))
        first_unit += t * h * w // merge**2
    return torch.cat(rows)


def mrope_positions(token_ids: Sequence[int], grids: Sequence[Grid], image_token_id: int, merge: int) -> torch.Tensor:
    """(3, L) multimodal rotary positions of one sample (Qwen2-VL, Wang et al. 2024, arXiv:2409.12191).

    Text counts up on all three axes; the tokens of an image share the frame axis and count rows and
    columns from where the text stopped; text goes on after the longest side of the image.

    Raises:
        ValueError: the image tokens do not fit the grids.
    """
    ids = torch.as_tensor(token_ids)
    positions = torch.zeros(3, len(ids), dtype=torch.long)
    is_image = (ids == image_token_id).tolist()
    remaining = list(grids)
    index, position = 0, 0
    while index < len(is_image):
        if not is_image[index]:
            stop = next((i for i in range(index, len(is_image)) if is_image[i]), len(is_image))
            positions[:, index:stop] = torch.arange(stop - index) + position
            position += stop - index
            index = stop
            continue
        if not remaining:
            raise ValueError("there are more image tokens than the image grids account for")
        frames, rows, columns = remaining.pop(0)
        rows, columns = rows // merge, columns // merge
        stop = index + frames * rows * columns
        if stop > len(is_image) or not all(is_image[index:stop]):
            raise ValueError(f"an image of {frames}x{rows}x{columns} merged tokens does not fit its image tokens")
        axes = torch.meshgrid(torch.arange(frames), torch.arange(rows), torch.arange(columns), indexing="ij")
        positions[:, index:stop] = torch.stack([axis.reshape(-1) for axis in axes]) + position
        position += max(rows, columns)
        index = stop
    if remaining:
        raise ValueError(f"{len(remaining)} images have no image tokens")
    return positions
