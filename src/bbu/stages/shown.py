"""Teachers and context photos for photos that are predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bbu.config import Config
from bbu.records import Row
from bbu.stages.preparation import PreparedData
from bbu.training.distributed import is_main

if TYPE_CHECKING:
    from bbu.inference.predictor import Shown


def photo_hashes(config: Config, data: PreparedData, *, training: bool, split: str) -> dict[str, int]:
    """Path → perceptual hash, of students and possible teachers; empty if no teachers are shown.

    Args:
        training: whether to include the training photos.
        split: to be predicted; "" = none.
    """
    from bbu.data.sampling.episodes import most_teachers
    from bbu.data.sampling.similarity import hash_photos

    episodes = config.data.episodes
    splits = {"train", episodes.pool} if training and most_teachers(episodes) else set()
    if split and config.evaluation.teachers:
        splits |= {split, episodes.pool}
    names = [sample.student.images[0] for name in sorted(splits) for sample in data.samples(name)]
    return hash_photos(names, data.image_root, Path(config.output_dir) / "data" / "photo_hashes.jsonl")


def shown_photos(config: Config, data: PreparedData, rows: Sequence[Row], hashes: Mapping[str, int]) -> Shown | None:
    """Teachers and context of each photo that is predicted; None = neither is shown."""
    from bbu.data.sampling.episodes import EvaluationEpisodes, TeacherPool, pool_rows

    episodes, count = config.data.episodes, config.evaluation.teachers
    if not count and not episodes.context_photos:
        return None
    pool = None
    if count:
        students = [sample.student for sample in data.samples("train")]
        teachers = pool_rows(episodes, students, data.rows("teacher"), "evaluation.teachers")
        pool = TeacherPool(teachers, hashes, episodes.near_duplicate_bits)
    shown = EvaluationEpisodes(episodes, rows, pool, count, data.image_root)
    if shown.left_out and is_main():
        print(f"{shown.left_out} possible teachers left out: they show photos that are predicted", flush=True)
    return shown
