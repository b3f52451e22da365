"""The visual training log: shows what the model sees, is bounded, goes on, and changes nothing."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bbu import stages
from bbu.config import Config
from bbu.config.schema import VAL_METRICS
from bbu.evaluation.descriptions import greedy_match
from bbu.geometry import iou_matrix
from bbu.inference.predictor import Predictor
from bbu.jsonl import write_jsonl
from bbu.losses.detection_loss import detection_sums
from bbu.losses.matcher import MatchCosts
from bbu.losses.weighting import TERMS
from bbu.models import precision
from bbu.models.detection_head import DetectionHead
from bbu.monitoring import visual_log
from bbu.monitoring.visual_history import LOOKS_KEPT, MARKS_PER_LOOK, History, read_page, thinned, thumbnail, write_page
from bbu.monitoring.visual_log import PAGE, VisualLog
from bbu.monitoring.visual_probe import (
    UNMATCHED,
    Probe,
    Seen,
    choose_probes,
    match_stability,
    matched_queries,
    query_names,
    undisturbed,
)
from bbu.records import ObjectRow, PredictedObject, PredictionRow, Row
from bbu.training.objective import target_boxes
from tests.jobs import start_ranks
from tests.tiny import (
    DEFAULT,
    build_tiny,
    noise_photo,
    pack,
    run_model,
    tiny_config,
    tiny_model,
    tiny_processor,
    tiny_sample,
    write_samples,
)
from tests.training.one_run import finish
from tests.training.test_resume import PowerCutError, losses, pull_the_plug, weights

STEPS = 6


@pytest.fixture(autouse=True)
def bugs_are_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VisualLog, "strict", True)
    monkeypatch.setattr(precision, "compute_device", lambda: torch.device("cpu"))


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photos for training and four for val, one of them without objects."""
    folder = tmp_path_factory.mktemp("records")
    write_jsonl(folder / "train.jsonl", [sample.to_json() for sample in write_samples(folder, 8)])
    write_jsonl(folder / "val.jsonl", [s.student.to_json() for s in write_samples(folder, 4, seed=50)])
    write_jsonl(folder / "teacher.jsonl", [s.student.to_json() for s in write_samples(folder, 3, seed=80)])
    return folder


def run_config(records: Path, output: Path, **training: Any) -> Config:
    steps = {"max_steps": STEPS, "save_every": 3, "visual_every": 2, "keep_checkpoints": 3}
    config = tiny_config(
        data={"source.path": str(records), "augment.flip_horizontal": 0.5, "max_pixels": 112 * 112},
        evaluation={"score_threshold": 0.0},
        training={**steps, **training},
    )
    config.output_dir = str(output)
    return config


def looks_of(output: Path) -> list[int]:
    return [look.step for look in read_page(output / PAGE).looks]


# ---------------------------------------------------------------- training is left alone


@pytest.mark.parametrize("every", [1, 3])
def test_training_is_the_same_to_the_bit_with_the_log_and_without(every: int, records: Path, tmp_path: Path) -> None:
    watched, names = {"eval_every": 3, "select_best": "", "gradient_accumulation": 2}, ("with", "without")
    stages.train(run_config(records, tmp_path / "with", visual_every=every, **watched))
    stages.train(run_config(records, tmp_path / "without", visual_every=0, **watched))
    assert len(losses(tmp_path / "with")) == STEPS and looks_of(tmp_path / "with")[-1] == STEPS
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    one, other = (weights(tmp_path / run / f"checkpoint-{STEPS}") for run in names)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert not (tmp_path / "without" / PAGE).exists()
    for file in ("rng_state.pth", "optimizer.pt", "scheduler.pt"):
        states = [torch.load(tmp_path / run / f"checkpoint-{STEPS}" / file, weights_only=False) for run in names]
        assert same(*states), file


