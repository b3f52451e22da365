"""Collators: documented shapes and keys, unchanged samples, and equivalent padded and packed batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbu.families.photo_plan import plan_resize
from bbu.records import FewShotSample
from tests.tiny import FAMILIES, tiny_model, tiny_processor

IGNORE, PAD = -100, 7
PATCH_WIDTH = 12
GEOMETRY = plan_resize(60, 40, factor=28, min_pixels=3136, max_pixels=100352)


def positions(token_ids: Sequence[int], grids: Sequence[tuple[int, int, int]]) -> Any:
    """Three different rows that depend on the sample alone."""
    import torch

    steps = torch.arange(len(token_ids))
    return torch.stack([steps, steps * 2, steps + 10 * len(grids)])


def one_axis(token_ids: Sequence[int], grids: Sequence[tuple[int, int, int]]) -> Any:
    """One row, as of plain rotary positions."""
    return positions(token_ids, grids)[2:]


every_axes = pytest.mark.parametrize(("positions", "axes"), [(positions, 3), (one_axis, 1)], ids=["three", "one"])


def synthetic(seed: int, length: int, teachers: int = 0, objects: int = 0, answer: bool = True) -> Any:
    """A sample with random contents and the stated sizes."""
    import torch

    from bbu.data.chat_processor import ChatProcessorOutput, GroundTruthObject

    random = np.random.default_rng((seed, length))
    grids = torch.tensor(
        [[1, 2 * int(random.integers(1, 3)), 2 * int(random.integers(1, 3))] for _ in range(teachers + 1)]
    )
    ids = torch.from_numpy(random.integers(10, 99, length))
    cut = int(random.integers(0, length)) if length > 1 else 0
    labels = torch.full((length,), IGNORE)
    labels[cut:] = ids[cut:]
    return ChatProcessorOutput(
        input_ids=ids,
        labels=labels if answer else torch.full((length,), IGNORE),
        pixel_values=torch.from_numpy(random.normal(size=(int(grids.prod(-1).sum()), PATCH_WIDTH)).astype(np.float32)),
        image_grid_thw=grids,
        teacher_spans=[(0, min(number + 1, length)) for number in range(teachers)],
        student_span=(cut, length) if answer else None,
        prompt_span=(0, cut if answer else length),
        photo_span=(cut // 3, cut // 2),
        ground_truth_objects=[
            GroundTruthObject(f"d{n}", tuple(random.random(4).tolist()), tuple(range(1, 2 + n))) for n in range(objects)
        ],
        geometry=GEOMETRY,
        name=f"photo{seed}",
    )


@st.composite
def batches(draw: st.DrawFn) -> list[Any]:
    count = draw(st.integers(1, 5))
    return [
        synthetic(
            number, draw(st.integers(1, 12)), draw(st.integers(0, 2)), draw(st.integers(0, 3)), draw(st.booleans())
        )
        for number in range(count)
    ]


def assert_same(first: Any, second: Any) -> None:
    import torch

    assert set(first) == set(second)
    for key, value in first.items():
        if isinstance(value, torch.Tensor):
            assert value.dtype == second[key].dtype and torch.equal(value, second[key]), key
        elif isinstance(value, np.ndarray):
            assert value.dtype == second[key].dtype and np.array_equal(value, second[key]), key
        else:
            assert value == second[key] and type(value) is type(second[key]), key


@every_axes
def test_a_packed_batch_has_the_documented_keys_shapes_and_types(positions: Any, axes: int) -> None:
    import torch

    from bbu.data.collators import PackedDataCollator

    samples = [synthetic(0, 5, teachers=2, objects=2), synthetic(1, 1), synthetic(2, 8, teachers=1, objects=1)]
    batch = PackedDataCollator(positions)(samples)
    patches, images = sum(len(s.pixel_values) for s in samples), 6
    shapes = {key: (tuple(value.shape), value.dtype) for key, value in batch.items() if isinstance(value, torch.Tensor)}
    assert shapes == {
        "input_ids": ((1, 14), torch.int64),
        "labels": ((1, 14), torch.int64),
        "position_ids": ((axes, 1, 14), torch.int64),
        "cu_seqlens": ((4,), torch.int32),
        "pixel_values": ((patches, PATCH_WIDTH), torch.float32),
        "image_to_sample": ((images,), torch.int64),
    }
    assert batch["boxes"].shape == (3, 4) and batch["boxes"].dtype == np.float32  # for the host
    assert set(batch) - set(shapes) == {
        *("max_seqlen", "image_grid_thw", "student_images", "prompt_spans", "photo_spans", "student_spans"),
        *("teacher_spans", "box_counts", "caption_ids", "caption_weights", "names", "geometries", "salts"),
        *("image_keys", "replay_spans", "detecting", "boxes"),
    }
    assert batch["cu_seqlens"].tolist() == [0, 5, 6, 14]
    assert batch["max_seqlen"] == 8 and type(batch["max_seqlen"]) is int
    assert batch["image_to_sample"].tolist() == [0, 0, 0, 1, 2, 2]
    assert batch["student_images"] == [2, 3, 5]
    assert batch["box_counts"] == [2, 0, 1]
    assert batch["caption_ids"] == [(1,), (1, 2), (1,)] and batch["caption_weights"] == [1.0, 1.0, 1.0]
    assert len(batch["image_grid_thw"]) == images and type(batch["image_grid_thw"][0][0]) is int
    assert batch["names"] == ["photo0", "photo1", "photo2"] and batch["geometries"] == [GEOMETRY] * 3


@given(batches())
def test_every_sample_can_be_cut_out_of_the_pack_unchanged(samples: list[Any]) -> None:
    import torch

    from bbu.data.collators import PackedDataCollator

    batch = PackedDataCollator(positions)(samples)
    edges, first_image, first_patch, first_box = batch["cu_seqlens"].tolist(), 0, 0, 0
    assert batch["max_seqlen"] == max(len(sample.input_ids) for sample in samples)
    for number, sample in enumerate(samples):
        start, stop = edges[number], edges[number + 1]
        assert batch["input_ids"][0, start:stop].tolist() == sample.input_ids.tolist()
        assert batch["labels"][0, start].item() == IGNORE
        assert batch["labels"][0, start + 1 : stop].tolist() == sample.labels[1:].tolist()
        alone = positions(sample.input_ids.tolist(), sample.image_grid_thw.tolist())
        assert torch.equal(batch["position_ids"][:, 0, start:stop], alone)
        images, patches = len(sample.image_grid_thw), len(sample.pixel_values)
        assert (batch["image_to_sample"][first_image : first_image + images] == number).all()
        assert batch["student_images"][number] == first_image + images - 1
        grids = batch["image_grid_thw"][first_image : first_image + images]
        assert [list(grid) for grid in grids] == sample.image_grid_thw.tolist()
        assert torch.equal(batch["pixel_values"][first_patch : first_patch + patches], sample.pixel_values)
        for index, item in enumerate(sample.ground_truth_objects):
            np.testing.assert_allclose(batch["boxes"][first_box + index], item.box, rtol=1e-6)
            assert batch["caption_ids"][first_box + index] == item.caption_ids
        spans = {
            "prompt_spans": sample.prompt_span,
            "photo_spans": sample.photo_span,
            "student_spans": sample.student_span,
        }
        for key, span in spans.items():
            found = batch[key][number]
            assert (found is None) == (span is None)
            assert found is None or (found[0] - start, found[1] - start) == span
        assert [(a - start, b - start) for a, b in batch["teacher_spans"][number]] == sample.teacher_spans
        first_image, first_patch = first_image + images, first_patch + patches
        first_box += len(sample.ground_truth_objects)
    assert first_box == len(batch["boxes"]) and first_patch == len(batch["pixel_values"])


@every_axes
@given(samples=batches())
def test_a_padded_batch_unpadded_is_the_packed_batch(samples: list[Any], positions: Any, axes: int) -> None:
    from bbu.data.collators import PackedDataCollator, StandardDataCollator, unpad

    packed = PackedDataCollator(positions)(samples)
    padded = unpad(StandardDataCollator(positions, PAD)(samples))
    starts = packed["cu_seqlens"][:-1].long()
    padded["labels"][0, starts] = IGNORE  # only a pack has a neighbour before a sample's first token
    assert_same(padded, packed)
    assert unpad(packed) is packed


@every_axes
@given(samples=batches())
def test_a_padded_batch_masks_its_padding_and_supervises_none_of_it(
    samples: list[Any], positions: Any, axes: int
) -> None:
    import torch

    from bbu.data.collators import StandardDataCollator

    batch = StandardDataCollator(positions, PAD)(samples)
    longest = max(len(sample.input_ids) for sample in samples)
    mask = batch["attention_mask"]
    assert mask.dtype == torch.bool and tuple(mask.shape) == (len(samples), longest)
    assert tuple(batch["position_ids"].shape) == (axes, len(samples), longest)
    assert mask.sum(1).tolist() == [len(sample.input_ids) for sample in samples]
    assert (batch["input_ids"][~mask] == PAD).all() and (batch["labels"][~mask] == IGNORE).all()
    for number, sample in enumerate(samples):
        assert batch["input_ids"][number][mask[number]].tolist() == sample.input_ids.tolist()
    assert "cu_seqlens" not in batch


def test_collating_does_not_change_the_samples() -> None:
    from bbu.data.collators import PackedDataCollator, StandardDataCollator

    samples = [synthetic(0, 1), synthetic(1, 6, 1, 2)]
    labels = [sample.labels.tolist() for sample in samples]
    for collator in (PackedDataCollator(positions), StandardDataCollator(positions, PAD)):
        collator(samples)
        assert [sample.labels.tolist() for sample in samples] == labels


def test_a_pack_without_objects_has_empty_targets_of_the_right_shape() -> None:
    from bbu.data.collators import PackedDataCollator

    batch = PackedDataCollator(positions)([synthetic(0, 3), synthetic(1, 4)])
    assert batch["boxes"].shape == (0, 4) and len(batch["caption_ids"]) == 0 and batch["box_counts"] == [0, 0]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("teachers", [0, 2])
def test_real_samples_collate_with_the_backbones_positions(
    family: str, make_sample: Callable[..., FewShotSample], photo_folder: Path, teachers: int
) -> None:
    import torch

    from bbu.data.collators import PackedDataCollator, StandardDataCollator, unpad

    function = tiny_model(family).backbone.position_function()
    processor = tiny_processor(family, photo_folder, caption_max_tokens=64)
    samples = [processor.process_sample(make_sample(teachers, seed=seed)) for seed in (10, 20, 30)]
    batch = PackedDataCollator(function)(samples)
    assert_same(unpad(StandardDataCollator(function, PAD)(samples)), batch)
    for number, sample in enumerate(samples):
        start, stop = batch["cu_seqlens"][number : number + 2].tolist()
        assert (batch["position_ids"][:, 0, start] == 0).all()
        first, last = batch["student_spans"][number]
        assert torch.equal(batch["labels"][0, first:last], sample.input_ids[slice(*sample.student_span)])
        assert last <= stop
