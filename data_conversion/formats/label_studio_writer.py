"""Write for Label Studio: pre-annotations to correct, and the labelling interface that shows them.

    tasks.json          every photo with its objects as one prediction: Import
    label_config.xml    rectangles and polygons with all descriptions: Settings > Labeling Interface > Code
    images/             the photos

Label Studio serves the photos from their folder if it is started with

    LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true
    LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=<absolute path of the written folder>

and the project has a source storage "Local files" with the path ``<written folder>/images``, which need not be synced.
The storage must be a folder below the document root, hence ``images/``.

The split goes into ``data.split``, a column to filter by; the summary into a text area. A line is written as its
enclosing box, since the labelling interface has no lines.

Formats: labelstud.io/guide/predictions, /guide/storage (Local storage), /tags/rectanglelabels, /tags/polygonlabels.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

from bbu.jsonl import atomic_writer
from data_conversion.base import ExportLosses, ExportObject, ExportPhoto
from data_conversion.formats.xml_files import NOT_IN_XML

MODEL = "bbu"
DECIMALS = 6  # of a percentage: a thousandth of a pixel in a photo of 100,000


def photo_place(image: str, split: str | None) -> str:
    """``images/<image>``, whatever the split."""
    return f"images/{image}"


def write_records(photos: Iterator[ExportPhoto], folder: Path) -> ExportLosses:
    """Write tasks.json and label_config.xml; memory holds only the descriptions."""
    losses = ExportLosses()
    descriptions: dict[str, None] = {}
    has_summary = False
    with atomic_writer(folder / "tasks.json") as stream:
        stream.write("[")
        for number, photo in enumerate(photos):
            task = _task(photo, number)
            stream.write(("," if number else "") + "\n" + json.dumps(task, ensure_ascii=False, allow_nan=False))
            descriptions.update(dict.fromkeys(item.desc for item in photo.objects))
            has_summary |= bool(photo.summary)
            losses["line written as its box"] += sum(item.kind == "line" for item in photo.objects)
        stream.write("\n]\n")
    offered = [desc for desc in descriptions if not NOT_IN_XML.search(desc)]
    not_offered = "description with characters that XML cannot hold, not in label_config.xml"
    losses[not_offered] += len(descriptions) - len(offered)
    with atomic_writer(folder / "label_config.xml") as stream:
        stream.write(_interface(offered, has_summary))
    return +losses


def _task(photo: ExportPhoto, number: int) -> dict[str, Any]:
    results = [_result(item, photo, f"{number}_{index}") for index, item in enumerate(photo.objects)]
    if photo.summary:
        results.append(_control("summary", "textarea", {"text": [photo.summary]}, f"{number}_summary"))
    prediction: dict[str, Any] = {"model_version": MODEL, "result": results}
    scores = [item.score for item in photo.objects if item.score is not None]
    if scores:
        prediction["score"] = round(sum(scores) / len(scores), DECIMALS)
    data = {"image": f"/data/local-files/?d={quote(photo_place(photo.image, photo.split))}"}
    if photo.split is not None:
        data["split"] = photo.split
    return {"data": data, "predictions": [prediction]}


def _result(item: ExportObject, photo: ExportPhoto, identity: str) -> dict[str, Any]:
    if item.kind == "poly":
        scale = (100 / photo.width, 100 / photo.height)
        pairs = zip(item.points[::2], item.points[1::2], strict=True)
        points = [[round(x * scale[0], DECIMALS), round(y * scale[1], DECIMALS)] for x, y in pairs]
        result = _control("polygon", "polygonlabels", {"points": points, "closed": True}, identity)
    else:
        result = _control("box", "rectanglelabels", _rectangle(item, photo), identity)
    result["value"][result["type"]] = [item.desc]
    result |= {"original_width": photo.width, "original_height": photo.height, "image_rotation": 0}
    if item.score is not None:
        result["score"] = round(item.score, DECIMALS)
    return result


def _rectangle(item: ExportObject, photo: ExportPhoto) -> dict[str, float]:
    x1, y1, x2, y2 = photo.box(item)
    across, down = 100 / photo.width, 100 / photo.height
    sides = {"x": x1 * across, "y": y1 * down, "width": (x2 - x1) * across, "height": (y2 - y1) * down}
    return {name: round(side, DECIMALS) for name, side in sides.items()} | {"rotation": 0}


def _control(name: str, kind: str, value: dict[str, Any], identity: str) -> dict[str, Any]:
    """A result of the control ``name`` in the labelling interface."""
    return {"id": identity, "from_name": name, "to_name": "image", "type": kind, "value": value}


def _interface(descriptions: Iterable[str], has_summary: bool) -> str:
    labels = "".join(f"    <Label value={quoteattr(desc)}/>\n" for desc in descriptions)
    summary = '  <TextArea name="summary" toName="image" editable="true" maxSubmissions="1"/>\n' if has_summary else ""
    return (
        '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
        f'  <RectangleLabels name="box" toName="image">\n{labels}  </RectangleLabels>\n'
        f'  <PolygonLabels name="polygon" toName="image">\n{labels}  </PolygonLabels>\n'
        f"{summary}</View>\n"
    )
