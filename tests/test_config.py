"""Configuration: every key and value is checked, and a mistake is one line that names the key and the fix."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from bbu.config import (
    GROUP_NAMES,
    REMOVED,
    RENAMED,
    Config,
    DetectionConfig,
    LearningRates,
    all_keys,
    as_written,
    check_values,
    load_config,
    value_at,
)
from bbu.errors import ConfigError

PROJECT = Path(__file__).resolve().parents[1]
SHIPPED = sorted((PROJECT / "configs").glob("*.yaml"))
RULES = all_keys()
CHOICES = {key: rule["among"] for key, rule in RULES.items() if "among" in rule}
RANGES = {key: (rule["least"], rule["most"]) for key, rule in RULES.items() if "least" in rule}
SPANS = {key: rule["span"] for key, rule in RULES.items() if "span" in rule}


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text("seed: 3\ntraining: {max_steps: 5}\n", encoding="utf-8")
    return path


def message(path: Path, *overrides: str) -> str:
    """The one line that a user sees."""
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- what is shipped


def test_some_configs_are_shipped() -> None:
    assert "demo.yaml" in [path.name for path in SHIPPED]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_parses_and_says_something(path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem and config.output_dir == f"outputs/{path.stem}"
    assert config != Config(name=config.name, output_dir=config.output_dir)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_names_a_known_family_format_and_taxonomy(path: Path, project: Path) -> None:
    from bbu.families.registry import FAMILIES
    from data_conversion.formats import FORMATS

    config = load_config(path)
    assert config.model.family in FAMILIES
    assert config.data.source.format in {"records", "cabinet_photos", *FORMATS}
    taxonomy = config.data.source.taxonomy
    assert not taxonomy or (project / "data_conversion" / "taxonomies" / f"{taxonomy}.yaml").is_file()
    if config.training.deepspeed:
        assert (project / config.training.deepspeed).is_file()


def test_the_defaults_pass_their_own_checks() -> None:
    check_values(Config())


def test_the_keys_are_these() -> None:
    """A new key is a decision: it needs a user who misses it. An old one goes to ``RENAMED`` or ``REMOVED``."""
    assert sorted(all_keys()) == (PROJECT / "tests" / "config_keys.txt").read_text(encoding="utf-8").split()


def test_every_number_has_a_range() -> None:
    sizes = {"model.lora.alpha", "phases"}  # checked against others, and one by one
    for key in RULES:
        value = value_at(Config(), key)
        numbers = isinstance(value, (int, float, list)) and not isinstance(value, bool)
        assert not numbers or key in {*RANGES, *SPANS, *CHOICES, *sizes}, key


def test_learning_rates_are_those_of_the_groups() -> None:
    assert tuple(field.name for field in dataclasses.fields(LearningRates)) == GROUP_NAMES


# ---------------------------------------------------------------- reading


def test_a_file_changes_what_it_names_and_nothing_else(config_file: Path) -> None:
    config = load_config(config_file)
    assert (config.seed, config.training.max_steps, config.name) == (3, 5, "small")
    changed = {key for key in all_keys() if value_at(config, key) != value_at(Config(), key)}
    assert changed == {"seed", "training.max_steps", "name", "output_dir"}


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("training.max_steps=7", "training.max_steps", 7),
        ("training.learning_rates.vision=3e-5", "training.learning_rates.vision", 3e-5),
        ("training.packed=false", "training.packed", False),
        ("data.language=en", "data.language", "en"),
        ("output_dir=/tmp/a b/图", "output_dir", "/tmp/a b/图"),
        ("model.path=", "model.path", ""),
        ("model.path=/models/a=b", "model.path", "/models/a=b"),
        ("data.source.photos={train: 2}", "data.source.photos", {"train": 2}),
        ("data.source.photos={train: 2, val: 3}", "data.source.photos", {"train": 2, "val": 3}),
        ("data.source.photos.test=4", "data.source.photos", {"test": 4}),
        ("data.source.splits={train: train+val}", "data.source.splits", {"train": "train+val"}),
        ("model.freeze=[vision, llm]", "model.freeze", ["vision", "llm"]),
        ("model.freeze=[]", "model.freeze", []),
        ("model.scratch.vision_full_attention=[0,2]", "model.scratch", {"vision_full_attention": [0, 2]}),
        ("training.learning_rates={vision: 1.0, llm: 2}", "training.learning_rates.llm", 2.0),
    ],
)
def test_an_override_sets_its_key(config_file: Path, override: str, key: str, value: Any) -> None:
    found = value_at(load_config(config_file, [override]), key)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "splits"),
    [
        ("data.source.splits={}", {}),
        ("data.source.splits=", {}),
        ("data.source.splits=null", {}),
        ("data.source={splits: {}}", {}),
        ("data.source.splits={train: train}", {"train": "train"}),
        ("data.source.splits.train=train", {"train": "train", "test": "test"}),
        ("data.source={path: elsewhere}", {"train": "train+val", "test": "test"}),
    ],
)
def test_a_mapping_given_as_a_whole_replaces_that_of_the_file(
    tmp_path: Path, override: str, splits: dict[str, str]
) -> None:
    path = tmp_path / "example.yaml"
    path.write_text("data: {source: {splits: {train: train+val, test: test}}}", encoding="utf-8")
    assert load_config(path, [override]).data.source.splits == splits


DETECTION_KEYS = {key for key in RULES if key.startswith("model.detection.")}


@pytest.mark.parametrize("overrides", [[], ["model.detection=null"], ["model={detection: null}"]])
def test_detection_may_be_null_as_a_whole(tmp_path: Path, overrides: list[str]) -> None:
    path = tmp_path / "example.yaml"
    sizes = {"width": 64, "queries": 9} if overrides else None
    path.write_text(yaml.safe_dump({"name": "example", "model": {"detection": sizes}}), encoding="utf-8")
    config = load_config(path, overrides)
    assert config.model.detection is None
    changed = {key for key in RULES if value_at(config, key) != value_at(Config(), key)}
    assert changed == {"name", "output_dir"} | DETECTION_KEYS
    written = tmp_path / "written.yaml"
    written.write_text(as_written(config), encoding="utf-8")
    assert load_config(written) == config


def test_a_null_section_has_no_keys_until_it_is_given_again(config_file: Path) -> None:
    text = message(config_file, "model.detection=null", "model.detection.width=64")
    assert all(word in text for word in ("model.detection.width=64", "model.detection is null", "model.detection={}"))
    again = load_config(config_file, ["model.detection=null", "model.detection={}", "model.detection.width=64"])
    assert again.model.detection == DetectionConfig(width=64)


@pytest.mark.parametrize("override", ["model=null", "training.closing=null", "model.detection=", "model.detection=5"])
def test_no_other_section_may_be_null_and_detection_nothing_else(config_file: Path, override: str) -> None:
    assert f"{override.partition('=')[0]} is a section" in message(config_file, override)


def test_overrides_win_over_the_file_and_later_ones_over_earlier_ones(config_file: Path) -> None:
    overrides = ["training.max_steps=7", "training.max_steps=9"]
    assert load_config(config_file, overrides).training.max_steps == 9


def test_two_configs_share_no_lists(config_file: Path) -> None:
    first, second = load_config(config_file), load_config(config_file)
    first.model.freeze.append("vision")
    assert second.model.freeze == []


# ---------------------------------------------------------------- refusing

UNKNOWN_KEYS = [
    ("training.max_step=3", "training.max_step", "training.max_steps"),
    ("training.learning_rate.vision=1", "training.learning_rate", "training.learning_rates"),
    ("trainning.max_steps=3", "trainning", "training"),
    ("model.detection.querys=3", "model.detection.querys", "model.detection.queries"),
    ("data.augment.flip_horizontaly=1", "data.augment.flip_horizontaly", "data.augment.flip_horizontal"),
    ("loss.giou_weight=1", "loss.giou_weight", "loss.bbox_giou_weight"),
    ("sed=1", "sed", "seed"),
]


@pytest.mark.parametrize(("override", "key", "nearest"), UNKNOWN_KEYS)
def test_an_unknown_key_names_the_nearest_one(config_file: Path, override: str, key: str, nearest: str) -> None:
    text = message(config_file, override)
    assert repr(override) in text and f"unknown key {key}" in text and f"did you mean {nearest}" in text


def test_an_unknown_key_in_the_file_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("training: {max_stepz: 5}\n", encoding="utf-8")
    text = message(path)
    assert text.startswith(f"{path}: unknown key training.max_stepz") and "did you mean training.max_steps?" in text


def test_a_key_like_no_other_lists_the_keys_of_its_place(config_file: Path) -> None:
    assert "keys here are name, output_dir, seed" in message(config_file, "xyzzy=1")


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("training.max_steps=abc", "training.max_steps"),
        ("training.max_steps=1.5", "training.max_steps"),
        ("training.max_steps=", "training.max_steps"),
        ("training.max_steps=null", "training.max_steps"),
        ("training.packed=perhaps", "training.packed"),
        ("training.weight_decay=much", "training.weight_decay"),
        ("seed=[1]", "seed"),
        ("seed={a: 1}", "seed"),
        ("model.freeze=vision", "model.freeze"),
        ("data.source.photos={train: many}", "data.source.photos"),
        ("data.source.photos=3", "data.source.photos"),
        ("training=5", "training"),
        ("training.learning_rates=1e-3", "training.learning_rates"),
        ("data.source=[a]", "data.source"),
    ],
)
def test_a_value_of_the_wrong_type_names_its_key(config_file: Path, override: str, key: str) -> None:
    text = message(config_file, override)
    assert override in text and key in text


@pytest.mark.parametrize(
    "override", ["training.max_steps", "=3", "training.max_steps 3", "data.source.photos={train: 2", "", "a..b=1"]
)
def test_what_is_not_key_equals_value_is_refused(config_file: Path, override: str) -> None:
    assert repr(override) in message(config_file, override)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("model: {scratch: [1, 2]}", "model.scratch: must be a mapping of names to values, is [1, 2]"),
        ("model: {freeze: {vision: true}}", "model.freeze: must be a list, is {'vision': True}"),
        ("phases: {name: first}", "phases: must be a list"),
        ("data: {augment: {jpeg_quality: [{a: 1}, 95]}}", "data.augment.jpeg_quality: must be two numbers"),
    ],
)
def test_a_file_with_a_list_in_place_of_a_mapping_or_the_reverse_names_the_key(
    tmp_path: Path, text: str, words: str
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(f"{text}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_config(path)


def write(key: str, value: Any) -> str:
    """An override with one value, as a list or mapping where the key holds one."""
    held = value_at(Config(), key)
    name = 1 if key == "data.episodes.counts" else "train"
    return f"{key}={[value] if isinstance(held, list) else {name: value} if isinstance(held, dict) else value}"


@pytest.mark.parametrize("key", CHOICES)
def test_a_choice_lists_what_may_be_chosen(config_file: Path, key: str) -> None:
    text = message(config_file, write(key, "neither"))
    assert f"{key}: 'neither' is not one of {', '.join(word or 'empty' for word in CHOICES[key])}" in text


@pytest.mark.parametrize("key", RANGES)
def test_a_number_below_its_range_is_refused_with_the_range(config_file: Path, key: str) -> None:
    least, most = RANGES[key]
    says = "not be negative" if (least, most) == (0, math.inf) else f"be at least {least}"
    text = message(config_file, write(key, least - 1))
    assert text.startswith(key)
    assert f": must {says if most == math.inf else f'lie between {least} and {most:,}'}, is {least - 1}" in text


@pytest.mark.parametrize("key", [key for key, (_, most) in RANGES.items() if most < math.inf])
def test_a_number_above_its_range_is_refused_with_the_range(config_file: Path, key: str) -> None:
    least, most = RANGES[key]
    text = message(config_file, write(key, int(most) + 1))
    assert text.startswith(key) and f": must lie between {least} and {most:,}, is {int(most) + 1}" in text


@pytest.mark.parametrize("key", [key for key, (least, _) in RANGES.items() if least == 0])
def test_the_ends_of_a_range_are_in_it(config_file: Path, key: str) -> None:
    for end in RANGES[key]:
        if end < math.inf:
            load_config(config_file, [write(key, end)])


@pytest.mark.parametrize("key", SPANS)
def test_a_span_is_two_numbers_in_order_within_its_ends(config_file: Path, key: str) -> None:
    least, most = SPANS[key]
    assert value_at(load_config(config_file, [f"{key}=[1, 1]"]), key) == [1, 1]
    for value in (
        "[1]",
        "[1, 1, 1]",
        f"[{int(most)}, 1]" if most > 1 else "[1, 0.5]",
        "[0, 1]",
        f"[1, {int(most) + 1}]",
    ):
        assert f"{key}: must be two numbers, [from, to], between {least} and {most}" in message(
            config_file, f"{key}={value}"
        )


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_the_old_name_of_a_key_names_the_new_one(config_file: Path, tmp_path: Path, old: str, new: str) -> None:
    assert new in all_keys() and old not in all_keys()
    assert message(config_file, f"{old}=1") == f"override '{old}=1': {old} is now {new}"
    path = tmp_path / "old.yaml"
    path.write_text(nested(old), encoding="utf-8")
    assert message(path) == f"{path}: {old} is now {new}"


@pytest.mark.parametrize(("old", "why"), REMOVED.items())
def test_a_key_that_is_gone_says_why(config_file: Path, tmp_path: Path, old: str, why: str) -> None:
    assert old not in all_keys()
    assert message(config_file, f"{old}=1") == f"override '{old}=1': {old} is gone: {why}"
    path = tmp_path / "old.yaml"
    path.write_text(nested(old), encoding="utf-8")
    assert message(path) == f"{path}: {old} is gone: {why}"


def nested(key: str) -> str:
    """YAML with one key of value 1: a.b → {a: {b: 1}}."""
    sections = key.split(".")
    return "".join(f"{{{name}: " for name in sections) + "1" + "}" * len(sections)


def test_every_key_renamed_so_far_is_known() -> None:
    assert RENAMED.items() >= {
        ("evaluation.captions_per_photo", "evaluation.max_detections"),
        ("evaluation.duplicate_iou", "evaluation.nms_iou"),
        ("evaluation.alarms_per_photo", "evaluation.fppi"),
        ("evaluation.resamples", "evaluation.bootstrap_samples"),
        ("data.augment.curriculum.calm_end", "data.augment.curriculum.close_mosaic"),
        ("data.augment.paste_parts", "data.augment.paste_objects"),
    }


FLOATS = [key for key in all_keys() if isinstance(value_at(Config(), key), float)]


@pytest.mark.parametrize("key", FLOATS)
def test_no_number_may_be_nan_or_infinite(config_file: Path, key: str) -> None:
    for value in (".nan", ".inf"):
        assert key in message(config_file, f"{key}={value}")


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.tiles=3"], ["data.tiles '3'", "auto, or columns x rows", "3x2"]),
        (["data.max_pixels=3000", "data.min_pixels=4000"], ["data.max_pixels (3000)", "data.min_pixels (4000)"]),
        (["data.replay.path=chat.jsonl"], ["data.replay.share: is 0", "data.replay.path has no effect"]),
        (["model.freeze=[visio]"], ["model.freeze", "'visio'", "vision, merger"]),
        ([f"model.freeze=[{','.join(GROUP_NAMES)}]"], ["model.freeze", "nothing would learn"]),
        (["model.lora.parts=[lm]"], ["model.lora.parts", "'lm'", "llm, vision"]),
        (["model.scratch.text_kv_heads=3"], ["model.scratch.text_heads (4)", "text_kv_heads (3)"]),
        (["model.detection.width=190"], ["model.detection.width (190)", "multiple"]),
        (["model.detection.heads=5"], ["model.detection.width", "heads (5)"]),
        (["training.early_stopping.patience=3"], ["training.early_stopping.patience", "set training.eval_every"]),
        (
            ["training.early_stopping.patience=3", "training.eval_every=5", "training.select_best="],
            ["training.early_stopping.patience", "name one in training.select_best"],
        ),
        (["model.detection=null", "training.closing.epochs=2"], ["training.closing.epochs", "detection is null", "0"]),
        (["model.detection=null", "training.visual_every=5"], ["training.visual_every", "detection is null", "to 0"]),
        (
            ["model.detection=null", "training.eval_every=5"],
            ["training.select_best: AP50", "set it to loss or accuracy"],
        ),
        (
            ["training.eval_every=5", "training.select_best=accuracy", "evaluation.answers=0"],
            ["training.select_best: accuracy", "evaluation.answers is 0", "choose by loss"],
        ),
        (
            ["model.detection=null", *(f"loss.{who}_lm_weight=0" for who in ("teacher", "student", "replay"))],
            ["loss.student_lm_weight", "detection is null", "nothing would learn"],
        ),
        (["model.detection=null", "model.compile=[llm, captions]"], ["model.compile: captions belong to detection"]),
        (["model.detection=null", "model.freeze=[vision, merger, llm]"], ["model.freeze", "nothing would learn"]),
        (["training.report_to=[wandbb]"], ["training.report_to", "'wandbb'", "wandb, tensorboard"]),
    ],
)
def test_keys_that_do_not_fit_each_other_are_refused(config_file: Path, overrides: list[str], words: list[str]) -> None:
    text = message(config_file, *overrides)
    assert all(word in text for word in words), text


def test_what_has_no_effect_without_detection_does_no_harm(config_file: Path) -> None:
    idle = ["model.freeze=[detection, adapter]", "loss.bbox_l1_weight=3", "training.learning_rates.detection=1e-3"]
    assert load_config(config_file, ["model.detection=null", *idle]).model.freeze == ["detection", "adapter"]


@pytest.mark.parametrize(
    "override",
    [
        "model.detection.heads=0",
        "model.detection.width=0",
        "model.lora.rank=0",
        "model.scratch.text_heads=0",
        "model.scratch.vision_depth=0",
        "training.max_grad_norm=-1",
        "loss.match_l1=-1",
        "data.augment.brightness=-0.5",
        "data.augment.contrast=1.5",
        "model.scratch.vision_width=190",
        "model.scratch.text_heads=3",
        "data.source.photos={train: -3}",
        "training.adam_beta2=1",
        "seed=-1",
    ],
)
def test_a_value_that_no_run_can_use_is_refused_before_it_starts(config_file: Path, override: str) -> None:
    key = override.partition("=")[0]
    assert key in message(config_file, override)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"# only words\n", "is empty"),
        (b"- 1\n- 2\n", "must be a mapping"),
        (b"just text\n", "unknown key just text"),
        (b"training: {max_steps: 5\n", "is not valid YAML"),
        (b"a: 1\n  b: 2\n", "is not valid YAML"),
        (b"seed: 1\nseed: 2\n", "is not valid YAML"),
        ("name: 演示".encode("gb18030"), "is not UTF-8"),
        (b"name: \x00\n", "is not valid YAML"),
        (b"seed: ${nowhere}\n", "nowhere"),
        (b"training: 5\n", "training is a section"),
        (b"training:\n", "training is a section"),
        (b"training: {max_steps: abc}\n", "training.max_steps"),
        (b"3: 4\n", "unknown key 3"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    text = message(path)
    assert str(path) in text and words in text, text


def test_a_missing_file_names_the_nearest_one(config_file: Path) -> None:
    text = message(config_file.with_name("smal.yaml"))
    assert "does not exist" in text and f"did you mean {config_file}?" in text


def test_a_folder_or_a_place_that_is_not_there_is_no_config(tmp_path: Path) -> None:
    assert "is no file" in message(tmp_path)
    assert "does not exist" in message(tmp_path / "no" / "such.yaml")


# ---------------------------------------------------------------- what the pages say


def cells(page: str) -> list[list[str]]:
    """Rows of a page's tables, without backticks."""
    lines = (PROJECT / "docs" / page).read_text(encoding="utf-8").splitlines()
    return [[cell.strip().replace("`", "") for cell in line[1:-1].split(" | ")] for line in lines if line[:1] == "|"]


