"""Listings of trap maps, held to lines that a real QEMU printed, and to the deck's."""

from __future__ import annotations

import pytest
from device_rig import Host, Registers, without_mappable_table
from hypothesis import given
from hypothesis import strategies as st

from vfiokit.errors import FormatError
from vfiokit.kernel.port import Kernel
from vfiokit.machine.build import MsixLayout
from vfiokit.machine.function import BarModel
from vfiokit.pci.address import Bdf
from vfiokit.vfio import Device
from vfiokit.vmm import mtree
from vfiokit.vmm.assigned import AssignedFunction
from vfiokit.vmm.mtree import Line
from vfiokit.vmm.pci_bus import PciBus
from vfiokit.vmm.trap_map import TrapMap

# Printed by QEMU 11.1.3, other devices cut.
QEMU = """\
(qemu) info mtree -f
FlatView #3
 AS "memory", root: system
 AS "cpu-memory-0", root: system
 Root memory region: system
  00000000fe600000-00000000fe600fff (prio 0, i/o): vfio-user:/run/dev.sock BAR 2
  00000000fe601000-00000000fe602fff (prio 0, ramd): vfio-user:/run/dev.sock BAR 2 mmaps[0] KVM
  00000000fe603000-00000000fe604fff (prio 0, i/o): vfio-user:/run/dev.sock BAR 2 @0000000000003000
  00000000fea00000-00000000fea01fff (prio 0, ramd): vfio-user:/run/dev.sock BAR 0 mmaps[0] KVM
  00000000fea02000-00000000fea0203f (prio 0, i/o): msix-table
  00000000fea02040-00000000fea02fff (prio 0, i/o): vfio-user:/run/dev.sock BAR 0 @0000000000002040
  00000000fea03000-00000000fea03007 (prio 1, i/o): VFIO MSIX PBA
  00000000fea03008-00000000fea0ffff (prio 0, ramd): vfio-user:/run/dev.sock BAR 0 mmaps[1] @0000000000000008
FlatView #4
 AS "pci_bridge_pci_mem", root: pci_bridge_pci
 Root memory region: pci_bridge_pci
  00000000fea00000-00000000fea01fff (prio 0, ramd): vfio-user:/run/dev.sock BAR 0 mmaps[0]
"""  # noqa: E501

# The slide "Memory Mapping 2/2", its "mmmaps" read as "mmaps": the slide's own typing error.
DECK = """\
FlatView #2
 00000000fe000000-00000000fe7fffff (prio 0, ramd): 0000:03:00.3 BAR 0 mmmaps[0]
 00000000fe800000-00000000fe80080f (prio 0, i/o): msix-table
 00000000fe800810-00000000fe800fff (prio 0, i/o): 0000:03:00.3 BAR 3 @000000000000000810
 00000000fe801000-00000000fe807fff (prio 0, ramd): 0000:03:00.3 BAR 3 mmmaps[0]
""".replace("mmmaps", "mmaps")


def xl710(bdf: Bdf) -> Registers:
    """The deck's example: 8 MiB in BAR 0, 32 KiB in BAR 3 with 129 vectors, PBA at 0x1000."""
    return Registers(
        bdf,
        device_id=0x1583,
        bars=(
            BarModel(0, 8 << 20, wide=True, prefetchable=True),
            BarModel(3, 0x8000, wide=True, prefetchable=True),
        ),
        msix=MsixLayout(129, 3, 0, 0x1000),
        multifunction=True,
    )


@pytest.fixture
def deck_device():
    host = Host(xl710, at=(Bdf.parse("0000:03:00.3"),))
    with host.open() as device:
        yield device


def placed(device: Device, kernel: Kernel | None = None, page_size: int = 4096, **wishes):
    """The function on a bus, with BAR 0 and 3 where the deck has them."""
    traps = TrapMap(page_size)
    bus = PciBus(traps, TrapMap(1))
    bus.place_ecam(None)
    function = AssignedFunction(device, Bdf(0, 0, 5, 0), page_size=page_size, **wishes)
    bus.add(function)
    for register, value in ((0x10, 0xFE00_0000), (0x14, 0), (0x1C, 0xFE80_0000), (0x20, 0)):
        function.config.write(register, 4, value)
    function.config.write(0x04, 2, 0x0006)
    return traps, bus, function


def test_listing_of_the_decks_device_is_the_decks(deck_device) -> None:
    traps, _bus, _function = placed(without_mappable_table(deck_device))
    ours = [line._replace(mapped=False) for line in mtree.lines(traps.flat)]
    (deck,) = mtree.parse(DECK)
    assert ours == list(deck.lines)
    text = mtree.render(traps.flat, view=2, kvm=False)
    shown = [
        line.strip().replace("@000000000000000810", "@0000000000000810")
        for line in DECK.splitlines()
    ]
    assert [line.strip() for line in text.splitlines() if "prio" in line] == shown[1:]


