"""The stream of training samples: order, teachers and views follow from the seed and the position alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from bbu.config import AugmentConfig
from bbu.data.augment import draw_view
from bbu.data.chat_processor import ChatProcessor, ChatProcessorOutput
from bbu.errors import SampleError
from bbu.records import FewShotSample, Row

# Separate streams of random numbers, so that changing one choice leaves the others as they were.
_ORDER, _TEACHERS, _VIEW = 1, 2, 3


class TrainingStream(Dataset[ChatProcessorOutput]):
    """All samples of a whole run, in order: position i is photo ``order[epoch][i mod n]`` of epoch i // n.

    A run that is stopped and resumed, or uses other numbers of workers, sees the same samples.

    Args:
        samples: training samples; those with teachers of their own keep them.
        processor: makes the tensors.
        length: samples of the whole run, over all ranks.
        seed: run seed.
        teachers: pool of worked examples.
        teachers_per_sample: 0 to this many are drawn for a student, all numbers equally likely.
        augment: random views; teachers and student each get their own.
    """

    def __init__(
        self,
        samples: Sequence[FewShotSample],
        processor: ChatProcessor,
        *,
        length: int,
        seed: int,
        teachers: Sequence[Row] = (),
        teachers_per_sample: int = 0,
        augment: AugmentConfig | None = None,
    ) -> None:
        if not samples:
            raise SampleError("there is no training photo; check data.source and its conversion report")
        self.samples, self.processor, self.length, self.seed = samples, processor, length, seed
        self.teachers, self.teachers_per_sample = teachers, teachers_per_sample
        self.augment = augment or AugmentConfig()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> ChatProcessorOutput:
        if not 0 <= position < self.length:
            raise IndexError(position)
        epoch, place = divmod(position, len(self.samples))
        number = self._order(epoch)[place]
        sample = self.samples[number]
        if not sample.teachers and self.teachers_per_sample:
            sample = FewShotSample(sample.student, self._draw_teachers(sample.student, epoch, number))
        views = [
            draw_view(self.augment, (self.seed, _VIEW, epoch, number, turn)) for turn in range(len(sample.teachers) + 1)
        ]
        return self.processor.process_sample(sample, views)

    def _order(self, epoch: int) -> list[int]:
        order = np.random.default_rng((self.seed, _ORDER, epoch)).permutation(len(self.samples))
        return [int(number) for number in order]

    def _draw_teachers(self, student: Row, epoch: int, number: int) -> tuple[Row, ...]:
        random = np.random.default_rng((self.seed, _TEACHERS, epoch, number))
        count = int(random.integers(0, self.teachers_per_sample + 1))
        return choose_teachers(self.teachers, student, count, random)


def choose_teachers(pool: Sequence[Row], student: Row, count: int, random: np.random.Generator) -> tuple[Row, ...]:
    """``count`` different teachers (fewer if the pool is small), never the student's own photo."""
    others = [row for row in pool if row.images != student.images]
    chosen = random.permutation(len(others))[:count]
    return tuple(others[int(number)] for number in chosen)
