"""Analyses the trace of a training step: its parts, its operations and the idle gaps of the GPU.

Reads torch.profiler's chrome trace JSON, so saved traces can be analysed again. All times are in microseconds.
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

LABEL = "bbu/"  # prefix of our labels in a trace
STEP, REST = "step", "rest"
STEP_MARK = "ProfilerStep"  # torch.profiler's own name for a step
KERNELS, PARTS, OPERATIONS = "kernel", "user_annotation", "cpu_op"  # record_function makes user annotations
LAUNCHES = ("cuda_runtime", "cuda_driver")
SHORTEST_GAP_US = 10.0  # back-to-back kernels are 1 to 3 µs apart
BETWEEN = "Python"  # no recorded operation: the interpreter is between two


@dataclass(frozen=True)
class Gap:
    """A period of a step in which no kernel ran.

    Args:
        start_us: from the start of the step.
        length_us: duration.
        label: what the CPU did during most of it, as ``part: operation``.
    """

    start_us: float
    length_us: float
    label: str


@dataclass
class Took:
    """Time of a part or an operation.

    Args:
        cpu_us: of a part: wall time; of an operation: self time, without nested operations.
        gpu_us: of the kernels that it launched (an operation: directly).
        calls: number of calls.
    """

    cpu_us: float = 0.0
    gpu_us: float = 0.0
    calls: int = 0


@dataclass(frozen=True)
class Event:
    """A period on a CPU thread or a GPU stream.

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
    """Category → events with a duration.

    Args:
        trace: chrome trace of torch.profiler, or its file (.json or .json.gz).

    Raises:
        UserError: the file is missing or not a trace.
    """
    name, content = ("the trace", trace) if isinstance(trace, dict) else (str(trace), _load(Path(trace)))
    if not isinstance(content, dict) or not isinstance(content.get("traceEvents"), list):
        raise UserError(f"{name}: is not a chrome trace: traceEvents is missing; write it with export_chrome_trace")
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
    """The innermost of nested events at any time, for each thread."""

    def __init__(self, events: Iterable[Event]) -> None:
        threads: dict[tuple[Any, Any], list[Event]] = defaultdict(list)
        for event in events:
            threads[event.thread].append(event)
        self.stretches = {thread: _innermost(of_thread) for thread, of_thread in threads.items()}
        self.starts = {thread: [each.start for each in stretches] for thread, stretches in self.stretches.items()}

    def at(self, time: float, thread: tuple[Any, Any] = (0, 0)) -> str | None:
        """Name of the innermost event of a thread; None = nothing recorded."""
        place = bisect_right(self.starts.get(thread, []), time) - 1
        if place < 0 or self.stretches[thread][place].stop <= time:
            return None
        return self.stretches[thread][place].name

    def pieces(self, start: float, stop: float) -> Iterator[Event]:
        """Innermost events within start … stop, over all threads, clipped to it."""
        for thread, stretches in self.stretches.items():
            first = max(bisect_right(self.starts[thread], start) - 1, 0)
            for stretch in stretches[first : bisect_right(self.starts[thread], stop)]:
                piece = replace(stretch, start=max(stretch.start, start), stop=min(stretch.stop, stop))
                if piece.stop > piece.start:
                    yield piece


def _innermost(events: Iterable[Event]) -> list[Event]:
    """Nested events of one thread → disjoint periods in order of time, each named by its innermost event."""
    stretches: list[Event] = []
    pending: list[Event] = []  # open events, the innermost last
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
    """The periods of the traced steps in which no kernel ran, in order of time.

    A step begins with its mark in the trace (without one, with the first event) and ends with the mark or its last
    kernel, whichever is later. Kernels of all streams count together; memory copies and fills are not kernels.

    Args:
        trace: chrome trace of torch.profiler, or its file (.json or .json.gz).
        shortest_us: shorter gaps are left out.

    Returns:
        Empty for a trace without kernels, such as a CPU's.

    Raises:
        UserError: the file is missing or not a trace.
    """
    events = read_events(trace)
    kernels, operations = events[KERNELS], [event for kind in (OPERATIONS, *LAUNCHES) for event in events[kind]]
    if not kernels:
        return []
    recorded = [event for event in events[PARTS] if _is_step(event)] or [*events[PARTS], *operations, *kernels]
    start = min(event.start for event in recorded)
    stop = max(event.stop for event in (*recorded, *kernels))
    # parts never overlap, though on several threads (backward has its own): treat them as one thread
    parts = Timeline(replace(event, thread=(0, 0)) for event in events[PARTS] if not _is_step(event))
    doing = Timeline(operations)
    return [
        Gap(idle_from - start, idle_to - idle_from, _label(parts, doing, idle_from, idle_to))
        for idle_from, idle_to in _idle(kernels, start, stop)
        if idle_to - idle_from >= shortest_us
    ]


def _idle(busy: Iterable[Event], start: float, stop: float) -> Iterator[tuple[float, float]]:
    """The periods of start … stop outside all events, which may overlap."""
    reached = start
    for event in sorted(busy, key=lambda event: event.start):
        if event.start > reached:
            yield reached, event.start
        reached = max(reached, event.stop)
    if stop > reached:
        yield reached, stop


def _label(parts: Timeline, doing: Timeline, start: float, stop: float) -> str:
    """``part: operation``: the longest part within start … stop, and the longest operation within it."""
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
    """Times of the labelled parts of the traced steps, in order of time, by path: ``step/forward/losses`` and so on.

    A part with nested parts also has a REST, so that its children add up to it. A kernel counts for the part in
    which it was launched, by any thread; without a recorded launch, for the step only.

    Raises:
        UserError: the file is missing or not a trace, or has no step mark.
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
    """Labels in order of time, named by their full path; those outside of steps are left out."""
    named = [
        replace(label, name="/".join(each.name.removeprefix(LABEL) for each in (*around, label)))
        for label, around in _with_enclosing(labels)
    ]
    return [label for label in named if label.name.split("/")[0] == STEP]


def _with_enclosing(events: Iterable[Event]) -> Iterator[tuple[Event, list[Event]]]:
    """Nested events of one thread in order of time, each with its enclosing events, outermost first."""
    around: list[Event] = []
    for event in sorted(events, key=lambda event: (event.start, -event.stop)):
        while around and around[-1].stop <= event.start:
            around.pop()
        yield event, list(around)
        around.append(event)


def _with_rests(parts: dict[str, Took]) -> dict[str, Took]:
    """Parts, each followed by its children and by the time that no child covers."""
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
    """Self times of the operations of the traced steps, most expensive first: by GPU time, then by CPU time.

    Raises:
        UserError: the file is missing or not a trace.
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
    """(launching call, kernel) for every kernel; the call is None if it was not recorded."""
    calls = {event.correlation: event for kind in LAUNCHES for event in events[kind]}
    for kernel in events[KERNELS]:
        yield (calls.get(kernel.correlation) if kernel.correlation is not None else None), kernel
