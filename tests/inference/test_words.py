"""Which words photos' tokens choose, in a family with a visual vocabulary, and how a collapse shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bbu.cli import main
from bbu.drawing.words import draw_words
from bbu.errors import UserError
from bbu.families.base import VisualWords
from bbu.images import load_image
from bbu.inference.predictor import Predictor
from bbu.inference.words import use_of, words_of
from bbu.models.checkpoint import save_model
from tests.tiny import DEFAULT, build_tiny, noise_photo, tiny_config, tiny_processor

FAMILY = "ovis2_5"


def predictor(family: str = FAMILY) -> Predictor:
    return Predictor(build_tiny(tiny_config(model={"family": family})), tiny_processor(family, caption_max_tokens=24))


def some_words(words: list[int], entropy: float, vocabulary: int) -> VisualWords:
    row = torch.tensor([words])
    return VisualWords(row, torch.full_like(row, entropy, dtype=torch.float32), vocabulary)


def test_each_photo_has_a_word_for_each_of_its_image_tokens() -> None:
    photos = [noise_photo(1, 128, 96), noise_photo(2, 96, 160)]
    owner = predictor()
    for photo, found in zip(photos, words_of(owner, photos), strict=True):
        sample = owner.processor.process_photos((), photo, with_answer=False)
        rows, columns = found.words_YZ.shape
        tokens = int((sample.input_ids == owner.model.backbone.image_token_id).sum())
        assert rows * columns == tokens and found.entropy_YZ.shape == (rows, columns)
        assert found.words_YZ.min() >= 0 and found.words_YZ.max() < found.vocabulary
        assert found.entropy_YZ.min() >= 0 and found.entropy_YZ.max() <= np.log(found.vocabulary) + 1e-5


def test_a_photo_alone_chooses_the_words_it_chooses_among_others() -> None:
    owner, photos = predictor(), [noise_photo(1, 128, 96), noise_photo(2, 96, 160)]
    together, alone = words_of(owner, photos)[1], words_of(owner, photos[1:])[0]
    assert torch.equal(together.words_YZ, alone.words_YZ)


def test_a_collapsed_vocabulary_is_seen_in_two_numbers() -> None:
    spread = use_of([some_words(list(range(8)), 0.0, 16)])
    collapsed = use_of([some_words([3] * 8, 0.0, 16)])
    unsure = use_of([some_words([3] * 8, float(np.log(16)), 16)])
    assert (spread.in_use, collapsed.in_use) == (0.5, 1 / 16)
    assert (collapsed.entropy, unsure.entropy) == pytest.approx((0.0, 1.0))


def test_a_family_without_words_says_so() -> None:
    with pytest.raises(UserError, match=f"family {DEFAULT} has no visual vocabulary"):
        words_of(predictor(DEFAULT), [noise_photo(1, 112, 84)])


def test_the_picture_shows_photo_words_and_entropy() -> None:
    words = np.array([[0, 0, 1], [2, 2, 2]])
    picture = draw_words(Image.new("RGB", (90, 60), (9, 9, 9)), words, np.full((2, 3), np.log(4)), 4)
    assert picture.mode == "RGB" and picture.width > 3 * 120
    pixels = np.asarray(picture)
    assert (pixels == 255).all(-1).sum() > 2 * 3 * 30 * 30, "all words alike is white"


def test_the_command_writes_a_picture_and_one_line_of_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    owner = predictor()
    save_model(tmp_path / "model", owner.model, owner.processor)
    noise_photo(3, 128, 96).image.save(tmp_path / "photo.png")
    arguments = [str(tmp_path / "model"), str(tmp_path / "photo.png"), "--output", str(tmp_path / "tokens.png")]
    assert main(["inspect-tokens", *arguments]) == 0
    assert load_image(tmp_path / "tokens.png").width > 400
    assert " words; entropy " in capsys.readouterr().out


def test_the_command_refuses_another_family_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    owner = predictor(DEFAULT)
    save_model(tmp_path / "model", owner.model, owner.processor)
    noise_photo(3, 112, 84).image.save(tmp_path / "photo.png")
    assert main(["inspect-tokens", str(tmp_path / "model"), str(tmp_path / "photo.png")]) == 2
    assert "has no visual vocabulary" in capsys.readouterr().err
