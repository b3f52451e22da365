"""Reckons which ways to train Qwen2.5-VL-3B and -7B fit into which cards: the table of docs/memory.md.

    python benchmarks/memory_table.py

Nothing is measured here: bbu.doctor.memory, which agrees with measured peaks of the 3B model to 7 %, is asked for the
published sizes. A card counts as enough if it leaves a tenth of its memory free, for the CUDA context, fragmentation
and what the reckoning leaves out (the detection branch's activations).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from bbu.config import Config, DetectionConfig, LoraConfig
from bbu.doctor.memory import ModelSize, peak_of, size_of
from bbu.families.qwen2_5_vl.backbone import Qwen25VL
from bbu.models.acceleration.lora import add_lora
from bbu.models.build import freeze
from bbu.models.wrapper import DetectionVLM

SIZES: dict[str, dict[str, Any]] = {  # of the published config.json files
    "3B": {
        "text": dict(vocab_size=151_936, hidden_size=2048, intermediate_size=11_008, num_hidden_layers=36,
                     num_attention_heads=16, num_key_value_heads=2),
        "tied": True,
    },
    "7B": {
        "text": dict(vocab_size=152_064, hidden_size=3584, intermediate_size=18_944, num_hidden_layers=28,
                     num_attention_heads=28, num_key_value_heads=4),
        "tied": False,
    },
}  # fmt: skip
VISION = dict(depth=32, hidden_size=1280, intermediate_size=3420, num_heads=16, fullatt_block_indexes=[7, 15, 23, 31])
ONE, FOUR = (2_600, 8_192), (8_636, 21_828)  # tokens and patches: two photos of 1,024 image tokens; four samples
CARDS, FREE = ((24, 1), (48, 1), (80, 1), (80, 8)), 0.1


@dataclass
class Way:
    """Settings of a run: dotted keys of ``model`` and ``training``, and the sizes of its packs."""

    name: str
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    pack: tuple[int, int] = ONE
    ranks: int = 1


LORA = {"lora": LoraConfig(["llm"], rank=16), "freeze": ["vision"]}
BOTH = {"lora": LoraConfig(["llm", "vision"], rank=16)}
FULL, SELECTIVE = {"gradient_checkpointing": "full"}, {"gradient_checkpointing": "selective"}
ZERO = {"deepspeed": "configs/zero2.json"}
WAYS = (
    Way("QLoRA of the language model, tower frozen, one sample", LORA | FULL | {"weights": "4bit"}),
    Way("LoRA of the language model, tower frozen, one sample", LORA | FULL),
    Way("LoRA of both, one sample", BOTH | FULL),
    Way("LoRA of both, four samples", BOTH | FULL, pack=FOUR),
    Way("whole, `adamw_8bit`, one sample", FULL, {"optimizer": "adamw_8bit"}),
    Way("whole, `bfloat16` with masters, one sample", FULL | {"weights": "bfloat16"}),
    Way("the same, `selective`", SELECTIVE | {"weights": "bfloat16"}),
    Way("whole, `bfloat16` with masters, four samples", FULL | {"weights": "bfloat16"}, pack=FOUR),
    Way("whole, float32, one sample", FULL),
    Way("whole, ZeRO-2 on 8 GPUs, four samples, `full`", FULL, ZERO, FOUR, 8),
    Way("whole, ZeRO-2 on 8 GPUs, four samples, `selective`", SELECTIVE, ZERO, FOUR, 8),
)


def build(name: str, way: Way) -> ModelSize:
    """The model's sizes with the weights that learn in this way; built on the meta device."""
    sizes = SIZES[name]
    config = Qwen2_5_VLConfig(
        vision_config=VISION | {"out_hidden_size": sizes["text"]["hidden_size"]},
        text_config=sizes["text"] | {"rope_parameters": {"rope_type": "default", "mrope_section": [16, 24, 24]}},
        tie_word_embeddings=sizes["tied"],
    )
    with torch.device("meta"):
        model = DetectionVLM(Qwen25VL(Qwen2_5_VLForConditionalGeneration(config)), DetectionConfig(width=256, layers=6))
        if "lora" in way.model:
            add_lora(model, way.model["lora"])
    freeze(model, way.model.get("freeze", []))
    return size_of(model)


def peak_gb(name: str, way: Way) -> float:
    config = Config()
    config.training.precision = "bf16"
    for section, values in (("model", way.model), ("training", way.training)):
        for key, value in values.items():
            setattr(getattr(config, section), key, value)
    return peak_of(config, build(name, way), *way.pack, ranks=way.ranks)["peak"] / 1e9


def smallest(gigabytes: float, ranks: int) -> str:
    """The smallest of CARDS on which this many processes fit."""
    enough = [(card, count) for card, count in CARDS if count == ranks and gigabytes <= (1 - FREE) * card]
    return f"{enough[0][1]} × {enough[0][0]} GB" if enough else "none"


def main() -> None:
    print("| way | 3B, GB | fits | 7B, GB | fits |\n|---|---|---|---|---|")
    for way in WAYS:
        peaks = [peak_gb(name, way) for name in SIZES]
        cells = [f"{peak:.1f} | {smallest(peak, way.ranks)}" for peak in peaks]
        print(f"| {way.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
