"""The closing phase: captions learn on from kept features, and nothing else of the model changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bbu import stages
from bbu.config import ClosingConfig, load_config
from bbu.data.collators import Batch, PackedDataCollator
from bbu.data.dataset import TrainingStream
from bbu.errors import ConfigError, NotFiniteError
from bbu.models.checkpoint import HEAD_FILE
from bbu.training.closing import _loss, keep_captions, train_captions
from bbu.training.objective import DetectionObjective
from tests.jobs import write_job
from tests.tiny import DESCRIPTIONS, FAMILIES, build_tiny, tiny_config, tiny_model, tiny_processor, write_samples

CPU = torch.device("cpu")
GROUPS = {"denoising_queries": 80, "caption_groups": 2}


def stream_of(family: str, folder: Path, photos: int = 5) -> TrainingStream:
    samples = write_samples(folder, photos)
    weights = {desc: 0.5 + number for number, desc in enumerate(DESCRIPTIONS)}
    processor = tiny_processor(family, folder, caption_weights=weights)
    return TrainingStream(samples, processor, length=2 * photos, seed=3)


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_features_give_the_caption_loss_of_the_joint_run(family: str, tmp_path: Path) -> None:
    """Whatever is kept together: the sum over the queries of a target is the groups' share of the trained loss."""
    config, stream = tiny_config(loss=GROUPS), stream_of(family, tmp_path)
    objective = DetectionObjective(tiny_model(family), config.loss).eval()
    kept = keep_captions(objective, stream, range(10, 15), 2, None)
    batches = [objective_batch(objective, stream, position) for position in range(10, 15)]
    batches = [batch for batch in batches if sum(batch["box_counts"])]  # a photo without objects teaches no caption
    assert 1 < len(kept) == len(batches) < 5
    with torch.no_grad():
        alone = []
        for batch, sample in zip(batches, kept, strict=True):
            assert len(sample.captions) == 3 * batch["box_counts"][0]
            found, tokens = _loss(objective, [sample], CPU)
            assert tokens == 3 * sum(len(ids) for ids in batch["caption_ids"])
            torch.testing.assert_close(found, 3 * objective(**batch)["caption"], rtol=1e-9, atol=1e-9)
            alone.append(found)
        together, _ = _loss(objective, kept, CPU)
        torch.testing.assert_close(together, torch.stack(alone).sum(), rtol=1e-9, atol=1e-9)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_keeps_the_features_of_the_cpu_and_learns_from_them(tmp_path: Path) -> None:
    config, stream = tiny_config(loss=GROUPS), stream_of("qwen2_5_vl", tmp_path)
    objective = DetectionObjective(build_tiny(config), config.loss)
    on_cpu = keep_captions(objective, stream, range(10, 15), 2, None)
    on_gpu = keep_captions(objective.cuda(), stream, range(10, 15), 2, None)
    for ours, theirs in zip(on_gpu, on_cpu, strict=True):
        torch.testing.assert_close(ours.tokens_MD, theirs.tokens_MD, rtol=1e-2, atol=1e-2)
        assert ours.captions == theirs.captions
    losses = train_captions(objective, on_gpu, ClosingConfig(epochs=8, batch_size=2, learning_rate=5e-3), 5, None)
    assert losses[-1] < 0.8 * losses[0]


def objective_batch(objective: DetectionObjective, stream: TrainingStream, position: int) -> Batch:
    collator = PackedDataCollator(objective.model.backbone.position_function())
    return collator(stream.__getitems__([position]))


@pytest.mark.parametrize("family", FAMILIES)
def test_captions_learn_and_all_other_weights_stay(family: str, tmp_path: Path) -> None:
    config = tiny_config(model={"family": family}, loss=GROUPS)
    weights, losses = [], []
    for _ in range(2):
        objective = DetectionObjective(build_tiny(config), config.loss)
        before = {name: value.clone() for name, value in objective.model.state_dict().items()}
        kept = keep_captions(objective, stream_of(family, tmp_path), range(10, 15), 2, None)
        losses.append(
            train_captions(objective, kept, ClosingConfig(epochs=8, batch_size=2, learning_rate=5e-3), 5, None)
        )
        weights.append(objective.model.state_dict())
    assert losses[0][-1] < 0.8 * losses[0][0]
    for name, value in weights[0].items():
        learned = name.startswith("caption_decoder.")
        assert torch.equal(value, before[name]) or learned, name
        assert torch.equal(value, weights[1][name]), f"{name} differs in a second phase"
    assert losses[0] == losses[1]
    assert not torch.equal(weights[0]["caption_decoder.start.weight"], before["caption_decoder.start.weight"])


