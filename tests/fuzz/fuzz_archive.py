"""Whatever a capture archive holds, it becomes a tree that stays within itself or a SourceError.

Run with ``python tests/fuzz/fuzz_archive.py [atheris options] [corpus folder]``, which needs the
``fuzz`` extra, or with ``--replay FILE...`` to try single inputs without it.
"""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path


def one_input(data: bytes) -> None:
    """Unpack an uncompressed archive and follow everything in it."""
    from vfiokit.errors import SourceError
    from vfiokit.host.archive import unpack
    from vfiokit.host.sysfs import read_topology

    with contextlib.suppress(SourceError):
        tree = unpack(data, "fuzz")
        for path, content in tree.files():
            assert path.startswith("/"), path
            assert ".." not in path.split("/"), path
            assert tree.read(path) == content, path
        for path, _target in tree.links():
            tree.exists(path)
        read_topology(tree)


def main(arguments: list[str]) -> None:
    """Fuzz until something breaks, or replay the files given."""
    if arguments[1:2] == ["--replay"]:
        for name in arguments[2:]:
            one_input(Path(name).read_bytes())
        return
    import atheris

    with atheris.instrument_imports(include=["vfiokit"]):
        import vfiokit.host.archive
        import vfiokit.host.sysfs  # noqa: F401
    atheris.Setup(arguments, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
