"""Every kind of bad input, given to the command line: one line that names the culprit, and nothing half written."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from PIL import Image

from bbu.cli import main
from bbu.families.qwen2_5_vl.codec import QWEN

CONFIG = """
data: {language: en, min_pixels: 3136, max_pixels: 25088, max_length: 2048}
model:
  family: qwen2_5_vl
  scratch:
    {vision_width: 16, vision_depth: 1, vision_heads: 1, vision_full_attention: [0],
     text_width: 32, text_depth: 1, text_heads: 2, text_kv_heads: 1, vocab_size: 400}
  detection: {width: 16, queries: 8, layers: 1, heads: 2, points: 2, caption_layers: 1, caption_region_cells: 2}
training: {max_steps: 1, batch_size: 1, warmup_steps: 0, precision: fp32, select_best: '', threads: 1}
"""
SIZE = (84, 56)
OBJECT = {"desc": "标签/可读", "bbox_2d": [10, 10, 40, 30]}


def row(name: str = "a.png", **changes: Any) -> dict[str, Any]:
    return {"images": [name], "objects": [OBJECT], "width": SIZE[0], "height": SIZE[1], **changes}


def prediction(name: str = "a.png", **changes: Any) -> dict[str, Any]:
    item = {"bbox_2d": [10, 10, 40, 30], "desc": "标签/可读", "score": 0.9, "objectness": 0.9, **changes}
    return {"images": [name], "width": SIZE[0], "height": SIZE[1], "predictions": [item]}


@dataclass
class Place:
    """A good data set, config and model, to be damaged by a case."""

    folder: Path
    trained: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def lines(self, name: str, *values: Any) -> Path:
        return self.write(name, "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values))

    def command(self, name: str, *overrides: str) -> list[str]:
        given = [f"data.source.path={self.data}", f"output_dir={self.folder / 'out'}", *overrides]
        return [name, str(self.folder / "tiny.yaml"), *given]

    def check(self, *overrides: str) -> list[str]:
        return self.command("check", *overrides)

    def prepare(self, *overrides: str) -> list[str]:
        return self.command("prepare", *overrides)

    def run(self, *overrides: str) -> list[str]:
        return self.command("run", *overrides)

    def config(self, content: str | bytes) -> list[str]:
        return ["check", str(self.write("bad.yaml", content))]

    def train_on(self, *rows: Any) -> list[str]:
        self.lines("data/train.jsonl", *rows)
        return self.run()

    def train_on_text(self, text: bytes) -> list[str]:
        self.write("data/train.jsonl", text)
        return self.run()

    def evaluate(self, *arguments: str) -> list[str]:
        return ["evaluate", str(self.data / "test.jsonl"), str(self.folder / "predictions.jsonl"), *arguments]

    def score(self, *predictions: Any) -> list[str]:
        self.lines("predictions.jsonl", *predictions)
        return self.evaluate("--output", str(self.folder / "metrics.json"))

    def model(self) -> Path:
        """A copy of a trained model's folder."""
        shutil.copytree(self.trained, self.folder / "model", dirs_exist_ok=True)
        return self.folder / "model"

    def predict(self, *arguments: str, photos: str = "data/photo") -> list[str]:
        model, output = self.folder / "model", self.folder / "found.jsonl"
        return ["predict", str(model), str(self.folder / photos), str(output), *arguments]

    def predict_after(self, damage: Callable[[Path], Any]) -> list[str]:
        damage(self.model())
        return self.predict()

    def predict_with(self, *arguments: str, photos: str = "data/photo") -> list[str]:
        self.model()
        return self.predict(*arguments, photos=photos)

    def files(self) -> dict[str, bytes]:
        return {
            str(path.relative_to(self.folder)): path.read_bytes() for path in self.folder.rglob("*") if path.is_file()
        }


