"""Teachers are chosen as asked, never show the student or the evaluated photos, and follow from the seed alone."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbu.config import EpisodesConfig, load_config
from bbu.data.sampling.episodes import Episodes, EvaluationEpisodes, TeacherPool, most_teachers
from bbu.data.sampling.similarity import hash_photos
from bbu.errors import ConfigError, ImageError
from bbu.records import FewShotSample, ObjectRow, Row, situations

WAYS = ("random", "label_cover", "variety", "nearest")
BITS = EpisodesConfig.near_duplicate_bits


def row(name: str, *labels: str, size: tuple[int, int] = (100, 100), box: Sequence[float] = (1, 1, 9, 9)) -> Row:
    return Row((name,), tuple(ObjectRow(label, "bbox_2d", tuple(box)) for label in labels), *size)


def names(rows: Sequence[Row]) -> list[str]:
    return [item.images[0] for item in rows]


def draw(
    config: EpisodesConfig,
    students: Sequence[Row],
    pool: Sequence[Row] = (),
    hashes: dict[str, int] | None = None,
    epochs: int = 1,
    seed: int = 5,
) -> list[list[FewShotSample]]:
    """Every student's sample in each epoch."""
    episodes = Episodes(config, students, pool, hashes or {}, seed)
    return [[episodes.complete(FewShotSample(s), epoch, n) for n, s in enumerate(students)] for epoch in range(epochs)]


LABELS = st.lists(st.sampled_from("abcdefg"), max_size=4)
POOLS = st.lists(LABELS, min_size=1, max_size=9).map(
    lambda photos: [row(f"t{number}.jpg", *labels) for number, labels in enumerate(photos)]
)


# ---------------------------------------------------------------- who may teach


@pytest.mark.parametrize("choose", WAYS)
@given(data=st.data())
def test_no_way_of_choosing_shows_the_student_or_its_near_duplicates(choose: str, data: st.DataObject) -> None:
    """The pool are the training photos themselves; hashes are drawn so that many are near each other."""
    students = data.draw(
        st.lists(LABELS, min_size=2, max_size=8).map(lambda x: [row(f"{n}", *y) for n, y in enumerate(x)])
    )
    hashes = {item.images[0]: data.draw(st.integers(0, 2**9 - 1)) for item in students}
    config = EpisodesConfig({3: 1.0}, choose, pool="train", near_duplicate_bits=2)
    for sample in draw(config, students, hashes=hashes)[0]:
        student = sample.student.images[0]
        chosen = names(sample.teachers)
        allowed = [n for n in hashes if n != student and (hashes[n] ^ hashes[student]).bit_count() > 2]
        assert set(chosen) <= set(allowed)
        assert len(chosen) == len(set(chosen)) == min(3, len(allowed))


def test_a_copy_of_the_student_is_no_teacher_although_its_path_differs(
    make_row: Callable[..., Row], photo_folder: Path, tmp_path: Path
) -> None:
    rows = [make_row(f"{number}.png", seed=number) for number in range(3)]
    shutil.copy(photo_folder / "0.png", photo_folder / "copy.png")
    pool = [make_row("copy.png"), *rows[1:]]
    hashes = hash_photos([item.images[0] for item in (*rows, *pool)], photo_folder, tmp_path / "hashes.jsonl")
    samples = draw(EpisodesConfig({2: 1.0}), rows, pool, hashes, epochs=20)
    assert all("copy.png" not in names(epoch[0].teachers) for epoch in samples)
    assert any("copy.png" in names(epoch[1].teachers) for epoch in samples)


def test_an_empty_pool_is_an_error_that_says_what_to_set() -> None:
    with pytest.raises(ConfigError, match=r"data\.episodes\.counts: .*data\.source\.max_teachers"):
        draw(EpisodesConfig({1: 1.0}), [row("s")])
    assert draw(EpisodesConfig({0: 1.0, 2: 0.0}), [row("s")])[0][0].teachers == ()


def test_a_small_pool_gives_fewer_teachers() -> None:
    assert names(draw(EpisodesConfig({4: 1.0}), [row("0")], [row("0"), row("1")])[0][0].teachers) == ["1"]


def test_a_sample_with_teachers_and_context_of_its_own_keeps_them() -> None:
    own = FewShotSample(row("s"), (row("t"),), (row("c"),))
    config = EpisodesConfig({3: 1.0}, context_photos=2)
    assert Episodes(config, [row("s")], [row("p"), row("q")], {}, 5).complete(own, 0, 0) == own


