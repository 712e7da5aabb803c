"""Fuzz target: whatever bytes a configuration space and its resources hold, every decoder of
``vfiokit.pci`` answers with plain data, and never raises.

Run it with ``python tests/fuzz/fuzz_config.py [libFuzzer options] [corpus]`` (needs atheris).
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from fuzzing import fuzz

if TYPE_CHECKING:
    from vfiokit.pci.topology import Resource

_RESOURCE = 20
"""Bytes of input for one resource: index and flags (4), start (8), size (8)."""


def one_input(data: bytes) -> None:
    """The first byte says how many resources follow; the rest is configuration space."""
    from vfiokit.pci import header
    from vfiokit.pci.address import Bdf
    from vfiokit.pci.bar import bars, rom, windows
    from vfiokit.pci.capability.text import FULL, capability_lines, header_lines
    from vfiokit.pci.config import ConfigSpace
    from vfiokit.pci.topology import Function, Topology

    count = data[0] % 8 if data else 0
    body = data[1:]
    resources = tuple(_resource(body[_RESOURCE * n : _RESOURCE * (n + 1)]) for n in range(count))
    config = ConfigSpace(body[_RESOURCE * count :])
    physfn = Bdf(0, 0, 0, 0) if data[:1] >= b"\x80" else None
    function = Function(Bdf(0, 1, 0, 0), config, resources=resources, physfn=physfn)
    for capability in function.capabilities:
        json.dumps(capability.decode())
        assert capability.size >= 2
        assert capability_lines(capability, FULL)
    json.dumps(header.decode(config))
    header_lines(config, FULL)
    topology = Topology([function])
    topology.path_to_root(function)
    topology.is_multifunction(function)
    for bar in bars(function):
        tiled = sum(window.length for window in windows(function, bar))
        assert tiled == (bar.size or 0)
    rom(function)


def _resource(data: bytes) -> Resource:
    from vfiokit.pci.topology import Resource

    word = int.from_bytes(data[:4], "little")
    start = int.from_bytes(data[4:12], "little")
    size = int.from_bytes(data[12:20], "little")
    return Resource(word & 0xF, start, start + size - 1, word >> 4)


if __name__ == "__main__":
    fuzz(one_input)
