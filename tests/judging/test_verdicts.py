"""Verdicts: when a group passes, what the evidence shows, and that nothing is passed unseen."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from bbu.errors import UserError
from bbu.jsonl import write_jsonl
from bbu.judging.groups import Group, as_predicted, group_photos, with_missing
from bbu.judging.rules import Rule
from bbu.judging.verdicts import judge, read_truth, read_verdicts
from bbu.records import ObjectRow, PredictionRow, Row
from tests.judging.random_groups import failed, group, random_groups, random_rule, seen

NO_LOOSE = Rule("no loose screw", "screw/loose", at_most=0)
FOUR = Rule("four screws", "screw", at_least=4, per="photo")
ONE_LABEL = Rule("one label", "label", at_least=1, at_most=1)
GOOD = [("screw/tight", 0.9)] * 4


def verdict(*photos: PredictionRow, rules: tuple[Rule, ...], threshold: float = 0.5):
    (found,) = judge([group("site", *photos)], rules, threshold)
    return found


def test_a_group_that_keeps_all_rules_passes():
    found = verdict(seen("a.jpg", *GOOD, ("label", 0.8)), seen("b.jpg", *GOOD), rules=(NO_LOOSE, FOUR, ONE_LABEL))
    assert found.to_json() == {
        "group": "site", "images": ["a.jpg", "b.jpg"], "verdict": "pass", "reason": "all 3 rules hold", "evidence": [],
    }  # fmt: skip


def test_one_loose_screw_in_any_photo_fails_with_its_box():
    photos = seen("a.jpg", *GOOD), seen("b.jpg", *GOOD, ("screw/loose", 0.7), ("screw/loose", 0.49))
    row = verdict(*photos, rules=(NO_LOOSE, FOUR)).to_json()
    assert row["verdict"] == "fail"
    assert row["reason"] == "no loose screw: 1 × screw/loose in the group, at most 0 wanted (b.jpg: 1)"
    box = {"bbox_2d": [40.0, 0.0, 48.0, 8.0], "desc": "screw/loose", "score": 0.7}
    assert row["evidence"] == [
        {
            "rule": "no loose screw", "description": "screw/loose", "per": "group", "at_most": 0, "min_score": 0.5,
            "photos": [{"image": "b.jpg", "count": 1, "boxes": [box]}],
        }
    ]  # fmt: skip


def test_a_rule_for_each_photo_shows_only_the_photos_that_break_it():
    found = verdict(seen("a.jpg", *GOOD), seen("b.jpg", *GOOD[:3]), seen("c.jpg"), rules=(FOUR,))
    assert found.reason == "four screws: screw: 3 in b.jpg, 0 in c.jpg; at least 4 wanted in each photo"
    assert [photo["count"] for photo in found.to_json()["evidence"][0]["photos"]] == [3, 0]


def test_too_few_in_the_group_shows_every_photo_that_was_searched():
    found = verdict(seen("a.jpg"), seen("b.jpg", ("label", 0.2)), rules=(ONE_LABEL,))
    assert found.reason == "one label: 0 × label in the group, exactly 1 wanted"
    photos = found.to_json()["evidence"][0]["photos"]
    assert photos == [{"image": "a.jpg", "count": 0, "boxes": []}, {"image": "b.jpg", "count": 0, "boxes": []}]


def test_counts_over_the_group_add_up_photos():
    two = seen("a.jpg", ("label", 0.9)), seen("b.jpg", ("label/torn", 0.9))
    assert verdict(*two, rules=(ONE_LABEL,)).reason.startswith("one label: 2 × label in the group")


def test_the_score_of_a_rule_overrules_the_threshold():
    photo = seen("a.jpg", ("screw/loose", 0.4))
    strict = Rule("strict", "screw/loose", at_most=0, min_score=0.1)
    assert verdict(photo, rules=(NO_LOOSE,)).verdict == "pass"
    assert verdict(photo, rules=(NO_LOOSE,), threshold=0.4).verdict == "fail"
    assert verdict(photo, rules=(strict,), threshold=0.9).verdict == "fail"


def test_a_photo_that_could_not_be_read_fails_its_group_and_no_other():
    groups = [group("x", seen("a.jpg", *GOOD), failed("b.jpg")), group("y", seen("c.jpg", *GOOD))]
    first, second = judge(groups, (NO_LOOSE,), 0.5)
    assert (first.verdict, second.verdict) == ("fail", "pass")
    assert first.reason == "b.jpg could not be read: is damaged"
    assert first.to_json()["evidence"] == [{"rule": None, "photos": [{"image": "b.jpg", "error": "is damaged"}]}]


def test_what_a_lost_photo_could_have_is_not_held_against_the_group_but_a_defect_is():
    rules = (NO_LOOSE, FOUR, ONE_LABEL)
    found = verdict(seen("a.jpg", *GOOD, ("screw/loose", 0.9)), failed("b.jpg"), rules=rules)
    assert [item.rule for item in found.evidence] == [None, NO_LOOSE]
    two_labels = verdict(seen("a.jpg", ("label", 0.9), ("label", 0.9)), failed("b.jpg"), rules=(ONE_LABEL,))
    assert [item.rule for item in two_labels.evidence] == [None, ONE_LABEL]


def test_a_long_list_of_photos_is_cut_in_the_reason_only():
    photos = [seen(f"{n}.jpg") for n in range(6)]
    found = verdict(*photos, rules=(FOUR,))
    assert "0 in 2.jpg, and 3 more" in found.reason and "3.jpg" not in found.reason
    assert len(found.to_json()["evidence"][0]["photos"]) == 6


@pytest.mark.parametrize("seed", range(30))
def test_a_verdict_is_what_counting_by_hand_gives(seed):
    draw = random.Random(seed)
    rules = [random_rule(draw, f"rule {n}") for n in range(draw.randint(1, 4))]
    groups, threshold = random_groups(seed), draw.randint(0, 10) / 10
    for one, found in zip(groups, judge(groups, rules, threshold), strict=True):
        holds = all(photo.error is None for photo in one.photos)
        for rule in rules:
            least = threshold if rule.min_score is None else rule.min_score
            counts = Counter(
                photo.images[0]
                for photo in one.photos
                for item in photo.predictions
                if item.score >= least and (item.desc + "/").startswith(rule.description + "/")
            )
            each = [counts[image] for image in one.images] if rule.per == "photo" else [counts.total()]
            least_count, most_count = rule.at_least or 0, 99 if rule.at_most is None else rule.at_most
            holds &= all(least_count <= count <= most_count for count in each)
        assert (found.verdict == "pass") is holds
        assert bool(found.evidence) is not holds


@pytest.mark.parametrize("seed", range(10))
def test_the_order_of_lines_and_boxes_changes_no_byte(seed):
    draw = random.Random(seed)
    rules = [random_rule(draw, f"rule {n}") for n in range(3)]
    rows = [photo for one in random_groups(seed) for photo in one.photos]
    shuffled = [
        replace(row, predictions=tuple(draw.sample(row.predictions, len(row.predictions))))
        for row in draw.sample(rows, len(rows))
    ]

    def written(photos: list[PredictionRow]) -> list[str]:
        groups = group_photos(photos, lambda name: name[:2])
        return [json.dumps(item.to_json()) for item in judge(groups, rules, 0.3)]

    assert written(rows) == written(shuffled)


# ---------------------------------------------------------------- groups


def test_groups_and_their_photos_are_in_order_of_name():
    rows = [seen("b/2.jpg"), seen("a/9.jpg"), seen("b/1.jpg")]
    found = group_photos(rows, lambda name: name[0])
    assert [(one.name, one.images) for one in found] == [("a", ["a/9.jpg"]), ("b", ["b/1.jpg", "b/2.jpg"])]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([seen("a.jpg"), seen("a.jpg")], "photo 'a.jpg' appears twice among the predictions"),
        ([seen("none.jpg")], "photo 'none.jpg' has no group: give rows of it"),
        ([], "there are no predictions to judge"),
    ],
)
def test_photos_that_cannot_be_grouped_are_named(rows, words):
    with pytest.raises(UserError, match=words):
        group_photos(rows, lambda name: None if name == "none.jpg" else "g")


def test_an_annotated_photo_without_prediction_fails_its_group_but_adds_none():
    groups = [Group("x", (seen("xb.jpg"),))]
    (found,) = with_missing(groups, ["xa.jpg", "xb.jpg", "yc.jpg", "-"], lambda name: {"-": None}.get(name, name[0]))
    assert found.images == ["xa.jpg", "xb.jpg"]
    (judged,) = judge([found], (NO_LOOSE,), 0.5)
    assert judged.reason == "xa.jpg has no prediction"


def test_annotated_objects_count_at_any_score():
    objects = (ObjectRow("screw/loose", "bbox_2d", (1, 2, 5, 6)), ObjectRow("cable", "line", (0, 0, 9, 0)))
    photo = as_predicted(Row(("a.jpg",), objects, 10, 10))
    sure = Rule("sure", "screw/loose", at_most=0, min_score=1.0)
    assert verdict(photo, rules=(sure,), threshold=1.0).verdict == "fail"
    assert photo.predictions[1].box == (0, 0, 9, 0)


# ---------------------------------------------------------------- the truth as a file


def test_known_verdicts_are_read(tmp_path: Path):
    path = tmp_path / "truth.jsonl"
    path.write_text('{"group": "a", "verdict": "pass"}\n\n{"group": "b", "verdict": "fail"}\n', encoding="utf-8")
    assert read_truth(path) == {"a": "pass", "b": "fail"}


@pytest.mark.parametrize("seed", range(5))
def test_written_verdicts_are_read_back(seed, tmp_path: Path):
    rules = [random_rule(random.Random(seed), f"rule {n}") for n in range(3)]
    verdicts = judge(random_groups(seed), rules, 0.3, {"site-00": "pass"})
    write_jsonl(tmp_path / "v.jsonl", verdicts)
    assert read_verdicts(tmp_path / "v.jsonl") == [json.loads(json.dumps(one.to_json())) for one in verdicts]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"verdict": "ok"}, "verdict: must be 'pass' or 'fail', is 'ok'"),
        ({"truth": None}, "truth: must be 'pass' or 'fail', is None"),
        ({"images": []}, "images: needs at least one path"),
        ({"evidence": {}}, "evidence: must be a list"),
        ({"evidence": [{"rule": "r"}]}, "evidence[0].photos: is missing"),
        ({"evidence": [{"rule": "r", "photos": [{"count": 1}]}]}, "evidence[0].photos[0].image: is missing"),
        (
            {
                "evidence": [
                    {"rule": "r", "photos": [{"image": "a", "boxes": [{"bbox_2d": [1], "desc": "a", "score": 1}]}]}
                ]
            },
            "evidence[0].photos[0].boxes[0].bbox_2d: needs at least 4 numbers",
        ),
    ],
)
def test_a_line_that_is_no_verdict_is_named(tmp_path: Path, change, words: str):
    row = {"group": "a", "images": ["a.jpg"], "verdict": "pass", "reason": "r", "evidence": []}
    (tmp_path / "v.jsonl").write_text(json.dumps(row | change), encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_verdicts(tmp_path / "v.jsonl")
    assert str(error.value).startswith(f"{tmp_path / 'v.jsonl'}:1: {words}")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"group": "b", "verdict": "ok"}', "verdict: must be 'pass' or 'fail', is 'ok'"),
        ('{"group": "b", "verdict": true}', "verdict: must be 'pass' or 'fail', is True"),
        ('{"group": "b", "verdict": ["pass"]}', "verdict: must be"),
        ('{"group": "", "verdict": "pass"}', "group: must be non-empty text"),
        ('{"group": "b"}', "verdict: is missing"),
        ('{"group": "b", "verdict": "pass", "why": 1}', "why: is not a field"),
        ('{"group": "a", "verdict": "pass"}', "group: 'a' has an earlier line"),
        ("{", "is not valid JSON"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, words: str):
    path = tmp_path / "truth.jsonl"
    path.write_text('{"group": "a", "verdict": "pass"}\n' + line, encoding="utf-8")
    with pytest.raises(UserError) as error:
        read_truth(path)
    assert str(error.value).startswith(f"{path}:2: ") and words in str(error.value)