# ---------------------------------------------------------------- how many, and from what


def test_numbers_of_teachers_follow_their_weights() -> None:
    students = [row(f"s{number}") for number in range(100)]
    samples = draw(EpisodesConfig({0: 5, 1: 3, 3: 2}), students, [row(f"t{n}") for n in range(5)], epochs=30)
    counts = Counter(len(sample.teachers) for epoch in samples for sample in epoch)
    for number, share in ((0, 0.5), (1, 0.3), (3, 0.2)):
        assert counts[number] / 3000 == pytest.approx(share, abs=0.03)
    assert set(counts) == {0, 1, 3}


def test_equal_weights_give_the_stored_draws() -> None:
    """Seeded runs of earlier releases (0 to K teachers, equal weights) draw the same."""
    students, pool = [row(f"{number}") for number in range(6)], [row(f"{number}") for number in range(3, 9)]
    for epoch, samples in enumerate(draw(EpisodesConfig({0: 1, 1: 1, 2: 1}), students, pool, epochs=3)):
        for number, sample in enumerate(samples):
            random = np.random.default_rng((5, 2, epoch, number))
            count = int(random.integers(0, 3))
            others = [item for item in pool if item.images != sample.student.images]
            assert list(sample.teachers) == [others[n] for n in random.permutation(len(others))[:count]]


@pytest.mark.parametrize("choose", WAYS)
def test_a_choice_follows_from_seed_epoch_and_number_alone(choose: str) -> None:
    students = [row(f"s{number}", "abc"[number % 3]) for number in range(8)]
    pool = [row(f"t{number}", *"abcd"[number % 4 :]) for number in range(9)]
    hashes = {item.images[0]: number * 37 % 64 << 6 for number, item in enumerate([*students, *pool])}
    config = EpisodesConfig({0: 0.2, 1: 0.4, 2: 0.4}, choose)
    first = draw(config, students, pool, hashes, epochs=4)
    episodes = Episodes(config, students, pool, hashes, 5)
    for epoch in (3, 0, 2, 1):
        for number in reversed(range(8)):
            assert episodes.complete(FewShotSample(students[number]), epoch, number) == first[epoch][number]
    assert draw(config, students, pool, hashes, epochs=4, seed=6) != first


# ---------------------------------------------------------------- ways of choosing


def everyone(pool: Sequence[Row]) -> np.ndarray:
    return np.arange(len(pool))


def test_label_cover_takes_the_rarest_label_of_the_student_first_then_most_of_the_rest() -> None:
    pool = [row("common", "a", "b"), row("all but rare", "a", "b", "c"), row("rare", "r"), row("rare and a", "r", "a")]
    rarity = {"a": 90, "b": 50, "c": 40, "r": 2}
    chooser = TeacherPool(pool, {}, BITS, rarity)
    wanted = frozenset("abr")
    chosen = names(chooser.choose("label_cover", row("s"), everyone(pool), 3, wanted))
    assert chosen[0] == "rare and a", "the rarest label, with one more of the student's"
    assert chosen[1] == "all but rare", "b is left; it also brings c"
    assert names(chooser.choose("label_cover", row("s"), everyone(pool), 1, frozenset())) == ["all but rare"]


@given(pool=POOLS, wanted=st.frozensets(st.sampled_from("abcdefg")), count=st.integers(1, 4))
def test_label_cover_is_greedy_at_every_step(pool: list[Row], wanted: frozenset[str], count: int) -> None:
    chooser = TeacherPool(pool, {}, BITS)
    chosen = chooser.choose("label_cover", row("s"), everyone(pool), count, wanted)
    shown: set[str] = set()
    left = list(pool)
    for teacher in chosen:
        open_labels = wanted & {label for item in left for label in item.labels} - shown
        if open_labels:
            rarest = min(open_labels, key=lambda label: (chooser.rarity[label], label))
            holders = [item for item in left if rarest in item.labels]
            assert teacher in holders
            assert len(teacher.labels & open_labels) == max(len(item.labels & open_labels) for item in holders)
        else:
            assert len(teacher.labels - shown) == max(len(item.labels - shown) for item in left)
        shown |= teacher.labels
        left.remove(teacher)


def jaccard(a: Row, b: Row) -> float:
    one, other = ({*item.labels, *situations(item)} for item in (a, b))
    return len(one ^ other) / max(len(one | other), 1)


