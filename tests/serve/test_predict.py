"""What /predict and /health answer: the rows that ``bbu predict`` writes, whoever else is asking."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bbu.inference import Inference
from bbu.records import ObjectRow, PredictedObject, PredictionRow, Row, parse_prediction_row
from tests.serve.conftest import MakeClient, photo_bytes

if TYPE_CHECKING:
    from starlette.testclient import TestClient

SIZES = [(112, 84), (84, 140), (168, 112), (56, 56)]


def expected(inference: Inference, folder: Path, name: str, data: bytes, teachers: tuple[Row, ...] = ()) -> Any:
    """The same photo through the files' way."""
    (folder / name).write_bytes(data)
    return next(inference.predict_rows([name], str(folder), teachers)).to_json()


def teacher(number: int) -> tuple[Row, bytes]:
    size = SIZES[number % len(SIZES)]
    objects = (
        ObjectRow("标签/完整", "bbox_2d", (5.0, 6.0, 40.0, 50.0)),
        ObjectRow("line", "line", (1.0, 2.0, 50.0, 40.0)),
    )
    return Row((f"teacher{number}.png",), objects, *size), photo_bytes(50 + number, size)


def form(photo: bytes, teachers: list[tuple[Row, bytes]], name: str = "a.png") -> dict[str, Any]:
    """Keyword arguments of ``client.post``."""
    files = [("photo", (name, photo)), *(("teacher_photo", (row.images[0], data)) for row, data in teachers)]
    return {"files": files, "data": {"teachers": json.dumps([row.to_json() for row, _ in teachers])}}


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_a_photo_gives_the_row_that_its_file_gives(
    client: TestClient, inference: Inference, tmp_path: Path, kind: str
) -> None:
    data = photo_bytes(1, (112, 84), kind)
    response = client.post("/predict", files={"photo": ("folder/螺丝.png", data, "text/plain")})
    assert response.status_code == 200, response.text
    assert response.json() == expected(inference, tmp_path, "螺丝.png", data)
    parsed = parse_prediction_row(response.json(), "answer")
    assert isinstance(parsed, PredictionRow) and len(parsed.predictions) > 0
    assert float(response.headers["server-timing"].partition("dur=")[2]) >= 0


def test_a_photo_can_be_the_whole_body(client: TestClient, inference: Inference, tmp_path: Path) -> None:
    data = photo_bytes(2)
    wanted = expected(inference, tmp_path, "photo", data)
    for content_type in ("image/png", "application/x-www-form-urlencoded", "application/json"):
        assert client.post("/predict", content=data, headers={"content-type": content_type}).json() == wanted


def test_a_turned_photo_is_answered_as_displayed(client: TestClient) -> None:
    from PIL import Image

    exif = Image.Exif()
    exif[274] = 6
    row = client.post("/predict", content=photo_bytes(3, (112, 84), "JPEG", exif=exif)).json()
    assert (row["width"], row["height"]) == (84, 112)


