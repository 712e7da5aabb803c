"""The software machine's kernel with P2P answers: who is told what, and who is refused."""

from __future__ import annotations

import errno

import pytest
from p2p_rig import build, opened

from vfiokit.abi import vfio_p2p as abi
from vfiokit.machine.kernel import guest_peers
from vfiokit.p2p import Peers
from vfiokit.p2p.number import MAP_TYPES
from vfiokit.vfio import open_device

# (provider, client): map type and distance by hand, from the rule of Linux's p2pdma.c: four nodes
# between functions of one switch; below another host bridge all nodes of both ways count.
EXPECTED = {
    ("a", "b"): (abi.VFIO_P2P_BUS_ADDR, 4),
    ("a", "a"): (abi.VFIO_P2P_BUS_ADDR, 0),
    ("c", "d"): (abi.VFIO_P2P_THRU_HOST_BRIDGE, 4),
    ("a", "c"): (abi.VFIO_P2P_THRU_HOST_BRIDGE, 8),
    ("a", "e"): (abi.VFIO_P2P_THRU_HOST_BRIDGE, 6),
    ("e", "f"): (abi.VFIO_P2P_NOT_SUPPORTED, 4),
}


@pytest.fixture(scope="module")
def host():
    assembly = build()
    guest_peers.load(assembly.kernel)
    with opened(assembly, *"abcdef") as devices:
        yield assembly, devices


@pytest.fixture
def vm(host):
    kernel = host[0].kernel
    fd = kernel.open(abi.VFIO_P2P_NODE)
    yield fd
    kernel.close(fd)


def register(host, vm, name, address, flags=abi.VFIO_GUEST_ADDRESS_SET) -> int:
    argument = abi.vfio_device_guest_address(
        argsz=16, flags=flags, vm_fd=vm, guest_address=address
    ).pack()
    return host[0].kernel.ioctl(host[1][name].fileno(), abi.VFIO_DEVICE_GUEST_ADDRESS, argument)


def ask(host, vm, provider, client, flags=0) -> tuple[int, int]:
    buffer = abi.vfio_p2p_guest_distance(
        argsz=24, flags=flags, provider=provider, client=client
    ).pack()
    host[0].kernel.ioctl(vm, abi.VFIO_P2P_GUEST_DISTANCE, buffer)
    found = abi.vfio_p2p_guest_distance.unpack_from(buffer)
    return found.map_type, found.distance


def ask_devices(host, provider, client) -> tuple[int, int]:
    buffer = abi.vfio_device_p2p_distance(argsz=20, client_fd=host[1][client].fileno()).pack()
    kernel = host[0].kernel
    kernel.ioctl(host[1][provider].fileno(), abi.VFIO_DEVICE_P2P_DISTANCE, buffer)
    found = abi.vfio_device_p2p_distance.unpack_from(buffer)
    return found.map_type, found.distance


@pytest.fixture
def fails():
    def check(number, call, *arguments, **named):
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is what is asserted
            call(*arguments, **named)
        assert errno.errorcode[caught.value.errno] == errno.errorcode[number]

    return check


@pytest.mark.parametrize(("pair", "expected"), EXPECTED.items())
def test_answers_are_the_rules_by_address_and_by_device(host, vm, pair, expected):
    for name in set(pair):
        register(host, vm, name, 0x0100 + ord(name))
    assert ask(host, vm, *(0x0100 + ord(name) for name in pair)) == expected
    assert ask_devices(host, *pair) == expected
    # The rule is the same both ways.
    assert ask_devices(host, *reversed(pair)) == expected


def test_every_pair_is_answered_as_the_whole_topology_is(host):
    assembly, _devices = host
    peers = Peers(assembly.topology())
    for one in "abcdef":
        for other in "abcdef":
            truth = peers.map_type(assembly[one], assembly[other])
            numbers = MAP_TYPES[truth.map_type], truth.distance
            assert ask_devices(host, one, other) == numbers


def test_acs_that_is_switched_later_changes_the_next_answer(host):
    assembly, _devices = host
    port = assembly.machine.functions[assembly["c"]]
    above = assembly.machine.fabric.parent(port)
    assert above is not None
    control = above.acs.offset + 6
    sibling = assembly.machine.fabric.parent(assembly.machine.functions[assembly["d"]])
    before = above.config_read(control, 2), sibling.config_read(sibling.acs.offset + 6, 2)
    above.config_write(control, 2, 0)
    sibling.config_write(sibling.acs.offset + 6, 2, 0)
    assert ask_devices(host, "c", "d") == (abi.VFIO_P2P_BUS_ADDR, 4)
    above.config_write(control, 2, before[0])
    sibling.config_write(sibling.acs.offset + 6, 2, before[1])
    assert ask_devices(host, "c", "d") == EXPECTED["c", "d"]


def test_address_of_nobody_is_enodev(host, vm, fails):
    register(host, vm, "a", 0x0100)
    fails(errno.ENODEV, ask, host, vm, 0x0100, 0x0200)
    fails(errno.ENODEV, ask, host, vm, 0x0200, 0x0100)


