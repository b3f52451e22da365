"""The checkpoint layout, written and read only here.

model/
  backbone/                     a standard Hugging Face folder: weights, tokenizer, image processor, template; in
                                checkpoints of a run with LoRA, peft's files of adapters instead of weights
  detection_head.safetensors    adapters, decoder, caption decoder; only of a model with detection
  bbu.json                      sizes, prompt, resize policy, coordinate convention, hashes
  descriptions.json             known descriptions; only in a published model
  manifest.json                 sizes and SHA-256 of all files, written last (bbu.models.manifest)
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from bbu.config import Config, DetectionConfig
from bbu.data.chat_processor import ChatProcessor, detection_options
from bbu.errors import CheckpointError, ConfigError, shown
from bbu.families.base import Backbone
from bbu.families.prompts import PromptSpec
from bbu.families.registry import backbone_class, family_options, scratch_sizes
from bbu.families.tokenizer import load_tokenizer
from bbu.jsonl import write_json
from bbu.models.acceleration.lora import (
    ADAPTER_CONFIG,
    base_hash,
    base_of,
    has_lora,
    merge_adapter,
    merged_state,
    save_adapter,
)
from bbu.models.finite import check_finite
from bbu.models.manifest import MANIFEST_FILE, RESTORE, check_whole, read_manifest, seal
from bbu.models.vocabulary import DESCRIPTIONS_FILE
from bbu.models.wrapper import DetectionVLM

FORMAT = 1
HEAD_FILE = "detection_head.safetensors"
FACTS_FILE, BACKBONE_FOLDER = "bbu.json", "backbone"
CONFIG_FILE = f"{BACKBONE_FOLDER}/config.json"
READ_BY_TRANSFORMERS = (".json", ".safetensors", ".bin", ".jinja", ".model", ".txt")
FACTS = ("format", "prompt_hash", "vocabulary_hash", "pixels_hash", "family", "detection", "max_length")


def vocabulary_hash(processor: ChatProcessor) -> str:
    """SHA-256 of the token → id table."""
    table = json.dumps(sorted(processor.tokenizer.get_vocab().items()), ensure_ascii=False)
    return hashlib.sha256(table.encode()).hexdigest()


def pixels_hash(processor: ChatProcessor) -> str:
    """SHA-256 of the image processor's settings for scaling and patches; the prompt covers the resize."""
    return hashlib.sha256(json.dumps(processor.photo_plan.facts(), sort_keys=True).encode()).hexdigest()


def save_model(
    folder: Path,
    model: DetectionVLM,
    processor: ChatProcessor,
    state: Mapping[str, torch.Tensor] | None = None,
    *,
    whole: bool = True,
    adapters: bool = False,
) -> None:
    """Write the layout.

    Args:
        state: the model's state dict as gathered by a wrapper (DeepSpeed); default: the model's own.
        adapters: of a model with LoRA, write what learns alone; False: merge it into the weights.
        whole: write the manifest; False: the caller adds files and seals the folder (bbu.models.manifest.seal).

    Raises:
        NotFiniteError: a weight is not finite; nothing is written.
    """
    state = dict(model.state_dict() if state is None else state)
    check_finite(state)
    folder.mkdir(parents=True, exist_ok=True)
    backbone_prefix = "backbone.vlm."
    backbone = {n.removeprefix(backbone_prefix): v for n, v in state.items() if n.startswith(backbone_prefix)}
    head = {n: v.contiguous() for n, v in state.items() if not n.startswith("backbone.")}
    base = None
    if has_lora(model) and adapters:
        save_adapter(folder / BACKBONE_FOLDER, model, backbone)
        base = {"hash": base_hash(model.backbone.vlm)}
    else:
        model.backbone.save(folder / BACKBONE_FOLDER, merged_state(model, backbone) if has_lora(model) else backbone)
    processor.tokenizer.save_pretrained(folder / BACKBONE_FOLDER)
    processor.photo_plan.save(folder / BACKBONE_FOLDER)
    if model.config is not None:
        save_file(head, folder / HEAD_FILE)
    write_json(
        folder / FACTS_FILE,
        {
            "format": FORMAT,
            "manifest": MANIFEST_FILE,
            "family": model.backbone.family,
            "detection": None if model.config is None else dataclasses.asdict(model.config),
            "prompt": processor.spec.to_json(),
            "prompt_hash": processor.spec.hash,
            "vocabulary_hash": vocabulary_hash(processor),
            "pixels_hash": pixels_hash(processor),
            "max_length": processor.max_length,
            **({"options": dict(options)} if (options := model.backbone.options) else {}),
            **({"base": base} if base else {}),
        },
    )
    if whole:
        seal(folder)


