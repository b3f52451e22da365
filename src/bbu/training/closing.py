"""The closing phase: the caption decoder learns on while the rest of the model stays as it is.

In a joint run, the features that captions are read from change until the last step, so captions are learned late.
Once they stand still, what the caption decoder reads of a photo is computed once and kept; an epoch then costs a small
part of a joint one. The phase follows from the config and the finished checkpoint alone: a run killed in it does it
again with the same result.

Shapes: C captions, D feature width, M memory tokens.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bbu.config import ClosingConfig, Config
from bbu.data.collators import Batch, PackedDataCollator
from bbu.data.dataset import TrainingStream
from bbu.errors import ConfigError, NotFiniteError
from bbu.layers.transfer import to_device
from bbu.losses.language_loss import linear_cross_entropy_sum
from bbu.models.checkpoint import HEAD_FILE, is_model_file
from bbu.models.finite import check_finite
from bbu.models.manifest import read_manifest, seal
from bbu.models.memory import Memory
from bbu.models.wrapper import BoxStates, DetectionVLM
from bbu.training.objective import DetectionObjective, supervised_states
from bbu.training.recovery import load_for_training

SAMPLES_AT_ONCE = 8  # in a forward pass that keeps features
WARM_UP = 0.05  # share of the steps
MAX_GRAD_NORM = 1.0


def close_captions(
    objective: DetectionObjective, stream: TrainingStream, checkpoint: Path, closed: Path, config: Config, bf16: bool
) -> dict[str, Any]:
    """Run the phase on a checkpoint's weights and write its model, with other captions, to ``closed``.

    Args:
        objective: of the run; it has the weights of ``closed`` afterwards.
        stream: of the run; the phase takes the samples that come after its last step.
        bf16: whether matrix products are in bfloat16, as in the run.

    Returns:
        What it gave: photos, losses of the epochs, seconds.

    Raises:
        ConfigError: none of the samples has an object.
        NotFiniteError: see train_captions.
        CheckpointError: the checkpoint cannot be read, or ``closed`` not be written.
    """
    settings, started = config.training.closing, time.monotonic()
    load_for_training(objective.model, checkpoint)
    autocast = torch.bfloat16 if bf16 else None
    samples = round(stream.epoch_length) * settings.views
    kept = keep_captions(objective, stream, range(stream.length, stream.length + samples), settings.groups, autocast)
    kept_seconds, megabytes = time.monotonic() - started, sum(sample.bytes for sample in kept) / 2**20
    print(
        f"closing phase: features of {len(kept)} photos kept ({megabytes:.0f} MB, {kept_seconds:.0f} s); "
        f"captions learn for {settings.epochs} more epochs",
        flush=True,
    )
    if not kept:  # random crops, or photos that turned unreadable, may have left no target
        raise ConfigError(
            f"training.closing: no object in the {samples} samples that it takes; raise training.closing.views, or set "
            "training.closing.epochs=0 and training.resume=true to publish the checkpoint as it is"
        )
    captions = objective.model.caption_decoder
    dtype = next(captions.parameters()).dtype
    captions.to(torch.promote_types(dtype, torch.float32))  # DeepSpeed's are bfloat16: too coarse for small steps
    losses = train_captions(objective, kept, settings, config.seed, autocast)
    write_captions(objective.model, checkpoint, closed)
    captions.to(dtype)
    seconds = time.monotonic() - started
    print(f"closing phase: caption loss {losses[0]:.4f} → {losses[-1]:.4f} in {seconds:.0f} s", flush=True)
    return {"photos": len(kept), "losses": [round(loss, 6) for loss in losses], "seconds": round(seconds, 1)}


def write_captions(model: DetectionVLM, checkpoint: Path, closed: Path) -> None:
    """A copy of a checkpoint's model with the caption decoder of ``model``; all other weights are the same bytes."""
    for name in filter(is_model_file, read_manifest(checkpoint)):
        (closed / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkpoint / name, closed / name)
    head = load_file(closed / HEAD_FILE)
    mine = {f"caption_decoder.{name}": value for name, value in model.caption_decoder.state_dict().items()}
    head.update({name: value.to("cpu", head[name].dtype).contiguous() for name, value in mine.items()})
    check_finite(head)
    save_file(head, closed / HEAD_FILE)
    seal(closed)


@dataclass(frozen=True)
class CaptionSample:
    """What the caption decoder reads of one sample, on the host.

    Args:
        tokens_MD: memory tokens of the image levels.
        levels: for each image level its first token, rows and columns.
        queries: final states and boxes of the queries that describe a target, several for each.
        captions: token ids of each query's target, and their weight in the loss.
    """

    tokens_MD: torch.Tensor
    levels: list[tuple[int, int, int]]
    queries: BoxStates
    captions: list[tuple[tuple[int, ...], float]]

    @property
    def bytes(self) -> int:
        """Of its tensors."""
        tensors = self.tokens_MD, self.queries.states_CD, self.queries.boxes_C4
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def keep_captions(
    objective: DetectionObjective,
    stream: TrainingStream,
    positions: Sequence[int],
    groups: int,
    autocast: torch.dtype | None,
) -> list[CaptionSample]:
    """One pass over samples of the stream with all weights as they are → those that have targets.

    Args:
        groups: denoising groups whose positives are kept beside the matched queries.
    """
    model, device = objective.model, next(objective.parameters()).device
    collator = PackedDataCollator(model.backbone.position_function())
    model.eval()
    kept: list[CaptionSample] = []
    for first in range(0, len(positions), SAMPLES_AT_ONCE):
        batch = collator(stream.__getitems__(positions[first : first + SAMPLES_AT_ONCE]))
        batch = {key: to_device(value, device) if torch.is_tensor(value) else value for key, value in batch.items()}
        with torch.no_grad(), torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
            kept += _keep(objective, batch, groups)
    return kept


