"""Findings about what is not there: objects in a split, in many photos, descriptions in a held-out split."""

from __future__ import annotations

from collections import Counter

from bbu.config import Config
from bbu.doctor.boxes import counted
from bbu.doctor.findings import ERROR, INFO, Example, Finding, finding
from bbu.doctor.reading import Rows, Sample
from bbu.taxonomy import prefix

MANY = 0.2  # share of a split's photos without objects from which it is a finding


def absence_findings(config: Config, rows: Rows) -> list[Finding]:
    """Splits without objects, many photos without objects, descriptions that a held-out split does not show."""
    found = []
    for split in ("train", "val", "test"):
        samples = rows.of(split)
        empty = [sample for sample in samples if sample.row.annotated and not sample.row.objects]
        if samples and len(empty) == len(samples):
            found += _without_objects(config, split, len(samples))
        elif empty and len(empty) >= MANY * len(samples):
            examples = [Example(sample.where, sample.name) for sample in empty]
            share = f"{len(empty) / len(samples):.0%}"
            found.append(finding("photos_without_objects", examples, split=split, share=share))
    return found + _unmeasured(rows)


def _without_objects(config: Config, split: str, photos: int) -> list[Finding]:
    if config.model.detection is None:
        return []  # neither learned by a head nor scored
    if split == "train":
        return [finding("no_object", [], photos=photos)]
    if split == "val" and config.training.eval_every:
        return []  # no_val_split says it
    severity = ERROR if split == config.evaluation.split else None
    return [finding("split_without_objects", [], severity=severity, split=split, photos=photos)]


def _unmeasured(rows: Rows) -> list[Finding]:
    """Descriptions of train that a held-out split with objects does not show."""
    learnt = _descriptions(rows.of("train"))
    absent: dict[str, list[str]] = {}  # description → splits
    whole_branch = False
    for split in ("val", "test"):
        shown = _descriptions(rows.of(split))
        first_levels = {prefix(desc, 1) for desc in shown}
        for desc in learnt.keys() - shown.keys() if shown else ():
            absent.setdefault(desc, []).append(split)
            whole_branch |= prefix(desc, 1) not in first_levels
    if not absent:
        return []
    ranked = sorted(absent, key=lambda desc: (-learnt[desc], desc))
    examples = [
        Example(object=desc, detail=f"{learnt[desc]} in train, none in {' and '.join(absent[desc])}") for desc in ranked
    ]
    labels = counted(Counter({desc: learnt[desc] for desc in ranked}))
    return [finding("unmeasured_description", examples, severity=None if whole_branch else INFO, labels=labels)]


def _descriptions(samples: list[Sample]) -> Counter[str]:
    return Counter(item.desc for sample in samples for item in sample.row.objects)
