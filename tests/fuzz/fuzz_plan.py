"""Whatever a saved plan says, it becomes a plan equal to its own JSON or a FormatError.

Run with ``python tests/fuzz/fuzz_plan.py [atheris options] [corpus folder]``, which needs the
``fuzz`` extra, or with ``--replay FILE...`` to try single inputs without it.
"""

from __future__ import annotations

import contextlib
import json

from fuzzing import fuzz


def one_input(data: bytes) -> None:
    """Read a plan, write it, read it again."""
    from vfiokit.assign.document import Plan
    from vfiokit.errors import FormatError

    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return
    with contextlib.suppress(FormatError):
        plan = Plan.from_json(document, path="fuzz")
        assert Plan.from_json(plan.to_json()) == plan
        for step in plan.steps:
            assert step.do.path.startswith("/sys/bus/pci/"), step.do.path


if __name__ == "__main__":
    fuzz(one_input)
