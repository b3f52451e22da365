"""Stages after training, with the published model: calibrate, predict, score, draw."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bbu.errors import ConfigError, UserError
from bbu.jsonl import write_json, write_jsonl
from bbu.records import PredictionRow, Row, iter_predictions, read_predictions
from bbu.stages.judging import VERDICTS_FILE
from bbu.stages.run import Run
from bbu.stages.run_folder import PICTURES_FOLDER


def _check_detects(run: Run) -> None:
    if run.config.model.detection is None:
        raise ConfigError(
            f"{run.output}: its model is trained without a detection head (model.detection: null), so it has no boxes "
            "to calibrate, predict or score; ask it for text, with bbu summarize or Inference.generate_text"
        )


def calibrate(run: Run) -> None:
    """Calibrate the published model's scores on val; writes model/calibration.json.

    Also writes val_predictions.jsonl, with calibrated scores. If there is no val split, or calibration cannot be fitted
    on it, the model stays uncalibrated and a printed line says so.

    Raises:
        ConfigError: the model has no detection.
    """
    from bbu.evaluation.calibration import CALIBRATION_FILE, calibrated_row, fit_calibration

    _check_detects(run)
    file = run.model_folder / CALIBRATION_FILE
    file.unlink(missing_ok=True)  # the fit needs uncalibrated scores
    (run.output / "val_predictions.jsonl").unlink(missing_ok=True)  # of another calibration
    rows, kind = run.val, run.config.evaluation.calibration
    if kind == "none":
        return
    if not any(row.objects for row in rows):
        print("scores are not calibrated: there is no val split with objects", flush=True)
        return
    found = list(_predict_split(run, "val", rows))
    try:
        calibration = fit_calibration(rows, found, kind=kind, split="val")
    except UserError as error:
        print(f"scores are not calibrated: {error}", flush=True)
        return
    write_jsonl(run.output / "val_predictions.jsonl", [calibrated_row(calibration, row) for row in found])
    calibration.save(file)
    print(f"scores calibrated on val: {calibration.summary()}", flush=True)


def predict(run: Run) -> Path:
    """Predict the evaluation split with the published model; writes predictions.jsonl.

    Raises:
        ConfigError: the model has no detection.
    """
    _check_detects(run)
    path = run.output / "predictions.jsonl"
    write_jsonl(path, _predict_split(run, run.config.evaluation.split, run.evaluation_rows))
    return path


def _predict_split(run: Run, split: str, rows: Sequence[Row]) -> Iterable[PredictionRow]:
    """Predictions of the published model, one row for each photo, with a progress bar."""
    from tqdm import tqdm

    from bbu.inference import Inference

    config = run.config
    shown = run.shown_with(rows, run.hashes_of(training=False, split=split))
    inference = Inference.as_configured(run.model_folder, config)
    inference.check_detects()
    if config.data.episodes.context_photos and not inference.processor.spec.context_note:
        raise ConfigError("data.episodes.context_photos: the model was not trained with context photos; set it to 0")
    found = inference.predictor.predict_files([row.images[0] for row in rows], run.data.image_root, shown=shown)
    bar: Iterable[PredictionRow] = tqdm(found, total=len(rows), desc=f"predict {split}", unit="photo", file=sys.stderr)
    return bar


def score(run: Run) -> dict[str, Any]:
    """Score predictions.jsonl against the evaluation split; writes metrics.json.

    On the split that calibrated the scores, ECE, Brier and bins of the score are the cross-fitted ones.

    Raises:
        ConfigError: the model has no detection.
    """
    from bbu.evaluation import evaluate
    from bbu.evaluation.calibration import FIGURES, Calibration

    _check_detects(run)
    config, output = run.config, run.output
    seen = Counter(item.desc for row in run.students for item in row.objects)
    metrics = evaluate(
        run.evaluation_rows,
        iter_predictions(output / "predictions.jsonl"),
        score_threshold=config.evaluation.score_threshold,
        train_descriptions=seen,
        precision=config.evaluation.target_precision,
        fppi=config.evaluation.fppi,
        bootstrap_samples=config.evaluation.bootstrap_samples,
    )
    calibration = Calibration.load(run.model_folder)
    if calibration is not None and calibration.split == config.evaluation.split:
        metrics["calibration"]["score"] = calibration.after
        metrics.update({name: calibration.after[name] for name in FIGURES})
        metrics["intervals"].update(dict.fromkeys(set(FIGURES) & set(metrics["intervals"])))
    metrics |= facts_of(run)
    write_json(output / "metrics.json", metrics)
    return metrics


def facts_of(run: Run) -> dict[str, Any]:
    """What metrics.json says of the run itself."""
    config, summary = run.config, run.output / "train_summary.json"
    found = json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else {}
    return {**found, "split": config.evaluation.split, "config": config.name, "seed": config.seed}


def draw(run: Run) -> list[Path]:
    """Draw ground truth beside predictions; writes pictures/ (some photos) and report.html (all)."""
    from bbu.evaluation.page import write_report
    from bbu.evaluation.pictures import save_pictures
    from bbu.judging.verdicts import read_verdicts

    config, output, root = run.config, run.output, run.data.image_root
    rows, predictions = run.evaluation_rows, read_predictions(output / "predictions.jsonl")
    run.folder.forget(PICTURES_FOLDER)
    pictures = save_pictures(
        rows,
        predictions,
        root,
        output / PICTURES_FOLDER,
        limit=config.evaluation.pictures,
        threshold=config.evaluation.score_threshold,
    )
    run.folder.remember(PICTURES_FOLDER, pictures)
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    title = f"{config.name}, {config.evaluation.split} split"
    verdicts = read_verdicts(output / VERDICTS_FILE) if metrics.get("verdicts") else []
    write_report(output / "report.html", rows, predictions, metrics, image_root=root, title=title, verdicts=verdicts)
    return pictures
