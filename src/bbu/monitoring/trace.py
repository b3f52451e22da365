"""What a training step's trace says: its parts, its operations, and the gaps in which a GPU had nothing to do.

Reads torch.profiler's chrome trace JSON, so that a saved trace says the same again. All times in microseconds.
"""

from __future__ import annotations

import gzip
import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bbu.errors import UserError

Trace = dict[str, Any] | Path

LABEL = "bbu/"  # starts the names of our labels in a trace
STEP, REST = "step", "rest"
STEP_MARK = "ProfilerStep"  # torch.profiler's own name for a step
KERNELS, PARTS, OPERATIONS = "kernel", "user_annotation", "cpu_op"  # record_function makes user annotations
LAUNCHES = ("cuda_runtime", "cuda_driver")
SHORTEST_GAP_US = 10.0  # between two kernels that follow each other at once lie 1 to 3 µs
BETWEEN = "Python"  # no operation is recorded: the interpreter is on its way to the next one


@dataclass(frozen=True)
class Gap:
    """A stretch of a step in which no kernel ran.

    Args:
        start_us: from the start of the step.
        length_us: how long.
        label: what the CPU did for most of it, as ``part: operation``.
    """

    start_us: float
    length_us: float
    label: str


@dataclass
class Took:
    """What a part or an operation took.

    Args:
        cpu_us: of a part: from its start to its end; of an operation: without the operations inside it.
        gpu_us: of the kernels that were launched meanwhile (of an operation: by itself).
        calls: how often.
    """

    cpu_us: float = 0.0
    gpu_us: float = 0.0
    calls: int = 0


@dataclass(frozen=True)
class Event:
    """Something with a length, on one thread of the CPU or one stream of the GPU.

    Args:
        correlation: shared by a kernel and the call that launched it.
    """

    name: str
    start: float
    stop: float
    thread: tuple[Any, Any] = (0, 0)
    correlation: Any = None


# ---------------------------------------------------------------- reading


def read_events(trace: Trace) -> dict[str, list[Event]]:
    """Category → events with a length.

    Args:
        trace: chrome trace of torch.profiler, or its file (.json or .json.gz).

    Raises:
        UserError: the file is missing or no trace.
    """
    name, content = ("the trace", trace) if isinstance(trace, dict) else (str(trace), _load(Path(trace)))
    if not isinstance(content, dict) or not isinstance(content.get("traceEvents"), list):
        raise UserError(f"{name}: is no chrome trace: traceEvents is missing; write it with export_chrome_trace")
    found: dict[str, list[Event]] = defaultdict(list)
    try:
        for item in content["traceEvents"]:
            if item["ph"] == "X":
                found[str(item.get("cat"))].append(_event(item))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{name}: an event is damaged ({type(error).__name__}: {error}); record it again") from None
    return found


def _event(item: dict[str, Any]) -> Event:
    start, thread = float(item["ts"]), (item.get("pid"), item.get("tid"))
    stop, correlation = start + float(item.get("dur", 0)), item.get("args", {}).get("correlation")
    return Event(str(item["name"]), start, stop, thread, correlation)


