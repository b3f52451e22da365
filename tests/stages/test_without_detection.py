"""A run of the language model alone: trained on words, published, asked for text; what needs boxes says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from bbu import stages
from bbu.cli import main
from bbu.config import Config, load_config
from bbu.errors import ConfigError, UserError
from bbu.inference import Inference
from bbu.jsonl import iter_json_lines, write_jsonl
from bbu.models import precision
from bbu.models.checkpoint import read_facts
from bbu.records import read_rows
from tests.jobs import start_ranks, write_job
from tests.tiny import FAMILIES, tiny_config
from tests.training.one_run import finish

ALONE = "model.detection=null"
WORDS = "data.answers={boxes: 0, summary: 1}"


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "compute_device", lambda: torch.device("cpu"))


def job_of_words(folder: Path, family: str) -> Path:
    """A job whose photos nobody has annotated; each has a summary, and there is no other split."""
    small = tiny_config(model={"family": family}).model
    path, records = write_job(folder, model__family=family, model__scratch=small.scratch), folder / "records"
    rows = read_rows(records / "train.jsonl")
    rows = [replace(row, objects=(), annotated=False, summary=f"{len(row.objects)} parts") for row in rows]
    write_jsonl(records / "train.jsonl", rows)
    for split in ("val", "test"):
        (records / f"{split}.jsonl").unlink()
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_the_job_trains_on_words_and_publishes(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job, run = job_of_words(tmp_path, family), tmp_path / "run"
    assert main(["check", str(job), ALONE, WORDS]) == 0
    assert main(["run", str(job), ALONE, WORDS]) == 0
    printed = capsys.readouterr().out
    assert "model.detection is null: no boxes are predicted and scored" in printed and str(run / "model") in printed
    assert not {"predictions.jsonl", "answers.jsonl", "report.html", "pictures"} & {path.name for path in run.iterdir()}
    losses = [log for _, log in iter_json_lines(run / "train_log.jsonl") if "loss" in log]
    assert len(losses) == 6 and all(log["loss"] == pytest.approx(log["loss/student_lm"]) for log in losses)
    assert losses[-1]["loss"] < losses[0]["loss"]
    assert load_config(run / "config.yaml").model.detection is None
    assert read_facts(run / "model")["detection"] is None
    assert sorted(path.name for path in (run / "model").glob("*.safetensors")) == []
    inference = Inference(run / "model", device="cpu", precision="fp32")
    assert isinstance(inference.summarize(Image.new("RGB", (112, 84)), max_new_tokens=4), str)
    photos, summaries = tmp_path / "records", tmp_path / "summaries.jsonl"
    assert main(["summarize", str(run / "model"), str(photos), str(summaries), "--max-tokens", "4"]) == 0
    assert len(summaries.read_text(encoding="utf-8").splitlines()) == 6


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Config and folder of a run that learned to write boxes as text."""
    folder = tmp_path_factory.mktemp("alone")
    job = write_job(folder)
    with pytest.MonkeyPatch.context() as context:
        context.setattr(precision, "compute_device", lambda: torch.device("cpu"))
        stages.train(load_config(job, [ALONE, "training.max_steps=2"]), scored=False)
    return job, folder / "run"


def test_text_of_such_a_model_has_boxes_like_that_of_any_other(trained: tuple[Path, Path]) -> None:
    inference = Inference(trained[1] / "model", device="cpu", precision="fp32")
    written = inference.generate_text(Image.new("RGB", (112, 84)), max_new_tokens=8)
    assert written.boxes.shape == (len(written.captions), 4) and 0 < written.tokens <= 8


