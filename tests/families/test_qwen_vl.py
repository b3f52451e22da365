"""Qwen2.5-VL and Qwen3-VL as Backbones equal the stock models of transformers."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bbu.families.qwen_vl import QwenVL, mrope_positions
from tests.tiny import Conversation, conversation, run_backbone, tiny_model

SIZES = [[], [(112, 112)], [(168, 140)], [(56, 84), (140, 196), (28, 56)], [(252, 28)], [(28, 28)]]


SIDES = {"qwen2_5_vl": 14, "qwen3_vl": 16}  # of a patch, in pixels
WINDOWS = {"qwen2_5_vl": 4, "qwen3_vl": 1}  # side in merge units of a window of patches; 1 = none
WITH_FAMILIES = pytest.mark.parametrize("family", list(SIDES))


@cache
def backbone(family: str) -> QwenVL:
    found = tiny_model(family).backbone
    assert isinstance(found, QwenVL)
    return found


@cache
def stock(family: str) -> Any:
    """The unchanged class with our weights."""
    ours = backbone(family).vlm
    config = type(ours.config).from_dict(ours.config.to_dict())
    config._attn_implementation = "sdpa"
    model = type(ours)(config).double()
    model.set_attn_implementation("sdpa")
    model.load_state_dict(ours.state_dict())
    assert type(model.model.visual.blocks[0].attn).__name__ in ("Qwen2_5_VLVisionAttention", "Qwen3VLVisionAttention")
    return model.eval()


@cache
def all_conversations(family: str) -> list[Conversation]:
    return [conversation(backbone(family), seed, 1 + 4 * (seed % 3), sizes) for seed, sizes in enumerate(SIZES)]


def run_stock(family: str, part: Conversation) -> torch.Tensor:
    """(S, V) logits of one sample."""
    ids = part.ids[None]
    with torch.no_grad():
        return stock(family)(  # type: ignore[no-any-return]
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == backbone(family).image_token_id).int() if part.patches is not None else None,
            pixel_values=None if part.patches is None else part.patches.double(),
            image_grid_thw=part.grids,
            use_cache=False,
        ).logits[0]


@WITH_FAMILIES
def test_packed_logits_equal_those_of_the_stock_model_on_each_sample(family: str) -> None:
    parts = all_conversations(family)
    with torch.no_grad():
        hidden = run_backbone(backbone(family), parts).hidden_TD
    logits = (hidden @ backbone(family).lm_head_weight.T).split([len(part.ids) for part in parts])
    for number, (part, ours) in enumerate(zip(parts, logits, strict=True)):
        torch.testing.assert_close(
            ours, run_stock(family, part), rtol=1e-9, atol=1e-9, msg=lambda t, n=number: f"{n}: {t}"
        )


def raster_order(rows: int, columns: int, window: int, merge: int) -> list[int]:
    """For every row of the tower's output the raster number of its patch, from the paper's description alone:
    windows row by row, in each its merge units row by row, in each its patches row by row."""
    order = []
    units_down, units_right = rows // merge, columns // merge
    for top in range(0, units_down, window):
        for left in range(0, units_right, window):
            for unit_y in range(top, min(top + window, units_down)):
                for unit_x in range(left, min(left + window, units_right)):
                    for y in range(merge):
                        for x in range(merge):
                            order.append((unit_y * merge + y) * columns + unit_x * merge + x)
    return order


@WITH_FAMILIES
def test_vision_levels_are_the_stock_towers_tokens_in_raster_order(family: str) -> None:
    """Where the tower has DeepStack, a coarse token's further channels are its maps."""
    parts = [part for part in all_conversations(family) if part.patches is not None]
    with torch.no_grad():
        fine, coarse = run_backbone(backbone(family), parts).vision_levels
    fine_images = fine.tokens_SD.split([rows * columns for rows, columns in fine.grids])
    coarse_images = coarse.tokens_SD.split([rows * columns for rows, columns in coarse.grids])
    tower = stock(family).model.visual
    number = 0
    for part in parts:
        assert part.patches is not None and part.grids is not None
        with torch.no_grad():
            seen = tower(part.patches.double(), grid_thw=part.grids)
        first = 0
        merged = torch.cat([seen.pooler_output, *getattr(seen, "deepstack_features", ())], dim=-1)
        for _, rows, columns in part.grid_list:
            raw = seen.last_hidden_state[first : first + rows * columns]
            expected = torch.empty_like(raw)
            expected[torch.tensor(raster_order(rows, columns, WINDOWS[family], merge=2))] = raw
            assert fine.grids[number] == (rows, columns) and coarse.grids[number] == (rows // 2, columns // 2)
            torch.testing.assert_close(fine_images[number], expected, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(
                coarse_images[number], merged[first // 4 : (first + rows * columns) // 4], rtol=1e-9, atol=1e-9
            )
            first += rows * columns
            number += 1


@WITH_FAMILIES
def test_a_token_of_each_level_lies_where_its_pixels_lie(family: str) -> None:
    """Without attention a token sees its own pixels alone, so painting a cell must change that token alone."""
    model = tiny_model(family).backbone
    with torch.no_grad():
        for block in model.vlm.model.visual.blocks:
            block.attn.proj.weight.zero_()
            block.attn.proj.bias.zero_()
    part = conversation(model, 7, 2, [(168, 140)])
    assert part.patches is not None
    rows, columns = part.grid_list[0][1:]
    last = rows * columns - 1
    with torch.no_grad():
        before = run_backbone(model, [part]).vision_levels
    # the image processor's own order: merge units row by row, in each 2 x 2 patches
    for patch in (0, 1, 2, 3, 4, last // 2, last // 2 + 1, last // 2 + 3, last):
        unit, inner = divmod(patch, 4)
        row, column = unit // (columns // 2) * 2 + inner // 2, unit % (columns // 2) * 2 + inner % 2
        painted = part.patches.clone()
        painted[patch] += 1.0
        with torch.no_grad():
            after = run_backbone(model, [Conversation(part.ids, painted, part.grids)]).vision_levels
        for level, place in ((0, row * columns + column), (1, row // 2 * (columns // 2) + column // 2)):
            moved = (after[level].tokens_SD - before[level].tokens_SD).abs().amax(1) > 1e-9
            assert moved.nonzero().flatten().tolist() == [place], (level, patch)
    assert (rows, columns) == (140 // SIDES[family] // 2 * 2, 168 // SIDES[family] // 2 * 2)


@WITH_FAMILIES
def test_rotary_positions_equal_those_of_the_stock_model(family: str) -> None:
    for part in all_conversations(family):
        ids = part.ids[None]
        ours = mrope_positions(part.ids.tolist(), part.grid_list, backbone(family).image_token_id, merge=2)
        kinds = (ids == backbone(family).image_token_id).int()
        if part.grids is None:
            assert torch.equal(ours, torch.arange(len(part.ids)).expand(3, -1))
            continue
        theirs, _ = stock(family).model.get_rope_index(ids, kinds, image_grid_thw=part.grids)
        assert torch.equal(ours, theirs[:, 0])


@pytest.mark.parametrize(
    ("ids", "grids", "message"),
    [
        ([5, 9, 9, 5], [], "more image tokens"),
        ([5, 9, 9, 5], [(1, 4, 4)], "does not fit"),
        ([5, 9, 9, 9], [(1, 2, 4), (1, 4, 2)], "does not fit"),
        ([5, 6], [(1, 2, 2)], "1 images have no image tokens"),
    ],
)
def test_image_tokens_that_do_not_fit_the_grids_are_an_error(
    ids: list[int], grids: list[tuple[int, int, int]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        mrope_positions(ids, grids, image_token_id=9, merge=2)


@WITH_FAMILIES
def test_the_cost_model_counts_what_torch_counts(family: str) -> None:
    """Linear layers of language model and tower: FLOPs counted by torch while the real classes run."""
    ours = backbone(family)
    cost = ours.cost()
    talk = conversation(ours, 0, 9, [(112, 84)])
    assert talk.grids is not None
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run_backbone(ours, [talk])
    linear = sum(n for op, n in counter.get_flop_counts()["Global"].items() if "mm" in str(op) and "bmm" not in str(op))
    tokens, patches = len(talk.ids), int(talk.grids.prod())
    vision = ours.vlm.config.vision_config
    whole = len(getattr(vision, "fullatt_block_indexes", range(vision.depth)))
    windows = 4 * (vision.depth - whole) * vision.hidden_size * 64
    assert linear == cost.token * tokens + (cost.patch - windows) * patches