@pytest.mark.parametrize("group", GROUP_NAMES)
def test_the_training_page_states_the_rates_of_the_configs(group: str) -> None:
    (stated,) = [row for row in cells("training.md") if row[0] == group]
    for text, name in zip(stated[2:], ("bbu", "demo"), strict=True):
        rates = load_config(PROJECT / "configs" / f"{name}.yaml").training.learning_rates
        assert float(text.split()[0]) == getattr(rates, group), f"{name}.yaml, {group}"


def test_the_training_page_states_the_values_of_the_full_job_and_the_defaults() -> None:
    page = (PROJECT / "docs" / "training.md").read_text(encoding="utf-8")
    full, demo = (load_config(PROJECT / "configs" / f"{name}.yaml").training for name in ("bbu", "demo"))
    assert f"`training.pack_tokens={full.pack_tokens}`" in page and f"`training.pack_pixels={full.pack_pixels}`" in page
    assert f"`training.eval_every={full.eval_every}`" in page and f"`training.deepspeed={full.deepspeed}`" in page
    assert f"batches of {demo.batch_size} at 5e-4" in page and demo.learning_rates.llm == 5e-4
    assert f"`training.adam_beta2` stays at {Config().training.adam_beta2}:" in page
    assert {full.adam_beta2, demo.adam_beta2} == {Config().training.adam_beta2}