def test_threshold_and_max_detections_keep_the_head_of_the_list(
    client: TestClient, inference: Inference, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [PredictedObject((1.0, 2.0, 3.0, 4.0), f"object {n}", 0.9 - 0.2 * n, 0.95) for n in range(4)]
    monkeypatch.setattr(inference.predictor, "predict_photos", lambda *arguments: [found])

    def kept(query: str) -> list[str]:
        answer = client.post(f"/predict?{query}", content=photo_bytes(4))
        return [item["desc"] for item in answer.json()["predictions"]]

    names = [item.desc for item in found]  # scores 0.9, 0.7, 0.5, 0.3
    assert kept("") == kept("threshold=0") == kept("max_detections=10000") == names
    assert kept("max_detections=3") == kept("threshold=0.4") == names[:3]
    assert kept("threshold=0.4&max_detections=1") == names[:1]
    assert kept("threshold=0.9") == names[:1], "a score at the threshold is kept"
    assert kept("threshold=1") == []


@pytest.mark.parametrize("lines", [False, True], ids=["list", "JSON lines"])
def test_examples_are_shown_to_the_model(client: TestClient, inference: Inference, tmp_path: Path, lines: bool) -> None:
    photo, teachers = photo_bytes(5), [teacher(0), teacher(1)]
    for row, data in teachers:
        (tmp_path / row.images[0]).write_bytes(data)
    request = form(photo, teachers[::-1])  # photos in another order than rows are matched by name
    rows = [row.to_json() for row, _ in teachers]
    request["data"]["teachers"] = "\n".join(map(json.dumps, rows)) if lines else json.dumps(rows)
    answer = client.post("/predict", **request).json()
    assert answer == expected(inference, tmp_path, "a.png", photo, tuple(row for row, _ in teachers))
    assert answer["predictions"] != expected(inference, tmp_path, "a.png", photo)["predictions"]


def test_answers_do_not_depend_on_who_else_asks(make_client: MakeClient) -> None:
    client = make_client(queue=12)
    requests = [form(photo_bytes(n, SIZES[n % 4]), [teacher(n)] if n % 3 == 0 else []) for n in range(12)]
    for request in requests:
        if len(request["files"]) == 1:
            del request["data"]
    alone = [client.post("/predict", **request).json() for request in requests]
    with ThreadPoolExecutor(12) as crowd:
        together = list(crowd.map(lambda request: client.post("/predict", **request).json(), requests))
    assert all("error" not in row for row in alone)
    assert together == alone


def test_health_says_what_runs_where_and_how_many_wait(
    make_client: MakeClient, inference: Inference, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client(queue=2)
    assert client.get("/health").json() == {"status": "ok", "model": "tiny/model", "device": "cpu", "queue": 0}
    begun, go_on = threading.Event(), threading.Event()

    def slow(*arguments: Any) -> list[list[Any]]:
        begun.set()
        assert go_on.wait(20)
        return [[]]

    monkeypatch.setattr(inference.predictor, "predict_photos", slow)
    with ThreadPoolExecutor(2) as crowd:
        first = crowd.submit(client.post, "/predict", content=photo_bytes())
        assert begun.wait(20)
        second = crowd.submit(client.post, "/predict", content=photo_bytes())
        while client.get("/health").json()["queue"] < 2:
            pass
        refused = client.post("/predict", content=photo_bytes())
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert "2 requests are already waiting" in refused.json()["error"]
        go_on.set()
        assert (first.result().status_code, second.result().status_code) == (200, 200)
    assert client.get("/health").json()["queue"] == 0


def test_a_prediction_that_takes_too_long_is_given_up_and_its_place_kept_until_it_ends(
    make_client: MakeClient, inference: Inference, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client(answer_seconds=0.2)
    go_on = threading.Event()

    def slow(*arguments: Any) -> list[list[Any]]:
        assert go_on.wait(20)
        return [[]]

    monkeypatch.setattr(inference.predictor, "predict_photos", slow)
    late = client.post("/predict", content=photo_bytes())
    assert late.status_code == 503 and "0.2 seconds" in late.json()["error"] and "retry-after" in late.headers
    assert client.get("/health").json()["queue"] == 1
    go_on.set()
    while client.get("/health").json()["queue"]:
        pass
    monkeypatch.undo()
    assert client.post("/predict", content=photo_bytes()).status_code == 200


def test_a_failure_of_the_model_shows_no_trace_and_costs_one_request(
    client: TestClient, inference: Inference, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch

    for error, status in ((RuntimeError("secret /path"), 500), (torch.OutOfMemoryError("CUDA"), 503)):

        def broken(*arguments: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(inference.predictor, "predict_photos", broken)
        response = client.post("/predict", content=photo_bytes())
        assert response.status_code == status
        assert set(response.json()) == {"error"} and "secret" not in response.text
    assert "secret /path" in caplog.text, "the person who runs the server must see why"
    monkeypatch.undo()
    assert client.post("/predict", content=photo_bytes()).status_code == 200
