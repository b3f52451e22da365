"""Run: the context that all stages share. Expensive members are built on first use."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bbu.config import Config, final_config
from bbu.errors import ConfigError
from bbu.families.cost import CostModel
from bbu.records import FewShotSample, Row
from bbu.stages.preparation import PreparedData, prepare, taxonomy_of
from bbu.stages.run_folder import MODEL_FOLDER, RunFolder
from bbu.taxonomy import Taxonomy
from bbu.training.distributed import rank, start_group_of_one, world_size

if TYPE_CHECKING:
    import torch

    from bbu.data.chat_processor import ChatProcessor
    from bbu.data.dataset import TrainingStream
    from bbu.data.packing.planner import PackedRun
    from bbu.data.replay import Replay
    from bbu.data.sampling.answers import Answers
    from bbu.inference.predictor import Shown
    from bbu.models.wrapper import DetectionVLM


@dataclass
class Run:
    """A config with its prepared rows, and everything derived from them.

    ``watched``: rows predicted during training, by evaluation and visual log; from ``watched_split`` ("" = none).
    """

    config: Config
    data: PreparedData
    ranks: int = field(default_factory=world_size)
    rank: int = field(default_factory=rank)

    @property
    def output(self) -> Path:
        """The run's folder."""
        return Path(self.config.output_dir)

    @property
    def folder(self) -> RunFolder:
        """The run's folder, as claimed."""
        return RunFolder(self.output)

    @property
    def model_folder(self) -> Path:
        """Where the model is published."""
        return self.output / MODEL_FOLDER

    # ------------------------------------------------------------ rows

    @cached_property
    def samples(self) -> list[FewShotSample]:
        """Training samples."""
        return self.data.samples("train")

    @cached_property
    def students(self) -> list[Row]:
        """Training photos."""
        return [sample.student for sample in self.samples]

    @cached_property
    def training_samples(self) -> list[FewShotSample]:
        """What the stream shows: the training samples, with data.tiles also a sample for each tile of their photos."""
        if not self.config.data.tiles:
            return self.samples
        from bbu.models.build import training_samples

        return training_samples(self.config, self.samples)

    @cached_property
    def training_rows(self) -> list[Row]:
        """Training photos and their tiles."""
        return [sample.student for sample in self.training_samples]

    @cached_property
    def val(self) -> list[Row]:
        """Validation photos that are annotated."""
        return [row for row in self.data.rows("val") if row.annotated]

    @cached_property
    def teachers(self) -> list[Row]:
        """Rows of teacher.jsonl, from which worked examples are drawn."""
        return self.data.rows("teacher")

    @cached_property
    def evaluation_rows(self) -> list[Row]:
        """Photos of evaluation.split that are annotated.

        Raises:
            ConfigError: there are none.
        """
        split = self.config.evaluation.split
        rows = [row for row in self.data.rows(split) if row.annotated]
        if not rows:
            raise ConfigError(
                f"evaluation.split: there is no {split} split with annotated photos in {self.data.folder}"
            )
        return rows

    @cached_property
    def taxonomy(self) -> Taxonomy:
        """The taxonomy of the labelling project."""
        return taxonomy_of(self.config)

    # ------------------------------------------------------------ predicted during training

    @cached_property
    def watched_split(self) -> str:
        training = self.config.training
        if not (training.eval_every or training.visual_every):
            return ""
        return "val" if training.eval_every or any(row.objects for row in self.val) else "train"

    @property
    def watched(self) -> list[Row]:
        return self.students if self.watched_split == "train" else self.val

    @cached_property
    def watched_shown(self) -> Shown | None:
        """Teachers and context of each watched photo."""
        return self.shown_with(self.watched, self.hashes) if self.watched_split else None

    @cached_property
    def hashes(self) -> Mapping[str, int]:
        """Path → perceptual hash, of training photos, watched photos and their possible teachers."""
        return self.hashes_of(training=True, split=self.watched_split)

    # ------------------------------------------------------------ teachers of predicted photos

    def hashes_of(self, *, training: bool, split: str) -> dict[str, int]:
        """Path → perceptual hash, of students and possible teachers; empty if no teachers are shown.

        Args:
            training: whether to include the training photos.
            split: to be predicted; "" = none.
        """
        from bbu.data.sampling.episodes import most_teachers
        from bbu.data.sampling.similarity import hash_photos

        data, episodes = self.data, self.config.data.episodes
        splits = {"train", episodes.pool} if training and most_teachers(episodes) else set()
        if split and self.config.evaluation.teachers:
            splits |= {split, episodes.pool}
        names = [sample.student.images[0] for name in sorted(splits) for sample in data.samples(name)]
        return hash_photos(names, data.image_root, self.output / "data" / "photo_hashes.jsonl")

    def shown_with(self, rows: Sequence[Row], hashes: Mapping[str, int]) -> Shown | None:
        """Teachers and context of each photo that is predicted; None = neither is shown."""
        from bbu.data.sampling.episodes import EvaluationEpisodes, TeacherPool, pool_rows

        data, episodes, count = self.data, self.config.data.episodes, self.config.evaluation.teachers
        if not count and not episodes.context_photos:
            return None
        pool = None
        if count:
            teachers = pool_rows(episodes, self.students, self.teachers, "evaluation.teachers")
            pool = TeacherPool(teachers, hashes, episodes.near_duplicate_bits)
        shown = EvaluationEpisodes(episodes, rows, pool, count, data.image_root)
        if shown.left_out and self.rank == 0:
            print(f"{shown.left_out} possible teachers left out: they show photos that are predicted", flush=True)
        return shown

    # ------------------------------------------------------------ machine

    @cached_property
    def device(self) -> torch.device:
        from bbu.models.precision import compute_device

        return compute_device()

    @cached_property
    def bf16(self) -> bool:
        """Whether matrix products run in bfloat16."""
        from bbu.models.precision import use_bf16

        return use_bf16(self.config.training.precision, self.device)

    # ------------------------------------------------------------ built once

    @cached_property
    def processor(self) -> ChatProcessor:
        from bbu.models.build import build_processor

        return build_processor(self.config, self.samples, self.data.image_root)

    @cached_property
    def model(self) -> DetectionVLM:
        import torch

        from bbu.models.build import build_model

        dtype = torch.bfloat16 if self.bf16 else torch.float32
        return build_model(self.config, self.processor.tokenizer, device=self.device, dtype=dtype)

    @cached_property
    def replay(self) -> Replay | None:
        """Conversations among the training samples; None = none."""
        from bbu.data.replay import load_replay

        return load_replay(self.config.data.replay, self.processor)

    @cached_property
    def answers(self) -> Answers:
        """What training samples are asked for."""
        from bbu.data.sampling.answers import Answers

        return Answers(self.config.data.answers, self.training_rows, self.config.seed)

    def questions(self, split: str) -> list[FewShotSample]:
        """What the photos of a split can be asked for, as training asks."""
        if split not in self._questions:
            self._questions[split] = list(self.answers.questions(self.data.rows(split)))
        return self._questions[split]

    @cached_property
    def _questions(self) -> dict[str, list[FewShotSample]]:
        return {}

    @cached_property
    def stream(self) -> TrainingStream:
        """Training samples of the whole run, over all ranks."""
        from bbu.data.dataset import TrainingStream
        from bbu.data.sampling.episodes import Episodes

        config = self.config
        return TrainingStream(
            self.training_samples,
            self.processor,
            length=self._samples,
            seed=config.seed,
            episodes=Episodes(config.data.episodes, self.students, self.teachers, self.hashes, config.seed),
            sampling=config.data.sampling,
            augment=config.data.augment,
            mirror=self.taxonomy.mirror,
            answers=self.answers,
            replay=self.replay,
        )

    @property
    def epochs(self) -> float:
        """Epochs of the whole run, over all ranks; an estimate where packs are planned, which needs the tokenizer."""
        from bbu.data.packing.planner import Budgets
        from bbu.data.sampling.order import expected_views

        planned = Budgets.of(self.config.training).limits
        if planned:
            self.plan_packs(CostModel(1, 0, 0, 0))
        samples = self.stream.length if planned else self._samples
        photos = samples * (1 - self.config.data.replay.share)
        return photos / float(expected_views(self.training_rows, self.config.data.sampling).sum())

    @property
    def _samples(self) -> int:
        """Samples of the whole run, over all ranks, where packs are not planned."""
        training = self.config.training
        return training.max_steps * training.batch_size * training.gradient_accumulation * self.ranks

    @cached_property
    def packs(self) -> PackedRun | None:
        """Planned packs, which set the stream's length; None if a pack is simply the next samples."""
        return self.plan_packs(self.model.backbone.cost())

    def plan_packs(self, cost: CostModel) -> PackedRun | None:
        """As ``packs``; ``cost`` only balances ranks: it affects neither lengths nor the number of packs."""
        from bbu.data.packing.lengths import LengthMeter, StreamLengths
        from bbu.data.packing.planner import Budgets, PackedRun

        training, budgets = self.config.training, Budgets.of(self.config.training)
        if not budgets.limits:
            return None
        meter = LengthMeter(self.processor, self.config.data.augment, self.taxonomy.mirror)
        lengths = StreamLengths(self.stream, meter, cost, self.output / "data" / "lengths.json")
        packs = PackedRun(
            lengths.epoch,
            budgets,
            steps=training.max_steps,
            ranks=self.ranks,
            accumulation=training.gradient_accumulation,
            seed=self.config.seed,
            name=lengths.name,
        )
        self.stream.length = max(1, round(len(packs) * packs.samples_per_pack))
        return packs


def open_run(config: Config, ranks: int | None = None) -> Run:
    """Prepare the rows of a config; one with phases is the last phase's, in the folder of the whole run.

    Args:
        ranks: number of ranks to plan for; None = those of this run.
    """
    return Run(final_config(config), prepare(config), ranks or world_size())


def ready_device(config: Config) -> Any:
    """The device of this process, after applying the config's thread and DeepSpeed settings."""
    import torch

    from bbu.models.precision import compute_device

    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    device = compute_device()
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed looks for CUDA tools and warns
    if config.training.deepspeed:
        start_group_of_one()
    return device