@pytest.mark.parametrize(
    ("page", "section"),
    [("augmentation.md", "data.augment"), ("episodes.md", "data.episodes"), ("episodes.md", "data.sampling")],
)
def test_a_page_states_every_key_of_its_section_with_its_default(page: str, section: str) -> None:
    stated = {}
    for row in cells(page):
        names = row[0].split(", ")
        if f"{section}.{names[0]}" in RULES:
            values = yaml.safe_load(f"[{row[1]}]")
            stated |= dict(zip(names, values * len(names) if len(values) == 1 else values, strict=True))
    prefix = f"{section}."
    assert stated == {key.removeprefix(prefix): value_at(Config(), key) for key in RULES if key.startswith(prefix)}


@pytest.mark.parametrize(
    "text",
    ["${oc.env:HOME}", "${oc.env:NOPE,x}", "a/${oc.env:HOME}/b", "${oc.${name}:HOME}", "${oc.decode:'1'}", "${ name }",
     "${oc.create:x}", "${name:x}", "${.name}", "\\${oc.env:HOME}"],
)  # fmt: skip
@pytest.mark.parametrize("as_override", [False, True])
def test_a_config_reads_nothing_but_itself(text: str, as_override: bool, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    body = {"name": "env", "training": {"max_steps": 3}} | ({} if as_override else {"output_dir": text})
    path.write_text(yaml.safe_dump(body), encoding="utf-8")
    with pytest.raises(ConfigError, match="only keys of the config can be referred to") as caught:
        load_config(path, [f"output_dir={text}"] if as_override else [])
    assert "output_dir" in str(caught.value) and str(Path.home()) not in str(caught.value)


def test_a_reference_to_another_key_stays_one_in_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    body = {
        "name": "a",
        "output_dir": "runs/${name}",
        "training": {"warmup_steps": 4, "max_steps": "${training.warmup_steps}"},
    }
    path.write_text(yaml.safe_dump(body), encoding="utf-8")
    config = load_config(path)
    assert config.output_dir == "runs/a" and config.training.max_steps == 4
    written = tmp_path / "written.yaml"
    written.write_text(as_written(config), encoding="utf-8")
    assert "output_dir: runs/${name}" in written.read_text(encoding="utf-8")
    assert load_config(written) == config


@pytest.mark.parametrize("body", ["name: ${seed2}", "name: ${name}", "name: ${output_dir}\noutput_dir: ${name}"])
def test_a_reference_that_leads_nowhere_is_one_line(body: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(body, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("path", ["/dev/zero", "/tmp"])
def test_a_folder_or_device_is_no_config(path: str) -> None:
    with pytest.raises(ConfigError, match=f"config {path} is no file"):
        load_config(path)
