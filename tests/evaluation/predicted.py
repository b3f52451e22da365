"""Annotated rows and predictions that get some of them right, drawn by seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bbu.records import ObjectRow, PredictedObject, PredictionRow, Row

DESCRIPTIONS = (
    "螺丝连接点/BBU安装螺丝/安装正确", "螺丝连接点/BBU安装螺丝/未拧紧", "螺丝连接点/地排处螺丝/生锈", "标签贴纸/可识别",
    "挡风板", "bbu基带处理单元/华为",
)  # fmt: skip


def crowded_rows(count: int, objects: int = 12, size: tuple[int, int] = (320, 240), seed: int = 0) -> list[Row]:
    """Photos whose boxes overlap much, so that who takes which box depends on the rules."""
    random = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        low = random.integers(0, 12, (objects, 2)) * 10.0
        high = low + random.integers(4, 9, (objects, 2)) * 10.0
        names = random.choice(len(DESCRIPTIONS), objects, p=(0.4, 0.05, 0.1, 0.2, 0.15, 0.1))
        items = [
            ObjectRow(DESCRIPTIONS[name], "bbox_2d", (*map(float, corner), *map(float, other)))
            for name, corner, other in zip(names, low, high, strict=True)
        ]
        rows.append(Row((f"photo_{number:03d}.jpg",), tuple(items), *size))
    return rows


def perturbed(rows: Sequence[Row], seed: int = 0, fppi: float = 2.0) -> list[PredictionRow]:
    """Predictions: boxes moved a little, some left out, some misnamed, some made up; scores of one decimal."""
    random = np.random.default_rng(seed)
    descs = sorted({item.desc for row in rows for item in row.objects})
    predictions = []
    for row in rows:
        boxes = [(np.array(item.box), item.desc) for item in row.objects if random.random() > 0.15]
        boxes += [
            boxes[n] for n in random.integers(0, max(len(boxes), 1), random.poisson(fppi)) if boxes
        ]  # second boxes
        found = [_said(random, box, desc, descs) for box, desc in boxes]
        for _ in range(random.poisson(fppi)):
            corner = random.uniform(0, 0.8, 2) * (row.width, row.height)
            found.append(_said(random, np.concatenate([corner, corner + 30]), descs[0], descs))
        predictions.append(PredictionRow(row.images, row.width, row.height, tuple(found)))
    return predictions


def _said(random: np.random.Generator, box: np.ndarray, desc: str, descs: Sequence[str]) -> PredictedObject:
    side = np.maximum(np.tile(box[2:] - box[:2], 2), 1.0)
    x1, y1, x2, y2 = np.round(box + random.normal(0, 0.08, 4) * side, 2).tolist()
    caption = desc if random.random() > 0.2 else descs[random.integers(len(descs))]
    score, objectness = np.round(random.beta(3, 2, 2), 1).tolist()
    return PredictedObject((x1, y1, x2, y2), caption, score, objectness)