def _keep(objective: DetectionObjective, batch: Batch, groups: int) -> Iterator[CaptionSample]:
    if batch.get("blank") or not batch["detecting"]:
        return
    memory, samples, queries, targets = objective.captioned(batch, groups)
    owners = samples.cpu().numpy()
    states, boxes = queries.states_CD.cpu(), queries.boxes_C4.cpu()
    counts = memory.image_token_counts
    for number, (starts, grids) in enumerate(zip(memory.level_starts, memory.level_grids, strict=True)):
        rows = np.flatnonzero(owners == number)
        if len(rows):
            yield CaptionSample(
                memory.tokens_MD[starts[0] : starts[0] + counts[number]].cpu(),
                [(start - starts[0], *grid) for start, grid in zip(starts, grids, strict=True)],
                BoxStates(states[rows], boxes[rows]),
                [(tuple(batch["caption_ids"][t]), batch["caption_weights"][t]) for t in targets[rows].tolist()],
            )


def train_captions(
    objective: DetectionObjective,
    kept: Sequence[CaptionSample],
    config: ClosingConfig,
    seed: int,
    autocast: torch.dtype | None,
) -> list[float]:
    """Train the caption decoder on kept samples; nothing else of the model changes.

    AdamW without weight decay; the rate rises over the first twentieth of the steps and falls to zero in a cosine.

    Returns:
        The mean loss per caption token of each epoch.

    Raises:
        NotFiniteError: a loss is NaN or infinite.
    """
    model, device = objective.model, next(objective.parameters()).device
    model.train()
    learning = list(model.caption_decoder.parameters())
    optimizer = torch.optim.AdamW(learning, lr=config.learning_rate, weight_decay=0.0)
    steps = config.epochs * math.ceil(len(kept) / config.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_peak(step, steps))
    order = np.random.default_rng(seed)
    losses = []
    for _ in range(config.epochs):
        total, tokens = torch.zeros((), device=device), 0
        shuffled = [kept[index] for index in order.permutation(len(kept))]
        for first in range(0, len(shuffled), config.batch_size):
            with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                loss, count = _loss(objective, shuffled[first : first + config.batch_size], device)
            gradients = torch.autograd.grad(loss / count, learning)
            for parameter, gradient in zip(learning, gradients, strict=True):
                parameter.grad = gradient
            nn.utils.clip_grad_norm_(learning, MAX_GRAD_NORM)
            optimizer.step()
            schedule.step()
            total, tokens = total + loss.detach(), tokens + count
        losses.append(float(total) / tokens)
        if not math.isfinite(losses[-1]):
            raise NotFiniteError(
                f"closing phase: the caption loss of epoch {len(losses)} is not finite; lower "
                f"training.closing.learning_rate ({config.learning_rate:g})"
            )
    return losses


def _share_of_peak(step: int, steps: int) -> float:
    warm = max(1, round(steps * WARM_UP))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _loss(
    objective: DetectionObjective, samples: Sequence[CaptionSample], device: torch.device
) -> tuple[torch.Tensor, int]:
    """Weighted sum of the caption loss of some samples, and its number of tokens."""
    captions = [caption for sample in samples for caption in sample.captions]
    counts = [len(sample.captions) for sample in samples]
    owners = to_device(np.repeat(np.arange(len(samples)), counts), device)
    queries = BoxStates(
        torch.cat([sample.queries.states_CD for sample in samples]).to(device, non_blocking=True),
        torch.cat([sample.queries.boxes_C4 for sample in samples]).to(device, non_blocking=True),
    )
    memory = _memory(samples, device)
    states, labels, weights = supervised_states(objective.model, memory, owners, queries, captions)
    head = objective.model.backbone.lm_head_weight
    total = linear_cross_entropy_sum(states, head.detach(), labels, weights)
    return total, len(labels)


def _memory(samples: Sequence[CaptionSample], device: torch.device) -> Memory:
    """The image tokens of some samples as a memory without text, which captions do not read."""
    tokens_MD = torch.cat([sample.tokens_MD for sample in samples]).to(device, non_blocking=True)
    counts = [len(sample.tokens_MD) for sample in samples]
    firsts = [0, *accumulate(counts)]
    of_levels = list(zip(*(sample.levels for sample in samples), strict=True))  # level by level, all samples
    table = [
        [(first + start, rows, columns) for first, (start, rows, columns) in zip(firsts, level, strict=False)]
        for level in of_levels
    ]
    return Memory(
        tokens_MD=tokens_MD,
        pos_embed_MD=torch.zeros_like(tokens_MD),
        cu_seqlens=to_device(firsts, device, torch.int32),
        max_seqlen=max(counts),
        level_starts=[list(starts) for starts in zip(*([row[0] for row in level] for level in table), strict=True)],
        level_grids=[[grid[1:] for grid in sample.levels] for sample in samples],
        level_table_LvB3=to_device(table, device),
    )
