"""What training samples are asked for: by shares, among what a photo has."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from bbu.config import AnswersConfig
from bbu.data.sampling.answers import Answers
from bbu.errors import ConfigError, UserError
from bbu.records import FewShotSample, ObjectRow, Row

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
    assert all(row.annotated for row in answers.on_group("group", SITE[0], 0, 0).context)


def test_a_group_shows_its_other_photos_in_order_and_no_more_than_fit_a_turn() -> None:
    whole = Answers(AnswersConfig(group=1), SITE, seed=1).on_group("group", SITE[2], 4, 2)
    assert whole.student is SITE[2] and whole.answer == "group" and whole.teachers == ()
    assert list(whole.context) == [SITE[0], SITE[1], SITE[3]]
    some = Answers(AnswersConfig(group=1, group_photos=3), SITE, seed=1)
    shown = [[row.images[0] for row in some.on_group("group", SITE[2], 4, number).context] for number in range(30)]
    assert all(len(names) == 2 and names == sorted(names) and "2.png" not in names for names in shown)
    assert len({tuple(names) for names in shown}) == 3, "in time, all of them"


def test_a_tile_is_asked_for_its_boxes() -> None:
    from bbu.tiles import Tile

    tile = replace(SITE[0], tile=Tile((0, 0, 10, 10), (20, 10)), summary=None)
    answers = Answers(AnswersConfig(boxes=1, summary=1, group=1), [*SITE, tile], seed=0)
    assert answers.possible(tile) == ["boxes"]
    with pytest.raises(ConfigError, match=r"data\.answers\.boxes: is 0, but tiles are asked for boxes alone"):
        Answers(AnswersConfig(boxes=0, summary=1), [*SITE, tile], seed=0)


RULES = """rules:
  - {name: at most five parts, description: part, at_most: 5}
"""


def judged(tmp_path: Path, text: str, name: str = "rules.yaml", **shares: float) -> AnswersConfig:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return AnswersConfig(verdict=1, judged_by=str(path), **shares)  # type: ignore[arg-type]


def verdict_lines(*rows: dict[str, str]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_rules_judge_the_annotated_photos_that_are_shown(tmp_path: Path) -> None:
    mute = photo(8, group="site", annotated=False, summary="words")
    answers = Answers(judged(tmp_path, RULES, summary=1), [*SITE, mute], seed=1)
    assert (answers.possible(SITE[0]), answers.possible(mute)) == (["boxes", "summary", "verdict"], ["summary"])
    sample = answers.on_group("verdict", SITE[1], 0, 0)
    assert sample.text == "Verdict: pass\nReason: the rule holds"
    assert [*sample.context, sample.student] == [SITE[0], SITE[2], SITE[3], SITE[1]]
    crowded = [replace(row, objects=(PART, PART)) for row in SITE]
    strict = Answers(judged(tmp_path, RULES), crowded, seed=1).on_group("verdict", crowded[0], 0, 0)
    assert strict.text.startswith("Verdict: fail\nReason: at most five parts: 8 × part in the group")


def test_given_verdicts_are_on_whole_groups_annotated_or_not(tmp_path: Path) -> None:
    text = verdict_lines({"group": "site", "verdict": "fail", "reason": "a loose screw"})
    mute = photo(8, group="site", annotated=False)
    far = [photo(number, group="far") for number in (20, 21)]  # nobody gave a verdict
    answers = Answers(judged(tmp_path, text, "known.jsonl"), [*SITE, mute, *far], seed=1)
    assert answers.possible(mute) == ["verdict"] and answers.possible(far[0]) == ["boxes"]
    sample = answers.on_group("verdict", mute, 0, 0)
    assert sample.text == "Verdict: fail\nReason: a loose screw" and list(sample.context) == SITE
    lone = photo(30, group="alone")  # of a group that is never asked
    assert Answers(judged(tmp_path, text, "known.jsonl"), [*SITE, lone], seed=1).possible(lone) == ["boxes"]
    few = replace(judged(tmp_path, text, "known.jsonl"), group_photos=4)
    with pytest.raises(ConfigError, match=r"group_photos: group 'site' has 5 photos and a turn 4; .* raise it to 5"):
        Answers(few, [*SITE, mute], seed=1)


def test_other_photos_are_asked_everything_once(tmp_path: Path) -> None:
    answers = Answers(judged(tmp_path, RULES, boxes=1, summary=1, group=1), SITE, seed=1)
    others = [photo(30 + n, group="x", summary="words" if n else None) for n in range(3)]
    alone, bare = photo(40, group="y"), photo(41, annotated=False)
    asked = [(q.answer, q.student.images[0], len(q.context)) for q in answers.questions([*others, alone, bare])]
    assert sorted(asked) == [
        ("boxes", "30.png", 0), ("boxes", "31.png", 0), ("boxes", "32.png", 0), ("boxes", "40.png", 0),
        ("group", "32.png", 2), ("summary", "31.png", 0), ("summary", "32.png", 0), ("verdict", "32.png", 2),
    ]  # fmt: skip
    assert list(Answers(AnswersConfig(), SITE, 1).questions([alone, bare])) == [FewShotSample(alone)]


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (RULES.replace("n: part", "n: parts"), "r.yaml", r"'parts' is no known description; the nearest is 'part'"),
        (verdict_lines({"group": "site", "verdict": "ok", "reason": "x"}), "v.jsonl", "must be 'pass' or 'fail', is"),
        (
            verdict_lines({"group": "site", "verdict": "pass"}),
            "v.jsonl",
            ":1: reason: is missing; a verdict is learned",
        ),
        (verdict_lines({"group": "site", "verdict": "pass", "reason": "a\nb"}), "v.jsonl", "must be one line"),
        (
            verdict_lines({"group": "else", "verdict": "pass", "reason": "a"}),
            "v.jsonl",
            "no training photo has a group",
        ),
        ("", "v.txt", "neither rules"),
    ],
)
def test_a_file_that_gives_no_verdict_is_named(tmp_path: Path, text: str, name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Answers(judged(tmp_path, text, name), SITE, seed=0)


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
