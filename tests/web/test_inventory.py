"""What the pictures know of a machine, against the machine."""

from __future__ import annotations

from servers import ACS_ON, function, gpu_server, repeated

from vfiokit.isolation.group import predict
from vfiokit.pci.address import Bdf
from vfiokit.pci.topology import Topology
from vfiokit.web.inventory import Inventory, Item, collect


def _of(inventory: Inventory, address: str) -> Item:
    return next(item for item in inventory.items if item.bdf == Bdf.parse(address))


def test_every_function_is_there_once_in_address_order(demo: Topology) -> None:
    assert [item.bdf for item in collect(demo).items] == list(demo.functions)


def test_groups_and_reasons_are_the_predicted_ones(demo: Topology) -> None:
    inventory, grouping = collect(demo), predict(demo)
    assert [group.id for group in inventory.groups] == [group.id for group in grouping.groups]
    for group, predicted in zip(inventory.groups, grouping.groups, strict=True):
        members = tuple(inventory.items[number].bdf for number in group.members)
        assert members == predicted.members
        assert group.why == tuple(grouping.why(bdf).text() for bdf in members)


def test_parents_and_root_buses_are_those_of_the_topology(demo: Topology) -> None:
    inventory = collect(demo)
    for item in inventory.items:
        above = demo.upstream_bridge(demo[item.bdf])
        parent = None if item.parent is None else inventory.items[item.parent].bdf
        assert parent == (above.bdf if above is not None else None)
        host = demo.host_bridge_of(demo[item.bdf])
        assert inventory.hosts[item.host].name == str(host)


def test_virtual_functions_know_their_physical_one(demo: Topology) -> None:
    inventory = collect(demo)
    virtual = [item for item in inventory.items if item.physfn is not None]
    assert len(virtual) == 16
    assert {str(inventory.items[item.physfn or 0].bdf) for item in virtual} == {"0000:08:00.0"}


def test_ports_tell_their_kind_and_acs() -> None:
    inventory = collect(gpu_server())
    assert _of(inventory, "07:01.0").port == "RP"
    assert _of(inventory, "08:00.0").port == "USP"
    assert _of(inventory, "08:00.0").acs_text == "no ACS"
    on, off = _of(inventory, "09:00.0"), _of(inventory, "83:00.0")
    assert (on.port, on.acs_text, on.redirects) == ("DSP", "ACS SV RR CR UF", True)
    assert (off.port, off.acs_text, off.redirects) == ("DSP", "ACS off", False)
    assert _of(inventory, "0b:00.0").port == ""


def test_links_say_what_they_are_and_what_they_could_be(demo: Topology) -> None:
    link = _of(collect(demo), "00:02.2").link
    assert link is not None
    assert (link.text, link.best, link.rate) == ("5 GT/s ×8", "8 GT/s ×8", 40)
    assert _of(collect(demo), "00:01.1").link is None  # no card: no width


def test_addresses_are_short_only_where_that_is_not_ambiguous(demo: Topology) -> None:
    assert _of(collect(demo), "05:00.0").address == "05:00.0"
    twice = collect(repeated(demo, 2))
    assert _of(twice, "0000:05:00.0").address == "0000:05:00.0"


def test_numa_node_of_a_root_bus_is_that_of_most_of_its_functions() -> None:
    assert [host.numa_node for host in collect(gpu_server()).hosts] == [0] * 4 + [1] * 4


def test_title_has_everything_that_the_box_has_no_room_for() -> None:
    title = _of(collect(gpu_server()), "0b:00.0").title
    for words in ("NVIDIA Corporation", "10de:2330", "driver nvidia", "NUMA node 0", "32 GT/s ×16"):
        assert words in title


def test_unknown_names_and_odd_links_fall_back_to_the_class() -> None:
    odd = function("00:01.0", ids=(0xFFFE, 0xFFFE), class_code=0x123456, link=("Unknown", 0))
    item = collect(Topology([odd])).items[0]
    assert item.link is None
    assert item.name.endswith(item.class_name)
    assert item.driver == ""


def test_what_no_byte_tells_of_acs_is_not_called_absent() -> None:
    port = function("00:01.0", ids=(1, 2), class_code=0x060400, secondary=1)
    port.config = type(port.config)(port.config.data[:256])
    item = collect(Topology([port])).items[0]
    assert item.acs_text == "ACS not known"
    assert _of(collect(gpu_server()), "08:00.0").acs_text == "no ACS"


def test_leaks_are_told() -> None:
    leaks = collect(gpu_server()).leaks
    assert leaks
    assert all("0000:82:00.0" in leak or "switch" in leak for leak in leaks)
    assert not collect(gpu_server(acs=(ACS_ON,) * 8)).leaks
