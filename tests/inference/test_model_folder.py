"""Inference: photos in, boxes, descriptions and scores out; the language model's own text for comparison."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bbu.data.chat_processor import ChatProcessor
from bbu.data.photo import Photo
from bbu.errors import CheckpointError, ImageError
from bbu.evaluation.calibration import Calibration
from bbu.families.prompts import parse_answer
from bbu.images import open_image
from bbu.inference import DetectionResult, Inference
from bbu.inference.predictor import PredictOptions
from bbu.models.checkpoint import save_model
from bbu.models.wrapper import DetectionVLM
from bbu.records import ObjectRow, PredictionRow, Row
from bbu.training.objective import DetectionObjective
from tests.tiny import (
    DESCRIPTIONS,
    FAMILIES,
    Conversation,
    build_tiny,
    noise_photo,
    pack,
    run_backbone,
    tiny_config,
    tiny_processor,
)

SIZES = [(112, 84), (84, 140), (168, 112), (56, 56), (140, 140)]


@pytest.fixture(scope="module", params=FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model folder."""
    place = tmp_path_factory.mktemp("inference")
    config = tiny_config(model={"family": request.param})
    save_model(place, build_tiny(config), tiny_processor(request.param, caption_max_tokens=24))
    return place


@pytest.fixture(scope="module")
def inference(folder: Path) -> Inference:
    """In float64, so that batches of any size agree to the last digits."""
    found = Inference(folder, device="cpu", precision="fp32", batch_size=2, nms_iou=1.0)
    found.model.double()
    return found


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    return [noise_photo(number, *size).image for number, size in enumerate(SIZES)]


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Row], str]:
    """Two annotated rows and their image root."""
    root = tmp_path_factory.mktemp("teachers")
    rows = []
    for number in range(2):
        photo = noise_photo(50 + number, 84, 84, parts=2)
        photo.image.save(root / f"teacher{number}.png")
        rows.append(Row((f"teacher{number}.png",), photo.objects, 84, 84))
    return rows, str(root)


def same(one: DetectionResult, other: DetectionResult, tolerance: float = 1e-9) -> bool:
    return (
        one.captions == other.captions
        and np.allclose(one.boxes, other.boxes, rtol=0, atol=max(tolerance * 1000, tolerance))
        and np.allclose(one.scores, other.scores, rtol=0, atol=tolerance)
        and np.allclose(one.objectness, other.objectness, rtol=0, atol=tolerance)
    )


def test_a_result_unpacks_as_boxes_and_captions_and_has_scores(inference: Inference, photos: list[Image.Image]) -> None:
    result = inference.predict_detection(photos[0])
    boxes, captions = result
    assert boxes.shape == (10, 4) and len(captions) == 10
    assert boxes is result.boxes and captions is result.captions
    assert result.scores.shape == result.objectness.shape == (10,)
    assert (np.diff(result.scores) <= 0).all(), "best first"
    assert ((result.scores >= 0) & (result.scores <= result.objectness) & (result.objectness <= 1)).all()
    assert all(isinstance(caption, str) for caption in captions)


def test_boxes_are_corners_in_pixels_of_the_photo(inference: Inference, photos: list[Image.Image]) -> None:
    for photo, result in zip(photos, inference.predict_detection(photos), strict=True):
        boxes = result.boxes
        assert boxes.min() >= -1e-9
        assert boxes[:, [0, 2]].max() <= photo.width + 1e-9 and boxes[:, [1, 3]].max() <= photo.height + 1e-9
        assert (boxes[:, 2] >= boxes[:, 0]).all() and (boxes[:, 3] >= boxes[:, 1]).all()
        assert boxes.max() > 1.5, "boxes look like fractions"


def test_one_photo_gives_one_result_and_many_a_list_in_their_order(
    inference: Inference, photos: list[Image.Image]
) -> None:
    alone = [inference.predict_detection(photo) for photo in photos]
    assert all(isinstance(result, DetectionResult) for result in alone)
    many = inference.predict_detection(photos)
    assert isinstance(many, list)
    assert all(same(one, other) for one, other in zip(alone, many, strict=True))
    turned = inference.predict_detection(photos[::-1])
    assert all(same(one, other) for one, other in zip(alone, reversed(turned), strict=True))
    assert not same(alone[0], alone[1])
    assert inference.predict_detection([]) == []
    assert isinstance(inference.predict_detection([photos[0]]), list)


