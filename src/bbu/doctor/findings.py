"""Findings: what is wrong, how often, examples, what it means and how to fix it. CODES lists all kinds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

ERROR, WARNING, INFO = "error", "warning", "info"
SEVERITIES = (ERROR, WARNING, INFO)  # worst first
MAX_EXAMPLES = 5  # of a finding, in every report


@dataclass(frozen=True)
class Example:
    """One place where a finding occurs.

    Args:
        where: file and line, or the annotation file; "" where only the photo is known.
        photo: path relative to the image root.
        object: description, label or field of the object.
        detail: what was found there.
    """

    where: str = ""
    photo: str = ""
    object: str = ""
    detail: str = ""

    def line(self) -> str:
        """Everything known, on one line."""
        return ": ".join(part for part in (self.where, self.photo, self.object, self.detail) if part)


@dataclass(frozen=True)
class Code:
    """Severity and texts of a code; ``title``, ``meaning`` and ``fix`` may contain ``{values}`` of the finding.

    error: training or evaluation stops, or its metrics are meaningless. warning: it runs, but learns something wrong
    or less than it could. info: good to know.
    """

    severity: str
    title: str
    meaning: str
    fix: str
    counted: bool = True  # False: a yes-or-no finding, whose count is 1


@dataclass(frozen=True)
class Finding:
    """One kind of problem in this data set; ``count`` counts what the title names."""

    code: str
    severity: str
    title: str
    count: int
    examples: tuple[Example, ...]
    meaning: str
    fix: str

    @property
    def headline(self) -> str:
        """Count and title."""
        return f"{self.count} {self.title}" if CODES[self.code].counted else self.title

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"examples": [asdict(example) for example in self.examples]}


def finding(
    code: str, examples: Sequence[Example], count: int | None = None, severity: str | None = None, **values: Any
) -> Finding:
    """A finding of a known code.

    Args:
        examples: all or the first few.
        count: default: the number of examples.
        severity: overrides the code's own.
        values: for the braces in the code's texts.
    """
    known = CODES[code]
    return Finding(
        code,
        severity or known.severity,
        known.title.format(**values),
        (len(examples) if known.counted else 1) if count is None else count,
        tuple(examples[:MAX_EXAMPLES]),
        known.meaning.format(**values),
        known.fix.format(**values),
    )


def by_severity(findings: Sequence[Finding]) -> list[Finding]:
    """Worst first; equal severities in the order found."""
    return sorted(findings, key=lambda item: SEVERITIES.index(item.severity))


_CONVERT_AGAIN = "correct the annotation, or convert it again with the photo it was made on"

CODES: dict[str, Code] = {
    # ------------------------------------------------------------ rows
    "bad_row": Code(
        ERROR,
        "rows that break the contract",
        "Training reads rows strictly and stops at the first of these.",
        "Fix the field named in the example (docs/data_schema.md lists the rules), or delete the line.",
    ),
    "bad_conversation": Code(
        ERROR,
        "conversations of data.replay.path that training refuses",
        "Training reads conversations strictly and stops at the first of these.",
        "Fix the field named in the example (docs/data_schema.md lists the rules), or delete the line.",
    ),
    "box_outside_photo": Code(
        ERROR,
        "objects with coordinates outside their photo",
        "More than half a pixel outside the stated width and height; training stops at the row.",
        "Clip the coordinates, drop the object, or " + _CONVERT_AGAIN + ".",
    ),
    "not_one_photo": Code(
        ERROR,
        "rows with more than one photo",
        "A turn of the conversation has exactly one photo; training stops at the row.",
        "Write one row for each photo.",
    ),
    "special_token": Code(
        ERROR,
        "descriptions that contain a special token of the chat template",
        "It would end the model's turn or insert a photo; training stops at the row.",
        "Remove the token from the description, or map it in the taxonomy's tokens (data.source.taxonomy).",
    ),
    "no_training_photo": Code(
        ERROR,
        "no training photo that can be read",
        "There is nothing to learn from.",
        "Check data.source.path and data.image_root.",
        counted=False,
    ),
    "no_object": Code(
        ERROR,
        "no object in any of {photos} training photos",
        "There is nothing to learn from; training refuses to start.",
        "Look for labels that were not read: check data.source.format and data.source.path.",
        counted=False,
    ),
    "split_without_objects": Code(
        WARNING,
        "no object in any of {photos} {split} photos",
        "Metrics of such a split say nothing.",
        "Look for labels of {split} that were not read, or draw the split anew (data.source.splits, "
        "data.source.{split}_fraction).",
        counted=False,
    ),
    "no_val_split": Code(
        ERROR,
        "no val photo with {what}, but training.eval_every is {eval_every}",
        "Training refuses to start, because it could not choose the best checkpoint.",
        "Set data.source.val_fraction or data.source.splits so that there is a val split, or training.eval_every=0.",
        counted=False,
    ),
    "no_evaluation_split": Code(
        ERROR,
        "no {split} split, which evaluation.split names",
        "The job would stop before it trains.",
        "Set data.source.{split}_fraction or data.source.splits, or another evaluation.split.",
        counted=False,
    ),
    "no_teachers": Code(
        ERROR,
        "no teacher, but {key} asks for {asked}",
        "The job stops before its first step: the pool of worked examples is empty.",
        "Set data.source.max_teachers, or data.episodes.pool=train, or {key} to none.",
        counted=False,
    ),
    "unanswerable": Code(
        ERROR,
        "the training photos cannot be asked as data.answers says",
        "The job stops before its first step.",
        "Change the shares, or give the rows what is asked for (docs/answers.md).",
        counted=False,
    ),
    # ------------------------------------------------------------ photos
    "photo_missing": Code(
        ERROR,
        "missing photos",
        "Training stops at the first of them.",
        "Copy the photos under the image root ({root}), correct data.image_root, or delete the rows.",
    ),
    "photo_outside_root": Code(
        ERROR,
        "image paths that leave the image root",
        "Such paths are refused: absolute, with .., or a link to elsewhere.",
        "Move the photos under {root}, or set data.image_root to a folder that holds them all.",
    ),
    "photo_unreadable": Code(
        ERROR,
        "photos that cannot be read",
        "Damaged, truncated or not an image; training stops at the first of them.",
        "Copy them again from the camera or archive, or delete their rows.",
    ),
    "size_mismatch": Code(
        ERROR,
        "rows whose width and height differ from the photo's",
        "The size after the EXIF rotation counts. Boxes of such a row are misplaced; training stops at the row.",
        "Convert the annotations again (bbu prepare), or correct width and height together with the boxes.",
    ),
    "photo_too_long": Code(
        ERROR,
        "photos more than 200 times longer than wide",
        "They cannot be resized for the model; training stops at the first of them.",
        "Crop them, or split them into tiles.",
    ),
    # ------------------------------------------------------------ conversion
    "skipped_malformed": Code(
        WARNING,
        "annotations that cannot be used",
        "Their photos are in no split. With data.source.on_error=fail the job stops at the first.",
        "Fix the files named here, or set data.source.on_error=skip to continue without them.",
    ),
    "skipped_photo": Code(
        WARNING,
        "photos left out by conversion ({reason})",
        "They are in no split; invalid_samples.jsonl lists all of them.",
        "Complete their annotations, or remove them from the source folder if they are meant to be left out.",
    ),
    "dropped_outside_hierarchy": Code(
        WARNING,
        "objects dropped for a term that the taxonomy does not know",
        "One missing term can cost most of a label: {labels}.",
        "Map the term in tokens, or add it to hierarchy, in the file that data.source.taxonomy names.",
    ),
    "dropped_object": Code(
        WARNING,
        "objects dropped by conversion ({reason})",
        "They are in no row: {labels}. An object without annotation teaches the model that nothing is there.",
        "Fix the annotations named here; invalid_objects.jsonl lists all (bbu prepare CONFIG writes it).",
    ),
    "conversion_note": Code(
        INFO,
        "photos or objects noted by conversion ({reason})",
        "{meaning}",
        "Look at some of the drawn samples. If boxes are off, convert with the photos that were annotated.",
    ),
    "conversion_notes": Code(
        INFO,
        "other kinds of notes by conversion",
        "Harmless oddities of the source, and what has no place in a row.",
        "Read them once; conversion_report.json has all.",
    ),
    "labels_never_read": Code(
        WARNING,
        "folders of label files that conversion did not read",
        "Their photos may be in the rows as if there was nothing to see.",
        "Move the labels to where the format expects them (docs/bring_your_data.md), or correct data.source.format.",
    ),
    "option_without_effect": Code(
        INFO,
        "options without effect on this data",
        "Something that the config asks for did not happen.",
        "Change what the example suggests, or remove the option.",
    ),
    "nothing_held_out": Code(
        INFO,
        "no val split, because the source has train alone",
        "No metric is computed during training, and the last checkpoint counts as the best.",
        "Set data.source.val_fraction (and data.source.group_by, so that photos of one site stay together).",
        counted=False,
    ),
    "group_across_splits": Code(
        WARNING,
        "groups of photos that the source's own splits tear apart",
        "The model is tested on sites that it has seen in training, so its metrics are too good.",
        "Set data.source.splits={{train: train+val}} and data.source.val_fraction to draw whole groups.",
    ),
    # ------------------------------------------------------------ boxes
    "tiny_objects": Code(
        WARNING,
        "objects with a side shorter than one image token",
        "After the resize to data.max_pixels={max_pixels} the side{tiles} is under {cell} pixels ({share} of all "
        "objects; {area} have less area than one token too), so the model hardly sees them: {labels}.",
        "{advice}",
    ),
    "more_objects_than_queries": Code(
        WARNING,
        "photos with more objects than model.detection.queries ({queries})",
        "A query finds one object, so the remaining objects can be neither learnt nor found.",
        "Set model.detection.queries={needed} (memory grows a little), or cut photos into tiles: data.tiles.",
    ),
    "contradictory_labels": Code(
        WARNING,
        "pairs of boxes in the same place with different descriptions",
        "Boxes in one photo overlap by IoU >= {iou}; the model is asked for two answers in one place.",
        "Keep one of the two objects, or merge their descriptions.",
    ),
    "contradictory_copies": Code(
        WARNING,
        "places that two copies of a photo describe differently",
        "The photos are equal or nearly equal, the boxes overlap by IoU >= {iou}, but the descriptions differ.",
        "Decide which is right and correct the other annotation, or remove one of the photos.",
    ),
    "photos_without_objects": Code(
        WARNING,
        "{split} photos without any object ({share})",
        "They teach that nothing is there. A label file that is missing or was not read looks the same.",
        "Check some of them; leave out photos that nobody has labelled.",
    ),
    # ------------------------------------------------------------ copies
    "copy_across_splits": Code(
        ERROR,
        "val or test photos with a byte-identical copy in train",
        "The model is tested on photos it has trained on, so its metrics are meaningless.",
        "Remove the copies from one side; data_conversion keeps copies on one side by itself.",
    ),
    "near_copy_across_splits": Code(
        WARNING,
        "val or test photos that nearly equal a training photo",
        "Perceptual hashes differ in at most {bits} of 64 bits: resized, re-encoded, or a second shot.",
        "Look at the pairs; move both to one split if they show the same scene.",
    ),
    "copy_within_split": Code(
        INFO,
        "photos with a byte-identical copy in their split",
        "They count twice in training or in the metrics.",
        "Remove the copies, unless their annotations differ on purpose.",
    ),
    "near_copy_within_split": Code(
        INFO,
        "photos that nearly equal another of their split",
        "Perceptual hashes differ in at most {bits} of 64 bits.",
        "No action needed; keep such photos together when you split by hand.",
    ),
    # ------------------------------------------------------------ descriptions
    "unseen_in_training": Code(
        WARNING,
        "objects in val and test whose description is not in train",
        "The model cannot learn these descriptions: {labels}.",
        "Move photos with them to train, or use a description that train has.",
    ),
    "unmeasured_description": Code(
        WARNING,
        "descriptions of train that val or test does not show",
        "The metrics of that split say nothing about them: {labels}.",
        "Draw a larger split (data.source.val_fraction), or add photos with them.",
    ),
    "rare_description": Code(
        INFO,
        "descriptions with fewer than {few} training objects",
        "Rare descriptions are mostly missed: {labels}.",
        "Collect more photos of them.",
    ),
    "one_description_dominates": Code(
        INFO,
        "training objects share one description ({share})",
        "Always predicting {label!r} would be right that often; compare accuracies with majority_baseline.",
        "Judge the model by description_macro_accuracy, and collect photos of the other descriptions.",
    ),
    "description_too_long": Code(
        ERROR,
        "descriptions longer than model.detection.caption_max_tokens ({limit})",
        "Counted in tokens with the end token; training stops at the first of them. The longest has {longest}.",
        "Set model.detection.caption_max_tokens={longest}, or shorten the descriptions.",
    ),
    "direction_words": Code(
        WARNING,
        "objects whose description names a side that augmentation changes",
        "Augmentation flips or rotates photos ({changes}), but the taxonomy's mirror rules keep: {labels}.",
        "Add the words to mirror.words in the taxonomy, set its mirror rules to swap, unless_words or forbid, or turn "
        "off {keys}.",
    ),
    # ------------------------------------------------------------ tokens and training
    "sample_too_long": Code(
        ERROR,
        "training samples over data.max_length ({limit} tokens)",
        "Training stops at the first of them. The longest has {longest} tokens.",
        "Set data.max_length={longest}, lower data.max_pixels, or write fewer teachers into the sample.",
    ),
    "sample_too_long_with_teachers": Code(
        WARNING,
        "training samples that can exceed data.max_length ({limit} tokens) with teachers or context",
        "Training stops if the longest teachers of the pool are drawn for them: up to {longest} tokens.",
        "Set data.max_length={longest}, lower data.max_pixels, or show fewer teachers and context photos "
        "(data.episodes).",
    ),
    "sample_larger_than_pack": Code(
        ERROR,
        "training samples larger than a pack (training.pack_{what}={limit})",
        "Training stops before its first step. The largest has {longest} {what}.",
        "Set training.pack_{what}={longest} or more, lower data.max_pixels, or write fewer teachers into the sample.",
    ),
    "sample_larger_than_pack_with_teachers": Code(
        WARNING,
        "training samples that can be larger than a pack (training.pack_{what}={limit}) with teachers or context",
        "Training stops if the longest teachers of the pool are drawn for them: up to {longest} {what}.",
        "Set training.pack_{what}={longest} or more, lower data.max_pixels, or show fewer teachers and context photos "
        "(data.episodes).",
    ),
    "model_absent": Code(
        WARNING,
        "token lengths, description lengths and memory were not computed",
        "The model or its tokenizer is not on this machine, and the doctor downloads nothing.",
        "Set model.path (or model.tokenizer) to a local folder, or fetch the model first.",
        counted=False,
    ),
    "photos_never_seen": Code(
        WARNING,
        "training photos (or tiles) that no step reaches",
        "{steps} steps of {per_step} samples are {epochs:.2f} epochs.",
        "Set training.max_steps={needed} or more for one epoch (fewer with several GPUs).",
    ),
    "sample_broken": Code(
        ERROR,
        "samples that break a health check",
        "Each photo has its place in the text, its patches and its grid; answers alone are learned, to their end; and "
        "boxes come back from the text. A sample that breaks this teaches something else than its row says.",
        "If the detail names your file, mend it; otherwise the model's tokenizer or template does not fit the family "
        "(model.family, model.tokenizer), or this is a fault of ours.",
    ),
    "geometry_broken": Code(
        ERROR,
        "samples whose boxes do not survive the round trip through the model's frames",
        "A box must come back within half a pixel from the head's targets and half a model pixel from the text.",
        "If the example names a size, fix the row; otherwise this is a bug: report it.",
    ),
}
