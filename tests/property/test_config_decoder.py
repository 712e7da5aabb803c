"""Whatever bytes a configuration space holds, every decoder answers, and answers consistently."""

from __future__ import annotations

import json
import os
import re
from functools import cache
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vfiokit.pci import header
from vfiokit.pci.address import Bdf
from vfiokit.pci.bar import Bar, bars, rom, windows
from vfiokit.pci.capability import acs, capabilities, msix, sriov
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.topology import Function, Resource, Topology

THOROUGH = bool(os.environ.get("CI") or os.environ.get("VFIOKIT_THOROUGH"))
EXAMPLES = settings(max_examples=2_000 if THOROUGH else 200, deadline=None)

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("VFIOKIT_SHARED", REPOSITORY / "../shared")) / "data"
PACKAGED = REPOSITORY / "src/vfiokit/data/hpe-gen9-vgpu-node.umockdev.zst"

_LSPCI_ROW = re.compile(r"^([0-9a-f]{2,3}): ((?:[0-9a-f]{2} ?){16})\s*$", re.MULTILINE)
_UMOCKDEV_CONFIG = re.compile(rb"^H: config=([0-9A-Fa-f]+)$", re.MULTILINE)


def _server() -> bytes:
    if PACKAGED.exists():
        import zstandard

        with PACKAGED.open("rb") as stream:
            return zstandard.ZstdDecompressor().stream_reader(stream).read()
    path = SHARED / "hosts" / "hpe-gen9-vgpu-node.umockdev"
    return path.read_bytes() if path.exists() else b""


@cache
def real_configs() -> tuple[bytes, ...]:
    """Configuration spaces of real devices, each different one once."""
    found = {bytes.fromhex(text.decode()) for text in _UMOCKDEV_CONFIG.findall(_server())}
    folder = SHARED / "lspci"
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        data = bytearray()
        for offset, row in _LSPCI_ROW.findall(path.read_text(errors="replace")):
            if int(offset, 16) == 0 and data:
                found.add(bytes(data))
                data.clear()
            data += bytes.fromhex(row)
        found.add(bytes(data))
    return tuple(sorted(found))


def check(data: bytes, resources: tuple[Resource, ...] = (), *, virtual: bool = False) -> None:
    """Everything that decodes a configuration space, and what must hold of the answers."""
    config = ConfigSpace(data)
    found = capabilities(config)
    offsets = [capability.offset for capability in found]
    assert len(set(offsets)) == len(offsets)
    for capability in found:
        decoded = capability.decode()
        assert json.loads(json.dumps(decoded)) == decoded
        assert capability.size >= 2
        assert capability.title
    json.dumps(header.decode(config))
    function = Function(
        Bdf(0, 1, 0, 0), config, resources=resources, physfn=Bdf(0, 0, 0, 0) if virtual else None
    )
    topology = Topology([function])
    topology.path_to_root(function)
    topology.is_multifunction(function)
    assert function.port_type is None or function.express is not None
    assert function.acs_control is not None
    found_rom = rom(function)
    for bar in (*bars(function), *([found_rom] if found_rom else [])):
        check_windows(function, bar)


def check_windows(function: Function, bar: Bar) -> None:
    """Windows tile the BAR; nothing of a page that holds the MSI-X table is mapped."""
    assert bar.size is None or bar.size > 0
    for page_size in (4096, 65536):
        at = 0
        for window in windows(function, bar, page_size):
            assert window.offset == at
            assert window.length > 0
            assert window.trapped or bar.kind != "io"
            assert not window.trapped or window.reason
            if not window.trapped and bar.size >= page_size:
                assert window.offset % page_size == 0
            at += window.length
        assert at == (bar.size or 0)


