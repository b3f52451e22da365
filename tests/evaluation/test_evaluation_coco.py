"""Every COCO number equals that of the reference implementation, pycocotools."""

import random
from contextlib import redirect_stdout
from dataclasses import replace
from io import StringIO
from xml.etree import ElementTree

import pytest

from bbu.evaluation import evaluate
from bbu.records import ObjectRow, PredictedObject, PredictionRow, Row

reference = pytest.importorskip("pycocotools.cocoeval", reason="pycocotools is not installed")
coco = pytest.importorskip("pycocotools.coco")

BLOOD_CELLS = "data/bccd_voc/Annotations"
DESCRIPTIONS = {"RBC": "cell/red", "WBC": "cell/white", "Platelets": "fragment/platelet"}


def perturbed(rows, *, seed, score_steps=None):
    """Noisy copies of the annotated boxes: moved, doubled, dropped, misnamed, and some out of vocabulary."""
    rng = random.Random(seed)
    names = [*sorted({item.desc for row in rows for item in row.objects}), "cell/unheard-of"]

    def confidence():
        value = rng.random()
        return round(value * score_steps) / score_steps if score_steps else value

    def found(box):
        noise = [rng.gauss(0, 0.08 * side) for side in (box[2] - box[0], box[3] - box[1]) * 2]
        x1, y1, x2, y2 = (value + shift for value, shift in zip(box, noise, strict=True))
        return min(x1, x2) - 2, min(y1, y2) - 2, max(x1, x2) + 2, max(y1, y2) + 2

    predictions = []
    for row in rows:
        objects = []
        for item in row.objects:
            for _ in range(rng.choice((0, 1, 1, 1, 2))):
                desc = item.desc if rng.random() < 0.8 else rng.choice(names)
                objects.append(PredictedObject(found(item.box), desc, confidence(), confidence()))
        for _ in range(rng.randrange(3)):
            x, y, size = rng.random() * row.width, rng.random() * row.height, 10 + rng.random() * 150
            box = (x, y, x + size, y + size)
            objects.append(PredictedObject(box, rng.choice(names), confidence(), confidence()))
        predictions.append(PredictionRow(row.images, row.width, row.height, tuple(objects)))
    return predictions


def reference_run(rows, predictions, label, rank_by):
    """pycocotools on the same boxes, photos in order of name and boxes in order of position."""
    rows = sorted(rows, key=lambda row: row.images)
    ids = {name: k for k, name in enumerate(sorted({label(o.desc) for r in rows for o in r.objects}), start=1)}
    found = {row.images: sorted(row.predictions, key=lambda item: (item.box, item.desc)) for row in predictions}
    truth, results = [], []
    for image_id, row in enumerate(rows, start=1):
        for box, desc in sorted((item.box, item.desc) for item in row.objects):
            truth.append(entry(len(truth) + 1, image_id, ids[label(desc)], box))
        for item in found[row.images]:
            score = getattr(item, rank_by)
            category = ids.get(label(item.desc), len(ids) + 1)
            results.append(entry(len(results) + 1, image_id, category, item.box) | {"score": score})
    with redirect_stdout(StringIO()):
        data = [coco.COCO(), coco.COCO()]
        for part, annotations in zip(data, (truth, results), strict=True):
            part.dataset = {
                "images": [{"id": index} for index in range(1, len(rows) + 1)],
                "categories": [{"id": k, "name": name} for name, k in ids.items()],
                "annotations": annotations,
            }
            part.createIndex()
        run = reference.COCOeval(*data, iouType="bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run, list(ids)


def entry(identity, image_id, category, box):
    x1, y1, x2, y2 = box
    size = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)}
    return {"id": identity, "image_id": image_id, "category_id": category, "iscrowd": 0, **size}


STATS = (
    "AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large",
    "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip
LABELLINGS = {
    "": (str, "score"),
    "_agnostic": (lambda _: "object", "objectness"),
    "_level1": (lambda desc: desc.split("/")[0], "score"),
    "_level2": (lambda desc: "/".join(desc.split("/")[:2]), "score"),
}


def assert_equal_to_reference(rows, predictions):
    """All twelve figures of pycocotools, under every labelling."""
    metrics = evaluate(rows, predictions, bootstrap_samples=0)
    for suffix, (label, rank_by) in LABELLINGS.items():
        run, names = reference_run(rows, predictions, label, rank_by)
        for key, value in zip(STATS, run.stats, strict=True):
            found = metrics[f"{key}{suffix}"]
            assert (-1 if found is None else found) == pytest.approx(value, abs=1e-6), f"{key}{suffix}"
        for index, name in enumerate(names if suffix == "" else ()):
            ap50 = run.eval["precision"][0, :, index, 0, 2].mean()
            assert metrics["per_description"][name]["AP50"] == pytest.approx(ap50, abs=1e-6)
    assert 0.05 < metrics["AP"] < 0.95  # a comparison at the ends of the scale would prove little


def synthetic_rows(seed, *, photos=40, largest=300):
    rng = random.Random(seed)
    rows = []
    for index in range(photos):
        objects = []
        for _ in range(rng.choice((0, 1, 5, 20))):
            x, y = rng.random() * 500, rng.random() * 300
            box = (x, y, x + 5 + rng.random() * largest, y + 5 + rng.random() * largest)
            objects.append(ObjectRow(rng.choice(list(DESCRIPTIONS.values())), "bbox_2d", box))
        rows.append(Row((f"{index}.jpg",), tuple(objects), 900, 700))
    return rows


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_synthetic_photos(seed):
    rows = synthetic_rows(seed)
    assert_equal_to_reference(rows, perturbed(rows, seed=seed))


def test_many_ties_of_score():
    rows = synthetic_rows(4)
    assert_equal_to_reference(rows, perturbed(rows, seed=4, score_steps=5))


def test_small_boxes_alone_leave_the_larger_sizes_undefined():
    rows = synthetic_rows(5, largest=20)
    assert_equal_to_reference(rows, perturbed(rows, seed=5))
    assert evaluate(rows, perturbed(rows, seed=5))["AP_large"] is None


def test_more_boxes_in_a_photo_than_count():
    rows = synthetic_rows(7, photos=6, largest=40)
    crowded = [replace(row, objects=(row.objects * 30)[:150]) for row in rows]
    assert max(len(row.objects) for row in crowded) > 100
    assert_equal_to_reference(crowded, perturbed(crowded, seed=7))


def test_real_photos_of_blood_cells(shared_dir):
    rows = [voc_row(path) for path in sorted((shared_dir / BLOOD_CELLS).glob("*.xml"))]
    assert sum(len(row.objects) for row in rows) > 4000
    assert_equal_to_reference(rows, perturbed(rows, seed=6))


def voc_row(path):
    root = ElementTree.parse(path).getroot()
    objects = []
    for item in root.iter("object"):
        box = tuple(float(item.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
        if min(box[2] - box[0], box[3] - box[1]) >= 2:  # thinner ones are thickened, which the reference is not
            objects.append(ObjectRow(DESCRIPTIONS[item.findtext("name")], "bbox_2d", box))
    width, height = (int(root.findtext(f"size/{side}")) for side in ("width", "height"))
    return Row((path.stem,), tuple(objects), width, height)
