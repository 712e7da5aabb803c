"""Virtual functions: what the hardware shows, what the kernel makes of them."""

from __future__ import annotations

import errno

import pytest

from vfiokit.driver.nvme import NvmeController
from vfiokit.host.source import open_tree
from vfiokit.machine.assembly import Assembly, assemble
from vfiokit.machine.twin import build_twin
from vfiokit.pci.address import Bdf
from vfiokit.pci.capability.sriov import CONTROL, NUM_VFS
from vfiokit.vfio import open_device

DEVICES = "/sys/bus/pci/devices"


@pytest.fixture
def machine() -> Assembly:
    return assemble("rp(nvme:pf vfs=4), rp(igb:net), rp(nvme:plain)", ram=1 << 30)


def write_count(machine: Assembly, count: int, name: str = "pf") -> None:
    path = f"{DEVICES}/{machine[name]}/sriov_numvfs"
    machine.kernel.tree.write(path, b"%d\n" % count)


def virtual(machine: Assembly, number: int, name: str = "pf") -> Bdf:
    link = machine.kernel.tree.readlink(f"{DEVICES}/{machine[name]}/virtfn{number}")
    return Bdf.parse(link.rpartition("/")[2])


def give_to_vfio(machine: Assembly, bdf: Bdf) -> None:
    tree = machine.kernel.tree
    if tree.exists(f"{DEVICES}/{bdf}/driver"):
        tree.write(f"{DEVICES}/{bdf}/driver/unbind", str(bdf).encode())
    tree.write(f"{DEVICES}/{bdf}/driver_override", b"vfio-pci")
    tree.write("/sys/bus/pci/drivers_probe", str(bdf).encode())


def test_functions_that_come_and_go_leave_every_file_as_it_was(machine) -> None:
    before = machine.kernel.snapshot()
    write_count(machine, 4)
    assert machine.kernel.snapshot() != before
    write_count(machine, 0)
    assert machine.kernel.snapshot() == before


def test_native_driver_takes_the_functions(machine) -> None:
    write_count(machine, 2)
    for number in range(2):
        link = f"{DEVICES}/{virtual(machine, number)}/driver"
        assert machine.kernel.tree.readlink(link).endswith("/nvme")


def test_configuration_space_is_that_of_a_virtual_function(machine) -> None:
    write_count(machine, 1)
    config = machine.kernel.tree.read(f"{DEVICES}/{virtual(machine, 0)}/config")
    assert config[0:4] == b"\xff" * 4
    assert config[0x10:0x28] == bytes(0x18)
    function = machine.machine.functions[virtual(machine, 0)]
    function.config_write(0x04, 2, 0x0007)
    function.config_write(0x10, 4, 0xFFFF_FFFF)
    assert function.config_read(0x04, 2) == 0x0004
    assert function.config_read(0x10, 4) == 0


def test_topology_of_sysfs_agrees_with_the_capability(machine) -> None:
    write_count(machine, 4)
    topology = machine.topology()
    physical = topology[machine["pf"]]
    assert [each.bdf for each in topology.virtual_functions(physical)] == [
        Bdf.from_requester_id(physical.bdf.requester_id + 1 + index) for index in range(4)
    ]


def test_offset_and_stride_place_the_functions_of_a_network_card(machine) -> None:
    machine.kernel.tree.write(f"{DEVICES}/{machine['net']}/driver_override", b"igb")
    write_count(machine, 3, "net")
    ids = [virtual(machine, number, "net").requester_id for number in range(3)]
    first = machine["net"].requester_id + 0x80
    assert ids == [first, first + 2, first + 4]


def test_bars_of_the_functions_lie_one_after_the_other(machine) -> None:
    write_count(machine, 2)
    fabric, functions = machine.machine.fabric, machine.machine.functions
    starts = []
    for number in range(2):
        text = machine.kernel.tree.read(f"{DEVICES}/{virtual(machine, number)}/resource").decode()
        start, end, _flags = (int(word, 16) for word in text.splitlines()[0].split())
        assert end - start + 1 == functions[virtual(machine, number)].bars[0].size
        assert fabric.cpu_read(start + 8, 4) == 0x0001_0400  # version 1.4
        starts.append(start)
    assert starts[1] == starts[0] + 0x4000
    write_count(machine, 0)
    assert fabric.cpu_read(starts[0] + 8, 4) == 0xFFFF_FFFF


