"""The pyramid reads each photo's pixels from its patches, independent of other photos."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from bbu.models import pyramid as module
from bbu.models.pyramid import LocalPyramid
from tests.tiny import FAMILIES, build_tiny, noise_photo, tiny_config, tiny_processor

SIZES = [(84, 56), (112, 84), (84, 56), (56, 140)]  # width, height in pixels, multiples of 28


def pyramid(width: int = 8) -> LocalPyramid:
    torch.manual_seed(0)
    return LocalPyramid(width, [14, 28]).double()


def images(sizes: list[tuple[int, int]]) -> tuple[list[torch.Tensor], list[torch.Tensor], list[list[tuple[int, int]]]]:
    """Random pixels, tokens and grids of photos."""
    generator = torch.Generator().manual_seed(1)
    fine = [(height // 14, width // 14) for width, height in sizes]
    grids = [fine, [(rows // 2, columns // 2) for rows, columns in fine]]
    patches = [torch.randn(3, height, width, generator=generator, dtype=torch.float64) for width, height in sizes]
    tokens = [
        torch.randn(sum(rows * columns for rows, columns in level), 8, generator=generator, dtype=torch.float64)
        for level in grids
    ]
    return patches, tokens, grids


@pytest.mark.parametrize("family", FAMILIES)
def test_the_picture_is_the_photo_that_the_patches_were_cut_from(family: str) -> None:
    plan = tiny_processor(family).photo_plan
    image = noise_photo(3, 140, 84).image
    geometry = plan.plan(*image.size)
    rows_PX, grids = plan.patchify([image], [geometry])
    model = build_tiny(tiny_config(model={"family": family}))
    picture = model.backbone.picture(rows_PX, tuple(grids[0].tolist()))
    shown = np.asarray(image.resize((geometry.model_width, geometry.model_height), Image.Resampling.BICUBIC)) / 255
    found = picture.permute(1, 2, 0).numpy()[: geometry.model_height, : geometry.model_width]
    for channel in range(3):  # each is normalised by a mean and a deviation of its own
        assert np.corrcoef(found[..., channel].ravel(), shown[..., channel].ravel())[0, 1] > 0.999


@pytest.mark.parametrize("sides", [(14, 28), (30, 30), (10, 30), (8, 16, 48)])
def test_levels_may_be_of_any_sides_that_divide_each_other(sides: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = LocalPyramid(8, sides).double()
    grids = [[(6 * sides[-1] // side, 4 * sides[-1] // side)] for side in sides]
    pixels = [torch.randn(3, grids[0][0][0] * sides[0], grids[0][0][1] * sides[0], dtype=torch.float64)]
    tokens = [torch.randn(rows * columns, 8, dtype=torch.float64) for ((rows, columns),) in grids]
    found = model(pixels, tokens, grids)
    assert [level.shape for level in found] == [level.shape for level in tokens]


def test_a_photo_does_not_depend_on_the_photos_beside_it() -> None:
    model, (patches, tokens, grids) = pyramid(), images(SIZES)
    together = model(patches, tokens, grids)
    starts = [np.cumsum([0, *(rows * columns for rows, columns in level)]) for level in grids]
    for number in range(len(SIZES)):
        own = [level[first[number] : first[number + 1]] for level, first in zip(tokens, starts, strict=True)]
        alone = model([patches[number]], own, [[level[number]] for level in grids])
        for all_tokens, mine, first in zip(together, alone, starts, strict=True):
            torch.testing.assert_close(all_tokens[first[number] : first[number + 1]], mine, rtol=1e-10, atol=1e-10)


def test_a_token_follows_the_pixels_around_it_and_the_towers_tokens_of_its_position() -> None:
    model, (patches, tokens, grids) = pyramid(), images([(196, 196)])
    before = model(patches, tokens, grids)
    changed = [patches[0].clone()]
    changed[0][:, :14, :14] += 1  # the patch in the upper left corner
    moved = [(a - b).abs().sum(-1) for a, b in zip(model(changed, tokens, grids), before, strict=True)]
    assert moved[0][0] > 0 and moved[1][0] > 0
    assert moved[0][-1] == 0 and moved[1][-1] == 0  # far away nothing changes
    shifted = [tokens[0].clone(), tokens[1]]
    shifted[0][0] += 1
    moved = [(a - b).abs().sum(-1) for a, b in zip(model(patches, shifted, grids), before, strict=True)]
    assert moved[0][0] > 0 and moved[1][0] > 0  # the coarse level sees the fine one


@pytest.mark.parametrize("most", [3.0, 1.0], ids=["on a canvas", "too much would lie outside"])
def test_photos_of_all_sizes_at_once_give_the_same_tokens_and_gradients(
    most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, where each operation costs a launch."""
    outcomes = []
    for devices in ((), ("cpu",)):
        monkeypatch.setattr(module, "CANVAS", devices)
        monkeypatch.setattr(module, "MOST_CANVAS", most)
        assert len(module._groups([(6, 4), (6, 8), (6, 4)], torch.device("cpu"))) == (1 if devices and most > 1 else 2)
        model, (patches, tokens, grids) = pyramid(), images(SIZES)
        tokens = [level.requires_grad_() for level in tokens]
        found = model(patches, tokens, grids)
        total = sum((level * torch.arange(level.numel()).view_as(level).cos()).sum() for level in found)
        outcomes.append([*found, *torch.autograd.grad(total, [*tokens, *model.parameters()])])
    for one, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
