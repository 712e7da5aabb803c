"""One way to refuse: an ``OSError`` that carries the kernel's errno and says why."""

from __future__ import annotations

import os


def failure(code: int, why: str = "", path: str | None = None) -> OSError:
    """An ``OSError`` with ``code``; ``why`` is appended to the errno's text, ``path`` to both."""
    text = os.strerror(code)
    if why:
        text = f"{text}: {why}"
    return OSError(code, text, path) if path is not None else OSError(code, text)
