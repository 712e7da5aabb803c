"""Whatever a message says, it is a uevent or a FormatError, and its questions have answers.

Run with ``python tests/fuzz/fuzz_uevent.py [atheris options] [corpus folder]``, which needs the
``fuzz`` extra, or with ``--replay FILE...`` to try single inputs without it.
"""

from __future__ import annotations

from fuzzing import fuzz


def one_input(data: bytes) -> None:
    """Read it, and let a watcher of a host without functions take it."""
    from vfiokit.errors import FormatError
    from vfiokit.host.tree import RecordedTree
    from vfiokit.host.uevent import Received, parse
    from vfiokit.host.watch import Watcher

    try:
        uevent = parse(data)
    except FormatError:
        return
    assert uevent.action
    assert uevent.devpath.startswith("/")
    function, node = uevent.function, uevent.node
    assert function is None or uevent.subsystem == "pci"
    assert node is None or node.startswith("/dev/")

    class Once:
        received = Received((uevent, uevent))

        def wait(self, timeout_s: float) -> Received:
            told, self.received = self.received, Received()
            return told

        def close(self) -> None:
            pass

    events = Watcher(RecordedTree({}, {}), Once()).wait(0)
    # There is no such function, and a node comes once.
    assert len(events) <= 1


if __name__ == "__main__":
    fuzz(one_input)
