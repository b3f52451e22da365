"""Python processes that begin with everything imported: forks of one warm parent for each process that runs tests.

``Popen`` and ``run`` take ``[sys.executable, …]`` as subprocess's do. What they start is a real process in every way
that a test can see: a child of the test (pid, wait status, signals, process group), with the environment, folder and
pipes that it was given; only its eight seconds of imports, and its seed of hashes, are those of all. Tests of torchrun,
of train.sh and of the command line itself start Python in the ordinary way.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[1]
MESSAGE = 2**20  # bytes, at most, of one order
PR_SET_CHILD_SUBREAPER = 36


class Popen(subprocess.Popen[Any]):
    """As subprocess.Popen, for Python alone; no ``preexec_fn``: every signal is as in a terminal's foreground."""

    def _execute_child(
        self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any, cwd: Any, env: Any,
        startupinfo: Any, creationflags: Any, shell: Any, p2cread: int, p2cwrite: int, c2pread: int, c2pwrite: int,
        errread: int, errwrite: int, restore_signals: Any, gid: Any, gids: Any, uid: Any, umask: Any,
        start_new_session: bool, *others: Any,
    ) -> None:  # fmt: skip
        assert args[0] == sys.executable and preexec_fn is None and not pass_fds and not shell
        streams = [fd if fd != -1 else usual for usual, fd in enumerate((p2cread, c2pwrite, errwrite))]
        order = {
            "arguments": list(map(str, args[1:])), "folder": os.fspath(cwd or os.getcwd()),
            "environment": dict(os.environ if env is None else env), "session": start_new_session,
        }  # fmt: skip
        try:
            socket.send_fds(warm_parent(), [json.dumps(order).encode()], streams)
            self.pid = int(warm_parent().recv(MESSAGE))
            self._child_created = True
        finally:
            self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]


def run(command: list[str], *, timeout: float | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """As subprocess.run with ``capture_output`` and ``text``."""
    with Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options) as process:
        try:
            output, errors = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


@cache
def warm_parent() -> socket.socket:
    """Start it, and adopt what it forks; it ends with the last holder of this end of the socket."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    environment = {
        **os.environ, "PYTHONPATH": f"{PROJECT / 'src'}:{PROJECT}", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "", "JE_ARROW_MALLOC_CONF": "background_thread:false",  # a fork needs a single thread
    }  # fmt: skip
    with its:
        warm_parent.process = subprocess.Popen(  # type: ignore[attr-defined]
            [sys.executable, "-m", "tests.warm", str(its.fileno())], pass_fds=[its.fileno()], env=environment,
            cwd=PROJECT, stdin=subprocess.DEVNULL, preexec_fn=foreground,
        )  # fmt: skip
    return ours


def foreground() -> None:
    """Called in a new process: a shell has what it runs in the background, and nohup, ignore signals for ever."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)


# ---------------------------------------------------------------- the warm parent


def wait_for_order(orders: socket.socket) -> dict[str, Any]:
    """In the parent until there are no more orders, and again and again in a child that is to carry one out."""
    while True:
        message, streams, _, _ = socket.recv_fds(orders, MESSAGE, 3)
        if not message:
            os._exit(0)
        reader, writer = os.pipe()
        if (middle := os.fork()) == 0:
            if os.fork() == 0:
                os.close(reader), orders.close()
                order: dict[str, Any] = json.loads(message)
                take_place(order, streams)
                os.write(writer, str(os.getpid()).encode())
                os.close(writer)
                return order
            os._exit(0)  # now the child is the test's
        for fd in (*streams, writer):
            os.close(fd)
        os.waitpid(middle, 0)
        orders.send(os.read(reader, 99))
        os.close(reader)


def take_place(order: dict[str, Any], streams: list[int]) -> None:
    """What Popen and a new interpreter would have set."""
    for usual, fd in enumerate(streams):
        os.dup2(fd, usual)
    for fd in streams:
        os.close(fd)
    if order["session"]:
        os.setsid()
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])


def carry_out(arguments: list[str], installed: list[str]) -> None:
    """``python ARGUMENTS``: -m MODULE, -c CODE or a script."""
    kind, *rest = arguments
    named = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    first = {"-m": os.getcwd(), "-c": ""}.get(kind, os.path.dirname(os.path.abspath(kind)))
    sys.path[:] = [first, *map(os.path.abspath, named), *installed]
    if kind == "-m":
        sys.argv[:] = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv[:] = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), sys.modules["__main__"].__dict__)
    else:
        sys.argv[:] = arguments
        runpy.run_path(kind, run_name="__main__")


def main() -> None:
    orders = socket.socket(fileno=int(sys.argv[1]))
    before = len(os.environ.get("PYTHONPATH", "").split(os.pathsep))
    installed = sys.path[1 + before :]
    import_everything()
    assert len(os.listdir("/proc/self/task")) == 1, "something imported has started a thread, and a fork has only one"
    gc.collect()
    gc.freeze()  # the children share these pages
    atexit.register(silence)
    carry_out(wait_for_order(orders)["arguments"], installed)


def silence() -> None:
    """The last step but one of a process: nanobind lists what is frozen as leaked."""
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def import_everything() -> None:
    """What a run imports, and nothing begun."""
    import bbu.cli
    import bbu.stages
    import bbu.training.trainer  # noqa: F401


if __name__ == "__main__":
    main()
