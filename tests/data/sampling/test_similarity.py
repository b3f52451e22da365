"""Similar photos have similar hashes; hashes are cached; label sets are compared by Jaccard distance."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from bbu.config import EpisodesConfig
from bbu.data.sampling import similarity
from bbu.data.sampling.similarity import hash_photos, jaccard_distances, photo_hash
from bbu.images import load_image
from bbu.jsonl import iter_json_lines

NEAR = EpisodesConfig.near_duplicate_bits
LABELS = st.frozensets(st.sampled_from("abcde"))


def noise(seed: int) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((240, 180), Image.Resampling.BICUBIC)


def test_the_hash_is_that_of_the_imagehash_library() -> None:
    import imagehash

    for seed in range(5):
        assert f"{photo_hash(noise(seed)):016x}" == str(imagehash.phash(noise(seed)))


@given(st.lists(LABELS, min_size=1, max_size=5), LABELS)
def test_jaccard_distances_match_their_definition(sets: list[frozenset[str]], one: frozenset[str]) -> None:
    """Jaccard 1912: 1 - |A and B| / |A or B|; two empty sets are equal."""
    table = np.array([[letter in labels for letter in "abcde"] for labels in (*sets, one)])
    expected = [len(labels ^ one) / max(len(labels | one), 1) for labels in sets]
    np.testing.assert_allclose(jaccard_distances(table[:-1], table[-1]), expected, atol=1e-12)


def test_a_photo_saved_again_is_a_near_duplicate_and_another_photo_is_not(shared_dir: Path) -> None:
    paths = sorted((shared_dir / "data" / "bccd_voc" / "JPEGImages").glob("*.jpg"))[:40]
    photos = [load_image(path) for path in paths]
    for photo in photos:
        coarse = io.BytesIO()
        photo.resize((photo.width // 2, photo.height // 2)).save(coarse, "JPEG", quality=60)
        assert (photo_hash(photo) ^ photo_hash(load_image(coarse.getvalue()))).bit_count() <= NEAR
    distances = [(photo_hash(a) ^ photo_hash(b)).bit_count() for a, b in itertools.combinations(photos, 2)]
    assert np.mean(np.array(distances) > NEAR) > 0.99


def test_a_copy_has_distance_0(make_photo: Callable[..., Path], photo_folder: Path, tmp_path: Path) -> None:
    """Hence excluding by hash also excludes byte-identical copies."""
    (photo_folder / "copy.png").write_bytes(make_photo("a.png").read_bytes())
    found = hash_photos(["a.png", "copy.png"], photo_folder, tmp_path / "hashes.jsonl")
    assert found["a.png"] == found["copy.png"]


# ---------------------------------------------------------------- the cache


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the photos that are decoded."""
    names: list[str] = []
    real = similarity.load_image
    monkeypatch.setattr(similarity, "load_image", lambda path: (names.append(Path(path).name), real(path))[1])
    return names


def test_a_photo_is_decoded_once_and_again_when_its_file_changes(
    make_photo: Callable[..., Path], photo_folder: Path, tmp_path: Path, opened: list[str]
) -> None:
    cache, names = tmp_path / "data" / "photo_hashes.jsonl", ["a.png", "b.png"]
    for seed, name in enumerate(names):
        make_photo(name, seed=seed)
    first = hash_photos([*names, "a.png"], photo_folder, cache)
    assert sorted(opened) == names and first == {n: photo_hash(load_image(photo_folder / n)) for n in names}
    written = cache.stat().st_mtime_ns
    assert hash_photos(names, photo_folder, cache) == first and len(opened) == 2
    assert cache.stat().st_mtime_ns == written, "nothing was new"
    make_photo("b.png", seed=7)
    os.utime(photo_folder / "b.png", ns=(1, 1))
    assert hash_photos(["b.png"], photo_folder, cache)["b.png"] != first["b.png"]
    assert opened[2:] == ["b.png"]
    assert {entry["image"] for _, entry in iter_json_lines(cache)} == set(names), "what was not asked for is kept"


@pytest.mark.parametrize(
    "text", ["no json", '{"image": "a.png"}', "3", '{"image": "a.png", "phash": "xx", "size": 1, "mtime_ns": 1}']
)
def test_a_damaged_cache_counts_as_none(
    make_photo: Callable[..., Path], photo_folder: Path, tmp_path: Path, text: str
) -> None:
    make_photo("a.png")
    cache = tmp_path / "hashes.jsonl"
    cache.write_text(text, encoding="utf-8")
    found = hash_photos(["a.png"], photo_folder, cache)
    assert found == {"a.png": photo_hash(load_image(photo_folder / "a.png"))}
    assert [entry["image"] for _, entry in iter_json_lines(cache)] == ["a.png"]


def test_a_photo_that_cannot_be_read_has_no_hash(
    make_photo: Callable[..., Path], photo_folder: Path, tmp_path: Path
) -> None:
    make_photo("a.png")
    (photo_folder / "bad.png").write_bytes(b"no photo")
    names: list[Any] = ["a.png", "bad.png", "missing.png", "../outside.png"]
    assert list(hash_photos(names, photo_folder, tmp_path / "hashes.jsonl")) == ["a.png"]


def test_a_photo_that_turns_unreadable_keeps_its_hash_so_that_a_resumed_run_draws_the_same_teachers(
    make_photo: Callable[..., Path], photo_folder: Path, tmp_path: Path
) -> None:
    make_photo("a.png")
    make_photo("b.png")
    cache = tmp_path / "hashes.jsonl"
    before = hash_photos(["a.png", "b.png"], photo_folder, cache)
    (photo_folder / "a.png").write_bytes(b"no photo any more")
    (photo_folder / "b.png").unlink()
    for _ in range(2):
        assert hash_photos(["a.png", "b.png"], photo_folder, cache) == before
