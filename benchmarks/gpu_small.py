"""A small model on a GPU, where launches and waits count more than products: a profile of one step, and a training.

Called by benchmarks/gpu.py. The job is configs/bccd.yaml, 364 real photos; where they are not, the drawn photos of
configs/demo.yaml, and the figures say so.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gpu_machine import Findings, Setting
from gpu_model import PROJECT
from gpu_timeline import gap_figures
from transformers import TrainerCallback

from bbu import stages
from bbu.config import Config, load_config
from bbu.monitoring.profiling import TRACE_FILE, profile_config
from bbu.monitoring.trace import KERNELS, read_events, step_operations
from bbu.stages import training
from bbu.stages.run import ready_device
from bbu.training.trainer import training_arguments

PHOTOS = "data/bccd_voc"  # in a shared folder
WARM_UP = 10  # steps before the one that is traced
TRAIN_SECONDS, QUICK_TRAIN_SECONDS = 20, 60  # less where no more are left
RESERVED_SECONDS = 18  # to prepare and build twice, to probe, and to publish, predict and score
LEAST_SECONDS = 5
REPORT_SECONDS = 5.0
PROBE_SECONDS, TINY_PROBE_SECONDS = 4.0, 0.2  # of training, to know how many steps the time is for
WARM_UP_SHARE = 175 / 2000  # of configs/bccd.yaml's steps
DRAWN = (
    "data.source.photos={train: 200, val: 0, test: 40}", "training.eval_every=0", "training.visual_every=0",
    "training.closing.epochs=0", 'training.select_best=""',
)  # fmt: skip
TINY = (
    "data.source.photos={train: 6, val: 0, test: 2}", "data.max_pixels=50176", "model.detection.queries=10",
    "model.detection.layers=2", "data.workers=0", "training.threads=1",
)  # fmt: skip


def small_job(setting: Setting, output: str, *overrides: str) -> tuple[Config, dict[str, Any]]:
    """The config, and what is to be said of it."""
    workers = 0 if setting.tiny else min(8, (os.cpu_count() or 1) - 1)
    common = (f"output_dir={output}", f"data.workers={workers}", "evaluation.bootstrap_samples=0", *overrides)
    photos = None if setting.tiny else real_photos()
    if photos is not None:
        config = load_config(PROJECT / "configs" / "bccd.yaml", [f"data.source.path={photos}", *common])
        return config, {"config": "configs/bccd.yaml", "workers": workers}
    tiny = TINY if setting.tiny else ()
    config = load_config(PROJECT / "configs" / "demo.yaml", [*DRAWN, *common, *tiny])
    why = "tiny" if setting.tiny else f"the photos of configs/bccd.yaml, {PHOTOS}, are not here"
    return config, {"config": "configs/demo.yaml", "instead_because": why, "workers": workers}


def real_photos() -> Path | None:
    """The folder of BCCD's photos, beside the project or in $BBU_SHARED."""
    shared = (PROJECT.parent / "shared", PROJECT / "shared", Path(os.environ.get("BBU_SHARED") or "."))
    return next((folder / PHOTOS for folder in shared if (folder / PHOTOS).is_dir()), None)


# ---------------------------------------------------------------- profile


def profile(setting: Setting, findings: Findings) -> None:
    """What `bbu profile` finds: operators, kernels, and how long the GPU had nothing to do."""
    with tempfile.TemporaryDirectory() as output:
        warm_up = 1 if setting.tiny else WARM_UP
        config, about = small_job(setting, output)
        findings.add(**about)
        trace = stages_profile(config, warm_up) / TRACE_FILE
        found = gap_figures(trace)
        findings.add(
            **found,
            idle_share=found["idle_us"] / found["step_us"] if setting.on_gpu else None,
            kernels=len(read_events(trace)[KERNELS]),
            operators=sum(took.calls for took in step_operations(trace).values()),
        )