def test_reset_of_the_physical_function_keeps_the_functions(machine) -> None:
    write_count(machine, 2)
    text = machine.kernel.tree.read(f"{DEVICES}/{virtual(machine, 1)}/resource").decode()
    start = int(text.split()[0], 16)
    machine.kernel.tree.write(f"{DEVICES}/{machine['pf']}/reset", b"1")
    assert machine.machine.fabric.cpu_read(start + 8, 4) == 0x0001_0400


def test_driver_works_with_a_virtual_function_through_its_own_group(machine) -> None:
    write_count(machine, 2)
    for number in range(2):
        give_to_vfio(machine, virtual(machine, number))
    data = bytes(range(256)) * 16
    with (
        open_device(machine.kernel, virtual(machine, 0)) as device,
        NvmeController(device) as controller,
    ):
        controller.namespace(1).write_bytes(0, data)
    with (
        open_device(machine.kernel, virtual(machine, 1)) as device,
        NvmeController(device) as controller,
    ):
        assert controller.namespace(1).read_bytes(0, len(data) // 512) == data


def test_open_function_cannot_be_disabled(machine) -> None:
    write_count(machine, 2)
    give_to_vfio(machine, virtual(machine, 1))
    with open_device(machine.kernel, virtual(machine, 1)):
        with pytest.raises(OSError, match="is open") as refused:
            write_count(machine, 0)
        assert refused.value.errno == errno.EBUSY
        assert machine.kernel.tree.read(f"{DEVICES}/{machine['pf']}/sriov_numvfs") == b"2\n"
    write_count(machine, 0)
    assert not machine.kernel.tree.exists(f"{DEVICES}/{machine['pf']}/virtfn0")


def test_vfio_does_not_take_a_function_that_has_virtual_ones(machine) -> None:
    write_count(machine, 1)
    give_to_vfio(machine, machine["pf"])
    assert not machine.kernel.tree.exists(f"{DEVICES}/{machine['pf']}/driver")


def test_sleeping_function_wakes_for_its_virtual_ones(machine) -> None:
    tree = machine.kernel.tree
    give_to_vfio(machine, machine["pf"])
    function = machine.machine.functions[machine["pf"]]
    assert function.power_state == 3
    tree.write("/sys/module/vfio_pci/parameters/enable_sriov", b"Y")
    write_count(machine, 1)
    assert function.power_state == 0
    write_count(machine, 0)
    assert function.power_state == 3


def test_closing_the_physical_function_keeps_the_functions(machine) -> None:
    machine.kernel.tree.write("/sys/module/vfio_pci/parameters/enable_sriov", b"Y")
    give_to_vfio(machine, machine["pf"])
    with open_device(machine.kernel, machine["pf"]):
        write_count(machine, 1)
    function = machine.machine.functions[machine["pf"]]
    (capability,) = [each for each in function.capabilities() if each.id == 0x10 and each.extended]
    assert capability.value(CONTROL) & 0x9 == 0x9
    assert capability.value(NUM_VFS) == 1


def test_word_that_is_no_boolean_is_no_autoprobe(machine) -> None:
    path = f"{DEVICES}/{machine['pf']}/sriov_drivers_autoprobe"
    with pytest.raises(OSError, match="neither") as refused:
        machine.kernel.tree.write(path, b"maybe")
    assert refused.value.errno == errno.EINVAL
    assert machine.kernel.tree.read(path) == b"1\n"


def test_functions_of_a_recorded_host_go_and_others_come() -> None:
    kernel = build_twin(open_tree("demo")).kernel
    path = f"{DEVICES}/0000:08:00.0"
    recorded = [each for each in kernel.tree.list(path) if each.startswith("virtfn")]
    assert len(recorded) == 16
    kernel.tree.write(f"{path}/sriov_numvfs", b"0")
    assert not [each for each in kernel.tree.list(path) if each.startswith("virtfn")]
    kernel.tree.write(f"{path}/sriov_numvfs", b"2")
    assert kernel.tree.readlink(f"{path}/virtfn1").endswith("/0000:08:00.5")
    assert kernel.tree.read(f"{path}/virtfn1/vendor") == b"0x10de\n"


def test_number_of_a_driver_that_allows_less_than_the_capability_is_the_limit() -> None:
    kernel = build_twin(open_tree("demo")).kernel
    path = f"{DEVICES}/0000:04:00.0"  # ixgbe keeps one of 64 for the PF
    assert kernel.tree.read(f"{path}/sriov_totalvfs") == b"63\n"
    with pytest.raises(OSError, match="63") as refused:
        kernel.tree.write(f"{path}/sriov_numvfs", b"64")
    assert refused.value.errno == errno.ERANGE
