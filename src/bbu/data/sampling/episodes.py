"""Episodes: which worked examples (teachers) and which photos of the same site (context) accompany a photo.

A choice is a function of (seed, epoch, sample number) alone. A photo's teachers are never the photo itself or a near
duplicate of it, whose answer would leak its own. Needs no torch.

Shapes: R rows, Ca categories.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from bbu.config import EpisodesConfig
from bbu.data.photo import open_photo
from bbu.data.sampling.groups import groups_of
from bbu.data.sampling.similarity import HASH_BITS, jaccard_distances
from bbu.errors import ConfigError, UserError
from bbu.records import FewShotSample, Row, situations

if TYPE_CHECKING:
    from bbu.data.photo import Photo

# Separate random streams, so that changing one choice does not change the others.
TEACHER_STREAM, CONTEXT_STREAM = 2, 4  # 1 is the order's, 3 the augmentation's


class TeacherPool:
    """Annotated photos from which worked examples are chosen.

    Args:
        rows: the pool, in order.
        hashes: path → perceptual hash; a photo without a hash is compared by path only.
        near_duplicate_bits: photos whose hashes differ in at most this many bits count as the same photo.
        rarity: label → number of training photos with it; default: number in the pool.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        hashes: Mapping[str, int],
        near_duplicate_bits: int,
        rarity: Mapping[str, int] | None = None,
    ) -> None:
        self.rows, self.hashes, self.bits = rows, hashes, near_duplicate_bits
        self.rarity = Counter(label for row in rows for label in row.labels) if rarity is None else rarity
        self.names = sorted({label for row in rows for label in row.labels}, key=lambda x: (self.rarity.get(x, 0), x))
        self._labels_RCa = _table([row.labels for row in rows], self.names)  # the rarest label first
        traits = [row.labels.union(situations(row)) for row in rows]
        self._traits_RCa = _table(traits, sorted(frozenset().union(*traits)))
        self._hashes_R = np.array([hashes.get(row.images[0], 0) for row in rows], dtype=np.uint64)
        self._known_R = np.array([row.images[0] in hashes for row in rows], dtype=bool)
        self._sizes_R2 = np.log([(row.width, row.height) for row in rows]).reshape(-1, 2)
        self._place: defaultdict[str, list[int]] = defaultdict(list)
        for number, row in enumerate(rows):
            self._place[row.images[0]].append(number)

    def others(self, student: Row) -> np.ndarray:
        """Indices of the rows that may be shown with a photo, in pool order."""
        allowed = ~(self._known_R & (self._distances(student) <= self.bits))
        allowed[self._place.get(student.images[0], [])] = False
        return allowed.nonzero()[0]

    def _distances(self, student: Row) -> np.ndarray:
        """(R,) Hamming distances to the student's hash; HASH_BITS where a hash is missing."""
        own = self.hashes.get(student.images[0])
        if own is None:
            return np.full(len(self.rows), HASH_BITS)
        return np.where(self._known_R, np.bitwise_count(self._hashes_R ^ np.uint64(own)), HASH_BITS)

    def choose(self, how: str, student: Row, order: np.ndarray, count: int, wanted: frozenset[str]) -> tuple[Row, ...]:
        """At most ``count`` rows.

        Args:
            how: label_cover, variety, nearest or random (the first in order).
            order: indices of the rows to choose from; earlier rows win ties.
            wanted: labels that label_cover covers first.
        """
        if how == "label_cover":
            found = self._cover(order, count, wanted)
        elif how == "variety":
            found = self._vary(order, count)
        elif how == "nearest":
            found = self._near(student, order, count)
        else:
            found = order[:count].tolist()
        return tuple(self.rows[number] for number in found)

    def _cover(self, order: np.ndarray, count: int, wanted: frozenset[str]) -> list[int]:
        """Greedy: among rows with the rarest wanted label not yet shown, the one with most wanted labels, then with
        most new labels; once all wanted labels are shown, the row with most new labels."""
        wanted_Ca = np.array([name in wanted for name in self.names], dtype=bool)
        shown_Ca = np.zeros(len(self.names), dtype=bool)
        chosen: list[int] = []
        while len(chosen) < count and len(order):
            labels_RCa = self._labels_RCa[order]
            open_Ca = wanted_Ca & ~shown_Ca & labels_RCa.any(0)
            gain = (labels_RCa & open_Ca).sum(1) * (len(self.names) + 1) + (labels_RCa & ~shown_Ca).sum(1)
            if open_Ca.any():
                gain = np.where(labels_RCa[:, open_Ca.argmax()], gain, -1)
            best = int(gain.argmax())
            chosen.append(int(order[best]))
            shown_Ca |= labels_RCa[best]
            order = np.delete(order, best)
        return chosen

    def _vary(self, order: np.ndarray, count: int) -> list[int]:
        """Farthest-point sampling from the first in order, by Jaccard distance of labels and situations."""
        chosen = order[: min(count, 1)].tolist()
        nearest = np.full(len(order), np.inf)
        while len(chosen) < min(count, len(order)):
            distances = jaccard_distances(self._traits_RCa[order], self._traits_RCa[chosen[-1]])
            nearest = np.minimum(nearest, distances)
            nearest[order == chosen[-1]] = -1
            chosen.append(int(order[nearest.argmax()]))
        return chosen

    def _near(self, student: Row, order: np.ndarray, count: int) -> list[int]:
        """Most similar hash first, then most similar size and shape."""
        size = np.abs(self._sizes_R2[order] - np.log((student.width, student.height))).sum(1)
        ranks = np.lexsort((np.arange(len(order)), size.round(9), self._distances(student)[order]))
        return order[ranks[:count]].tolist()


