"""Ovis2.5 (Lu et al. 2025, arXiv:2508.11737) as a Backbone.

Four tower states are joined and choose softly among the words of a visual vocabulary; an image token is the mean of
the words' embeddings, weighted by the choice. The embeddings of a photo's start and end come from the same table.

Shapes: T packed tokens, D feature width, P patch rows, S image tokens, X numbers of a patch row, W
width of the language model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AutoTokenizer, Qwen2VLImageProcessor
from transformers.image_utils import PILImageResampling
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids

from bbu.families.base import Backbone, Grid, PositionFunction, VisionLevel, VisualWords, grid_list
from bbu.families.cost import CostModel
from bbu.families.generation import Prompt, pad_left, until_end
from bbu.families.ovis2_5.codec import INDICATORS, OVIS, Ovis25Options, Ovis25Sizes, cost_of
from bbu.families.ovis2_5.model import OvisConfig, OvisModel, Rotation, Tower
from bbu.families.ovis2_5.visual_head import chosen_words, soft_embeddings
from bbu.families.patches import units_to_picture, units_to_raster
from bbu.families.photo_plan import MergedPlan
from bbu.families.prompts import PromptSpec
from bbu.families.qwen_vl import SCRATCH_INIT
from bbu.layers.attention import implementation_name
from bbu.layers.lean_layers import make_lean
from bbu.layers.placing import place
from bbu.layers.transfer import to_device

ROTARY_BASE = 10000.0
# What makes patches; a published folder's preprocessor_config.json is SigLIP's and has mean, deviation and filter alone
PROCESSOR: dict[str, Any] = {
    "patch_size": 16,
    "temporal_patch_size": 1,
    "merge_size": 2,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
    "rescale_factor": 1 / 255,
    "resample": PILImageResampling.BILINEAR,
}
TOKEN_IDS = {"image_token_id": "<|image_pad|>", "vision_start_token_id": "<|vision_start|>",
             "vision_end_token_id": "<|vision_end|>"}  # fmt: skip


class Ovis25(Backbone):
    """Ovis2.5: two vision levels, the tower's last states (16 pixels a token) and the soft embeddings (32)."""

    family = "ovis2_5"
    conversation = OVIS
    group_prefixes: ClassVar[Mapping[str, str]] = {
        "visual_tokenizer.vit.": "vision",
        "visual_tokenizer.head.": "merger",
        "vte.": "merger",
        "llm.": "llm",
    }
    lora_targets: ClassVar[Mapping[str, str]] = {
        "llm": r".*llm\.model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)",
        "vision": r".*vision_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])",
    }

    def __init__(self, vlm: OvisModel, backend: str = "sdpa") -> None:
        super().__init__()
        self.vlm = vlm
        layer = vlm.llm.model.layers[0]
        make_lean(vlm, {type(layer.input_layernorm)}, {type(layer.mlp)})
        self.use_attention_backend(backend)

    # ------------------------------------------------------------ construction

    @classmethod
    def from_pretrained(cls, path: str, dtype: torch.dtype, trust_remote_code: bool = False) -> Ovis25:
        """Nothing runs the code that comes with published folders; ``trust_remote_code`` changes nothing."""
        loaded: Any = OvisModel.from_pretrained(
            path, config=_config_of(path), dtype=dtype, use_safetensors=True, output_loading_info=True
        )
        vlm, report = loaded
        if report["missing_keys"]:  # transformers makes up random ones
            raise OSError(f"its weights lack {len(report['missing_keys'])} tensors, e.g. {min(report['missing_keys'])}")
        return cls(vlm)

    @classmethod
    def from_scratch(cls, sizes: Ovis25Sizes, vocab_size: int, token_ids: Mapping[str, int]) -> Ovis25:
        ids: dict[str, Any] = {name: token_ids[token] for name, token in TOKEN_IDS.items()}
        config = OvisConfig(
            llm_config=_scratch_text(sizes, vocab_size, token_ids),
            vit_config={
                "hidden_size": sizes.vision_width,
                "intermediate_size": sizes.vision_width * 4,
                "num_hidden_layers": sizes.vision_depth,
                "num_attention_heads": sizes.vision_heads,
                "image_size": sizes.vision_positions * PROCESSOR["patch_size"],
            },
            visual_vocab_size=sizes.visual_vocab,
            initializer_range=SCRATCH_INIT,
            **ids,
        )
        return cls(OvisModel(config))

    @classmethod
    def empty(cls, path: str, trust_remote_code: bool = False) -> Ovis25:
        return cls(OvisModel(_config_of(path)))

    @classmethod
    def photo_plan(cls, path: str, spec: PromptSpec) -> MergedPlan:
        saved = Qwen2VLImageProcessor.get_image_processor_dict(path)[0] if path else {}
        settings = PROCESSOR | {name: saved[name] for name in PROCESSOR if name in saved}
        return MergedPlan(Qwen2VLImageProcessor(**settings), spec.min_pixels, spec.max_pixels)

    def use_options(self, options: Ovis25Options) -> None:
        self._vision.use_rope = options.tower_rotary  # a published key, so the folder keeps it

    @property
    def options(self) -> Mapping[str, Any]:
        return {"tower_rotary": bool(self._vision.use_rope)}

    # ------------------------------------------------------------ facts

    @property
    def _vision(self) -> Any:
        return self.vlm.config.vit_config

    @property
    def _text(self) -> Any:
        return self.vlm.config.llm_config

    @property
    def hidden_size(self) -> int:
        return int(self._text.hidden_size)

    @property
    def level_widths(self) -> list[int]:
        return [int(self._vision.hidden_size), self.hidden_size]

    @property
    def level_sides(self) -> list[int]:
        return [int(self._vision.patch_size), int(self._vision.patch_size * self._vision.hidden_stride)]

    def picture(self, rows_PX: torch.Tensor, grid: Grid) -> torch.Tensor:
        return units_to_picture(rows_PX, grid, int(self._vision.patch_size), int(self._vision.hidden_stride))

    @property
    def image_token_id(self) -> int:
        return int(self.vlm.config.image_token_id)

    @property
    def vision_depth_width(self) -> tuple[int, int]:
        return int(self._vision.num_hidden_layers), int(self._vision.hidden_size)

    @property
    def text_depth_width(self) -> tuple[int, int]:
        return int(self._text.num_hidden_layers), self.hidden_size

    def cost(self) -> CostModel:
        return cost_of(self.vlm.config)

    def position_function(self) -> PositionFunction:
        unit = int(self._vision.hidden_stride) ** 2
        return partial(plain_positions, image_token_id=self.image_token_id, unit=unit)

    def blocks(self, part: str) -> Sequence[nn.Module]:
        return list({"llm": self.vlm.llm.model.layers, "vision": self.vlm.vision_model.encoder.layers}[part])

    def use_attention_backend(self, backend: str) -> None:
        self.attention_backend = backend
        self.vlm.llm.set_attn_implementation(implementation_name(backend))
        for block in self.vlm.vision_model.encoder.layers:
            block.self_attn.attention_backend = backend

    # ------------------------------------------------------------ photos

    def tower_states(self, pixels_PX: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
        """States after the last block, without a norm; in units of the rows that are joined."""
        tower, side = self.vlm.vision_model, int(self._vision.image_size // self._vision.patch_size)
        plan = _plan_of(tuple(grids), int(self._vision.hidden_stride), side)
        states_PD = tower.embeddings.patch_embedding(pixels_PX)
        states_PD = states_PD + self._places(tower, plan).to(states_PD.dtype)
        cu_seqlens, rotation = to_device(plan["cu_seqlens"], pixels_PX.device), None
        if self._vision.use_rope:
            rotation = self._rotation(to_device(plan["position_ids"], pixels_PX.device))
        for block in tower.encoder.layers:
            states_PD = block(
                states_PD, cu_seqlens=cu_seqlens, max_seqlen=plan["max_seqlen"], position_embeddings=rotation
            )
        return states_PD

    def _places(self, tower: Tower, plan: Mapping[str, Any]) -> torch.Tensor:
        """(P, D) learned positions: the table, bicubically resized to each photo's grid."""
        table, stride = tower.embeddings.position_embedding.weight, int(self._vision.hidden_stride)
        places, exact = [], torch.promote_types(table.dtype, torch.float32)
        with torch.autocast(table.device.type, enabled=False):
            for frames, down, across in plan["resizes"]:
                down, across = (to_device(matrix, table.device, exact) for matrix in (down, across))
                square = table.to(exact).unflatten(0, (down.shape[1], across.shape[1]))
                placed = torch.einsum("wc,hcd->hwd", across, torch.einsum("hr,rcd->hcd", down, square))
                units = placed.unflatten(1, (-1, stride)).unflatten(0, (-1, stride)).transpose(1, 2)
                places.append(units.reshape(-1, table.shape[1]).repeat(frames, 1))
        return torch.cat(places)

    def _rotation(self, position_ids: torch.Tensor) -> Rotation:
        """Half of a head's channels turn by the row of a patch and half by its column."""
        quarter = int(self._vision.hidden_size) // int(self._vision.num_attention_heads) // 4
        steps = torch.arange(quarter, dtype=torch.float32, device=position_ids.device) / quarter
        angles = (position_ids[:, :, None].float() * (1.0 / ROTARY_BASE**steps)).flatten(1).repeat(1, 2)
        return angles.cos(), angles.sin()

    def levels_of(self, states_PD: torch.Tensor, grids: Sequence[Grid]) -> list[VisionLevel]:
        """The last states, and the soft embeddings; both in raster order."""
        stride = int(self._vision.hidden_stride)
        joined_SD = self._joined(states_PD)
        soft_SW = soft_embeddings(joined_SD, self.vlm.visual_tokenizer.words, self.vlm.vte.weight)
        raster = to_device(units_to_raster(torch.arange(len(joined_SD)), grids, stride), states_PD.device)
        return [
            VisionLevel(states_PD[raster], [(t * h, w) for t, h, w in grids]),
            VisionLevel(soft_SW, [(t * h // stride, w // stride) for t, h, w in grids]),
        ]

    def _joined(self, states_PD: torch.Tensor) -> torch.Tensor:
        return states_PD.unflatten(0, (-1, int(self._vision.hidden_stride) ** 2)).flatten(1)

    @torch.no_grad()
    def visual_words(
        self, pixel_values: torch.Tensor, image_grid_thw: Sequence[Grid] | torch.Tensor
    ) -> list[VisualWords]:
        grids = grid_list(image_grid_thw)
        stride = int(self._vision.hidden_stride)
        states_PD = self.tower_states(pixel_values.to(self._vision_dtype()), grids)
        words, vocabulary = self.vlm.visual_tokenizer.words, int(self.vlm.config.visual_vocab_size) - INDICATORS
        chosen = chosen_words(self._joined(states_PD), words)
        shapes = [(t * h // stride, w // stride) for t, h, w in grids]
        by_photo = zip(*(part.split([rows * columns for rows, columns in shapes]) for part in chosen), strict=True)
        return [
            VisualWords(words.view(shape), entropy.view(shape), vocabulary)
            for (words, entropy), shape in zip(by_photo, shapes, strict=True)
        ]

    # ------------------------------------------------------------ language

    def read(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        levels: Sequence[VisionLevel],
        cu_seqlens: torch.Tensor,
        max_seqlen: int,
    ) -> torch.Tensor:
        hidden_1TD = self.vlm.llm.model(
            inputs_embeds=self._embed(input_ids, levels),
            position_ids=position_ids[0],
            attention_mask={"full_attention": None},  # cu_seqlens is the mask
            use_cache=False,
            cu_seq_lens_q=cu_seqlens,
            cu_seq_lens_k=cu_seqlens,
            max_length_q=max_seqlen,
            max_length_k=max_seqlen,
        ).last_hidden_state
        return hidden_1TD[0]  # type: ignore[no-any-return]

    def _embed(self, input_ids: torch.Tensor, levels: Sequence[VisionLevel]) -> torch.Tensor:
        """Words of text, with each photo's soft tokens between its two indicators."""
        embeds_1TD, config = self.token_embedding(input_ids), self.vlm.config
        indicators = self.vlm.vte.weight[-INDICATORS:].to(embeds_1TD.dtype)
        for row, token_id in enumerate((config.vision_start_token_id, config.vision_end_token_id)):
            embeds_1TD = torch.where((input_ids == token_id).unsqueeze(-1), indicators[row], embeds_1TD)
        if not levels:
            return embeds_1TD
        return place(embeds_1TD, input_ids == self.image_token_id, levels[-1].tokens_SD.to(embeds_1TD.dtype))

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Prompt], *, end_token_id: int, max_new_tokens: int, min_new_tokens: int = 0
    ) -> list[list[int]]:
        device = self.vlm.device
        rows = []
        for prompt in prompts:
            shown = len(prompt.image_grid_thw) > 0
            levels = self.see(prompt.pixel_values.to(device), prompt.image_grid_thw) if shown else []
            rows.append(self._embed(prompt.input_ids.to(device)[None], levels)[0])
        embeds, known = pad_left(rows)
        written = self.vlm.llm.generate(
            inputs_embeds=embeds,
            attention_mask=known,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=end_token_id,
            pad_token_id=end_token_id,
        ).tolist()
        return [until_end(row, end_token_id) for row in written]


def _scratch_text(sizes: Ovis25Sizes, vocab_size: int, token_ids: Mapping[str, int]) -> dict[str, Any]:
    """``llm_config`` of a randomly initialised model."""
    return {
        "initializer_range": SCRATCH_INIT,
        "vocab_size": vocab_size,
        "hidden_size": sizes.text_width,
        "intermediate_size": sizes.text_width * 3,
        "num_hidden_layers": sizes.text_depth,
        "num_attention_heads": sizes.text_heads,
        "num_key_value_heads": sizes.text_kv_heads,
        "head_dim": sizes.text_width // sizes.text_heads,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": True,
        "bos_token_id": token_ids[OVIS.pad],
        "eos_token_id": token_ids[OVIS.end],
        "pad_token_id": token_ids[OVIS.pad],
    }


def _config_of(path: str) -> OvisConfig:
    """The config of a model folder, with the ids that the folder's tokenizer has.

    Raises:
        OSError: there is none, it is another family's, or its tower is not one that is built here.
    """
    values, _ = OvisConfig.get_config_dict(path)
    if (found := values.get("model_type")) != OvisConfig.model_type:
        raise OSError(f"its config.json says model_type {found}, which is not {Ovis25.family}'s")
    config = OvisConfig.from_pretrained(path)
    vit: Any = config.vit_config
    if vit.fullatt_block_indexes is not None or vit.num_patches > 0 or not vit.preserve_original_pe:
        raise OSError("its vit_config has windows, a linear patch projection or no learned positions: not supported")
    if hasattr(config, "auto_map"):
        del config.auto_map  # names files of code, which a saved folder does not have
    if any(getattr(config, name) is None for name in TOKEN_IDS):
        known = AutoTokenizer.from_pretrained(path).get_vocab()
        for name, token in TOKEN_IDS.items():
            if token not in known:
                raise OSError(f"its tokenizer lacks {token}")
            setattr(config, name, known[token])
    return config


def plain_positions(token_ids: Sequence[int], grids: Sequence[Grid], image_token_id: int, unit: int) -> torch.Tensor:
    """(1, L): image tokens count like those of text.

    Raises:
        ValueError: image tokens and grids do not match.
    """
    found = int((torch.as_tensor(token_ids) == image_token_id).sum())
    wanted = sum(frames * rows * columns for frames, rows, columns in grids) // unit
    if found != wanted:
        raise ValueError(f"there are {found} image tokens, and the image grids account for {wanted}")
    return torch.arange(len(token_ids))[None]


@lru_cache(maxsize=4)
def _plan_of(grids: tuple[Grid, ...], stride: int, side: int) -> dict[str, Any]:
    """What the tower derives from the grids, on the CPU.

    ``resizes``: for each photo its frames, and the matrices that resize the (side, side) table to its rows and columns.
    """
    grid_thw = torch.tensor(grids)
    cu_photos = get_vision_cu_seqlens(grid_thw)
    return {
        "position_ids": get_vision_position_ids(grid_thw, stride),
        "cu_seqlens": cu_photos,
        "max_seqlen": int(cu_photos.diff().max()),
        "resizes": [(frames, _resize(rows, side), _resize(columns, side)) for frames, rows, columns in grids],
    }


def _resize(length: int, side: int) -> torch.Tensor:
    """(length, side) float64 weights of bicubic interpolation along one axis; torch's, which are separable."""
    ones = torch.eye(side, dtype=torch.float64).view(1, side, side, 1)
    return F.interpolate(ones, size=(length, 1), mode="bicubic", align_corners=False)[0, :, :, 0].T
