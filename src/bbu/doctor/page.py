"""The report as one HTML page without scripts; styles, charts and photos are inside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bbu.doctor.charts import Bar
from bbu.doctor.descriptions import COLUMNS, Balance
from bbu.doctor.findings import by_severity
from bbu.doctor.proof import HEAD_BOUND, HEAD_COLOUR, RECORD_COLOUR, TEXT_COLOUR, Proven, draw_proof
from bbu.doctor.report import Report, size_text
from bbu.drawing.pages import jpeg_base64, render_page
from bbu.errors import UserError
from bbu.images import load_image
from bbu.jsonl import atomic_writer
from bbu.records import resolve_image

TEMPLATE = Path(__file__).with_name("page.html.jinja")
CHART_WIDTH, CHART_HEIGHT = 640, 180  # SVG units
DESCRIPTIONS_SHOWN = 100  # of a level; the JSON has all
DESCRIPTIONS_LISTED = 8  # under a drawn sample
JPEG_QUALITY = 82


def write_page(path: str | Path, report: Report) -> None:
    """Render and write the page, atomically.

    Raises:
        UserError: the file cannot be written.
    """
    with atomic_writer(path) as stream:
        stream.write(page_of(report))


def page_of(report: Report) -> str:
    """The page's HTML; sample photos are read again, to be drawn."""
    return render_page(
        TEMPLATE,
        style="page.css",
        title=report.config,
        kind=report.headline,
        report=report,
        findings=by_severity(report.findings),
        facts=report.facts(),
        chart=(CHART_WIDTH, CHART_HEIGHT),
        tokens=columns(report.lengths.histogram) if report.lengths else [],
        sizes=columns(report.sizes.histogram) if report.sizes and report.sizes.objects else [],
        levels=[_level(table) for table in report.balance],
        splits=COLUMNS,
        memory=_memory(report.memory),
        samples=[_sample(item, report.image_root) for item in report.proven],
        head_bound=HEAD_BOUND,
        colours={"record": RECORD_COLOUR, "head": HEAD_COLOUR, "text": TEXT_COLOUR},
    )


def columns(bars: list[Bar]) -> list[dict[str, Any]]:
    """Bars side by side in SVG units, the highest as high as the chart; every non-empty bar is visible."""
    highest = max((bar.count for bar in bars), default=0) or 1
    width = CHART_WIDTH / max(len(bars), 1)
    placed = []
    for number, bar in enumerate(bars):
        height = max(bar.count / highest * CHART_HEIGHT, 2.0) if bar.count else 0.0
        label = f"{bar.low:g} and more" if bar.high is None else f"{bar.low:g} to {bar.high:g}"
        place = {"x": number * width + 1, "y": CHART_HEIGHT - height, "width": width - 2, "height": height}
        placed.append({**place, "label": label, "count": bar.count})
    return placed


def _level(table: Balance) -> dict[str, Any]:
    """One level's rows, with bars relative to the most frequent; of many rows the middle ones are left out."""
    rows = list(table.items())
    half = DESCRIPTIONS_SHOWN // 2
    shown = rows if len(rows) <= DESCRIPTIONS_SHOWN else [*rows[:half], *rows[-half:]]
    highest = max((sum(counts.values()) for _, counts in rows), default=1)
    return {
        "rows": [
            {"desc": desc, "counts": counts, "shares": {name: 100 * counts[name] / highest for name in COLUMNS}}
            for desc, counts in shown
        ],
        "hidden": len(rows) - len(shown),
    }


def _memory(facts: dict[str, Any] | None) -> list[tuple[str, str]]:
    if facts is None:
        return []
    keys = ("peak", "weights", "gradients", "optimizer", "activations", "photos")
    parts = ("weights", "gradients", "optimizer states", f"activations ({facts['assumes']})", "photos in flight")
    names = ("at most at one time", *parts)
    return [(name, size_text(facts[f"{key}_bytes"])) for name, key in zip(names, keys, strict=True)]


def _sample(item: Proven, image_root: str) -> dict[str, Any]:
    descs = sorted({one.desc for one in item.sample.row.objects})
    more = [f"… {len(descs) - DESCRIPTIONS_LISTED} more"] if len(descs) > DESCRIPTIONS_LISTED else []
    try:
        image = load_image(resolve_image(image_root, item.sample.name))
        picture = "data:image/jpeg;base64," + jpeg_base64(draw_proof(image, item), JPEG_QUALITY)
    except UserError:  # the finding about this sample says why
        picture = ""
    return {"proven": item, "descriptions": [*descs[:DESCRIPTIONS_LISTED], *more], "picture": picture}
