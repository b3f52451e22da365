"""``bbu judge``: groups, verdicts and thresholds from files, and the rules shipped for the drawn photos."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bbu.cli import main
from bbu.jsonl import write_jsonl
from bbu.judging.groups import Group
from bbu.judging.rules import check_descriptions, read_rules
from bbu.judging.verdicts import judge
from bbu.records import PredictionRow
from data_conversion.cabinet.catalogue import LABELS
from data_conversion.cabinet.scene import arrange
from data_conversion.cabinet_photos import photo_seed, photo_stem, sites
from data_conversion.taxonomies import load_taxonomy
from tests.judging.random_groups import failed, seen

PROJECT = Path(__file__).resolve().parents[2]
RULES = """rules:
  - {name: no loose screw, description: screw/loose, at_most: 0}
  - {name: a label, description: label, at_least: 1}
"""
PHOTOS = {  # photo → annotated descriptions; the folder is the site
    "good/1.jpg": ["screw/tight", "label"],
    "good/2.jpg": ["screw/tight"],
    "loose/1.jpg": ["label", "screw/loose"],
    "loose/2.jpg": ["screw/tight"],
    "bare/1.jpg": ["screw/tight"],
    "bare/2.jpg": [],
}
UNSEEN = seen("loose/1.jpg", ("label", 0.9))
FOUND = [  # the loose screw has a low score
    seen("good/1.jpg", ("screw/tight", 0.9), ("label", 0.8)),
    seen("good/2.jpg", ("screw/tight", 0.9)),
    seen("loose/1.jpg", ("label", 0.9), ("screw/loose", 0.2)),
    seen("loose/2.jpg", ("screw/tight", 0.9)),
    seen("bare/1.jpg", ("screw/tight", 0.9)),
    seen("bare/2.jpg"),
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: rules.yaml, rows.jsonl with groups, found.jsonl."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rules.yaml").write_text(RULES, encoding="utf-8")
    boxes = [[1, 1, 9, 9], [11, 1, 19, 9]]
    rows = [
        {
            "images": [name],
            "width": 640,
            "height": 480,
            "objects": [{"desc": desc, "bbox_2d": box} for desc, box in zip(descs, boxes, strict=False)],
            "metadata": {"group": name.partition("/")[0]},
        }
        for name, descs in PHOTOS.items()
    ]
    write_jsonl("rows.jsonl", rows)
    write_jsonl("found.jsonl", FOUND)
    return tmp_path


def lines(path: str) -> dict[str, dict]:
    """Group → its line."""
    rows = map(json.loads, Path(path).read_text(encoding="utf-8").splitlines())
    return {row["group"]: row for row in rows}


def run(*arguments: str) -> int:
    return main(["judge", "found.jsonl", "--rules", "rules.yaml", *arguments])


def test_annotated_rows_give_groups_and_truth(place, capsys):
    assert run("--annotations", "rows.jsonl", "--output", "v.jsonl", "--metrics", "m.json") == 0
    verdicts = {name: (row["verdict"], row["truth"]) for name, row in lines("v.jsonl").items()}
    assert verdicts == {"bare": ("fail", "fail"), "good": ("pass", "pass"), "loose": ("pass", "fail")}
    metrics, shown = json.loads(Path("m.json").read_text()), capsys.readouterr().out
    assert (metrics["groups"], metrics["false_pass_rate"], metrics["false_fail_rate"]) == (3, 0.5, 0.0)
    assert "bare: a label: 0 × label in the group, at least 1 wanted" in shown
    assert "majority baseline           0.667" in shown


def test_known_verdicts_replace_the_truth_of_the_annotations(place):
    write_jsonl("truth.jsonl", [{"group": "bare", "verdict": "pass"}, {"group": "elsewhere", "verdict": "fail"}])
    assert run("--annotations", "rows.jsonl", "--verdicts", "truth.jsonl", "--output", "v.jsonl") == 0
    truth = {name: row.get("truth") for name, row in lines("v.jsonl").items()}
    assert truth == {"bare": "pass", "good": None, "loose": None}


def test_groups_that_are_not_judged_or_not_scored_are_counted_and_named(place, capsys):
    write_jsonl("found.jsonl", [*FOUND[:4], seen("good/3.jpg", ("screw/tight", 0.9))])
    assert run("--annotations", "rows.jsonl", "--group-by", "folder", "--output", "v.jsonl") == 0
    assert {name: row.get("truth") for name, row in lines("v.jsonl").items()} == {"good": None, "loose": "fail"}
    notes = capsys.readouterr().err
    assert "note: groups without any prediction, not judged: 1 (bare)" in notes
    assert "note: groups without a known verdict, not scored: 1 (good)" in notes


def test_a_row_without_annotation_gives_a_group_but_no_truth(place, capsys):
    rows = [json.loads(line) for line in Path("rows.jsonl").read_text(encoding="utf-8").splitlines()]
    rows[-1]["objects"] = None  # bare/2.jpg
    write_jsonl("rows.jsonl", rows)
    assert run("--annotations", "rows.jsonl", "--output", "v.jsonl") == 0
    truth = {name: row.get("truth") for name, row in lines("v.jsonl").items()}
    assert truth == {"bare": None, "good": "pass", "loose": "fail"}
    assert "not scored: 1 (bare)" in capsys.readouterr().err


def test_a_photo_annotated_twice_is_named(place, capsys):
    text = Path("rows.jsonl").read_text(encoding="utf-8")
    Path("rows.jsonl").write_text(text + text.splitlines()[0], encoding="utf-8")
    assert run("--annotations", "rows.jsonl", "--output", "v.jsonl") == 2
    assert "photo 'good/1.jpg' appears twice among the annotated rows" in capsys.readouterr().err


@pytest.mark.parametrize("group_by", ["folder", "^(.+)/"])
def test_groups_come_from_paths_too(place, group_by):
    assert run("--group-by", group_by, "--output", "v.jsonl") == 0
    verdicts = {name: row["verdict"] for name, row in lines("v.jsonl").items()}
    assert verdicts == {"bare": "fail", "good": "pass", "loose": "pass"}
    assert not any("truth" in row for row in lines("v.jsonl").values())


def test_a_description_that_nothing_has_needs_a_list_that_has_it(place, capsys):
    write_jsonl("found.jsonl", [UNSEEN, *(row for row in FOUND if row.images != UNSEEN.images)])
    assert run("--group-by", "folder", "--output", "v.jsonl") == 2  # no loose screw, or a misspelt rule?
    assert "name a list that has it (--descriptions" in capsys.readouterr().err
    Path("all.txt").write_text("screw/loose\nlabel\n", encoding="utf-8")
    assert run("--group-by", "folder", "--descriptions", "all.txt", "--output", "v.jsonl") == 0
    assert run("--annotations", "rows.jsonl", "--output", "v.jsonl") == 0


def test_the_same_files_give_the_same_bytes(place):
    for name in ("one", "two"):
        assert run("--annotations", "rows.jsonl", "--output", f"{name}.jsonl") == 0
        write_jsonl("found.jsonl", FOUND[::-1])
    assert Path("one.jsonl").read_bytes() == Path("two.jsonl").read_bytes()


def test_a_threshold_is_chosen_on_one_set_and_used_on_another(place, capsys):
    choose = ["--annotations", "rows.jsonl", "--choose-threshold", "judging.json", "--max-false-pass", "0.01"]
    assert run(*choose) == 0
    assert "threshold 0.2 keeps false passes to 0.01: 0 of 2 groups" in capsys.readouterr().out
    assert run("--annotations", "rows.jsonl", "--threshold-from", "judging.json", "--output", "v.jsonl") == 0
    assert lines("v.jsonl")["loose"]["verdict"] == "fail"
    Path("rules.yaml").write_text(RULES.replace("at_least: 1", "at_least: 2"), encoding="utf-8")
    assert run("--annotations", "rows.jsonl", "--threshold-from", "judging.json", "--output", "v.jsonl") == 2
    assert "judging.json: rules: the threshold was chosen for other rules" in capsys.readouterr().err


def test_a_bound_that_no_threshold_keeps_is_said_with_status_1_and_again_when_used(place, capsys):
    Path("rules.yaml").write_text(RULES[: RULES.index("  - {name: a label")], encoding="utf-8")
    write_jsonl("found.jsonl", [*FOUND[:2], UNSEEN, *FOUND[3:]])
    choose = ["--annotations", "rows.jsonl", "--choose-threshold", "judging.json", "--max-false-pass", "0.01"]
    assert run(*choose) == 1
    assert "no threshold keeps false passes to 0.01; the best is" in capsys.readouterr().out
    assert run("--annotations", "rows.jsonl", "--threshold-from", "judging.json", "--output", "v.jsonl") == 0
    assert "did not keep to the bound where it was chosen" in capsys.readouterr().err


def test_a_group_of_one_photo_is_an_error_that_names_it_unless_it_is_allowed(place, capsys):
    write_jsonl("found.jsonl", [*FOUND, seen("alone/1.jpg", ("label", 0.9))])
    assert run("--group-by", "folder", "--output", "v.jsonl") == 2
    error = capsys.readouterr().err
    assert "1 of 4 groups have one photo: alone (alone/1.jpg); correct metadata.group or --group-by" in error
    assert not Path("v.jsonl").exists()
    assert run("--group-by", "folder", "--allow-single-photos", "--output", "v.jsonl") == 0
    assert "bbu: note: 1 of 4 groups have one photo: alone (alone/1.jpg)" in capsys.readouterr().err
    assert lines("v.jsonl")["alone"]["verdict"] == "pass"


def test_photos_that_failed_or_were_not_predicted_fail_their_groups(place):
    write_jsonl("found.jsonl", [FOUND[0], failed("good/2.jpg"), *FOUND[2:5]])
    assert run("--annotations", "rows.jsonl", "--output", "v.jsonl") == 0
    verdicts = lines("v.jsonl")
    assert verdicts["good"]["reason"] == "good/2.jpg could not be read: is damaged"
    assert verdicts["bare"]["reason"] == "bare/2.jpg has no prediction"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "nothing to write: give --output"),
        (["--output", "v.jsonl"], "photos need groups: give --annotations"),
        (["--output", "v.jsonl", "--group-by", "("], "is not a regular expression"),
        (["--output", "v.jsonl", "--group-by", "^(x+)/"], "photo 'good/1.jpg' has no group"),
        (["--choose-threshold", "j.json", "--group-by", "folder"], "--max-false-pass RATE: give both or neither"),
        (["--output", "v.jsonl", "--group-by", "folder", "--max-false-pass", "0.1"], "give both or neither"),
        (
            ["--choose-threshold", "j.json", "--max-false-pass", "0.1", "--group-by", "folder"],
            "needs a truth: give --annotations or --verdicts",
        ),
        (["--output", "v.jsonl", "--group-by", "folder", "--max-false-pass", "2"], "must lie in [0, 1]"),
    ],
)
def test_what_cannot_be_done_is_one_line(place, capsys, arguments, words):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not Path("v.jsonl").exists()


def test_a_misspelt_description_is_an_error_not_a_pass(place, capsys):
    Path("rules.yaml").write_text(RULES.replace("screw/loose", "screw/lose"), encoding="utf-8")
    assert run("--annotations", "rows.jsonl", "--output", "v.jsonl") == 2
    error = capsys.readouterr().err
    assert "rules.yaml: rules[0].description: 'screw/lose'" in error and "the nearest is 'screw/loose'" in error


def test_the_report_page_takes_the_verdicts(place, capsys):
    assert run("--annotations", "rows.jsonl", "--output", "v.jsonl") == 0
    evaluate = ["evaluate", "rows.jsonl", "found.jsonl", "--bootstrap-samples", "0", "--verdicts", "v.jsonl"]
    assert main(evaluate) == 2
    assert "--verdicts shows verdicts in --report; give both" in capsys.readouterr().err
    assert main([*evaluate, "--report", "r.html"]) == 0
    assert "bare" in Path("r.html").read_text(encoding="utf-8")


def test_the_rules_of_the_drawn_photos_let_some_sites_pass_and_some_fail():
    taxonomy = load_taxonomy("bbu")
    rules = read_rules(PROJECT / "configs" / "rules" / "demo.yaml")
    check_descriptions(rules, map(taxonomy.normalise, LABELS), "demo.yaml")
    names = sites({"val": 120}, 17)
    groups: dict[str, list[PredictionRow]] = {}
    for index in range(120):
        name = f"{photo_stem('val', index)}.jpg"
        parts = arrange(photo_seed(17, "val", index).spawn(2)[0]).parts
        groups.setdefault(names[name], []).append(seen(name, *((taxonomy.normalise(p.label), 1.0) for p in parts)))
    verdicts = judge([Group(name, tuple(photos)) for name, photos in groups.items()], rules, 0.5)
    assert 0.25 < sum(one.verdict == "pass" for one in verdicts) / len(verdicts) < 0.75