def save_photo(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.radial_gradient("L").resize(size).convert("RGB").save(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights."""
    import torch

    from bbu.config import load_config
    from bbu.models.build import build_model, build_processor
    from bbu.models.checkpoint import save_model
    from bbu.records import FewShotSample, parse_row

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(CONFIG, encoding="utf-8")
    config = load_config(folder / "tiny.yaml")
    processor = build_processor(config, [FewShotSample(parse_row(row(), "row"))], str(folder))
    model = build_model(config, processor.tokenizer, device=torch.device("cpu"), dtype=torch.float32)
    save_model(folder / "model", model, processor)
    return folder / "model"


@pytest.fixture
def place(tmp_path: Path, trained: Path) -> Iterator[Place]:
    place = Place(tmp_path / "here", trained)
    place.write("tiny.yaml", CONFIG)
    save_photo(place.data / "a.png")
    save_photo(place.data / "photo" / "a.png")
    for split in ("train", "test"):
        place.lines(f"data/{split}.jsonl", row())
    place.lines("predictions.jsonl", prediction())
    with patch.dict(os.environ):  # commands set up their process by it
        yield place
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    unset_hf_deepspeed_config()  # transformers remembers a half-read one for the whole process


# ---------------------------------------------------------------- ways to damage


def edit_facts(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """Under a manifest made anew, so that what the file says is looked at."""
    from bbu.models.manifest import seal

    def edit(folder: Path) -> None:
        facts = json.loads((folder / "bbu.json").read_text(encoding="utf-8"))
        change(facts)
        (folder / "bbu.json").write_text(json.dumps(facts), encoding="utf-8")
        seal(folder)

    return edit


def swap_tokenizer(folder: Path) -> None:
    from bbu.families.tokenizer import train_tokenizer

    train_tokenizer(["another text altogether"] * 9, 400, QWEN).save_pretrained(folder / "backbone")


def cut_off(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def bad_photo(place: Place, content: bytes) -> list[str]:
    place.write("data/bad.png", content)
    return place.train_on(row("bad.png"))


def photo_of(place: Place, size: tuple[int, int], **changes: Any) -> list[str]:
    save_photo(place.data / "other.png", size)
    return place.train_on(row("other.png", **changes))


def png_cut_off(place: Place) -> list[str]:
    whole = (place.data / "a.png").read_bytes()
    return bad_photo(place, whole[: len(whole) // 2])


def described(desc: str) -> dict[str, Any]:
    return row(objects=[{**OBJECT, "desc": desc}])


def earlier_run(place: Place) -> list[str]:
    place.write("out/.bbu-run.json", "{}")
    place.write("out/checkpoint-5/manifest.json", "{}")
    return place.run()


def without(place: Place, name: str) -> Place:
    (place.folder / name).unlink()
    return place


def empty_folder(place: Place) -> list[str]:
    (place.folder / "none").mkdir()
    return place.predict_with(photos="none")


Case = tuple[str, Callable[[Place], list[str]], list[str]]
GOOD = json.dumps(row(), ensure_ascii=False)

CONFIGS: list[Case] = [
    ("config missing", lambda p: ["check", str(p.folder / "tinny.yaml")], ["tinny.yaml", "did you mean", "tiny.yaml"]),
    ("config empty", lambda p: p.config(""), ["bad.yaml", "empty"]),
    ("config a list", lambda p: p.config("[1]"), ["bad.yaml", "mapping"]),
    ("config not YAML", lambda p: p.config("a: [1\nb: 2"), ["bad.yaml", "not valid YAML"]),
    ("config not UTF-8", lambda p: p.config("name: 演示".encode("gb18030")), ["bad.yaml", "UTF-8"]),
    ("config misspelt key", lambda p: p.config("model: {detection: {querys: 3}}"), ["bad.yaml", "detection.queries"]),
    ("config wrong type", lambda p: p.config("training: {max_steps: many}"), ["bad.yaml", "training.max_steps"]),
    ("config wrong choice", lambda p: p.config("data: {language: fr}"), ["data.language", "'fr'", "zh, en"]),
    ("override without =", lambda p: p.check("training.max_steps"), ["training.max_steps", "key=value"]),
    ("override misspelt", lambda p: p.check("trainig.max_steps=3"), ["trainig", "did you mean"]),
    ("override wrong type", lambda p: p.check("training.max_steps=abc"), ["training.max_steps", "abc"]),
    ("override not YAML", lambda p: p.check("data.source.photos={a: 1"), ["data.source.photos={a: 1"]),
    ("override nan", lambda p: p.check("training.weight_decay=.nan"), ["training.weight_decay", "finite"]),
    ("limits crossed", lambda p: p.check("data.max_pixels=10"), ["data.max_pixels (10)", "data.min_pixels (3136)"]),
    ("unknown group", lambda p: p.check("model.freeze=[tower]"), ["model.freeze", "'tower'", "vision"]),
    ("heads do not fit", lambda p: p.check("model.detection.heads=3"), ["model.detection.width (16)", "heads (3)"]),
]

SOURCES: list[Case] = [
    ("no source path", lambda p: p.prepare("data.source.path="), ["data.source.path", "train.jsonl"]),
    ("no train split", lambda p: without(p, "data/train.jsonl").prepare(), ["data.source.path", "no train.jsonl"]),
    ("unknown format", lambda p: p.prepare("data.source.format=coco7"), ["coco7"]),
    ("format without path", lambda p: p.prepare("data.source.format=pascal_voc", "data.source.path="), ["pascal_voc"]),
    (
        "format's folder missing",
        lambda p: p.prepare("data.source.format=pascal_voc", "data.source.path=/nowhere/voc"),
        ["data.source.path", "/nowhere/voc"],
    ),
    (
        "unknown taxonomy",
        lambda p: p.prepare("data.source.format=bbu_json", "data.source.taxonomy=bbv"),
        ["taxonomy 'bbv'", "bbu"],
    ),
    (
        "fractions over the whole",
        lambda p: p.prepare(
            "data.source.format=bbu_json", "data.source.val_fraction=0.7", "data.source.test_fraction=0.7"
        ),
        ["fraction"],
    ),
    ("nothing to convert", lambda p: p.prepare("data.source.format=bbu_json"), ["here/data"]),
    ("unknown family", lambda p: p.run("model.family=qwen9"), ["model.family", "'qwen9'", "qwen2_5_vl"]),
    ("no such tokenizer", lambda p: p.run("model.tokenizer=/nowhere/t"), ["/nowhere/t"]),
    ("no such weights", lambda p: p.run(f"model.path={p.model().parent}/nowhere"), ["here/nowhere"]),
    ("no val split to score", lambda p: p.run("training.eval_every=1"), ["training.eval_every", "val split"]),
    ("nothing to resume", lambda p: p.run("training.resume=true"), ["training.resume", "no complete checkpoint"]),
    ("an earlier run is there", earlier_run, ["checkpoint-5", "training.resume=true", "training.overwrite=true"]),
    ("no DeepSpeed file", lambda p: p.run("training.deepspeed=/nowhere/zero.json"), ["/nowhere/zero.json"]),
    (
        "attention that is not installed",
        lambda p: p.run("model.attention=flash_attn"),
        ["model.attention", "flash_attn"],
    ),
]

RECORDS: list[Case] = [
    ("no rows", lambda p: p.train_on(), ["no training photo"]),
    ("row misspelt field", lambda p: p.train_on(row(), {**row(), "heigth": 1}), ["train.jsonl:2", "heigth", "height"]),
    ("row cut off", lambda p: p.train_on_text(f"{GOOD}\n{GOOD[:30]}".encode()), ["train.jsonl:2", "not valid JSON"]),
    ("row with NaN", lambda p: p.train_on_text(GOOD.replace("[10", "[NaN").encode()), ["train.jsonl:1", "NaN"]),
    (
        "row with a key twice",
        lambda p: p.train_on_text(GOOD.replace('"width"', '"width": 9, "width"').encode()),
        ["train.jsonl:1", "width", "twice"],
    ),
    ("row not UTF-8", lambda p: p.train_on_text(GOOD.encode("gb18030")), ["train.jsonl:1", "UTF-8"]),
    (
        "box outside",
        lambda p: p.train_on(row(objects=[{**OBJECT, "bbox_2d": [1, 2, 85, 40]}])),
        ["train.jsonl:1", "objects[0].bbox_2d", "x = 85"],
    ),
    (
        "teacher without descriptions",
        lambda p: p.train_on({"student": row(), "teachers": [described(" ")]}),
        ["train.jsonl:1", "teachers[0].objects[0].desc"],
    ),
]

SAMPLES: list[Case] = [
    ("photo missing", lambda p: p.train_on(row("gone.png")), ["gone.png", "no such photo"]),
    ("photo empty", lambda p: bad_photo(p, b""), ["bad.png", "not an image"]),
    ("photo is text", lambda p: bad_photo(p, b"hello there"), ["bad.png", "not an image"]),
    ("photo cut off", png_cut_off, ["bad.png", "cut off"]),
    ("photo outside its folder", lambda p: p.train_on(row("../tiny.yaml")), ["../tiny.yaml", "leaves its folder"]),
    ("photo name with a null", lambda p: p.train_on(row("a\0.png")), [r"a\x00.png"]),
    ("photo of another size", lambda p: photo_of(p, (56, 84)), ["other.png", "84x56", "56x84"]),
    (
        "photo a sliver",
        lambda p: photo_of(p, (402, 2), width=402, height=2, objects=[{**OBJECT, "bbox_2d": [10, 0, 40, 2]}]),
        ["other.png", "402x2", "aspect ratio"],
    ),
    ("two photos in a row", lambda p: p.train_on(row(images=["a.png", "a.png"])), ["a.png", "exactly one photo"]),
    (
        "sample too long",
        lambda p: p.run("data.max_length=50"),
        ["a.png", "data.max_length 50"],
    ),
    (
        "description too long",
        lambda p: p.run("model.detection.caption_max_tokens=1"),
        ["a.png", "model.detection.caption_max_tokens"],
    ),
    ("description that ends a turn", lambda p: p.train_on(described(f"x{QWEN.end}")), ["a.png", QWEN.end]),
]

CHECKPOINTS: list[Case] = [
    ("no model folder", lambda p: p.predict(), ["here/model", "bbu.json is missing"]),
    ("no bbu.json", lambda p: p.predict_after(lambda m: (m / "bbu.json").unlink()), ["bbu.json is missing"]),
    ("bbu.json cut off", lambda p: p.predict_after(lambda m: cut_off(m / "bbu.json")), ["bbu.json", "damaged"]),
    (
        "bbu.json a list",
        lambda p: p.predict_after(lambda m: (m / "bbu.json").write_text("[1]")),
        ["bbu.json", "damaged"],
    ),
    (
        "bbu.json lacks a fact",
        lambda p: p.predict_after(edit_facts(lambda f: f.pop("vocabulary_hash"))),
        ["bbu.json", "vocabulary_hash"],
    ),
    (
        "bbu.json lacks the length",
        lambda p: p.predict_after(edit_facts(lambda f: f.pop("max_length"))),
        ["bbu.json", "max_length"],
    ),
    ("format of the future", lambda p: p.predict_after(edit_facts(lambda f: f.update(format=99))), ["format 99"]),
    (
        "prompt edited",
        lambda p: p.predict_after(edit_facts(lambda f: f["prompt"].update(instruction="Find."))),
        ["bbu.json", "prompt", "trained with"],
    ),
    (
        "resize policy edited",
        lambda p: p.predict_after(edit_facts(lambda f: f["prompt"].update(max_pixels=99999))),
        ["bbu.json", "trained with"],
    ),
    ("unknown family saved", lambda p: p.predict_after(edit_facts(lambda f: f.update(family="qwen9"))), ["qwen9"]),
    (
        "head of other sizes",
        lambda p: p.predict_after(edit_facts(lambda f: f["detection"].update(layers=2))),
        ["detection_head.safetensors", "does not fit"],
    ),
    (
        "unknown size of the head",
        lambda p: p.predict_after(edit_facts(lambda f: f["detection"].update(wings=2))),
        ["wings"],
    ),
    ("tokenizer swapped", lambda p: p.predict_after(swap_tokenizer), ["here/model/backbone", "tokenizer"]),
    (
        "tokenizer gone",
        lambda p: p.predict_after(lambda m: (m / "backbone" / "tokenizer.json").unlink()),
        ["here/model/backbone"],
    ),
    (
        "image processor gone",
        lambda p: p.predict_after(lambda m: (m / "backbone" / "preprocessor_config.json").unlink()),
        ["here/model/backbone"],
    ),
    (
        "head gone",
        lambda p: p.predict_after(lambda m: (m / "detection_head.safetensors").unlink()),
        ["here/model/detection_head.safetensors: is missing"],
    ),
    (
        "head cut off",
        lambda p: p.predict_after(lambda m: cut_off(m / "detection_head.safetensors")),
        ["here/model", "detection_head.safetensors: has", "were written"],
    ),
    (
        "backbone weights gone",
        lambda p: p.predict_after(lambda m: (m / "backbone" / "model.safetensors").unlink()),
        ["here/model", "model.safetensors: is missing"],
    ),
    (
        "backbone weights cut off",
        lambda p: p.predict_after(lambda m: cut_off(m / "backbone" / "model.safetensors")),
        ["here/model", "model.safetensors: has", "were written"],
    ),
]

PREDICT: list[Case] = [
    ("no such photos", lambda p: p.predict_with(photos="nowhere"), ["here/nowhere", "does not exist"]),
    ("no photo in the folder", empty_folder, ["here/none", "has no photo"]),
    (
        "bad records to predict",
        lambda p: p.predict_with(photos=str(p.lines("bad.jsonl", {"images": []}))),
        ["bad.jsonl:1", "is missing"],
    ),
    (
        "no records to predict",
        lambda p: p.predict_with(photos=str(p.lines("bad.jsonl"))),
        ["bad.jsonl"],
    ),
    ("no teachers file", lambda p: p.predict_with("--teachers", "/nowhere/t.jsonl"), ["/nowhere/t.jsonl"]),
    (
        "teacher's photo missing",
        lambda p: p.predict_with("--teachers", str(p.lines("t.jsonl", row("gone.png")))),
        ["gone.png", "no such photo"],
    ),
    ("no photo at a time", lambda p: p.predict_with("--batch-size", "0"), ["--batch-size"]),
    ("no box at all", lambda p: p.predict_with("--max-detections", "0"), ["--max-detections"]),
    ("predictions onto a folder", lambda p: [*p.predict_with()[:3], str(p.data)], ["here/data", "is a folder"]),
]

PREDICTIONS: list[Case] = [
    ("no predictions", lambda p: without(p, "predictions.jsonl").evaluate(), ["predictions.jsonl", "does not exist"]),
    ("no truth", lambda p: without(p, "data/test.jsonl").evaluate(), ["test.jsonl", "does not exist"]),
    ("score over 1", lambda p: p.score(prediction(score=2)), ["predictions.jsonl:1", "predictions[0].score"]),
    ("score nan", lambda p: p.score(prediction(score=float("nan"))), ["predictions.jsonl:1", "NaN"]),
    ("prediction misspelt", lambda p: p.score({**prediction(), "hight": 3}), ["predictions.jsonl:1", "hight"]),
    ("photo not in the truth", lambda p: p.score(prediction(), prediction("b.png")), ["b.png"]),
    ("photo predicted twice", lambda p: p.score(prediction(), prediction()), ["a.png"]),
    (
        "rows in the place of predictions",
        lambda p: p.score(row()),
        ["predictions.jsonl:1", "predictions", "is missing"],
    ),
    (
        "pictures of photos that are gone",
        lambda p: without(p, "data/a.png").evaluate("--pictures", str(p.folder / "pictures")),
        ["a.png"],
    ),
    ("metrics onto a folder", lambda p: p.evaluate("--output", str(p.data)), ["here/data", "is a folder"]),
    ("threshold of no sense", lambda p: p.evaluate("--threshold", "nan"), ["threshold", "nan"]),
]

CASES = [*CONFIGS, *SOURCES, *RECORDS, *SAMPLES, *CHECKPOINTS, *PREDICT, *PREDICTIONS]
MAY_STAY = {  # of a run that was started: its marker, its config, and what its conversion says of the source
    "out/.bbu-run.json", "out/.bbu-run.lock", "out/config.yaml", "out/data/records/conversion_report.json",
    "out/data/records/invalid_objects.jsonl", "out/data/records/invalid_samples.jsonl",
}  # fmt: skip


def test_there_are_enough_kinds_of_bad_input() -> None:
    assert len({name for name, _, _ in CASES}) == len(CASES) >= 30


@pytest.mark.parametrize(("arrange", "words"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_bad_input_gives_one_clear_line_and_leaves_nothing_half_written(
    place: Place, arrange: Callable[[Place], list[str]], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = arrange(place)
    before = place.files()
    capsys.readouterr()
    status = main(arguments)
    printed = capsys.readouterr()
    assert status == 2, printed.err
    errors = [line for line in printed.err.splitlines() if line.startswith("bbu: error: ")]
    assert len(errors) == 1 and printed.err.rstrip().endswith(errors[0])
    if arguments[0] in ("check", "prepare", "evaluate"):
        assert printed.err.splitlines() == errors  # nothing else on the way
    assert all(word in errors[0] for word in words), errors[0]
    assert "Traceback" not in printed.err
    after = place.files()
    assert {name: after.get(name) for name in before} == before, "an input was changed"
    assert set(after) - set(before) <= MAY_STAY


def test_the_place_itself_is_good(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    """Undamaged, every command of the table succeeds: what fails above fails for the damage alone."""
    assert main(place.check()) == 0
    assert main(place.prepare()) == 0
    assert main(place.score(prediction())) == 0
    assert main(place.predict_with()) == 0
    assert (place.folder / "found.jsonl").is_file() and (place.folder / "metrics.json").is_file()
    assert main(place.run("evaluation.pictures=0")) == 0
    assert (place.folder / "out" / "metrics.json").is_file()


def test_a_broken_photo_among_good_ones_costs_only_its_own_row(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    place.write("data/photo/b.jpg", "no photo")
    save_photo(place.data / "photo" / "c.png", (402, 2))
    assert main(place.predict_with()) == 1
    rows = [json.loads(line) for line in (place.folder / "found.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [item["images"] for item in rows] == [["a.png"], ["b.jpg"], ["c.png"]]
    assert "predictions" in rows[0] and "b.jpg" in rows[1]["error"] and "c.png" in rows[2]["error"]
    assert "3 photos, 2 of them failed" in capsys.readouterr().out
