"""Scores that mean what they say: measured, mended, saved."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bbu import stages
from bbu.config import Config
from bbu.errors import UserError
from bbu.evaluation import evaluate
from bbu.evaluation.calibration import (
    CALIBRATION_FILE,
    KINDS,
    Calibration,
    calibrated_row,
    fit_calibration,
    reliability,
)
from bbu.jsonl import write_jsonl
from bbu.records import PredictionRow, Row, read_predictions
from bbu.stages import scoring
from tests.evaluation.photo_sets import cell, guess, photo, random_rows

confidences = st.lists(
    st.tuples(st.floats(0, 1) | st.integers(0, 10).map(lambda n: n / 10), st.booleans()), min_size=1, max_size=40
)


def rows_of(scores: np.ndarray, right: np.ndarray) -> tuple[list[Row], list[PredictionRow]]:
    """One object and one prediction a photo, with the right caption or another."""
    names = [f"{n:05}.jpg" for n in range(len(scores))]
    truth = [photo(name, (cell(0), "a")) for name in names]
    items = zip(names, scores.tolist(), right.tolist(), strict=True)
    return truth, [guess(name, (cell(0), "a" if ok else "b", score)) for name, score, ok in items]


def overconfident(temperature: float, count: int, seed: int = 0) -> tuple[list[Row], list[PredictionRow]]:
    """Outcomes that come true with the share that the score says at this temperature."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5, size=count)
    right = random.random(count) < 1 / (1 + np.exp(-logits))
    return rows_of(1 / (1 + np.exp(-logits * temperature)), right)


def rights(found: list[PredictionRow]) -> np.ndarray:
    """Which predictions of rows_of are right."""
    return np.array([row.predictions[0].desc == "a" for row in found])


