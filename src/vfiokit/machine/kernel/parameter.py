"""Module parameters that can be changed while the kernel runs.

Source: Linux ``kernel/params.c``, ``lib/kstrtox.c:kstrtobool``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from vfiokit.machine.kernel.failure import failure
from vfiokit.machine.kernel.vfs import File

_TRUE = ("y", "Y", "t", "T", "1", "on", "oN", "On", "ON")
_FALSE = ("n", "N", "f", "F", "0", "of", "oF", "Of", "OF")


def flag(read: Callable[[], bool], write: Callable[[bool], None]) -> File:
    """A ``bool`` parameter: ``Y`` or ``N``; EINVAL for what is neither."""

    def store(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        for value, words in ((True, _TRUE), (False, _FALSE)):
            if text.startswith(words):
                write(value)
                return
        raise failure(errno.EINVAL, f"{text!r} is neither Y nor N")

    return File(lambda: b"Y\n" if read() else b"N\n", store)


def number(read: Callable[[], int], write: Callable[[int], None]) -> File:
    """A ``uint`` parameter; EINVAL for what is no number, ERANGE beyond 32 bits."""

    def store(data: bytes) -> None:
        try:
            value = int(data.decode("ascii", "replace").strip(), 0)
        except ValueError:
            raise failure(errno.EINVAL, f"{data!r} is no number") from None
        if not 0 <= value < 1 << 32:
            raise failure(errno.ERANGE if value > 0 else errno.EINVAL, f"{value} does not fit")
        write(value)

    return File(lambda: b"%d\n" % read(), store)
