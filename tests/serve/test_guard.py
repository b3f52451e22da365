"""Pages of other sites can neither read nor use the server, and its own page loads nothing from elsewhere."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from bbu.serve.app import FILES
from tests.serve.conftest import MakeClient, photo_bytes

if TYPE_CHECKING:
    from starlette.testclient import TestClient


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:8000", "LOCALHOST", "[::1]:8000", "192.168.1.7:8000"])
def test_addresses_and_localhost_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/health", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example:8000", "localhost.evil.example", "[::1", "", "a@b"]
)
def test_a_name_that_was_pointed_here_is_refused(client: TestClient, host: str) -> None:
    for path in ("/", "/health", "/main.js"):
        response = client.get(path, headers={"host": host})
        assert response.status_code == 403 and list(response.json()) == ["error"]


def test_the_name_given_as_host_is_answered(make_client: MakeClient) -> None:
    client = make_client(host="Inspector.local")
    assert client.get("/health", headers={"host": "inspector.local:8000"}).status_code == 200
    assert client.get("/health", headers={"host": "other.local:8000"}).status_code == 403


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:9999", "http://127.0.0.1.evil.example"]
)
def test_a_post_of_another_site_is_refused(client: TestClient, origin: str) -> None:
    response = client.post("/predict", content=photo_bytes(), headers={"origin": origin})
    assert response.status_code == 403
    assert "access-control-allow-origin" not in response.headers


def test_the_page_itself_may_post_and_nobody_is_let_in_by_cors(client: TestClient) -> None:
    response = client.post("/predict", content=photo_bytes(), headers={"origin": "http://127.0.0.1:8000"})
    assert response.status_code == 200
    assert not [name for name in response.headers if name.startswith("access-control")]
    asked_first = client.options("/predict", headers={"access-control-request-method": "POST"})
    assert asked_first.status_code == 405


@pytest.mark.parametrize("path", [*FILES, "/glyphs", "/health", "/nothing"])
def test_every_answer_says_what_a_page_may_load(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "http" not in policy and "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", FILES)
def test_the_page_names_no_address_elsewhere(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 200
    links = re.findall(r"(?:https?:)?//[\w.-]+\.\w+", response.text)
    assert [link for link in links if "www.w3.org" not in link] == [], "w3.org: names of namespaces"
    assert "<script>" not in response.text and " style=" not in response.text and " onclick" not in response.text


@pytest.mark.parametrize(
    "path",
    ["/etc/passwd", "/..%2f..%2fetc/passwd", "/%2e%2e/app.py", "/app.py", "/page/main.js"],
)
def test_no_other_file_can_be_had(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 404 and list(response.json()) == ["error"]
    assert client.get("/predict").status_code == 405