@pytest.mark.parametrize("batch_size", [1, 3, 5, 50])
def test_the_size_of_a_batch_changes_nothing(
    batch_size: int, inference: Inference, photos: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = inference.predict_detection(photos)
    monkeypatch.setattr(inference.predictor, "options", replace(inference.predictor.options, batch_size=batch_size))
    assert all(same(a, b) for a, b in zip(inference.predict_detection(photos), expected, strict=True))


def test_files_and_pictures_in_memory_give_the_same(
    inference: Inference, photos: list[Image.Image], tmp_path: Path
) -> None:
    paths: list[str | Path] = []
    for number, photo in enumerate(photos[:2]):
        photo.save(tmp_path / f"{number}.png")
        paths += [tmp_path / f"{number}.png", str(tmp_path / f"{number}.png")]
    found = inference.predict_detection(paths)
    expected = inference.predict_detection([photos[0], photos[0], photos[1], photos[1]])
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))


def test_an_exif_orientation_is_applied(inference: Inference, photos: list[Image.Image], tmp_path: Path) -> None:
    stored = photos[0].transpose(Image.Transpose.ROTATE_90)  # so that EXIF 6, a turn to the right, shows the photo
    exif = stored.getexif()
    exif[274] = 6
    stored.save(tmp_path / "turned.png", exif=exif)
    assert same(inference.predict_detection(tmp_path / "turned.png"), inference.predict_detection(photos[0]))


def test_teachers_change_the_predictions(
    inference: Inference, photos: list[Image.Image], teachers: tuple[list[Row], str]
) -> None:
    rows, root = teachers
    without = inference.predict_detection(photos[0])
    results = [inference.predict_detection(photos[0], teachers=rows[:n], image_root=root) for n in range(3)]
    assert same(results[0], without)
    assert not same(results[1], without, 1e-7) and not same(results[2], results[1], 1e-7)
    many = inference.predict_detection(photos[:3], teachers=rows, image_root=root)
    assert same(many[0], results[2])
    relabelled = [Row(row.images, (ObjectRow("line", "bbox_2d", (1, 2, 30, 40)),), 84, 84) for row in rows]
    assert not same(inference.predict_detection(photos[0], teachers=relabelled, image_root=root), results[2], 1e-7)


def test_the_trained_prompt_is_taken_and_another_refused(inference: Inference, photos: list[Image.Image]) -> None:
    trained = inference.processor.spec.instruction
    assert same(inference.predict_detection(photos[0], trained), inference.predict_detection(photos[0]))
    with pytest.raises(CheckpointError, match=r"Find every cat.*the model was trained with 'List the parts\.'"):
        inference.predict_detection(photos[0], "Find every cat")


def test_a_photo_that_cannot_be_read_is_named(inference: Inference, tmp_path: Path) -> None:
    (tmp_path / "note.png").write_text("no picture", encoding="utf-8")
    with pytest.raises(ImageError, match=r"note\.png"):
        inference.predict_detection(tmp_path / "note.png")


def test_of_many_files_a_bad_one_costs_only_itself(
    inference: Inference, photos: list[Image.Image], tmp_path: Path
) -> None:
    names = ["a.png", "missing.png", "b.png", "thin.png", "c.png"]
    for name, photo in zip(("a.png", "b.png", "c.png"), photos, strict=False):
        photo.save(tmp_path / name)
    Image.new("RGB", (900, 3)).save(tmp_path / "thin.png")  # 300 times longer than wide
    rows = list(inference.predict_rows(names, str(tmp_path)))
    assert [row.images for row in rows] == [(name,) for name in names]
    assert [row.error is None for row in rows] == [True, False, True, False, True]
    assert "missing.png" in str(rows[1].error) and "thin.png" in str(rows[3].error)
    good = [row for row in rows if row.error is None]
    for row, photo in zip(good, photos, strict=False):
        expected = inference.predict_detection(photo)
        assert isinstance(row, PredictionRow) and (row.width, row.height) == photo.size
        assert [item.desc for item in row.predictions] == expected.captions
        assert np.allclose([item.box for item in row.predictions], expected.boxes, atol=1e-6)


def test_max_detections_keeps_the_boxes_of_highest_objectness(folder: Path, photos: list[Image.Image]) -> None:
    all_of_them = Inference(folder, device="cpu", precision="fp32").predict_detection(photos[2])
    few = Inference(folder, device="cpu", precision="fp32", max_detections=3).predict_detection(photos[2])
    assert len(few.captions) == 3
    assert sorted(few.objectness)[::-1] == pytest.approx(sorted(all_of_them.objectness)[::-1][:3])


def test_a_mode_other_than_rgb_is_no_problem(inference: Inference, photos: list[Image.Image]) -> None:
    grey = photos[0].convert("L")
    assert same(inference.predict_detection(grey), inference.predict_detection(grey.convert("RGB")))


