"""Samples → batches: packed end to end (the default) or padded to a rectangle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from bbu.data.chat_processor import IGNORE, ChatProcessorOutput, Span
from bbu.data.dataset import UnreadableSample
from bbu.families.base import PositionFunction
from bbu.geometry import Grid

Batch = dict[str, Any]


class PackedDataCollator:
    """B samples → one row without padding.

    Keys of the batch:
        input_ids, labels (1, T); position_ids (axes, 1, T), each sample counted from its own start;
        cu_seqlens (B + 1,) int32; max_seqlen int;
        pixel_values (P, patch width); image_grid_thw [I]: (frames, rows, columns) of patches; image_to_sample (I,);
        image_keys [I]: feature-cache key of each photo, None where it is not cached;
        student_spans [B], teacher_spans [B][…], replay_spans [B][…]: half-open token ranges in the pack; names [B];
        detecting: indices of the samples with detection, in order; only these have an entry in:
        student_images: index of each student's image among the I; prompt_spans, photo_spans: token ranges in the pack;
        box_counts; geometries; salts;
        boxes (N, 4) cxcywh in [0, 1]: an array, which stays on the host;
        caption_ids [N]: token ids of each caption, end token included;
        caption_weights [N]: of each caption in the loss;
        only where photos cannot be read: unreadable, a row for each sample that was left out; blank, whether that
        leaves none, so that an empty photo stands in, whose losses count nothing.

    Values that decide shapes stay Python numbers, so that a step never waits for the device to read one.

    Args:
        position_function: the backbone's rotary positions for one sample.
    """

    def __init__(self, position_function: PositionFunction) -> None:
        self.position_function = position_function

    def __call__(self, samples: Sequence[ChatProcessorOutput | UnreadableSample]) -> Batch:
        samples, left_out = _readable(samples)
        lengths = [len(sample.input_ids) for sample in samples]
        cu_seqlens = torch.tensor([0, *lengths]).cumsum(0)
        starts = cu_seqlens[:-1].tolist()
        labels = torch.cat([sample.labels for sample in samples])
        labels[cu_seqlens[:-1]] = IGNORE  # the previous sample must not predict a sample's first token
        return {
            "input_ids": torch.cat([sample.input_ids for sample in samples])[None],
            "labels": labels[None],
            "position_ids": torch.cat([_positions(s, self.position_function) for s in samples], dim=1)[:, None],
            "cu_seqlens": cu_seqlens.to(torch.int32),
            "max_seqlen": max(lengths),
            **_collate_spans(samples, starts),
            **_collate_images(samples),
            **_collate_targets(samples),
            **left_out,
        }


class StandardDataCollator:
    """B samples → a padded rectangle, for comparison and for tools that need one.

    Like the packed batch, except: input_ids, labels (B, L); position_ids (axes, B, L); attention_mask (B, L) bool,
    True on real tokens; spans count from the start of their row; no cu_seqlens.

    Args:
        position_function: the backbone's rotary positions for one sample.
        pad_token_id: fills input_ids after a sample's end.
    """

    def __init__(self, position_function: PositionFunction, pad_token_id: int) -> None:
        self.position_function, self.pad_token_id = position_function, pad_token_id

    def __call__(self, samples: Sequence[ChatProcessorOutput | UnreadableSample]) -> Batch:
        samples, left_out = _readable(samples)
        longest = max(len(sample.input_ids) for sample in samples)

        def pad(row: torch.Tensor, value: int | bool) -> torch.Tensor:
            return F.pad(row, (0, longest - row.shape[-1]), value=value)

        masks = [torch.ones(len(s.input_ids), dtype=torch.bool) for s in samples]
        return {
            "input_ids": torch.stack([pad(s.input_ids, self.pad_token_id) for s in samples]),
            "labels": torch.stack([pad(s.labels, IGNORE) for s in samples]),
            "attention_mask": torch.stack([pad(mask, False) for mask in masks]),
            "position_ids": torch.stack([pad(_positions(s, self.position_function), 0) for s in samples], dim=1),
            **_collate_spans(samples, [0] * len(samples)),
            **_collate_images(samples),
            **_collate_targets(samples),
            **left_out,
        }


def unpad(batch: Batch) -> Batch:
    """Padded batch → packed batch of the same samples; a packed batch is returned unchanged."""
    if "attention_mask" not in batch:
        return batch
    mask = batch["attention_mask"]
    lengths = mask.sum(1)
    cu_seqlens = F.pad(lengths.cumsum(0), (1, 0))
    starts = cu_seqlens[:-1].tolist()
    packed = {key: value for key, value in batch.items() if key != "attention_mask"}
    packed["input_ids"] = batch["input_ids"][mask][None]
    packed["labels"] = batch["labels"][mask][None]
    packed["position_ids"] = batch["position_ids"][:, mask][:, None]
    packed["cu_seqlens"] = cu_seqlens.to(torch.int32)
    packed["max_seqlen"] = int(lengths.max())
    packed["student_spans"] = [_shift(span, start) for span, start in zip(batch["student_spans"], starts, strict=True)]
    for key in ("teacher_spans", "replay_spans"):
        packed[key] = [_shift_all(spans, start) for spans, start in zip(batch[key], starts, strict=True)]
    for key in ("prompt_spans", "photo_spans"):
        rows = zip(batch[key], batch["detecting"], strict=True)
        packed[key] = [_shift(span, starts[sample]) for span, sample in rows]
    return packed


def _readable(samples: Sequence[ChatProcessorOutput | UnreadableSample]) -> tuple[list[ChatProcessorOutput], Batch]:
    """The samples that could be read, or a stand-in if none could; and the batch's keys about the others."""
    read = [sample for sample in samples if not isinstance(sample, UnreadableSample)]
    missing = [sample for sample in samples if isinstance(sample, UnreadableSample)]
    if not missing:
        return read, {}
    rows = [{"position": m.position, "photo": m.photo, "sample": m.sample, "error": m.error} for m in missing]
    return read or [missing[0].stand_in], {"unreadable": rows, "blank": not read}