@given(pool=POOLS, count=st.integers(1, 5))
def test_variety_takes_the_photo_farthest_from_all_chosen(pool: list[Row], count: int) -> None:
    chosen = TeacherPool(pool, {}, BITS).choose("variety", row("s"), everyone(pool), count, frozenset())
    assert len(chosen) == min(count, len(pool)) == len({item.images for item in chosen}) and chosen[0] == pool[0]
    for step in range(1, len(chosen)):
        before, left = chosen[:step], [item for item in pool if item not in chosen[:step]]
        best = max(min(jaccard(item, other) for other in before) for item in left)
        assert min(jaccard(chosen[step], other) for other in before) == pytest.approx(best)


def test_variety_sees_object_count_place_and_size_where_labels_are_the_same() -> None:
    pool = [row("first", "a"), row("same", "a"), row("large", "a", box=(5, 5, 95, 95)), row("many", *["a"] * 12)]
    chosen = TeacherPool(pool, {}, BITS).choose("variety", row("s"), everyone(pool), 3, frozenset())
    assert set(names(chosen)) == {"first", "large", "many"}


def test_nearest_takes_the_most_similar_hash_then_the_most_similar_size() -> None:
    hashes = {"s": 0, "far": 2**20 - 1, "near": 2**6 - 1, "as near, other shape": 2**6 - 1, "unknown": None}
    known = {name: value for name, value in hashes.items() if value is not None}
    pool = [row("unknown"), row("far"), row("as near, other shape", size=(200, 50)), row("near")]
    chosen = TeacherPool(pool, known, BITS).choose("nearest", row("s"), everyone(pool), 4, frozenset())
    assert names(chosen) == ["near", "as near, other shape", "far", "unknown"]


# ---------------------------------------------------------------- context


def of_site(name: str, group: str | None, *labels: str) -> Row:
    return replace(row(name, *labels), metadata={} if group is None else {"group": group})


def test_context_is_other_photos_of_the_same_group_and_never_a_teacher() -> None:
    sites = {"a": ["a0", "a1", "a2", "a3"], "b": ["b0", "b1"], "c": ["c0"]}
    students = [of_site(name, site) for site, members in sites.items() for name in members]
    students += [of_site("none", None), of_site("none either", None)]
    config = EpisodesConfig({1: 1.0}, pool="train", context_photos=2)
    seen: dict[str, set[str]] = {}
    for epoch in draw(config, students, epochs=20):
        for sample in epoch:
            name, context = sample.student.images[0], names(sample.context)
            others = set(sites.get(sample.student.group or "", ())) - {name}
            assert set(context) <= others - set(names(sample.teachers)) and len(context) == len(set(context))
            assert len(context) == min(2, len(others - set(names(sample.teachers))))
            seen.setdefault(name, set()).update(context)
    assert seen["a0"] == {"a1", "a2", "a3"} and seen["b0"] == {"b1"} and seen["c0"] == seen["none"] == set()


def test_without_context_photos_nothing_is_drawn_for_them() -> None:
    students = [of_site("1", "a"), of_site("2", "a")]
    assert all(sample.context == () for sample in draw(EpisodesConfig(), students)[0])


# ---------------------------------------------------------------- evaluation


@pytest.fixture
def world(make_row: Callable[..., Row], photo_folder: Path, tmp_path: Path) -> Any:
    """Four photos to be predicted, two sites; six teachers, two of which show photos of the split."""
    split = [
        replace(make_row(f"test{n}.png", 1 + n % 2, seed=n), metadata={"group": f"site {n // 2}"}) for n in range(4)
    ]
    shutil.copy(photo_folder / "test1.png", photo_folder / "copy.png")
    pool = [split[0], make_row("copy.png", 2), *(make_row(f"teacher{n}.png", n, seed=50 + n) for n in range(4))]
    hashes = hash_photos(names([*split, *pool]), photo_folder, tmp_path / "hashes.jsonl")
    return split, pool, hashes, str(photo_folder)


def shown(world: Any, config: EpisodesConfig, count: int, rows: Sequence[Row] | None = None) -> EvaluationEpisodes:
    split, pool, hashes, root = world
    teachers = TeacherPool(pool, hashes, config.near_duplicate_bits) if count else None
    return EvaluationEpisodes(config, split if rows is None else rows, teachers, count, root)


