"""BBUTrainer: transformers' Trainer with globally normalised loss terms, five learning rates and our checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainingArguments

from bbu.config import Config
from bbu.data.chat_processor import ChatProcessor
from bbu.data.collators import PackedDataCollator, StandardDataCollator
from bbu.data.dataset import TrainingStream
from bbu.data.packing.planner import Budgets, PackedRun
from bbu.data.shared_memory import IntoSharedMemory
from bbu.errors import ConfigError
from bbu.interruption import LoaderShield
from bbu.jsonl import decode_json, write_json
from bbu.layers.transfer import to_device
from bbu.losses.weighting import LANGUAGE_TERMS, TERMS, count_terms, max_one, term_weights, weigh
from bbu.models.checkpoint import save_model
from bbu.training.callbacks import EvaluateAtEnd, ProgressBar
from bbu.training.distributed import is_main, sum_over_ranks, world_size
from bbu.training.finite import StepGuard, poison
from bbu.training.folders import checkpoint_at
from bbu.training.loss_log import LOG_FILE, LogFile, LogPlace, LossWindow
from bbu.training.objective import DetectionObjective
from bbu.training.optimizers import build_optimizer
from bbu.training.param_groups import optimizer_groups
from bbu.training.recovery import IDENTITY_FILE, STATE_FILE, load_for_training, new_checkpoint, weights_only
from bbu.training.stopping import EarlyStopping, EvaluationStoppedError, SharedRequest, StopOnSignal, gain
from bbu.training.unreadable import UnreadablePhotos
from bbu.training.watchdog import FOLDER as STACKS_FOLDER
from bbu.training.watchdog import Watchdog

Evaluator = Callable[[], dict[str, float | None]]


class BBUTrainer(Trainer):
    """Trains a DetectionObjective.

    Every loss term is a sum divided by its count over the whole optimizer step (all accumulated batches, all ranks),
    so the gradient does not depend on how the step is cut into batches and ranks (docs/critical_fixes.md).

    Args:
        objective: model and losses in one forward.
        config: the run's configuration.
        stream: training samples of the whole run, in order.
        processor: saved with the model.
        evaluator: scores the model on val; its metrics are logged as ``eval_…``.
        samples_per_epoch: converts steps to epochs in the log.
        packs: planned packs of the whole run, over all ranks; None = a pack is the next ``batch_size`` samples.
        identity: what the run follows from; saved in each checkpoint.
        log_place: default: the run's folder.
    """

    def __init__(
        self,
        objective: DetectionObjective,
        config: Config,
        args: TrainingArguments,
        stream: TrainingStream,
        processor: ChatProcessor,
        evaluator: Evaluator | None = None,
        samples_per_epoch: int = 1,
        packs: PackedRun | None = None,
        identity: Mapping[str, Any] | None = None,
        log_place: LogPlace | None = None,
    ) -> None:
        positions = objective.model.backbone.position_function()
        collator: PackedDataCollator | StandardDataCollator = PackedDataCollator(positions)
        if not config.training.packed:
            collator = StandardDataCollator(positions, processor.pad_token_id)
        super().__init__(
            model=objective,
            args=args,
            train_dataset=stream,
            eval_dataset=[] if args.eval_strategy != "no" else None,  # only has to exist: the evaluator has the photos
            data_collator=collator,
        )
        self.run_config, self.processor, self.evaluator = config, processor, evaluator
        self.samples_per_epoch, self.packs, self.identity = samples_per_epoch, packs, dict(identity or {})
        self.weights = term_weights(config.loss)
        self.model_accepts_loss_kwargs = True  # our loss is already normalised over accumulated batches
        self.loss_is_scaled_for_ga = True  # the same, in newer transformers
        self.remove_callback(PrinterCallback)  # ours shows the weighted terms
        self.add_callback(EvaluateAtEnd())
        self.progress = ProgressBar()
        self.add_callback(self.progress)
        self.stop, self.shield = SharedRequest(), LoaderShield()
        self.add_callback(StopOnSignal(self.stop, self.evaluate_late))
        if config.training.early_stopping.patience and args.eval_strategy != "no":
            self.add_callback(EarlyStopping(config.training.early_stopping, config.training.select_best))
        self.watchdog = Watchdog(config.training.step_timeout, Path(config.output_dir) / STACKS_FOLDER)
        place = log_place or LogPlace(Path(config.output_dir) / LOG_FILE)
        self.add_callback(LogFile(place))
        self.window = LossWindow()
        self.unreadable = UnreadablePhotos(config.data, Path(config.output_dir))
        self.add_callback(self.unreadable)
        self.guard = StepGuard(
            config.training,
            Path(config.output_dir),
            objective=lambda: self.unwrapped,
            save_model=lambda folder: save_model(folder, self.unwrapped.model, processor),
            history=lambda: self.state.log_history,
            log=self.log,
            unreadable=self.unreadable,
        )
        self._end_steps_with_the_norm()
        self._rates: dict[str, float] = {}  # of the current step; the scheduler has advanced before it is logged

    @property
    def unwrapped(self) -> DetectionObjective:
        """The objective without the wrappers of accelerate."""
        return self.accelerator.unwrap_model(self.model)  # type: ignore[no-any-return]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's; closes the progress bar on errors too. A checkpoint to resume is read as data only.

        A signal ends it after a checkpoint: see ``stop``.
        """
        checkpoint = kwargs.get("resume_from_checkpoint")
        reading = weights_only(Path(checkpoint)) if checkpoint else nullcontext()
        if checkpoint:
            self.window.load(Path(checkpoint))
        try:
            with self.stop.listening(), self.watchdog.watching(), reading:
                return super().train(*args, **kwargs)
        finally:
            self.shield.lift()
            self.progress.close()

    def write_no_log(self) -> None:
        """Leave the log, lists and kept batches of the run in this folder alone."""
        self.remove_callback(LogFile)
        self.remove_callback(UnreadablePhotos)
        self.guard.keeps = False

    def _end_steps_with_the_norm(self) -> None:
        """The accelerator gives transformers the norm of the complete gradient: whether it is finite decides the step.

        Fused optimizers read ``found_inf`` on the device. DeepSpeed has stepped by then, or left the step out itself.
        """
        clip = self.accelerator.clip_grad_norm_

        def clip_grad_norm_(*args: Any, **kwargs: Any) -> Any:
            norm = clip(*args, **kwargs)
            if self.is_deepspeed_enabled:
                left_out = self.accelerator.optimizer_step_was_skipped
                counts = self.guard.end(torch.tensor(math.inf if left_out else float(norm or 0), dtype=torch.float64))
                counts = counts.to(self.args.device)
            else:
                counts = self.guard.end(norm)
                wrapper: Any = self.optimizer
                wrapper.optimizer.found_inf = (~counts).float()
            self.window.end_step(counts)
            return norm

        self.accelerator.clip_grad_norm_ = clip_grad_norm_  # type: ignore[method-assign]

    # ------------------------------------------------------------ data and loss

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The stream is ordered already; a planned pack is one index of it, and accelerate deals these to the ranks."""
        stream: Any = self.train_dataset
        loader = DataLoader(
            stream,
            batch_size=self.args.train_batch_size,
            sampler=self.packs if self.packs is not None else SequentialSampler(stream),
            collate_fn=IntoSharedMemory(self.data_collator),
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            worker_init_fn=self.shield,
        )
        return self.accelerator.prepare(loader)  # type: ignore[no-any-return]

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor]:
        """The batches of one optimizer step and its counts in the order of TERMS, summed over batches and ranks.

        There are none if early stopping has ended a resumed run before its first step.

        Raises:
            ImageError: a photo cannot be read, and data.on_unreadable is stop.
        """
        if self.control.should_training_stop:
            return [], torch.zeros(len(TERMS))
        batches = []
        for _ in range(num_batches):
            batch = next(epoch_iterator, None)
            if batch is None:
                break
            batches.append(batch)
        step = self.state.global_step + 1
        self.watchdog.beat(f"step {step}")
        no_stop = [0] * len(self.stop.column)
        rows = [[*count_terms(batch).values(), 0, *no_stop] for batch in batches]
        rows.append([0] * len(TERMS) + [self.unreadable.meet(step, batches), *self.stop.column])
        counts = self.stop.take(sum_over_ranks(to_device(rows, device, torch.float64).sum(0)))
        self.window.begin_step(device)
        self.guard.begin(step, batches, left_out=counts[-1])
        if self.optimizer is not None:
            self._rates = {g["group"]: g["lr"] for g in self.optimizer.param_groups}
        return batches, counts[:-1]

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Forward, then divide each term by the step's count, weight it and sum.

        Args:
            num_items_in_batch: counts in the order of TERMS; None = this batch is the whole step.

        Returns:
            The scalar to backpropagate, times the world size (data parallelism averages over ranks);
            with ``return_outputs`` also the weighted components.
        """
        sums = model(**inputs)
        self.guard.judge()  # the step before this one; the matching has just waited for the device
        if isinstance(num_items_in_batch, torch.Tensor):
            counts: dict[str, Any] = dict(zip(TERMS, num_items_in_batch.to(torch.float32).unbind(), strict=True))
        else:
            counts = dict(count_terms(inputs))
        components = weigh(sums, counts, self.weights)
        loss = torch.stack([components[term] for term in TERMS]).sum() * world_size()
        loss = poison(loss)
        self.guard.add(components)
        tokens = max_one(sum(counts[term] for term in LANGUAGE_TERMS))
        plain = torch.stack([sums[term] for term in LANGUAGE_TERMS]).sum() / tokens
        self.window.add(loss, components, plain)
        return (loss, components) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the weighted components (they sum to ``loss``) and the plain ``lm_loss``.

        transformers' own losses begin anew at a resume; ours go on.
        """
        self.guard.judge()
        if "train_loss" in logs:
            logs["train_loss"] = self.window.mean_loss()
        if "loss" in logs:
            self.guard.check_weights()
            logs.update(self.window.close())
            for name in ("loss", "grad_norm"):  # where the last step, or every one, was left out
                if not math.isfinite(logs.get(name, 0.0)):
                    del logs[name]
            logs.pop("learning_rate", None)  # transformers logs the first group's only
            logs.update({f"learning_rate/{group}": rate for group, rate in self._rates.items()})
        epoch = self.state.epoch
        self.state.epoch = self.state.global_step * self._samples_per_step / max(self.samples_per_epoch, 1)
        super().log(logs, start_time)
        self.state.epoch = epoch

    @property
    def _samples_per_step(self) -> float:
        per_pack = self.packs.samples_per_pack if self.packs else self.args.per_device_train_batch_size
        return per_pack * self.args.gradient_accumulation_steps * world_size()

    # ------------------------------------------------------------ optimizer, evaluation, checkpoints

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW over the five groups."""
        if self.optimizer is None:
            training = self.run_config.training
            groups = optimizer_groups(self.unwrapped.model, training.learning_rates, training.weight_decay)
            embedding = self.unwrapped.model.backbone.token_embedding
            self.optimizer = build_optimizer(groups, training, [embedding])
        return self.optimizer

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Score the model on val: predictions and answers.

        If a signal stops it, the step's checkpoint is saved, and a resumed run evaluates it.
        """
        assert self.evaluator is not None
        self.guard.judge()
        started = time.monotonic()
        try:
            scores = self.evaluator()
        except EvaluationStoppedError:
            self.control.should_save = self.control.should_training_stop = True
            self.control.should_evaluate = False
            return {f"{metric_key_prefix}_{self.args.metric_for_best_model}": self._worst}
        found = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        metrics = {name: value for name, value in found.items() if value is not None}
        metrics[f"{metric_key_prefix}_seconds"] = time.monotonic() - started
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return {f"{metric_key_prefix}_{self.args.metric_for_best_model}": self._worst, **metrics}  # undefined: no best

    @property
    def _worst(self) -> float:
        return -gain(math.inf, self.args.metric_for_best_model)

    def evaluate_late(self) -> None:
        """Evaluate the checkpoint of a step that a signal ended before its evaluation; it may be the best so far."""
        metric, best = self.args.metric_for_best_model, self.state.best_metric
        value = self.evaluate().get(f"eval_{metric}", self._worst)
        if gain(value, metric) > gain(self._worst if best is None else best, metric):
            self.state.best_metric, self.state.best_global_step = value, self.state.global_step

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write our model folder instead of transformers' files.

        Raises:
            NotFiniteError: a weight, or the step before, is not finite; nothing is written.
        """
        self.guard.judge()
        self.guard.check_weights()
        state = None
        if self.is_deepspeed_enabled:  # a collective call
            state = self.accelerator.get_state_dict(self.deepspeed)
            state = {name.removeprefix("model."): value for name, value in state.items()}
        folder = Path(output_dir or self.run_config.output_dir)
        self.window.save(folder)
        if not is_main():
            return
        save_model(
            folder, self.unwrapped.model, self.processor, state, whole=not _internal_call, adapters=_internal_call
        )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Save all of it or nothing, and keep the newest and the best. A private override: there is no public hook."""
        self.watchdog.beat("saving a checkpoint")
        output, best = Path(self.run_config.output_dir), self.state.best_global_step
        keep = self.run_config.training.keep_checkpoints
        with new_checkpoint(output, self.state.global_step, keep=keep, best=best) as saving:
            self.args.output_dir = str(saving)
            try:
                super()._save_checkpoint(model, trial)
                # not the best one in ``saving``
                self.state.best_model_checkpoint = str(checkpoint_at(output, best)) if best else None
                if is_main():
                    folder = checkpoint_at(saving, self.state.global_step)
                    self.state.save_to_json(str(folder / STATE_FILE))
                    write_json(folder / IDENTITY_FILE, self.identity)
            finally:
                self.args.output_dir = str(output)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Read our model folder. A private override: transformers expects its own files and has no public hook."""
        if not self.is_deepspeed_enabled:  # DeepSpeed restores the weights with its optimizer
            load_for_training(self.unwrapped.model, Path(resume_from_checkpoint))