def test_a_loss_that_is_not_finite_ends_the_phase(tmp_path: Path) -> None:
    config = tiny_config(loss=GROUPS)
    objective = DetectionObjective(build_tiny(config), config.loss)
    kept = keep_captions(objective, stream_of("qwen2_5_vl", tmp_path), range(10, 15), 2, None)
    with torch.no_grad():
        objective.model.caption_decoder.start.weight.fill_(torch.nan)
    with pytest.raises(NotFiniteError, match="closing phase: the caption loss of epoch 1 is not finite; lower "):
        train_captions(objective, kept, ClosingConfig(epochs=1), 5, None)


def test_a_run_publishes_the_closed_model_and_does_so_again_after_a_resume(tmp_path: Path) -> None:
    """The checkpoint is the joint run's; a run killed in the phase, or scored anew, ends with the same model."""
    path, run = write_job(tmp_path), tmp_path / "run"
    job = ["training.max_steps=2", "training.closing.epochs=2", "training.select_best="]
    stages.train(load_config(path, job))
    joint, closed = load_file(run / "checkpoint-2" / HEAD_FILE), load_file(run / "model" / HEAD_FILE)
    assert joint.keys() == closed.keys()
    changed = {name for name in joint if not torch.equal(joint[name], closed[name])}
    assert changed and all(name.startswith("caption_decoder.") for name in changed)
    summary = json.loads((run / "train_summary.json").read_text(encoding="utf-8"))["closing"]
    assert summary["photos"] > 0 and len(summary["losses"]) == 2
    assert sorted(path.name for path in run.iterdir() if path.name.startswith(".sav")) == []

    shutil.rmtree(run / "model")
    stages.train(load_config(path, [*job, "training.resume=true"]))
    again = load_file(run / "model" / HEAD_FILE)
    assert all(torch.equal(closed[name], again[name]) for name in closed)


def test_samples_without_objects_are_one_line_and_the_checkpoint_can_be_published_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, run = write_job(tmp_path), tmp_path / "run"
    job = ["training.max_steps=2", "training.select_best="]
    monkeypatch.setattr("bbu.training.closing.keep_captions", lambda *args: [])
    with pytest.raises(ConfigError, match=r"training\.closing: no object in the 6 samples that it takes; raise "):
        stages.train(load_config(path, [*job, "training.closing.epochs=2"]))
    assert not (run / "model").exists()
    stages.train(load_config(path, [*job, "training.closing.epochs=0", "training.resume=true"]))
    assert (run / "checkpoint-2" / HEAD_FILE).read_bytes() == (run / "model" / HEAD_FILE).read_bytes()


@pytest.mark.parametrize(("rate", "published"), [(0.0, True), (1e3, False)], ids=["no worse", "worse"])
def test_a_phase_that_loses_on_val_is_not_published(
    rate: float, published: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([0.5, 0.5 if published else 0.1])  # at the end of the joint run, after the phase
    monkeypatch.setattr(
        "bbu.stages.training._scores",
        lambda run, found: dict.fromkeys(("AP", "AP50", "AP50_agnostic", "description_accuracy"), next(values)),
    )
    path, run = write_job(tmp_path), tmp_path / "run"
    job = ["training.max_steps=2", "training.eval_every=2", f"training.closing.learning_rate={rate}"]
    stages.train(load_config(path, [*job, "training.closing.epochs=1"]))
    assert ("val is worse" in capsys.readouterr().out) is not published
    same = (run / "checkpoint-2" / HEAD_FILE).read_bytes() == (run / "model" / HEAD_FILE).read_bytes()
    assert same is (not published or rate == 0.0)
