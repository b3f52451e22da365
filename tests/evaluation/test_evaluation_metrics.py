"""What every number of ``evaluate`` means, worked by hand."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bbu.errors import UserError
from bbu.evaluation import evaluate
from bbu.evaluation.coco import tables_of
from bbu.evaluation.matching import any_object, flatten, rank
from bbu.evaluation.pairing import pair
from bbu.records import ObjectRow, PredictedObject, PredictionRow, Row
from tests.evaluation.photo_sets import HEIGHT, WIDTH, guess, photo

LEFT, MIDDLE, RIGHT = (0, 0, 100, 100), (300, 0, 400, 100), (600, 0, 700, 100)
SCREW_OK, SCREW_LOOSE = "螺丝连接点/BBU安装螺丝/连接正确", "螺丝连接点/BBU安装螺丝/未拧紧"
CABLE_OK, LABEL = "螺丝连接点/CPRI光缆和BBU连接点/连接正确", "标签贴纸"


# ---------------------------------------------------------------- detection


def test_perfect_predictions_score_one():
    metrics = evaluate(
        [photo("a.jpg", (LEFT, SCREW_OK), (RIGHT, LABEL)), photo("b.jpg", (MIDDLE, SCREW_LOOSE))],
        [guess("a.jpg", (LEFT, SCREW_OK, 0.9), (RIGHT, LABEL, 0.8)), guess("b.jpg", (MIDDLE, SCREW_LOOSE, 0.7))],
    )
    for key in ("AP", "AP50", "AP75", "AR1", "AR10", "AR100", "AP_large", "AP50_level1", "AP50_level2", "AP50_level3"):
        assert metrics[key] == pytest.approx(1), key
    for key in ("AP_agnostic", "AP50_agnostic", "AP75_agnostic", "AR100_agnostic"):
        assert metrics[key] == pytest.approx(1), key
    assert metrics["description_accuracy"] == metrics["description_macro_accuracy"] == 1
    assert (metrics["matched_boxes"], metrics["missed_boxes"], metrics["false_positives_per_image"]) == (3, 0, 0)


def test_nothing_predicted_scores_zero_and_leaves_accuracy_undefined():
    metrics = evaluate([photo("a.jpg", (LEFT, LABEL))], [guess("a.jpg")])
    assert metrics["AP"] == metrics["AR100"] == metrics["AP_agnostic"] == metrics["AR100_agnostic"] == 0
    assert (metrics["matched_boxes"], metrics["missed_boxes"]) == (0, 1)
    for key in ("description_accuracy", "description_macro_accuracy", "majority_baseline", "out_of_vocabulary_rate"):
        assert metrics[key] is None, key


def test_right_boxes_with_wrong_captions_are_right_only_class_agnostically():
    metrics = evaluate(
        [photo("a.jpg", (LEFT, SCREW_OK), (RIGHT, LABEL))],
        [guess("a.jpg", (LEFT, LABEL, 0.9), (RIGHT, SCREW_OK, 0.8))],
    )
    assert metrics["AP"] == metrics["AP50"] == metrics["description_accuracy"] == 0
    assert metrics["AP_agnostic"] == pytest.approx(1)
    assert metrics["matched_boxes"] == 2
    assert metrics["false_positives_per_image"] == 2  # the captions are wrong, so both are false positives


def test_a_second_box_on_one_object_lowers_precision():
    metrics = evaluate(
        [photo("a.jpg", (LEFT, LABEL), (RIGHT, LABEL))],
        [guess("a.jpg", (LEFT, LABEL, 0.9), (LEFT, LABEL, 0.8), (RIGHT, LABEL, 0.7))],
    )
    # Up to recall 0.5 (51 of 101 points) precision is 1; beyond it 2 of 3 are right.
    assert metrics["AP50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert metrics["AP"] == pytest.approx(metrics["AP50"])
    assert metrics["false_positives_per_image"] == 1


def test_a_detection_on_a_photo_without_objects_is_a_false_positive():
    metrics = evaluate(
        [photo("a.jpg", (LEFT, LABEL)), photo("empty.jpg")],
        [guess("a.jpg", (LEFT, LABEL, 0.5)), guess("empty.jpg", (LEFT, LABEL, 0.9))],
    )
    assert metrics["AP50"] == pytest.approx(0.5)  # the first of two detections is wrong
    assert metrics["false_positives_per_image"] == 0.5


def test_a_photo_that_nobody_annotated_counts_nowhere():
    truth, found = [photo("a.jpg", (LEFT, LABEL))], [guess("a.jpg", (LEFT, LABEL, 0.5))]
    unknown = [replace(photo(f"{name}.jpg"), annotated=False) for name in "bc"]
    alone, beside = evaluate(truth, found), evaluate([*truth, *unknown], [*found, guess("b.jpg", (LEFT, LABEL, 0.9))])
    assert alone == beside
    with pytest.raises(UserError, match=r"b\.jpg"):
        pair([*unknown, unknown[0]], [])


def test_a_box_off_by_a_fifth_counts_at_loose_thresholds_only():
    # IoU 0.8: right at 0.50 … 0.75 and, being not below it, at 0.80: 7 of 10 thresholds.
    metrics = evaluate([photo("a.jpg", (LEFT, LABEL))], [guess("a.jpg", ((0, 0, 100, 80), LABEL, 0.9))])
    assert metrics["AP50"] == metrics["AP75"] == pytest.approx(1)
    assert metrics["AP"] == metrics["AR100"] == pytest.approx(0.7)


def test_captions_are_ranked_by_score_and_class_agnostic_boxes_by_objectness():
    truth = [photo("a.jpg", (LEFT, LABEL))]
    sure_of_the_caption = guess("a.jpg", (LEFT, LABEL, 0.9, 0.3), (RIGHT, LABEL, 0.2, 0.8))
    metrics = evaluate(truth, [sure_of_the_caption])
    assert metrics["AP50"] == pytest.approx(1)
    assert metrics["AP50_agnostic"] == pytest.approx(0.5)


def test_average_precision_by_size_uses_areas_in_displayed_pixels():
    small, medium = (0, 0, 20, 20), (200, 200, 260, 260)
    metrics = evaluate(
        [photo("a.jpg", (small, LABEL), (medium, LABEL))],
        [guess("a.jpg", (medium, LABEL, 0.9))],
    )
    assert (metrics["AP_small"], metrics["AP_medium"], metrics["AP_large"]) == (0, pytest.approx(1), None)


def test_a_detection_between_two_objects_takes_the_last_as_in_coco():
    truth = [photo("a.jpg", ((0, 0, 100, 100), LABEL), ((20, 0, 120, 100), LABEL))]
    between = ((10, 0, 110, 100), LABEL, 0.9)  # overlaps both alike
    left_only = evaluate(truth, [guess("a.jpg", between, ((0, 0, 60, 100), LABEL, 0.8))])
    assert (left_only["matched_boxes"], left_only["AP50_agnostic"]) == (2, pytest.approx(1))
    right_only = evaluate(truth, [guess("a.jpg", between, ((60, 0, 120, 100), LABEL, 0.8))])
    assert (right_only["matched_boxes"], right_only["AP50_agnostic"]) == (1, pytest.approx(51 / 101))


def test_only_the_best_detections_are_kept():
    truth = [photo("a.jpg", (LEFT, LABEL), (RIGHT, LABEL))]
    predictions = [guess("a.jpg", (LEFT, LABEL, 0.9), (RIGHT, LABEL, 0.8))]
    metrics = evaluate(truth, predictions, max_detections=1)
    assert metrics["AR1"] == metrics["AR100"] == metrics["AR100_agnostic"] == pytest.approx(0.5)
    assert metrics["matched_boxes"] == 1
    assert evaluate(truth, predictions, max_detections=2)["AR100"] == pytest.approx(1)


# ---------------------------------------------------------------- shapes


def test_a_line_without_height_can_be_found():
    wire = Row(("a.jpg",), (ObjectRow("线缆", "line", (100.0, 50.0, 400.0, 50.0)),), WIDTH, HEIGHT)
    for box in ((100, 50, 400, 50), (100, 49, 400, 51)):  # flat as annotated, or as the detector learns it
        metrics = evaluate([wire], [guess("a.jpg", (box, "线缆", 0.9))])
        assert metrics["AP"] == metrics["description_accuracy"] == pytest.approx(1)


def test_a_polygon_counts_as_its_enclosing_box():
    label = Row(("a.jpg",), (ObjectRow(LABEL, "poly", (50.0, 0.0, 100.0, 50.0, 50.0, 100.0, 0.0, 50.0)),), 200, 200)
    found = PredictionRow(("a.jpg",), 200, 200, (PredictedObject((0.0, 0.0, 100.0, 100.0), LABEL, 0.9, 0.9),))
    metrics = evaluate([label], [found])
    assert metrics["AP"] == metrics["AP_large"] == pytest.approx(1)  # 100 × 100 pixels, not the diamond's 5,000


def test_a_box_with_swapped_corners_is_a_false_positive():
    truth = [photo("a.jpg", (LEFT, LABEL))]
    metrics = evaluate(truth, [guess("a.jpg", ((700, 100, 600, 0), LABEL, 0.9), (LEFT, LABEL, 0.8))])
    assert metrics["AP50"] == pytest.approx(0.5)
    assert metrics["false_positives_per_image"] == 1


# ---------------------------------------------------------------- descriptions


def four_screws():
    """Three tightened screws and a loose one, all found; one tightened screw is called loose."""
    boxes = [(x, 0, x + 50, 50) for x in (0, 100, 200, 300)]
    truth = [SCREW_OK, SCREW_OK, SCREW_OK, SCREW_LOOSE]
    said = [SCREW_OK, SCREW_OK, SCREW_LOOSE, SCREW_LOOSE]
    return (
        [photo("a.jpg", *zip(boxes, truth, strict=True))],
        [guess("a.jpg", *((box, desc, 0.9) for box, desc in zip(boxes, said, strict=True)))],
    )


def test_accuracy_beside_the_majority_guess():
    metrics = evaluate(*four_screws())
    assert metrics["description_accuracy"] == 3 / 4
    assert metrics["description_macro_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert metrics["majority_description"] == SCREW_OK
    assert metrics["majority_baseline"] == 3 / 4  # no worse in plain accuracy …
    assert metrics["majority_macro_baseline"] == 1 / 2  # … but blind to the rare defect


@pytest.mark.parametrize(
    ("train", "baseline", "macro"),
    [({SCREW_LOOSE: 5, SCREW_OK: 4}, 1 / 4, 1 / 2), ({LABEL: 9, SCREW_OK: 4}, 0, 0), ({}, None, None)],
)
def test_the_majority_guess_comes_from_training_when_that_is_known(train, baseline, macro):
    metrics = evaluate(*four_screws(), train_descriptions=train)
    assert (metrics["majority_baseline"], metrics["majority_macro_baseline"]) == (baseline, macro)


def test_description_table():
    table = evaluate(*four_screws())["per_description"]
    assert list(table) == [SCREW_OK, SCREW_LOOSE]
    right = table[SCREW_OK]
    assert (right["truth"], right["matched"], right["correct"]) == (3, 3, 2)
    assert right["accuracy"] == pytest.approx(2 / 3)
    assert right["AP50"] == pytest.approx(67 / 101)  # precision 1 up to recall 2/3: points 0 … 0.66
    # Of two equally sure predictions one is right: no threshold is right nine times of ten.
    assert table[SCREW_LOOSE] == {
        "truth": 1, "matched": 1, "correct": 1, "accuracy": 1.0, "AP50": pytest.approx(0.5),
        "threshold_at_precision": None, "recall_at_precision": None, "miss_rate_at_1": 0.0, "miss_rate_at_0.1": 1.0,
    }  # fmt: skip
    assert (right["threshold_at_precision"], right["recall_at_precision"]) == (0.9, pytest.approx(2 / 3))


def test_each_level_of_the_path_is_judged_alone():
    metrics = evaluate(
        [photo("a.jpg", (LEFT, SCREW_OK), (MIDDLE, SCREW_OK), (RIGHT, LABEL))],
        [guess("a.jpg", (LEFT, SCREW_LOOSE, 0.9), (MIDDLE, CABLE_OK, 0.8), (RIGHT, LABEL, 0.7))],
    )
    levels = [metrics[f"description_accuracy_level{level}"] for level in (1, 2, 3)]
    assert levels == pytest.approx([1, 2 / 3, 1 / 3])
    assert metrics["description_accuracy"] == pytest.approx(1 / 3)
    # Level 2: the label is right (AP 1), of two installation screws one is found (51 points of 101).
    levels = [metrics[f"AP50_level{level}"] for level in (1, 2, 3)]
    assert levels == pytest.approx([1, (1 + 51 / 101) / 2, 1 / 2])
    assert "AP50_level4" not in metrics


def test_a_remark_too_many_is_wrong_as_a_whole_and_right_by_level():
    metrics = evaluate([photo("a.jpg", (LEFT, "机柜空间/满载"))], [guess("a.jpg", (LEFT, "机柜空间/满载/有灰", 0.9))])
    assert metrics["AP50"] == metrics["description_accuracy"] == 0
    assert metrics["AP50_level2"] == metrics["description_accuracy_level2"] == pytest.approx(1)


def test_flat_descriptions_have_no_levels():
    metrics = evaluate([photo("a.jpg", (LEFT, LABEL))], [guess("a.jpg", (LEFT, "挡风板/缺失", 0.9))])
    assert not [key for key in metrics if "_level" in key]


def test_the_most_confident_box_speaks_for_an_object_whatever_it_says():
    metrics = evaluate(
        [photo("a.jpg", (LEFT, SCREW_OK))],
        [guess("a.jpg", (LEFT, SCREW_OK, 0.1, 0.4), (LEFT, SCREW_LOOSE, 0.1, 0.6))],
    )
    assert (metrics["matched_boxes"], metrics["description_accuracy"]) == (1, 0)


def test_accuracy_does_not_depend_on_the_score_threshold():
    truth, predictions = four_screws()
    low, high = (evaluate(truth, predictions, score_threshold=value) for value in (0, 1))
    assert low["description_accuracy"] == high["description_accuracy"]
    assert (low["predictions_at_threshold"], high["predictions_at_threshold"]) == (4, 0)
    assert high["false_positives_per_image"] == 0


# ---------------------------------------------------------------- false positives


def test_captions_that_no_annotation_has_are_counted():
    metrics = evaluate(
        [photo("a.jpg", (LEFT, SCREW_OK)), photo("b.jpg", (LEFT, LABEL))],
        [
            guess("a.jpg", (LEFT, SCREW_OK, 0.9), (RIGHT, "螺丝/松", 0.8), (MIDDLE, "螺丝/松", 0.2)),
            guess("b.jpg", (LEFT, LABEL, 0.3), (RIGHT, CABLE_OK, 0.6)),
        ],
        train_descriptions={SCREW_OK: 5, CABLE_OK: 2},
    )
    assert metrics["AP50"] == pytest.approx(1)  # COCO does not see them
    assert metrics["predictions_at_threshold"] == 4  # a score of exactly 0.3 counts, 0.2 does not
    assert metrics["out_of_vocabulary_predictions"] == 2  # 螺丝/松 and the cable
    assert metrics["out_of_vocabulary_rate"] == 2 / 4
    assert metrics["unknown_to_training_predictions"] == 2  # 螺丝/松 and the label
    assert metrics["unknown_to_training_rate"] == 2 / 4
    assert metrics["false_positives_per_image"] == 1


def test_unknown_to_training_is_undefined_without_the_training_descriptions():
    metrics = evaluate([photo("a.jpg", (LEFT, LABEL))], [guess("a.jpg", (LEFT, LABEL, 0.9))])
    assert metrics["unknown_to_training_rate"] is None
    assert metrics["unknown_to_training_predictions"] is None


# ---------------------------------------------------------------- rows


def test_failed_and_forgotten_photos_count_as_missed():
    metrics = evaluate(
        [photo(name, (LEFT, LABEL)) for name in ("a.jpg", "b.jpg", "c.jpg")],
        [guess("a.jpg", (LEFT, LABEL, 0.9)), PredictionRow(("b.jpg",), error="cannot read the file")],
    )
    assert (metrics["photos"], metrics["photos_failed"], metrics["photos_without_prediction"]) == (3, 1, 1)
    assert (metrics["matched_boxes"], metrics["missed_boxes"]) == (1, 2)
    assert metrics["AR100"] == pytest.approx(1 / 3)


def test_a_prediction_for_an_unknown_photo_is_an_error_that_names_it():
    with pytest.raises(UserError, match=r"other\.jpg.*no annotated row"):
        evaluate([photo("a.jpg")], [guess("other.jpg")])


def test_a_photo_listed_twice_is_an_error_that_names_it():
    with pytest.raises(UserError, match=r"a\.jpg.*twice among the annotated rows"):
        evaluate([photo("a.jpg"), photo("a.jpg")], [])
    with pytest.raises(UserError, match=r"a\.jpg.*twice among the predictions"):
        evaluate([photo("a.jpg")], [guess("a.jpg"), guess("a.jpg")])


def test_predictions_made_at_another_size_are_an_error():
    turned = PredictionRow(("a.jpg",), HEIGHT, WIDTH)
    with pytest.raises(UserError, match=r"a\.jpg.*800x1000.*1000x800.*EXIF"):
        evaluate([photo("a.jpg")], [turned])


@pytest.mark.parametrize(
    "arguments",
    [
        {"score_threshold": 1.5}, {"score_threshold": -1}, {"score_threshold": float("nan")}, {"max_detections": 0},
        {"precision": 1.1}, {"precision": float("nan")}, {"bootstrap_samples": -1}, {"fppi": [-1]},
        {"fppi": [float("nan")]},
    ],
)  # fmt: skip
def test_arguments_out_of_range_are_errors(arguments):
    with pytest.raises(UserError, match=next(iter(arguments))):
        evaluate([photo("a.jpg")], [], **arguments)


@pytest.mark.parametrize("truth", [[], [photo("a.jpg")]])
def test_without_annotated_boxes_precision_is_undefined_not_zero(truth):
    metrics = evaluate(truth, [guess(row.images[0], (LEFT, LABEL, 0.9)) for row in truth])
    assert metrics["AP"] is metrics["AP_agnostic"] is metrics["AR100"] is None
    assert metrics["false_positives_per_image"] == (1 if truth else None)
    assert metrics["per_description"] == {} and metrics["confusions"] == []
    assert metrics["miss_rate_at_1"] is metrics["intervals"]["AP"] is metrics["intervals"]["miss_rate_at_1"] is None
    assert metrics["ECE"] == (pytest.approx(0.9) if truth else None)
    json.dumps(metrics, allow_nan=False)


def test_evaluation_needs_no_model_library():
    code = "import sys, bbu.evaluation; print([m for m in ('torch', 'transformers', 'matplotlib') if m in sys.modules])"
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=paths, check=True)
    assert run.stdout.strip() == "[]"


# ---------------------------------------------------------------- properties

# Few positions, descriptions and scores: overlaps and ties must be common.
side = st.integers(0, 6)
boxes = st.tuples(side, side, st.integers(1, 4), st.integers(1, 4)).map(
    lambda b: (b[0] * 20, b[1] * 20, (b[0] + b[2]) * 20, (b[1] + b[3]) * 20)
)
descriptions = st.sampled_from([SCREW_OK, SCREW_LOOSE, LABEL])
steps = st.integers(0, 4).map(lambda n: n / 4)
truths = st.lists(st.tuples(boxes, descriptions), max_size=4)
guesses = st.lists(st.tuples(boxes, descriptions | st.just("乱码"), steps, steps), max_size=6)
photo_sets = st.lists(st.tuples(truths, guesses), min_size=1, max_size=3)


def rows_of(photo_set):
    truth = [photo(f"{index}.jpg", *objects) for index, (objects, _) in enumerate(photo_set)]
    return truth, [guess(f"{index}.jpg", *found) for index, (_, found) in enumerate(photo_set)]


@settings(deadline=None, max_examples=40)
@given(photo_sets, st.randoms(use_true_random=False))
def test_order_of_lines_objects_and_predictions_changes_nothing(photo_set, random):
    def shuffled(items):
        return random.sample(items, len(items))

    expected = evaluate(*rows_of(photo_set), bootstrap_samples=20)
    truth, predictions = rows_of([(shuffled(objects), shuffled(found)) for objects, found in photo_set])
    assert evaluate(shuffled(truth), shuffled(predictions), bootstrap_samples=20) == expected


def test_order_of_two_objects_in_one_box_changes_nothing():
    objects, predictions = [(LEFT, SCREW_OK), (LEFT, LABEL)], [guess("a.jpg", (LEFT, LABEL, 0.9))]
    assert evaluate([photo("a.jpg", *objects)], predictions) == evaluate([photo("a.jpg", *objects[::-1])], predictions)


@settings(deadline=None, max_examples=40)
@given(photo_sets)
def test_every_number_is_in_range_and_the_counts_add_up(photo_set):
    truth, predictions = rows_of(photo_set)
    metrics = evaluate(truth, predictions, bootstrap_samples=50)
    json.dumps(metrics, allow_nan=False)
    for key, value in metrics.items():
        if isinstance(value, float) and not key.endswith(("_per_photo", "_per_image")):
            assert -1e-12 <= value <= 1 + 1e-12, key
    for key, interval in metrics["intervals"].items():
        assert (interval is None) == (metrics[key] is None or len(photo_set) == 1), key
        low, high = interval or (0, 1)
        assert -1e-12 <= low <= high <= 1 + 1e-12, key
    assert sum(row["count"] for row in metrics["confusions"]) == metrics["truth_boxes"]
    assert metrics["matched_boxes"] + metrics["missed_boxes"] == metrics["truth_boxes"]
    assert sum(row["matched"] for row in metrics["per_description"].values()) == metrics["matched_boxes"]
    assert (metrics["AP50"] or 0) >= (metrics["AP75"] or 0) - 1e-12


@settings(deadline=None, max_examples=40)
@given(photo_sets)
def test_matched_boxes_are_those_of_the_class_agnostic_ranking(photo_set):
    truth, predictions = rows_of(photo_set)
    metrics = evaluate(truth, predictions, bootstrap_samples=0)
    agnostic = rank(flatten(pair(truth, predictions).photos), any_object, "objectness", 100)
    tables = tables_of(agnostic, 100, (0.5,), ("all",))
    assert metrics["matched_boxes"] == pytest.approx((tables.average_recall(100) or 0) * metrics["truth_boxes"])