def test_another_machines_function_is_nobody_here(host, vm, fails):
    other = host[0].kernel.open(abi.VFIO_P2P_NODE)
    try:
        register(host, other, "b", 0x0100)
        register(host, vm, "a", 0x0200)
        fails(errno.ENODEV, ask, host, vm, 0x0200, 0x0100)
        fails(errno.EBUSY, register, host, vm, "b", 0x0300)
        fails(errno.EBUSY, register, host, vm, "b", 0, flags=abi.VFIO_GUEST_ADDRESS_CLEAR)
    finally:
        host[0].kernel.close(other)
    # Its machine is gone: the device is free.
    register(host, vm, "b", 0x0300)
    assert ask(host, vm, 0x0200, 0x0300) == EXPECTED["a", "b"]


def test_two_devices_cannot_have_one_address(host, vm, fails):
    register(host, vm, "a", 0x0100)
    fails(errno.EEXIST, register, host, vm, "b", 0x0100)
    register(host, vm, "a", 0x0200)  # moves
    register(host, vm, "b", 0x0100)
    assert ask(host, vm, 0x0200, 0x0100) == EXPECTED["a", "b"]


def test_cleared_address_is_gone_and_cannot_be_cleared_again(host, vm, fails):
    register(host, vm, "a", 0x0100)
    register(host, vm, "a", 0, flags=abi.VFIO_GUEST_ADDRESS_CLEAR)
    fails(errno.ENODEV, ask, host, vm, 0x0100, 0x0100)
    fails(errno.ENOENT, register, host, vm, "a", 0, flags=abi.VFIO_GUEST_ADDRESS_CLEAR)


def test_bad_requests_are_einval(host, vm, fails):
    fails(errno.EINVAL, register, host, vm, "a", 0x0100, flags=0)
    fails(errno.EINVAL, register, host, vm, "a", 0x0100, flags=3)
    fails(errno.EINVAL, register, host, vm, "a", 0x0100, flags=5)
    fails(errno.EINVAL, register, host, host[1]["b"].fileno(), "a", 0x0100)
    fails(errno.EBADF, register, host, (1 << 20) + 5000, "a", 0x0100)
    register(host, vm, "a", 0x0100)
    fails(errno.EINVAL, ask, host, vm, 0x0100, 0x0100, flags=1)
    kernel, fd = host[0].kernel, host[1]["a"].fileno()
    for request, size in (
        (abi.VFIO_DEVICE_GUEST_ADDRESS, 16),
        (abi.VFIO_DEVICE_P2P_DISTANCE, 20),
    ):
        fails(errno.EINVAL, kernel.ioctl, fd, request, bytearray(size))  # argsz 0
        fails(errno.EFAULT, kernel.ioctl, fd, request, 1)
    client = abi.vfio_device_p2p_distance(argsz=20, client_fd=vm).pack()
    fails(errno.EINVAL, kernel.ioctl, fd, abi.VFIO_DEVICE_P2P_DISTANCE, client)
    flagged = abi.vfio_device_p2p_distance(argsz=20, flags=1, client_fd=fd).pack()
    fails(errno.EINVAL, kernel.ioctl, fd, abi.VFIO_DEVICE_P2P_DISTANCE, flagged)
    fails(errno.ENOTTY, kernel.ioctl, vm, abi.VFIO_P2P_GUEST_DISTANCE + 1, bytearray(24))


def test_device_that_closes_leaves_its_machine(fails):
    assembly = build("rp0(sw(nvme:a, nvme:b))")
    guest_peers.load(assembly.kernel)
    with opened(assembly, "a", "b") as devices:
        host = assembly, devices
        vm = assembly.kernel.open(abi.VFIO_P2P_NODE)
        register(host, vm, "a", 0x0100)
        register(host, vm, "b", 0x0200)
        devices["a"].close()
        fails(errno.ENODEV, ask, host, vm, 0x0100, 0x0200)
        with open_device(assembly.kernel, assembly["a"]) as again:
            devices["a"] = again
            register(host, vm, "a", 0x0300)
            assert ask(host, vm, 0x0300, 0x0200) == (abi.VFIO_P2P_BUS_ADDR, 4)
        assembly.kernel.close(vm)


def test_a_plain_kernel_has_none_of_it():
    assembly = build("rp0(nvme:a)")
    with pytest.raises(FileNotFoundError):
        assembly.kernel.open(abi.VFIO_P2P_NODE)
    with opened(assembly, "a") as devices, pytest.raises(OSError) as caught:  # noqa: PT011
        ask_devices((assembly, devices), "a", "a")
    assert caught.value.errno == errno.ENOTTY


def test_loading_twice_is_loading_once():
    kernel = build("rp0(nvme:a)").kernel
    assert guest_peers.load(kernel) is guest_peers.load(kernel)


def test_unknown_processor_leaves_a_distrusted_pair_unknown():
    # QEMU's own host bridge tells nothing of the processor, which decides here.
    assembly = build("rp0(sw acs(nvme:c, nvme:d))")
    guest_peers.load(assembly.kernel)
    with opened(assembly, "c", "d") as devices:
        assert ask_devices((assembly, devices), "c", "d") == (abi.VFIO_P2P_UNKNOWN, 4)
