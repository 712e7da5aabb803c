"""One chapter of the demonstration: what was found, as data and as sentences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Progress = Callable[[str, int, int], None]
"""Called with what is going on, how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True)
class Chapter:
    """A finished step of the story."""

    number: int
    title: str
    facts: dict[str, Any]
    """The result as plain data, ready for JSON."""
    lines: tuple[str, ...]
    """The same in sentences."""
    seconds: float
    ok: bool = True
    """Whether what the chapter claims was seen."""

    def document(self) -> dict[str, Any]:
        """The chapter as one JSON object."""
        return {
            "number": self.number,
            "title": self.title,
            "ok": self.ok,
            "seconds": round(self.seconds, 6),
            "facts": self.facts,
        }


def quiet(what: str, done: int, total: int) -> None:
    """A :data:`Progress` that shows nothing."""
    del what, done, total
