"""Patchifier: bit-identical to transformers' image processor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen2VLImageProcessor

from bbu.families.patches import Patchifier
from bbu.families.photo_plan import plan_resize

MIN_PIXELS, MAX_PIXELS = 56 * 56, 168 * 168


def noise(seed: int, width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def both(image_processor: Any, images: list[Image.Image]) -> tuple[tuple[torch.Tensor, torch.Tensor], Any]:
    """(patches, grids) of ours and of the image processor itself, for the same photos."""
    image_processor.size = {"shortest_edge": MIN_PIXELS, "longest_edge": MAX_PIXELS}
    factor = image_processor.patch_size * image_processor.merge_size
    plans = [plan_resize(*image.size, factor=factor, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS) for image in images]
    theirs = image_processor(images=images, return_tensors="pt")
    return Patchifier(image_processor)(images, plans), theirs


def assert_equal(ours: tuple[torch.Tensor, torch.Tensor], theirs: Any) -> None:
    patches, grids = ours
    assert patches.dtype == torch.float32 and grids.dtype == torch.int64
    assert torch.equal(patches, theirs["pixel_values"])
    assert torch.equal(grids, theirs["image_grid_thw"])


@settings(max_examples=40)
@given(
    sizes=st.lists(st.tuples(st.integers(20, 400), st.integers(20, 400)), min_size=1, max_size=4),
    seed=st.integers(0, 2**32),
)
def test_photos_of_any_sizes_give_the_image_processors_patches(sizes: list[tuple[int, int]], seed: int) -> None:
    """Larger and smaller than the model's size, and twice the same size, which transformers resizes together."""
    images = [noise(seed + number, *size) for number, size in enumerate([*sizes, sizes[0]])]
    ours, theirs = both(Qwen2VLImageProcessor(), images)
    assert Patchifier(Qwen2VLImageProcessor()).direct
    assert_equal(ours, theirs)


def test_a_photo_that_has_the_models_size_already_is_not_resized() -> None:
    ours, theirs = both(Qwen2VLImageProcessor(), [noise(0, 168, 112)])
    assert ours[1].tolist() == [[1, 8, 12]]
    assert_equal(ours, theirs)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_photos_of_other_modes_are_converted_like_the_image_processor_does(mode: str) -> None:
    assert_equal(*both(Qwen2VLImageProcessor(), [noise(0, 90, 120, mode), noise(1, 70, 60)]))


@pytest.mark.parametrize(
    "settings_of_processor",
    [
        {"patch_size": 16},
        {"temporal_patch_size": 1},
        {"merge_size": 1},
        {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 0.75]},
        {"rescale_factor": 1 / 128},
        {"resample": Image.Resampling.BILINEAR},
        {"do_normalize": False},
        {"do_rescale": False},
    ],
    ids=str,
)
def test_a_model_folders_settings_are_used(settings_of_processor: dict[str, Any]) -> None:
    assert_equal(*both(Qwen2VLImageProcessor(**settings_of_processor), [noise(0, 130, 95), noise(1, 300, 200)]))


def test_an_image_processor_of_another_class_is_called_itself() -> None:
    class Darker(Qwen2VLImageProcessor):  # type: ignore[misc]
        def rescale_and_normalize(self, *arguments: Any, **options: Any) -> Any:
            return super().rescale_and_normalize(*arguments, **options) - 1

    processor = Darker()
    assert not Patchifier(processor).direct
    assert_equal(*both(processor, [noise(0, 130, 95)]))


def test_later_calls_do_not_change_earlier_patches() -> None:
    """Buffers are not reused, because samples wait in a queue."""
    patchify = Patchifier(Qwen2VLImageProcessor())
    plan = plan_resize(112, 84, factor=28, min_pixels=MIN_PIXELS, max_pixels=MAX_PIXELS)
    first, _ = patchify([noise(0, 112, 84)], [plan])
    kept = first.clone()
    patchify([noise(1, 112, 84)], [plan])
    assert torch.equal(first, kept)
