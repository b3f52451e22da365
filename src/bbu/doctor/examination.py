"""Runs the doctor: reads what training would read, opens every photo once, collects findings and figures."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path

from bbu.config import Config
from bbu.config.checks import idle_source_keys
from bbu.config.schema import TEXT_METRICS
from bbu.data.chat_processor import ChatProcessor
from bbu.data.packing.planner import Budgets
from bbu.data.sampling.answers import Answers
from bbu.data.sampling.episodes import most_teachers
from bbu.doctor.absence import absence_findings
from bbu.doctor.boxes import contradiction_findings, measure_sizes, query_findings
from bbu.doctor.conversion import conversion_findings
from bbu.doctor.copies import find_copies
from bbu.doctor.cost import pack_sizes, steps_findings, steps_report
from bbu.doctor.descriptions import (
    balance_by_level,
    caption_findings,
    description_findings,
    direction_findings,
    special_tokens,
)
from bbu.doctor.findings import Example, Finding, finding
from bbu.doctor.memory import memory_report, model_size
from bbu.doctor.photos import PhotoFacts, look_at_all, names_of, photo_findings, readable
from bbu.doctor.proof import choose_samples, health_findings, proof_findings, prove
from bbu.doctor.reading import Rows, Sample, read_folder
from bbu.doctor.report import Report, split_counts
from bbu.doctor.tokens import conversation_findings, length_findings, measure_lengths
from bbu.errors import ConfigError, UserError
from bbu.families.photo_plan import PhotoPlan
from bbu.families.registry import backbone_class
from bbu.models.build import build_processor, prompt_spec, training_samples
from bbu.records import Row
from bbu.taxonomy import MirrorRules

NO_LIMIT = 10**9  # tokens: the doctor also measures samples that training would refuse


def examine(
    config: Config, folder: Path, image_root: str, mirror: MirrorRules | None = None, *, samples: int = 12
) -> Report:
    """Examine prepared data as this config would train on it.

    Args:
        folder: with train.jsonl and so on, and the files that conversion wrote.
        image_root: folder that image paths are relative to.
        mirror: the taxonomy's rules for words that name a side.
        samples: random samples for the geometry check, besides unusual ones; 0 = no check.

    Raises:
        ConfigError: unknown model family.
    """
    started = time.monotonic()
    report = Report(config.name, image_root)
    family = backbone_class(config.model.family)
    rows = read_folder(folder)
    facts = look_at_all(names_of(rows), image_root)
    good = Rows([sample for sample in readable(rows.samples, facts) if not special_tokens(sample, family.conversation)])
    report.splits = split_counts([(sample.split, len(sample.row.objects)) for sample in rows.samples])
    report.findings += [*rows.findings(), *photo_findings(rows, facts, image_root), *split_findings(config, rows)]
    report.findings += absence_findings(config, rows)
    if idle := [Example(detail=text) for text in idle_source_keys(config)]:
        report.findings.append(finding("option_without_effect", idle))
    report.findings += conversion_findings(folder, config.data.source.on_error)
    _examine_boxes(report, config, rows, good, facts)
    report.balance = balance_by_level(rows)
    report.findings += description_findings(rows, family.conversation)
    report.findings += direction_findings(rows, config.data.augment, mirror or MirrorRules())
    processor = _examine_tokens(report, config, rows, good, image_root)
    pairs = choose_samples(good.samples, facts, samples, config.seed)
    _prove(report, pairs, processor or _stand_in(config, good, image_root), _answers(config, rows))
    report.seconds = time.monotonic() - started
    return report


def split_findings(config: Config, rows: Rows) -> list[Finding]:
    """Splits and teachers that the job needs and does not have."""
    found = []
    if not rows.of("train"):
        found.append(finding("no_training_photo", []))
    if config.training.eval_every and (what := _missing_in_val(config, rows)):
        found.append(finding("no_val_split", [], eval_every=config.training.eval_every, what=what))
    if not rows.of(config.evaluation.split) and config.model.detection is not None:
        found.append(finding("no_evaluation_split", [], split=config.evaluation.split))
    asked = {
        "data.episodes.counts": most_teachers(config.data.episodes),
        "evaluation.teachers": config.evaluation.teachers,
    }
    try:
        _answers(config, rows, refuse=True)
    except UserError as error:
        found.append(finding("unanswerable", [Example(detail=str(error))]))
    if not _pool(config, rows):
        found += [finding("no_teachers", [], key=key, asked=count) for key, count in asked.items() if count]
    return found


def _missing_in_val(config: Config, rows: Rows) -> str:
    """What val lacks for an evaluation during training; "" = nothing."""
    val, answers = [sample.row for sample in rows.of("val")], _answers(config, rows)
    if config.model.detection is not None and not any(row.objects for row in val):
        return "objects"
    by_text = config.model.detection is None or config.training.select_best in TEXT_METRICS
    return "a question of data.answers" if by_text and answers and not any(answers.questions(val)) else ""


def _answers(config: Config, rows: Rows, refuse: bool = False) -> Answers | None:
    """What training asks for; None, or an error, where it cannot ask."""
    try:
        return Answers(config.data.answers, [sample.row for sample in rows.of("train")], config.seed)
    except UserError:
        if refuse:
            raise
        return None


def _pool(config: Config, rows: Rows) -> list[Row]:
    return [sample.row for sample in rows.of(config.data.episodes.pool)]


def _examine_boxes(report: Report, config: Config, rows: Rows, good: Rows, facts: dict[str, PhotoFacts]) -> None:
    plan = backbone_class(config.model.family).photo_plan("", prompt_spec(config))
    shown = [sample for sample in rows.samples if _can_be_shown(sample, plan)]
    report.sizes, tiny = measure_sizes(shown, plan, prompt_spec(config).tiling)
    copies = find_copies(good.samples, facts)
    in_tiles = [views[1:] or views for views in (_views(config, sample) for sample in rows.samples)]
    report.findings += tiny
    if config.model.detection is not None:
        report.findings += query_findings([*chain(*in_tiles)], config.model.detection.queries)
    report.findings += contradiction_findings(rows, copies.all_pairs) + copies.findings()


def _views(config: Config, sample: Sample) -> list[Sample]:
    """The samples that training makes of one: its photo, then the photo's tiles."""
    return [replace(sample, sample=view) for view in training_samples(config, [sample.sample])]


