"""The drawn demo photos: reproducible, disjoint splits, tight geometry, the annotators' schema."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from bbu.errors import UserError
from bbu.geometry import enclosing_box, exif_affine, iou, iou_matrix, transform_points
from bbu.images import open_image
from data_conversion.cabinet.backdrop import expose
from data_conversion.cabinet.brush import Brush, Pose, settle
from data_conversion.cabinet.catalogue import BOX, LABELS, LINE, QUAD
from data_conversion.cabinet.scene import MOST, Part, Scene, arrange, compose
from data_conversion.cabinet_photos import draw_data_set, draw_photo, photo_seed, sites

COUNTS = {"train": 24, "val": 6, "test": 5}
TOP_LEVEL = {
    "info", "tagInfo", "version", "markResult", "qualityResult", "workload", "statistcs", "submitWorkflow",
}  # fmt: skip
PROPERTIES = {
    "content", "contentZh", "objectId", "layerId", "ocrContent", "generateMode", "quality", "labelColor", "area",
    "groups",
}  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "photos"
    draw_data_set(folder, COUNTS, seed=3, workers=2)
    return folder


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [arrange(np.random.SeedSequence((11, index))) for index in range(60)]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_same_seed_gives_the_same_bytes_with_any_number_of_workers(drawn: Path, tmp_path: Path) -> None:
    draw_data_set(tmp_path / "again", COUNTS, seed=3, workers=1)
    assert digests(tmp_path / "again") == digests(drawn)


def test_another_seed_gives_other_photos(drawn: Path, tmp_path: Path) -> None:
    draw_data_set(tmp_path / "other", {"val": 2}, seed=4, workers=1)
    assert not set(digests(tmp_path / "other").values()) & set(digests(drawn).values())


def test_every_photo_has_its_annotation_and_no_photo_appears_twice(drawn: Path) -> None:
    photos = sorted(drawn.rglob("*.jpg"))
    assert Counter(path.parent.name for path in photos) == COUNTS
    assert all(path.with_suffix(".json").is_file() for path in photos)
    assert len({open_image(path).tobytes() for path in photos}) == len(photos)
    assert sorted(path.name for path in drawn.iterdir()) == sorted(COUNTS)


def test_a_split_does_not_change_when_another_is_asked_for(drawn: Path, tmp_path: Path) -> None:
    draw_data_set(tmp_path / "less", {"test": 3}, seed=3, workers=1)
    known = digests(drawn)
    assert all(known[name] == digest for name, digest in digests(tmp_path / "less").items())


def test_annotations_keep_the_raw_schema(drawn: Path) -> None:
    kinds = Counter()
    for path in drawn.rglob("*.json"):
        document = json.loads(path.read_text(encoding="utf-8"))
        assert set(document) == TOP_LEVEL
        width, height = document["info"]["width"], document["info"]["height"]
        features = document["markResult"]["features"]
        assert 1 <= len(features) <= MOST
        for feature in features:
            label = feature["properties"]["contentZh"]["标签"]
            kind, coordinates = feature["geometry"]["type"], feature["geometry"]["coordinates"]
            assert set(feature["properties"]) == PROPERTIES
            assert (feature["properties"]["content"]["label"], kind) == LABELS[label]
            ring = np.array(coordinates if kind == LINE else coordinates[0])
            assert len(ring) == {BOX: 5, QUAD: 4, LINE: 9}[kind]
            assert ring.min() >= 0
            assert (ring.max(axis=0) <= (width, height)).all()
            if kind == BOX:
                assert (ring[0] == ring[-1]).all()
            kinds[kind] += 1
    assert set(kinds) == {BOX, QUAD, LINE}


def test_every_state_is_frequent_enough_to_be_learned(scenes: list[Scene]) -> None:
    more = [arrange(np.random.SeedSequence((12, index))) for index in range(140)]
    counts = [len(scene.parts) for scene in [*scenes, *more]]
    labels = Counter(part.label for scene in [*scenes, *more] for part in scene.parts)
    assert set(labels) == set(LABELS)
    assert min(labels.values()) / sum(labels.values()) > 0.025
    assert max(labels.values()) / min(labels.values()) > 3  # unbalanced, as in the field
    assert 7 <= np.mean(counts) <= 8.5
    assert min(counts) >= 1
    assert max(counts) <= MOST


def test_parts_stay_in_the_photo_apart_and_large_enough(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert 224 <= min(scene.width, scene.height) <= max(scene.width, scene.height) <= 448
        boxes = np.array([part.box for part in scene.parts], dtype=np.float64)
        assert (iou_matrix(boxes, boxes) - np.eye(len(boxes))).max() < 0.3
        for part in scene.parts:
            x1, y1, x2, y2 = part.sprite.box
            assert x1 >= 0 <= y1
            assert x2 <= scene.width
            assert y2 <= scene.height
            assert min(x2 - x1, y2 - y1) >= 26 or LABELS[part.label][1] == LINE


def extent(scene: Scene, empty: np.ndarray, index: int) -> np.ndarray:
    """xyxy of the pixels that a part changes when it alone is drawn."""
    alone = np.asarray(compose(scene, only=[index], shadows=False), dtype=int)
    ys, xs = np.nonzero(np.abs(alone - empty).max(axis=-1) > 12)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], dtype=float)


def test_geometry_is_tight_to_the_drawn_pixels(scenes: list[Scene]) -> None:
    for scene in scenes[:14]:
        empty = np.asarray(compose(scene, only=[], shadows=False), dtype=int)
        for index, part in enumerate(scene.parts):
            seen = extent(scene, empty, index)
            if LABELS[part.label][1] == LINE:
                check_line(scene, part, seen)
                continue
            assert np.abs(seen - part.box).max() <= 2.5, part.label
            assert iou(seen, np.array(part.box)) > 0.88, part.label


def check_line(scene: Scene, part: Part, seen: np.ndarray) -> None:
    """The vertices run along the middle: inside the drawn cable, less than its thickness from its outline."""
    alpha, sprite = np.asarray(part.sprite.image.getchannel("A")), part.sprite
    for x, y in part.points[1:-1]:
        assert alpha[int(y) - sprite.top, int(x) - sprite.left] > 128
    margins = np.abs(seen - part.box)
    assert margins.max() < 0.5 * scene.u


def test_a_turned_part_has_the_box_of_its_corners() -> None:
    brush = Brush(30, 10)
    brush.bar(-30, -10, 30, 10, (255, 255, 255))
    pose = Pose(60.3, 50.6, turn=0.4, shear=0.1)
    corners = pose.points([(-30, -10), (30, -10), (30, 10), (-30, 10)])
    assert np.abs(np.array(settle(brush, pose).box) - enclosing_box(np.array(corners))).max() < 1.0


def stored_points(feature: dict) -> np.ndarray:
    kind, coordinates = feature["geometry"]["type"], feature["geometry"]["coordinates"]
    return np.array(coordinates if kind == LINE else coordinates[0])


def boxes_of(document: dict, ratio: np.ndarray, affine: tuple) -> set[tuple[float, ...]]:
    """Boxes of the features, brought to displayed pixels."""
    moved = [transform_points(stored_points(f) / ratio, affine) for f in document["markResult"]["features"]]
    return {tuple(np.round((*p.min(axis=0), *p.max(axis=0)), 1)) for p in moved}


@pytest.fixture(scope="module")
def habits() -> list[tuple[int, int, bool]]:
    """(index, orientation, resized) of photos drawn one by one."""
    found = []
    for index in range(90):
        photo = draw_photo(5, "train", index)
        info = photo.annotation["info"]
        resized = (info["width"], info["height"]) != photo.image.size
        found.append((index, photo.orientation, resized))
    return found


def test_turned_photos_are_displayed_upright(habits: list[tuple[int, int, bool]], tmp_path: Path) -> None:
    turned = [(index, orientation) for index, orientation, _ in habits if orientation != 1]
    assert {orientation for _, orientation in turned} <= {3, 6, 8}
    assert 1 <= len(turned) <= 15
    for index, orientation in turned:
        photo = draw_photo(5, "train", index)
        arranged, camera = photo_seed(5, "train", index).spawn(2)
        scene = arrange(arranged)
        upright = expose(np.random.default_rng(camera), compose(scene))
        path = tmp_path / f"{index}.jpg"
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = photo.orientation
        photo.image.save(path, quality=95, exif=exif)
        displayed = ImageOps.exif_transpose(open_image(path))
        assert displayed.size == (scene.width, scene.height)
        assert np.abs(np.asarray(displayed, dtype=int) - np.asarray(upright, dtype=int)).mean() < 8
        affine = exif_affine(orientation, *photo.image.size)
        truth = {tuple(np.round(part.box, 1)) for part in scene.parts}
        assert boxes_of(photo.annotation, np.ones(2), affine) == truth


def test_photos_annotated_at_another_size_scale_back(habits: list[tuple[int, int, bool]]) -> None:
    resized = [index for index, orientation, other in habits if other and orientation == 1]
    assert 1 <= len(resized) <= 12
    for index in resized:
        photo = draw_photo(5, "train", index)
        info = photo.annotation["info"]
        ratio = np.array([info["width"], info["height"]]) / photo.image.size
        scene = arrange(photo_seed(5, "train", index).spawn(2)[0])
        boxes = np.array(sorted(boxes_of(photo.annotation, ratio, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0))))
        truth = np.array(sorted(tuple(np.round(part.box, 1)) for part in scene.parts))
        assert np.abs(boxes - truth).max() < 0.2


@pytest.mark.parametrize("seed", [0, 17])
@pytest.mark.parametrize("count", [0, 1, *range(2, 60), 700])
def test_sites_are_two_to_six_consecutive_photos_of_one_split(seed: int, count: int) -> None:
    found = sites({"train": count, "val": 9}, seed)
    assert [name for name in found if name.startswith("train")] == [
        f"train/cabinet_train_{index:05d}.jpg" for index in range(count)
    ]
    assert all(site.startswith(name.partition("/")[0]) for name, site in found.items())
    sizes = Counter(site for site in found.values() if site.startswith("train"))
    assert set(sizes.values()) <= ({1} if count == 1 else {2, 3, 4, 5, 6})
    assert list(found.values()) == sorted(found.values(), key=lambda site: ("train" not in site, site))


def test_sites_follow_the_seed_and_name_the_drawn_files(drawn: Path) -> None:
    found = sites(COUNTS, 3)
    assert set(found) == {path.relative_to(drawn).as_posix() for path in drawn.rglob("*.jpg")}
    assert found == sites(COUNTS, 3) != sites(COUNTS, 4)


@pytest.mark.parametrize(
    ("photos", "seed", "workers", "words"),
    [
        ({}, 0, 1, "no split"),
        ({"train": -1}, 0, 1, "0 photos or more"),
        ({"../train": 1}, 0, 1, "plain word"),
        ({"train": 1}, -1, 1, "seed"),
        ({"train": 1}, 0, 0, "workers"),
    ],
)
def test_bad_requests_are_refused(tmp_path: Path, photos: dict[str, int], seed: int, workers: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        draw_data_set(tmp_path / "out", photos, seed, workers)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UserError, match="already holds something"):
        draw_data_set(tmp_path, {"train": 1}, seed=0, workers=1)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failed_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("data_conversion.cabinet_photos.draw_photo", fail)
    with pytest.raises(OSError, match="disk full"):
        draw_data_set(tmp_path / "out", {"train": 2}, seed=0, workers=1)
    assert list(tmp_path.iterdir()) == []
