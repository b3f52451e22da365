"""Profile one training step of a run: data, model and trainer as training makes them, and nothing published."""

from __future__ import annotations

import os
from pathlib import Path

from bbu.config import Config
from bbu.errors import ConfigError, UserError
from bbu.stages.preparation import prepare
from bbu.stages.shown import photo_hashes
from bbu.stages.training import _packs, _single_process_rendezvous, _stream, _trainer


def profile(config: Config, warm_up: int) -> tuple[str, Path]:
    """Prepare, build, train a few steps and trace one.

    Returns:
        The tables, and the folder that holds them and the trace.

    Raises:
        UserError: started with several processes, or in the folder of a run with other data.
    """
    import torch

    from bbu.models.build import build_model, build_processor
    from bbu.training.precision import compute_device, use_bf16
    from bbu.training.profiling import FOLDER, profile_config, profile_step, write_report
    from bbu.training.trainer import training_arguments

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("bbu profile: traces one process; start it without torchrun")
    _check_data(config)
    folder, config = Path(config.output_dir) / FOLDER, profile_config(config)
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    device = compute_device()
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    bf16 = use_bf16(config.training.precision, device)
    _single_process_rendezvous(config)
    args = training_arguments(config, use_cpu=device.type == "cpu", bf16=bf16, has_val=False)
    data = prepare(config)
    samples = data.samples("train")
    hashes = photo_hashes(config, data, training=True, split="")
    processor = build_processor(config, samples, data.image_root)
    model = build_model(config, processor.tokenizer, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    stream = _stream(config, samples, data.rows("teacher"), hashes, processor, args.world_size)
    packs = _packs(config, stream, processor, model, args.world_size)
    trainer = _trainer(config, args, model, stream, processor, [], data.image_root, bf16, None, "", packs)
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
