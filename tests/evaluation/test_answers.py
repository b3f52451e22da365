"""Answers that the language model wrote: equal, field by field, malformed; beside the most frequent one's shares."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbu.evaluation.answers import WrittenAnswer, answer_lines, answer_metrics, overall_accuracy
from bbu.families.prompts import verdict_text

ONE, TWO = ({"bbox_2d": [1, 2, 30, 40], "label": name} for name in ("screw", "label"))
BOXES = json.dumps([ONE, TWO])
PASS, FAIL = verdict_text("pass", "the rule holds"), verdict_text("fail", "a loose screw")


def written(answer: str, truth: str, text: str, finished: bool = True, photos: int = 1) -> WrittenAnswer:
    return WrittenAnswer(answer, tuple(f"{n}.jpg" for n in range(photos)), truth, text, finished)


CASES = [  # answer, truth, written, finished → right, malformed, fields right, fields
    ("boxes", BOXES, BOXES, True, True, False, 10, 10),
    ("boxes", BOXES, BOXES.replace(", ", ",  "), True, True, False, 10, 10),  # white space does not count
    ("boxes", BOXES, BOXES.replace(", ", ","), True, False, False, 10, 10),  # the same JSON, written otherwise
    ("boxes", BOXES, json.dumps([ONE]), True, False, False, 5, 10),
    ("boxes", BOXES, json.dumps([TWO, ONE]), True, False, False, 8, 10),  # boxes are equal, labels changed places
    ("boxes", BOXES, json.dumps([ONE, {**TWO, "bbox_2d": [1, 2, 30, 41]}]), True, False, False, 9, 10),
    ("boxes", BOXES, BOXES[:-1], True, False, True, 0, 10),
    ("boxes", BOXES, BOXES, False, False, True, 10, 10),
    ("boxes", BOXES, json.dumps(ONE), True, False, True, 0, 10),
    ("boxes", BOXES, "nothing", True, False, True, 0, 10),
    ("boxes", "[]", "[]", True, True, False, 0, 0),
    ("summary", "2 × a, 1 × b; 3 objects", "2 × a, 1 × b; 3 objects", True, True, False, 3, 3),
    ("summary", "2 × a, 1 × b; 3 objects", "2 × a, 2 × b; 4 objects", True, False, False, 1, 3),
    ("summary", "2 × a; 2 objects", "", True, False, True, 0, 2),
    ("verdict", PASS, PASS, True, True, False, 2, 2),
    ("verdict", PASS, verdict_text("pass", "else"), True, False, False, 1, 2),
    ("verdict", PASS, "Verdict: pass", True, False, True, 0, 2),
    ("verdict", PASS, PASS.replace("\n", " "), True, False, True, 0, 2),  # white space, and not two lines any more
    ("boxes", "[]", "[1, 2]", True, False, True, 0, 0),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
def test_an_answer_is_right_or_not_malformed_or_not_and_has_fields(case: tuple[Any, ...]) -> None:
    *row, right, malformed, same, fields = case
    found = written(*row)
    assert (found.right, found.malformed) == (right, malformed)
    ours, theirs = found.fields()
    assert ((ours & theirs).total(), ours.total()) == (same, fields)


def test_a_group_is_json_photo_by_photo() -> None:
    truth = json.dumps([{"photo": 1, "objects": [ONE]}, {"photo": 2, "objects": []}])
    assert written("group", truth, truth, photos=2).right
    other = written("group", truth, truth.replace('"photo": 2', '"photo": 5'), photos=2)
    assert other.malformed, "there is no fifth photo"
    assert written("group", truth, "[]", photos=2).malformed, "no photo is answered for"


def test_shares_stand_beside_those_of_the_most_frequent_training_answer() -> None:
    summaries = ["1 × a; 1 object", "1 × a; 1 object", "2 × a; 2 objects"]
    said = [summaries[0], summaries[2], ""]
    rows = [written("summary", truth, text) for truth, text in zip(summaries, said, strict=True)]
    found = answer_metrics(rows, {"summary": summaries[0]})["summary"]
    assert (found["count"], found["accuracy"], found["accuracy_baseline"]) == (3, 1 / 3, 2 / 3)
    assert (found["number_accuracy"], found["field_accuracy"]) == (1 / 3, 2 / 6)
    assert found["malformed_rate"] == 1 / 3 and found["intervals"]["accuracy"][0] > 0
    assert overall_accuracy(rows) == 1 / 3 and overall_accuracy([]) is None


def test_a_malformed_verdict_is_a_fail() -> None:
    rows = [written("verdict", FAIL, "?"), written("verdict", FAIL, PASS), written("verdict", PASS, "?"),
            written("verdict", PASS, PASS)]  # fmt: skip
    found = answer_metrics(rows, {"verdict": PASS})["verdict"]
    assert found["verdict_accuracy"] == found["verdict_accuracy_baseline"] == 0.5
    assert (found["false_pass_rate"], found["false_fail_rate"], found["malformed_rate"]) == (0.5, 0.5, 0.5)
    assert "its verdict" in answer_lines({"verdict": found}) and "baseline 0.500" in answer_lines({"verdict": found})


def test_kinds_are_scored_apart_and_only_those_that_were_asked() -> None:
    found = answer_metrics([written("verdict", PASS, PASS), written("boxes", "[]", "[]")])
    assert list(found) == ["boxes", "verdict"] and found["boxes"]["field_accuracy"] is None
    assert answer_metrics([]) == {} and answer_lines({}) == ""


@given(st.sampled_from(["boxes", "group", "summary"]), st.text(alphabet='[]{}",:1 abpx;×', max_size=40))
def test_no_text_breaks_the_scores(answer: str, text: str) -> None:
    row = written(answer, BOXES, text, photos=2)
    found = answer_metrics([row])[answer]
    assert found["accuracy"] == float(row.right) and 0 <= found["field_accuracy"] <= 1