def _table(sets: Sequence[frozenset[str]], names: Sequence[str]) -> np.ndarray:
    """(R, Ca) boolean membership table."""
    column = {name: number for number, name in enumerate(names)}
    table = np.zeros((len(sets), len(names)), dtype=bool)
    for row, members in enumerate(sets):
        table[row, [column[name] for name in members]] = True
    return table


# ---------------------------------------------------------------- training


def most_teachers(config: EpisodesConfig) -> int:
    """The largest number of teachers with a weight above 0; 0 = none are shown."""
    return max((count for count, weight in config.counts.items() if weight > 0), default=0)


class Episodes:
    """Draws teachers and context for training samples; samples that bring their own keep them.

    Args:
        students: training photos.
        teachers: rows of teacher.jsonl; unused if the pool is train.
        hashes: path → perceptual hash, of students and pool.
        seed: run seed.

    Raises:
        ConfigError: teachers are requested but the pool is empty.
    """

    def __init__(
        self,
        config: EpisodesConfig,
        students: Sequence[Row],
        teachers: Sequence[Row],
        hashes: Mapping[str, int],
        seed: int,
    ) -> None:
        self.config, self.seed = config, seed
        self.counts = sorted(count for count, weight in config.counts.items() if weight > 0)
        self.weights = np.array([config.counts[count] for count in self.counts])
        self.pool: TeacherPool | None = None
        if most_teachers(config):
            rows = pool_rows(config, students, teachers, "data.episodes.counts")
            rarity = Counter(label for row in students for label in row.labels)
            self.pool = TeacherPool(rows, hashes, config.near_duplicate_bits, rarity)
        self.groups = groups_of(students) if config.context_photos else {}

    def complete(self, sample: FewShotSample, epoch: int, number: int) -> FewShotSample:
        """The sample with the teachers and context drawn for ``number`` in ``epoch``."""
        teachers = sample.teachers or self._draw_teachers(sample.student, epoch, number)
        context = sample.context or self._draw_context(sample.student, teachers, epoch, number)
        return FewShotSample(sample.student, teachers, context)

    def _draw_teachers(self, student: Row, epoch: int, number: int) -> tuple[Row, ...]:
        if self.pool is None:
            return ()
        random = np.random.default_rng((self.seed, TEACHER_STREAM, epoch, number))
        if (self.weights == self.weights[0]).all():
            count = self.counts[random.integers(0, len(self.counts))]  # keeps the draws of earlier releases
        else:
            count = self.counts[random.choice(len(self.counts), p=self.weights / self.weights.sum())]
        others = self.pool.others(student)
        order = others[random.permutation(len(others))]
        return self.pool.choose(self.config.choose, student, order, count, student.labels)

    def _draw_context(self, student: Row, teachers: Sequence[Row], epoch: int, number: int) -> tuple[Row, ...]:
        shown = {student.images[0], *(row.images[0] for row in teachers)}
        others = [row for row in self.groups.get(student.group, ()) if row.images[0] not in shown]
        random = np.random.default_rng((self.seed, CONTEXT_STREAM, epoch, number))
        chosen = sorted(random.permutation(len(others))[: self.config.context_photos].tolist())
        return tuple(others[place] for place in chosen)


