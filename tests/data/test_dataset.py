"""The training stream: what comes at a position follows from the seed alone, however it is loaded or resumed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from bbu.config import AugmentConfig
from bbu.data.augment import View
from bbu.data.dataset import TrainingStream, choose_teachers
from bbu.errors import SampleError
from bbu.records import FewShotSample, Row


@dataclass
class NameTags:
    """In the place of a processor: says which photos and views it was asked for."""

    def process_sample(self, sample: FewShotSample, views: Sequence[View]) -> Any:
        return (sample.student.images[0], tuple(row.images[0] for row in sample.teachers), tuple(views))


def row(name: str) -> Row:
    return Row((name,), (), 10, 10)


SAMPLES = [FewShotSample(row(f"{number}.jpg")) for number in range(7)]
POOL = [row(f"{number}.jpg") for number in range(4)]


def stream(**changes: Any) -> TrainingStream:
    options: dict[str, Any] = {"length": 50, "seed": 17, **changes}
    return TrainingStream(options.pop("samples", SAMPLES), NameTags(), **options)  # type: ignore[arg-type]


def everything(**changes: Any) -> list[Any]:
    return list(stream(**changes))


def test_each_epoch_shows_every_photo_once() -> None:
    names = [item[0] for item in everything(length=70)]
    everyone = {sample.student.images[0] for sample in SAMPLES}
    epochs = [names[first : first + 7] for first in range(0, 70, 7)]
    assert all(set(epoch) == everyone for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 5  # each in an order of its own


def test_the_stream_is_as_long_as_it_was_asked_to_be() -> None:
    dataset = stream(length=10)
    assert len(dataset) == 10 and len(list(dataset)) == 10
    for position in (-1, 10):
        with pytest.raises(IndexError):
            dataset[position]


AUGMENT = AugmentConfig(0.5, 0.5, True, 0.2, 0.2)


def test_a_position_shows_the_same_whenever_it_is_asked() -> None:
    options: dict[str, Any] = {"teachers": POOL, "teachers_per_sample": 2, "augment": AUGMENT}
    whole = everything(**options)
    resumed = stream(**options)
    assert [resumed[position] for position in reversed(range(50))] == whole[::-1]
    assert everything(**options, length=30) == whole[:30]


def test_another_seed_shows_another_order_and_other_views() -> None:
    first, second = everything(augment=AUGMENT), everything(augment=AUGMENT, seed=18)
    assert [item[0] for item in first] != [item[0] for item in second]
    assert [item[2] for item in first] != [item[2] for item in second]


def test_order_teachers_and_views_do_not_disturb_each_other() -> None:
    plain = everything()
    taught = everything(teachers=POOL, teachers_per_sample=2)
    turned = everything(teachers=POOL, teachers_per_sample=2, augment=AUGMENT)
    assert [item[0] for item in plain] == [item[0] for item in taught] == [item[0] for item in turned]
    assert [item[1] for item in taught] == [item[1] for item in turned]


def test_a_photo_is_turned_anew_each_epoch_and_teachers_apart_from_their_student() -> None:
    views: dict[str, set[Any]] = {}
    for name, _, shown in everything(augment=AUGMENT, length=70):
        views.setdefault(name, set()).add(shown)
    assert all(len(shown) == 10 for shown in views.values())
    for _, teachers, shown in everything(teachers=POOL, teachers_per_sample=3, augment=AUGMENT):
        assert len(shown) == len(teachers) + 1 == len(set(shown))


def test_teachers_are_never_the_student_nor_the_same_twice() -> None:
    counts: Counter[int] = Counter()
    for name, teachers, _ in everything(teachers=POOL, teachers_per_sample=2, length=700):
        assert name not in teachers and len(set(teachers)) == len(teachers)
        counts[len(teachers)] += 1
    assert all(counts[number] / 700 == pytest.approx(1 / 3, abs=0.07) for number in (0, 1, 2))


def test_a_sample_with_teachers_of_its_own_keeps_them() -> None:
    own = [FewShotSample(row("s.jpg"), (row("t1.jpg"), row("t2.jpg")))]
    shown = everything(samples=own, teachers=POOL, teachers_per_sample=4, length=5)
    assert [item[1] for item in shown] == [("t1.jpg", "t2.jpg")] * 5


def test_a_small_pool_gives_fewer_teachers() -> None:
    random = np.random.default_rng(0)
    assert len(choose_teachers(POOL, row("0.jpg"), 9, random)) == 3
    assert choose_teachers([row("0.jpg")], row("0.jpg"), 2, random) == ()
    assert choose_teachers(POOL, row("x.jpg"), 0, random) == ()


def test_a_stream_of_nothing_is_an_error_that_says_where_to_look() -> None:
    with pytest.raises(SampleError, match=r"no training photo; check data\.source"):
        stream(samples=[])


def test_the_samples_are_the_same_for_any_number_of_workers(chat_processor: Any, make_row: Callable[..., Row]) -> None:
    import torch
    from torch.utils.data import DataLoader

    rows = [make_row(f"{number}.png", 2, (84, 56), number) for number in range(4)]
    dataset = TrainingStream(
        [FewShotSample(item) for item in rows[1:]],
        chat_processor,
        length=8,
        seed=3,
        teachers=rows,
        teachers_per_sample=1,
        augment=AUGMENT,
    )
    runs = [
        list(
            DataLoader(
                dataset, batch_size=None, num_workers=workers, multiprocessing_context="fork" if workers else None
            )
        )
        for workers in (0, 2)
    ]
    assert len(runs[0]) == len(runs[1]) == 8
    for alone, shared in zip(*runs, strict=True):
        assert alone.name == shared.name and alone.ground_truth_objects == shared.ground_truth_objects
        assert alone.geometry == shared.geometry and alone.teacher_spans == shared.teacher_spans
        for field in ("input_ids", "labels", "pixel_values", "image_grid_thw"):
            assert torch.equal(getattr(alone, field), getattr(shared, field))


def test_a_bad_photo_met_in_a_worker_is_still_one_line_for_the_user(
    chat_processor: Any, make_row: Callable[..., Row], photo_folder: Any
) -> None:
    from torch.utils.data import DataLoader

    from bbu.cli import one_line
    from bbu.errors import ImageError

    good = make_row("good.png")
    (photo_folder / "bad.png").write_bytes(b"no photo")
    samples = [FewShotSample(Row(("bad.png",), (), good.width, good.height))]
    dataset = TrainingStream(samples, chat_processor, length=2, seed=0)
    with pytest.raises(ImageError) as caught:
        list(DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="fork"))
    assert one_line(caught.value) == f"{photo_folder.resolve() / 'bad.png'}: is not an image that can be read"
