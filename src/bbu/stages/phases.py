"""Runs the phases of a config one after the other; the last one's model is the run's. Runs on every rank.

<output_dir>/<phase>/checkpoint-N  <output_dir>/<phase>/model   of each phase
<output_dir>/train_log.jsonl       all phases, steps counted through
<output_dir>/model                 a copy of the last phase's
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bbu.config import Config, as_written, final_config, phase_configs, schedule_table
from bbu.jsonl import atomic_writer, iter_json_lines, write_json
from bbu.monitoring.trackers import place_trackers
from bbu.stages.identity import STARTED_FROM, model_digest
from bbu.stages.judging import rules_of
from bbu.stages.preparation import PreparedData, prepare
from bbu.stages.run import Run, ready_device
from bbu.stages.run_folder import CONFIG_FILE, MARKER, MODEL_FOLDER, RunFolder, claim
from bbu.stages.training import Part, train
from bbu.training.distributed import gather, is_main, main_first
from bbu.training.folders import checkpoints

SUMMARY_FILE = "train_summary.json"


def train_phases(config: Config, *, scored: bool = False) -> Run:
    """Train each phase from the model of the one before, and publish the last one's as ``<output_dir>/model``.

    With training.resume, phases that are finished are left as they are, and the first one that is not goes on from its
    newest checkpoint.

    Raises:
        UserError, Stopped: as ``stages.train``.
    """
    if not is_main():
        return _train_phases(config, None, scored)
    with claim(config) as folder:
        return _train_phases(config, folder, scored)


def _train_phases(config: Config, folder: RunFolder | None, scored: bool) -> Run:
    place_trackers(config)
    _join_ranks(config)
    with main_first():
        data = prepare(config, make=is_main())
    final = Run(final_config(config), data)
    if scored:
        _ = final.evaluation_rows, rules_of(final)
    if folder:
        print(schedule_table(config), flush=True)
        folder.begin(resumed=config.training.resume)
        with atomic_writer(Path(config.output_dir) / CONFIG_FILE) as stream:
            stream.write(as_written(config))
    summaries: list[dict[str, Any]] = []
    for number, own in enumerate(phase_configs(config)):
        _train_phase(config, number, own, data, summaries)
    if folder:
        _publish(final, summaries)
        folder.published()
    gather([None])
    return final


def _join_ranks(config: Config) -> None:
    """Begin the process group, which transformers does when its arguments are made."""
    from bbu.models.precision import use_bf16
    from bbu.training.trainer import training_arguments

    first = phase_configs(config)[0]
    device = ready_device(first)
    bf16 = use_bf16(first.training.precision, device)
    training_arguments(first, use_cpu=device.type == "cpu", bf16=bf16, has_val=True)


def _train_phase(config: Config, number: int, own: Config, data: PreparedData, summaries: list[dict[str, Any]]) -> None:
    """Train a phase unless it is finished, and add its summary."""
    from bbu.models.acceleration.compiling import forget_graphs
    from bbu.training.loss_log import LOG_FILE, LogPlace

    phase, log = config.phases[number], Path(config.output_dir) / LOG_FILE
    finished = gather([_finished(own)] if is_main() else [])[0] and config.training.resume
    if finished:
        if is_main():
            print(f"phase {phase.name}: finished before", flush=True)
    else:
        begun = gather([_begun(own)] if is_main() else [])[0] and config.training.resume
        own.training.resume = begun
        own.training.overwrite = config.training.overwrite or (config.training.resume and not begun)
        if own.model.compile:
            forget_graphs()
        if is_main():
            print(f"\nphase {phase.name} ({number + 1} of {len(config.phases)})", flush=True)
        earlier = [one["phase"] for one in summaries]
        lines = [line for _, line in iter_json_lines(log) if line.get("phase") in earlier] if earlier else []
        steps, run_id = sum(one["steps"] for one in summaries), summaries[-1]["wandb"] if summaries else None
        train(own, part=Part(data, LogPlace(log, lines, phase.name, steps), run_id))
    summaries.append(gather([_summary(phase.name, own)] if is_main() else [])[0])


def _finished(own: Config) -> bool:
    """Whether a phase has published its model, from the model that the phase before has now."""
    output = Path(own.output_dir)
    if not (output / SUMMARY_FILE).is_file() or not (output / MODEL_FOLDER).is_dir():
        return False
    facts = json.loads((output / MARKER).read_text(encoding="utf-8"))
    return facts.get("run", 0) == facts.get("published", 0) and _same_start(own)


def _begun(own: Config) -> bool:
    """Whether a phase has checkpoints, from the model that the phase before has now."""
    return bool(checkpoints(Path(own.output_dir))) and _same_start(own)


def _same_start(own: Config) -> bool:
    from bbu.training.recovery import IDENTITY_FILE

    newest = checkpoints(Path(own.output_dir))[-1:]
    files = [path / IDENTITY_FILE for path in newest if (path / IDENTITY_FILE).is_file()]
    saved = json.loads(files[0].read_text(encoding="utf-8")).get(STARTED_FROM) if files else None
    return saved == (model_digest(Path(own.model.start)) if own.model.start else None)


def _summary(name: str, own: Config) -> dict[str, Any]:
    from bbu.training.recovery import tracked_run

    output = Path(own.output_dir)
    summary = json.loads((output / SUMMARY_FILE).read_text(encoding="utf-8"))
    newest = checkpoints(output)[-1:]
    return {"phase": name, "wandb": tracked_run(newest[0]) if newest else None, **summary}


def _publish(final: Run, summaries: list[dict[str, Any]]) -> None:
    """Copy the last phase's model, and write the summary of the whole run."""
    from bbu.training.recovery import publish

    last = final.output / summaries[-1]["phase"] / MODEL_FOLDER
    publish(last, final.model_folder)
    phases = [{key: value for key, value in one.items() if key != "wandb"} for one in summaries]
    write_json(
        final.output / SUMMARY_FILE,
        {
            "train_seconds": round(sum(one["train_seconds"] for one in summaries), 1),
            "steps": sum(one["steps"] for one in summaries),
            "checkpoint": f"{summaries[-1]['phase']}/{summaries[-1]['checkpoint']}",
            "closing": summaries[-1]["closing"],
            "phases": phases,
        },
    )
