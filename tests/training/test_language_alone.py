"""Without detection a training step is the language loss of the stock model, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers.trainer_utils import SaveStrategy

from bbu.data.chat_processor import ChatProcessorOutput
from bbu.losses.weighting import LANGUAGE_TERMS, TERMS
from bbu.models.wrapper import DetectionVLM
from bbu.training.objective import DetectionObjective
from tests.tiny import (
    FAMILIES,
    Conversation,
    Recorder,
    build_tiny,
    conversation_samples,
    pack,
    run_backbone,
    tiny_config,
    tiny_processor,
    tiny_sample,
    tiny_trainer,
)

WITHOUT_STOCK = ("toy", "ovis2_5")  # no class of transformers takes their photos


def stock_of(model: DetectionVLM) -> Any:
    """The unchanged class of transformers with these weights; of families without one the backbone stays ours."""
    ours = model.backbone.vlm
    if model.backbone.family in WITHOUT_STOCK:
        return ours
    stock = type(ours)(type(ours.config).from_dict(ours.config.to_dict())).double()
    stock.set_attn_implementation("sdpa")  # eager attention has a softmax in float32
    stock.load_state_dict(ours.state_dict())
    return stock.train()


def stock_logits(model: DetectionVLM, stock: Any, sample: ChatProcessorOutput) -> torch.Tensor:
    """Logits of one sample by itself."""
    ids = sample.input_ids[None]
    if model.backbone.family in WITHOUT_STOCK:
        part = Conversation(sample.input_ids, sample.pixel_values.double(), sample.image_grid_thw)
        return run_backbone(model.backbone, [part]).hidden_TD @ model.backbone.lm_head_weight.T
    return stock(  # type: ignore[no-any-return]
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == model.backbone.image_token_id).int(),
        pixel_values=sample.pixel_values.double(),
        image_grid_thw=sample.image_grid_thw,
        use_cache=False,
    ).logits[0]


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_steps_gradient_is_that_of_the_stock_models_language_loss(family: str, packed: bool, tmp_path: Path) -> None:
    """Two samples in one step: the mean over the answer tokens of both."""
    training = {"max_steps": 1, "max_grad_norm": 0.0, "packed": packed}
    config = tiny_config(model={"family": family, "detection": None}, training=training)
    processor = tiny_processor(family, detection=False)
    samples = [tiny_sample(processor, seed) for seed in (1, 2)]
    model = build_tiny(config, torch.float64)
    stock = stock_of(model)
    losses = [
        F.cross_entropy(stock_logits(model, stock, sample)[:-1], sample.labels[1:], reduction="sum")
        for sample in samples
    ]
    expected = torch.stack(losses).sum() / sum(int((sample.labels >= 0).sum()) for sample in samples)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in stock.named_parameters() if p.grad is not None}
    stock.zero_grad()
    trainer, recorder = tiny_trainer(config, tmp_path, samples, processor, model), Recorder()
    trainer.args.save_strategy = SaveStrategy.NO
    trainer.add_callback(recorder)
    trainer.train()
    found = {name.removeprefix("model.backbone.vlm."): value for name, value in recorder.gradients[0].items()}
    idle = found.keys() - gradients.keys()  # of what detection alone reads
    assert not gradients.keys() - found.keys() and all(not found[name].any() for name in idle)
    assert idle == (set() if family != "toy" else {"visual.join.states.weight", "visual.join.states.bias"})
    scale = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        ours, theirs = found[name] / scale, gradient / scale
        # the towers of transformers cast to float32 for their rotary positions, also on the way back
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-7, msg=lambda text, n=name: f"{n}: {text}")
    (log,) = [line for line in trainer.state.log_history if "loss" in line]
    assert [log["loss"], log["loss/student_lm"], log["lm_loss"]] == pytest.approx([expected.item()] * 3, rel=1e-6)
    assert not any(log[f"loss/{term}"] for term in TERMS if term != "student_lm")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("checkpointing", ["none", "selective"])
@pytest.mark.parametrize("lora", [[], ["llm", "vision"]], ids=["whole", "lora"])
def test_every_parameter_has_a_gradient_and_detection_no_term(
    family: str, lora: list[str], checkpointing: str, tmp_path: Path
) -> None:
    """Teachers, conversations and a student without objects in one pack."""
    from bbu.models.acceleration.checkpointing import checkpoint_activations

    config = tiny_config(model={"family": family, "detection": None, "lora.parts": lora})
    objective = DetectionObjective(build_tiny(config), config.loss).train()
    if checkpointing != "none":
        checkpoint_activations(objective.model.backbone, checkpointing)
    processor = tiny_processor(family, detection=False)
    samples = [tiny_sample(processor, 3, teachers=2), tiny_sample(processor, 4, parts=0)]
    batch = pack(objective.model, [*samples, conversation_samples(processor)[1]])
    assert batch["detecting"] == batch["box_counts"] == batch["caption_ids"] == []
    sums = objective(**batch)
    assert {term for term in TERMS if float(sums[term].detach())} == set(LANGUAGE_TERMS)
    torch.stack([sums[term].double() for term in TERMS]).sum().backward()
    assert [name for name, p in objective.named_parameters() if p.requires_grad and p.grad is None] == []
