"""The command as a person runs it: a real process, a real port."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bbu.cli import main
from bbu.errors import UserError
from bbu.serve.server import address, listen, warn_if_open
from tests.serve.conftest import photo_bytes

PROJECT = Path(__file__).resolve().parents[2]
Start = Callable[..., tuple["subprocess.Popen[str]", str]]


@pytest.fixture
def start(model_folder: Path) -> Iterator[Start]:
    """start(*options): the process and the host:port that it printed."""
    started: list[subprocess.Popen[str]] = []

    def run(*options: str) -> tuple[subprocess.Popen[str], str]:
        paths = [str(PROJECT / "src"), str(PROJECT), os.environ.get("PYTHONPATH", "")]
        process = subprocess.Popen(
            [sys.executable, "-m", "bbu.cli", "serve", str(model_folder), "--port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=PROJECT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        started.append(process)
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line.startswith("tiny/model at http://"), process.stderr.read()
        return process, line.split("http://")[1].split()[0]

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def half_sent() -> Iterator[list[socket.socket]]:
    sockets: list[socket.socket] = []
    yield sockets
    for item in sockets:
        item.close()


def connect(place: str) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(place, timeout=30)


def test_it_answers_refuses_a_flood_and_lets_a_request_finish_when_told_to_stop(
    start: Start, half_sent: list[socket.socket]
) -> None:
    process, place = start()
    assert place.startswith("127.0.0.1:")
    for _ in range(130):
        half_sent.append(socket.create_connection(("127.0.0.1", int(place.split(":")[1])), timeout=30))
        half_sent[-1].sendall(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n")
    with closing(connect(place)) as connection:
        connection.request("GET", "/health")
        assert json.load(connection.getresponse())["status"] == "ok"
    with closing(connect(place)) as connection:
        connection.request("POST", "/predict", body=photo_bytes())
        assert len(json.load(connection.getresponse())["predictions"]) > 0
    flood = (bytes(1_000_000) for _ in range(200))
    with closing(connect(place)) as connection:
        connection.request(
            "POST", "/predict", body=flood, encode_chunked=True, headers={"Transfer-Encoding": "chunked"}
        )
        response = connection.getresponse()
        assert response.status == 413 and "20 MB" in json.load(response)["error"]
    peak = [line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    assert int(peak[0].split()[1]) / 1e6 < 2, "2 GB for a tiny model: the flood was kept"
    data = photo_bytes(1, (168, 140))
    with closing(connect(place)) as connection:
        connection.putrequest("POST", "/predict")
        connection.putheader("Content-Length", str(len(data)))
        connection.endheaders()
        connection.send(data[:100])
        time.sleep(0.3)  # the server has begun to read
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        connection.send(data[100:])
        assert connection.getresponse().status == 200
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err.strip(), out) == (130, "bbu: stopped", "")


def test_a_host_that_others_reach_is_remarked(capsys: pytest.CaptureFixture[str]) -> None:
    for host in ("127.0.0.1", "127.0.0.9", "::1", "localhost"):
        warn_if_open(host)
    assert capsys.readouterr().err == ""
    for host in ("0.0.0.0", "::", "192.168.1.7", "inspector.local"):
        warn_if_open(host)
        assert f"anyone who can reach {host} can use this model; there is no password" in capsys.readouterr().err


def test_a_port_in_use_is_one_line_before_the_model_is_loaded(capsys: pytest.CaptureFixture[str]) -> None:
    with closing(listen("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert address(taken) == f"http://127.0.0.1:{port}"
        assert main(["serve", "no/such/model", "--port", str(port)]) == 2
    error = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1 port {port}: Address already in use" in error and error.count("\n") == 1


def test_a_model_that_is_not_there_frees_the_port_again(capsys: pytest.CaptureFixture[str]) -> None:
    with closing(listen("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert main(["serve", "no/such/model", "--port", str(port)]) == 2
    assert "no/such/model" in capsys.readouterr().err
    listen("127.0.0.1", port).close()


@pytest.mark.parametrize(("host", "port"), [("no.such.host.invalid", 0), ("192.0.2.1", 0), ("127.0.0.1", 70_000)])
def test_a_place_where_nothing_can_listen_is_named(host: str, port: int) -> None:
    with pytest.raises(UserError, match=r"--(host|port)"):
        listen(host, port)


def test_an_ipv6_address_is_written_in_brackets() -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    try:
        with closing(listen("::1", 0)) as listener:
            assert address(listener).startswith("http://[::1]:")
    except UserError:
        pytest.skip("this machine has no IPv6 loopback")