def test_scores_are_calibrated_if_the_folder_has_a_calibration(
    inference: Inference, folder: Path, photos: list[Image.Image], tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "model")
    share = {"ECE": None, "Brier": None}
    Calibration("temperature", 2.0, (), "val", 1, 1, share, share).save(copy / "calibration.json")
    options = {"device": "cpu", "precision": "fp32", "nms_iou": 1.0}
    raw = Inference(copy, calibrated=False, **options).predict_detection(photos[0])
    mended = Inference(copy, **options).predict_detection(photos[0])
    logit = np.log(raw.scores / (1 - raw.scores)) / 2
    assert mended.scores == pytest.approx(1 / (1 + np.exp(-logit)))
    assert mended.captions == raw.captions and np.array_equal(mended.boxes, raw.boxes)
    assert same(raw, inference.predict_detection(photos[0]), 1e-5)


def test_options_go_together_or_by_name(folder: Path, photos: list[Image.Image]) -> None:
    together = Inference(
        folder, device="cpu", precision="fp32", options=PredictOptions(max_detections=3, min_score=0.01)
    )
    by_name = Inference(folder, device="cpu", precision="fp32", max_detections=3, min_score=0.01)
    assert together.predictor.options == by_name.predictor.options
    assert same(together.predict_detection(photos[0]), by_name.predict_detection(photos[0]))
    with pytest.raises(TypeError, match="top_q"):
        Inference(folder, device="cpu", precision="fp32", top_q=3)


# ---------------------------------------------------------------- text


def greedy(model: DetectionVLM, sample: Conversation, steps: int, end: int) -> list[int]:
    """Token by token through the packed backbone, without a cache."""
    ids = sample.ids.tolist()
    start = len(ids)
    for _ in range(steps):
        with torch.no_grad():
            hidden = run_backbone(model.backbone, [Conversation(torch.tensor(ids), sample.patches, sample.grids)])
        ids.append(int((hidden.hidden_TD[-1] @ model.backbone.lm_head_weight.T).argmax()))
        if ids[-1] == end:
            break
    return ids[start:]


def test_generated_text_equals_greedy_decoding_through_our_backbone(
    inference: Inference, photos: list[Image.Image], teachers: tuple[list[Row], str]
) -> None:
    rows, root = teachers
    processor, model = inference.processor, inference.model
    found = inference.generate_text(photos[2], rows, root, max_new_tokens=12)
    shown = [Photo(open_image(Path(root) / row.images[0]), row.images[0], row.objects) for row in rows]
    sample = processor.process_photos(shown, Photo(photos[2], "photo"), with_answer=False)
    expected = greedy(
        model, Conversation(sample.input_ids, sample.pixel_values, sample.image_grid_thw), 12, processor.end_token_id
    )
    assert found.text == processor.tokenizer.decode(expected, skip_special_tokens=True)
    assert found.boxes.shape == (len(found.captions), 4)


def memorise(model: DetectionVLM, processor: ChatProcessor, photos: Sequence[Photo]) -> None:
    """Learn the answers to a few photos by heart."""
    objective = DetectionObjective(model, tiny_config().loss).train()
    batch = pack(model, [processor.process_photos([], photo, with_answer=True) for photo in photos])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(120):
        loss = objective(**batch)["student_lm"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss.item() < 0.5:
            return


@pytest.mark.parametrize("family", FAMILIES)
def test_text_of_a_model_that_knows_the_answer_becomes_boxes_and_captions(family: str, tmp_path: Path) -> None:
    boxes = [(10.0, 8.0, 50.0, 44.0), (60.0, 20.0, 100.0, 70.0)]
    photo = Photo(
        noise_photo(1, 112, 84).image,
        "known",
        tuple(ObjectRow(desc, "bbox_2d", box) for desc, box in zip(DESCRIPTIONS, boxes, strict=False)),
    )
    empty = Photo(noise_photo(2, 112, 84).image, "empty")
    model, processor = build_tiny(tiny_config(model={"family": family})), tiny_processor(family, caption_max_tokens=24)
    memorise(model, processor, [photo, empty])
    save_model(tmp_path, model, processor)
    inference = Inference(tmp_path, device="cpu", precision="fp32")
    result = inference.generate_text(photo.image, max_new_tokens=160)
    assert result.captions == list(DESCRIPTIONS[:2])
    assert np.abs(result.boxes - np.array(boxes)).max() <= 0.5, "text boxes are whole pixels"
    assert result.malformed == 0
    nothing = inference.generate_text(empty.image, max_new_tokens=80)
    assert (nothing.text, nothing.captions, nothing.boxes.shape) == ("[]", [], (0, 4))
    cut = inference.generate_text(photo.image, max_new_tokens=30)
    assert result.text.startswith(cut.text)
    assert (len(cut.captions), cut.malformed) == (len(parse_answer(cut.text)[0]), parse_answer(cut.text)[1])
