"""Baselines: the same photos and scorer for every way to an answer; text as it is written, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bbu.baselines import Material, Writer, answer_budget, baselines_table, compare, restart
from bbu.cli import main
from bbu.config import Config
from bbu.data.chat_processor import ChatProcessorOutput
from bbu.data.photo import open_photo
from bbu.errors import CheckpointError, ConfigError
from bbu.evaluation import evaluate
from bbu.evaluation.calibration import Calibration
from bbu.inference import Inference
from bbu.jsonl import write_json, write_jsonl
from bbu.models.checkpoint import save_model
from bbu.records import Row, read_predictions, read_rows
from bbu.stages.run_folder import MARKER
from tests.tiny import FAMILIES, build_tiny, tiny_config, tiny_processor, write_samples

NAMES = ["untrained", "trained", "trained_text", "majority", *(f"trained_{n}_teachers" for n in (1, 3, 5))]


def material(folder: Path, *, max_length: int = 8192, **evaluation: Any) -> Material:
    """Four test and eight training photos, and a model in ``folder/model``."""
    rows = [sample.student for sample in write_samples(folder, 12)]
    options = {"batch_size": 3, "score_threshold": 0.0, "max_detections": 5, "bootstrap_samples": 20, **evaluation}
    config = tiny_config(evaluation=options)
    config.output_dir = str(folder)
    save_model(
        folder / "model",
        build_tiny(config),
        tiny_processor(config.model.family, folder, caption_max_tokens=24, max_length=max_length),
    )
    return Material(config, rows[:4], rows[4:], (), str(folder))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Material, dict[str, Any]]:
    given = material(tmp_path_factory.mktemp("baselines"))
    return given, compare(given, Path(given.config.output_dir) / "model")


def saved(given: Material, entry: dict[str, Any]) -> list[Any]:
    return read_predictions(Path(given.config.output_dir) / entry["predictions"])


# ---------------------------------------------------------------- one command


def test_every_baseline_is_there_and_has_seen_every_photo(compared: tuple[Material, dict[str, Any]]) -> None:
    given, report = compared
    assert list(report["baselines"]) == NAMES
    for name, entry in report["baselines"].items():
        assert [row.images[0] for row in saved(given, entry)] == given.names, name
        assert (name == "majority") == ("seconds_per_photo" not in entry)
        assert entry.get("seconds_per_photo", 1) > 0
    assert [entry["teachers"] for entry in report["baselines"].values()] == [0, 0, 0, 0, 1, 3, 5]


def test_the_numbers_are_those_of_the_saved_predictions_scored_offline(
    compared: tuple[Material, dict[str, Any]],
) -> None:
    given, report = compared
    truth = read_rows(Path(given.config.output_dir) / "baselines" / "truth.jsonl")
    assert json.loads((Path(given.config.output_dir) / "baselines.json").read_text(encoding="utf-8")) == report
    for entry in report["baselines"].values():
        again = evaluate(
            truth,
            saved(given, entry),
            score_threshold=0.0,
            train_descriptions=given.trained_descriptions,
            bootstrap_samples=0,
        )
        assert {key: entry["metrics"][key] for key in ("AP", "AP50_agnostic", "false_positives")} == {
            key: again[key] for key in ("AP", "AP50_agnostic", "false_positives")
        }
        said = again["predictions_at_threshold"]
        if said:
            assert entry["precision"] == pytest.approx(1 - again["false_positives"] / said)
        assert entry["recall"] == pytest.approx((said - again["false_positives"]) / again["truth_boxes"])


def test_the_trained_model_is_predicted_as_inference_does(compared: tuple[Material, dict[str, Any]]) -> None:
    given, report = compared
    inference = Inference(
        Path(given.config.output_dir) / "model", device="cpu", precision="fp32", batch_size=3, max_detections=5
    )
    expected = [row.to_json() for row in inference.predict_rows(given.names, given.image_root)]
    assert [row.to_json() for row in saved(given, report["baselines"]["trained"])] == expected
    found = {name: [row.to_json() for row in saved(given, report["baselines"][name])] for name in NAMES}
    others = [found[name] for name in NAMES if name != "trained"]
    assert all(other != expected for other in others), "teachers, words and weights all matter"


def test_the_majority_caption_stands_at_the_trained_boxes(compared: tuple[Material, dict[str, Any]]) -> None:
    given, report = compared
    words = report["baselines"]["majority"]["description"]
    assert given.trained_descriptions[words] == max(given.trained_descriptions.values())
    for guess, row in zip(
        saved(given, report["baselines"]["majority"]), saved(given, report["baselines"]["trained"]), strict=True
    ):
        assert [(part.box, part.desc, part.score) for part in guess.predictions] == [
            (part.box, words, part.objectness) for part in row.predictions
        ]


def test_the_table_has_a_line_for_each_and_says_what_was_wrong_with_the_text(
    compared: tuple[Material, dict[str, Any]],
) -> None:
    _, report = compared
    lines = baselines_table(report).splitlines()
    titles = [entry["title"] for entry in report["baselines"].values()]
    assert [line[:28].strip() for line in lines[1 : len(titles) + 1]] == titles
    text = report["baselines"]["trained_text"]
    expected = f"{text['malformed_objects']} malformed objects, {text['unfinished_answers']} of 4 answers cut off"
    assert any(expected in line for line in lines)


def test_nothing_of_an_earlier_comparison_is_left(tmp_path: Path) -> None:
    given = material(tmp_path)
    (tmp_path / "baselines").mkdir()
    (tmp_path / "baselines" / "old.jsonl").touch()
    (tmp_path / "baselines" / "mine.jsonl").touch()  # not one of an earlier comparison
    (tmp_path / "outside.jsonl").touch()
    write_json(tmp_path / "baselines.json", {"baselines": {"old": {}, "../outside": {}}})
    compare(replace(given, rows=given.rows[:1]), tmp_path / "model")
    assert {path.stem for path in (tmp_path / "baselines").iterdir()} == {*NAMES, "truth", "mine"}
    assert (tmp_path / "outside.jsonl").exists()


def test_the_command_compares_the_first_photos_of_the_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = material(tmp_path)
    write_jsonl(tmp_path / "test.jsonl", given.rows)
    write_jsonl(tmp_path / "train.jsonl", given.students)
    (tmp_path / MARKER).write_text("{}", encoding="utf-8")  # the folder is a run's
    monkeypatch.setattr("bbu.config.load_config", lambda *_: source_of(given.config, tmp_path))
    assert main(["baselines", "tiny.yaml", "--limit", "2"]) == 0
    printed = capsys.readouterr().out
    assert printed.lstrip().startswith("2 photos of the test split") and "majority caption" in printed
    assert [row.images[0] for row in read_rows(tmp_path / "baselines" / "truth.jsonl")] == given.names[:2]


def source_of(config: Config, folder: Path) -> Config:
    config.data.source.path = str(folder)
    return config


# ---------------------------------------------------------------- what cannot be


def test_without_a_trained_model_or_photos_it_says_so(tmp_path: Path) -> None:
    given = material(tmp_path)
    with pytest.raises(CheckpointError, match="there is no trained model; train one first"):
        compare(given, tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"evaluation\.split: there is no test split"):
        compare(replace(given, rows=[]), tmp_path / "model")
    assert not (tmp_path / "baselines").exists()


def test_teachers_that_do_not_fit_or_are_not_there_are_reported(tmp_path: Path) -> None:
    given = material(tmp_path, max_length=220)
    report = compare(replace(given, students=given.students[:4]), tmp_path / "model")["baselines"]
    assert "metrics" in report["trained"] and "note" not in report["trained"]
    assert "4 of 4 photos failed" in report["trained_3_teachers"]["note"]
    assert "max_length" in report["trained_3_teachers"]["note"] and "metrics" not in report["trained_3_teachers"]
    assert report["trained_5_teachers"]["note"].startswith("not run: 5 teachers: only 4 of the train split")


def test_teachers_come_from_teacher_jsonl_where_it_has_any(tmp_path: Path) -> None:
    given = material(tmp_path)
    assert given.pool_name == "train"
    taught = replace(given, teachers=given.students[:1], students=given.students[1:])
    assert taught.pool_name == "teacher"
    teachers, context = taught.shown(1)(given.names[0])
    assert ([photo.name for photo in teachers], context) == ([given.students[0].images[0]], [])


def test_a_photo_that_cannot_be_read_costs_only_itself(tmp_path: Path) -> None:
    given = material(tmp_path)
    (tmp_path / given.names[1]).write_text("no picture", encoding="utf-8")
    report = compare(given, tmp_path / "model")["baselines"]
    for name in ("untrained", "trained", "trained_text"):
        assert report[name]["metrics"]["photos_failed"] == 1 and given.names[1] in report[name]["note"]


# ---------------------------------------------------------------- before training


def test_before_training_means_the_weights_that_training_starts_from(tmp_path: Path) -> None:
    given = material(tmp_path)
    calibration = Calibration("temperature", 2.0, (), "val", 1, 1, {}, {})
    inference = Inference(tmp_path / "model", device="cpu", precision="fp32", max_detections=7, calibration=calibration)
    trained = inference.model
    restart(inference, given.config)
    fresh = build_tiny(given.config, shake=0.0).state_dict()
    found = inference.model.state_dict()
    assert inference.predictor.model is inference.model and not inference.model.training
    assert inference.predictor.options.calibration is None and inference.predictor.options.max_detections == 7
    assert all(torch.equal(found[name], fresh[name]) for name in fresh)
    assert any(not torch.equal(found[name], value) for name, value in trained.state_dict().items())


def test_a_base_model_also_speaks_for_itself(tmp_path: Path) -> None:
    given = material(tmp_path)
    given.config.model.path = str(tmp_path / "model" / "backbone")
    report = compare(replace(given, rows=given.rows[:2]), tmp_path / "model")["baselines"]
    assert list(report)[:2] == ["untrained", "untrained_text"] and report["untrained_text"]["tokens"] > 0


# ---------------------------------------------------------------- text


@pytest.fixture(scope="module", params=FAMILIES)
def speaking(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Inference:
    """A tiny model in float64."""
    folder = tmp_path_factory.mktemp("speaking")
    save_model(folder, build_tiny(tiny_config(model={"family": request.param})), tiny_processor(request.param))
    inference = Inference(folder, device="cpu", precision="fp32")
    inference.model.double()
    return inference


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[tuple[list[Row], str]]:
    yield [sample.student for sample in write_samples(tmp_path, 3)], str(tmp_path)


def greedy_without_cache(inference: Inference, sample: ChatProcessorOutput, longest: int) -> list[int]:
    """Every token from a forward pass of training over all tokens before it."""
    backbone, ids = inference.model.backbone, sample.input_ids.tolist()
    grids = [(t, h, w) for t, h, w in sample.image_grid_thw.tolist()]
    positions = backbone.position_function()
    written: list[int] = []
    while len(written) < longest and written[-1:] != [inference.processor.end_token_id]:
        read = [*ids, *written]
        with torch.no_grad():
            output = backbone(
                torch.tensor([read]),
                positions(read, grids)[:, None],
                sample.pixel_values.double(),
                grids,
                torch.tensor([0, len(read)], dtype=torch.int32),
                len(read),
            )
        written.append(int((output.hidden_TD[-1] @ backbone.lm_head_weight.T).argmax()))
    return written


def test_text_with_a_cache_is_text_without_one_and_only_faster(
    speaking: Inference, rows: tuple[list[Row], str]
) -> None:
    found, root = rows
    sample = speaking.processor.process_photos([], open_photo(root, found[2]), with_answer=False)
    lengths: list[int] = []
    hook = speaking.model.backbone.blocks("llm")[0].register_forward_hook(
        lambda _, args, output: lengths.append(args[0].shape[1])
    )
    cached = speaking.write_answer(sample, max_new_tokens=20)
    hook.remove()
    plain = greedy_without_cache(speaking, sample, 20)
    assert cached.tokens == len(plain) >= 10
    assert cached.text == speaking.processor.tokenizer.decode(plain, skip_special_tokens=True)
    assert lengths[0] == len(sample.input_ids) and lengths[1:] == [1] * (len(lengths) - 1), "one token in each step"


def test_an_answer_may_be_told_how_long_to_be(speaking: Inference, rows: tuple[list[Row], str]) -> None:
    found, root = rows
    sample = speaking.processor.process_photos([], open_photo(root, found[0]), with_answer=False)
    for length in (3, 30):
        exact = speaking.write_answer(sample, max_new_tokens=length, min_new_tokens=length)
        assert (exact.tokens, exact.finished) == (length, False)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_wrong_with_text_is_counted(
    family: str, rows: tuple[list[Row], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, root = rows
    save_model(tmp_path / "model", build_tiny(tiny_config(model={"family": family})), tiny_processor(family))
    inference = Inference(tmp_path / "model", device="cpu", precision="fp32")
    end = inference.processor.end_token_id
    cut = '[{"bbox_2d": [0, 0, 14, 28], "label": "line"}, {"bbox_2d": [9, 9, 5, 5], "label": "line"}, {"bbox'
    ids = inference.processor.tokenizer(cut)["input_ids"]
    answers = iter([ids, [*ids, end], ids, [*ids, end]])
    monkeypatch.setattr(inference.model.backbone, "generate", lambda *prompts, **limits: [next(answers)])
    write = Writer(inference, lambda _: ((), ()), root, 99)
    for _ in range(2):  # counts are of the last time
        written = list(write([row.images[0] for row in found[:2]]))
    assert write.counts == {
        "max_new_tokens": 99,
        "tokens": 2 * len(ids) + 1,
        "malformed_objects": 4,
        "unfinished_answers": 1,
    }
    assert [(part.desc, part.score) for row in written for part in row.predictions] == [("line", 1.0)] * 2


def test_answers_are_given_room_for_more_than_the_longest_of_training(tmp_path: Path) -> None:
    given = material(tmp_path)
    inference = Inference(tmp_path / "model", device="cpu", precision="fp32")
    process = inference.processor.process_photos
    spans = [process([], open_photo(tmp_path, row), with_answer=True).student_span for row in given.students]
    assert answer_budget(given, inference) > max(span[1] - span[0] for span in spans if span)