def chance(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores at twice the logits that outcomes come true by, and the outcomes."""
    logits = random.normal(0, 1.5, count)
    return 1 / (1 + np.exp(-2 * logits)), random.random(count) < 1 / (1 + np.exp(-logits))


def average_precision(scores: np.ndarray, right: np.ndarray) -> float:
    ranked = right[np.argsort(-scores)]
    return float((ranked.cumsum() / np.arange(1, len(ranked) + 1))[ranked].mean())


# ---------------------------------------------------------------- measuring


def test_calibration_error_by_hand():
    found = reliability(np.array([0.95, 0.95, 0.91, 0.2, 1.0]), np.array([1, 0, 1, 0, 1], dtype=bool))
    assert found["ECE"] == pytest.approx((abs(0.95 + 0.95 + 0.91 + 1 - 3) + 0.2) / 5)
    assert found["Brier"] == pytest.approx((0.05**2 + 0.95**2 + 0.09**2 + 0.2**2) / 5)
    last = found["equal_width"][9]
    assert (last["low"], last["high"], last["count"], last["accuracy"]) == (0.9, 1.0, 4, 0.75)
    assert last["confidence"] == pytest.approx(3.81 / 4)
    assert found["equal_width"][5] == {"count": 0, "confidence": None, "accuracy": None, "low": 0.5, "high": 0.6}


@given(confidences)
def test_bins_hold_every_prediction_once_and_errors_are_shares(predictions):
    score, right = np.array([s for s, _ in predictions]), np.array([r for _, r in predictions], dtype=bool)
    found = reliability(score, right)
    for bins in ("equal_width", "equal_mass"):
        assert sum(row["count"] for row in found[bins]) == len(predictions)
        hits = sum(row["count"] * row["accuracy"] for row in found[bins] if row["count"])
        assert hits == pytest.approx(right.sum())
    assert len(found["equal_width"]) == 10 and 1 <= len(found["equal_mass"]) <= 10
    # Bins can only hide error, and no prediction is further off than 1.
    for key in ("ECE", "ECE_equal_mass"):
        assert abs(score.mean() - right.mean()) - 1e-9 <= found[key] <= np.abs(score - right).mean() + 1e-9
    order = np.random.default_rng(0).permutation(len(score))
    assert reliability(score[order], right[order])["equal_mass"] == [
        {key: pytest.approx(value) for key, value in row.items()} for row in found["equal_mass"]
    ]


def test_bins_of_equal_mass_are_equal_where_scores_differ():
    found = reliability(np.linspace(0, 0.2, 100), np.zeros(100, dtype=bool))
    assert [row["count"] for row in found["equal_mass"]] == [10] * 10
    assert [row["count"] for row in found["equal_width"]][2:] == [1, 0, 0, 0, 0, 0, 0, 0]


def test_nothing_predicted_has_no_calibration():
    found = reliability(np.empty(0), np.empty(0, dtype=bool))
    assert found["ECE"] is found["ECE_equal_mass"] is found["Brier"] is None and found["equal_mass"] == []


def test_a_prediction_is_right_with_a_free_box_of_its_own_description():
    truth = [photo("a.jpg", (cell(0), "a"), (cell(1), "b"))]
    found = [guess("a.jpg", (cell(0), "a", 0.9), (cell(0), "a", 0.8), (cell(1), "a", 0.7))]
    calibration = evaluate(truth, found, bootstrap_samples=0)["calibration"]
    assert calibration["score"]["Brier"] == pytest.approx((0.1**2 + 0.8**2 + 0.7**2) / 3)
    assert calibration["objectness"]["Brier"] == pytest.approx((0.1**2 + 0.8**2 + 0.3**2) / 3)


# ---------------------------------------------------------------- mending


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_of_overconfidence_is_found(temperature):
    truth, found = overconfident(temperature, 3000)
    calibration = fit_calibration(truth, found, split="val")
    assert calibration.temperature == pytest.approx(temperature, rel=0.12)
    assert (calibration.kind, calibration.split, calibration.photos, calibration.count) == (
        "temperature",
        "val",
        3000,
        3000,
    )
    assert calibration.after["ECE"] < 0.03
    if temperature == 2.5:
        assert calibration.before["ECE"] > 0.1 and calibration.after["Brier"] < calibration.before["Brier"]


@pytest.mark.parametrize("kind", KINDS)
def test_it_holds_on_photos_that_taught_nothing(kind):
    calibration = fit_calibration(*overconfident(2.5, 2000, seed=1), kind=kind)
    truth, found = overconfident(2.5, 2000, seed=2)
    mended = [calibrated_row(calibration, row) for row in found]
    before, after = (evaluate(truth, rows, bootstrap_samples=0)["ECE"] for rows in (found, mended))
    assert before > 0.1 and after < 0.05
    assert after == pytest.approx(calibration.after["ECE"], abs=0.025)  # what it promised


def test_no_photo_judges_what_it_has_taught():
    """Scores that say nothing: steps fitted to them look perfect where they were fitted, and nowhere else."""
    random = np.random.default_rng(0)
    truth, found = rows_of(random.random(40), random.random(40) < 0.5)
    calibration = fit_calibration(truth, found, kind="isotonic")
    itself = evaluate(truth, [calibrated_row(calibration, row) for row in found], bootstrap_samples=0)["ECE"]
    assert itself < 0.01 < 0.1 < calibration.after["ECE"]


def test_on_noise_the_cross_fitted_error_is_no_better_than_the_true_one():
    """What a map is worth where outcomes have nothing to do with scores is known: its distance from their share."""
    promised, true, shown = [], [], []
    for seed in range(20):
        random = np.random.default_rng(seed)
        truth, found = rows_of(random.random(200), random.random(200) < 0.3)
        calibration = fit_calibration(truth, found, kind="isotonic")
        mapped = calibration.apply(random.random(5000))
        true.append(reliability(mapped, np.full(5000, 0.3))["ECE"])
        shown.append(reliability(calibration.apply([row.predictions[0].score for row in found]), rights(found))["ECE"])
        promised.append(calibration.after["ECE"])
    assert np.mean(shown) < 1e-9 < np.mean(true) < np.mean(promised) < np.mean(true) + 0.05


def test_other_photos_of_its_group_do_not_vouch_for_a_photo():
    """Five photos of each site, of one outcome, a coin's: no honest map of it has a Brier score under 1/4."""
    blind, aware = [], []
    for seed in range(6):
        random = np.random.default_rng(seed)
        truth, found = rows_of(np.repeat(random.random(20), 5), np.repeat(random.random(20) < 0.5, 5))
        grouped = [replace(row, metadata={"group": f"site {number // 5}"}) for number, row in enumerate(truth)]
        apart, together = (fit_calibration(rows, found, kind="isotonic") for rows in (truth, grouped))
        assert apart.knots == together.knots, "what is published does not depend on groups"
        blind.append(apart.after["Brier"])
        aware.append(together.after["Brier"])
    assert np.mean(blind) < 0.22 and np.mean(aware) > 0.25


def test_a_checkpoint_chosen_on_the_same_photos_is_a_little_overconfident_and_folds_cannot_tell():
    """The best of ten equally good checkpoints by chance: its scores promise more than it keeps on other photos."""
    excess, promised = {}, {}
    for checkpoints in (1, 10):
        over, after = [], []
        for seed in range(25):
            drawn = [chance(np.random.default_rng((seed, number)), 400) for number in range(checkpoints)]
            scores, right = max(drawn, key=lambda pair: average_precision(*pair))
            calibration = fit_calibration(*rows_of(scores, right))
            logits = np.random.default_rng(seed).normal(0, 1.5, 5000)
            share, said = 1 / (1 + np.exp(-logits)), calibration.apply(1 / (1 + np.exp(-2 * logits)))
            over.append((np.sign(share - 0.5) * (said - share)).mean())
            after.append(calibration.after["ECE"])
        excess[checkpoints], promised[checkpoints] = np.mean(over), np.mean(after)
    assert 0.005 < excess[10] - excess[1] < 0.03  # docs/evaluation.md
    assert abs(promised[10] - promised[1]) < 0.01


def test_temperature_leaves_every_ranking_figure_alone():
    truth, found = random_rows(7, photos=80)
    calibration = fit_calibration(truth, found)
    assert calibration.temperature is not None and abs(calibration.temperature - 1) > 0.1
    mended = [calibrated_row(calibration, row) for row in found]
    before, after = (evaluate(truth, rows, bootstrap_samples=0) for rows in (found, mended))
    ranked = [name for name in before if name.startswith(("AP", "AR", "miss_rate", "description_"))]
    assert len(ranked) > 50 and {n: before[n] for n in ranked} == {n: after[n] for n in ranked}
    assert [row["recall_at_precision"] for row in before["per_description"].values()] == [
        row["recall_at_precision"] for row in after["per_description"].values()
    ]
    assert before["ECE"] != after["ECE"]


@pytest.mark.parametrize("kind", KINDS)
def test_scores_keep_their_order_and_range(kind):
    calibration = fit_calibration(*random_rows(8, photos=60), kind=kind)
    scores = np.sort(np.append(np.random.default_rng(0).random(500), [0, 1, 1e-12, 1 - 1e-12, 1e-300]))
    mended = calibration.apply(scores)
    assert (np.diff(mended) >= 0).all() and mended.min() >= 0 and mended.max() <= 1
    assert calibration.apply(scores.reshape(5, -1)).shape == (5, 101) and calibration.apply([]).shape == (0,)
    if kind == "temperature":
        assert calibration.apply([0.0, 0.5, 1.0]).tolist() == [0, 0.5, 1]


def test_isotonic_steps_have_the_least_squared_error_of_all_rising_maps():
    truth, found = random_rows(9, photos=50)
    isotonic = fit_calibration(truth, found, kind="isotonic")
    others = [isotonic, fit_calibration(truth, found, kind="temperature")]
    briers = [
        evaluate(truth, [calibrated_row(one, row) for row in found], bootstrap_samples=0)["Brier"] for one in others
    ]
    assert briers[0] < briers[1] and briers[0] < isotonic.before["Brier"]


def test_the_order_of_rows_changes_nothing():
    truth, found = random_rows(10, photos=20)
    assert fit_calibration(truth[::-1], found[::-1]) == fit_calibration(truth, found)


@pytest.mark.parametrize("caption", ["a", "b"])
def test_only_right_or_only_wrong_predictions_teach_nothing(caption):
    truth = [photo(f"{n}.jpg", (cell(0), "a")) for n in range(3)]
    found = [guess(f"{n}.jpg", (cell(0), caption, 0.5)) for n in range(3)]
    with pytest.raises(UserError, match="needs right and wrong"):
        fit_calibration(truth, found)
    with pytest.raises(UserError, match="0 of 0"):
        fit_calibration(truth, [])


def test_a_fold_that_is_taught_nothing_leaves_the_promise_open():
    truth = [photo(f"{n}.jpg", (cell(0), "a")) for n in range(2)]
    found = [guess("0.jpg", (cell(0), "a", 0.9), (cell(1), "a", 0.1)), guess("1.jpg", (cell(0), "b", 0.5))]
    calibration = fit_calibration(truth, found)
    assert calibration.after["ECE"] is calibration.after["Brier"] is None and calibration.before["ECE"] is not None
    assert "cross-fitted undefined" in calibration.summary()


def test_an_unknown_kind_is_an_error():
    with pytest.raises(UserError, match="'platt' is not one of temperature, isotonic"):
        fit_calibration(*random_rows(1, photos=5), kind="platt")


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_calibration_is_the_same(kind, tmp_path):
    calibration = fit_calibration(*random_rows(11, photos=30), kind=kind, split="val")
    calibration.save(tmp_path / CALIBRATION_FILE)
    assert Calibration.load(tmp_path) == Calibration.load(tmp_path / CALIBRATION_FILE) == calibration
    written = json.loads((tmp_path / CALIBRATION_FILE).read_text())
    assert written["kind"] == kind and {"ECE_before", "ECE_after", "count", "split"} < set(written)


def test_a_flipped_digit_is_found(tmp_path):
    share = {"ECE": 0.5, "Brier": 0.5}
    path = tmp_path / "calibration.json"
    Calibration("temperature", 1.5, (), "val", 1, 1, share, share).save(path)
    path.write_text(path.read_text(encoding="utf-8").replace("1.5", "1.7"), encoding="utf-8")
    with pytest.raises(UserError, match=r"calibration.json: .*was damaged or changed"):
        Calibration.load(tmp_path)


def test_the_file_of_an_earlier_version_has_no_bins(tmp_path):
    value = fit_calibration(*random_rows(12, photos=20)).to_json()
    del value["reliability_after"]
    path = tmp_path / CALIBRATION_FILE
    path.write_text(json.dumps(value), encoding="utf-8")
    assert Calibration.load(path).after == {"ECE": value["ECE_after"], "Brier": value["Brier_after"]}


def test_a_model_folder_without_one_is_not_calibrated(tmp_path):
    assert Calibration.load(tmp_path) is None


def damage(key: str, value: object) -> Callable[[dict[str, object]], object]:
    return lambda saved: {**saved, key: value}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (damage("kind", "platt"), "platt"),
        (damage("format", 9), "format 9"),
        (damage("parameters", {}), "temperature"),
        (damage("parameters", {"temperature": 0}), "lie in"),
        (damage("parameters", {"temperature": 1e-320}), "lie in"),  # 0.3 to its inverse is 0, and so is 0.7
        (damage("parameters", {"temperature": 10**400}), "too large"),
        (damage("format", "a\nb"), r"format 'a\\nb'"),
        (damage("parameters", {"temperature": "hot"}), "hot"),
        (damage("parameters", []), "list"),
        (damage("reliability_after", [1]), "list"),
        (
            damage(
                "reliability_after", {"equal_width": [{"count": -3, "confidence": 0, "accuracy": 1}], "equal_mass": []}
            ),
            "bin",
        ),
        (lambda saved: {name: value for name, value in saved.items() if name != "ECE_after"}, "ECE_after"),
        (lambda _: [1], "calibration"),
        (
            lambda saved: {**saved, "kind": "isotonic", "parameters": {"scores": [0.1, 0.2], "shares": [0.5, 0.4]}},
            "rise",
        ),
        (lambda saved: {**saved, "kind": "isotonic", "parameters": {"scores": [0.1], "shares": [2]}}, "rise"),
        (lambda saved: {**saved, "kind": "isotonic", "parameters": {"scores": [], "shares": []}}, "rise"),
        (lambda saved: {**saved, "kind": "isotonic", "parameters": {"scores": [0.1], "shares": []}}, "shorter"),
    ],
)
def test_a_damaged_file_is_named(change, word, tmp_path):
    fit_calibration(*random_rows(12, photos=20)).save(tmp_path / CALIBRATION_FILE)
    path = tmp_path / CALIBRATION_FILE
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(UserError, match=f"{CALIBRATION_FILE}.*{word}"):
        Calibration.load(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b'{"kind": NaN}'])