def pool_rows(config: EpisodesConfig, students: Sequence[Row], teachers: Sequence[Row], key: str) -> Sequence[Row]:
    """The rows that teachers are chosen from.

    Raises:
        ConfigError: there are none although ``key`` requests teachers.
    """
    rows = [row for row in (students if config.pool == "train" else teachers) if row.annotated]
    if not rows:
        raise ConfigError(
            f"{key}: asks for teachers, but teacher.jsonl has none; set data.source.max_teachers, or "
            "data.episodes.pool=train"
        )
    return rows


# ---------------------------------------------------------------- evaluation

OPEN_PHOTOS = 8  # decoded photos in memory, 36 MB each at 12 megapixels; neighbours in a split share them


class EvaluationEpisodes:
    """Teachers and context for the photos of an evaluated split: photo path → ``(teachers, context)``.

    No label of the split is used. Rows of the pool that show one of its photos (same path or a near duplicate) are
    left out. Every photo gets the same teachers, except with ``nearest``.

    Args:
        config: how to choose; random means label_cover here, so that scores do not depend on chance.
        rows: the split.
        pool: source of the teachers; None = none are shown.
        teachers: their number.
        image_root: folder of the photos.

    Raises:
        ConfigError: every row of the pool shows a photo of the split.
        ImageError, SampleError: a teacher's photo cannot be read, or its size is not the record's.
    """

    def __init__(
        self, config: EpisodesConfig, rows: Sequence[Row], pool: TeacherPool | None, teachers: int, image_root: str
    ) -> None:
        self.config, self.pool, self.teachers = config, pool, teachers
        self.how = "label_cover" if config.choose == "random" else config.choose
        self.rows = {row.images[0]: Row(row.images, (), row.width, row.height, metadata=row.metadata) for row in rows}
        self.groups = groups_of(list(self.rows.values())) if config.context_photos else {}
        sources = {**{row.images[0]: row for row in pool.rows}, **self.rows} if pool else self.rows
        self._open = lru_cache(OPEN_PHOTOS)(lambda name: open_photo(image_root, sources[name]))
        self._allowed = self._outside_the_split()
        self._same: list[Photo] | None = None
        if self.how != "nearest" and rows:
            self._same = self._teachers_of(next(iter(self.rows.values())))

    @property
    def left_out(self) -> int:
        """Rows of the pool that show photos of the split."""
        return len(self.pool.rows) - len(self._allowed) if self.pool else 0

    def __call__(self, name: str) -> tuple[list[Photo], list[Photo]]:
        """Teachers and context of one photo; skips unreadable context photos, whose own predictions report them."""
        row = self.rows[name]
        teachers = self._same if self._same is not None else self._teachers_of(row)
        others = [other for other in self.groups.get(row.group, ()) if other.images != row.images]
        context = []
        for other in others[: self.config.context_photos]:
            try:
                context.append(self._open(other.images[0]))
            except UserError:
                continue
        return teachers, context

    def _outside_the_split(self) -> np.ndarray:
        if self.pool is None:
            return np.zeros(0, dtype=int)
        allowed = np.ones(len(self.pool.rows), dtype=bool)
        for row in self.rows.values():
            mask = np.zeros_like(allowed)
            mask[self.pool.others(row)] = True
            allowed &= mask
        if self.teachers and not allowed.any():
            raise ConfigError(
                f"evaluation.teachers: every one of the {len(allowed)} possible teachers shows a photo of the split "
                "that is predicted; take them out of it, or set evaluation.teachers=0"
            )
        return allowed.nonzero()[0]

    def _teachers_of(self, row: Row) -> list[Photo]:
        if self.pool is None:
            return []
        everything = frozenset(self.pool.names)
        chosen = self.pool.choose(self.how, row, self._allowed, self.teachers, everything)
        return [self._open(teacher.images[0]) for teacher in chosen]
