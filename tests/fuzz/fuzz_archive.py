"""Whatever a capture archive holds, it becomes a tree that stays within itself or a SourceError.

Run with ``python tests/fuzz/fuzz_archive.py [atheris options] [corpus folder]``, which needs the
``fuzz`` extra, or with ``--replay FILE...`` to try single inputs without it.
"""

from __future__ import annotations

import contextlib

from fuzzing import fuzz


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


if __name__ == "__main__":
    fuzz(one_input)
