"""A folder is whole or it is none: every fault in any of its files is found, and named in one line."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bbu.errors import CheckpointError, ConfigError
from bbu.inference import Inference
from bbu.jsonl import write_json
from bbu.models.build import build_model
from bbu.models.checkpoint import FACTS_FILE, check_model, load_model, save_model
from bbu.models.manifest import MANIFEST_FILE, check_whole, read_manifest, seal
from bbu.training.recovery import publish
from tests.tiny import DEFAULT, build_tiny, tiny_config, tiny_processor, tiny_tokenizer


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def flip_last(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x10
    path.write_bytes(data)


def grow(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def delete(path: Path) -> None:
    path.unlink()


FAULTS = [empty, cut, flip, flip_last, grow, delete]


def each_file(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def spoil_each(folder: Path, fault: Callable[[Path], None], check: Callable[[Path], object]) -> int:
    """Spoil one file after the other; ``check`` must refuse each in one line that names the file."""
    for path in each_file(folder):
        before = path.read_bytes()
        fault(path)
        with pytest.raises(CheckpointError) as caught:
            check(folder)
        if path.name != MANIFEST_FILE or fault is not flip:  # a flipped digit there blames the file it stands for
            assert str(path.relative_to(folder)) in str(caught.value)
        assert str(folder) in str(caught.value) and "\n" not in str(caught.value)
        path.write_bytes(before)
    check(folder)
    return len(each_file(folder))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model as a run publishes it."""
    folder = tmp_path_factory.mktemp("run")
    save_model(folder / "checkpoint-1", build_tiny(tiny_config()), tiny_processor(DEFAULT))
    publish(folder / "checkpoint-1", folder / "model", ["screw/tight"])
    return folder / "model"


@pytest.fixture
def model(published: Path, tmp_path: Path) -> Path:
    return shutil.copytree(published, tmp_path / "model")


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_every_fault_in_every_file_of_a_published_model_is_found(fault: Callable[[Path], None], model: Path) -> None:
    assert spoil_each(model, fault, check_model) >= 9


def test_prediction_looks_before_it_loads(model: Path) -> None:
    flip(model / "backbone" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model.safetensors: was damaged or changed \(its SHA-256 differs\)"):
        Inference(model)


def test_a_file_that_transformers_would_read_too_is_refused(model: Path) -> None:
    """transformers loads an adapter that it finds beside the weights, without a word."""
    (model / "backbone" / "README.md").write_text("my notes", encoding="utf-8")
    check_model(model)
    write_json(model / "backbone" / "adapter_config.json", {})
    with pytest.raises(CheckpointError, match=r"adapter_config.json: is not a file of this model"):
        check_model(model)


def test_results_written_beside_the_model_do_not_matter(model: Path) -> None:
    write_json(model / "calibration.json", {})
    (model / "optimizer.pt").write_bytes(b"")
    check_model(model)


def test_a_model_of_an_earlier_version_loads_and_says_what_is_not_checked(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / MANIFEST_FILE).unlink()
    facts = json.loads((model / FACTS_FILE).read_text(encoding="utf-8"))
    write_json(model / FACTS_FILE, {key: value for key, value in facts.items() if key != "manifest"})
    Inference(model)
    assert "an earlier version wrote it" in capsys.readouterr().err
    for name in ("backbone/config.json", "backbone/tokenizer.json", "detection_head.safetensors"):
        before = (model / name).read_bytes()
        (model / name).unlink()
        with pytest.raises(CheckpointError, match=f"{name}: is missing or empty"):
            Inference(model)
        (model / name).write_bytes(before)


def test_no_model_of_default_sizes_is_built_where_config_json_is_missing(model: Path) -> None:
    """transformers would build one of 7 billion weights."""
    (model / "backbone" / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"backbone/config.json: is missing"):
        load_model(model)


def test_a_base_model_that_is_not_whole_is_refused(model: Path) -> None:
    config = tiny_config(model={"path": str(model / "backbone")})
    weights = model / "backbone" / "model.safetensors"
    tensors = load_file(weights)
    gone = next(name for name in sorted(tensors) if name.endswith("mlp.gate_proj.weight"))
    save_file({name: value for name, value in tensors.items() if name != gone}, weights, {"format": "pt"})
    build = partial(build_model, tokenizer=tiny_tokenizer(), device=torch.device("cpu"), dtype=torch.float32)
    with pytest.raises(ConfigError, match=r"its weights lack 1 tensors, e.g. .*mlp.gate_proj.weight"):
        build(config)
    (model / "backbone" / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"has no config.json; name a Hugging Face model folder"):
        build(config)


def test_all_files_have_the_same_mode(published: Path) -> None:
    assert {stat.S_IMODE(path.stat().st_mode) for path in each_file(published)} == {0o644}
    assert {stat.S_IMODE(path.stat().st_mode) for path in [published, published / "backbone"]} == {0o755}


def test_publishing_a_damaged_checkpoint_leaves_the_model_before_it(tmp_path: Path) -> None:
    checkpoint, target = tmp_path / "checkpoint-1", tmp_path / "model"
    save_model(checkpoint, build_tiny(tiny_config()), tiny_processor(DEFAULT))
    publish(checkpoint, target)
    before = read_manifest(target)
    for name in before:
        data = (checkpoint / name).read_bytes()
        for fault in (flip, delete):
            fault(checkpoint / name)
            with pytest.raises(CheckpointError, match=name):
                publish(checkpoint, target)
            (checkpoint / name).write_bytes(data)
    check_whole(target)
    assert read_manifest(target) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "model"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"format": 1}', '{"format": 1, "files": []}', '{"format": 1, "files": {"a": 3}}',
     '{"format": 2, "files": {}}', '{"format": 1, "files": {"a": {"size": "x", "sha256": ""}}}', '{"a": NaN}',
     "\udcff"],
)  # fmt: skip
def test_a_manifest_that_is_none_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST_FILE).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(CheckpointError, match=MANIFEST_FILE) as caught:
        check_whole(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_manifest_reads_no_file_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x", encoding="utf-8")
    inside = tmp_path / "folder"
    inside.mkdir()
    seal(inside)
    for name in ("../secret", str(tmp_path / "secret"), "/dev/zero"):
        write_json(inside / MANIFEST_FILE, {"format": 1, "files": {name: {"size": 1, "sha256": "0"}}})
        with pytest.raises(CheckpointError, match="is missing"):
            check_whole(inside)