def read_facts(folder: Path) -> dict[str, Any]:
    """Read and validate bbu.json of a model folder.

    Raises:
        CheckpointError: missing, damaged, in another format, or its prompt was edited by hand.
    """
    path = folder / FACTS_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder}: is not a model folder: {FACTS_FILE} is missing")
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        spec = PromptSpec(**facts["prompt"])
        known = [facts[key] for key in FACTS]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: is damaged: {error}") from None
    if known[0] != FORMAT:
        raise CheckpointError(f"{path}: format {shown(known[0])}, this version reads {FORMAT}")
    if spec.hash != known[1]:
        raise CheckpointError(
            f"{path}: the prompt is not the one the model was trained with (its hash differs); restore the file"
        )
    return facts


def _detection(facts: Mapping[str, Any]) -> DetectionConfig | None:
    """Sizes of the detection head; None = the model has none.

    Raises:
        CheckpointError: they are not sizes of a head.
    """
    sizes = facts["detection"]
    try:
        return None if sizes is None else DetectionConfig(**sizes)
    except TypeError as error:
        raise CheckpointError(f"{FACTS_FILE}: is damaged: detection: {error}; {RESTORE}") from None


def is_model_file(name: str) -> bool:
    """Whether a name in a manifest belongs to the model, not to the trainer's state or to LoRA."""
    return name in (HEAD_FILE, FACTS_FILE, DESCRIPTIONS_FILE) or name.startswith(f"{BACKBONE_FOLDER}/")


def check_model(folder: Path) -> None:
    """Check that a model folder is as it was written.

    Models of versions without a manifest are accepted if their files are there; a line on stderr says so.

    Raises:
        CheckpointError: a file is missing, cut or changed, or would be read but is not the model's.
    """
    if "manifest" not in read_facts(folder):
        _check_without_manifest(folder)
        return
    check_whole(folder, is_model_file)
    listed = read_manifest(folder)
    for path in sorted((folder / BACKBONE_FOLDER).iterdir()):
        if path.suffix in READ_BY_TRANSFORMERS and path.relative_to(folder).as_posix() not in listed:
            raise CheckpointError(f"{path}: is not a file of this model and would change it; move it away")


def _check_without_manifest(folder: Path) -> None:
    backbone = folder / BACKBONE_FOLDER
    for path in (folder / CONFIG_FILE, backbone / "tokenizer.json", folder / HEAD_FILE):
        if not path.is_file() or not path.stat().st_size:
            raise CheckpointError(f"{path}: is missing or empty; {RESTORE}")
    if not any(backbone.glob("*.safetensors")):
        raise CheckpointError(f"{backbone}: has no weights (*.safetensors); {RESTORE}")
    print(
        f"{folder}: an earlier version wrote it, without {MANIFEST_FILE}: changed bytes go unnoticed", file=sys.stderr
    )


def load_processor(folder: Path, image_root: str = ".") -> ChatProcessor:
    """The processor a model was trained with.

    Raises:
        CheckpointError: prompt, template, resize policy or vocabulary differ from training.
    """
    facts = read_facts(folder)
    source, family, spec = str(folder / BACKBONE_FOLDER), backbone_class(facts["family"]), PromptSpec(**facts["prompt"])
    try:
        photo_plan = family.photo_plan(source, spec)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{source}: its image processor cannot be read: {str(error).splitlines()[0]}") from None
    processor = ChatProcessor(
        load_tokenizer(source, family.conversation),
        photo_plan,
        family.conversation,
        spec,
        image_root=image_root,
        max_length=facts["max_length"],
        **detection_options(_detection(facts)),
    )
    if vocabulary_hash(processor) != facts["vocabulary_hash"]:
        raise CheckpointError(f"{source}: the tokenizer is not the one the model was trained with; restore its files")
    if pixels_hash(processor) != facts["pixels_hash"]:
        raise CheckpointError(f"{source}: preprocessor_config.json is not the one of training; restore the file")
    return processor


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> DetectionVLM:
    """A trained model, ready to predict.

    Raises:
        CheckpointError: files are missing or damaged, or do not match.
    """
    facts = read_facts(folder)
    try:
        backbone = load_backbone(backbone_class(facts["family"]), folder, dtype)
        model = DetectionVLM(backbone, _detection(facts)).to(dtype)
        load_head(model, folder)
    except CheckpointError:
        raise
    except Exception as error:  # safetensors, transformers and torch all raise their own types
        raise CheckpointError(f"{folder}: cannot be loaded: {str(error).splitlines()[0]}") from None
    return model.eval()


