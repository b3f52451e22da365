"""What each training sample is asked for: its objects, a summary, or the objects of its whole group. Needs no torch.

A choice is a function of (seed, epoch, sample number) alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bbu.config import AnswersConfig
from bbu.data.sampling.groups import groups_of
from bbu.errors import ConfigError
from bbu.families.prompts import ANSWERS
from bbu.records import FewShotSample, Row

ANSWER_STREAM = 8  # random stream; 1 to 7 are the order's, teachers', views', context's, packs' and conversations'


class Answers:
    """Draws the answer of each training sample by the shares of a config.

    A photo is asked only for what it has: boxes if it is annotated, a summary if it has one, the group's if the group
    has another annotated photo. The shares of these decide among them.

    Args:
        config: shares, and the most photos of a group's turn.
        students: training photos; a tile is not its photo, so it has no group.
        seed: run seed.

    Raises:
        ConfigError: a share is above 0 and no photo has such an answer, a group has one photo, or a photo has no answer
            with a share; or there are tiles and no share of boxes.
    """

    def __init__(self, config: AnswersConfig, students: Sequence[Row], seed: int) -> None:
        self.config, self.seed = config, seed
        self.shares = dict(zip(ANSWERS, (config.boxes, config.summary, config.group), strict=True))
        whole = [row for row in students if row.tile is None]
        self.groups = groups_of(whole) if config.group else {}
        self._check(whole)
        if not config.boxes and len(whole) < len(students):
            raise ConfigError(
                "data.answers.boxes: is 0, but tiles are asked for boxes alone; set a share, or no data.tiles"
            )

    @property
    def all_boxes(self) -> bool:
        """Whether every sample is asked for its boxes."""
        return self.asked == ("boxes",)

    @property
    def asked(self) -> tuple[str, ...]:
        """Answers with a share above 0."""
        return tuple(answer for answer, share in self.shares.items() if share)

    def possible(self, row: Row) -> list[str]:
        """What a photo may be asked for."""
        has = {"boxes": row.annotated, "summary": bool(row.summary), "group": bool(self._others(row))}
        return [answer for answer in self.asked if has[answer]]

    def draw(self, row: Row, epoch: int, number: int) -> str:
        """The answer of sample ``number`` in ``epoch``, a key of ANSWERS."""
        possible = self.possible(row)
        if len(possible) == 1:
            return possible[0]
        shares = np.array([self.shares[answer] for answer in possible])
        return possible[int(self._random(epoch, number).choice(len(possible), p=shares / shares.sum()))]

    def group(self, row: Row, epoch: int, number: int) -> FewShotSample:
        """The sample that answers for a photo's group; where the group is larger than a turn, some of its photos."""
        others = self._others(row)
        random = self._random(epoch, number)
        random.random()  # the draw of the answer
        chosen = sorted(random.permutation(len(others))[: self.config.group_photos - 1].tolist())
        return FewShotSample(row, context=tuple(others[place] for place in chosen), answer="group")

    def _random(self, epoch: int, number: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, ANSWER_STREAM, epoch, number))

    def _others(self, row: Row) -> list[Row]:
        """Annotated photos of a photo's group besides itself; none for a tile, or a photo that is not annotated."""
        if row.tile is not None or not row.annotated:
            return []
        return [other for other in self.groups.get(row.group, ()) if other.annotated and other.images != row.images]

    def _check(self, students: Sequence[Row]) -> None:
        if not self.asked:
            raise ConfigError("data.answers: every share is 0, so there is nothing to answer; set one of them above 0")
        alone = next((group for group, rows in self.groups.items() if len(rows) == 1), None)
        if alone is not None:
            raise ConfigError(
                f"data.answers.group: group {alone!r} has one training photo, {self.groups[alone][0].images[0]}; a "
                "group has two or more: add the others, take metadata.group out of its row, or set the share to 0"
            )
        for answer, field in (("boxes", "objects"), ("summary", "summary"), ("group", "metadata.group")):
            if students and self.shares[answer] and not any(answer in self.possible(row) for row in students):
                raise ConfigError(
                    f"data.answers.{answer}: no training photo has a {field} to answer with; set the share to 0"
                )
        silent = next((row for row in students if not self.possible(row)), None)
        if silent is not None:
            raise ConfigError(
                f"data.answers: {silent.images[0]} has none of the answers with a share ({', '.join(self.asked)}); "
                "leave the photo out, or give it one"
            )