def test_a_file_that_is_no_json_is_named(content, tmp_path):
    (tmp_path / CALIBRATION_FILE).write_bytes(content)
    with pytest.raises(UserError, match=CALIBRATION_FILE):
        Calibration.load(tmp_path)
    with pytest.raises(UserError, match=r"missing\.json"):
        Calibration.load(tmp_path / "missing.json")


# ---------------------------------------------------------------- the run


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(kind, split rows): the stage, with a model that says what it is told to, and the folder of the run."""

    def calibrate(kind: str, truth: list[Row], found: list[PredictionRow]) -> Path:
        write_jsonl(tmp_path / "rows" / "val.jsonl", truth)
        (tmp_path / "run" / "model").mkdir(parents=True, exist_ok=True)
        config = Config(output_dir=str(tmp_path / "run"))
        config.evaluation.calibration = kind
        monkeypatch.setattr(scoring, "_predict_split", lambda *_: iter(found))
        stages.calibrate(stages.Run(config, stages.PreparedData(tmp_path / "rows", str(tmp_path))))
        return tmp_path / "run"

    return calibrate


def test_a_run_calibrates_its_model_on_val(run, capsys):
    truth, found = random_rows(13, photos=30)
    folder = run("isotonic", truth, found)
    calibration = Calibration.load(folder / "model")
    assert calibration == fit_calibration(truth, found, kind="isotonic", split="val")
    saved = read_predictions(folder / "val_predictions.jsonl")
    assert [row.to_json() for row in saved] == [calibrated_row(calibration, row).to_json() for row in found]
    assert "calibrated on val: isotonic" in capsys.readouterr().out


def test_a_run_that_cannot_or_shall_not_calibrate_leaves_no_old_calibration(run, capsys):
    truth, found = random_rows(14, photos=30)
    for kind, rows, guesses, said in (
        ("none", truth, found, ""),
        ("temperature", [photo("a.jpg")], [], "there is no val split with objects"),
        ("temperature", truth, [], "0 of 0 predictions are right"),
    ):
        assert Calibration.load(run("temperature", truth, found) / "model") is not None
        capsys.readouterr()
        assert Calibration.load(run(kind, rows, guesses) / "model") is None
        assert said in capsys.readouterr().out


def test_a_run_scored_on_val_reports_the_cross_fitted_error(run, tmp_path):
    truth, found = random_rows(15, photos=60)
    folder = run("isotonic", truth, found)
    calibration = Calibration.load(folder / "model")
    config = Config(output_dir=str(folder))
    config.evaluation.split, config.evaluation.bootstrap_samples = "val", 20
    itself = [calibrated_row(calibration, row) for row in found]
    write_jsonl(folder / "predictions.jsonl", itself)
    metrics = stages.score(stages.Run(config, stages.PreparedData(tmp_path / "rows", str(tmp_path))))
    naive = evaluate(truth, read_predictions(folder / "predictions.jsonl"), bootstrap_samples=20)
    assert metrics["ECE"] == calibration.after["ECE"] > naive["ECE"] and metrics["Brier"] > naive["Brier"]
    assert metrics["calibration"]["score"] == calibration.after and metrics["intervals"]["ECE"] is None
    assert metrics["calibration"]["objectness"] == naive["calibration"]["objectness"]
    assert (metrics["AP"], metrics["intervals"]["AP"]) == (naive["AP"], naive["intervals"]["AP"])
    write_jsonl(tmp_path / "rows" / "test.jsonl", truth)  # the same photos by another name chose nothing
    config.evaluation.split = "test"
    other = stages.score(stages.Run(config, stages.PreparedData(tmp_path / "rows", str(tmp_path))))
    assert other["ECE"] == naive["ECE"]
