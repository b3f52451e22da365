"""Difference between approximate METEOR and METEOR 1.5 by kind of edit, and its effect on dense-captioning mAP.

    python benchmarks/meteor.py [--phrases 7278] [--photos 1000]

The phrases are those of ../shared/data/vg_regions_text ($BBU_SHARED names another place). Each is compared with itself
after one known edit; "same place" pairs two people's phrases for boxes that the protocol merges. mAP is that of seeded
predictions made from the same file: boxes moved, phrases edited or taken from other boxes. The time is for ``--photos``
photos with 50 predictions each, repeating the file's photos. Without Java or the package pycocoevalcap, only the
approximate results are printed. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from bbu.errors import UserError
from bbu.evaluation.dense_captioning import dense_metrics, merge_boxes
from bbu.evaluation.meteor import exact_meteor
from bbu.evaluation.pairing import pair
from bbu.evaluation.phrase_similarity import CaptionPair, approximate_meteor
from bbu.records import ObjectRow, PredictedObject, PredictionRow, Row
from data_conversion.base import RawObject, SourceImage
from data_conversion.formats.visual_genome import iter_records

PROJECT = Path(__file__).resolve().parents[1]
SOURCE = Path(os.environ.get("BBU_SHARED", PROJECT.parent / "shared")) / "data" / "vg_regions_text"
PREDICTIONS = 50  # per photo, for the time

Edit = Callable[[list[str], list[str], random.Random], list[str] | None]  # words, another phrase's → None: too short


def drop(words: list[str], other: list[str], rng: random.Random) -> list[str] | None:
    at = rng.randrange(len(words))
    return words[:at] + words[at + 1 :] if len(words) > 1 else None


def swap(words: list[str], other: list[str], rng: random.Random) -> list[str] | None:
    if len(words) < 2:
        return None
    at, to = rng.sample(range(len(words)), 2)
    return [words[{at: to, to: at}.get(place, place)] for place in range(len(words))]


def exchange(words: list[str], other: list[str], rng: random.Random) -> list[str] | None:
    at = rng.randrange(len(words))
    return [*words[:at], rng.choice(other), *words[at + 1 :]]


def inflect(words: list[str], other: list[str], rng: random.Random) -> list[str] | None:
    """Toggle the plural of the last word, which is nearly always a noun in region phrases."""
    last = words[-1]
    return [*words[:-1], last[:-1] if last.endswith("s") and len(last) > 3 else last + "s"]


EDITS: dict[str, Edit] = {
    "none": lambda words, other, rng: words,
    "capitals": lambda words, other, rng: [word.upper() for word in words],
    "a word dropped": drop,
    "two words swapped": swap,
    "a word from elsewhere": exchange,
    "plural": inflect,
    "another phrase": lambda words, other, rng: other,
}


def read_photos() -> list[Row]:
    """The photos as rows; boxes are clipped to their photo, and boxes outside it are left out."""
    rows = []
    for item in iter_records(SOURCE):
        if not isinstance(item, SourceImage) or item.size is None:
            continue
        width, height = item.size
        objects = []
        for region in item.objects:
            if isinstance(region, RawObject):
                box = np.clip(region.points, 0, (width, height, width, height))
                if (box[2:] > box[:2]).all():
                    objects.append(ObjectRow(region.desc, "bbox_2d", tuple(box.tolist())))
        rows.append(Row((item.image,), tuple(objects), width, height))
    return rows


def edited_pairs(phrases: Sequence[str], edit: Edit, seed: int) -> list[CaptionPair]:
    rng = random.Random(seed)
    found: list[CaptionPair] = []
    for phrase in phrases:
        words = edit(phrase.split(), rng.choice(phrases).split(), rng)
        if words:
            found.append((" ".join(words), (phrase,)))
    return found


def same_place_pairs(rows: Sequence[Row]) -> list[CaptionPair]:
    """The first phrase of every merged region against its other ones."""
    regions = [region.references for photo in pair(rows, []).photos for region in merge_boxes(photo)]
    return [(first, tuple(others)) for first, *others in regions if others]


def predictions_for(rows: Sequence[Row], edits: Sequence[Edit], count: int | None, seed: int) -> list[PredictionRow]:
    """Predictions from the annotations: boxes moved by a tenth of their sides, words edited, scores at random."""
    rng = random.Random(seed)
    phrases = [item.desc for row in rows for item in row.objects]
    predictions = []
    for row in rows:
        found = []
        for item in row.objects if count is None else rng.choices(row.objects, k=count):
            x1, y1, x2, y2 = item.box
            noise = [rng.gauss(0, 0.1 * side) for side in (x2 - x1, y2 - y1) * 2]
            moved = [value + shift for value, shift in zip(item.box, noise, strict=True)]
            box = (min(moved[0], moved[2]), min(moved[1], moved[3]), max(moved[0], moved[2]), max(moved[1], moved[3]))
            words = rng.choice(edits)(item.desc.split(), rng.choice(phrases).split(), rng)
            score = rng.random()
            found.append(PredictedObject(box, " ".join(words or ["thing"]), score, score))
        predictions.append(PredictionRow(row.images, row.width, row.height, tuple(found)))
    return predictions


def compare(pairs: Sequence[CaptionPair], exact: bool) -> dict[str, float | int | None]:
    """Means of both measures, mean absolute difference and Pearson correlation (None where one does not vary)."""
    ours = np.array(approximate_meteor(pairs))
    if not exact:
        return {"pairs": len(pairs), "ours": round(float(ours.mean()), 4)}
    theirs = np.array(exact_meteor(pairs))
    varies = min(theirs.std(), ours.std()) > 1e-9
    return {
        "pairs": len(pairs),
        "exact": round(float(theirs.mean()), 4),
        "ours": round(float(ours.mean()), 4),
        "difference": round(float(np.abs(theirs - ours).mean()), 4),
        "correlation": round(float(np.corrcoef(theirs, ours)[0, 1]), 4) if varies else None,
    }


def timed(rows: Sequence[Row], photos: int) -> float:
    """Seconds of ``dense_metrics`` over so many photos with PREDICTIONS predictions each."""
    many = [replace(rows[number % len(rows)], images=(f"{number}.jpg",)) for number in range(photos)]
    predictions = predictions_for(many, list(EDITS.values()), PREDICTIONS, seed=2)
    started = time.perf_counter()
    dense_metrics(many, predictions)
    return time.perf_counter() - started


def have_meteor() -> bool:
    try:
        exact_meteor([("a dog", ("a dog",))])
    except UserError as error:
        print(f"exact METEOR is left out: {error}")
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--phrases", type=int, default=7278)
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--quick", action="store_true", help="100 phrases, 20 photos: shows that it runs")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.phrases, arguments.photos = 100, 20
    if not SOURCE.is_dir():
        raise SystemExit(f"{SOURCE} is not there; BBU_SHARED names the folder with data/vg_regions_text")
    rows = read_photos()
    seconds = round(timed(rows, arguments.photos), 2)  # first, while caches are empty
    phrases = [item.desc for row in rows for item in row.objects][: arguments.phrases]
    exact = have_meteor()
    kinds = {name: edited_pairs(phrases, edit, seed=1) for name, edit in EDITS.items()}
    kinds["same place"] = same_place_pairs(rows)
    kinds["all"] = [item for pairs in kinds.values() for item in pairs]
    table = {name: compare(pairs, exact) for name, pairs in kinds.items()}
    columns = ("pairs", "exact", "ours", "difference", "correlation")
    print(f"{'edit':<22}" + "".join(f"{column:>12}" for column in columns))
    for name, values in table.items():
        print(f"{name:<22}" + "".join(f"{'-' if (v := values.get(c)) is None else v:>12}" for c in columns))
    predictions = predictions_for(rows, list(EDITS.values()), None, seed=3)
    means = {
        kind: round(dense_metrics(rows, predictions, meteor=kind)["dense_map"], 4)
        for kind in (("approximate", "exact") if exact else ("approximate",))
    }
    print(f"dense mAP of {len(rows)} photos: " + ", ".join(f"{kind} {value}" for kind, value in means.items()))
    print(f"{arguments.photos} photos x {PREDICTIONS} predictions: {seconds} s")
    print(json.dumps({"by_edit": table, "dense_map": means, "seconds": seconds, "photos": arguments.photos}))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(str(error)) from None
