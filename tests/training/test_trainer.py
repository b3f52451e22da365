"""The trainer around the objective: which checkpoint is best, evaluation, sharded predictions."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Trainer

from bbu.errors import ConfigError, SampleError
from bbu.families.registry import backbone_class
from bbu.losses.weighting import TERMS
from bbu.models.build import build_model
from bbu.training.distributed import merge_shards
from bbu.training.trainer import BBUTrainer, training_arguments
from tests.tiny import (
    DEFAULT,
    FAMILIES,
    build_tiny,
    mixed_samples,
    pack,
    run_model,
    tiny_config,
    tiny_processor,
    tiny_tokenizer,
    tiny_trainer,
)

PROJECT = Path(__file__).resolve().parents[2]


def test_the_checkpoint_with_the_best_score_on_val_is_kept(tmp_path: Path) -> None:
    scores = iter([0.1, 0.7, 0.3])
    asked: list[int] = []

    def evaluator() -> dict[str, float | None]:
        asked.append(1)
        return {"AP50": next(scores), "AP": None}

    config = tiny_config(training={"max_steps": 3, "eval_every": 1, "batch_size": 1, "keep_checkpoints": 1})
    processor = tiny_processor(DEFAULT)
    trainer = tiny_trainer(config, tmp_path, mixed_samples(processor)[:3], processor, evaluator=evaluator)
    trainer.train()
    assert len(asked) == 3
    assert Path(str(trainer.state.best_model_checkpoint)).name == "checkpoint-2"
    assert (tmp_path / "checkpoint-2" / "bbu.json").is_file(), "the best one was thrown away"
    logged = [log["eval_AP50"] for log in trainer.state.log_history if "eval_AP50" in log]
    assert logged == [0.1, 0.7, 0.3]
    assert not any("eval_AP" in log for log in trainer.state.log_history), "what could not be scored is not logged"


def test_the_last_step_is_evaluated_whatever_the_interval(tmp_path: Path) -> None:
    asked: list[int] = []

    def evaluator() -> dict[str, float | None]:
        asked.append(trainer.state.global_step)
        return {"AP50": 0.5}

    config = tiny_config(training={"max_steps": 5, "eval_every": 2, "batch_size": 1})
    processor = tiny_processor(DEFAULT)
    trainer = tiny_trainer(config, tmp_path, mixed_samples(processor), processor, evaluator=evaluator)
    trainer.train()
    assert asked == [2, 4, 5]


@pytest.mark.parametrize("family", FAMILIES)
def test_compute_loss_of_a_whole_step_needs_no_counts(family: str, tmp_path: Path) -> None:
    config = tiny_config(model={"family": family})
    processor = tiny_processor(family)
    model = build_tiny(config, torch.float64)
    trainer = tiny_trainer(config, tmp_path, mixed_samples(processor), processor, model)
    batch = pack(model, mixed_samples(processor))
    _, counts = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    loss, components = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    assert list(components) == list(TERMS)
    assert loss.item() == pytest.approx(sum(value.item() for value in components.values()))
    assert loss.item() == pytest.approx(
        trainer.compute_loss(trainer.model, batch, num_items_in_batch=counts).item(), rel=1e-12
    )


@pytest.mark.parametrize("family", [name for name in FAMILIES if backbone_class(name).language_at_image])
def test_a_student_without_exactly_its_image_is_an_error(family: str) -> None:
    model = build_tiny(tiny_config(model={"family": family}))
    batch = pack(model, mixed_samples(tiny_processor(family))[:2])
    batch["student_images"] = batch["student_images"][::-1]
    with pytest.raises(SampleError, match="a student has exactly one image"):
        run_model(model, batch)


def test_an_attention_backend_that_cannot_run_is_refused_when_the_model_is_built() -> None:
    config = tiny_config(model={"attention": "torch_varlen"})
    with pytest.raises(ConfigError, match=r"model\.attention: torch_varlen cannot run here"):
        build_model(config, tiny_tokenizer(), device=torch.device("cpu"), dtype=torch.float32)


@given(st.integers(0, 20), st.integers(1, 5))
def test_predictions_of_all_ranks_come_back_in_order(count: int, ranks: int) -> None:
    items = list(range(count))
    assert merge_shards([items[rank::ranks] for rank in range(ranks)]) == items


def test_private_api_of_transformers_is_used_in_three_places_only() -> None:
    """Each has its reason beside it: checkpoints are whole, resuming reads our folder, no pack is split over GPUs."""
    own = {name for name in vars(BBUTrainer) if name.startswith("_") and not name.startswith("__")}
    overridden = {"_load_from_checkpoint", "_save_checkpoint"}
    assert own & {*dir(Trainer)} == overridden
    source = Path(inspect.getsourcefile(BBUTrainer) or "").read_text(encoding="utf-8")
    used = set(re.findall(r"\b(?:args|super\(\)|accelerator|callback_handler)\.(_(?!_)\w+)", source))
    assert used - overridden == {"_n_gpu"}
    page = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.split("**Private names of transformers' Trainer**")[1].split("\n\n")[1]
    assert set(re.findall(r"^\| `(?:\w+\.)?(_\w+)`", table, re.MULTILINE)) == {*overridden, "_n_gpu"}


def test_the_trainers_list_of_callbacks_is_touched_in_one_place() -> None:
    files = sorted((PROJECT / "src").rglob("*.py"))
    found = [path.name for path in files if "callback_handler.callbacks" in path.read_text(encoding="utf-8")]
    assert found == ["training.py"]


def test_zero_3_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    path = tmp_path / "zero3.json"
    path.write_text('{"zero_optimization": {"stage": 3}}', encoding="utf-8")
    config = tiny_config(training={"deepspeed": str(path)})
    with pytest.raises(ConfigError, match=r"zero3.json: zero_optimization.stage 3 does not work yet .*set stage 2"):
        training_arguments(config, use_cpu=True, bf16=False, has_val=False)
