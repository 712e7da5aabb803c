"""A command line of the host, as the guest can run it: program, folder, variables."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence

from vfiokit.errors import UsageError

PASSED_ON = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TERM", "VIRTUAL_ENV")
PASSED_ON_PREFIXES = ("LC_", "PYTHON", "LD_LIBRARY_PATH")
"""Variables of the caller that the guest's command gets; others are given by name."""

_NOT_SHARED = ("/proc", "/sys", "/dev")


def guest_environment() -> dict[str, str]:
    """Variables of the caller that every command gets."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in PASSED_ON or name.startswith(PASSED_ON_PREFIXES)
    }


def resolve_command(argv: Sequence[str], folder: str, search: str) -> tuple[str, ...]:
    """``argv`` with its first word as an absolute path, found as the guest would find it.

    Raises :class:`UsageError` when there is no such program, or the guest cannot see it.
    """
    if not argv or not argv[0]:
        raise UsageError("no command to run", hint="vfiokit lab run -- COMMAND")
    if not os.path.isdir(folder):
        raise UsageError(f"{folder} is no folder")
    name = argv[0]
    path = os.path.normpath(os.path.join(folder, name)) if "/" in name else ""
    found = shutil.which(path or name, path=search)
    if found is None:
        raise UsageError(f"{name}: there is no such program")
    found = os.path.join(folder, found)
    for place in (found, folder):
        if any(place == root or place.startswith(f"{root}/") for root in _NOT_SHARED):
            raise UsageError(
                f"{place}: the guest has a {'/'.join(place.split('/')[:2])} of its own",
                hint="put files for the guest elsewhere, such as /tmp",
            )
    return (found, *argv[1:])
