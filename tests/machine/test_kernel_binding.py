"""sysfs of PCI functions: drivers, overrides, resets, DMA ownership."""

from __future__ import annotations

import errno

import pytest
from kernel_host import EDU, FIRST, NIC, PORT, SECOND, SHARED_PORT, KernelHost, refuses

DRIVERS = "/sys/bus/pci/drivers"
DEVICES = "/sys/bus/pci/devices"


@pytest.fixture
def host() -> KernelHost:
    return KernelHost()


def write(host: KernelHost, path: str, data: bytes) -> None:
    host.kernel.tree.write(path, data)


def read(host: KernelHost, path: str) -> bytes:
    return host.kernel.tree.read(path)


def test_a_bound_function_has_both_links_and_a_group_node(host: KernelHost) -> None:
    host.bind(NIC)
    tree, number = host.kernel.tree, host.group_number(NIC)
    assert tree.readlink(f"{DEVICES}/{NIC}/driver") == "../../../../bus/pci/drivers/vfio-pci"
    assert str(NIC) in tree.list(f"{DRIVERS}/vfio-pci")
    assert read(host, f"{DEVICES}/{NIC}/uevent").startswith(b"DRIVER=vfio-pci\n")
    assert tree.exists(f"/dev/vfio/{number}")
    assert tree.readlink(f"/sys/class/vfio/{number}") == f"../../devices/virtual/vfio/{number}"
    assert tree.exists(f"/sys/devices/virtual/vfio/{number}/dev")


def test_unbinding_the_last_member_removes_the_group_node(host: KernelHost) -> None:
    before = host.kernel.snapshot()
    host.bind(FIRST)
    host.bind(SECOND)
    number = host.group_number(FIRST)
    host.unbind(FIRST)
    assert host.kernel.tree.exists(f"/dev/vfio/{number}")
    host.unbind(SECOND)
    assert not host.kernel.tree.exists(f"/dev/vfio/{number}")
    for bdf in (FIRST, SECOND):
        write(host, f"{DEVICES}/{bdf}/driver_override", b"\n")
    assert host.kernel.snapshot() == before


@pytest.mark.parametrize(
    ("path", "data", "code"),
    [
        (f"{DRIVERS}/vfio-pci/bind", b"0000:01:00.0", errno.ENODEV),  # no override, no id
        (f"{DRIVERS}/vfio-pci/bind", b"0000:99:00.0", errno.ENODEV),
        (f"{DRIVERS}/vfio-pci/bind", b"01:00.0", errno.ENODEV),  # names, not addresses
        (f"{DRIVERS}/vfio-pci/unbind", b"0000:01:00.0", errno.ENODEV),
        (f"{DRIVERS}/nvme/unbind", b"0000:00:01.0", errno.ENODEV),  # pcieport has it
        ("/sys/bus/pci/drivers_probe", b"0000:99:00.0", errno.ENODEV),
        (f"{DRIVERS}/vfio-pci/new_id", b"8086", errno.EINVAL),
        (f"{DRIVERS}/vfio-pci/new_id", b"words", errno.EINVAL),
        (f"{DRIVERS}/vfio-pci/new_id", b"8086 1572 0 0 0 0 5", errno.EINVAL),
        (f"{DRIVERS}/nvme/new_id", b"144d a808 ffffffff ffffffff 010802 ffffff", errno.EEXIST),
        (f"{DRIVERS}/vfio-pci/remove_id", b"8086", errno.EINVAL),
        (f"{DRIVERS}/vfio-pci/remove_id", b"8086 1572", errno.ENODEV),
        (f"{DEVICES}/{NIC}/driver_override", b"x" * 4096, errno.EINVAL),
        (f"{DEVICES}/{NIC}/driver_override", b"x" * 4095, errno.EINVAL),
        (f"{DEVICES}/{NIC}/reset", b"0", errno.EINVAL),
        (f"{DEVICES}/{NIC}/reset", b"yes", errno.EINVAL),
        (f"{DEVICES}/{NIC}/reset_method", b"flr magic", errno.EINVAL),
        (f"{DEVICES}/{NIC}/vendor", b"1", errno.EACCES),
        (f"{DEVICES}/{NIC}/power_state", b"D0", errno.EACCES),
    ],
)
def test_writes_are_refused_as_the_kernel_does(
    host: KernelHost, path: str, data: bytes, code: int
) -> None:
    with refuses(code):
        write(host, path, data)


