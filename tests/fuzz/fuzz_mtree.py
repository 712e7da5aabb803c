"""Whatever a file holds, it is read as listings whose ranges are in order, or refused as none.

Run with ``python tests/fuzz/fuzz_mtree.py [atheris options] [corpus folder]``, which needs the
``fuzz`` extra, or with ``--replay FILE...`` to try single inputs without it.
"""

from __future__ import annotations

from fuzzing import fuzz


def one_input(data: bytes) -> None:
    """Read the text, write its lines again, and read those."""
    from vfiokit.errors import FormatError
    from vfiokit.vmm import mtree

    try:
        views = mtree.parse(data.decode(errors="replace"))
    except FormatError:
        return
    for view in views:
        assert all(one.last < two.start for one, two in zip(view.lines, view.lines[1:]))  # noqa: B905
        again = [mtree.parse_line(mtree.line_text(line)) for line in view.lines]
        assert again == list(view.lines)
        assert mtree.differences(view.lines, view.lines) == []


if __name__ == "__main__":
    fuzz(one_input)
