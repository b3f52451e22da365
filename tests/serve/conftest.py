"""A tiny real model behind the real application."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from bbu.images import open_image

if TYPE_CHECKING:
    from starlette.testclient import TestClient

    from bbu.inference import Inference

ADDRESS = "http://127.0.0.1:8000"
MakeClient = Callable[..., "TestClient"]


def photo_bytes(seed: int = 0, size: tuple[int, int] = (112, 84), kind: str = "PNG", **options: Any) -> bytes:
    """A noisy photo as a file."""
    from tests.tiny import noise_photo

    stream = io.BytesIO()
    noise_photo(seed, *size).image.save(stream, kind, **options)
    return stream.getvalue()


def picture(data: bytes) -> Image.Image:
    return open_image(data).convert("RGB")


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from bbu.models.checkpoint import save_model
    from tests.tiny import DEFAULT, build_tiny, tiny_config, tiny_processor

    place = tmp_path_factory.mktemp("serve") / "tiny" / "model"
    family = DEFAULT
    save_model(place, build_tiny(tiny_config(model={"family": family})), tiny_processor(family, caption_max_tokens=24))
    return place


@pytest.fixture(scope="session")
def inference(model_folder: Path) -> Inference:
    from bbu.inference import Inference

    return Inference(model_folder, device="cpu", precision="fp32")


@pytest.fixture
def make_client(inference: Inference) -> Iterator[MakeClient]:
    """make_client(**limits): a client of a running application; errors of the server come as answers."""
    from contextlib import ExitStack

    from starlette.testclient import TestClient

    from bbu.serve.app import create_app
    from bbu.serve.limits import Limits

    with ExitStack() as stack:

        def make(*, host: str = "127.0.0.1", **limits: Any) -> TestClient:
            app = create_app(inference, "tiny/model", host=host, limits=Limits(**limits))
            return stack.enter_context(TestClient(app, base_url=ADDRESS, raise_server_exceptions=False))

        yield make


@pytest.fixture
def client(make_client: MakeClient) -> TestClient:
    return make_client()