@pytest.mark.parametrize("choose", WAYS)
def test_no_teacher_shows_a_photo_of_the_evaluated_split(choose: str, world: Any) -> None:
    episodes = shown(world, EpisodesConfig(choose=choose), count=6)
    assert episodes.left_out == 2
    for item in world[0]:
        teachers, context = episodes(item.images[0])
        assert {photo.name for photo in teachers} == {f"teacher{n}.png" for n in range(4)} and context == []


@pytest.mark.parametrize("choose", WAYS)
def test_evaluation_looks_at_no_label_of_the_split_and_is_the_same_every_time(choose: str, world: Any) -> None:
    split = world[0]
    relabelled = [replace(item, objects=(ObjectRow("another", "bbox_2d", (1, 1, 5, 5)),)) for item in split]
    runs = [shown(world, EpisodesConfig(choose=choose, context_photos=1), 2, rows) for rows in (split, relabelled)]
    for item in split:
        one, other = (run(item.images[0]) for run in runs)
        assert [[p.name for p in part] for part in one] == [[p.name for p in part] for part in other]
        assert len(one[0]) == 2 and all(photo.objects == () for photo in one[1])
    if choose != "nearest":
        assert runs[0]("test0.png")[0] == runs[0]("test3.png")[0]


def test_random_means_label_cover_in_evaluation(world: Any) -> None:
    chosen = [shown(world, EpisodesConfig(choose=way), 2)("test0.png")[0] for way in ("random", "label_cover")]
    assert [photo.name for photo in chosen[0]] == [photo.name for photo in chosen[1]]


def test_a_pool_of_nothing_but_evaluated_photos_is_an_error(world: Any) -> None:
    split, pool, hashes, root = world
    with pytest.raises(ConfigError, match=r"evaluation\.teachers: every one of the 2 possible teachers"):
        EvaluationEpisodes(EpisodesConfig(), split, TeacherPool(pool[:2], hashes, BITS), 1, root)


def test_context_in_evaluation_is_the_rest_of_the_site_less_what_cannot_be_read(world: Any) -> None:
    episodes = shown(world, EpisodesConfig(context_photos=3), 0)
    assert [photo.name for photo in episodes("test0.png")[1]] == ["test1.png"]
    (Path(world[3]) / "test3.png").write_bytes(b"no photo")
    assert episodes("test2.png") == ([], [])


def test_a_teacher_that_cannot_be_read_stops_the_evaluation_before_it_begins(world: Any) -> None:
    for number in range(4):
        (Path(world[3]) / f"teacher{number}.png").write_bytes(b"no photo")
    with pytest.raises(ImageError, match=r"teacher\d\.png"):
        shown(world, EpisodesConfig(), 1)


# ---------------------------------------------------------------- the whole job


