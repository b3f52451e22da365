"""The stream of training samples: order, teachers and views are a function of (seed, position)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from PIL import Image
from torch.utils.data import Dataset

from bbu.config import AugmentConfig, SamplingConfig
from bbu.data.augment import Augmenter
from bbu.data.chat_processor import ChatProcessor, ChatProcessorOutput
from bbu.data.packing.planner import Pack
from bbu.data.photo import Photo
from bbu.data.replay import Replay
from bbu.data.sampling.answers import Answers
from bbu.data.sampling.episodes import Episodes
from bbu.data.sampling.mixture import Mixture
from bbu.data.sampling.order import Draw, EpochOrder
from bbu.errors import ImageError, PhotoChangedError, SampleError
from bbu.families.prompts import ON_GROUPS
from bbu.records import FewShotSample
from bbu.taxonomy import MirrorRules

BEFORE_THE_END = 1 - 1e-9  # with planned packs the length is an estimate; progress stays below 1
STAND_IN_SIDE = 112  # pixels
IN_WORDS = ("summary", "verdict")  # answers that may name sides, places and numbers, or count
SALT_STEP = 0x9E3779B1  # odd and large (Knuth's multiplicative hashing): the salts of two seeds do not overlap


@dataclass(frozen=True)
class UnreadableSample:
    """Keeps the place of a sample one of whose photos cannot be read or has changed.

    Args:
        position: in the stream.
        sample: the student's photo, or file and line of a conversation.
        photo: the one that cannot be used: the student's, a teacher's, one that augmentation mixes in, or one of a
            conversation.
        error: why, for the user.
        stand_in: an empty photo, for a batch that would have no sample at all.
    """

    position: int
    sample: str
    photo: str
    error: str
    stand_in: ChatProcessorOutput


class TrainingStream(Dataset[ChatProcessorOutput]):
    """All samples of a whole run, in order; the sample at position i is a function of (seed, i) alone.

    A resumed run, or one with another number of workers, sees the same samples.

    Args:
        samples: training samples; those that bring teachers or context keep them.
        processor: turns samples into tensors.
        length: samples of the whole run, over all ranks; an estimate with planned packs.
        seed: run seed.
        episodes: draws teachers and context for the other samples; None = none.
        sampling: how often each photo is shown; None = once per epoch.
        augment: random views of the photos; None = none.
        answers: what each sample is asked for; None = its objects.
        replay: conversations among the photos; None = none.
        mirror: how flips and turns change descriptions that name a side; None = the usual words are swapped.
    """

    def __init__(
        self,
        samples: Sequence[FewShotSample],
        processor: ChatProcessor,
        *,
        length: int,
        seed: int,
        episodes: Episodes | None = None,
        sampling: SamplingConfig | None = None,
        augment: AugmentConfig | None = None,
        mirror: MirrorRules | None = None,
        answers: Answers | None = None,
        replay: Replay | None = None,
    ) -> None:
        if not samples:
            raise SampleError("there is no training photo; check data.source and its conversion report")
        self.samples, self.processor, self.length, self.episodes = samples, processor, length, episodes
        self.seed = seed
        students = [sample.student for sample in samples]
        self.answers = None if answers is None or answers.all_boxes else answers
        self.order = EpochOrder(students, sampling or SamplingConfig(), seed)
        self.replay = replay
        self.mixture = Mixture(replay.share if replay else 0.0, len(replay.rows) if replay else 0, seed)
        self.augmenter = Augmenter(
            augment or AugmentConfig(),
            seed,
            pool=[row for row in students if row.annotated],
            image_root=processor.image_root,
            mirror=mirror,
        )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> ChatProcessorOutput:
        if not 0 <= position < self.length:
            raise IndexError(position)
        return self._make(position)

    def __getitems__(self, wanted: Sequence[int | Pack]) -> list[ChatProcessorOutput | UnreadableSample]:
        """The samples of a batch: positions, or planned packs of positions, which may exceed ``length``."""
        packs = (item if isinstance(item, tuple) else (item,) for item in wanted)
        return [self._make_if_readable(position) for pack in packs for position in pack]

    @property
    def epoch_length(self) -> float:
        """Expected number of positions in an epoch of the photos."""
        return self.order.epoch_length / (1 - self.mixture.share)

    def draw_at(self, position: int) -> Draw:
        """The training photo at a position, or where a conversation stands the next one, whose epoch it belongs to."""
        return self.order.at(self.mixture.at(position).photos)

    def shown(self, draw: Draw) -> FewShotSample:
        """Rows of the sample of a training photo, with its teachers and context.

        A sample that is asked for anything else than its boxes shows no teachers, and no other context.
        """
        sample = self.samples[draw.photo]
        if self.answers:
            answer = self.answers.draw(sample.student, draw.epoch, draw.number)
            if answer in ON_GROUPS:
                return self.answers.on_group(answer, sample.student, draw.epoch, draw.number)
            if answer == "summary":
                return FewShotSample(sample.student, answer=answer)
        return self.episodes.complete(sample, draw.epoch, draw.number) if self.episodes else sample

    def name_at(self, position: int) -> str:
        """For messages: the photo at a position, or file and line of the conversation."""
        number = self.mixture.at(position).conversation
        if self.replay is not None and number is not None:
            return self.replay.rows[number].where
        return self.samples[self.draw_at(position).photo].student.images[0]

    def _make(self, position: int) -> ChatProcessorOutput:
        number = self.mixture.at(position).conversation
        if self.replay is not None and number is not None:
            return self.processor.process_conversation(self.replay.rows[number], self.replay.image_root)
        draw = self.draw_at(position)
        progress = min(position / self.length, BEFORE_THE_END)
        sample = self.shown(draw)
        augment = self.augmenter.for_sample(draw.epoch, draw.number, progress, still=sample.answer in IN_WORDS)
        salt = (self.seed * SALT_STEP + position) % 2**32
        return self.processor.process_sample(sample, augment, salt)

    def _make_if_readable(self, position: int) -> ChatProcessorOutput | UnreadableSample:
        try:
            return self._make(position)
        except (ImageError, PhotoChangedError) as error:
            sample = self.name_at(position)
            return UnreadableSample(position, sample, error.photo or sample, str(error), self._stand_in)

    @cached_property
    def _stand_in(self) -> ChatProcessorOutput:
        blank = Photo(Image.new("RGB", (STAND_IN_SIDE, STAND_IN_SIDE)), "no photo")
        return self.processor.process_photos([], blank, with_answer=True)
