"""Steps and packs that a training run will have."""

from __future__ import annotations

import numpy as np

from bbu.data.packing.planner import Lengths
from bbu.doctor.cost import PackSizes, pack_sizes, steps_report
from bbu.doctor.report import size_text
from bbu.records import ObjectRow, Row
from tests.tiny import DEFAULT, tiny_config, tiny_processor

TOKENS, PATCHES = [400, 420, 600], [120, 160, 320]  # of three samples with two photos each


def longest(family: str = DEFAULT) -> Lengths:
    pixels = np.array(PATCHES) * tiny_processor(family).photo_plan.patch_size ** 2
    return Lengths(np.array(TOKENS), pixels, np.array([2, 2, 2]), np.zeros(3))


def test_planned_packs_are_those_of_the_planner() -> None:
    config = tiny_config()
    config.training.pack_tokens = 1050  # 420 + 600, then 400
    packs = pack_sizes(config, longest())
    assert packs == PackSizes(1.5, 710.0, 1020, int(longest().pixels[1:].sum()))
    rows = [Row((f"{n}.jpg",), (), 9, 9) for n in range(3)]
    report = steps_report(config, rows, packs)
    assert (report["samples_per_step"], report["steps_per_epoch"]) == (1.5, 2.0)
    assert steps_report(config, rows, None)["samples_per_step"] is None  # not known


def test_a_budget_of_photos_limits_planned_packs() -> None:
    config = tiny_config()
    config.training.pack_images = 2
    packs = pack_sizes(config, longest())
    assert packs is not None and (packs.samples, packs.most_tokens) == (1, 600)


def test_an_epoch_is_as_long_as_the_sampling_makes_it() -> None:
    rows = [
        Row((f"{n}.jpg",), (ObjectRow("rare" if n == 0 else "common", "bbox_2d", (0, 0, 9, 9)),), 9, 9)
        for n in range(40)
    ]
    config = tiny_config()
    assert steps_report(config, rows, None)["steps_per_epoch"] == 20
    config.data.sampling.method = "repeat_factor"
    assert steps_report(config, rows, None)["steps_per_epoch"] == 20.5  # the rare photo comes twice


def test_sizes_are_written_for_people() -> None:
    assert [size_text(n) for n in (0, 999, 1000, 15.2e9)] == ["0 B", "999 B", "1 KB", "15.2 GB"]
