"""Profiles one training step with the run's own data, model and trainer; publishes nothing."""

from __future__ import annotations

from pathlib import Path

from bbu.config import Config
from bbu.errors import ConfigError, UserError
from bbu.stages.run import open_run, ready_device
from bbu.stages.training import build_trainer
from bbu.training.distributed import world_size


def profile(config: Config, warm_up: int) -> tuple[str, Path]:
    """Prepare, build, train ``warm_up`` steps and trace the next one.

    Returns:
        The tables as text, and the folder with them and the trace.

    Raises:
        UserError: there are several processes, or the output folder belongs to a run with other data.
    """
    from bbu.monitoring.profiling import FOLDER, profile_config, profile_step, write_report
    from bbu.training.trainer import training_arguments

    if world_size() > 1:
        raise UserError("bbu profile: traces one process; start it without torchrun")
    _check_data(config)
    folder, config = Path(config.output_dir) / FOLDER, profile_config(config)
    device = ready_device(config)
    run = open_run(config)
    args = training_arguments(config, use_cpu=device.type == "cpu", bf16=run.bf16, has_val=False)
    return write_report(profile_step(build_trainer(run, args), folder, warm_up)), folder


def _check_data(config: Config) -> None:
    """Refuse a folder whose run has other data: preparing would replace its rows."""
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
