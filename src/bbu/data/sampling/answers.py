"""What each training sample is asked for: its objects, a summary, or something about its group. Needs no torch.

A choice is a function of (seed, epoch, sample number) alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy

import numpy as np

from bbu.config import AnswersConfig
from bbu.data.sampling.groups import groups_of
from bbu.errors import ConfigError
from bbu.families.prompts import ANSWERS, ON_GROUPS, verdict_text
from bbu.judging.truth import descriptions_of, read_verdict_source
from bbu.records import FewShotSample, Row

ANSWER_STREAM = 8  # random stream; 1 to 7 are the order's, teachers', views', context's, packs' and conversations'
NEEDS = {  # what a photo needs to be asked
    "boxes": "objects",
    "summary": "summary",
    "group": "metadata.group",
    "verdict": "group with a verdict",
}


class Answers:
    """Draws the answer of each training sample by the shares of a config.

    A photo is asked only for what it has: boxes if it is annotated, a summary if it has one, the group's if the group
    has another annotated photo, a verdict if one is known of its group. The shares of these decide among them.

    Args:
        config: shares, and the most photos of a turn about a group.
        students: training photos; a tile is not its photo, so it has no group.
        seed: run seed.

    Raises:
        ConfigError: a share is above 0 and no photo has such an answer, a group has one photo, or a photo has no answer
            with a share; or there are tiles and no share of boxes.
        UserError: the file of verdicts or rules, by name, field and fix.
    """

    def __init__(self, config: AnswersConfig, students: Sequence[Row], seed: int) -> None:
        self.config, self.seed = config, seed
        self.shares = {answer: getattr(config, answer) for answer in ANSWERS}
        whole = [row for row in students if row.tile is None]
        self.groups = groups_of(whole) if config.group or config.verdict else {}
        self.verdicts = read_verdict_source(config.judged_by, descriptions_of(whole)) if config.verdict else None
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
        has = {
            "boxes": row.annotated,
            "summary": bool(row.summary),
            "group": bool(self._others("group", row)),
            "verdict": self._judged(row),
        }
        return [answer for answer in self.asked if has[answer]]

    def draw(self, row: Row, epoch: int, number: int) -> str:
        """The answer of sample ``number`` in ``epoch``, a key of ANSWERS."""
        possible = self.possible(row)
        if len(possible) == 1:
            return possible[0]
        shares = np.array([self.shares[answer] for answer in possible])
        return possible[int(self._random(epoch, number).choice(len(possible), p=shares / shares.sum()))]

    def on_group(self, answer: str, row: Row, epoch: int, number: int) -> FewShotSample:
        """The sample that answers for a photo's group, the photo last; of a larger group some photos fit the turn.

        Args:
            answer: one of ON_GROUPS.
        """
        others = self._others(answer, row)
        random = self._random(epoch, number)
        random.random()  # the draw of the answer
        chosen = sorted(random.permutation(len(others))[: self.config.group_photos - 1].tolist())
        return self._on_group(answer, [*(others[place] for place in chosen), row])

    def questions(self, rows: Sequence[Row]) -> Iterator[FewShotSample]:
        """Everything that other photos can be asked for, once; of a group, as many photos as fit a turn.

        Verdicts on whole groups that do not fit are left out.
        """
        asking = copy(self)
        asking.groups = groups_of(rows) if {*ON_GROUPS} & {*self.asked} else {}
        for row in rows:
            for answer in asking.possible(row):
                if answer not in ON_GROUPS:
                    yield FewShotSample(row, answer=answer)
        for answer in (answer for answer in ON_GROUPS if answer in self.asked):
            for group in asking.groups.values():
                last = next((row for row in reversed(group) if answer in asking.possible(row)), None)
                if last is not None:
                    shown = [*asking._others(answer, last), last]
                    fits = len(shown) <= self.config.group_photos
                    if fits or not (answer == "verdict" and self.verdicts and self.verdicts.whole_groups):
                        yield self._on_group(answer, shown[-self.config.group_photos :])

    def _on_group(self, answer: str, rows: Sequence[Row]) -> FewShotSample:
        text = verdict_text(*self.verdicts.on(rows)) if self.verdicts and answer == "verdict" else ""
        return FewShotSample(rows[-1], context=tuple(rows[:-1]), answer=answer, text=text)

    def _random(self, epoch: int, number: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, ANSWER_STREAM, epoch, number))

    def _others(self, answer: str, row: Row) -> list[Row]:
        """Photos shown with one in a turn about its group; none for a tile, or a photo that cannot be asked.

        They are annotated, unless the group's verdict was given by somebody.
        """
        every = answer == "verdict" and self.verdicts is not None and self.verdicts.whole_groups
        if row.tile is not None or not (every or row.annotated):
            return []
        return [
            other
            for other in self.groups.get(row.group, ())
            if (every or other.annotated) and other.images != row.images
        ]

    def _judged(self, row: Row) -> bool:
        """Whether the verdict on a photo's group is known."""
        others = self._others("verdict", row)
        return bool(others) and self._known([*others, row])

    def _known(self, rows: Sequence[Row]) -> bool:
        return self.verdicts is not None and self.verdicts.knows(rows)

    def _check(self, students: Sequence[Row]) -> None:
        if not self.asked:
            raise ConfigError("data.answers: every share is 0, so there is nothing to answer; set one of them above 0")
        about_groups = next((answer for answer in ON_GROUPS if self.shares[answer]), "")
        askable = (group for group, rows in self.groups.items() if self.shares["group"] or self._known(rows))
        alone = next((group for group in askable if len(self.groups[group]) == 1), None)
        if alone is not None:
            raise ConfigError(
                f"data.answers.{about_groups}: group {alone!r} has one training photo, "
                f"{self.groups[alone][0].images[0]}; a group has two or more: add the others, take metadata.group out "
                "of its row, or set the share to 0"
            )
        for answer in self.asked:
            if students and not any(answer in self.possible(row) for row in students):
                raise ConfigError(
                    f"data.answers.{answer}: no training photo has a {NEEDS[answer]} to answer with; set the share to 0"
                )
        silent = next((row for row in students if not self.possible(row)), None)
        if silent is not None:
            raise ConfigError(
                f"data.answers: {silent.images[0]} has none of the answers with a share ({', '.join(self.asked)}); "
                "leave the photo out, or give it one"
            )
        self._check_sizes()

    def _check_sizes(self) -> None:
        """A verdict that was given on a whole group cannot be learned from some of its photos."""
        most = self.config.group_photos
        for group, rows in self.groups.items() if self.verdicts and self.verdicts.whole_groups else ():
            if len(rows) > most and self._judged(rows[0]):
                raise ConfigError(
                    f"data.answers.group_photos: group {group!r} has {len(rows)} photos and a turn {most}; its verdict "
                    f"is on all of them, so raise it to {len(rows)}, or take the group out of the verdicts"
                )
