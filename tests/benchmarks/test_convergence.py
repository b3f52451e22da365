"""The convergence benchmark trains all of its detectors and ends in one JSON object; its clocks and rates are right."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from tests import warm

PROJECT = Path(__file__).resolve().parents[2]
SCRIPT = PROJECT / "benchmarks" / "convergence.py"
PEERS = ("dfine", "deimv2", "rfdetr", "rtdetrv2")
ARMS = ("ours", "learned", *PEERS)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return warm.run([sys.executable, str(SCRIPT), *arguments], env=environment_of(**environment))


def environment_of(**more: str) -> dict[str, str]:
    path = os.pathsep.join([str(PROJECT / "src"), str(PROJECT)])
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", **more}


def test_every_detector_trains_and_is_scored_drawn_and_written_down(tmp_path: Path) -> None:
    kept = ["--curves", str(tmp_path / "curves.jsonl"), "--plot", str(tmp_path / "curves.png")]
    first = run("--quick", "--threads", "1", "--arms", ARMS[0], *kept)
    assert first.returncode == 0, first.stderr
    done = run("--quick", "--threads", "1", "--arms", *ARMS[1:], *kept)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    scores = {f"{metric}_{arm}_bccd" for metric in ("ap50", "ap") for arm in (*ARMS, "best_peer")}
    assert set(figures) == {"benchmark", "seconds", "clock", *scores}
    assert figures["ap50_best_peer_bccd"] == max(figures[f"ap50_{peer}_bccd"] for peer in PEERS)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_without_the_photos_it_says_what_is_missing(tmp_path: Path) -> None:
    done = run("--seconds", "1", BBU_SHARED=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ") and "bccd_voc does not exist" in done.stderr


def test_the_rate_rises_in_a_line_and_falls_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from convergence_arms import rate_at

    rates = [rate_at(share / 100, 0.1) for share in range(101)]
    assert rates[:11] == pytest.approx([share / 10 for share in range(11)])
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0) and rate_at(1.2, 0.1) == pytest.approx(0)


def test_a_closing_phase_is_part_of_the_training_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import convergence

    now, rates = [0.0], list[float]()

    class Timed:
        closing_share = 0.2

        def learn(self, rate: float) -> None:
            rates.append(rate)
            now[0] += 1

        def close(self) -> None:
            now[0] += 19

    monkeypatch.setattr(convergence, "average_precisions", lambda arm, rows: (now[0], 0.0))
    points = convergence.train(Timed(), 100, 4, 0.1, lambda: now[0], [])
    assert [seconds for seconds, _, _ in points] == [25, 50, 75, 99]
    assert len(rates) == 80 and rates[0] == 0 and 0 < rates[-1] < 0.01  # the rate falls to zero before the phase


def test_every_setting_of_every_peer_is_scored_and_the_best_is_named(tmp_path: Path) -> None:
    lines = tmp_path / "tuning.jsonl"
    command = [sys.executable, str(SCRIPT.with_name("convergence_tuning.py")), str(lines), "--quick", "--jobs", "2"]
    done = subprocess.run(command, env=environment_of(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in lines.read_text().splitlines()]
    assert sorted(result["arm"] for result in results) == sorted(PEERS)
    best = json.loads(done.stdout.splitlines()[-1])
    assert {key for key in best if key.endswith("_bccd")} == {f"{peer}_bccd" for peer in PEERS}


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import convergence_peers

    return convergence_peers


@pytest.mark.parametrize("name", PEERS)
def test_a_fresh_peer_can_learn(peers: ModuleType, name: str) -> None:
    """What transformers leaves to a checkpoint is drawn: every weight moves, and none hides the pixels."""
    arm = object.__new__(peers.PEERS[name])
    arm.photos = SimpleNamespace(side=64)
    torch.manual_seed(17)
    model = arm.build(3, 5)
    assert 7.2e6 < sum(p.numel() for p in model.parameters()) < 7.8e6
    norms = [module for module in model.modules() if "BatchNorm" in type(module).__name__]
    assert all(isinstance(norm, nn.BatchNorm2d) and bool((norm.weight == 1).all()) for norm in norms)
    labels = [
        {"class_labels": torch.tensor([0, 2]), "boxes": torch.tensor([[0.4, 0.4, 0.3, 0.3], [0.6, 0.5, 0.2, 0.4]])}
    ]
    output = model(pixel_values=torch.randn(1, 3, 64, 64), labels=labels)
    probabilities = output.logits.sigmoid()
    assert 0.001 < probabilities.mean().item() < 0.1
    output.loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_last_layer_is_not_matched_to_denoising_queries(peers: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Older transformers hands them to the loss with the others."""
    seen = {}

    def loss(logits: Any, labels: Any, device: Any, boxes: Any, **others: Any) -> None:
        seen.update(logits=logits, boxes=boxes)

    logits, boxes = torch.randn(1, 8, 3, dtype=torch.bfloat16), torch.rand(1, 8, 4)
    for old, expected in ((True, 5), (False, 8)):
        monkeypatch.setattr(peers, "MATCHES_DENOISING_QUERIES", old)
        peers.exact_loss(loss)(logits, [], "cpu", boxes, denoising_meta_values={"dn_num_split": [3, 5]})
        assert torch.equal(seen["logits"], logits[:, -expected:].float()) and torch.equal(
            seen["boxes"], boxes[:, -expected:]
        )
