"""Shapes of Qwen3-VL's tower at the 4B model's widths, for a photo of 400 x 300, and the sizes of the whole models.

The numbers are those of the published configs; nothing is downloaded. One block runs, all 24 are counted on the meta
device.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from bbu.families.patches import units_to_raster
from bbu.families.prompts import PromptSpec
from bbu.families.qwen3_vl.backbone import Qwen3VL
from bbu.families.qwen3_vl.codec import QWEN3
from bbu.families.registry import FAMILIES
from tests.tiny import noise_photo

ROWS, COLUMNS = 18, 24  # patches of 288 x 384 pixels
PATCHES, TOKENS = ROWS * COLUMNS, ROWS * COLUMNS // 4
TEXT = {  # of the published models: width, layers, MLP, heads; 8 key/value heads of 128 channels each
    "2B": (2048, 28, 6144, 16, True),
    "4B": (2560, 36, 9728, 32, True),
    "8B": (4096, 36, 12288, 32, False),
}
VISION = {"2B": (1024, 24, 4096), "4B": (1024, 24, 4096), "8B": (1152, 27, 4304)}
SHOWN = {"2B": [5, 11, 17], "4B": [5, 11, 17], "8B": [8, 16, 24]}


def config_of(name: str, *, depth: int | None = None, text_layers: int | None = None) -> Qwen3VLConfig:
    width, layers, inner, heads, tied = TEXT[name]
    vision_width, vision_depth, vision_inner = VISION[name]
    return Qwen3VLConfig(
        vision_config={
            "depth": depth or vision_depth,
            "hidden_size": vision_width,
            "intermediate_size": vision_inner,
            "num_heads": 16,
            "out_hidden_size": width,
            "num_position_embeddings": 48 * 48,
            "deepstack_visual_indexes": [0] if depth else SHOWN[name],
        },
        text_config={
            "vocab_size": 151936,
            "hidden_size": width,
            "intermediate_size": inner,
            "num_hidden_layers": text_layers or layers,
            "num_attention_heads": heads,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": tied,
        },
        tie_word_embeddings=tied,
    )


@pytest.fixture(scope="module")
def photo() -> tuple[torch.Tensor, tuple[int, int, int]]:
    """Patch rows and grid of the photo, as the family's own plan makes them."""
    limits = FAMILIES["qwen3_vl"]
    plan = Qwen3VL.photo_plan("", PromptSpec.create("en", QWEN3, limits.min_pixels, limits.max_pixels))
    image = noise_photo(0, 400, 300).image
    rows_PX, grids = plan.patchify([image], [plan.plan(*image.size)])
    frames, rows, columns = grids[0].tolist()
    return rows_PX, (frames, rows, columns)


@cache
def one_block() -> tuple[Qwen3VL, dict[str, tuple[int, ...]], dict[str, Any]]:
    """The 4B tower's first block at its real widths, with what its modules give."""
    torch.manual_seed(0)
    with torch.device("meta"):
        vlm = Qwen3VLForConditionalGeneration(config_of("4B", depth=1, text_layers=1))
    vlm.model.visual.to_empty(device="cpu")
    for parameter in vlm.model.visual.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    vlm.model.visual.rotary_pos_emb = type(vlm.model.visual.rotary_pos_emb)(vlm.config.vision_config)
    shapes: dict[str, tuple[int, ...]] = {}
    kept: dict[str, Any] = {}
    for name, module in vlm.model.visual.named_modules():

        def keep(module: Any, inputs: Any, output: Any, name: str = name) -> None:
            kept[name] = output
            if isinstance(output, torch.Tensor):
                shapes[name] = tuple(output.shape)

        module.register_forward_hook(keep)
    return Qwen3VL(vlm), shapes, kept


def test_a_photos_patches(photo: tuple[torch.Tensor, tuple[int, int, int]]) -> None:
    rows_PX, grid = photo
    assert grid == (1, ROWS, COLUMNS) and tuple(rows_PX.shape) == (PATCHES, 3 * 2 * 16 * 16)


def test_shapes_inside_the_tower(photo: tuple[torch.Tensor, tuple[int, int, int]]) -> None:
    backbone, shapes, kept = one_block()
    with torch.no_grad():
        fine, coarse = backbone.see(photo[0], [photo[1]])
    assert shapes["patch_embed"] == (PATCHES, 1024)
    assert [tuple(part.shape) for part in kept["rotary_pos_emb"]] == [(PATCHES, 64)] * 2  # all channels of a head
    assert shapes["blocks.0.attn.qkv"] == (PATCHES, 3072) and shapes["blocks.0.attn.proj"] == (PATCHES, 1024)
    assert shapes["blocks.0.mlp.linear_fc1"] == (PATCHES, 4096) and shapes["blocks.0"] == (PATCHES, 1024)
    assert shapes["merger.norm"] == (PATCHES, 1024)  # before four patches are joined
    assert shapes["merger.linear_fc1"] == (TOKENS, 4096) and shapes["merger"] == (TOKENS, 2560)
    assert shapes["deepstack_merger_list.0.norm"] == (TOKENS, 4096)  # after they are
    assert shapes["deepstack_merger_list.0"] == (TOKENS, 2560)
    assert tuple(fine.tokens_SD.shape) == (PATCHES, 1024) and fine.grids == [(ROWS, COLUMNS)]
    assert tuple(coarse.tokens_SD.shape) == (TOKENS, 2 * 2560) and coarse.grids == [(ROWS // 2, COLUMNS // 2)]


def test_learned_positions_are_a_bilinear_map_of_the_table(photo: tuple[torch.Tensor, tuple[int, int, int]]) -> None:
    """torch's own interpolation of the 48 x 48 table gives what is added to each patch."""
    backbone, _, _ = one_block()
    tower = backbone.vlm.model.visual
    table = tower.pos_embed.weight.detach().T.reshape(1, 1024, 48, 48)
    wanted = torch.nn.functional.interpolate(table, (ROWS, COLUMNS), mode="bilinear", align_corners=True)
    added: dict[str, torch.Tensor] = {}
    hook = tower.blocks[0].register_forward_pre_hook(lambda _, inputs: added.update(states=inputs[0]))
    with torch.no_grad():
        backbone.see(photo[0], [photo[1]])
        patches = tower.patch_embed(photo[0])
    hook.remove()
    raster = units_to_raster(torch.arange(TOKENS), [photo[1]], 2)
    found = (added["states"] - patches)[raster].T.reshape(1, 1024, ROWS, COLUMNS)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "millions"), [("2B", 2127.5), ("4B", 4437.8), ("8B", 8767.1)])
def test_parameters_of_the_published_sizes(name: str, millions: float) -> None:
    with torch.device("meta"):
        backbone = Qwen3VL(Qwen3VLForConditionalGeneration(config_of(name)))
    assert sum(p.numel() for p in backbone.vlm.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)
    assert backbone.level_widths == [VISION[name][0], 4 * TEXT[name][0]]
    assert {backbone.group_of(parameter) for parameter, _ in backbone.vlm.named_parameters()} == {
        "vision",
        "merger",
        "llm",
    } and len(backbone.blocks("vision")) == VISION[name][1]
