"""Whatever a text says, it is read as lspci output, the same in pieces, or refused as none.

Run with ``python tests/fuzz/fuzz_lspci.py [atheris options] [corpus folder]``, which needs the
``fuzz`` extra, or with ``--replay FILE...`` to try single inputs without it.
"""

from __future__ import annotations

import contextlib
import io

from fuzzing import fuzz


def one_input(data: bytes) -> None:
    """Read listings and the topology, and ask everything that ``vfiokit groups`` asks."""
    from vfiokit.errors import FormatError
    from vfiokit.host.lspci import read
    from vfiokit.host.lspci_listing import is_listing, listings, pieces
    from vfiokit.isolation import compare, predict
    from vfiokit.pci.bar import bars

    found = [(item.bdf, item.data, item.lines, item.broken) for item in listings([data])]
    parts = listings(pieces(io.BytesIO(data), 64))
    assert sorted(found) == sorted((item.bdf, item.data, item.lines, item.broken) for item in parts)
    is_listing(data)
    with contextlib.suppress(FormatError):
        topology = read([data], "fuzz").topology
        assert set(topology.functions) == {bdf for bdf, *_ in found}
        for function in topology:
            for capability in function.capabilities:
                capability.decode()
            bars(function)
        grouping = predict(topology)
        compare(grouping, topology)
        assert set(grouping.uncertain) <= set(topology.functions)


if __name__ == "__main__":
    fuzz(one_input)
