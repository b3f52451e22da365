"""A run's folder: one run at a time, and what no run wrote is never deleted or overwritten."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bbu import stages
from bbu.config import Config
from bbu.errors import ConfigError, UserError
from bbu.jsonl import write_jsonl
from bbu.stages.run_folder import MARKER, WRITTEN, RunFolder, checkpoints, claim
from tests.tiny import tiny_config, write_samples


@pytest.fixture
def config(tmp_path: Path) -> Config:
    config = tiny_config()
    config.output_dir = str(tmp_path / "run")
    return config


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, without the hidden ones of a run."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


@pytest.mark.parametrize("name", [*WRITTEN, "checkpoint-8"])
def test_what_no_run_wrote_is_refused_and_left_alone(config: Config, name: str) -> None:
    place = Path(config.output_dir) / name
    if "." in place.name:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("mine", encoding="utf-8")
    else:
        place.mkdir(parents=True)
        (place / "config.json").write_text("mine", encoding="utf-8")
    before = tree(Path(config.output_dir))
    config.training.overwrite = True
    with pytest.raises(ConfigError, match=f"{name} exists, no run of this version wrote it"):
        stages.train(config)
    assert tree(Path(config.output_dir)) == before
    assert not (Path(config.output_dir) / MARKER).exists()


@pytest.mark.parametrize("name", ["notes.txt", "checkpoint-8-backup", "checkpoint-8 (copy)", "checkpoint-best", "raw"])
def test_other_names_are_no_hindrance(config: Config, name: str) -> None:
    (Path(config.output_dir) / name).mkdir(parents=True)
    with claim(config) as folder:
        assert checkpoints(folder.path) == []
    assert (Path(config.output_dir) / name).is_dir()


@pytest.mark.parametrize(
    ("key", "place"),
    [
        ("model.path", "model"),
        ("model.path", "model/backbone"),
        ("model.tokenizer", "checkpoint-8/backbone"),
        ("data.source.path", "data/raw"),
        ("data.image_root", "pictures"),
    ],
)
def test_what_a_run_reads_may_not_lie_where_it_writes(config: Config, key: str, place: str) -> None:
    with claim(config):
        pass  # the folder is a run's, and so is what lies in it
    path = Path(config.output_dir) / place
    path.mkdir(parents=True)
    *owners, name = key.split(".")
    section: object = config
    for owner in owners:
        section = getattr(section, owner)
    setattr(section, name, str(path))
    config.data.source.format = "coco"
    with pytest.raises(ConfigError, match=f"{key}: .*this run would replace it"), claim(config):
        pass


def test_rows_of_another_run_in_the_same_folder_can_be_read(config: Config) -> None:
    path = Path(config.output_dir) / "data" / "records"
    config.data.source.path = str(path)
    with claim(config):
        path.mkdir(parents=True)
    with claim(config):
        pass


def test_a_second_process_is_refused_and_told_who_works_there(config: Config) -> None:
    code = (
        "import sys\nfrom bbu.stages.run_folder import claim\nfrom bbu.errors import UserError\n"
        "from bbu.config import Config\ntry:\n    with claim(Config(output_dir=sys.argv[1])): print('claimed')\n"
        "except UserError as error: print(error)\n"
    )

    def other() -> str:
        return subprocess.run(
            [sys.executable, "-c", code, config.output_dir], capture_output=True, text=True, check=True
        ).stdout

    with claim(config), claim(config):  # again in the same process: its stages claim the folder too
        assert f"is in use by process {os.getpid()} on " in other()
        assert ", for 0 min; wait for it, stop it, or set another output_dir" in other()
    assert other() == "claimed\n"


def test_a_lock_ends_with_its_process_however_that_ends(config: Config) -> None:
    code = (
        "import os, sys, signal\nfrom bbu.stages.run_folder import claim\nfrom bbu.config import Config\n"
        "with claim(Config(output_dir=sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, config.output_dir], capture_output=True)
    assert killed.returncode == -9
    with claim(config):
        pass


def test_a_model_is_not_scored_for_a_run_that_did_not_publish_it(config: Config) -> None:
    with claim(config) as folder:
        with pytest.raises(UserError, match="model: there is no trained model; train one first"):
            folder.check_published()
        (folder.path / "model").mkdir()
        folder.check_published()  # nothing is known against it
        folder.begin(resumed=False)
        folder.published()
        folder.check_published()
        folder.begin(resumed=False)  # killed before it published
        with pytest.raises(UserError, match=r"stopped before it published a model \(.*model is an earlier run's\)"):
            folder.check_published()
        folder.begin(resumed=True)
        folder.published()
        folder.check_published()


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"run": 1', '{"run": "x"}', '{"files": [3]}'])
def test_a_damaged_marker_still_marks(config: Config, damage: str) -> None:
    with claim(config) as folder:
        (folder.path / "model").mkdir()
        (folder.path / MARKER).write_text(damage, encoding="utf-8")
        folder.begin(resumed=False)
        folder.published()
        folder.check_published()


def test_only_pictures_that_a_run_drew_are_deleted(config: Config) -> None:
    with claim(config) as folder:
        pictures = folder.path / "pictures"
        pictures.mkdir()
        (pictures / "a.png").write_bytes(b"drawn")
        folder.remember("pictures", [pictures / "a.png"])
        (pictures / "notes.png").write_bytes(b"mine")
        outside = folder.path.parent / "outside.png"
        outside.write_bytes(b"mine too")
        facts = json.loads((folder.path / MARKER).read_text(encoding="utf-8"))
        facts["files"]["pictures"].append("../outside.png")  # a marker that somebody has edited
        (folder.path / MARKER).write_text(json.dumps(facts), encoding="utf-8")
        folder.forget("pictures")
        assert [path.name for path in pictures.iterdir()] == ["notes.png"] and outside.exists()


@pytest.fixture
def trained(tmp_path: Path) -> Config:
    """A finished run of two steps."""
    records = tmp_path / "records"
    records.mkdir()
    write_jsonl(records / "train.jsonl", [sample.student.to_json() for sample in write_samples(records, 3)])
    config = tiny_config(
        data={"source.path": str(records), "max_pixels": 112 * 112}, training={"max_steps": 2, "warmup_steps": 1}
    )
    config.output_dir = str(tmp_path / "run")
    stages.train(config)
    return config


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("source", "path", "/nowhere"),
        ("source", "path", ""),
        ("training", "deepspeed", "/no/such.json"),
        ("training", "eval_every", 1),
        ("model", "path", "/no/model"),
        ("training", "max_steps", None),
    ],
    ids=lambda value: str(value),
)
def test_overwrite_destroys_nothing_for_a_run_that_cannot_start(
    trained: Config, section: str, key: str, value: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(Path(trained.output_dir))
    assert len(before) > 10
    trained.training.overwrite = True
    owner = trained.data.source if section == "source" else getattr(trained, section)
    if value is None:  # nothing is wrong with the config: the run fails in its first step
        monkeypatch.setattr("bbu.training.objective.DetectionObjective.forward", lambda *a, **k: 1 / 0)
    else:
        setattr(owner, key, value)
    with pytest.raises((UserError, ZeroDivisionError)):
        stages.train(trained)
    assert tree(Path(trained.output_dir)) == before
    assert [path.name for path in checkpoints(Path(trained.output_dir))] == ["checkpoint-2"]


def test_checkpoints_put_aside_come_back_after_a_kill(trained: Config) -> None:
    folder = RunFolder(Path(trained.output_dir))
    before = tree(folder.path)
    code = (
        "import os, sys, signal\nfrom pathlib import Path\nfrom bbu.stages.run_folder import claim, checkpoints\n"
        "from bbu.config import Config\n"
        "with claim(Config(output_dir=sys.argv[1])) as folder, folder.replacing(checkpoints(folder.path)):\n"
        "    (folder.path / 'checkpoint-2').mkdir()\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, trained.output_dir]).returncode == -9
    assert tree(folder.path / "checkpoint-2") == {}
    with claim(trained):
        assert tree(folder.path) == before


def test_overwrite_replaces_once_the_new_run_has_a_checkpoint(trained: Config) -> None:
    trained.training.overwrite, trained.training.max_steps = True, 3
    for name in ("checkpoint-2-backup", "checkpoint-99"):  # no run has saved these
        (Path(trained.output_dir) / name).mkdir()
    stages.train(trained)
    names = sorted(path.name for path in Path(trained.output_dir).glob("*checkpoint*"))
    assert names == ["checkpoint-2-backup", "checkpoint-3", "checkpoint-99"]
    assert not (Path(trained.output_dir) / ".replaced").exists()


def test_what_somebody_has_put_into_a_published_model_moves_on_to_the_next(trained: Config) -> None:
    readme = Path(trained.output_dir) / "model" / "README.md"
    readme.write_text("mine", encoding="utf-8")
    trained.training.overwrite, trained.training.max_steps = True, 1
    stages.train(trained)
    assert readme.read_text(encoding="utf-8") == "mine"
    assert (readme.parent / "manifest.json").is_file() and "checkpoint-1" in str(checkpoints(readme.parents[1]))
