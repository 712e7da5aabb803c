"""What a caller may watch while a plan is applied or undone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from vfiokit.assign.binding import Change


class Progress(NamedTuple):
    """One change started, or ended."""

    change: Change
    description: str
    undoing: bool
    state: str
    """``started``, ``finished`` or ``failed``."""
    elapsed_s: float
    """Seconds since the change started; 0 when ``started``."""


Observer = Callable[[Progress], None]
"""Called in the thread that makes the changes, around each of them."""


@contextmanager
def observed(observer: Observer | None, change: Change, *, undoing: bool = False) -> Iterator[None]:
    """Report one change to ``observer``, with its time."""
    if observer is None:
        yield
        return
    description = change.describe()
    begun = time.monotonic()
    observer(Progress(change, description, undoing, "started", 0.0))
    try:
        yield
    except Exception:
        observer(Progress(change, description, undoing, "failed", time.monotonic() - begun))
        raise
    observer(Progress(change, description, undoing, "finished", time.monotonic() - begun))
