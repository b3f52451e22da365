"""The training stream: the sample at a position depends on the seed alone, not on loading or resuming."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from bbu.config import AugmentConfig, EpisodesConfig, SamplingConfig
from bbu.data.dataset import TrainingStream
from bbu.data.photo import Augment, Photo
from bbu.data.sampling.episodes import Episodes
from bbu.errors import SampleError
from bbu.records import FewShotSample, ObjectRow, Row


class NameTags:
    """A stand-in for the processor that reports the photos of a sample and their augmented views."""

    image_root = "."

    def __init__(self) -> None:
        self.salts: list[int] = []

    def process_sample(self, sample: FewShotSample, augment: Augment, salt: int) -> Any:
        self.salts.append(salt)
        photos = [Photo(DOTS, row.images[0]) for row in (*sample.teachers, sample.student)]
        views = tuple(photo.image.tobytes() for photo in augment(photos))
        return (sample.student.images[0], tuple(row.images[0] for row in sample.teachers), views)


DOTS = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8))


def row(name: str) -> Row:
    return Row((name,), (), 10, 10)


SAMPLES = [FewShotSample(row(f"{number}.jpg")) for number in range(7)]
POOL = [row(f"{number}.jpg") for number in range(4)]


def stream(**changes: Any) -> TrainingStream:
    options: dict[str, Any] = {"length": 50, "seed": 17, **changes}
    most = options.pop("most_teachers", 0)
    if most:
        shares = EpisodesConfig(dict.fromkeys(range(most + 1), 1.0))
        students = [sample.student for sample in options.get("samples", SAMPLES)]
        options["episodes"] = Episodes(shares, students, POOL, {}, options["seed"])
    return TrainingStream(options.pop("samples", SAMPLES), NameTags(), **options)  # type: ignore[arg-type]


def test_a_position_has_one_salt_and_no_other_position_or_seed_has_it() -> None:
    found = {seed: stream(seed=seed) for seed in (17, 18)}
    for one in found.values():
        _ = [one[position] for position in (*range(50), 3)]
    salts = {seed: one.processor.salts for seed, one in found.items()}  # type: ignore[attr-defined]
    assert salts[17][50] == salts[17][3]
    assert len({*salts[17], *salts[18]}) == 100 and max(salts[17]) < 2**32


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


AUGMENT = AugmentConfig(
    flip_horizontal=0.5, flip_vertical=0.5, quarter_turns=True, brightness=0.2, contrast=0.2, hue=0.3
)


@pytest.mark.parametrize("sampling", [None, SamplingConfig("class_aware")], ids=["uniform", "class_aware"])
def test_a_position_shows_the_same_whenever_it_is_asked(sampling: SamplingConfig | None) -> None:
    options: dict[str, Any] = {"most_teachers": 2, "augment": AUGMENT, "sampling": sampling}
    whole = everything(**options)
    resumed = stream(**options)
    assert [resumed[position] for position in reversed(range(50))] == whole[::-1]
    shorter = everything(**options, length=30)
    assert [item[:2] for item in shorter] == [item[:2] for item in whole[:30]]


def test_another_seed_shows_another_order_and_other_views() -> None:
    first, second = everything(augment=AUGMENT), everything(augment=AUGMENT, seed=18)
    assert [item[0] for item in first] != [item[0] for item in second]
    assert [item[2] for item in first] != [item[2] for item in second]


def test_order_teachers_and_views_are_drawn_independently() -> None:
    plain = everything()
    taught = everything(most_teachers=2)
    turned = everything(most_teachers=2, augment=AUGMENT)
    assert [item[0] for item in plain] == [item[0] for item in taught] == [item[0] for item in turned]
    assert [item[1] for item in taught] == [item[1] for item in turned]


def test_each_epoch_draws_new_views_and_teachers_get_their_own() -> None:
    views: dict[str, set[Any]] = {}
    for name, _, shown in everything(augment=AUGMENT, length=70):
        views.setdefault(name, set()).add(shown)
    assert all(len(shown) == 10 for shown in views.values())
    for _, teachers, shown in everything(most_teachers=3, augment=AUGMENT):
        assert len(shown) == len(teachers) + 1 == len(set(shown))


def test_a_photo_that_comes_again_in_an_epoch_gets_other_teachers_and_another_view() -> None:
    """One photo of nine holds a class of two, so half of an epoch's nine draws are that photo."""
    few = [FewShotSample(row(f"s{number}.jpg")) for number in range(8)]
    rare = FewShotSample(Row(("rare.jpg",), (ObjectRow("rare", "bbox_2d", (1, 1, 5, 5)),), 10, 10))
    config = SamplingConfig("class_aware")
    shown = everything(samples=[rare, *few], sampling=config, most_teachers=3, augment=AUGMENT, length=90)
    again = [[item for item in shown[first : first + 9] if item[0] == "rare.jpg"] for first in range(0, 90, 9)]
    assert np.mean([len(epoch) for epoch in again]) > 3
    for epoch in again:
        assert len({item[2][-1] for item in epoch}) == len(epoch), "a view of its own each time"
    assert any(len({item[1] for item in epoch}) > 1 for epoch in again)


def test_an_empty_stream_is_an_error_that_says_where_to_look() -> None:
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
        episodes=Episodes(EpisodesConfig({0: 1, 1: 1}), rows[1:], rows, {}, seed=3),
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