def _positions(sample: ChatProcessorOutput, function: PositionFunction) -> torch.Tensor:
    return function(sample.input_ids.tolist(), _grids(sample))


def _grids(sample: ChatProcessorOutput) -> list[Grid]:
    return [(t, h, w) for t, h, w in sample.image_grid_thw.tolist()]


def _shift(span: Span | None, by: int) -> Span | None:
    return None if span is None else (span[0] + by, span[1] + by)


def _shift_all(spans: Sequence[Span], by: int) -> list[Span]:
    return [(start + by, stop + by) for start, stop in spans]


def _collate_spans(samples: Sequence[ChatProcessorOutput], starts: Sequence[int]) -> Batch:
    """Token ranges of every sample, moved by where it starts."""
    placed = list(zip(samples, starts, strict=True))
    return {
        "student_spans": [_shift(sample.student_span, start) for sample, start in placed],
        "teacher_spans": [_shift_all(sample.teacher_spans, start) for sample, start in placed],
        "replay_spans": [_shift_all(sample.replay_spans, start) for sample, start in placed],
        "prompt_spans": [_shift(sample.prompt_span, start) for sample, start in placed if sample.detects],
        "photo_spans": [_shift(sample.photo_span, start) for sample, start in placed if sample.detects],
    }


def _collate_images(samples: Sequence[ChatProcessorOutput]) -> Batch:
    counts = [len(sample.image_grid_thw) for sample in samples]
    return {
        "pixel_values": torch.cat([sample.pixel_values for sample in samples]),
        "image_grid_thw": [grid for sample in samples for grid in _grids(sample)],
        "image_to_sample": torch.repeat_interleave(torch.arange(len(samples)), torch.tensor(counts)),
        "image_keys": [key for sample in samples for key in sample.image_keys or [None] * len(sample.image_grid_thw)],
        "student_images": [  # a student's photo is the last of its sample
            sum(counts[: number + 1]) - 1 for number, sample in enumerate(samples) if sample.detects
        ],
    }


def _collate_targets(samples: Sequence[ChatProcessorOutput]) -> Batch:
    objects = [item for sample in samples for item in sample.ground_truth_objects]
    return {
        "boxes": np.array([item.box for item in objects], dtype=np.float32).reshape(-1, 4),
        "detecting": [number for number, sample in enumerate(samples) if sample.detects],
        "box_counts": [len(sample.ground_truth_objects) for sample in samples if sample.detects],
        "caption_ids": [item.caption_ids for item in objects],
        "caption_weights": [item.caption_weight for item in objects],
        "names": [sample.name for sample in samples],
        "geometries": [sample.geometry for sample in samples if sample.detects],
        "salts": [sample.salt for sample in samples if sample.detects],
    }
