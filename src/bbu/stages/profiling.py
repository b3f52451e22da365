"""Profile one training step of a run: data, model and trainer as training makes them, and nothing published."""

from __future__ import annotations

import os
from pathlib import Path

from bbu.config import Config
from bbu.errors import ConfigError, UserError
from bbu.stages.preparation import prepare
from bbu.stages.shown import photo_hashes
from bbu.stages.training import build_run, build_trainer, plan_packs, ready_device


def profile(config: Config, warm_up: int) -> tuple[str, Path]:
    """Prepare, build, train a few steps and trace one.

    Returns:
        The tables, and the folder that holds them and the trace.

    Raises:
        UserError: started with several processes, or in the folder of a run with other data.
    """
    from bbu.monitoring.profiling import FOLDER, profile_config, profile_step, write_report
    from bbu.training.trainer import training_arguments

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("bbu profile: traces one process; start it without torchrun")
    _check_data(config)
    folder, config = Path(config.output_dir) / FOLDER, profile_config(config)
    device, bf16 = ready_device(config)
    args = training_arguments(config, use_cpu=device.type == "cpu", bf16=bf16, has_val=False)
    data = prepare(config)
    hashes = photo_hashes(config, data, training=True, split="")
    processor, model, stream = build_run(config, data, hashes, device, bf16, args.world_size)
    packs = plan_packs(config, stream, processor, model, args.world_size)
    trainer = build_trainer(config, args, model, stream, processor, [], data.image_root, bf16, None, "", packs)
    return write_report(profile_step(trainer, folder, warm_up)), folder


def _check_data(config: Config) -> None:
    """Preparing replaces the rows in the output folder: those of a run must come out the same."""
    from omegaconf import OmegaConf

    path = Path(config.output_dir) / "config.yaml"
    if not path.is_file():
        return
    old, new = OmegaConf.load(path), OmegaConf.structured(config)
    if any(OmegaConf.select(old, key) != OmegaConf.select(new, key) for key in ("seed", "data.source")):
        raise ConfigError(
            f"{path}: the run in this folder has other data (data.source or seed), which a profile would replace; set "
            "another output_dir"
        )