def stages_profile(config: Config, warm_up: int) -> Path:
    """Trace a step; the folder with its tables, which are printed."""
    from bbu.stages.profiling import profile as profile_run

    tables, folder = profile_run(config, warm_up)
    print(tables, flush=True)
    return folder


# ---------------------------------------------------------------- training


class Clock(TrainerCallback):
    """When each step ended.

    Args:
        seconds: the training stops after so many.
        report: called every REPORT_SECONDS.
    """

    def __init__(self, seconds: float | None = None, report: Callable[[Clock], None] | None = None) -> None:
        self.ends: list[float] = []
        self.seconds, self.report, self.reported = seconds, report, time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(time.monotonic())
        if self.seconds is not None and self.ends[-1] - self.ends[0] > self.seconds:
            control.should_training_stop = True
        if self.report is not None and self.ends[-1] - self.reported > REPORT_SECONDS:
            self.report(self)
            self.reported = self.ends[-1]

    def steps_a_second(self, after: float) -> float | None:
        """Of the steps after a share of them, which are slower: kernels are chosen, shapes are new."""
        ends = self.ends[int(len(self.ends) * after) :]
        return (len(ends) - 1) / (ends[-1] - ends[0]) if len(ends) > 1 else None


@contextmanager
def clocked(clock: Clock) -> Iterator[None]:
    """Every trainer that is built meanwhile has the clock."""
    build = training.build_trainer

    def with_clock(*arguments: Any, **options: Any) -> Any:
        trainer = build(*arguments, **options)
        trainer.add_callback(clock)
        return trainer

    training.build_trainer = with_clock
    try:
        yield
    finally:
        training.build_trainer = build


def train(setting: Setting, findings: Findings) -> None:
    """As many steps as the time is for, with the whole schedule; steps a second; AP50 on test."""
    wanted = QUICK_TRAIN_SECONDS if setting.quick else TRAIN_SECONDS
    seconds = min(wanted, setting.left - RESERVED_SECONDS)
    if seconds < LEAST_SECONDS:
        findings.add(skipped=f"{setting.left:.0f} s are too few")
        return
    with tempfile.TemporaryDirectory() as folder:
        steps = probed_steps(setting, findings, f"{folder}/probe", seconds)
        steps = 2 if setting.tiny else steps
        warm_up = max(1, round(steps * WARM_UP_SHARE))
        overrides = (f"training.max_steps={steps}", f"training.warmup_steps={warm_up}")
        config, about = small_job(setting, f"{folder}/run", *overrides)
        findings.add(**about, steps=steps, batch_size=config.training.batch_size)

        def report(clock: Clock) -> None:
            spent = clock.ends[-1] - clock.ends[0]
            findings.add(steps_done=len(clock.ends), train_seconds=spent, steps_a_second=clock.steps_a_second(0.1))

        clock = Clock(report=report)
        with clocked(clock):
            run = stages.train(config, scored=True)
        report(clock)
        stages.predict(run)
        findings.add(AP50=stages.score(run)["AP50"])


def probed_steps(setting: Setting, findings: Findings, output: str, seconds: float) -> int:
    """How many steps fit into some seconds, from a training of a few that saves nothing."""
    config, _ = small_job(setting, output)
    device, config = ready_device(config), profile_config(config)
    run, clock = stages.open_run(config), Clock(TINY_PROBE_SECONDS if setting.tiny else PROBE_SECONDS)
    args = training_arguments(config, use_cpu=device.type == "cpu", bf16=run.bf16, has_val=False)
    trainer = training.build_trainer(run, args)
    trainer.args.set_save(strategy="no")
    trainer.write_no_log()
    trainer.add_callback(clock)
    trainer.train()
    rate = clock.steps_a_second(0.3)
    findings.add(probe_steps_a_second=rate, probe_steps=len(clock.ends))
    return min(config.training.max_steps, max(2, round((rate or 1.0) * seconds)))
