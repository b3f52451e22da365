"""The result of a conversion: counts in and out, and everything that is not in the output."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

MAX_LINES = 20  # of dropped labels in the summary; the report file has all of them

# Codes of remarks about the whole source
NO_EFFECT = "option_without_effect"
NOTHING_HELD_OUT = "nothing_held_out"
GROUP_ACROSS_SPLITS = "group_across_splits"
LABELS_NEVER_READ = "labels_never_read"
WITHOUT_OBJECTS = "many_photos_without_objects"


@dataclass
class ConversionReport:
    """Counts of one conversion: photos read = written + skipped; objects read = written + dropped.

    Args:
        photos_read: photos or annotation files found in the source.
        photos_skipped: reason → photos without a row.
        objects_read: objects in all annotation files that could be read.
        dropped: (label, reason) → objects that are in no row.
        splits: name → {"photos", "objects"} of every row file.
        notes: code → count of harmless oddities.
        remarks: code → sentences about the whole source.
        unknown_terms: raw label → why it is outside the taxonomy.
        images: how photo files were stored.
    """

    source_format: str
    seed: int
    images: str = "keep"
    photos_read: int = 0
    photos_skipped: Counter[str] = field(default_factory=Counter)
    objects_read: int = 0
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter)
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    notes: Counter[str] = field(default_factory=Counter)
    remarks: dict[str, list[str]] = field(default_factory=dict)
    unknown_terms: dict[str, str] = field(default_factory=dict)

    def remark(self, code: str, text: str) -> None:
        self.remarks.setdefault(code, []).append(text)

    @property
    def photos_written(self) -> int:
        return sum(split["photos"] for split in self.splits.values())

    @property
    def objects_written(self) -> int:
        return sum(split["objects"] for split in self.splits.values())

    @property
    def objects_dropped(self) -> int:
        return sum(self.dropped.values())

    def dropped_by_reason(self) -> dict[str, int]:
        """Reason → objects, most first."""
        counts: Counter[str] = Counter()
        for (_, reason), count in self.dropped.items():
            counts[reason] += count
        return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))

    def dropped_by_label(self) -> dict[str, dict[str, int]]:
        """Raw label → reason → objects."""
        labels: dict[str, dict[str, int]] = {}
        for (label, reason), count in sorted(self.dropped.items()):
            labels.setdefault(label, {})[reason] = count
        return labels

    def to_json(self) -> dict[str, Any]:
        """The content of conversion_report.json, without times and paths, so that equal runs give equal files."""
        return {
            "source_format": self.source_format,
            "seed": self.seed,
            "images": self.images,
            "photos": {
                "read": self.photos_read,
                "written": self.photos_written,
                "skipped": self.photos_skipped.total(),
                "skipped_by_reason": dict(sorted(self.photos_skipped.items())),
            },
            "objects": {
                "read": self.objects_read,
                "written": self.objects_written,
                "dropped": self.objects_dropped,
                "dropped_by_reason": self.dropped_by_reason(),
                "dropped_by_label": self.dropped_by_label(),
            },
            "outside_taxonomy": dict(sorted(self.unknown_terms.items())),
            "splits": self.splits,
            "notes": dict(sorted(self.notes.items())),
            "remarks": dict(sorted(self.remarks.items())),
        }

    def summary(self) -> str:
        """A few lines for the terminal; dropped objects are listed by label and reason."""
        lines = [
            f"photos   {self.photos_read} read, {self.photos_written} written, {self.photos_skipped.total()} skipped",
            f"objects  {self.objects_read} read, {self.objects_written} written, {self.objects_dropped} dropped",
            "splits   " + ", ".join(f"{name} {counts['photos']}" for name, counts in self.splits.items()),
        ]
        lines += [f"skipped  {count} x {reason}" for reason, count in sorted(self.photos_skipped.items())]
        ranked = sorted(self.dropped.items(), key=lambda pair: (-pair[1], pair[0]))
        unknown = [(label, count) for (label, reason), count in ranked if reason == "outside_hierarchy"]
        if unknown:
            lines.append(f"outside the taxonomy: {sum(count for _, count in unknown)} objects of {len(unknown)} labels")
        lines += [f"dropped  {count} x {label}: {reason}" for (label, reason), count in ranked[:MAX_LINES]]
        if len(ranked) > MAX_LINES:
            lines.append(f"dropped  … and {len(ranked) - MAX_LINES} more kinds, see conversion_report.json")
        lines += [f"note     {count} x {code}" for code, count in sorted(self.notes.items())]
        lines += [f"note     {text}" for _, texts in sorted(self.remarks.items()) for text in texts]
        return "\n".join(lines)