def same(one: Any, other: Any) -> bool:
    """Equal to the bit, through dictionaries and lists."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(np.array_equal(one, other))


def test_random_states_and_every_modules_mode_survive_whatever_happens_inside() -> None:
    model = build_tiny(tiny_config()).train()
    model.backbone.eval()  # as a frozen part may be
    modes = [module.training for module in model.modules()]

    def state() -> tuple[Any, ...]:
        return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()

    before = state()
    with pytest.raises(PowerCutError), undisturbed(model):
        model.eval()
        random.random(), np.random.rand(3), torch.rand(3)
        assert state() != before
        raise PowerCutError
    assert state() == before
    assert [module.training for module in model.modules()] == modes and True in modes and False in modes


def probe_of(rows: list[Row], folder: Path, **options: Any) -> Probe:
    model = tiny_model(DEFAULT, torch.float32)
    predictor = Predictor(model, tiny_processor(DEFAULT, folder), **options)
    return Probe(predictor, rows, str(folder), MatchCosts())


def test_a_look_leaves_gradients_modes_and_weights_as_they_are(tmp_path: Path) -> None:
    rows = [sample.student for sample in write_samples(tmp_path, 4)][1:]
    probe = probe_of(rows, tmp_path)
    model = probe.predictor.model.train()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    probe.look()
    assert all(module.training for module in model.modules())
    assert all(torch.equal(parameter.grad, torch.ones_like(parameter)) for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_weights_that_are_shared_out_are_refused_before_anything_runs(tmp_path: Path) -> None:
    """A ZeRO-3 forward on one rank alone would wait for the others for ever."""
    probe = probe_of([sample.student for sample in write_samples(tmp_path, 2)], tmp_path)
    next(probe.predictor.model.parameters()).ds_id = 0  # type: ignore[attr-defined]
    probe.predictor.model.forward = None  # type: ignore[assignment]
    with pytest.raises(Exception, match="ZeRO-3 shares out the weights"):
        probe.look()


@pytest.mark.parametrize("broken", ["look", "write_page", "_open"])
def test_an_error_is_said_once_and_training_goes_on(
    broken: str, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise ZeroDivisionError("no ink")

    owner: Any = {"look": Probe, "write_page": visual_log, "_open": VisualLog}[broken]
    monkeypatch.setattr(owner, broken, fail)
    config = run_config(records, tmp_path, max_steps=2, visual_every=1)
    with pytest.raises(ZeroDivisionError):
        stages.train(config)
    monkeypatch.setattr(VisualLog, "strict", False)
    config.training.overwrite = True
    stages.train(config)
    assert len(losses(tmp_path)) == 2, "training stopped"
    said = capsys.readouterr().err
    assert said.count("visual log: step 0: ZeroDivisionError: no ink; training goes on") == 1
    assert ("visual log: 3 updates failed in all" in said) == (broken != "_open")


# ---------------------------------------------------------------- which photos


def photo_row(name: str, *descs: str) -> Row:
    return Row((name,), tuple(ObjectRow(desc, "bbox_2d", (0, 0, 5, 5)) for desc in descs), 9, 9)


def test_the_rarest_and_richest_photos_are_chosen_first() -> None:
    rows = [photo_row(f"{n}", "a", "b") for n in range(9)] + [photo_row("rare", "z"), photo_row("rich", "a", "b", "c")]
    names = [row.images[0] for row in choose_probes(rows, 3, seed=1)]
    assert names[:2] == ["rich", "rare"]  # 1/10 + 1/10 + 1 > 1 > nothing new
    assert names[2] in {"rich", *map(str, range(9))}


@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=4), max_size=12), st.integers(1, 6), st.integers(0, 3))
def test_probes_are_photos_with_objects_each_once_and_the_same_for_a_seed(
    plan: list[list[str]], count: int, seed: int
) -> None:
    rows = [photo_row(str(number), *descs) for number, descs in enumerate(plan)]
    chosen = choose_probes(rows, count, seed)
    assert chosen == choose_probes(rows, count, seed)
    assert len(chosen) == min(count, sum(bool(descs) for descs in plan))
    assert len({row.images[0] for row in chosen}) == len(chosen) and all(row.objects for row in chosen)


def test_photos_are_those_of_val_or_of_train_where_there_is_no_val(records: Path, tmp_path: Path) -> None:
    stages.train(run_config(records, tmp_path / "val", max_steps=1))
    only = tmp_path / "records"
    only.mkdir()
    (only / "train.jsonl").write_bytes((records / "train.jsonl").read_bytes())
    config = run_config(only, tmp_path / "train", max_steps=1, visual_photos=2)
    config.data.image_root = str(records)
    stages.train(config)
    of_val, of_train = read_page(tmp_path / "val" / PAGE), read_page(tmp_path / "train" / PAGE)
    assert of_val.facts["split"] == "val" and {photo.name[:2] for photo in of_val.photos} == {"05"}
    assert of_train.facts["split"] == "train" and len(of_train.photos) == 2
    assert all(photo.name.startswith("00") for photo in of_train.photos)


# ---------------------------------------------------------------- match stability


def test_matches_are_those_that_training_teaches_by(tmp_path: Path) -> None:
    model = tiny_model(DEFAULT)
    batch = pack(model, [tiny_sample(tiny_processor(DEFAULT), 3, parts=4)])
    output, boxes = run_model(model, batch), torch.from_numpy(target_boxes(batch))
    trained = detection_sums(
        output.layers.boxes, output.layers.objectness,
        output.proposals.boxes, output.proposals.objectness, output.proposal_counts, boxes,
        batch["box_counts"], costs=MatchCosts(),
    ).final  # fmt: skip
    names = query_names(output)
    expected = {
        target: names[query]
        for target, query in zip(trained.targets.tolist(), trained.predictions.tolist(), strict=True)
    }
    assert dict(enumerate(matched_queries(output, boxes, MatchCosts()))) == expected
    assert len(set(expected.values())) == 4


def test_a_query_is_named_by_the_image_token_it_starts_from(monkeypatch: pytest.MonkeyPatch) -> None:
    queries = {"family": DEFAULT, "detection.queries": 60}
    model = tiny_model(DEFAULT, model=queries)
    started: list[torch.Tensor] = []
    real = DetectionHead._choose

    def choose(self: DetectionHead, *args: Any) -> Any:
        found = real(self, *args)
        started.append(found[1])
        return found

    monkeypatch.setattr(DetectionHead, "_choose", choose)
    output = run_model(model, pack(model, [tiny_sample(tiny_processor(DEFAULT), 3)]))
    names, (count,) = query_names(output), output.proposal_counts
    assert count < 60 and len(names) == len(set(names)) == 60
    assert sorted(names[:count]) == list(range(count)), "every image token became a query"
    torch.testing.assert_close(started[0][0, :count], output.proposals.boxes[names[:count]], rtol=0, atol=0)
    assert min(names[count:]) >= count, "a learned query is no image token"


def test_stability_is_the_share_of_objects_that_kept_their_query() -> None:
    assert match_stability([[1, 2], [3]], [[1, 9], [3]]) == pytest.approx(2 / 3)
    assert match_stability([[1, 2], None], [[1, 2], [4]]) == 1, "a photo that could not be read is not compared"
    assert match_stability([[UNMATCHED]], [[UNMATCHED]]) == 0, "an object without a query has none to keep"
    assert match_stability([[]], [[]]) is None


def test_weights_that_stand_still_keep_every_match(records: Path, tmp_path: Path) -> None:
    rates = {f"learning_rates.{group}": 0.0 for group in ("vision", "merger", "llm", "detection", "adapter")}
    stages.train(run_config(records, tmp_path, weight_decay=0.0, **rates))
    looks = read_page(tmp_path / PAGE).looks
    assert [(look.step, look.since, look.stability) for look in looks] == [
        (0, None, None), (2, 0, 1.0), (4, 2, 1.0), (6, 4, 1.0)
    ]  # fmt: skip
    assert all(
        replace(look, seconds=0, step=0, since=0, stability=0) == replace(looks[0], seconds=0, since=0, stability=0)
        for look in looks
    )


# ---------------------------------------------------------------- what is kept


@given(st.integers(1, 400), st.integers(1, 7), st.integers(2, 20))
def test_thinning_keeps_first_last_and_an_even_spacing(count: int, interval: int, most: int) -> None:
    kept: list[int] = []
    for number in range(count):
        kept = thinned([*kept, number * interval], int, interval, most)
    last = (count - 1) * interval
    assert kept[0] == 0 and kept[-1] == last and len(kept) <= most + 1
    gaps = {b - a for a, b in pairwise(kept[:-1])}
    assert len(gaps) <= 1, "denser at one end"
    if count <= most:
        assert len(kept) == count


def big_look(seed: int, row: Row, boxes: int) -> Seen:
    draw = np.random.default_rng(seed)
    found = []
    for corner in draw.uniform(0, 0.8, (boxes, 2)) * (row.width, row.height):
        box = (*corner.tolist(), corner[0] + row.width / 6, corner[1] + row.height / 6)
        desc = "".join(chr(code) for code in draw.integers(0x4E00, 0x5000, 24))  # nonsense, as early in a run
        found.append(PredictedObject(box, desc, float(draw.random()), 0.5))
    return Seen(
        [PredictionRow(row.images, row.width, row.height, tuple(found))], [[1]], dict.fromkeys(VAL_METRICS), 0.1
    )


def test_the_page_is_bounded_however_long_the_run(tmp_path: Path) -> None:
    noise_photo(1, 1200, 900).image.save(tmp_path / "a.png")
    row = Row(("a.png",), noise_photo(1, 1200, 900).objects, 1200, 900)
    facts = {"title": "long", "split": "val", "threshold": 0.0, "every": 10, "log_every": 1, "eval_every": 50}
    history = History({**facts, "max_steps": 20_000}, [thumbnail(row, str(tmp_path))])
    looks = [big_look(seed, row, 450) for seed in range(3)]
    for step in range(2200):
        history.add_losses(step, {"loss": 1.0, **{f"loss/{term}": 0.1 for term in TERMS}})
        if step % 10 == 0:
            history.add_look(step, [row], looks[step % 3])
    assert len(history.looks) <= LOOKS_KEPT + 1 and len(history.losses) <= 1001
    assert all(len(photo.found) == MARKS_PER_LOOK and photo.hidden == 50 for photo in history.looks[5].photos)
    write_page(tmp_path / "page.html", history)
    assert (tmp_path / "page.html").stat().st_size < 15_000_000
    assert read_page(tmp_path / "page.html") == history, "what is read back is what was written"


def test_states_are_those_of_the_scorers_matching(tmp_path: Path) -> None:
    rows = [sample.student for sample in write_samples(tmp_path, 4)][1:]
    probe = probe_of(rows, tmp_path)
    seen = probe.look()
    facts = {"threshold": 0.0, "every": 1}
    look = History(facts, []).add_look(0, rows, seen)
    for row, found, shown in zip(rows, seen.predictions, look.photos, strict=True):
        assert shown.hidden == 0 and len(shown.found) == len(found.predictions) > 0
        ranked = sorted(found.predictions, key=lambda item: -item.score)
        overlap = iou_matrix(np.array([p.box for p in ranked]), np.array([item.box for item in row.objects]))
        same = np.array([[p.desc == item.desc for item in row.objects] for p in ranked])
        agreeing = greedy_match(overlap * same, np.array([p.score for p in ranked]))
        assert [state == "agrees" for state, _ in shown.truth] == (agreeing >= 0).tolist()
    assert seen.metrics.keys() == set(VAL_METRICS)


def test_a_photo_that_cannot_be_read_is_shown_with_its_reason(tmp_path: Path) -> None:
    rows = [sample.student for sample in write_samples(tmp_path, 3)][1:]
    (tmp_path / rows[0].images[0]).write_bytes(b"not a photo")
    probe = probe_of(rows, tmp_path)
    look = History({"threshold": 0.0, "every": 1}, []).add_look(0, rows, probe.look())
    assert "is not an image" in str(look.photos[0].error) and look.photos[0].queries is None
    assert look.photos[1].error is None and look.photos[1].queries
    assert thumbnail(rows[0], str(tmp_path)).jpeg == ""


# ---------------------------------------------------------------- going on


def test_a_run_killed_and_resumed_shows_what_the_run_never_killed_shows(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages.train(run_config(records, tmp_path / "whole", eval_every=3))
    broken = run_config(records, tmp_path / "broken", eval_every=3)
    with monkeypatch.context() as context, pytest.raises(PowerCutError):
        pull_the_plug(context, after=5)
        stages.train(broken)
    assert looks_of(tmp_path / "broken") == [0, 2, 4]
    broken.training.resume = True
    stages.train(broken)
    whole, resumed = (read_page(tmp_path / name / PAGE) for name in ("whole", "broken"))
    for history in (whole, resumed):
        history.looks = [replace(look, seconds=0) for look in history.looks]
        history.facts["title"] = ""
    # what was only in memory when the plug was pulled is lost; looks are not
    assert [look.step for look in resumed.looks] == [0, 2, 4, 6]
    assert resumed.looks == whole.looks and resumed.photos == whole.photos and resumed.val == whole.val
    assert {tuple(point) for point in resumed.losses} <= {tuple(point) for point in whole.losses}


def test_a_page_that_does_not_fit_is_kept_aside(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stages.train(run_config(records, tmp_path, max_steps=3))
    (tmp_path / PAGE).write_text("<html>half", encoding="utf-8")
    stages.train(run_config(records, tmp_path, resume=True))
    assert looks_of(tmp_path) == [4, 6], "only what came after the checkpoint of step 3"
    assert (tmp_path / "training_log.old.html").read_text(encoding="utf-8") == "<html>half"
    assert "is not a readable training log" in capsys.readouterr().err
    other = run_config(records, tmp_path, resume=True, max_steps=7, visual_photos=1)
    stages.train(other)
    assert len(read_page(tmp_path / PAGE).photos) == 1
    assert "shows other photos" in capsys.readouterr().err


def test_a_new_run_begins_a_new_page(records: Path, tmp_path: Path) -> None:
    stages.train(run_config(records, tmp_path, max_steps=4))
    stages.train(run_config(records, tmp_path, max_steps=2, overwrite=True))
    assert looks_of(tmp_path) == [0, 2]


# ---------------------------------------------------------------- trackers and ranks


def test_tensorboard_and_wandb_get_numbers_and_pictures(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for name in [name for name in os.environ if name.startswith(("WANDB", "TENSORBOARD"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    config = run_config(records, tmp_path, report_to=["tensorboard", "wandb"], max_steps=4, visual_photos=2)
    try:
        stages.train(config)
    finally:
        import wandb

        wandb.finish()
        for name in ("WANDB_DIR", "WANDB_PROJECT", "WANDB_MODE", "TENSORBOARD_LOGGING_DIR"):
            os.environ.pop(name, None)
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0, "scalars": 0}).Reload()
    assert [event.step for event in events.Scalars("visual/AP50_agnostic")] == [0, 2, 4]
    assert [event.step for event in events.Scalars("visual/match_stability")] == [2, 4]
    shown = [tag for tag in events.Tags()["images"] if tag.startswith("visual/")]
    assert len(shown) == 2
    pictures = events.Images(shown[0])
    assert [picture.step for picture in pictures] == [0, 2, 4] and pictures[0].width > 1000
    assert pictures[0].encoded_image_string[:2] == b"\xff\xd8", "a JPEG"
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/images/visual/**/*.jpg"))) == 6


RANK = """
import sys, torch
from tests.monitoring.test_visual_log import run_config
from bbu import stages
from bbu.monitoring.visual_log import VisualLog
VisualLog.strict = True
for name, every in (("with", 1), ("without", 0)):
    stages.train(run_config(sys.argv[1], f"{sys.argv[2]}/{name}", eval_every=2, visual_every=every, max_steps=3))
