"""Findings about descriptions: balance per level, unseen in training, words that a flip changes, length."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from bbu.config import AugmentConfig
from bbu.doctor.boxes import counted
from bbu.doctor.findings import Example, Finding, finding
from bbu.doctor.reading import Rows, Sample
from bbu.evaluation.descriptions import level_count
from bbu.families.conversation import Conversation
from bbu.taxonomy import MirrorRules, prefix

FEW = 10  # training objects; with fewer, a description is rarely learnt
DOMINATES = 0.8  # share of training objects with one description
COLUMNS = ("train", "val", "test")

# Words that may name a side but are not in every mirror table: 上 is also part of 以上, "at least".
LOOSE_VERTICAL = re.compile(r"(?<!以)[上下]|(?<![a-z])(up|down)(?![a-z])", re.IGNORECASE)

Balance = dict[str, dict[str, int]]  # description prefix → split → objects


def balance_by_level(rows: Rows) -> list[Balance]:
    """Objects of every prefix, level by level, most frequent first. Teachers count as train."""
    counts: Counter[tuple[str, str]] = Counter()
    for sample in rows.samples:
        split = sample.split if sample.split in COLUMNS else "train"
        counts.update((item.desc, split) for item in sample.row.objects)
    levels = []
    for level in range(1, level_count({desc for desc, _ in counts}) + 1):
        table: Balance = {}
        for (desc, split), count in counts.items():
            table.setdefault(prefix(desc, level), dict.fromkeys(COLUMNS, 0))[split] += count
        levels.append(dict(sorted(table.items(), key=lambda pair: (-sum(pair[1].values()), pair[0]))))
    return levels


def description_findings(rows: Rows, conversation: Conversation) -> list[Finding]:
    """Findings about special tokens, unseen, rare and dominating descriptions."""
    learnt = _counts(rows.of("train", "teacher"))
    special = [example for sample in rows.samples for example in special_tokens(sample, conversation)]
    found = [finding("special_token", special)] if special else []
    held_out = rows.of("val", "test")
    unseen = _objects(held_out, _counts(held_out).keys() - learnt.keys())
    if unseen and learnt:
        labels = counted(Counter(example.object for example in unseen))
        found.append(finding("unseen_in_training", unseen, labels=labels))
    rare = sorted((count, desc) for desc, count in learnt.items() if count < FEW)
    if rare:
        examples = [Example(object=desc, detail=f"{count} in train") for count, desc in rare]
        labels = ", ".join(f"{desc} {count}" for count, desc in rare[:5])
        found.append(finding("rare_description", examples, few=FEW, labels=labels))
    return found + _dominating(learnt)


def _dominating(learnt: Mapping[str, int]) -> list[Finding]:
    label, count = max(learnt.items(), key=lambda pair: pair[1], default=("", 0))
    share = count / max(sum(learnt.values()), 1)
    if share <= DOMINATES or len(learnt) < 2:
        return []
    return [finding("one_description_dominates", [], count, label=label, share=f"{share:.0%}")]


def _objects(samples: Iterable[Sample], descs: Collection[str]) -> list[Example]:
    """All objects that have one of these descriptions."""
    objects = ((sample, item.desc) for sample in samples for item in sample.row.objects)
    return [Example(sample.where, sample.name, desc) for sample, desc in objects if desc in descs]


def _counts(samples: Iterable[Sample]) -> dict[str, int]:
    return dict(Counter(item.desc for sample in samples for item in sample.row.objects))


def special_tokens(sample: Sample, conversation: Conversation) -> list[Example]:
    """Descriptions of a sample that contain a special token."""
    return [
        Example(sample.where, row.images[0], item.desc, token)
        for row in sample.shown
        for item in row.objects
        for token in conversation.special_tokens
        if token in item.desc
    ]


def direction_findings(rows: Rows, augment: AugmentConfig, mirror: MirrorRules) -> list[Finding]:
    """Descriptions that name a side and become wrong when a training photo is flipped or rotated."""
    changes = {
        "horizontal": ("flips left to right", "data.augment.flip_horizontal", augment.flip_horizontal > 0),
        "vertical": ("flips top to bottom", "data.augment.flip_vertical", augment.flip_vertical > 0),
        "turn": ("quarter turns", "data.augment.quarter_turns", augment.quarter_turns),
    }
    learnt = rows.of("train", "teacher")
    active = {name: texts for name, texts in changes.items() if texts[2]}
    wrong = {
        desc: names
        for desc in _counts(learnt)
        if (names := [name for name in active if _goes_wrong(desc, name, mirror)])
    }
    if not wrong:
        return []
    used = sorted({name for names in wrong.values() for name in names})
    examples = _objects(learnt, wrong)
    texts: dict[str, Any] = {
        "changes": ", ".join(changes[name][0] for name in used),
        "keys": ", ".join(changes[name][1] for name in used),
        "labels": counted(Counter(example.object for example in examples)),
    }
    return [finding("direction_words", examples, **texts)]


def _goes_wrong(desc: str, change: str, mirror: MirrorRules) -> bool:
    """Whether the mirror rules leave ``desc`` unchanged although the change makes it wrong."""
    if not mirror.allows(change, [desc]):
        return False
    if mirror.names_a_side(desc, change):
        return getattr(mirror, change) == "allow"
    return change in ("vertical", "turn") and LOOSE_VERTICAL.search(desc) is not None


def caption_findings(samples: Sequence[Sample], processor: Any) -> list[Finding]:
    """Descriptions that are too long for the caption decoder; ``processor`` is a ChatProcessor."""
    descs = list(_counts(samples))
    limit = processor.caption_max_tokens
    ids = processor.tokenizer(descs, add_special_tokens=False)["input_ids"] if descs else []
    lengths = {desc: len(tokens) + 1 for desc, tokens in zip(descs, ids, strict=True)}
    too_long = {desc for desc, length in lengths.items() if length > limit}
    if not too_long:
        return []
    first = {example.object: example for example in reversed(_objects(samples, too_long))}
    examples = [replace(example, detail=f"{lengths[desc]} tokens") for desc, example in reversed(first.items())]
    return [finding("description_too_long", examples, limit=limit, longest=max(lengths.values()))]
