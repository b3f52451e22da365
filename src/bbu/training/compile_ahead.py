"""Compiles before the first step, so that a compiler that fails or takes minutes shows at once, and changes nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from bbu.errors import UserError
from bbu.models.acceleration.compiling import compiled_graphs, first_parameters, run_uncompiled
from bbu.training.distributed import is_main

if TYPE_CHECKING:
    from bbu.training.trainer import BBUTrainer


class CompileAhead(TrainerCallback):
    """Runs the first batch of the run forward and backward; weights, their gradients and random numbers stay.

    A batch of one sample, or with another dtype of a block's input, may need a graph more later.
    """

    def __init__(self, trainer: BBUTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        from torch._inductor.codecache import cache_dir

        parts, started = self.trainer.run_config.model.compile, time.monotonic()
        self.trainer.watchdog.beat("compiling")
        try:
            self._run_once()
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # whatever the compiler raises; other faults come again in the first step
            run_uncompiled(self.trainer.unwrapped.model, parts, error)
            return
        if is_main():
            took = f"{compiled_graphs()} graphs of {', '.join(parts)} in {time.monotonic() - started:.0f} s"
            print(f"model.compile: {took}; a later run takes them from {cache_dir()}", flush=True)

    def _run_once(self) -> None:
        trainer = self.trainer
        objective, inputs = trainer.unwrapped.train(), trainer._prepare_inputs(_first_batch(trainer))
        first = first_parameters(objective.model, trainer.run_config.model.compile)
        device = trainer.args.device
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices), trainer.compute_loss_context_manager():
            loss = torch.stack([term.float() for term in objective(**inputs).values()]).sum()
            if first:  # no hook of DDP or DeepSpeed runs, and few gradients are held
                torch.autograd.grad(loss, first, allow_unused=True)


def _first_batch(trainer: BBUTrainer) -> Any:
    """The batch that the run begins with, made here."""
    stream: Any = trainer.train_dataset
    packs = trainer.packs
    wanted = [next(iter(packs))] if packs is not None else list(range(trainer.args.per_device_train_batch_size))
    return trainer.data_collator(stream.__getitems__(wanted))
