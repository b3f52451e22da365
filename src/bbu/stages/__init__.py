"""The whole job in stages: prepare → train → calibrate → predict → score → judge → draw → answer, in the run's
folder.

<output_dir>/config.yaml  data/  checkpoint-N/  model/  train_log.jsonl  training_log.html
             val_predictions.jsonl  predictions.jsonl  metrics.json  pictures/  report.html
             answers.jsonl  verdicts.jsonl
"""

from __future__ import annotations

import time

from bbu.config import Config
from bbu.interruption import Stopped
from bbu.jsonl import write_json
from bbu.stages.answers import ANSWERS_FILE, answers_are_scored, score_answers
from bbu.stages.judging import VERDICTS_FILE, judge_groups
from bbu.stages.phases import train_phases
from bbu.stages.preparation import PreparedData, prepare, taxonomy_of
from bbu.stages.run import Run, open_run
from bbu.stages.run_folder import MODEL_FOLDER, RunFolder, claim
from bbu.stages.scoring import calibrate, draw, facts_of, predict, score
from bbu.stages.training import predict_rows, train
from bbu.training.distributed import is_main

__all__ = [
    "MODEL_FOLDER",
    "PreparedData",
    "Run",
    "RunFolder",
    "calibrate",
    "claim",
    "draw",
    "open_run",
    "predict",
    "predict_rows",
    "prepare",
    "run_job",
    "score",
    "score_all",
    "taxonomy_of",
    "train",
    "train_phases",
]


def run_job(config: Config) -> int:
    """Run all stages. Under torchrun every rank trains; the main rank alone does the rest.

    Raises:
        Stopped: a signal ended a stage; its message says how to go on.
    """
    started, scored = time.monotonic(), config.model.detection is not None
    learn = train_phases if config.phases else train
    if not is_main():
        learn(config, scored=scored)
        return 0
    with claim(config):
        run = learn(config, scored=scored)
        try:
            return _after_training(run, started)
        except Stopped as error:
            raise Stopped(error.signum, f"{run.model_folder} is published; score it with bbu score") from None


def _after_training(run: Run, started: float) -> int:
    tables, written = score_all(run)
    seconds = time.monotonic() - started
    print(f"\n{run.config.evaluation.split} split, scored once\n{tables}")
    trained = facts_of(run).get("train_seconds", 0)
    print(f"\ntrained in {trained:.0f} s, all done in {seconds:.0f} s. Written:\n  {run.model_folder}")
    for line in written:
        print(f"  {line}")
    return 0


def score_all(run: Run) -> tuple[str, list[str]]:
    """Score the published model on the evaluation split: its boxes if it detects, and what it answers in text.

    Returns:
        Tables for a terminal, and what was written, a line for each.
    """
    from bbu.evaluation import summary_table
    from bbu.evaluation.answers import answer_lines
    from bbu.judging.scoring import verdict_table

    output, tables = run.output, []
    metrics, written = facts_of(run), [str(output / "metrics.json")]
    if run.config.model.detection is not None:
        calibrate(run)
        predict(run)
        metrics = score(run)
        verdicts = judge_groups(run, metrics)
        pictures = draw(run)
        tables.append(summary_table(metrics))
        if verdicts is not None:
            tables.append(f"verdicts by {run.config.evaluation.rules}, threshold from {verdicts['threshold_from']}")
            tables.append(verdict_table(verdicts))
            written.append(str(output / VERDICTS_FILE))
        written += [str(output / "predictions.jsonl"), f"{output / 'pictures'} ({len(pictures)} pictures)"]
        written.append(str(output / "report.html"))
    else:
        tables.append("model.detection is null: no boxes are predicted and scored")
        write_json(output / "metrics.json", metrics)
    if answers_are_scored(run):
        tables.append(answer_lines(score_answers(run, metrics)))
        written.append(str(output / ANSWERS_FILE))
    if run.config.training.visual_every:
        folders = [output / phase.name for phase in run.config.phases] or [output]
        written += [str(folder / "training_log.html") for folder in folders]
    return "\n\n".join(tables), written