def _can_be_shown(sample: Sample, plan: PhotoPlan) -> bool:
    try:
        plan.plan(sample.row.width, sample.row.height)
    except ValueError:
        return False
    return True


# ---------------------------------------------------------------- checks that need a tokenizer


def _examine_tokens(report: Report, config: Config, rows: Rows, good: Rows, image_root: str) -> ChatProcessor | None:
    """Lengths, memory and steps; returns the processor, or None if its model is absent."""
    train = good.of("train")
    views = [view for sample in train for view in _views(config, sample)]
    students = [view.row for sample in rows.of("train") for view in _views(config, sample)]
    processor, largest, smallest = _processor(report, config, train, image_root), None, None
    if processor is not None:
        report.lengths = measure_lengths(views, _pool(config, good), processor, config)
        report.findings += length_findings(report.lengths, views, Budgets.of(config.training))
        report.findings += caption_findings(rows.of("train"), processor) if processor.detection else []
        report.findings += conversation_findings(config, processor)
        largest, smallest = (pack_sizes(config, which) for which in (report.lengths.longest, report.lengths.alone))
        size = model_size(config, processor.tokenizer)
        report.memory = memory_report(config, size, largest, processor) if size and largest else None
    report.training = steps_report(config, students, largest)
    if students:
        # the shortest samples give the fullest packs: photos out of reach even then are certain to be
        report.findings += steps_findings(config, steps_report(config, students, smallest))
    return processor


def _processor(report: Report, config: Config, train: list[Sample], image_root: str) -> ChatProcessor | None:
    """The processor that training would use; None, with a finding, if its model is absent."""
    if not train:
        report.lengths_absent = "no training photo can be read"
        return None
    try:
        return build_processor(config, [sample.sample for sample in train], image_root)
    except (ConfigError, OSError) as error:
        name = config.model.tokenizer or config.model.path
        here = Path(name).is_dir()
        absent = f"{name}: no such folder here, and no such model in the local cache of the hub"
        report.lengths_absent = str(error).splitlines()[0] if here else absent
        report.findings.append(finding("model_absent", [Example(detail=report.lengths_absent)]))
        return None


def _stand_in(config: Config, good: Rows, image_root: str) -> ChatProcessor | None:
    """A processor without the model: family defaults, and a tokenizer trained on the data; same geometry."""
    here = copy.deepcopy(config)
    here.model.path = here.model.tokenizer = ""
    return build_processor(here, [sample.sample for sample in good.samples], image_root) if good.samples else None


def _prove(
    report: Report, pairs: list[tuple[Sample, str]], processor: ChatProcessor | None, answers: Answers | None
) -> None:
    if processor is None:
        return
    processor.max_length = processor.caption_max_tokens = NO_LIMIT
    processor.detection = True  # the way of the boxes is the same where no head learns them
    report.proven = [prove(sample, why, processor) for sample, why in pairs]
    report.findings += proof_findings(report.proven)
    if answers is not None:
        taught = [item.sample for item in report.proven if item.sample.split == "train" and not item.problem]
        report.findings += health_findings(taught, answers, processor)
