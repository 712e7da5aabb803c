"""Whatever a umockdev record says, it becomes a tree or a FormatError, never another error.

Run with ``python tests/fuzz/fuzz_umockdev.py [atheris options] [corpus folder]``, which needs the
``fuzz`` extra, or with ``--replay FILE...`` to try single inputs without it.
"""

from __future__ import annotations

import contextlib

from fuzzing import fuzz


def one_input(data: bytes) -> None:
    """Read a record and everything in its tree."""
    from vfiokit.errors import FormatError
    from vfiokit.host import umockdev
    from vfiokit.host.sysfs import read_topology

    with contextlib.suppress(FormatError):
        tree = umockdev.read(data, "fuzz")
        for function in read_topology(tree):
            _ = function.identity, function.resources, function.recorded
        for path, content in tree.files():
            assert tree.read(path) == content, path
        for path, target in tree.links():
            assert tree.readlink(path) == target, path
            tree.exists(path)


if __name__ == "__main__":
    fuzz(one_input)