@pytest.fixture
def run(make_row: Callable[..., Row], photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """run(**keys of data, teachers=of evaluation): train and predict; gives the conversations that were shown."""
    import torch

    from bbu import stages
    from bbu.data.chat_processor import ChatProcessor
    from bbu.jsonl import write_jsonl
    from bbu.models import precision
    from tests.tiny import tiny_config

    monkeypatch.setattr(precision, "compute_device", lambda: torch.device("cpu"))
    shown: list[tuple[list[str], list[str], str, bool]] = []
    real = ChatProcessor.process_photos

    def process_photos(
        self: Any, teachers: Any, student: Any, *, with_answer: bool, context: Any = (), **more: Any
    ) -> Any:
        shown.append(([p.name for p in teachers], [p.name for p in context], student.name, with_answer))
        return real(self, teachers, student, with_answer=with_answer, context=context, **more)

    monkeypatch.setattr(ChatProcessor, "process_photos", process_photos)
    copies = {"teacher3.png": "val0.png", "teacher4.png": "test0.png"}
    for number, (split, count) in enumerate((("train", 6), ("val", 2), ("test", 4), ("teacher", 5))):
        rows = [make_row(f"{split}{n}.png", 1 + n % 2, seed=10 * number + n) for n in range(count)]
        rows = [replace(item, metadata={"group": f"site {n // 2}"}) for n, item in enumerate(rows)]
        write_jsonl(photo_folder / f"{split}.jsonl", rows)
    for copy, original in copies.items():
        shutil.copy(photo_folder / original, photo_folder / copy)

    def job(**changes: Any) -> list[tuple[list[str], list[str], str, bool]]:
        data = {"source.path": str(photo_folder), **{key: changes[key] for key in changes if "." in key}}
        config = tiny_config(data=data, training={"max_steps": 3, "eval_every": 3})
        config.evaluation.teachers = changes.get("teachers", 0)
        config.output_dir = str(tmp_path / "run")
        stages.predict(stages.train(config))
        return shown

    return job


def test_a_run_shows_teachers_and_context_of_the_right_split_in_training_validation_and_test(run: Any) -> None:
    shown = run(
        **{
            "episodes.counts": {1: 1.0, 2: 1.0},
            "episodes.choose": "label_cover",
            "episodes.context_photos": 1,
            "sampling.method": "repeat_factor",
            "sampling.threshold": 0.9,
        },
        teachers=5,
    )
    teachers_of = {
        "train": {f"teacher{number}.png" for number in range(5)},
        "val": {f"teacher{number}.png" for number in (0, 1, 2, 4)},  # 3 is a copy of val0
        "test": {f"teacher{number}.png" for number in (0, 1, 2, 3)},  # 4 is a copy of test0
    }
    for split, answered in (("train", True), ("val", False), ("test", False)):
        turns = [turn for turn in shown if turn[2].startswith(split) and turn[3] == answered]
        assert turns
        for teachers, context, student, _ in turns:
            assert set(teachers) <= teachers_of[split] and len(teachers) in ((1, 2) if answered else (4,))
            number = int(student.removeprefix(split).removesuffix(".png"))
            assert context == [f"{split}{number ^ 1}.png"], "the other photo of the site"
    asked = [turn for turn in shown if turn[3] and not turn[2].startswith("train")]
    assert {turn[2] for turn in asked} == {"val0.png", "val1.png"}, "for the loss on val, without worked examples"
    assert all(teachers == [] and context == [] for teachers, context, _, _ in asked)


def test_a_run_without_episodes_shows_photos_alone_and_hashes_nothing(run: Any, tmp_path: Path) -> None:
    assert all(teachers == [] and context == [] for teachers, context, _, _ in run())
    assert not (tmp_path / "run" / "data" / "photo_hashes.jsonl").exists()


def test_a_run_that_has_no_teachers_to_show_says_so_before_it_trains(run: Any, photo_folder: Path) -> None:
    (photo_folder / "teacher.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"evaluation\.teachers: .*data\.source\.max_teachers"):
        run(teachers=1)


def test_a_model_trained_without_context_is_not_scored_with_it(run: Any, tmp_path: Path) -> None:
    from bbu import stages

    run(**{"episodes.counts": {0: 0.5, 2: 0.5}})
    config = load_config(tmp_path / "run" / "config.yaml", ["data.episodes.context_photos=1"])
    assert config.data.episodes.counts == {0: 0.5, 2: 0.5}
    with pytest.raises(ConfigError, match=r"data\.episodes\.context_photos: the model was not trained"):
        stages.predict(stages.open_run(config))


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("data.episodes.counts={-1: 1}", ("data.episodes.counts", "-1 teachers")),
        ("data.episodes.counts={2: -0.1}", ("data.episodes.counts.2", "not be negative", "-0.1")),
        ("data.episodes.counts={2: .nan}", ("data.episodes.counts.2", "finite", "nan")),
        ("data.episodes.counts={many: 1}", ("data.episodes.counts", "many")),
        ("data.episodes.counts=2", ("data.episodes.counts",)),
        ("data.episodes.near_duplicate_bits=64", ("data.episodes.near_duplicate_bits", "64 bits")),
        ("data.episodes.choose=best", ("data.episodes.choose", "'best'", "label_cover")),
        ("data.sampling.threshold=1.5", ("data.sampling.threshold", "1.5")),
        ("evaluation.teachers=-1", ("evaluation.teachers", "-1")),
    ],
)
def test_a_bad_value_is_an_error_that_names_its_key(tmp_path: Path, override: str, words: tuple[str, ...]) -> None:
    (tmp_path / "small.yaml").write_text("seed: 3", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "small.yaml", [override])
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_an_override_takes_a_number_of_teachers_out(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text("data: {episodes: {counts: {0: 0.5, 1: 0.5}}}", encoding="utf-8")
    config = load_config(tmp_path / "small.yaml", ["data.episodes.counts={1: 0}"])
    assert most_teachers(config.data.episodes) == 0
