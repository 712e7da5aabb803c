"""Whatever a umockdev record says, it becomes a tree or a FormatError, never another error.

Run with ``python tests/fuzz/fuzz_umockdev.py [atheris options] [corpus folder]``, which needs the
``fuzz`` extra, or with ``--replay FILE...`` to try single inputs without it.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path


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


def main(arguments: list[str]) -> None:
    """Fuzz until something breaks, or replay the files given."""
    if arguments[1:2] == ["--replay"]:
        for name in arguments[2:]:
            one_input(Path(name).read_bytes())
        return
    import atheris

    with atheris.instrument_imports(include=["vfiokit"]):
        import vfiokit.host.sysfs
        import vfiokit.host.umockdev  # noqa: F401
    atheris.Setup(arguments, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
