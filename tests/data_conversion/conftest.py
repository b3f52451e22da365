"""Small sources made on the spot: photos by Pillow, annotation files by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image

from bbu.records import read_rows
from bbu.taxonomy import Taxonomy
from bbu.taxonomy_file import read_taxonomy
from data_conversion.pipeline import convert
from data_conversion.report import ConversionReport

SIZE = (80, 60)  # width, height in pixels of every photo that does not say otherwise


@dataclass
class Source:
    """A source folder under construction, and its conversion."""

    root: Path
    out: Path

    def photo(self, name: str, size: tuple[int, int] = SIZE, orientation: int = 1, text: str = "") -> Path:
        """A JPEG; its comment is ``text`` or its name, so that photos of different names differ in bytes."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", size, (40, 80, 90))
        exif = image.getexif()
        if orientation != 1:
            exif[ExifTags.Base.Orientation] = orientation
        image.save(path, format="JPEG", exif=exif, comment=text or name)
        return path

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        return path

    def bbu(
        self,
        name: str,
        features: list[Any],
        size: tuple[int, int] | None = SIZE,
        ascii_only: bool = False,
        **photo: Any,
    ) -> Path:
        """``name.jpg`` and ``name.json`` with these features; ``ascii_only`` writes all else as escapes."""
        self.photo(f"{name}.jpg", **{"size": size or SIZE, **photo})
        return self.write(f"{name}.json", json.dumps(document(features, size), ensure_ascii=ascii_only))

    def voc(self, name: str, objects: str, filename: str | None = None, head: str = "") -> Path:
        """``JPEGImages/name.jpg`` and ``Annotations/name.xml`` with these <object> elements."""
        self.photo(f"JPEGImages/{name}.jpg")
        size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height><depth>3</depth></size>"
        body = f"<filename>{filename or name + '.jpg'}</filename>{size}{objects}"
        return self.write(f"Annotations/{name}.xml", f"{head}<annotation>{body}</annotation>")

    def convert(self, source_format: str = "bbu_json", **options: Any) -> ConversionReport:
        options.setdefault("taxonomy", None)
        options.setdefault("val_fraction", 0.0)
        return convert(source_format, self.root, self.out, **options)

    def rows(self, split: str = "all_samples") -> list[Any]:
        return read_rows(self.out / f"{split}.jsonl")

    def lines(self, name: str) -> list[dict[str, Any]]:
        text = (self.out / name).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def objects(self) -> list[dict[str, Any]]:
        """Objects of the only row, as written."""
        (row,) = self.lines("all_samples.jsonl")
        return list(row["objects"])


@pytest.fixture
def source(tmp_path: Path) -> Source:
    (tmp_path / "source").mkdir()
    return Source(tmp_path / "source", tmp_path / "out")


@pytest.fixture
def bbu_taxonomy() -> Taxonomy:
    import data_conversion

    return read_taxonomy(Path(data_conversion.__file__).parent / "taxonomies" / "bbu.yaml")


def document(features: list[Any], size: tuple[int, int] | None = SIZE) -> dict[str, Any]:
    """One annotation file with the top-level keys that real ones have."""
    value: dict[str, Any] = {
        "tagInfo": {"mode": "image", "dataId": 1, "taskId": 2, "timestamp": 3},
        "version": "1.0",
        "markResult": {"type": "FeatureCollection", "features": features},
        "qualityResult": {},
        "workload": {},
        "statistcs": {},
        "submitWorkflow": "x",
    }
    if size is not None:
        value["info"] = {"width": size[0], "height": size[1], "depth": 3}
    return value


def bbu_object(
    desc: str | None = "标签/可读",
    box: tuple[float, float, float, float] = (10, 10, 30, 20),
    *,
    geometry: Mapping[str, Any] | None = None,
    **properties: Any,
) -> dict[str, Any]:
    """One feature: an ExtentPolygon of the older Chinese scheme, unless told otherwise."""
    x1, y1, x2, y2 = box
    ring = [[x1, y1], [x2, y1], [x2, y2], [x1, y2], [x1, y1]]
    if desc is not None:
        properties.setdefault("contentZh", {"标签": desc})
    return {
        "geometry": dict(geometry or {"type": "ExtentPolygon", "coordinates": ring}),
        "properties": {"objectId": "", "layerId": 1, "generateMode": "manual", **properties},
    }


def voc_object(name: str = "RBC", box: tuple[Any, Any, Any, Any] = (11, 11, 30, 20)) -> str:
    tags = "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name><bndbox>{tags}</bndbox></object>"


@pytest.fixture(scope="session", name="document")
def document_fixture() -> Any:
    return document


@pytest.fixture(scope="session", name="bbu_object")
def bbu_object_fixture() -> Any:
    return bbu_object


@pytest.fixture(scope="session", name="voc_object")
def voc_object_fixture() -> Any:
    return voc_object
