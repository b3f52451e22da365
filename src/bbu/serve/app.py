"""The server's routes: a page and its files, /health and /predict."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from bbu.drawing.fonts import cjk_font
from bbu.drawing.pages import SHARED
from bbu.drawing.palette import PALETTE
from bbu.errors import UserError
from bbu.records import PredictionRow
from bbu.serve.guard import Guard
from bbu.serve.limits import RETRY, Limits, RequestError
from bbu.serve.queue import PredictionQueue
from bbu.serve.uploads import Question, open_photos, read_question

if TYPE_CHECKING:
    from bbu.inference import Inference

PAGE = Path(__file__).with_name("page")
# Every file that is served, by path; a request cannot name another one.
FILES = {
    "/": PAGE / "page.html",
    **{f"/{name}": PAGE / name for name in ("page.css", "boxes.js", "correct.js", "examples.js", "main.js")},
    **{f"/{name}": SHARED / name for name in ("base.css", "elements.js")},
}
PALETTE_SCRIPT = f"const PALETTE = {['#{:02x}{:02x}{:02x}'.format(*colour) for colour in PALETTE]};"
log = logging.getLogger("bbu.serve")


def create_app(inference: Inference, model: str, *, host: str = "127.0.0.1", limits: Limits | None = None) -> Starlette:
    """The server's application.

    Args:
        model: the model's name on the page and in /health.
        host: the host name that the server listens on.

    Raises:
        UserError: the model was trained without a detection head.
    """
    inference.check_detects()
    limits = limits or Limits()
    queue = PredictionQueue(limits)
    facts = {"model": model, "device": device_name(inference)}

    @contextlib.asynccontextmanager
    async def closing(app: Starlette) -> AsyncIterator[None]:
        yield
        queue.close()

    async def health(request: Request) -> Response:
        return JSONResponse({"status": "ok", **facts, "queue": queue.length})

    async def predict(request: Request) -> Response:
        async def receive() -> Callable[[], tuple[PredictionRow, float]]:
            return partial(answer, inference, await read_question(request, limits), limits)

        row, seconds = await queue.answer(receive)
        return JSONResponse(row.to_json(), headers={"Server-Timing": f"predict;dur={seconds * 1000:.0f}"})

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/predict", predict, methods=["POST"]),
            *(Route(path, partial(_file, file)) for path, file in FILES.items()),
            Route("/glyphs", _glyphs),
            Route("/palette.js", lambda request: Response(PALETTE_SCRIPT, media_type="text/javascript")),
        ],
        middleware=[Middleware(Guard, name=host)],
        exception_handlers={UserError: _refused, HTTPException: _no_route, Exception: _failed},
        lifespan=closing,
    )


def answer(inference: Inference, question: Question, limits: Limits) -> tuple[PredictionRow, float]:
    """Predict the photo: the row as ``bbu predict`` writes it, and the seconds it took.

    Raises:
        UserError: something is wrong with the photos or examples.
        RequestError: the model does not fit into memory with them.
    """
    start = time.perf_counter()
    photo, teachers = open_photos(question, limits)
    try:
        found = inference.predictor.predict_photos([photo], teachers)[0]
    except (MemoryError, torch.OutOfMemoryError):
        raise RequestError(503, "not enough memory for these photos; show fewer examples") from None
    kept = [item for item in found if item.score >= question.threshold][: question.max_detections]
    row = PredictionRow((photo.name,), *photo.image.size, tuple(kept))
    return row, time.perf_counter() - start


def device_name(inference: Inference) -> str:
    """The model's device, in words."""
    device = next(inference.model.parameters()).device
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


async def _file(path: Path, request: Request) -> Response:
    return FileResponse(path)


async def _glyphs(request: Request) -> Response:
    """The typeface for machines without Chinese fonts; a browser fetches it only then, and once."""
    return FileResponse(str(cjk_font(16).path), headers={"Cache-Control": "private, max-age=86400"})


async def _refused(request: Request, error: Exception) -> Response:
    if isinstance(error, RequestError):
        retry = {"Retry-After": RETRY} if error.status == 503 else {}
        return JSONResponse({"error": str(error)}, error.status, {**retry, **error.headers})
    return JSONResponse({"error": str(error)}, 422)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": str(error.detail)}, error.status_code, dict(error.headers or {}))


async def _failed(request: Request, error: Exception) -> Response:
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return JSONResponse({"error": "the server failed on this request; its log says why"}, 500)