def training_arguments(config: Config, *, use_cpu: bool, bf16: bool, has_val: bool) -> TrainingArguments:
    """The config as transformers' TrainingArguments."""
    training = config.training
    evaluating = bool(training.eval_every) and has_val
    save_every = training.eval_every if evaluating and training.select_best else training.save_every
    args = TrainingArguments(
        output_dir=config.output_dir,
        max_steps=training.max_steps,
        per_device_train_batch_size=1 if Budgets.of(training).limits else training.batch_size,  # a pack is one item
        gradient_accumulation_steps=training.gradient_accumulation,
        learning_rate=max(vars(training.learning_rates).values()),
        lr_scheduler_type=training.schedule,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        adam_beta2=training.adam_beta2,
        max_grad_norm=training.max_grad_norm,
        optim="adamw_torch_fused",  # leaves a step out on the device
        bf16=bf16,
        use_cpu=use_cpu,
        seed=config.seed,
        data_seed=config.seed,
        logging_strategy="steps",
        logging_steps=training.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if evaluating else "no",
        eval_steps=training.eval_every or None,
        save_strategy="steps",
        save_steps=save_every or training.max_steps,
        save_total_limit=None,  # BBUTrainer keeps training.keep_checkpoints: this would count and delete copies too
        metric_for_best_model=training.select_best if evaluating and training.select_best else None,
        greater_is_better=gain(1, training.select_best) > 0 if evaluating and training.select_best else None,
        load_best_model_at_end=False,
        report_to=list(training.report_to) or "none",
        run_name=config.name,
        disable_tqdm=True,
        dataloader_num_workers=config.data.workers,
        dataloader_persistent_workers=config.data.workers > 0,
        dataloader_pin_memory=not use_cpu,
        accelerator_config={"non_blocking": not use_cpu},  # pinned memory is copied while the device computes
        remove_unused_columns=False,
        label_names=[],
        ddp_find_unused_parameters=False,
        deepspeed=_deepspeed_settings(training.deepspeed),
    )
    # one GPU per process: nn.DataParallel would split a pack; private, because no public argument prevents it
    args._n_gpu = min(args.n_gpu, 1)
    return args


def _deepspeed_settings(path: str) -> dict[str, Any] | None:
    """The DeepSpeed JSON, read here because transformers keeps partial state when its own reading fails."""
    if not path:
        return None
    if not Path(path).is_file():
        raise ConfigError(f"training.deepspeed: {path} does not exist")
    settings = decode_json(Path(path).read_text(encoding="utf-8"), path)
    if not isinstance(settings, dict):
        raise ConfigError(f"training.deepspeed: {path} must hold a JSON object")
    zero = settings.get("zero_optimization")
    if isinstance(zero, dict) and zero.get("stage") == 3:
        raise ConfigError(
            f"training.deepspeed: {path}: zero_optimization.stage 3 does not work yet (weights that are sharded cannot "
            "be read outside their own layer); set stage 2, as in configs/zero2.json"
        )
    return settings
