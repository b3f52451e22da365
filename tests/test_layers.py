"""Rooms import in one direction only, and what needs no weights loads no torch."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]

# From the bottom up; a room imports only from itself and from rooms before it.
ROOMS = (
    "bbu.errors", "bbu.interruption", "bbu.machine", "bbu.geometry", "bbu.tiles", "bbu.jsonl", "bbu.images",
    "bbu.taxonomy", "bbu.records", "bbu.taxonomy_file", "bbu.layers", "bbu.families", "bbu.config", "bbu.drawing",
    "bbu.evaluation", "bbu.judging", "bbu.data", "bbu.models", "bbu.losses", "bbu.inference", "bbu.training",
    "bbu.monitoring", "bbu.baselines", "bbu.serve", "bbu.doctor", "bbu.stages", "bbu.cli",
)  # fmt: skip
CONVERSION_MAY_IMPORT = (
    "bbu.errors",
    "bbu.geometry",
    "bbu.images",
    "bbu.jsonl",
    "bbu.records",
    "bbu.taxonomy",
    "bbu.taxonomy_file",
)
MAY_IMPORT_CONVERSION = ("bbu.stages", "bbu.cli")
HEAVY = ("torch", "torchvision", "transformers", "accelerate", "peft", "deepspeed", "scipy", "matplotlib")


def module_files() -> dict[str, Path]:
    """Dotted name → file of every module of the project."""
    files = {}
    for root in (PROJECT / "src", PROJECT):
        for package in ("bbu", "data_conversion"):
            for path in sorted((root / package).rglob("*.py")):
                parts = path.relative_to(root).with_suffix("").parts
                files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


FILES = module_files()


def imports(module: str) -> Iterator[str]:
    """Project modules that a module imports, lazily or not; also only for types."""
    for node in ast.walk(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in FILES)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import; write the full name"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in FILES or node.module in FILES:
                    yield full if full in FILES else str(node.module)


def room(module: str) -> str | None:
    """The longest room name that the module is in."""
    inside = [name for name in ROOMS if module == name or module.startswith(f"{name}.")]
    return max(inside, key=len, default=None)


def project_modules(package: str) -> list[str]:
    return [name for name in FILES if name == package or name.startswith(f"{package}.")]


def test_there_are_modules_to_look_at() -> None:
    assert "bbu.cli" in FILES and "data_conversion.pipeline" in FILES and len(FILES) > 40
    assert "bbu.records" in set(imports("bbu.stages.preparation")) and "bbu.errors" in set(imports("bbu.records"))


@pytest.mark.parametrize("module", project_modules("bbu"))
def test_a_module_imports_only_from_rooms_below_it(module: str) -> None:
    own = room(module)
    if own is None:
        assert module == "bbu", f"{module} is in no room; add one to ROOMS"
        assert list(imports(module)) == []
        return
    for imported in imports(module):
        if imported.startswith("data_conversion"):
            assert own in MAY_IMPORT_CONVERSION, f"{module} imports {imported}"
        else:
            other = room(imported)
            assert other is not None, f"{module} imports {imported}, which is in no room"
            assert ROOMS.index(other) <= ROOMS.index(own), f"{module} imports {imported} from a room above it"


@pytest.mark.parametrize("module", project_modules("data_conversion"))
def test_data_conversion_imports_only_the_contract(module: str) -> None:
    for imported in imports(module):
        assert imported.startswith("data_conversion") or imported in CONVERSION_MAY_IMPORT, f"{module}: {imported}"


def test_no_module_imports_library_code_from_a_main() -> None:
    assert [module for module in FILES if any(name.endswith("__main__") for name in imports(module))] == []


def test_no_two_modules_import_each_other() -> None:
    graph = {module: set(imports(module)) - {module} for module in FILES}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"imports run in a circle: {' → '.join(error.args[1])}")


def loaded_by(code: str) -> set[str]:
    """Top-level packages in sys.modules after running code in a fresh Python."""
    code += "\nimport sys\nprint('loaded', *sorted({name.partition('.')[0] for name in sys.modules}))"
    path = os.pathsep.join([str(PROJECT / "src"), str(PROJECT)])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "modules",
    [
        "bbu.evaluation, bbu.evaluation.pictures, bbu.evaluation.compare, bbu.evaluation.calibration, "
        "bbu.evaluation.operating_points, bbu.evaluation.page, bbu.drawing.panels, bbu.drawing.pages, "
        "bbu.judging.verdicts, bbu.judging.scoring, bbu.judging.thresholds",
        "bbu.geometry, bbu.records, bbu.taxonomy, bbu.config, bbu.data.augment, bbu.images, bbu.families.prompts",
        "data_conversion.__main__, data_conversion.pipeline, data_conversion.cabinet_photos",
    ],
    ids=["evaluation", "below the models", "conversion"],
)
def test_what_needs_no_weights_loads_no_torch(modules: str) -> None:
    assert loaded_by(f"import {modules}").isdisjoint(HEAVY)


def test_the_command_line_answers_before_anything_heavy_is_loaded() -> None:
    loaded = loaded_by("import bbu.cli")
    assert loaded.isdisjoint({*HEAVY, "numpy", "PIL", "omegaconf", "yaml"})
    helped = (
        "import bbu.cli\ntry:\n    bbu.cli.main(['--help'])\nexcept SystemExit as error:\n    assert error.code == 0"
    )
    assert loaded_by(helped).isdisjoint({*HEAVY, "numpy", "PIL", "omegaconf", "yaml"})


def test_checking_a_config_and_scoring_predictions_load_no_torch(tmp_path: Path) -> None:
    config = str(PROJECT / "configs" / "demo.yaml")
    assert loaded_by(f"import bbu.cli\nassert bbu.cli.main(['check', {config!r}]) == 0").isdisjoint(HEAVY)
    row = '{"images": ["a.jpg"], "objects": [{"desc": "x", "bbox_2d": [1, 2, 3, 4]}], "width": 9, "height": 9}'
    truth, found = tmp_path / "truth.jsonl", tmp_path / "found.jsonl"
    truth.write_text(row, encoding="utf-8")
    found.write_text(row.replace("objects", "predictions").replace('"desc"', '"score": 0.5, "desc"'), encoding="utf-8")
    code = f"import bbu.cli\nassert bbu.cli.main(['evaluate', {str(truth)!r}, {str(found)!r}]) == 0"
    assert loaded_by(code).isdisjoint({"torch", "torchvision", "transformers", "accelerate", "peft"})


def test_rank_and_world_size_are_asked_in_one_file() -> None:
    asking = re.compile(
        r"RANK\b|WORLD_SIZE|torch\.distributed|process_(?:index|zero)|\.world_size\b|main_process|args\.should_save|local_rank"
    )
    found = [name for name, path in FILES.items() if asking.search(path.read_text(encoding="utf-8"))]
    assert found == ["bbu.training.distributed"]


def test_the_architecture_page_lists_the_rooms_in_their_order() -> None:
    page = (PROJECT / "docs" / "architecture.md").read_text(encoding="utf-8")
    section = page.split("\n## Rooms\n")[1].split("\n\n- ")[0]
    assert [f"bbu.{name}" for name in re.findall(r"`(\w+)`(?= →|\s*$)", section, re.MULTILINE)] == [*ROOMS]
