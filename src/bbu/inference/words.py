"""Which words of a visual vocabulary photos' tokens choose, in families that have one.

Shapes: Y height in pixels or tokens, Z width in pixels or tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bbu.data.photo import Photo
from bbu.errors import UserError
from bbu.families.base import VisualWords
from bbu.inference.predictor import Predictor, prepare
from bbu.inference.tiling import View


@dataclass(frozen=True)
class WordUse:
    """How much of the vocabulary some photos use.

    Args:
        in_use: share of the words that are the likeliest one of some token. A vocabulary that has collapsed to a few
            words shows here at once.
        entropy: mean of the tokens' entropies, as a share of the largest value: 0 = each token is one word, 1 = all
            words are alike to it.
    """

    in_use: float
    entropy: float


def words_of(predictor: Predictor, photos: Sequence[Photo]) -> list[VisualWords]:
    """The words of each photo, seen whole.

    Raises:
        UserError: the model's family has no visual vocabulary, or a photo cannot be shown to it.
    """
    model, found = predictor.model, []
    device, training = next(model.parameters()).device, model.training
    model.eval()
    try:
        for photo in photos:
            sample = prepare(predictor.processor, photo, View((0, 0, *photo.image.size), photo.image.size))
            with torch.no_grad(), predictor.precision():
                words = model.backbone.visual_words(sample.pixel_values.to(device), sample.image_grid_thw)
            if words is None:
                raise UserError(f"family {model.backbone.family} has no visual vocabulary: its tokens are no words")
            found.append(words[-1])
    finally:
        model.train(training)
    return found


def use_of(words: Sequence[VisualWords]) -> WordUse:
    """How much of the vocabulary the tokens of some photos use together."""
    chosen = torch.cat([photo.words_YZ.flatten() for photo in words])
    entropies = torch.cat([photo.entropy_YZ.flatten() for photo in words])
    vocabulary = words[0].vocabulary
    most = torch.log(torch.tensor(float(vocabulary)))
    return WordUse(len(chosen.unique()) / vocabulary, float(entropies.double().mean() / most))
