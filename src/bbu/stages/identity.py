"""What a run follows from, saved in each checkpoint, so that a resumed run is the same run.

Every config key is in one of four classes: SAME may not change, KEPT changes without effect, SILENT changes nothing
that is learned. All others take effect at resume; a line says so.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import astuple
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bbu.config import Config
from bbu.config.checks import all_keys, value_at
from bbu.errors import CheckpointError
from bbu.jsonl import decode_json
from bbu.models.manifest import MANIFEST_FILE

if TYPE_CHECKING:
    from bbu.data.conversations import ConversationRow
    from bbu.models.wrapper import DetectionVLM
    from bbu.records import FewShotSample, Row
    from bbu.stages.run import Run

# A name stands for the key itself and for all keys below it.
SAME = (
    "seed", "data.language", "data.min_pixels", "data.max_pixels", "data.max_length", "data.augment", "data.episodes",
    "data.sampling", "data.answers.boxes", "data.answers.summary", "data.answers.group", "data.answers.verdict",
    "data.answers.group_photos", "data.answer_geometry", "data.replay.share", "data.tiles", "model.family",
    "model.scratch", "model.options", "model.detection", "model.weights", "model.lora", "model.freeze",
    "model.last_blocks", "training.batch_size",
    "training.pack_tokens", "training.pack_pixels", "training.pack_images", "training.gradient_accumulation",
    "training.packed", "training.deepspeed", "training.select_best", "training.optimizer",
)  # fmt: skip
KEPT = ("training.learning_rates", "training.weight_decay", "training.adam_beta2")  # the saved optimizer has them
SILENT = (
    "name", "output_dir", "phases", "model.start", "evaluation", "data.source", "data.answers.judged_by",
    "data.replay.path", "data.image_root",
    "data.workers",
    "model.path", "model.publish", "model.tokenizer", "model.trust_remote_code", "model.feature_cache",
    "training.save_every", "training.eval_every", "training.keep_checkpoints", "training.log_every",
    "training.visual_every", "training.visual_photos", "training.report_to", "training.resume",
    "training.overwrite", "training.step_timeout",
    "training.threads",
)  # fmt: skip
STARTED_FROM = "model it starts from"
SHOWN_DIGITS = 8  # of a SHA-256


def identity_of(run: Run) -> dict[str, Any]:
    """Everything that samples, weights and steps of a run follow from: key → JSON value, readable."""
    config, spec = run.config, run.processor.spec
    table = {key: value_at(config, key) for key in all_keys() if not _among(key, SILENT)}
    table |= {"data.min_pixels": spec.min_pixels, "data.max_pixels": spec.max_pixels}  # 0 = the family's default
    table |= {"training.precision": "bf16" if run.bf16 else "fp32", "model.attention": _attention(run)}
    table |= {"training.deepspeed": _deepspeed(config, run.bf16), "number of processes": run.ranks}
    if run.packs is not None:
        table["training.batch_size"] = None  # unused
        table["lengths of the samples"] = _short(run.packs.lengths_hash)
    table["training rows"] = _rows(run.samples)
    table["teacher rows"] = _rows(run.teachers)
    if run.replay is not None:
        table["conversations"] = _rows(run.replay.rows)
    if run.answers.verdicts is not None:
        table["verdicts"] = _digest([run.answers.verdicts])
    table["sides in descriptions"] = _digest([astuple(run.taxonomy.mirror)]) if run.taxonomy.mirror else ""
    table |= _processor(run)
    if config.model.start:
        table[STARTED_FROM] = model_digest(Path(config.model.start))
    if config.model.lora.parts:
        table["weights that LoRA adapts"] = _frozen(run.model)
    return json.loads(json.dumps(table))  # type: ignore[no-any-return]  # as it will be read: keys are text


def model_digest(folder: Path) -> str:
    """What tells the model of a folder from others: its manifest has a hash of every file."""
    path = folder / MANIFEST_FILE
    return _digest([path.read_text(encoding="utf-8")]) if path.is_file() else "unknown"


def _attention(run: Run) -> str:
    return run.model.backbone.attention_backend


def _processor(run: Run) -> dict[str, str]:
    from bbu.models.checkpoint import pixels_hash, vocabulary_hash

    processor = run.processor
    return {
        "vocabulary": f"{len(processor.tokenizer)} tokens, {_short(vocabulary_hash(processor))}",
        "prompt": _short(processor.spec.hash),
        "image processor": _short(pixels_hash(processor)),
    }


def _deepspeed(config: Config, bf16: bool) -> str:
    """ "off", or the ZeRO stage and precision, which decide how weights and optimizer are saved."""
    path = config.training.deepspeed
    if not path:
        return "off"
    settings = decode_json(Path(path).read_text(encoding="utf-8"), path)
    stage = settings.get("zero_optimization", {}).get("stage", 0)
    return f"ZeRO {stage}, {'bf16' if bf16 else 'fp32'}"


def _rows(rows: Iterable[Row | FewShotSample | ConversationRow]) -> str:
    lines = [json.dumps(row.to_json(), ensure_ascii=False, sort_keys=True) for row in rows]
    return f"{len(lines)} rows, content {_digest(sorted(lines))}, order {_digest(lines)}"


def _frozen(model: DetectionVLM) -> str:
    """Hash of the first numbers of each frozen tensor: with LoRA these weights come from model.path, not from here."""
    parts = [
        f"{name} {tuple(parameter.shape)} {parameter.detach().flatten()[:64].float().tolist()}"
        for name, parameter in model.backbone.vlm.named_parameters()
        if not parameter.requires_grad
    ]
    return f"{len(parts)} tensors, {_digest(parts)}"


def _digest(parts: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{part}\n".encode())
    return _short(digest.hexdigest())


def _short(digest: str) -> str:
    return f"SHA-256 {digest[:SHOWN_DIGITS]}"


# ---------------------------------------------------------------- comparison


def check_identity(checkpoint: Path, now: Mapping[str, Any], steps: int) -> list[str]:
    """Compare a run with the one that a checkpoint was saved by.

    Args:
        now: the run's identity_of.
        steps: training.max_steps.

    Returns:
        Differences that are allowed, a line each.

    Raises:
        CheckpointError: it would be another run; names the keys and both values.
    """
    saved, reached = _saved(checkpoint), int(checkpoint.name.split("-")[1])
    if reached > steps:
        raise CheckpointError(f"{checkpoint}: is beyond training.max_steps {steps}; raise it to at least {reached}")
    changed = [key for key in now if saved.get(key, _default(key)) != now[key]]
    changed += [key for key in saved if key not in now and not _known(key)]
    lines = {key: (_shown(saved.get(key, _default(key))), _shown(now.get(key))) for key in changed}
    refused = [key for key in changed if _refused(key, saved.get(key), now.get(key))]
    if refused:
        list_ = "; ".join(f"{key} {lines[key][0]}, not {lines[key][1]}" for key in refused[:4])
        more = f" (and {len(refused) - 4} more)" if len(refused) > 4 else ""
        raise CheckpointError(
            f"{checkpoint}: its run had {list_}{more}; restore this, or start a new run in another output_dir"
        )
    return [
        f"{key} stays {before}, which the saved optimizer has; {after} has no effect"
        if _among(key, KEPT)
        else f"{key} was {before}, is {after} from here on"
        for key, (before, after) in lines.items()
    ]


def _refused(key: str, before: Any, after: Any) -> bool:
    if key == "training.select_best":  # "" publishes the last; values of two metrics cannot be compared
        return bool(before and after)
    return _among(key, SAME) or not _known(key)


def _saved(checkpoint: Path) -> dict[str, Any]:
    from bbu.training.recovery import IDENTITY_FILE

    path = checkpoint / IDENTITY_FILE
    if not path.is_file():
        raise CheckpointError(f"{path}: is missing, so nothing says which run it belongs to; start a new run")
    return decode_json(path.read_text(encoding="utf-8"), str(path))  # type: ignore[no-any-return]


def _among(key: str, names: Iterable[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in names)


def _known(key: str) -> bool:
    """Whether it is a key of the config; else it is a fact that may not change."""
    return key in all_keys()


def _default(key: str) -> Any:
    """Value of a key that the version before did not have."""
    return json.loads(json.dumps(value_at(Config(), key))) if _known(key) else None


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