def test_table_that_may_be_mapped_along_traps_its_page_only_by_page_size(deck_device) -> None:
    traps, _bus, _function = placed(deck_device)
    assert [mtree.line_text(line).strip() for line in mtree.lines(traps.flat)][1:] == [
        "00000000fe800000-00000000fe80080f (prio 0, i/o): msix-table",
        "00000000fe800810-00000000fe807fff (prio 0, ramd): 0000:03:00.3 BAR 3 mmaps[0] "
        "@0000000000000810",
    ]
    assert not traps.maps(0xFE80_0810)
    assert traps.maps(0xFE80_1000)


def test_pending_bits_are_mapped_in_the_decks_device(deck_device) -> None:
    traps, _bus, _function = placed(without_mappable_table(deck_device))
    assert traps.maps(0xFE80_1000, 24)


def test_relocation_gives_the_whole_bar_back_to_the_guest(deck_device) -> None:
    traps, _bus, function = placed(without_mappable_table(deck_device), msix_relocation="bar2")
    function.config.write(0x18, 4, 0xFEC0_0000)
    names = {line.name: line for line in mtree.lines(traps.flat)}
    assert names["0000:03:00.3 BAR 3 mmaps[0]"].last == 0xFE80_7FFF
    assert names["msix-table"].start == 0xFEC0_0000
    assert names["msix-pba"].start == 0xFEC0_0810


def test_qemu_lines_are_read_and_written_back() -> None:
    views = mtree.parse(QEMU)
    assert [view.number for view in views] == [3, 4]
    view = mtree.memory_view(views)
    assert view.spaces == ("memory", "cpu-memory-0")
    assert view.root == "system"
    assert view.lines[2] == Line(
        0xFE60_3000, 0xFE60_4FFF, "i/o", "vfio-user:/run/dev.sock BAR 2", 0x3000
    )
    assert view.lines[6].priority == 1
    assert [line.mapped for line in view.lines] == [False, True, False, True, *[False] * 4]
    written = [mtree.line_text(line) for each in views for line in each.lines]
    assert written == [line for line in QEMU.splitlines() if "prio" in line]


def test_our_listing_of_qemus_example_agrees_with_qemu() -> None:
    """A 64 KiB BAR with four vectors at 0x2000 and their pending bits at 0x3000."""
    layout = MsixLayout(4, 0, 0x2000, 0x3000)
    host = Host(lambda bdf: Registers(bdf, msix=layout))
    with host.open() as device:
        without_mappable_table(device)
        device.name = "vfio-user:/run/dev.sock"
        traps = TrapMap()
        bus = PciBus(traps, TrapMap(1))
        bus.place_ecam(None)
        function = AssignedFunction(device, Bdf(0, 0, 5, 0))
        bus.add(function)
        function.config.write(0x10, 4, 0xFEA0_0000)
        function.config.write(0x04, 2, 2)
        theirs = [line for line in mtree.parse(QEMU)[0].lines if line.start >= 0xFEA0_0000]
        found = mtree.differences(mtree.lines(traps.flat), theirs)
        # Only vfio-user has an overlay over pending bits from the start.
        assert [(each.start, each.last, each.other.name) for each in found] == [
            (0xFEA0_3000, 0xFEA0_3007, "VFIO MSIX PBA")
        ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no FlatView"),
        ("nothing of interest\n", "no FlatView"),
        (
            "FlatView #0\n  0000000000000000-0000000000000fff (prio 0, ram): a\n"
            "  0000000000000800-0000000000000fff (prio 0, ram): b\n",
            "before the last one ended",
        ),
    ],
)
def test_text_that_is_no_listing_is_refused(text, message) -> None:
    with pytest.raises(FormatError, match=message):
        mtree.parse(text)


def test_listing_without_a_memory_space_is_refused() -> None:
    with pytest.raises(FormatError, match="memory"):
        mtree.memory_view(mtree.parse('FlatView #1\n AS "I/O", root: io\n'))


def test_empty_map_says_so() -> None:
    assert "No rendered FlatView" in mtree.render(())
    assert mtree.parse(mtree.render(()))[0].lines == ()


names = st.text(st.sampled_from("abc :.[]0123-/"), min_size=1).map(str.strip).filter(bool)


@given(
    st.builds(
        Line,
        start=st.integers(0, 1 << 40),
        last=st.integers(1 << 40, (1 << 64) - 1),
        kind=st.sampled_from(["ram", "ramd", "i/o", "rom"]),
        name=names,
        offset=st.integers(0, (1 << 64) - 1),
        mapped=st.booleans(),
        priority=st.integers(-1, 10),
    )
)
def test_any_line_is_read_back_as_it_was_written(line) -> None:
    assert mtree.parse_line(mtree.line_text(line)) == line


@given(st.text())
def test_no_text_breaks_the_reader(text) -> None:
    mtree.parse_line(text)
    try:
        mtree.parse(text)
    except FormatError:
        return


def test_differences_name_the_addresses() -> None:
    one = [Line(0, 0xFFF, "ram", "a")]
    other = [Line(0, 0x7FF, "ram", "a"), Line(0x800, 0x17FF, "i/o", "b")]
    assert [(each.start, each.last) for each in mtree.differences(one, other)] == [
        (0x800, 0xFFF),
        (0x1000, 0x17FF),
    ]
    assert mtree.differences(one, one) == []