def test_binding_a_bound_function_is_ebusy(host: KernelHost) -> None:
    host.bind(NIC)
    with refuses(errno.EBUSY):
        write(host, f"{DRIVERS}/vfio-pci/bind", str(NIC).encode())


def test_binding_what_the_override_forbids_is_enodev(host: KernelHost) -> None:
    write(host, f"{DEVICES}/{NIC}/driver_override", b"nvme\n")
    with refuses(errno.ENODEV):
        write(host, f"{DRIVERS}/vfio-pci/bind", str(NIC).encode())


def test_override_matches_any_function_and_a_line_feed_clears_it(host: KernelHost) -> None:
    path = f"{DEVICES}/{NIC}/driver_override"
    assert read(host, path) == b"(null)\n"
    write(host, path, b"vfio-pci\n")
    assert read(host, path) == b"vfio-pci\n"
    for clearing in (b"\n", b""):
        write(host, path, b"vfio-pci")
        write(host, path, clearing)
        assert read(host, path) == b"(null)\n"


def test_a_bridge_cannot_be_assigned(host: KernelHost) -> None:
    host.unbind(PORT)
    with refuses(errno.EINVAL):
        host.bind(PORT)
    assert host.kernel.device(PORT).driver is None


def test_without_iommu_there_is_no_group_and_binding_is_einval() -> None:
    host = KernelHost(iommu=False)
    assert not host.kernel.tree.exists(f"{DEVICES}/{NIC}/iommu_group")
    with refuses(errno.EINVAL):
        host.bind(NIC)


def test_new_id_binds_matching_unbound_functions_at_once(host: KernelHost) -> None:
    write(host, f"{DRIVERS}/vfio-pci/new_id", b"1af4 1041\n")
    assert [host.kernel.device(bdf).driver for bdf in (FIRST, SECOND)] == ["vfio-pci"] * 2
    assert host.kernel.device(NIC).driver is None
    with refuses(errno.EEXIST):
        write(host, f"{DRIVERS}/vfio-pci/new_id", b"1af4 1041")
    write(host, f"{DRIVERS}/vfio-pci/remove_id", b"1af4 1041")
    host.unbind(FIRST)
    write(host, "/sys/bus/pci/drivers_probe", str(FIRST).encode())
    assert host.kernel.device(FIRST).driver is None


def test_new_id_with_subsystem_and_class_matches_only_those(host: KernelHost) -> None:
    write(host, f"{DRIVERS}/vfio-pci/new_id", b"8086 1572 8086 2 0 0")
    assert host.kernel.device(NIC).driver is None
    write(host, f"{DRIVERS}/vfio-pci/new_id", b"8086 ffffffff 8086 1 020000 ff0000")
    assert host.kernel.device(NIC).driver == "vfio-pci"


def test_drivers_probe_honours_the_override(host: KernelHost) -> None:
    write(host, f"{DEVICES}/{NIC}/driver_override", b"vfio-pci")
    write(host, "/sys/bus/pci/drivers_probe", f"{NIC}\n".encode())
    assert host.kernel.device(NIC).driver == "vfio-pci"
    write(host, "/sys/bus/pci/drivers_probe", str(NIC).encode())  # bound: nothing happens
    assert host.kernel.device(NIC).driver == "vfio-pci"


def test_drivers_autoprobe_shows_what_was_written(host: KernelHost) -> None:
    write(host, "/sys/bus/pci/drivers_autoprobe", b"0")
    assert read(host, "/sys/bus/pci/drivers_autoprobe") == b"0\n"


