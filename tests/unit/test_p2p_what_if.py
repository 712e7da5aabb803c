"""Machines in the conditional: changes as text, and what would differ."""

from __future__ import annotations

import pytest
from isolation_topologies import Builder, bdf

from vfiokit.errors import DeviceNotFoundError, UsageError
from vfiokit.p2p import Cpu, MapType, Peers
from vfiokit.p2p.what_if import change, consequences, parse_cpu
from vfiokit.pci.capability.express import PortType
from vfiokit.pci.topology import Topology

INTEL = Cpu("GenuineIntel", 6, 0x3F)
FULL = (0x1F, 0x1D)


def machine() -> Topology:
    """Two sockets of a Haswell server: a switch on one, an endpoint and an empty port on each."""
    builder = Builder()
    for bus, device in (("00", 0x2F00), ("80", 0x2F01)):
        builder.add(f"{bus}:00.0", PortType.RC_INTEGRATED_ENDPOINT, ids=(0x8086, device))
    builder.root_port("00:01.0", 1)
    builder.upstream("01:00.0", 2)
    builder.downstream("02:00.0", 3, FULL)
    builder.downstream("02:01.0", 4, FULL)
    builder.downstream("02:02.0", 5, FULL)
    builder.endpoint("03:00.0")
    builder.endpoint("04:00.0")
    builder.root_port("80:01.0", 0x81)
    builder.endpoint("81:00.0")
    return builder.topology([(0, 0), (0, 0x80)])


EVERYONE = tuple(map(bdf, ("03:00.0", "04:00.0", "81:00.0")))


def after(*texts: str, cpu: Cpu | None = INTEL):
    topology = machine()
    made = change(topology, cpu, texts)
    return consequences(Peers(topology, cpu=cpu), made, EVERYONE, EVERYONE)


def test_without_an_effect_nothing_differs():
    found = after("acs=0x1d@02:00.0")
    assert found.differences == ()
    assert found.price == ((), ())
    assert found.machine.changes == ("ACS Control of 0000:02:00.0 0x1d → 0x1d",)


def test_one_port_without_redirect_is_not_enough_and_two_are():
    assert after("acs=0x11@02:00.0").differences == ()
    found = after("acs=0x11@02:00.0", "acs=0x11@02:01.0")
    assert [(str(each.provider)[5:], str(each.client)[5:]) for each in found.differences] == [
        ("03:00.0", "04:00.0"),
        ("04:00.0", "03:00.0"),
    ]
    assert {each.before.map_type for each in found.differences} == {MapType.THRU_HOST_BRIDGE}
    assert {each.after for each in found.differences} == {(MapType.BUS_ADDR, 4)}
    assert len(found.price.regroupings) == 2


def test_bits_that_a_port_does_not_have_are_said():
    (words,) = after("acs=0x5d@02:00.0").machine.changes
    assert words.endswith("0x1d → 0x1d (the function has no more than 0x1f)")


def test_another_processor_opens_the_way_between_sockets():
    found = after("cpu=amd:0x17")
    assert {each.after.map_type for each in found.differences} == {MapType.THRU_HOST_BRIDGE}
    assert {each.before.map_type for each in found.differences} == {MapType.NOT_SUPPORTED}
    assert len(found.differences) == 4
    assert found.machine.changes == ("processor AuthenticAMD, family 0x17",)
    assert after("cpu=amd:0x16").differences == ()
    assert after("cpu=hygon").differences == ()


def test_another_host_bridge_opens_the_way_only_on_both_sides():
    assert after("bridge=8086:09a2@00").differences == ()
    both = after("bridge=8086:09a2@pci0000:00", "bridge=8086:09a2@0000:80")
    assert len(both.differences) == 4
    assert both.machine.changes[0] == "host bridge of pci0000:00 8086:2f00 → 8086:09a2"
    topology = both.machine.topology
    assert topology[bdf("00:00.0")].config.u32(0) == 0x09A28086
    assert topology[bdf("00:00.0")].identity[:2] == (0x8086, 0x09A2)


def test_a_moved_card_is_asked_about_by_its_old_address():
    found = after("move=81:00.0@02:02.0")
    assert found.machine.addresses == {bdf("81:00.0"): bdf("05:00.0")}
    assert found.machine.changes == (
        "0000:81:00.0 moved below 0000:02:02.0, where it is 0000:05:00.0",
    )
    changed = {(each.provider, each.client): each for each in found.differences}
    pair = changed[bdf("03:00.0"), bdf("81:00.0")]
    assert pair.before == (MapType.NOT_SUPPORTED, 6)
    assert pair.after == (MapType.THRU_HOST_BRIDGE, 4)
    assert pair.codes[1] == "PIX"


def test_changes_follow_each_other_by_the_first_machine_s_addresses():
    found = after("move=81:00.0@02:02.0", "acs=0@02:02.0", "acs=0@02:00.0", "cpu=intel")
    changed = {(each.provider, each.client): each for each in found.differences}
    assert changed[bdf("03:00.0"), bdf("81:00.0")].after == (MapType.BUS_ADDR, 4)
    # The card's old address still names the card.
    again = after("move=81:00.0@02:02.0", "move=81:00.0@80:01.0")
    assert again.machine.addresses == {}
    assert {each.before == each.after for each in again.differences} <= {True}


def test_devices_may_be_named_by_path():
    found = after("acs=0@pci0000:00/01.0/00.0/00.0", "acs=0@pci0000:00/01.0/00.0/01.0")
    assert len(found.differences) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nonsense", "is no change of a machine"),
        ("speed=5@01:00.0", "is no change of a machine"),
        ("acs=zz@02:00.0", "'zz' is no number"),
        ("acs=0x80@02:00.0", "is not between"),
        ("acs=0x1d", "names no device"),
        ("acs=0x1d@03:00.0", "has no ACS capability"),
        ("cpu=arm", "'arm' is no vendor"),
        ("cpu=amd:x", "'x' is no number"),
        ("bridge=8086@00", "'' is no hexadecimal number"),
        ("bridge=8086:09a2@40", "there is no root bus pci0000:40"),
        ("bridge=8086:09a2@zz", "'zz' is no hexadecimal number"),
        ("bridge=18086:09a2@00", "is no 16-bit number"),
        ("move=03:00.0@02:01.0", "there is already"),
        ("move=03:00.0@04:00.0", "no port"),
    ],
)
def test_a_change_that_makes_no_sense_is_an_error(text, words):
    with pytest.raises(UsageError, match=words):
        change(machine(), INTEL, [text])


def test_a_device_that_is_not_there_is_an_error():
    with pytest.raises(DeviceNotFoundError):
        change(machine(), INTEL, ["acs=0@42:00.0"])


def test_the_machine_as_it_is_stays_as_it_is():
    topology = machine()
    change(topology, INTEL, ["acs=0@02:00.0", "bridge=1022:1480@00", "move=03:00.0@02:02.0"])
    assert topology[bdf("02:00.0")].acs_control == 0x1D
    assert topology[bdf("00:00.0")].identity.device_id == 0x2F00
    assert bdf("03:00.0") in topology


def test_processors_are_parsed():
    assert parse_cpu("amd").is_zen
    assert parse_cpu("amd:0x17") == Cpu("AuthenticAMD", 0x17, 0)
    assert parse_cpu("amd:22").family == 22
    assert parse_cpu("intel").vendor == "GenuineIntel"
    assert not parse_cpu("other").is_zen
