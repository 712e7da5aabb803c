"""Whatever a file says, it is an NCCL topology that survives being written, or a FormatError.

Run with ``python tests/fuzz/fuzz_nccl.py [atheris options] [corpus folder]``, which needs the
``fuzz`` extra, or with ``--replay FILE...`` to try single inputs without it.
"""

from __future__ import annotations

import contextlib

from fuzzing import fuzz


def one_input(data: bytes) -> None:
    """Read, build the tree, write, read again."""
    from vfiokit.errors import FormatError, UsageError
    from vfiokit.host.nccl import read, write

    with contextlib.suppress(FormatError):
        system = read(data, "fuzz")
        topology = system.topology()
        for function in topology:
            assert function.bdf not in [bridge.bdf for bridge in topology.path_to_root(function)]
        with contextlib.suppress(UsageError):  # names outside ASCII are not written
            assert read(write(system)) == system


if __name__ == "__main__":
    fuzz(one_input)