def _load(path: Path) -> Any:
    try:
        raw = path.read_bytes()
        return json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)
    except (OSError, EOFError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a trace: {error}") from None


class Timeline:
    """What was being done at a time: the innermost of nested events, thread by thread."""

    def __init__(self, events: Iterable[Event]) -> None:
        threads: dict[tuple[Any, Any], list[Event]] = defaultdict(list)
        for event in events:
            threads[event.thread].append(event)
        self.stretches = {thread: _innermost(of_thread) for thread, of_thread in threads.items()}
        self.starts = {thread: [each.start for each in stretches] for thread, stretches in self.stretches.items()}

    def at(self, time: float, thread: tuple[Any, Any] = (0, 0)) -> str | None:
        """The name of what a thread was doing; None = nothing recorded."""
        place = bisect_right(self.starts.get(thread, []), time) - 1
        if place < 0 or self.stretches[thread][place].stop <= time:
            return None
        return self.stretches[thread][place].name

    def pieces(self, start: float, stop: float) -> Iterator[Event]:
        """What lies within start … stop, over all threads, cut off at both ends."""
        for thread, stretches in self.stretches.items():
            first = max(bisect_right(self.starts[thread], start) - 1, 0)
            for stretch in stretches[first : bisect_right(self.starts[thread], stop)]:
                piece = replace(stretch, start=max(stretch.start, start), stop=min(stretch.stop, stop))
                if piece.stop > piece.start:
                    yield piece


def _innermost(events: Iterable[Event]) -> list[Event]:
    """Nested events of one thread → stretches in order of time that do not overlap, each with the innermost's name."""
    stretches: list[Event] = []
    pending: list[Event] = []  # begun and not ended, the innermost last
    reached = float("-inf")

    def advance(to: float) -> None:
        nonlocal reached
        while pending and reached < to:
            until = min(pending[-1].stop, to)
            if until > reached:
                stretches.append(Event(pending[-1].name, reached, until))
                reached = until
            if pending[-1].stop <= to:
                pending.pop()
        reached = to

    for event in sorted(events, key=lambda event: (event.start, -event.stop)):
        advance(event.start)
        pending.append(event)
    advance(max((event.stop for event in pending), default=reached))
    return stretches


def _is_step(event: Event) -> bool:
    return event.name.startswith(STEP_MARK)


# ---------------------------------------------------------------- gaps


def step_gaps(trace: Trace, *, shortest_us: float = SHORTEST_GAP_US) -> list[Gap]:
    """The stretches of the traced steps in which no kernel ran, in order of time.

    A step goes from its mark in the trace (without one, from the first thing recorded) to the end of the mark or of
    its last kernel, whichever is later. Kernels of all streams count together; copies and fills are no kernels.

    Args:
        trace: chrome trace of torch.profiler, or its file (.json or .json.gz).
        shortest_us: shorter gaps are left out.

    Returns:
        Nothing for a trace without kernels: that of a CPU.

    Raises:
        UserError: the file is missing or no trace.
    """
    events = read_events(trace)
    kernels, operations = events[KERNELS], [event for kind in (OPERATIONS, *LAUNCHES) for event in events[kind]]
    if not kernels:
        return []
    recorded = [event for event in events[PARTS] if _is_step(event)] or [*events[PARTS], *operations, *kernels]
    start = min(event.start for event in recorded)
    stop = max(event.stop for event in (*recorded, *kernels))
    # labels of parts follow one another over threads (a backward pass has its own), so they count as those of one
    parts = Timeline(replace(event, thread=(0, 0)) for event in events[PARTS] if not _is_step(event))
    doing = Timeline(operations)
    return [
        Gap(idle_from - start, idle_to - idle_from, _label(parts, doing, idle_from, idle_to))
        for idle_from, idle_to in _idle(kernels, start, stop)
        if idle_to - idle_from >= shortest_us
    ]


def _idle(busy: Iterable[Event], start: float, stop: float) -> Iterator[tuple[float, float]]:
    """What is left of start … stop without the events, which may overlap."""
    reached = start
    for event in sorted(busy, key=lambda event: event.start):
        if event.start > reached:
            yield reached, event.start
        reached = max(reached, event.stop)
    if stop > reached:
        yield reached, stop


def _label(parts: Timeline, doing: Timeline, start: float, stop: float) -> str:
    """``part: operation``: the part that took most of start … stop, and what took most of that."""
    in_part: dict[str, list[Event]] = defaultdict(list)
    for piece in parts.pieces(start, stop):
        in_part[piece.name].append(piece)
    part = max(in_part, key=lambda name: _length(in_part[name]), default="")
    pieces = in_part[part] or [Event("", start, stop)]
    operation: dict[str, float] = defaultdict(float)
    for each in (inner for piece in pieces for inner in doing.pieces(piece.start, piece.stop)):
        operation[each.name] += each.stop - each.start
    operation[BETWEEN] = _length(pieces) - sum(operation.values())
    longest = max(operation, key=lambda name: operation[name])
    return f"{part.removeprefix(LABEL)}: {longest}" if part else longest


def _length(events: Iterable[Event]) -> float:
    return sum(event.stop - event.start for event in events)


# ---------------------------------------------------------------- parts and operations


def step_parts(trace: Trace) -> dict[str, Took]:
    """What each labelled part of the traced steps took, in order of time: ``step/forward/losses`` and so on.

    A part that others lie in also has a REST, so that what lies in it sums to it. Kernels count for the part in
    which they were launched, by whichever thread; those whose launch was not recorded for the step alone.

    Raises:
        UserError: the file is missing or no trace, or has no step mark.
    """
    events = read_events(trace)
    marks = [replace(event, name=LABEL + STEP, thread=(0, 0)) for event in events[PARTS] if _is_step(event)]
    if not marks:
        raise UserError("the trace has no step: record it with torch.profiler's schedule")
    labels = [replace(event, thread=(0, 0)) for event in events[PARTS] if event.name.startswith(LABEL)]
    labels = _with_paths([*marks, *labels])
    found: dict[str, Took] = {}
    for event in labels:
        took = found.setdefault(event.name, Took())
        took.cpu_us, took.calls = took.cpu_us + event.stop - event.start, took.calls + 1
    timeline = Timeline(labels)
    for launch, kernel in _launched(events):
        names = ((timeline.at(launch.start) if launch else None) or STEP).split("/")
        for depth in range(1, len(names) + 1):
            if (path := "/".join(names[:depth])) in found:
                found[path].gpu_us += kernel.stop - kernel.start
    return _with_rests(found)


def _with_paths(labels: Iterable[Event]) -> list[Event]:
    """Labels in order of time, named by the labels around them too; those outside every step are left out."""
    named = [
        replace(label, name="/".join(each.name.removeprefix(LABEL) for each in (*around, label)))
        for label, around in _with_enclosing(labels)
    ]
    return [label for label in named if label.name.split("/")[0] == STEP]


def _with_enclosing(events: Iterable[Event]) -> Iterator[tuple[Event, list[Event]]]:
    """Nested events of one thread in order of time, each with those around it, the outermost first."""
    around: list[Event] = []
    for event in sorted(events, key=lambda event: (event.start, -event.stop)):
        while around and around[-1].stop <= event.start:
            around.pop()
        yield event, list(around)
        around.append(event)


def _with_rests(parts: dict[str, Took]) -> dict[str, Took]:
    """Parts, each followed by those in it and by what none of them took."""
    found: dict[str, Took] = {}

    def add(path: str) -> None:
        found[path] = whole = parts[path]
        inside = [other for other in parts if other.rpartition("/")[0] == path]
        for other in inside:
            add(other)
        if inside:
            cpu, gpu = (sum(getattr(parts[other], kind) for other in inside) for kind in ("cpu_us", "gpu_us"))
            found[f"{path}/{REST}"] = Took(whole.cpu_us - cpu, whole.gpu_us - gpu, whole.calls)

    add(STEP)
    return found


def step_operations(trace: Trace) -> dict[str, Took]:
    """What each operation of the traced steps took by itself, dearest first: by GPU time where kernels ran.

    Raises:
        UserError: the file is missing or no trace.
    """
    events = read_events(trace)
    marks = [event for event in events[PARTS] if _is_step(event)]
    inside = [e for e in events[OPERATIONS] if not marks or any(m.start <= e.start < m.stop for m in marks)]
    found: dict[str, Took] = defaultdict(Took)
    timeline = Timeline(inside)
    for thread, stretches in timeline.stretches.items():
        for event, around in _with_enclosing(event for event in inside if event.thread == thread):
            found[event.name].calls += not around or around[-1].name != event.name  # overloads call one another
        for stretch in stretches:
            found[stretch.name].cpu_us += stretch.stop - stretch.start
    for launch, kernel in _launched(events):
        operation = timeline.at(launch.start, launch.thread) if launch else None
        found[operation or kernel.name].gpu_us += kernel.stop - kernel.start
    return dict(sorted(found.items(), key=lambda item: (-item[1].gpu_us, -item[1].cpu_us)))


def _launched(events: dict[str, list[Event]]) -> Iterator[tuple[Event | None, Event]]:
    """Every kernel after the call that launched it; None where that was not recorded."""
    calls = {event.correlation: event for kind in LAUNCHES for event in events[kind]}
    for kernel in events[KERNELS]:
        yield (calls.get(kernel.correlation) if kernel.correlation is not None else None), kernel
