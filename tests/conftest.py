"""Fixtures of all tests: a small tokenizer, a processor, photos and rows made on the spot. Heavy imports wait."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports transformers
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # models here are tiny: threads cost more than they bring

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import ExifTags, Image

from bbu.records import FewShotSample, ObjectRow, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bbu.data.chat_processor import ChatProcessor

settings.register_profile(
    "bbu", deadline=None, max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("bbu")

PROJECT = Path(__file__).resolve().parents[1]
DESCRIPTIONS = ("螺丝连接点/BBU安装螺丝/连接正确", "标签贴纸", "挡风板", "connect_point/screw/loose")
SIZE = (112, 84)  # width, height of every photo that does not say otherwise

SLOWEST = (  # of those of more than 20 seconds; make test begins with them, so that no core is idle at its end
    "training/test_full_job.py",
    "models/test_captions_see.py",
    "models/acceleration/test_compiling.py",
    "training/test_same_gradient.py",
    "benchmarks/test_convergence.py",
    "benchmarks/test_step_benchmarks.py",
    "monitoring/test_visual_log.py",
    "training/test_resume.py",
    "training/test_stopping.py",
    "training/test_unreadable.py",
    "training/test_finite.py",
    "data/packing/test_planner.py",
    "doctor/test_examination.py",
    "benchmarks/test_gpu_script.py",
    "data_conversion/test_bad_input.py",
    "training/test_watchdog.py",
    "training/test_deepspeed_resume.py",
    "benchmarks/test_input_benchmarks.py",
    "monitoring/test_trackers.py",
    "models/test_no_bleed.py",
    "benchmarks/test_memory.py",
)

MakePhoto = Callable[..., Path]
MakeRow = Callable[..., Row]
MakeSample = Callable[..., FewShotSample]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest modules first; the others stay in their order."""
    place = {PROJECT / "tests" / name: number for number, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(autouse=True)
def no_group_of_one_is_left() -> Iterator[None]:
    """A run with DeepSpeed makes its process a group of one, by torchrun's variables; the next test has none."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    before = {name: os.environ.get(name) for name in names}
    yield
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@pytest.fixture(scope="session")
def project() -> Path:
    """The folder with src/, configs/ and train.sh."""
    return PROJECT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real data beside the project; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("BBU_SHARED", PROJECT.parent / "shared")) / "data"
    if not folder.is_dir():
        pytest.skip(f"real data is not here: no folder {folder} (BBU_SHARED names another place)")
    return folder.parent


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """A byte-level BPE of the default family, trained on the prompts and a few answers."""
    from bbu.families.registry import DEFAULT_FAMILY

    return small_tokenizer(DEFAULT_FAMILY)


@cache
def small_tokenizer(family: str) -> PreTrainedTokenizerBase:
    from bbu.families.prompts import WORDING, answer_text
    from bbu.families.registry import backbone_class
    from bbu.families.tokenizer import train_tokenizer

    boxes = np.array([[1, 2, 30, 40], [5, 6, 70, 80], [9, 10, 111, 83], [0, 0, 56, 28]])
    answers = [answer_text(boxes[: number + 1], DESCRIPTIONS[: number + 1]) for number in range(len(DESCRIPTIONS))]
    texts = [text for pair in WORDING.values() for text in pair] + answers * 3
    return train_tokenizer(texts, 700, backbone_class(family).conversation)


@pytest.fixture
def family() -> str:
    """Family of chat_processor and make_chat_processor; tests that run over families replace it."""
    from bbu.families.registry import DEFAULT_FAMILY

    return DEFAULT_FAMILY


@pytest.fixture
def photo_folder(tmp_path: Path) -> Path:
    """Where make_photo writes and chat_processor reads."""
    folder = tmp_path / "photos"
    folder.mkdir()
    return folder


@pytest.fixture
def make_photo(photo_folder: Path) -> MakePhoto:
    """make_photo(name, size=(w, h), seed=0, orientation=1): a noisy photo, no two seeds alike; returns its path.

    With an orientation ``size`` is the stored size, and the file should be .jpg.
    """

    def make(name: str = "photo.png", size: tuple[int, int] = SIZE, seed: int = 0, orientation: int = 1) -> Path:
        coarse = np.random.default_rng(seed).integers(0, 256, (9, 12, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)
        path = photo_folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {}
        if orientation != 1:
            exif = image.getexif()
            exif[ExifTags.Base.Orientation] = orientation
            options["exif"] = exif
        image.save(path, **options)
        return path

    return make


@pytest.fixture
def make_row(make_photo: MakePhoto, photo_folder: Path) -> MakeRow:
    """make_row(name, objects=2, size=(w, h), seed=0): a row and, unless it is there already, its photo.

    ``objects`` is a number of boxes spread over the photo, or the ObjectRows themselves.
    """

    def make(
        name: str = "photo.png",
        objects: int | Sequence[ObjectRow] = 2,
        size: tuple[int, int] = SIZE,
        seed: int = 0,
    ) -> Row:
        if not (photo_folder / name).exists():
            make_photo(name, size, seed)
        if isinstance(objects, int):
            objects = _spread(objects, size, seed)
        return Row((name,), tuple(objects), *size)

    return make


@pytest.fixture
def make_sample(make_row: MakeRow) -> MakeSample:
    """make_sample(teachers=0, objects=2, seed=0): a student after its teachers, all of different sizes."""

    def make(teachers: int = 0, objects: int = 2, seed: int = 0) -> FewShotSample:
        rows = [
            make_row(f"sample{seed}_turn{turn}.png", objects, (84 + 28 * (turn % 3), 56 + 28 * (turn % 2)), seed + turn)
            for turn in range(teachers + 1)
        ]
        return FewShotSample(rows[-1], tuple(rows[:-1]))

    return make


@pytest.fixture
def chat_processor(family: str, photo_folder: Path) -> ChatProcessor:
    """A processor of photos under photo_folder: Chinese prompts, photos of up to 25,088 pixels."""
    return build_chat_processor(family, photo_folder)


@pytest.fixture
def make_chat_processor(family: str, photo_folder: Path) -> Callable[..., ChatProcessor]:
    """make_chat_processor(language=, max_length=, …): as chat_processor, with other settings."""

    def make(**options: Any) -> ChatProcessor:
        return build_chat_processor(family, photo_folder, **options)

    return make


def build_chat_processor(
    family: str,
    folder: Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    language: str = "zh",
    box_convention: str = "",
    min_pixels: int = 56 * 56,
    max_pixels: int = 32 * 28 * 28,
    max_length: int = 4096,
    caption_max_tokens: int = 64,
    caption_weights: Mapping[str, float] | None = None,
    answers: Sequence[str] = ("boxes",),
    own_geometry: bool = False,
) -> ChatProcessor:
    """``tokenizer`` and ``box_convention``: None and "" = the family's."""
    from bbu.data.chat_processor import ChatProcessor
    from bbu.families.prompts import PromptSpec
    from bbu.families.registry import backbone_class

    backbone = backbone_class(family)
    conversation = backbone.conversation
    if box_convention:
        conversation = replace(conversation, box_convention=box_convention)
    spec = PromptSpec.create(language, conversation, min_pixels, max_pixels, answers=answers, own_geometry=own_geometry)
    return ChatProcessor(
        tokenizer or small_tokenizer(family),
        backbone.photo_plan("", spec),
        conversation,
        spec,
        image_root=str(folder),
        max_length=max_length,
        caption_max_tokens=caption_max_tokens,
        caption_weights=caption_weights,
    )


def _spread(count: int, size: tuple[int, int], seed: int) -> list[ObjectRow]:
    """Boxes inside a photo, in no particular order, with descriptions in turn."""
    random = np.random.default_rng((seed, count))
    width, height = size
    objects = []
    for number in range(count):
        x1, y1 = random.uniform(0, 0.7) * width, random.uniform(0, 0.7) * height
        x2, y2 = x1 + random.uniform(0.1, 0.3) * width, y1 + random.uniform(0.1, 0.3) * height
        objects.append(ObjectRow(DESCRIPTIONS[number % len(DESCRIPTIONS)], "bbox_2d", (x1, y1, x2, y2)))
    return objects


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line of what the fuzzing tests damaged, also where their own lines were captured."""
    tallies = [
        dict(value)
        for outcome in ("passed", "failed")
        for report in terminalreporter.getreports(outcome)
        for name, value in getattr(report, "user_properties", ())
        if name == "fuzzing"
    ]
    if tallies:
        seeds = {tally.pop("seed") for tally in tallies}
        total = sum(map(Counter, tallies), Counter())
        counts = ", ".join(f"{total[outcome]} {outcome}" for outcome in ("refused", "read", "failed"))
        terminalreporter.write_line(f"fuzzing: seed {min(seeds)}, {total.total()} damaged cases: {counts}")