torch.distributed.destroy_process_group()
"""


def test_on_two_ranks_one_looks_the_other_waits_and_nothing_changes(records: Path, tmp_path: Path) -> None:
    ended = finish(start_ranks(["-c", RANK, str(records), str(tmp_path)]))
    assert [status for status, _ in ended] == [0, 0], ended
    assert looks_of(tmp_path / "with") == [0, 1, 2, 3]
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    one, other = (weights(tmp_path / name / "checkpoint-3") for name in ("with", "without"))
    assert one and all(torch.equal(one[name], other[name]) for name in one)


# ---------------------------------------------------------------- the page in a browser


@pytest.fixture(scope="module")
def page(records: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a short real run."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(VisualLog, "strict", True)
        patch.setattr(precision, "compute_device", lambda: torch.device("cpu"))
        stages.train(run_config(records, folder, eval_every=3))
    return folder / PAGE


def test_the_page_names_nothing_outside_itself(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert "default-src 'none'" in text


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if not (Path("/usr/bin/chromium").exists() and Path("/usr/bin/chromedriver").exists()):
        pytest.skip("Chromium and chromedriver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = "/usr/bin/chromium"
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--window-size=1400,1000", f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService("/usr/bin/chromedriver"))
    yield driver
    driver.quit()


def move(browser: Any, selector: str, value: int) -> None:
    browser.execute_script(
        "const s = document.querySelector(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('input'))",
        selector, str(value),
    )  # fmt: skip


def test_sliders_show_each_look_as_it_was(browser: Any, page: Path) -> None:
    history = read_page(page)
    browser.get(page.as_uri())
    assert browser.execute_script("return document.documentElement.dataset.ready") == "yes"
    text = "return [...document.querySelectorAll(arguments[0])].map((node) => node.textContent)"
    for index, look in enumerate(history.looks):
        move(browser, "#all", index)
        assert browser.execute_script(text, "#all-step") == [str(look.step)]
        for number, (photo, seen) in enumerate(zip(history.photos, look.photos, strict=True)):
            left, right = (f"#photo-{number} .sides > div:nth-child({side})" for side in (1, 2))
            assert browser.execute_script(text, f"{left} li > span") == [item[0] for item in photo.objects]
            assert browser.execute_script(text, f"{left} li > i") == [note for _, note in seen.truth]
            assert browser.execute_script(text, f"{right} li > span") == [mark[4] for mark in seen.found]
            agree = sum(mark[5] == "agrees" for mark in seen.found)
            assert f"{agree} agree" in browser.execute_script(text, f"{right} h3")[0]
            assert len(browser.execute_script(text, f"{right} svg .object")) == len(seen.found)
    move(browser, "#photo-1 input", 0)
    assert browser.execute_script(text, ".photo header .slide span") == ["step 6", "step 0", "step 6"]


def test_the_page_draws_its_curves_and_asks_for_nothing(browser: Any, page: Path) -> None:
    browser.get_log("performance")
    browser.get(page.as_uri())
    count = "return document.querySelectorAll(arguments[0]).length"
    assert browser.execute_script(count, "#losses path.curve") >= 2 * 6
    assert browser.execute_script(count, "#scores circle") >= 2
    assert browser.execute_script(count, "#stability circle") == 3
    assert browser.execute_script("return document.fonts.check('16px \"Report glyphs\"', '标')")
    browser.execute_script("document.getElementById('theme').click()")
    assert browser.execute_script("return document.documentElement.dataset.theme") in ("dark", "light")
    asked = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [e["params"]["request"]["url"] for e in asked if e["method"] == "Network.requestWillBeSent"]
    assert all(url.startswith(("file:", "data:")) for url in urls) and urls
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
