"""Kinds of reset a function can go through."""

from __future__ import annotations

from enum import Enum


class ResetKind(Enum):
    """How a function is reset."""

    FUNCTION_LEVEL = "flr"
    AF_FUNCTION_LEVEL = "af_flr"
    POWER = "pm"
    BUS = "bus"
