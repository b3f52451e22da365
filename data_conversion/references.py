"""What an annotation file calls a photo → the paths that it may mean: addresses, storage keys, paths of Windows."""

from __future__ import annotations

import base64
import re
from urllib.parse import unquote, unquote_plus

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://[^/]*")  # scheme and host, or bucket
_LOCAL_FILE = re.compile(r"[?&]d=(([^&]*).*)")  # of Label Studio, whose older versions did not escape "&"
_STORAGE_KEY = re.compile(r"[?&]fileuri=([^&#]*)")  # of Label Studio, in base64


def spellings(name: str) -> list[str]:
    """Paths with ``/`` that a photo's name may mean, likeliest first; the first is the name itself.

    A backslash separates folders, an address loses scheme, host, query and fragment, and ``%20`` is a blank. All of
    these may also be meant as they are, since ``50%20.jpg`` and ``what?.jpg`` are names of files.
    """
    name = name.strip()
    path = name.replace("\\", "/")
    found = [name, path]
    inside = [_decoded(unquote(value)) for value in _STORAGE_KEY.findall(path)]
    for value in (value for values in _LOCAL_FILE.findall(path) for value in values):
        inside += [unquote_plus(value), unquote(value), value]
    found += [spelling for form in inside for spelling in spellings(form.lstrip("/"))]
    host = _ADDRESS.match(path)
    if host:
        path = path[host.end() :].lstrip("/").partition("#")[0]
    bare = path.partition("?")[0]
    found += [path, unquote(bare), bare, unquote(path)]
    return list(dict.fromkeys(filter(None, found)))


def _decoded(text: str) -> str:
    """Base64 of either alphabet → text; "" if it is none."""
    try:
        standard = text.replace("-", "+").replace("_", "/").rstrip("=")
        return base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True).decode("utf-8")
    except ValueError:
        return ""
