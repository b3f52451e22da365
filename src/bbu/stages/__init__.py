"""The main job in five stages: prepare → train → predict → score → draw. Each writes into the run's folder.

<output_dir>/config.yaml  data/  checkpoint-N/  model/  train_log.jsonl  training_log.html
             val_predictions.jsonl  predictions.jsonl  metrics.json  pictures/  report.html
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from bbu.config import Config
from bbu.stages.preparation import MODEL_FOLDER, PreparedData, prepare, taxonomy_of
from bbu.stages.scoring import calibrate, draw, predict, score
from bbu.stages.training import predict_rows, train

__all__ = [
    "MODEL_FOLDER",
    "PreparedData",
    "calibrate",
    "draw",
    "predict",
    "predict_rows",
    "prepare",
    "run",
    "score",
    "taxonomy_of",
    "train",
]


def run(config: Config) -> int:
    """The whole job. Under torchrun every rank trains; the first one goes on to predict, score and draw."""
    from bbu.evaluation import summary_table

    started = time.monotonic()
    data = train(config)
    if int(os.environ.get("RANK", "0")) != 0:
        return 0
    calibrate(config, data)
    predict(config, data)
    metrics = score(config, data)
    pictures = draw(config, data)
    output = Path(config.output_dir)
    print(f"\n{config.evaluation.split} split, scored once\n{summary_table(metrics)}")
    seconds = time.monotonic() - started
    print(f"\ntrained in {metrics.get('train_seconds', 0):.0f} s, all done in {seconds:.0f} s. Written:")
    for path in (output / "metrics.json", output / "predictions.jsonl", output / MODEL_FOLDER):
        print(f"  {path}")
    print(f"  {output / 'pictures'} ({len(pictures)} pictures)")
    print(f"  {output / 'report.html'}")
    if config.training.visual_every:
        print(f"  {output / 'training_log.html'}")
    return 0
