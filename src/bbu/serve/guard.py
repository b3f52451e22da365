"""Keeps pages of other sites away from the server, and limits what its own page may load."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; font-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",  # unless the answer says otherwise
}


class Guard:
    """ASGI middleware: checks Host and Origin, and adds the security headers to every answer.

    A page of another site can post here from its visitor's browser (Origin is then that site), or make its own name
    resolve to this machine (DNS rebinding: Host is then that name, never an address).

    Args:
        name: the host name that the server listens on; addresses and localhost are always allowed.
    """

    def __init__(self, app: ASGIApp, name: str) -> None:
        self.app, self.name = app, name.lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refusal = self._refusal(Headers(scope=scope))
        if refusal:
            await JSONResponse({"error": refusal}, status_code=403)(scope, receive, send_guarded)
        else:
            await self.app(scope, receive, send_guarded)

    def _refusal(self, headers: Headers) -> str | None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._is_ours(host):
            return f"host {host[:100]!r} is not this server; use its address or localhost"
        if origin is not None and (origin == "null" or urlsplit(origin).netloc.lower() != host.lower()):
            return f"origin {origin[:100]!r} is another site; its pages may not use this server"
        return None

    def _is_ours(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
            if name in ("localhost", self.name):
                return bool(name)
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