def check_start(config: Config) -> None:
    """Check that model.start is a whole model of this config's family, and its detection head of these sizes.

    Raises:
        ConfigError: it is another one's.
        CheckpointError: it is no model folder, or damaged.
    """
    model, folder = config.model, Path(config.model.start)
    check_model(folder)
    facts = read_facts(folder)
    if "base" in facts:
        raise ConfigError(
            f"model.start: {folder} holds adapters alone; name a model published with model.publish=merged"
        )
    if facts["family"] != model.family:
        raise ConfigError(f"model.start: {folder} is a {facts['family']} model, and model.family is {model.family}")
    sizes = None if model.detection is None else dataclasses.asdict(model.detection)
    if facts["detection"] is None or sizes is None:
        if facts["detection"] != sizes:
            raise ConfigError(
                f"model.start: {folder} has model.detection {shown(facts['detection'])}, not {shown(sizes)}"
            )
    else:
        for key, size in sizes.items():
            if (saved := facts["detection"].get(key)) != size:
                raise ConfigError(f"model.start: {folder} has model.detection.{key} {saved}, not {size}; set it so")


def check_start_sizes(config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check that the backbone of model.start has the sizes of model.scratch, if there are any.

    Raises:
        ConfigError: it has others.
    """
    model, folder = config.model, Path(config.model.start)
    if not model.scratch:
        return
    with torch.device("meta"):
        family = backbone_class(model.family)
        made = family.from_scratch(scratch_sizes(model.family, model.scratch), len(tokenizer), tokenizer.get_vocab())
        there = family.empty(str(folder / BACKBONE_FOLDER))
    ours, theirs = ({name: tuple(p.shape) for name, p in one.named_parameters()} for one in (made, there))
    for name in sorted({*ours, *theirs}):
        if ours.get(name) != theirs.get(name):
            raise ConfigError(
                f"model.start: {folder} has other sizes than model.scratch: {name} is {theirs.get(name)}, not "
                f"{ours.get(name)}; set model.scratch as in the run that trained it"
            )


def load_backbone(family: type[Backbone], folder: Path, dtype: torch.dtype) -> Backbone:
    """The backbone of a model folder; adapters are merged into their base model.

    Raises:
        CheckpointError: its config.json is missing; transformers would build a model of default sizes. Or the base
            model cannot be loaded, or is another one.
    """
    if (folder / BACKBONE_FOLDER / ADAPTER_CONFIG).is_file():
        return _adapted_backbone(family, folder, dtype)
    if not (folder / CONFIG_FILE).is_file():
        raise CheckpointError(f"{folder / CONFIG_FILE}: is missing; {RESTORE}")
    return family.from_pretrained(str(folder / BACKBONE_FOLDER), dtype)


def _adapted_backbone(family: type[Backbone], folder: Path, dtype: torch.dtype) -> Backbone:
    adapters = folder / BACKBONE_FOLDER
    path, where = base_of(adapters), f"{adapters / ADAPTER_CONFIG}: base_model_name_or_path"
    if not path:
        raise CheckpointError(f"{where}: is empty: the run began from random weights, which its checkpoints lack")
    try:
        backbone = family.from_pretrained(path, dtype)
    except OSError as error:
        why = str(error).splitlines()[0]
        raise CheckpointError(f"{where}: {path} cannot be loaded: {why}; name the base model's folder") from None
    facts = read_facts(folder)
    merge_adapter(backbone.vlm, adapters, facts["base"]["hash"])
    backbone.use_options(family_options(family.family, facts.get("options", {})))  # the base model has its own
    return backbone.requires_grad_(True)  # peft has frozen it, and autocast keeps its copies of what may learn alone


def load_head(model: DetectionVLM, folder: Path) -> None:
    """Load adapters, decoder and caption decoder into a model, if it has them.

    Raises:
        CheckpointError: the file is missing or does not fit the model.
    """
    if model.config is None:
        return
    path = folder / HEAD_FILE
    if not path.is_file():
        raise CheckpointError(f"{folder}: {HEAD_FILE} is missing")
    head = load_file(path)
    missing, unexpected = model.load_state_dict(head, strict=False)
    missing = [name for name in missing if not name.startswith("backbone.")]
    if missing or unexpected:
        raise CheckpointError(f"{path}: does not fit the model: {', '.join([*missing, *unexpected][:5])}")
