"""Sizes and counts as people read them."""

from __future__ import annotations


def size_text(size: int | None) -> str:
    """Bytes with a binary unit, one decimal at most: ``16 KiB``, ``1.8 TiB``; ``?`` if unknown."""
    if size is None:
        return "?"
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{round(value, 1):.15g} {unit}"


def counted(count: int, noun: str) -> str:
    """``1 group``, ``2 groups``."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