addresses = st.integers(0, 1 << 40).map(lambda value: value << 8)
sizes = st.one_of(st.integers(0, 40).map(lambda bits: 1 << bits), st.integers(0, 1 << 20))
resource_lists = st.lists(
    st.builds(
        lambda index, start, size, flags: Resource(index, start, start + size - 1, flags),
        st.integers(-1, 14),
        addresses,
        sizes,
        st.sampled_from([0, 0x40101, 0x40200, 0x42208, 0x14220C, 0x20040200]),
    ),
    max_size=8,
).map(tuple)


@EXAMPLES
@given(st.binary(max_size=4096), resource_lists, st.booleans())
@example(b"", (), False)
@example(b"\xff" * 4096, (), False)
def test_any_bytes_decode(data, resources, virtual):
    check(data, resources, virtual=virtual)


@st.composite
def listed(draw: st.DrawFn) -> bytes:
    """Random bytes that carry capability lists of known ids, pointers sometimes wrong."""
    size = draw(st.sampled_from([64, 256, 4096]))
    data = bytearray(draw(st.binary(min_size=256, max_size=256)) * 16)
    data[0x06] |= 0x10
    data[0x0E] = draw(st.sampled_from([0, 1, 2, 0x80, 0x81]))
    places = draw(st.lists(st.integers(0x10, 0x3F), min_size=1, max_size=8))
    data[0x14 if data[0x0E] == 2 else 0x34] = places[0] * 4
    for place, following in zip(places, [*places[1:], 0], strict=True):
        data[place * 4] = draw(st.sampled_from([0x01, 0x05, 0x09, 0x10, 0x11, 0x13, 0x14]))
        data[place * 4 + 1] = following * 4
    wide = draw(st.lists(st.integers(0x40, 0x3FF), max_size=8))
    for place, following in zip([0x40, *wide], [*wide, 0], strict=True):
        cap_id = draw(st.sampled_from([0x00, 0x01, 0x0D, 0x0E, 0x0F, 0x10, 0x13, 0x1B, 0x23]))
        word = following * 4 << 20 | 0x10000 | cap_id
        data[place * 4 : place * 4 + 4] = word.to_bytes(4, "little")
    return bytes(data[:size])


@EXAMPLES
@given(listed(), resource_lists, st.booleans())
def test_any_list_of_known_capabilities_decodes(data, resources, virtual):
    check(data, resources, virtual=virtual)


@EXAMPLES
@given(st.data(), resource_lists)
def test_damaged_real_config_decodes(data, resources):
    if not real_configs():
        if os.environ.get("CI"):
            pytest.fail("no real configuration spaces found")
        pytest.skip("no real configuration spaces here")
    config = bytearray(data.draw(st.sampled_from(real_configs())))
    for offset, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(config) - 1), st.integers(0, 255)), max_size=12)
    ):
        config[offset] = value
    check(bytes(config[: data.draw(st.integers(0, len(config)))]), resources)


def test_every_real_config_decodes():
    if not real_configs():
        if os.environ.get("CI"):
            pytest.fail("no real configuration spaces found")
        pytest.skip("no real configuration spaces here")
    for config in real_configs():
        check(config)
        assert {finding.code for finding in capabilities(ConfigSpace(config)).findings} <= {
            "loop",
            "truncated",
        }


@EXAMPLES
@given(listed())
def test_derived_values_stay_in_their_fields(data):
    found = capabilities(ConfigSpace(data))
    for capability in found:
        if capability.layout is msix.LAYOUT and capability.config.has(capability.offset, 12):
            table, pba = msix.table(capability), msix.pba(capability)
            assert 16 <= table.length <= 2048 * 16
            assert table.length // 16 <= pba.length * 8 < table.length // 16 + 64
        if capability.layout is sriov.LAYOUT and capability.config.has(capability.offset, 64):
            physfn = Bdf(0, 1, 0, 0)
            total = capability.value(sriov.TOTAL_VFS)
            assert sriov.vf_address(capability, physfn, total).domain == 0
        if capability.layout is acs.LAYOUT and capability.config.has(capability.offset, 0x28):
            bits = acs.egress_vector(capability)
            assert len(bits) <= 256
            assert set(bits) <= {0, 1}
