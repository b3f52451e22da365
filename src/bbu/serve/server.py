"""Listen, load the model, serve until stopped."""

from __future__ import annotations

import ipaddress
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from typing import Any

from bbu.errors import UserError
from bbu.serve.limits import MEGABYTE, Limits

REQUIREMENTS = "starlette uvicorn python-multipart"
GRACE_SECONDS = 10  # for requests under way when the server is told to stop


def serve(folder: str | Path, *, host: str, port: int, precision: str = "auto", max_megabytes: int = 20) -> None:
    """Serve a model folder until Ctrl-C or SIGTERM, which raise KeyboardInterrupt.

    Args:
        port: 0 chooses a free one.
        max_megabytes: limit of a request's size.

    Raises:
        UserError: the port is taken, the host is not this machine's, or a package is missing.
        CheckpointError: the model cannot be loaded.
    """
    try:
        import python_multipart  # noqa: F401  (starlette's forms need it)
        import uvicorn

        from bbu.serve.app import create_app
        from bbu.serve.connections import Connection
    except ModuleNotFoundError as error:
        raise UserError(f"serve needs {error.name}, which is missing: pip install {REQUIREMENTS}") from None
    from bbu.inference import Inference

    with listen(host, port) as listener:  # before the model is loaded, so a taken port fails at once
        inference = Inference(folder, precision=precision)
        name = "/".join(Path(folder).resolve().parts[-2:])
        limits = Limits(request_bytes=max_megabytes * MEGABYTE)
        app = create_app(inference, name, host=host, limits=limits)
        config = uvicorn.Config(
            app,
            http=partial(Connection, limits),  # type: ignore[arg-type]
            ws="none",
            loop="asyncio",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        signal.signal(signal.SIGTERM, _interrupt)
        print(f"{name} at {address(listener)}  (Ctrl-C stops)", flush=True)
        warn_if_open(host)
        uvicorn.Server(config).run(sockets=[listener])


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        UserError: the address is not available.
    """
    if port > 65_535:
        raise UserError(f"--port must be from 0 to 65535, is {port}")
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError, OverflowError) as error:
        raise UserError(f"--host {host!r} cannot be resolved ({error}); 127.0.0.1 is this machine") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port is free at once after a stop
        listener.bind(place)
        listener.listen(128)
    except (OSError, OverflowError) as error:
        listener.close()
        why = getattr(error, "strerror", None) or error
        raise UserError(f"cannot listen on {host} port {port}: {why}; choose another --port or --host") from None
    return listener


def address(listener: socket.socket) -> str:
    """The URL to open."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def warn_if_open(host: str) -> None:
    """Print a note if other machines can reach the server."""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local:
        print(f"bbu: note: anyone who can reach {host} can use this model; there is no password", file=sys.stderr)


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt
