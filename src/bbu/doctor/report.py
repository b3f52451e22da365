"""The doctor's report, as JSON (docs/doctor.md has the schema) and as text for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bbu.doctor.boxes import ObjectSizes
from bbu.doctor.descriptions import Balance
from bbu.doctor.findings import ERROR, INFO, SEVERITIES, WARNING, Finding, by_severity
from bbu.doctor.proof import HEAD_BOUND, Proven
from bbu.doctor.tokens import TokenLengths

SCHEMA = "bbu.doctor/1"
RARE_SHOWN = 5
UNITS = ("B", "KB", "MB", "GB", "TB")


@dataclass
class Report:
    """All results of an examination.

    Args:
        splits: split → photos and objects.
        lengths: None without a tokenizer; ``lengths_absent`` says why.
        memory: None if the model's sizes are not known.
        seconds: duration of the examination.
    """

    config: str
    image_root: str
    findings: list[Finding] = field(default_factory=list)
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    sizes: ObjectSizes | None = None
    balance: list[Balance] = field(default_factory=list)
    lengths: TokenLengths | None = None
    lengths_absent: str = ""
    training: dict[str, Any] = field(default_factory=dict)
    memory: dict[str, Any] | None = None
    proven: list[Proven] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def counts(self) -> dict[str, int]:
        """Severity → findings."""
        found = Counter(item.severity for item in self.findings)
        return {severity: found[severity] for severity in SEVERITIES}

    @property
    def verdict(self) -> str:
        """The worst severity, or ``clean``."""
        return next((severity for severity in SEVERITIES if self.counts[severity]), "clean")

    def exit_status(self, strict: bool) -> int:
        """1 with an error, with ``strict`` also with a warning; otherwise 0."""
        return int(self.counts[ERROR] > 0 or (strict and self.counts[WARNING] > 0))

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "config": self.config,
            "verdict": self.verdict,
            "counts": self.counts,
            "seconds": round(self.seconds, 1),
            "image_root": self.image_root,
            "splits": self.splits,
            "findings": [item.to_json() for item in by_severity(self.findings)],
            "tokens": self.lengths.to_json() if self.lengths else {"computed": False, "why": self.lengths_absent},
            "object_sizes": self.sizes.to_json() if self.sizes else None,
            "balance": [{"level": level, "descriptions": table} for level, table in enumerate(self.balance, start=1)],
            "training": self.training,
            "memory": self.memory,
            "geometry": {
                "passed": all(not item.problem for item in self.proven),
                "samples": [item.to_json() for item in self.proven],
            },
        }

    def to_text(self) -> str:
        """A page of plain text."""
        lines = [f"{self.config}: {self.headline}", ""]
        for item in by_severity(self.findings):
            lines += _finding_lines(item)
        return "\n".join([*lines, *(f"{name:<10}{text}" for name, text in self.facts())])

    @property
    def headline(self) -> str:
        """The verdict in one line."""
        photos = sum(split["photos"] for split in self.splits.values())
        objects = sum(split["objects"] for split in self.splits.values())
        looked = f"{photos} photos with {objects} objects"
        if not self.findings:
            return f"nothing found in {looked}"
        nouns = {ERROR: "error", WARNING: "warning", INFO: "info"}
        parts = [_plural(count, nouns[name]) for name, count in self.counts.items() if count]
        return f"{', '.join(parts)} in {looked}"

    def facts(self) -> list[tuple[str, str]]:
        """Name and one line for each measurement."""
        facts = [
            ("photos", _split_line(self.splits)),
            ("objects", self._objects_line()),
            ("tokens", self._tokens_line()),
        ]
        if self.balance:
            facts.append(("balance", _descriptions_line(self.balance[-1])))
        if self.training:
            facts.append(("training", _training_line(self.training)))
        facts.append(("memory", memory_line(self.memory) if self.memory else "not estimated: the model is not here"))
        if self.proven:
            facts.append(("geometry", self._geometry_line()))
        return [*facts, ("time", f"{self.seconds:.1f} s")]

    def _objects_line(self) -> str:
        if self.sizes is None or not self.sizes.objects:
            return "none"
        tiny = sum(self.sizes.tiny_by_description.values())
        return f"{tiny} of {self.sizes.objects} under one image token ({self.sizes.cell} pixels) after the resize"

    def _tokens_line(self) -> str:
        if self.lengths is None:
            return f"not computed: {self.lengths_absent or 'no training photo'}"
        facts = self.lengths.to_json()
        teachers = f", with up to {facts['teachers']} teachers" if facts["teachers"] else ""
        return f"mean {facts['mean']:.0f}, at most {facts['max']} of {facts['max_length']}{teachers}"

    def _geometry_line(self) -> str:
        good = [item for item in self.proven if not item.problem]
        head = max((item.head_error for item in good), default=0.0)
        text = max((item.text_error for item in good), default=0.0)
        return (
            f"{len(good)} of {len(self.proven)} samples survive the round trip: at most {head:.3f} pixels off through "
            f"the head ({HEAD_BOUND} allowed), {text:.2f} through the text"
        )


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 or noun == "info" else f"{count} {noun}s"


def _finding_lines(item: Finding) -> list[str]:
    lines = [f"{item.severity.upper():<8}{item.headline}  [{item.code}]", f"        {item.meaning}"]
    lines += [f"          {example.line()}" for example in item.examples]
    if item.count > len(item.examples) > 0:
        lines.append(f"          … {item.count - len(item.examples)} more")
    return [*lines, f"        Fix: {item.fix}", ""]


def _split_line(splits: dict[str, dict[str, int]]) -> str:
    parts = [f"{name} {split['photos']} ({split['objects']} objects)" for name, split in splits.items()]
    return ", ".join(parts) or "none"


def _descriptions_line(table: Balance) -> str:
    learnt = sorted(((counts["train"], desc) for desc, counts in table.items()), reverse=True)
    total = max(sum(count for count, _ in learnt), 1)
    most, label = learnt[0]
    rare = ", ".join(f"{desc} {count}" for count, desc in sorted(learnt)[:RARE_SHOWN])
    return f"{len(table)} descriptions; {label} is {most / total:.0%} of train; rarest: {rare}"


def _training_line(facts: dict[str, Any]) -> str:
    packs = ""
    if facts["mean_tokens_per_pack"] is not None:
        packs = (
            f"; a pack of {facts['samples_per_pack']:g} has {facts['mean_tokens_per_pack']} tokens on average, "
            f"{facts['most_tokens_per_pack']} at most"
        )
    if facts["samples_per_step"] is None:
        return "packs are planned by length, but lengths are not known here"
    epochs = "no epoch" if facts["epochs"] is None else f"{facts['epochs']:g} epochs"
    return (
        f"{facts['samples_per_step']:g} samples per step and GPU, {facts['steps_per_epoch']:g} steps per epoch on one "
        f"GPU, {epochs} in all{packs}"
    )


def memory_line(facts: dict[str, Any]) -> str:
    """Memory of one device, before sharding."""
    keys = ("weights", "gradients", "optimizer", "activations")
    parts = ", ".join(f"{key} {size_text(facts[f'{key}_bytes'])}" for key in keys)
    return (
        f"about {size_text(facts['peak_bytes'])} at most, with {facts['parameters'] / 1e6:.1f}M weights, "
        f"{facts['trainable'] / 1e6:.1f}M of them trainable: {parts} ({facts['assumes']}), not all at once; photos in "
        f"flight {size_text(facts['photos_bytes'])}"
    )


def size_text(count: float) -> str:
    """Bytes in the largest unit of at least 1, decimal."""
    power = 0
    while count >= 1000 and power < len(UNITS) - 1:
        count, power = count / 1000, power + 1
    return f"{count:.3g} {UNITS[power]}"


def split_counts(splits: Sequence[tuple[str, int]]) -> dict[str, dict[str, int]]:
    """(split, objects) of every photo → split → photos and objects."""
    counts: dict[str, dict[str, int]] = {}
    for split, objects in splits:
        entry = counts.setdefault(split, {"photos": 0, "objects": 0})
        entry["photos"] += 1
        entry["objects"] += objects
    return counts
