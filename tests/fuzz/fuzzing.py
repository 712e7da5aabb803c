"""How every fuzz target runs: under atheris, or on files given with ``--replay``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path


def fuzz(one_input: Callable[[bytes], None]) -> None:
    """Fuzz ``one_input`` until something breaks, or replay the files named on the command line."""
    if sys.argv[1:2] == ["--replay"]:
        for name in sys.argv[2:]:
            one_input(Path(name).read_bytes())
        return
    import atheris

    with atheris.instrument_imports(include=["vfiokit"]):
        one_input(b"")  # imports what it needs, instrumented
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
