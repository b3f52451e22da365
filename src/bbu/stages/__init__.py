"""The whole job in stages: prepare → train → calibrate → predict → score → draw → answer, in the run's folder.

<output_dir>/config.yaml  data/  checkpoint-N/  model/  train_log.jsonl  training_log.html
             val_predictions.jsonl  predictions.jsonl  metrics.json  pictures/  report.html  answers.jsonl
"""

from __future__ import annotations

import time

from bbu.config import Config
from bbu.interruption import Stopped
from bbu.stages.answers import ANSWERS_FILE, answers_are_scored, score_answers
from bbu.stages.preparation import PreparedData, prepare, taxonomy_of
from bbu.stages.run import Run, open_run
from bbu.stages.run_folder import MODEL_FOLDER, RunFolder, claim
from bbu.stages.scoring import calibrate, draw, predict, score
from bbu.stages.training import predict_rows, train
from bbu.training.distributed import is_main

__all__ = [
    "MODEL_FOLDER",
    "PreparedData",
    "Run",
    "RunFolder",
    "answers_are_scored",
    "calibrate",
    "claim",
    "draw",
    "open_run",
    "predict",
    "predict_rows",
    "prepare",
    "run_job",
    "score",
    "score_answers",
    "taxonomy_of",
    "train",
]


def run_job(config: Config) -> int:
    """Run all stages, without detection those up to the published model.

    Under torchrun every rank trains; the main rank alone does the rest.

    Raises:
        Stopped: a signal ended a stage; its message says how to go on.
    """
    started, scored = time.monotonic(), config.model.detection is not None
    if not is_main():
        train(config, scored=scored)
        return 0
    with claim(config):
        run = train(config, scored=scored)
        try:
            return _after_training(run, started)
        except Stopped as error:
            raise Stopped(error.signum, f"{run.model_folder} is published; score it with bbu score") from None


def _after_training(run: Run, started: float) -> int:
    from bbu.evaluation import summary_table
    from bbu.evaluation.answers import answer_lines

    config = run.config
    if config.model.detection is None:
        print(f"{run.model_folder} is published; model.detection is null, so no boxes are predicted and scored")
        return 0
    calibrate(run)
    predict(run)
    metrics = score(run)
    pictures = draw(run)
    scores = score_answers(run, metrics) if answers_are_scored(run) else {}
    print(f"\n{config.evaluation.split} split, scored once\n{summary_table(metrics)}")
    if scores:
        print(f"\n{answer_lines(scores)}")
    seconds = time.monotonic() - started
    print(f"\ntrained in {metrics.get('train_seconds', 0):.0f} s, all done in {seconds:.0f} s. Written:")
    for path in (run.output / "metrics.json", run.output / "predictions.jsonl", run.model_folder):
        print(f"  {path}")
    print(f"  {run.output / 'pictures'} ({len(pictures)} pictures)")
    print(f"  {run.output / 'report.html'}")
    if scores:
        print(f"  {run.output / ANSWERS_FILE}")
    if config.training.visual_every:
        print(f"  {run.output / 'training_log.html'}")
    return 0