def test_predicted_boxes_are_refused_in_one_line(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("starlette")
    from bbu.serve.app import create_app

    job, run = trained
    inference = Inference(run / "model", device="cpu", precision="fp32")
    why = r"run/model: was trained without a detection head \(model\.detection: null\); ask it for text"
    with pytest.raises(UserError, match=why):
        inference.predict_detection(Image.new("RGB", (112, 84)))
    with pytest.raises(UserError, match=why):
        next(inference.predict_rows(["000.png"], str(run.parent / "records")))
    with pytest.raises(UserError, match=why):
        create_app(inference, "model")
    before = sorted(path.name for path in run.iterdir())
    capsys.readouterr()
    photos, output = run.parent / "records", tmp_path / "out.jsonl"
    commands = [
        ["predict", str(run / "model"), str(photos), str(output)],
        ["serve", str(run / "model"), "--port", "0"],
        ["score", str(job)],  # a config with detection, and this model
        ["baselines", str(job), ALONE],
    ]
    for command in commands:
        assert main(command) == 2, command
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("bbu: error:")]
        assert "without a detection head (model.detection: null)" in line, command
    assert not output.exists() and sorted(path.name for path in run.iterdir()) == before


@pytest.mark.parametrize("stage", [stages.calibrate, stages.predict, stages.score])
def test_stages_after_training_are_refused(stage: object, trained: tuple[Path, Path]) -> None:
    run = stages.open_run(load_config(trained[0], [ALONE]))
    with pytest.raises(ConfigError, match=r"without a detection head .*no boxes to calibrate, predict or score"):
        stage(run)  # type: ignore[operator]


def test_it_is_chosen_by_loss_on_val_and_its_answers_are_scored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job, run = write_job(tmp_path), tmp_path / "run"
    options = [ALONE, "training.eval_every=2", "training.select_best=loss", "evaluation.answers=2"]
    assert main(["run", str(job), *options]) == 0
    logs = [log for _, log in iter_json_lines(run / "train_log.jsonl") if "eval_loss" in log]
    assert [log["step"] for log in logs] == [2, 4, 6] and all("eval_AP" not in log for log in logs)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["answers"]["boxes"]["count"] == 2 and "AP" not in metrics and metrics["split"] == "test"
    assert "boxes: 2 answers" in capsys.readouterr().out
    before = (run / "answers.jsonl").read_bytes()
    (run / "answers.jsonl").unlink()
    assert main(["score", str(job), *options]) == 0
    assert (run / "answers.jsonl").read_bytes() == before


def test_val_needs_a_question(tmp_path: Path) -> None:
    job = job_of_words(tmp_path, tiny_config().model.family)
    with pytest.raises(ConfigError, match=r"training\.eval_every: there is no val split that answers a question"):
        stages.train(load_config(job, [ALONE, WORDS, "training.eval_every=2", "training.select_best=loss"]))


def test_photos_without_an_answer_are_still_refused(tmp_path: Path) -> None:
    """Of a model with detection, photos without objects are refused first."""
    job = job_of_words(tmp_path, tiny_config().model.family)
    with pytest.raises(ConfigError, match=r"data\.answers\.boxes: no training photo has "):
        stages.train(load_config(job, [ALONE]))
    with pytest.raises(ConfigError, match="no object in 6 training photos"):
        stages.train(load_config(job, [WORDS]))


def losses_of(config: Config) -> list[float]:
    lines = (Path(config.output_dir) / "train_log.jsonl").read_text(encoding="utf-8").splitlines()
    return [log["loss"] for log in map(json.loads, lines) if "loss" in log]


def test_two_ranks_train_what_one_trains(tmp_path: Path) -> None:
    """One sample on each rank under DistributedDataParallel, and the same two on one."""
    job = write_job(tmp_path)
    one = load_config(job, [ALONE, f"output_dir={tmp_path / 'one'}"])
    stages.train(one)
    two = [ALONE, "training.batch_size=1", f"output_dir={tmp_path / 'two'}"]
    ended = finish(start_ranks(["-m", "bbu.cli", "run", str(job), *two]))
    assert [status for status, _ in ended] == [0, 0], "\n".join(output[-3000:] for _, output in ended)
    assert losses_of(load_config(job, two)) == pytest.approx(losses_of(one), rel=1e-4)
