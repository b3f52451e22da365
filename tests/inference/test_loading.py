"""Planning and loading: even packs, every view once, little in memory, whatever the image header says."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Collection, Iterator
from itertools import groupby
from pathlib import Path

import pytest
import torch
from torch.utils.data import Dataset

from bbu.errors import UserError
from bbu.inference.loading import Views, ViewTask, in_parallel, plan_views
from bbu.inference.predictor import Predictor
from bbu.tiles import Tiles
from tests.tiny import DEFAULT, noise_photo, tiny_model, tiny_processor

SIZES = [(112, 84), (56, 56), (168, 112), (60, 60), (110, 80), (160, 120), (58, 56)]


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(tiny_model(DEFAULT), tiny_processor(DEFAULT, caption_max_tokens=24), batch_size=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("photos")
    for number, size in enumerate(SIZES):
        noise_photo(number, *size).image.save(place / f"{number}.png")
    return place


NAMES = [f"{number}.png" for number in range(len(SIZES))]


def plan(predictor: Predictor, folder: Path, names: list[str], done: Collection[int] = ()) -> list[ViewTask]:
    return list(plan_views(names, str(folder), predictor, lambda index: index in done))


def groups(tasks: list[ViewTask]) -> list[list[int]]:
    return [[task.index for task in some] for _, some in groupby(tasks, key=lambda task: task.group)]


def test_photos_of_similar_size_go_together(predictor: Predictor, folder: Path) -> None:
    sizes = [[SIZES[i][0] * SIZES[i][1] for i in group] for group in groups(plan(predictor, folder, NAMES))]
    flat = [min(size, predictor.processor.spec.max_pixels) for group in sizes for size in group]
    assert flat == sorted(flat) and sorted(map(len, sizes)) == [1, 2, 2, 2]


def test_finished_groups_are_left_out_and_the_others_do_not_change(predictor: Predictor, folder: Path) -> None:
    everything = groups(plan(predictor, folder, NAMES))
    first, second, *rest = everything
    assert groups(plan(predictor, folder, NAMES, {*first, second[0]})) == [second, *rest]
    assert plan(predictor, folder, NAMES, set(range(len(NAMES)))) == []


def test_the_views_of_a_photo_are_consecutive(predictor: Predictor, folder: Path) -> None:
    tiled = Predictor(predictor.model, predictor.processor, batch_size=2, tiles=Tiles(2, 1), flips=True)
    tasks = plan(tiled, folder, NAMES)
    assert Counter(task.index for task in tasks) == {index: len(tiled.views(size)) for index, size in enumerate(SIZES)}
    assert len([index for index, _ in groupby(task.index for task in tasks)]) == len(NAMES)


def test_a_photo_that_cannot_be_read_keeps_its_place(predictor: Predictor, folder: Path) -> None:
    (task,) = [task for task in plan(predictor, folder, [*NAMES, "gone.png", "../x.png"]) if task.index == 7]
    assert task.view is None and "no such photo" in task.problem


def test_planning_is_lazy(predictor: Predictor, folder: Path) -> None:
    stream = plan_views(NAMES * 500, str(folder), predictor, lambda _: False)
    assert isinstance(next(stream), ViewTask)


# ---------------------------------------------------------------- sizes


# ---------------------------------------------------------------- loading


def test_workers_give_the_same_samples_as_this_process(predictor: Predictor, folder: Path) -> None:
    tasks = plan(predictor, folder, [*NAMES, "gone.png"])
    views = Views(predictor.processor, str(folder), ())
    here, there = (list(in_parallel(views, tasks, workers)) for workers in (0, 2))
    assert [task for task, _ in here] == [task for task, _ in there] == tasks
    for (_, one), (_, other) in zip(here, there, strict=True):
        if isinstance(one, str):
            assert one == other
        else:
            assert not isinstance(other, str)
            assert torch.equal(one.pixel_values, other.pixel_values) and torch.equal(one.input_ids, other.input_ids)


class Twice(Dataset[int]):
    def __getitem__(self, item: int) -> int:
        return 2 * item


@pytest.mark.parametrize("workers", [0, 2])
def test_items_are_read_lazily(workers: int) -> None:
    drawn = 0

    def endless() -> Iterator[int]:
        nonlocal drawn
        while True:
            yield drawn
            drawn += 1

    stream = in_parallel(Twice(), endless(), workers)
    assert [next(stream) for _ in range(10)] == [2 * number for number in range(10)]
    assert drawn <= 10 + 2 * workers + 1


class Fatal(Dataset[int]):
    """Item 3 kills the process that computes it, as the kernel does where memory is short."""

    def __getitem__(self, item: int) -> int:
        if item == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return item


def test_a_killed_worker_process_is_one_line_that_says_what_to_do() -> None:
    found = in_parallel(Fatal(), range(9), 1)
    with pytest.raises(UserError, match=r"killed.*rerun to resume, with fewer --workers") as caught:
        list(found)
    assert "\n" not in str(caught.value)
