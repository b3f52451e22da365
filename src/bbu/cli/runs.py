"""Commands that work on a config: train, look at data, compare, profile."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bbu.cli.arguments import Commands, Parser, not_negative, positive

if TYPE_CHECKING:
    from bbu.config import Config


def add_commands(commands: Commands) -> None:
    """Commands whose first argument is a config."""
    _of_config(commands, "run", _run, "prepare data, train, predict, score, draw: the whole job of a config")
    _of_config(commands, "prepare", _prepare, "only make the rows that a config trains on")
    _of_config(commands, "score", _score, "predict, score and draw again with the model a run has trained")
    _of_config(commands, "check", _check, "read a config and its overrides, and stop")

    doctor = _of_config(commands, "doctor", _doctor, "say what is wrong with the data of a config, before training")
    doctor.add_argument("--html", help="write the report as one page that opens in a browser")
    doctor.add_argument("--json", help="write the report as JSON")
    doctor.add_argument("--strict", action="store_true", help="exit status 1 on warnings too, not only on errors")
    doctor.add_argument("--samples", type=not_negative, default=12, help="photos to prove and draw (default 12)")

    augment = _of_config(commands, "augment", _augment, "draw a sheet of training photos as augmentation makes them")
    augment.add_argument("--output", default="augment.png", help="PNG or JPEG to write (default augment.png)")
    augment.add_argument("--photos", type=positive, default=6, help="rows of the sheet (default 6)")
    augment.add_argument("--views", type=positive, default=4, help="epochs, a column each (default 4)")
    augment.add_argument("--epoch", type=not_negative, default=0, help="the first of them (default 0)")
    augment.add_argument("--processes", type=positive, help="of the run (default: one a GPU of this machine, or one)")

    profile = _of_config(commands, "profile", _profile, "say where the time of a training step goes: docs/profiling.md")
    profile.add_argument("--warm-up", type=positive, default=3, help="steps before the one that is traced (default 3)")

    baselines = _of_config(
        commands, "baselines", _baselines, "compare the model a run has trained with simpler answers"
    )
    baselines.add_argument("--limit", type=positive, help="only so many photos, the first ones (default all)")


def _of_config(commands: Commands, name: str, action: Callable[[argparse.Namespace], int], text: str) -> Parser:
    """A command that takes a config and overrides of its keys."""
    command = commands.add_parser(name, help=text, description=text)
    command.set_defaults(action=action)
    command.add_argument("config", help="a YAML file, e.g. configs/demo.yaml")
    command.add_argument("overrides", nargs="*", help="dotted keys, e.g. training.max_steps=10")
    return command


def _run(arguments: argparse.Namespace) -> int:
    from bbu.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    from bbu import stages
    from bbu.training.distributed import end_group

    status = stages.run_job(config)
    end_group()
    return status


def _prepare(arguments: argparse.Namespace) -> int:
    from bbu import stages
    from bbu.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    with stages.claim(config):
        data = stages.prepare(config)
    print(f"rows in {data.folder}, photos under {data.image_root}")
    return 0


def _score(arguments: argparse.Namespace) -> int:
    from bbu import stages
    from bbu.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    with stages.claim(config) as folder:
        folder.check_published()
        run = stages.open_run(config)
        print(stages.score_all(run)[0])
    return 0


def _check(arguments: argparse.Namespace) -> int:
    from bbu.config import load_config, schedule_table

    config = load_config(arguments.config, arguments.overrides)
    print(f"{arguments.config}: fine; writes to {config.output_dir}")
    if config.phases:
        print(schedule_table(config))
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    import tempfile

    from bbu.config import load_config

    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # it looks at what is here, and downloads no model
    config = load_config(arguments.config, arguments.overrides)
    from bbu import stages
    from bbu.doctor.examination import examine
    from bbu.doctor.page import write_page
    from bbu.doctor.preparation import doctor_config
    from bbu.jsonl import write_json

    mirror = stages.taxonomy_of(config).mirror
    with tempfile.TemporaryDirectory(prefix="bbu-doctor-") as folder:
        data = stages.prepare(doctor_config(config, Path(folder)))
        report = examine(config, data.folder, data.image_root, mirror, samples=arguments.samples)
        print(f"\n{report.to_text()}", flush=True)
        if arguments.html:
            write_page(arguments.html, report)
        if arguments.json:
            write_json(arguments.json, report.to_json())
    for path in (arguments.html, arguments.json):
        if path:
            print(f"{'written':<10}{path}")
    return report.exit_status(arguments.strict)


def _augment(arguments: argparse.Namespace) -> int:
    from bbu import stages
    from bbu.config import load_config
    from bbu.data.augment import Augmenter
    from bbu.data.augment.contact_sheet import draw_contact_sheet, save_contact_sheet
    from bbu.training.distributed import processes_to_start

    config = load_config(arguments.config, arguments.overrides)
    with stages.claim(config):
        run = stages.open_run(config, arguments.processes or processes_to_start())
        epochs = range(arguments.epoch, arguments.epoch + arguments.views)
        progress = {epoch: min((epoch + 0.5) / run.epochs, 1.0) for epoch in epochs}
    pool, root, mirror = run.training_rows, run.data.image_root, run.taxonomy.mirror
    augmenter = Augmenter(config.data.augment, config.seed, pool=pool, image_root=root, mirror=mirror)
    sheet = draw_contact_sheet(pool, root, augmenter, photos=arguments.photos, epochs=progress)
    save_contact_sheet(sheet, arguments.output)
    shown = min(arguments.photos, len(pool))
    print(f"{shown} photos, epochs {epochs[0]} to {epochs[-1]} of {run.epochs:.1f}: {arguments.output}")
    return 0


def _baselines(arguments: argparse.Namespace) -> int:
    from bbu import stages
    from bbu.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    with stages.claim(config) as folder:
        folder.check_published()
        return _compare_baselines(config, arguments.limit)


def _compare_baselines(config: Config, limit: int | None) -> int:
    from bbu import stages
    from bbu.baselines import Material, baselines_table, compare

    data = stages.prepare(config)
    students = [sample.student for sample in data.samples("train")]
    rows = [row for row in data.rows(config.evaluation.split) if row.annotated][:limit]
    material = Material(config, rows, students, data.rows("teacher"), data.image_root)
    report = compare(material, Path(config.output_dir) / stages.MODEL_FOLDER)
    print(f"\n{len(rows)} photos of the {config.evaluation.split} split\n{baselines_table(report)}")
    print(f"written: {Path(config.output_dir) / 'baselines.json'}, baselines/*.jsonl")
    return 0


def _profile(arguments: argparse.Namespace) -> int:
    from bbu.config import load_config

    config = load_config(arguments.config, arguments.overrides)
    from bbu import stages
    from bbu.stages.profiling import profile

    with stages.claim(config):
        tables, folder = profile(config, arguments.warm_up)
    print(f"\n{tables}\n\nwritten: {folder}; open its trace.json in https://ui.perfetto.dev or chrome://tracing")
    return 0
