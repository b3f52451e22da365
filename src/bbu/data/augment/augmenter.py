"""What is done to which photo of a sample, and how strongly, at each point of the run."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from bbu.config import AugmentConfig
from bbu.data.augment.colours import change_colours
from bbu.data.augment.draws import Draws
from bbu.data.augment.mixing import Mixer
from bbu.data.augment.views import Mirrors, change_view
from bbu.data.photo import Augment, Photo
from bbu.records import Row
from bbu.taxonomy import MirrorRules

_VIEW = 3  # augmentation's own number among the run's streams
_COLOURS = ("brightness", "contrast", "saturation", "sharpness", "hue", "grey", "blur", "jpeg")
_VIEWS = ("flip_horizontal", "flip_vertical", "quarter_turns", "rotate", "scale", "crop", "object_crop")
_MIXTURES = ("mosaic", "copy_paste")


class Augmenter:
    """Random views, decided by (seed, epoch, sample number, place in the sample) alone.

    Order: mosaic, copy-paste, quarter turn, flips, zoom, crop, light and colour. Mosaic and copy-paste change the
    student only: worked examples are whole photos at inference too. Flips and turns swap the words for sides in
    descriptions, or do not happen, as the mirror rules say. An object that keeps less than ``config.min_visible``
    of its area (a line: of its length) is dropped, others are cut to the canvas (bbu.data.augment.objects).

    Args:
        config: which changes, and how likely.
        seed: run seed.
        pool: rows of the training photos, for mosaic and copy-paste.
        image_root: folder that their paths are relative to.
        mirror: what flips and turns do to descriptions that name a side.

    Raises:
        ConfigError: mosaic or copy-paste is on and the pool has nothing for it.
    """

    def __init__(
        self,
        config: AugmentConfig,
        seed: int,
        *,
        pool: Sequence[Row] = (),
        image_root: str | Path = "",
        mirror: MirrorRules | None = None,
    ) -> None:
        self.config, self.seed, self.mirror = config, seed, mirror or MirrorRules()
        self._colours, self._views, self._mixtures = (
            any(getattr(config, name) for name in names) for names in (_COLOURS, _VIEWS, _MIXTURES)
        )
        self._mixer = Mixer(config, pool, image_root) if self._mixtures else None

    def for_sample(self, epoch: int, number: int, progress: float, *, still: bool = False) -> Augment:
        """What is done to the photos of sample ``number`` in ``epoch``.

        Args:
            progress: share of the run that is done, in [0, 1).
            still: nothing moves, comes or goes: colours alone change. For words about the whole photo, which may name
                places, sides and numbers.
        """
        if not self.active:
            return list
        if still:
            return partial(self._recolour, key=(self.seed, _VIEW, epoch, number), strength=self.strength(progress))
        strength = self.strength(progress)
        mixer = self._mixer if progress < 1 - self.config.curriculum.close_mosaic else None
        return partial(self._apply, key=(self.seed, _VIEW, epoch, number), strength=strength, mixer=mixer)

    def mixed_in(self, epoch: int, number: int, names: Collection[str]) -> tuple[list[Row], int]:
        """What mosaic and copy-paste add to a sample's student at most, known without opening a photo.

        Args:
            names: photos of the sample.

        Returns:
            Rows of the other tiles of its mosaic, and the number of pieces pasted in; both as drawn at full strength.
        """
        tiles, pieces = list[Row](), 0
        if self._mixer:
            draws = Draws((self.seed, _VIEW, epoch, number, 0))
            random = draws.stream("mosaic")
            if random.random() < self.config.mosaic:
                tiles = self._mixer.draw_tiles(random, names)
            random = draws.stream("copy_paste")
            if random.random() < self.config.copy_paste:
                pieces = self._mixer.draw_pieces(random)
        return tiles, pieces

    def piece_rows(self) -> list[Row]:
        """As Mixer's; none where nothing is pasted."""
        return self._mixer.piece_rows() if self._mixer else []

    @property
    def active(self) -> bool:
        """Whether any photo may be changed."""
        return self._colours or self._views or self._mixtures

    def strength(self, progress: float) -> float:
        """From ``curriculum.start`` up to 1, evenly, at ``curriculum.full_at`` of the run."""
        curriculum = self.config.curriculum
        if progress >= curriculum.full_at:
            return 1.0
        return curriculum.start + (1 - curriculum.start) * progress / curriculum.full_at

    def _apply(
        self, photos: Sequence[Photo], key: tuple[int, ...], strength: float, mixer: Mixer | None
    ) -> list[Photo]:
        """Places count back from the student, so that its view does not depend on how many teachers it has."""
        changed = list(photos)
        same = self.config.teachers == "same"
        if mixer:
            names = {photo.name for photo in photos}
            changed[-1] = self._mix(photos[-1], mixer, Draws((*key, 0)), strength, names)
        first = len(photos) - 1 if self.config.teachers == "none" else 0
        everything = [item.desc for photo in changed for item in photo.objects]
        for at in range(first, len(photos)):
            draws = Draws((*key, 0 if same else len(photos) - 1 - at))
            mirrors = Mirrors(self.mirror, everything if same else [item.desc for item in changed[at].objects])
            changed[at] = self._change(changed[at], mirrors, draws, strength)
        return changed

    def _recolour(self, photos: Sequence[Photo], key: tuple[int, ...], strength: float) -> list[Photo]:
        return [
            self._change_colours(photo, Draws((*key, len(photos) - 1 - at)), strength)
            for at, photo in enumerate(photos)
        ]

    def _change(self, photo: Photo, mirrors: Mirrors, draws: Draws, strength: float) -> Photo:
        if self._views:
            photo = change_view(photo, self.config, mirrors, draws, strength)
        return self._change_colours(photo, draws, strength)

    def _change_colours(self, photo: Photo, draws: Draws, strength: float) -> Photo:
        if not self._colours:
            return photo
        image = change_colours(photo.image, self.config, draws, strength)
        return photo if image is photo.image else replace(photo, image=image)

    def _mix(self, photo: Photo, mixer: Mixer, draws: Draws, strength: float, names: set[str]) -> Photo:
        random = draws.stream("mosaic")
        if random.random() < self.config.mosaic * strength:
            photo = mixer.mosaic(photo, random, names)
        random = draws.stream("copy_paste")
        if random.random() < self.config.copy_paste * strength:
            photo = mixer.paste(photo, random, names)
        return photo