def test_unbinding_an_open_function_requests_it_back_and_is_ebusy(host: KernelHost) -> None:
    fd = host.open_device(NIC)
    (event,) = host.events(1)
    host.set_irqs(fd, 0x24, 4, 0, 1, event.to_bytes(4, "little"))
    with refuses(errno.EBUSY):
        host.unbind(NIC)
    assert host.taken(event) == 1
    assert host.kernel.device(NIC).driver == "vfio-pci"
    host.kernel.close(fd)
    host.unbind(NIC)


def test_a_host_driver_cannot_bind_while_a_user_owns_the_group(host: KernelHost) -> None:
    container, _group = host.ready(FIRST)
    write(host, f"{DEVICES}/{SECOND}/driver_override", b"nvme")
    with refuses(errno.EBUSY):
        write(host, f"{DRIVERS}/nvme/bind", str(SECOND).encode())
    host.kernel.close(container)


def test_acs_is_enabled_at_boot_where_the_port_has_it(host: KernelHost) -> None:
    port = host.machine.functions[PORT]
    assert port.acs is not None
    assert port.config_read(port.acs.offset + 6, 2) == 0x1D
    assert host.group_number(NIC) != host.group_number(PORT)
    assert host.group_number(FIRST) == host.group_number(SECOND) == host.group_number(SHARED_PORT)


def test_reset_methods_follow_the_capabilities(host: KernelHost) -> None:
    assert read(host, f"{DEVICES}/{NIC}/reset_method") == b"flr pm bus\n"
    assert not host.kernel.tree.exists(f"{DEVICES}/{EDU}/reset")  # root bus, no FLR, no PM
    with refuses(errno.ENOENT):
        write(host, f"{DEVICES}/{EDU}/reset", b"1")


def test_reset_method_can_be_chosen_cleared_and_restored(host: KernelHost) -> None:
    path = f"{DEVICES}/{NIC}/reset_method"
    write(host, path, b"pm flr\n")
    assert read(host, path) == b"pm flr\n"
    write(host, path, b"")
    assert read(host, path) == b"\n"
    with refuses(errno.ENOTTY):
        write(host, f"{DEVICES}/{NIC}/reset", b"1")
    write(host, path, b"default")
    assert read(host, path) == b"flr pm bus\n"


@pytest.mark.parametrize("method", ["flr", "pm", "bus"])
def test_every_reset_method_restores_configuration_space(host: KernelHost, method: str) -> None:
    write(host, f"{DEVICES}/{NIC}/reset_method", method.encode())
    before = read(host, f"{DEVICES}/{NIC}/config")
    seen: list[object] = []
    reset = host.nic.reset
    host.nic.reset = lambda kind: (seen.append(kind), reset(kind))[1]  # type: ignore[method-assign]
    write(host, f"{DEVICES}/{NIC}/reset", b"1\n")
    assert len(seen) == 1
    assert read(host, f"{DEVICES}/{NIC}/config") == before


def test_config_is_written_at_any_offset_and_reaches_hardware(host: KernelHost) -> None:
    fd = host.kernel.open(f"{DEVICES}/{NIC}/config")
    host.kernel.pwrite(fd, b"\x10\x20", 0x0C)
    assert host.kernel.pread(fd, 2, 0x0C) == b"\x10\x00"  # the latency timer is not writable
    assert host.nic.config_read(0x0C, 1) == 0x10
    host.kernel.close(fd)


def test_idle_vfio_function_sleeps_and_wakes_when_opened(host: KernelHost) -> None:
    host.bind(NIC)
    assert read(host, f"{DEVICES}/{NIC}/power_state") == b"D3hot\n"
    fd = host.open_device(NIC)
    assert read(host, f"{DEVICES}/{NIC}/power_state") == b"D0\n"
    host.kernel.close(fd)
    assert read(host, f"{DEVICES}/{NIC}/power_state") == b"D3hot\n"
    host.unbind(NIC)
    assert read(host, f"{DEVICES}/{NIC}/power_state") == b"D0\n"
