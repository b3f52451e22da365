"""What training samples are asked for: by shares, among what a photo has."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from bbu.config import AnswersConfig
from bbu.data.sampling.answers import Answers
from bbu.errors import ConfigError
from bbu.records import ObjectRow, Row

PART = ObjectRow("part", "bbox_2d", (1, 2, 3, 4))


def photo(number: int, *, group: str = "", summary: str | None = None, annotated: bool = True) -> Row:
    metadata = {"group": group} if group else {}
    objects = (PART,) if annotated else ()
    return Row((f"{number}.png",), objects, 20, 10, summary=summary, metadata=metadata, annotated=annotated)


SITE = [photo(number, group="site", summary="words") for number in range(4)]


def test_the_shares_are_those_of_the_config() -> None:
    answers = Answers(AnswersConfig(boxes=2, summary=1, group=1), SITE, seed=3)
    drawn = Counter(answers.draw(SITE[0], epoch, number) for epoch in range(20) for number in range(100))
    assert drawn["boxes"] == pytest.approx(1000, abs=80) and drawn["summary"] == pytest.approx(500, abs=70)
    assert drawn["group"] == pytest.approx(500, abs=70)


def test_a_draw_is_a_function_of_seed_epoch_and_number() -> None:
    config = AnswersConfig(boxes=1, summary=1, group=1)
    one, other = (Answers(config, SITE, seed) for seed in (3, 4))
    places = [(epoch, number) for epoch in range(3) for number in range(30)]
    drawn = [one.draw(SITE[1], *place) for place in places]
    assert drawn == [Answers(config, SITE, 3).draw(SITE[1], *place) for place in reversed(places)][::-1]
    assert drawn != [other.draw(SITE[1], *place) for place in places]


def test_a_photo_is_asked_only_for_what_it_has() -> None:
    alone, silent, bare = photo(5, summary="words"), photo(6), photo(7, summary="words", annotated=False)
    mute = photo(8, group="site", annotated=False, summary="words")  # the others of its site answer without it
    answers = Answers(AnswersConfig(boxes=1, summary=1, group=1), [*SITE, alone, silent, bare, mute], seed=0)
    assert [answers.possible(row) for row in (SITE[0], alone, silent, bare, mute)] == [
        ["boxes", "summary", "group"], ["boxes", "summary"], ["boxes"], ["summary"], ["summary"]
    ]  # fmt: skip
    assert {answers.draw(bare, 0, number) for number in range(20)} == {"summary"}
    assert all(row.annotated for row in answers.group(SITE[0], 0, 0).context)


def test_a_group_shows_its_other_photos_in_order_and_no_more_than_fit_a_turn() -> None:
    whole = Answers(AnswersConfig(group=1), SITE, seed=1).group(SITE[2], 4, 2)
    assert whole.student is SITE[2] and whole.answer == "group" and whole.teachers == ()
    assert list(whole.context) == [SITE[0], SITE[1], SITE[3]]
    some = Answers(AnswersConfig(group=1, group_photos=3), SITE, seed=1)
    shown = [[row.images[0] for row in some.group(SITE[2], 4, number).context] for number in range(30)]
    assert all(len(names) == 2 and names == sorted(names) and "2.png" not in names for names in shown)
    assert len({tuple(names) for names in shown}) == 3, "in time, all of them"


def test_a_tile_is_asked_for_its_boxes() -> None:
    from bbu.tiles import Tile

    tile = replace(SITE[0], tile=Tile((0, 0, 10, 10), (20, 10)), summary=None)
    answers = Answers(AnswersConfig(boxes=1, summary=1, group=1), [*SITE, tile], seed=0)
    assert answers.possible(tile) == ["boxes"]
    with pytest.raises(ConfigError, match=r"data\.answers\.boxes: is 0, but tiles are asked for boxes alone"):
        Answers(AnswersConfig(boxes=0, summary=1), [*SITE, tile], seed=0)


@pytest.mark.parametrize(
    "config, rows, message",
    [
        (AnswersConfig(boxes=0), SITE, r"data\.answers: every share is 0"),
        (AnswersConfig(group=1), [*SITE, photo(9, group="far")], r"group 'far' has one training photo, 9\.png; "),
        (AnswersConfig(summary=1), [photo(1), photo(2)], r"data\.answers\.summary: no training photo has a summary"),
        (AnswersConfig(group=1), [photo(1), photo(2)], r"data\.answers\.group: no training photo has a metadata\.grou"),
        (AnswersConfig(), [photo(1), photo(2, annotated=False)], r"data\.answers: 2\.png has none of the answers"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_named(config: AnswersConfig, rows: list[Row], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Answers(config, rows, seed=0)
