"""The page "Bring your data" is true: each example's files, converted by its command, give the row it promises."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from data_conversion.__main__ import main
from data_conversion.formats import FORMATS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "bring_your_data.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### `(\w+)`\n(.*?)(?=^##)", PAGE, re.S | re.M))
PROMISED = json.loads(re.search(r"^```json\n(.*?)^```", PAGE, re.S | re.M).group(1))  # type: ignore[union-attr]


def test_there_is_an_example_of_every_format() -> None:
    assert set(SECTIONS) == {name for name, entry in FORMATS.items() if entry.read}


def test_the_table_says_which_way_each_format_goes() -> None:
    rows = re.findall(r"^\| [^|]+ \| `(\w+)` \|([^|]*)\|([^|]*)\|$", PAGE, re.M)
    told = {name: ("✓" in reads, "✓" in writes) for name, reads, writes in rows}
    assert told == {name: (entry.read is not None, entry.write is not None) for name, entry in FORMATS.items()}


@pytest.mark.parametrize("name", SECTIONS)
def test_an_example(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    section = SECTIONS[name]
    monkeypatch.chdir(tmp_path)
    files = re.findall(r"`(source/[^`]+)`", section.partition("```")[0])
    texts = re.findall(r"^```\w+\n(.*?)^```", section, re.S | re.M)
    (photo,) = [file for file in files if file.endswith(".jpg")]
    for file, text in zip([file for file in files if file != photo], texts, strict=True):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_text(text, encoding="utf-8")
    Path(photo).parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (640, 480)).save(photo)
    command = re.search(r"^    python -m data_conversion (.*)$", section, re.M)
    assert command is not None
    assert main(command.group(1).split()) == 0, capsys.readouterr()
    (row,) = [json.loads(line) for line in Path("out/all_samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert Path("source", row["images"][0]) == Path(photo)
    promised = {**PROMISED["objects"][0]} | ({"desc": "a loose screw"} if name == "visual_genome" else {})
    assert row["objects"] == [promised]
    assert (row["width"], row["height"]) == (PROMISED["width"], PROMISED["height"])


def test_the_taxonomy_on_the_page_is_read(tmp_path: Path) -> None:
    from bbu.taxonomy_file import read_taxonomy

    text = re.search(r"^```yaml\n(language.*?)^```", PAGE, re.S | re.M)
    assert text is not None
    (tmp_path / "mine.yaml").write_text(text.group(1), encoding="utf-8")
    taxonomy = read_taxonomy(tmp_path / "mine.yaml")
    assert taxonomy.normalise("Schraube/bbu/loose") == "screw/bbu/loose"
    assert taxonomy.problem("screw/bbu/loose") is None
    assert "place is missing" in str(taxonomy.problem("screw"))
    assert taxonomy.mirror.swap("port", "horizontal") == "starboard"
