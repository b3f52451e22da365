"""The profiler shows where a step's time goes, reads traces, and leaves the run unchanged."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bbu.cli import main
from bbu.errors import NotFiniteError, UserError
from bbu.monitoring.profiling import labelled_parts, profile_step, report
from bbu.monitoring.trace import (
    BETWEEN,
    Event,
    Gap,
    Timeline,
    read_events,
    step_gaps,
    step_operations,
    step_parts,
)
from bbu.stages.run_folder import MARKER
from tests.tiny import DEFAULT, FAMILIES, build_tiny, mixed_samples, pack, tiny_config, tiny_processor, tiny_trainer

MAIN, AUTOGRAD, STREAM, COPIES = 1, 2, 7, 8


def event(
    category: str, name: str, start: float, length: float, thread: int = MAIN, launch: int | None = None
) -> dict[str, Any]:
    args = {} if launch is None else {"correlation": launch}
    found = {"ph": "X", "cat": category, "name": name, "ts": start, "dur": length, "pid": 1, "tid": thread}
    return {**found, "args": args}


def label(name: str, start: float, length: float, thread: int = MAIN) -> dict[str, Any]:
    return event("user_annotation", name, start, length, thread)


def hand_made() -> dict[str, Any]:
    """A step of 1000 µs: data, a forward pass that matches on the host, a backward pass in a thread of its own."""
    return {
        "traceEvents": [
            {"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "python"}},
            label("ProfilerStep#3", 5000, 1000),
            label("bbu/data", 5000, 200),
            label("bbu/forward", 5200, 400),
            label("bbu/losses", 5380, 140),
            label("bbu/matching", 5400, 100),
            label("bbu/backward", 5600, 300),
            label("bbu/tower", 5610, 50, AUTOGRAD),  # computed again for the backward pass
            event("cpu_op", "aten::mm", 5210, 100),
            event("cuda_runtime", "cudaLaunchKernel", 5220, 10, launch=1),
            event("cpu_op", "aten::to", 5402, 92),
            event("cpu_op", "aten::copy_", 5405, 85),
            event("cuda_runtime", "cudaStreamSynchronize", 5410, 75),
            event("cpu_op", "aten::mm", 5615, 30, AUTOGRAD),
            event("cuda_runtime", "cudaLaunchKernel", 5620, 10, AUTOGRAD, launch=2),
            event("kernel", "gemm", 5250, 150, STREAM, launch=1),
            event("kernel", "fill", 5300, 20, COPIES),  # at the same time as another
            event("gpu_memcpy", "Memcpy DtoH", 5405, 5, STREAM),
            event("kernel", "gemm", 5640, 200, STREAM, launch=2),
            event("kernel", "gemm", 5843, 107, STREAM),
        ]
    }


# ---------------------------------------------------------------- gaps


def test_a_gap_says_when_how_long_and_what_the_cpu_did() -> None:
    assert step_gaps(hand_made()) == [
        Gap(0, 250, f"data: {BETWEEN}"),
        Gap(400, 240, "matching: cudaStreamSynchronize"),
        Gap(950, 50, BETWEEN),
    ]


def test_short_gaps_are_left_out_unless_asked_for() -> None:
    lengths = [gap.length_us for gap in step_gaps(hand_made(), shortest_us=0)]
    assert lengths == [250, 240, 3, 50]


def test_a_step_lasts_until_its_last_kernel() -> None:
    trace = hand_made()
    trace["traceEvents"].append(event("kernel", "late", 6100, 50, STREAM))
    assert [(gap.start_us, gap.length_us) for gap in step_gaps(trace)][-1] == (950, 150)


def test_without_a_step_mark_the_whole_trace_counts() -> None:
    events = [event("cpu_op", "aten::mm", 90, 5), event("kernel", "gemm", 200, 10, STREAM)]
    assert step_gaps({"traceEvents": events}) == [Gap(0, 110, BETWEEN)]


def test_a_trace_of_a_cpu_has_no_gaps() -> None:
    trace = {"traceEvents": [item for item in hand_made()["traceEvents"] if item.get("cat") != "kernel"]}
    assert step_gaps(trace) == []
    assert "GPU" not in report(trace)


def test_the_tables_of_a_gpu_tell_its_time_and_its_gaps() -> None:
    lines = report(hand_made()).splitlines()
    assert lines[0].split() == ["part", "of", "the", "step", "ms", "share", "GPU", "ms", "share"]
    assert "GPU idle 0.54 ms of the step (54.0%) in 3 gaps" in lines
    longest = lines[-3:]
    assert [line.split()[-2:] for line in longest] == [["0.00", "0.25"], ["0.40", "0.24"], ["0.95", "0.05"]]


def test_a_trace_is_read_from_a_file_packed_or_not(tmp_path: Path) -> None:
    text = json.dumps(hand_made())
    plain, packed = tmp_path / "trace.json", tmp_path / "trace.json.gz"
    plain.write_text(text, encoding="utf-8")
    packed.write_bytes(gzip.compress(text.encode()))
    assert step_gaps(plain) == step_gaps(packed) == step_gaps(hand_made())


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("none.json", None, "cannot be read as a trace"),
        ("cut.json", b'{"traceEvents": [', "cannot be read as a trace"),
        ("cut.json.gz", gzip.compress(b"{}", mtime=0)[:12], "cannot be read as a trace"),
        ("rows.json", b"[1, 2]", "is not a chrome trace"),
        ("other.json", b'{"events": []}', "is not a chrome trace"),
        ("text.json", b'{"traceEvents": ["kernel"]}', "an event is damaged"),
        ("times.json", b'{"traceEvents": [{"ph": "X", "name": "mm"}]}', "an event is damaged"),
    ],
)
def test_an_invalid_trace_is_an_error_that_names_the_file(
    name: str, content: bytes | None, why: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"{re.escape(str(path))}: {why}"):
        step_gaps(path)


spans = st.tuples(st.integers(0, 60), st.integers(0, 20))


@given(st.lists(spans, min_size=1, max_size=12))
def test_gaps_and_kernels_fill_the_step_and_never_overlap(kernels: list[tuple[int, int]]) -> None:
    mark = label("ProfilerStep#1", 0, 100)
    trace = {"traceEvents": [mark, *(event("kernel", "k", start, size, n) for n, (start, size) in enumerate(kernels))]}
    busy = {time for start, size in kernels for time in range(start, start + size)}
    idle = [time for gap in step_gaps(trace, shortest_us=0) for time in range(*edges(gap))]
    assert sorted([*idle, *busy]) == list(range(100))


def edges(gap: Gap) -> tuple[int, int]:
    return int(gap.start_us), int(gap.start_us + gap.length_us)


# ---------------------------------------------------------------- parts and operations


def test_parts_nest_and_count_the_kernels_launched_in_them_by_any_thread() -> None:
    parts = {path: (took.cpu_us, took.gpu_us, took.calls) for path, took in step_parts(hand_made()).items()}
    assert parts == {
        "step": (1000, 477, 1),
        "step/data": (200, 0, 1),
        "step/forward": (400, 150, 1),
        "step/forward/losses": (140, 0, 1),
        "step/forward/losses/matching": (100, 0, 1),
        "step/forward/losses/rest": (40, 0, 1),
        "step/forward/rest": (260, 150, 1),
        "step/backward": (300, 200, 1),
        "step/backward/tower": (50, 200, 1),
        "step/backward/rest": (250, 0, 1),
        "step/rest": (100, 127, 1),  # kernels whose launch is not in the trace
    }
    assert list(parts)[1:3] == ["step/data", "step/forward"], "in order of time"


def test_a_trace_without_a_step_has_no_parts() -> None:
    with pytest.raises(UserError, match="has no step"):
        step_parts({"traceEvents": [label("bbu/forward", 0, 5)]})


def test_operations_have_self_times_and_the_most_expensive_is_first() -> None:
    found = {name: (took.cpu_us, took.gpu_us, took.calls) for name, took in step_operations(hand_made()).items()}
    assert found == {"aten::mm": (130, 350, 2), "aten::copy_": (85, 0, 1), "aten::to": (7, 0, 1)} | {
        "gemm": (0, 107, 0),
        "fill": (0, 20, 0),
    }
    assert list(found) == ["aten::mm", "gemm", "fill", "aten::copy_", "aten::to"]


def test_operations_of_a_real_trace_match_torchs_own_table(tmp_path: Path) -> None:
    with torch.profiler.profile() as recorded:
        weight = torch.rand(64, 64, requires_grad=True)
        for _ in range(20):
            (torch.rand(64, 64) @ weight).softmax(-1).sum().backward()
    recorded.export_chrome_trace(str(tmp_path / "trace.json"))
    ours = step_operations(tmp_path / "trace.json")
    theirs = {each.key: each for each in recorded.key_averages()}
    assert {"aten::mm", "aten::_softmax", "aten::rand"} <= set(ours)
    for name, took in ours.items():
        assert took.calls == theirs[name].count
        assert took.cpu_us == pytest.approx(theirs[name].self_cpu_time_total, rel=0.01, abs=took.calls)


nested = st.recursive(
    st.just([]), lambda inner: st.lists(st.tuples(st.integers(0, 3), inner, st.integers(0, 3)), max_size=3)
)


@given(nested)
def test_a_timeline_gives_the_innermost_event(tree: Any) -> None:
    events: list[Event] = []

    def place(children: Any, at: int) -> int:
        for before, inside, after in children:
            start, number = at, len(events)
            events.append(Event("", 0, 0))
            at = place(inside, start + before) + after
            events[number] = Event(str(number), start, at)
        return at

    length = place(tree, 0)
    timeline = Timeline(events)
    for moment in range(length):
        around = [each for each in events if each.start <= moment < each.stop]
        assert timeline.at(moment + 0.5) == (around[-1].name if around else None)  # children come after their parents
    pieces = [moment for piece in timeline.pieces(1, length) for moment in range(int(piece.start), int(piece.stop))]
    assert pieces == [moment for moment in range(1, length) if timeline.at(moment + 0.5) is not None]


# ---------------------------------------------------------------- labels


PARTS = ("tower", "language model", "memory", "head", "losses/matching", "losses", "captions")


@pytest.mark.parametrize("family", FAMILIES)
def test_labels_name_the_parts_change_no_bit_and_are_taken_off_again(family: str, tmp_path: Path) -> None:
    config, processor = tiny_config(model={"family": family}), tiny_processor(family)
    model = build_tiny(config)
    trainer = tiny_trainer(config, tmp_path, mixed_samples(processor), processor, model)
    batch = pack(model, mixed_samples(processor))
    before = [dict(vars(module)) for module in (trainer, trainer.accelerator, *trainer.unwrapped.modules())]
    plain = trainer.compute_loss(trainer.model, batch)
    with labelled_parts(trainer), torch.profiler.profile() as recorded:
        labelled = trainer.compute_loss(trainer.model, batch)
    assert torch.equal(plain, labelled)
    after = [vars(module) for module in (trainer, trainer.accelerator, *trainer.unwrapped.modules())]
    assert [set(each) for each in before] == [set(each) for each in after]
    assert trainer.compute_loss.__self__ is trainer, "the method, not what stood before it"
    recorded.export_chrome_trace(str(tmp_path / "trace.json"))
    names = {each.name for each in read_events(tmp_path / "trace.json")["user_annotation"]}
    assert {f"bbu/{part.rpartition('/')[2]}" for part in PARTS} <= names


def test_without_detection_its_parts_have_no_label(tmp_path: Path) -> None:
    config, processor = tiny_config(model={"detection": None}), tiny_processor(DEFAULT, detection=False)
    model = build_tiny(config)
    trainer = tiny_trainer(config, tmp_path, mixed_samples(processor), processor, model)
    with labelled_parts(trainer), torch.profiler.profile() as recorded:
        trainer.compute_loss(trainer.model, pack(model, mixed_samples(processor)))
    recorded.export_chrome_trace(str(tmp_path / "trace.json"))
    names = {each.name for each in read_events(tmp_path / "trace.json")["user_annotation"]}
    assert {"bbu/tower", "bbu/language model", "bbu/losses"} <= names
    assert not {"bbu/memory", "bbu/head", "bbu/matching", "bbu/captions"} & names


# ---------------------------------------------------------------- the command


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("[!.]*"))  # a run's lock says who has it now
        if path.is_file()
    }


TINY = (
    "data.source.photos={train: 6, val: 1, test: 1}", "data.min_pixels=12544", "data.max_pixels=25088",
    "model.detection.width=32", "model.detection.heads=4", "model.detection.layers=2", "model.detection.queries=20",
    "model.scratch.vision_width=32", "model.scratch.vision_heads=2", "model.scratch.vision_depth=2",
    "model.scratch.vision_full_attention=[1]", "model.scratch.text_width=64",
    "training.batch_size=2", "training.precision=fp32", "training.threads=1",
)  # fmt: skip


def test_profile_prints_where_a_step_goes_and_touches_nothing_of_the_run(
    tmp_path: Path, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo, output = str(project / "configs" / "demo.yaml"), f"output_dir={tmp_path / 'run'}"
    assert main(["prepare", demo, output, *TINY]) == 0
    kept = tmp_path / "run" / "checkpoint-350" / "trainer_state.json"
    kept.parent.mkdir()
    kept.write_text("{}", encoding="utf-8")
    for name in ("train_log.jsonl", "unreadable_photos.jsonl"):
        (tmp_path / "run" / name).write_text('{"step": 350}\n', encoding="utf-8")
    before = digests(tmp_path / "run")
    capsys.readouterr()
    assert main(["profile", demo, output, *TINY, "--warm-up", "1"]) == 0
    after = digests(tmp_path / "run")
    assert {name for name in after if name not in before} == {"profile/trace.json", "profile/profile.txt"}
    assert {name: after.get(name) for name in before} == before
    printed = capsys.readouterr()
    assert (tmp_path / "run" / "profile" / "profile.txt").read_text(encoding="utf-8") in printed.out + "\n"
    parts = step_parts(tmp_path / "run" / "profile" / "trace.json")
    ways = [f"step/{part}" for part in ("data", "forward", "backward", "optimizer")]
    for path in [*ways, *(f"step/forward/{part}" for part in PARTS)]:
        assert parts[path].cpu_us > 0, path
        assert re.search(rf"^ +{path.rpartition('/')[2]} ", printed.out, re.MULTILINE)
    assert sum(parts[path].cpu_us for path in ways) > 0.8 * parts["step"].cpu_us
    assert "10 dearest operations" in printed.out and "aten::" in printed.out


def test_an_interrupted_step_leaves_no_trace(tmp_path: Path) -> None:
    config, processor = tiny_config(training={"batch_size": 1}), tiny_processor(DEFAULT)
    model = build_tiny(config)
    trainer = tiny_trainer(config, tmp_path, mixed_samples(processor)[:4], processor, model)
    with torch.no_grad():
        model.detection_head.box_heads[-1].norm.weight.fill_(float("nan"))
    with pytest.raises(NotFiniteError, match="the weights are not finite"):
        profile_step(trainer, tmp_path / "profile", warm_up=1)
    assert list(tmp_path.iterdir()) == []
    assert "forward" not in vars(model.detection_head)


def test_a_run_with_too_few_steps_is_an_error(tmp_path: Path) -> None:
    config, processor = tiny_config(training={"max_steps": 3}), tiny_processor(DEFAULT)
    trainer = tiny_trainer(config, tmp_path, mixed_samples(processor), processor)
    with pytest.raises(UserError, match=r"training\.max_steps: 3 steps are too few to profile one after 3"):
        profile_step(trainer, tmp_path, warm_up=3)


def test_a_run_of_other_data_and_several_processes_are_refused(
    tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    demo = str(project / "configs" / "demo.yaml")
    (tmp_path / MARKER).write_text("{}", encoding="utf-8")  # the folder is a run's
    (tmp_path / "config.yaml").write_text("seed: 1\ndata: {source: {format: coco}}\n", encoding="utf-8")
    assert main(["profile", demo, f"output_dir={tmp_path}"]) == 2
    assert "the run in this folder has other data" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["profile", demo]) == 2
    assert "start it without torchrun" in capsys.readouterr().err
