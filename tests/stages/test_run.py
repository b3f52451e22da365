"""A run of one process makes its own process group, beside whatever else runs on the machine."""

from __future__ import annotations

import os
import socket

import pytest

from bbu.stages.run import ready_device
from tests.tiny import tiny_config

NAMES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "DS_ACCELERATOR")


@pytest.fixture
def outside_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that what the test sets is undone
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("outside_torchrun")
def test_two_runs_on_one_machine_do_not_ask_for_the_same_port() -> None:
    config = tiny_config(training={"deepspeed": "configs/zero2.json"})
    ready_device(config)
    with socket.socket() as first:
        first.bind(("127.0.0.1", int(os.environ["MASTER_PORT"])))
        first.listen()
        for name in NAMES:
            os.environ.pop(name, None)
        ready_device(config)
        with socket.socket() as second:
            second.bind(("127.0.0.1", int(os.environ["MASTER_PORT"])))
    assert (os.environ["RANK"], os.environ["WORLD_SIZE"]) == ("0", "1")


@pytest.mark.usefixtures("outside_torchrun")
def test_a_port_that_the_user_chose_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", "12345")
    ready_device(tiny_config(training={"deepspeed": "configs/zero2.json"}))
    assert os.environ["MASTER_PORT"] == "12345"


@pytest.mark.usefixtures("outside_torchrun")
def test_without_deepspeed_there_is_no_group() -> None:
    ready_device(tiny_config())
    assert "RANK" not in os.environ
