"""Every finding: what it takes, what it counts, where it points. A clean data set has none."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from bbu.doctor.examination import split_findings
from bbu.doctor.findings import CODES, ERROR, INFO, WARNING, by_severity
from bbu.doctor.reading import Rows, Sample
from bbu.families.registry import backbone_class
from bbu.images import open_image
from bbu.jsonl import write_jsonl
from bbu.records import FewShotSample, Row
from bbu.taxonomy import MirrorRules
from tests.doctor.small_set import SIZE, Change, DataSet, row, the
from tests.tiny import PAIR


@pytest.fixture(params=PAIR)
def family(request: pytest.FixtureRequest) -> str:
    """Every test of the small data set runs over two families."""
    return str(request.param)


def end_of_turn(data: DataSet) -> str:
    return backbone_class(data.config.model.family).conversation.end


BREAKS: dict[str, tuple[Change, int, str]] = {}  # code → how it comes about, count, what an example names


def breaks(code: str, count: int, example: str) -> object:
    def register(change: Change) -> Change:
        BREAKS[code] = change, count, example
        return change

    return register


# ---------------------------------------------------------------- rows


@breaks("bad_row", 2, "train.jsonl:13")
def _(data: DataSet) -> None:
    data.rows["train"].append('{"images": ["x.png"], "width": ')
    data.rows["val"].append({**row("train0.png"), "hight": 3})


@breaks("bad_conversation", 1, "talks.jsonl:2: messages: must be an optional system message")
def _(data: DataSet) -> None:
    ask, say = {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}
    data.config.data.replay.path, data.config.data.replay.share = str(data.folder / "talks.jsonl"), 0.1
    write_jsonl(data.folder / "talks.jsonl", [{"messages": [ask, say]}, {"messages": [ask]}])
    data.config.training.max_steps = 7


@breaks("box_outside_photo", 1, "train2.png: screw/tight: [10, 10, 70, 600] in 168x140")
def _(data: DataSet) -> None:
    data.rows["train"][2]["objects"][0]["bbox_2d"][3] = 600


@breaks("not_one_photo", 1, "train.jsonl:1: train0.png: 2 photos")
def _(data: DataSet) -> None:
    data.rows["train"][0]["images"].append("train1.png")


@breaks("special_token", 1, "label{end}")
def _(data: DataSet) -> None:
    data.rows["train"][4]["objects"][0]["desc"] = f"label{end_of_turn(data)}"


@breaks("no_val_split", 1, "")
def _(data: DataSet) -> None:
    data.rows["val"].clear()
    data.config.training.eval_every = 3


@breaks("no_evaluation_split", 1, "")
def _(data: DataSet) -> None:
    data.rows["test"].clear()


@breaks("no_training_photo", 1, "")
def _(data: DataSet) -> None:
    data.rows["train"].clear()


@breaks("unanswerable", 1, "data.answers.summary: no training photo has a summary")
def _(data: DataSet) -> None:
    data.config.data.answers.summary = 0.5


@breaks("no_teachers", 1, "")
def _(data: DataSet) -> None:
    data.config.data.episodes.counts = {0: 0.5, 2: 0.5}


@breaks("no_object", 1, "")
def _(data: DataSet) -> None:
    for one in data.rows["train"]:
        one["objects"] = []


@breaks("split_without_objects", 1, "")
def _(data: DataSet) -> None:
    for one in data.rows["val"]:
        one["objects"] = []


@breaks("photos_without_objects", 1, "val.jsonl:2: val1.png")
def _(data: DataSet) -> None:
    data.rows["val"][1]["objects"] = []


@breaks("unmeasured_description", 1, "label/legible: 12 in train")
def _(data: DataSet) -> None:
    for one in data.rows["val"]:
        one["objects"] = one["objects"][:1]


# ---------------------------------------------------------------- photos


@breaks("photo_missing", 2, "train.jsonl:1: train0.png")
def _(data: DataSet) -> None:
    (data.folder / "train0.png").unlink()
    (data.folder / "val2.png").unlink()


@breaks("photo_outside_root", 1, "../elsewhere.png")
def _(data: DataSet) -> None:
    data.rows["train"][3]["images"] = ["../elsewhere.png"]


@breaks("photo_unreadable", 2, "train1.png: train1.png: is damaged or cut off")
def _(data: DataSet) -> None:
    whole = (data.folder / "train1.png").read_bytes()
    (data.folder / "train1.png").write_bytes(whole[: len(whole) // 2])
    (data.folder / "test0.png").write_text("no photo")


@breaks("size_mismatch", 1, "the row says 168x140, the photo shows 140x168, EXIF orientation 6")
def _(data: DataSet) -> None:
    exif = Image.Exif()
    exif[274] = 6
    data.photo("turned.jpg", 100, exif=exif)
    data.rows["train"][0]["images"] = ["turned.jpg"]


@breaks("photo_too_long", 1, "3000x10")
def _(data: DataSet) -> None:
    data.photo("long.png", 100, (3000, 10))
    data.rows["train"][0] = {**row("long.png", (3000, 10)), "objects": []}


# ---------------------------------------------------------------- boxes


@breaks("tiny_objects", 2, "screw/tight: ")
def _(data: DataSet) -> None:
    data.rows["train"][0]["objects"][0]["bbox_2d"] = [10, 10, 30, 60]
    data.rows["val"][0]["objects"][1]["bbox_2d"] = [90, 70, 115, 90]


@breaks("more_objects_than_queries", 1, "train5.png: 11 objects")
def _(data: DataSet) -> None:
    data.rows["train"][5]["objects"] = [
        {"desc": "screw/tight", "bbox_2d": [4 * n, 3 * n, 4 * n + 40, 3 * n + 50]} for n in range(11)
    ]


@breaks("contradictory_labels", 1, "train6.png: screw/tight | label/legible: IoU 0.98")
def _(data: DataSet) -> None:
    data.rows["train"][6]["objects"][1]["bbox_2d"] = [10, 10, 71, 60]


# ---------------------------------------------------------------- copies


@breaks("copy_across_splits", 1, "val0.png: like train3.png (train.jsonl:4)")
def _(data: DataSet) -> None:
    shutil.copy(data.folder / "train3.png", data.folder / "val0.png")


@breaks("near_copy_across_splits", 1, "test1.png: like train3.png")
def _(data: DataSet) -> None:
    with open_image(data.folder / "train3.png") as photo:
        photo.save(data.folder / "test1.png", format="JPEG", quality=60)


@breaks("copy_within_split", 2, "train3.png: like train4.png")
def _(data: DataSet) -> None:
    shutil.copy(data.folder / "train3.png", data.folder / "train4.png")


@breaks("near_copy_within_split", 2, "train3.png: like train4.png")
def _(data: DataSet) -> None:
    with open_image(data.folder / "train3.png") as photo:
        photo.save(data.folder / "train4.png", format="JPEG", quality=60)


# ---------------------------------------------------------------- words


@breaks("unseen_in_training", 1, "val.jsonl:2: val1.png: screw/rusty")
def _(data: DataSet) -> None:
    data.rows["val"][1]["objects"][0]["desc"] = "screw/rusty"


@breaks("rare_description", 1, "screw/loose: 2 in train")
def _(data: DataSet) -> None:
    for number in (0, 1):
        data.rows["train"][number]["objects"][0]["desc"] = "screw/loose"


@breaks("one_description_dominates", 60, "")
def _(data: DataSet) -> None:
    for item in data.rows["train"]:
        more = [[5, 75, 60, 130], [75, 5, 130, 60], [100, 20, 150, 60], [40, 90, 90, 130]]
        item["objects"] += [{"desc": "screw/tight", "bbox_2d": box} for box in more]


@breaks("description_too_long", 1, "tokens")
def _(data: DataSet) -> None:
    for number in (0, 1):  # one description, twice
        data.rows["train"][number]["objects"][0]["desc"] = "screw/" + "loose " * 30 + "!"


@breaks("direction_words", 12, "bracket 上")
def _(data: DataSet) -> None:
    data.config.data.augment.flip_vertical = 0.5
    for item in (item for rows in data.rows.values() for item in rows):
        item["objects"][0]["desc"] = "bracket 上"


# ---------------------------------------------------------------- tokens and training


@breaks("sample_too_long", 12, "tokens")
def _(data: DataSet) -> None:
    data.config.data.max_length = 50


@breaks("sample_too_long_with_teachers", 12, "tokens, up to")
def _(data: DataSet) -> None:
    data.config.data.episodes.counts, data.config.data.episodes.pool = {3: 1.0}, "train"
    data.config.data.max_length = 500


@breaks("photos_never_seen", 8, "12 photos, 4 samples in the run")
def _(data: DataSet) -> None:
    data.config.training.max_steps = 2


@breaks("sample_larger_than_pack", 12, "tokens")
def _(data: DataSet) -> None:
    data.config.training.pack_tokens, data.config.training.max_steps = 50, 12


@breaks("sample_larger_than_pack_with_teachers", 12, "1 images, up to 4")
def _(data: DataSet) -> None:
    data.config.data.episodes.counts, data.config.data.episodes.pool = {3: 1.0}, "train"
    data.config.training.pack_images = 3


@breaks("model_absent", 1, "nobody/nothing: no such folder here")
def _(data: DataSet) -> None:
    data.config.model.path = "nobody/nothing"


ALONGSIDE = {  # what cannot come alone
    "no_training_photo": {"unseen_in_training"},
    "description_too_long": {"rare_description", "unmeasured_description"},
    "rare_description": {"unmeasured_description"},
    "special_token": {"rare_description", "unmeasured_description"},
    "size_mismatch": {"geometry_broken"},
}
ELSEWHERE = {  # codes that conversion or a defect of ours brings about: their tests are in files of their own
    "skipped_malformed", "skipped_photo", "dropped_outside_hierarchy", "dropped_object", "conversion_note",
    "contradictory_copies", "geometry_broken", "sample_broken", "conversion_notes", "labels_never_read",
    "option_without_effect", "nothing_held_out", "group_across_splits",
}  # fmt: skip


def test_nothing_is_found_in_a_clean_data_set(data: DataSet) -> None:
    report = data.examine()
    assert report.findings == [] and report.verdict == "clean"
    assert report.exit_status(strict=True) == 0
    assert "nothing found in 18 photos with 36 objects" in report.to_text()
    assert len(report.proven) > 10 and all(not item.problem for item in report.proven)


@pytest.mark.parametrize("code", [code for code in BREAKS])
def test_what_is_broken_is_found_counted_and_named(code: str, data: DataSet) -> None:
    change, count, example = BREAKS[code]
    example = example.replace("{end}", end_of_turn(data))
    change(data)
    report = data.examine(samples=1)
    found = the(report, code)
    assert found.count == count
    assert any(example in line.line() for line in found.examples) or not example
    assert found.severity == CODES[code].severity or code == "tiny_objects"
    others = {item.code for item in report.findings} - {code, *ALONGSIDE.get(code, ())}
    assert not others, report.to_text()
    assert report.exit_status(strict=False) == (found.severity == ERROR)
    warned = any(item.severity in (ERROR, WARNING) for item in report.findings)
    assert report.exit_status(strict=True) == warned >= (found.severity in (ERROR, WARNING))
    assert "{" not in found.title + found.meaning + found.fix, "a value was left out"
    json.dumps(report.to_json(), allow_nan=False)


def test_every_code_is_tested() -> None:
    assert set(BREAKS) | ELSEWHERE == set(CODES)


def test_all_broken_at_once_is_still_a_report(data: DataSet) -> None:
    alone = (
        "no_",
        "split_without",
        "photos_without",
        "unmeasured",
        "model_absent",
        "sample_too",
        "near_copy",
        "one_description",
        "direction",
        "photo_too_long",
        "unanswerable",
    )
    together = [code for code in BREAKS if not code.startswith(alone)]
    for code in together:
        BREAKS[code][0](data)
    report = data.examine()
    assert {"bad_row", "photo_missing", "photo_unreadable", "size_mismatch"} <= {item.code for item in report.findings}
    severities = [item.severity for item in by_severity(report.findings)]
    assert severities == sorted(severities, key=[ERROR, WARNING, INFO].index)


def test_a_photo_that_nobody_annotated_is_no_photo_without_objects(data: DataSet) -> None:
    for item in data.rows["train"][:6]:
        item |= {"objects": None, "summary": "two parts"}
    data.config.data.answers.summary = 1.0
    report = data.examine(samples=12)
    assert {item.code for item in report.findings} == {"rare_description"}, report.to_text()  # six photos are left
    assert 0 < len(report.proven) <= 12 and all(item.sample.row.annotated for item in report.proven)


def test_without_detection_words_are_enough(data: DataSet) -> None:
    """No objects, and no split to score: an error of a run with detection, and of one that is asked for boxes."""
    for item in data.rows["train"]:
        item |= {"objects": None, "summary": "two parts"}
    del data.rows["val"], data.rows["test"]
    data.config.data.answers.boxes, data.config.data.answers.summary = 0.0, 1.0
    assert "no_evaluation_split" in {item.code for item in data.examine().findings}
    data.config.model.detection = None
    report = data.examine()
    assert report.findings == [] and report.lengths is not None and report.memory is not None
    data.config.data.answers.boxes = 1.0
    assert {item.code for item in data.examine().findings} == {"unanswerable"}


def test_without_detection_limits_of_the_head_do_not_matter(data: DataSet) -> None:
    detection = data.config.model.detection
    assert detection is not None
    detection.queries = detection.caption_max_tokens = 1
    of_the_head = {"more_objects_than_queries", "description_too_long"}
    assert of_the_head <= {item.code for item in data.examine().findings}
    data.config.model.detection = None
    report = data.examine(samples=3)
    assert report.findings == [] and report.proven and not any(item.problem for item in report.proven)


def test_without_detection_a_split_may_be_empty_of_objects(data: DataSet) -> None:
    for split in ("train", "test"):
        for item in data.rows[split]:
            item["objects"] = []
    assert {"no_object", "split_without_objects"} <= {item.code for item in data.examine().findings}
    data.config.model.detection = None
    assert not {"no_object", "split_without_objects"} & {item.code for item in data.examine().findings}


def test_tiles_are_samples(data: DataSet) -> None:
    screws = [{"desc": "screw/tight", "bbox_2d": [15 * n, 10, 15 * n + 10, 90]} for n in range(11)]  # over 10 queries
    data.rows["train"][0]["objects"], data.rows["train"][5]["objects"] = [], screws
    data.config.data.tiles = "3x1"
    report = data.examine()
    assert "more_objects_than_queries" not in {item.code for item in report.findings}, "no tile has so many"
    assert report.lengths is not None and len(report.lengths.alone.tokens) == 12 * 4
    assert the(report, "photos_never_seen").examples[0].line() == "45 photos and tiles, 12 samples in the run"
    assert report.training["training_photos"] == 12


def test_copies_that_disagree_are_named(data: DataSet) -> None:
    shutil.copy(data.folder / "train3.png", data.folder / "train4.png")
    data.rows["train"][4]["objects"][0]["desc"] = "label/legible"
    found = the(data.examine(samples=0), "contradictory_copies")
    assert found.count == 1
    assert "screw/tight | label/legible" in found.examples[0].object and "train4.png" in found.examples[0].line()


def test_a_turned_photo_with_a_right_row_is_fine_and_is_proven(data: DataSet) -> None:
    exif = Image.Exif()
    exif[274] = 6
    data.photo("turned.jpg", 100, (SIZE[1], SIZE[0]), exif=exif)
    data.rows["train"][0]["images"] = ["turned.jpg"]
    report = data.examine(samples=1)
    assert report.findings == []
    assert [item.why for item in report.proven if item.sample.name == "turned.jpg"] == ["EXIF orientation 6"]


def test_words_that_the_mirror_rules_swap_are_no_finding(data: DataSet) -> None:
    data.config.data.augment.flip_horizontal = 0.5
    for item in (item for rows in data.rows.values() for item in rows):
        item["objects"][0]["desc"] = "bracket/left"
    assert data.examine(samples=0).findings == []
    careless = data.examine(mirror=MirrorRules(horizontal="allow"), samples=0)
    assert the(careless, "direction_words").count == 12


def test_rows_inside_a_sample_are_looked_at_too(data: DataSet) -> None:
    teacher = row("gone.png")
    data.rows["train"][0] = {"teachers": [teacher], "student": data.rows["train"][0]}
    data.rows["train"][1] = {"teachers": [teacher], "student": data.rows["train"][1]}
    found = the(data.examine(samples=0), "photo_missing")
    assert (found.count, found.examples[0].photo) == (1, "gone.png")  # one photo, however often it is shown


def test_real_photos_are_sound(shared_dir: Path, tmp_path: Path) -> None:
    from bbu import stages
    from bbu.config import load_config
    from bbu.doctor.examination import examine
    from bbu.doctor.preparation import doctor_config

    source = shared_dir / "data" / "bccd_voc"
    project = Path(__file__).resolve().parents[2]
    config = load_config(project / "configs" / "bccd.yaml", [f"data.source.path={source}"])
    prepared = stages.prepare(doctor_config(config, tmp_path))
    report = examine(config, prepared.folder, prepared.image_root, samples=3)
    assert report.verdict == WARNING and not report.exit_status(strict=False)
    dropped = the(report, "dropped_object")
    assert (dropped.count, dropped.examples[0].where) == (2, "Annotations/BloodImage_00338.xml")
    assert report.splits == {"train": {"photos": 292, "objects": 3941}, "test": {"photos": 72, "objects": 945}}
    assert sum(bar.count for bar in report.lengths.histogram) == 292
    assert all(not item.problem for item in report.proven)
    assert not {"copy_across_splits", "size_mismatch", "photo_unreadable"} & {item.code for item in report.findings}


def test_val_without_objects_is_enough_for_a_model_without_detection(data: DataSet) -> None:
    config = data.config
    config.training.eval_every, config.training.select_best, config.model.detection = 5, "loss", None
    config.data.answers.boxes, config.data.answers.summary = 0.0, 1.0
    rows = [Row((f"{n}.png",), (), 9, 9, summary="words", annotated=False) for n in range(4)]
    splits = ["train", "train", "val", "test"]
    samples = [Sample(split, "", FewShotSample(row)) for split, row in zip(splits, rows, strict=True)]
    assert not [item for item in split_findings(config, Rows(samples)) if item.code == "no_val_split"]
    mute = [replace(sample, sample=FewShotSample(replace(sample.row, summary=None))) for sample in samples[2:]]
    (found,) = (item for item in split_findings(config, Rows([*samples[:2], *mute])) if item.code == "no_val_split")
    assert found.title == "no val photo with a question of data.answers, but training.eval_every is 5"
