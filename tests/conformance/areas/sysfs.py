"""Binding, resetting and looking at functions through sysfs.

Facts: Linux ``drivers/base/bus.c``, ``drivers/pci/{pci-driver,pci-sysfs,iov}.c``,
``drivers/iommu/iommu.c``.
"""

from __future__ import annotations

import errno

from conformance.behaviour import SRIOV, behaviour
from conformance.host import BUS, DEVICES, Host

VFIO = f"{BUS}/drivers/vfio-pci"
NVME = f"{BUS}/drivers/nvme"
GROUPS = "/sys/kernel/iommu_groups"
EDU_ID = "1234 11e8"
BINDING = "drivers/base/bus.c, drivers/pci/pci-driver.c"
RESET = "drivers/pci/pci.c, pci-sysfs.c"
SRIOV_SOURCE = "drivers/pci/iov.c"
IOMMU = "drivers/iommu/iommu.c"
CONFIG = "drivers/pci/probe.c, pci-sysfs.c"


def _free(host: Host, role: str) -> str:
    """A function without driver and override; its address."""
    host.unbind(role)
    host.write(host.path(role, "driver_override"), "\n")
    return str(host.roles[role])


@behaviour("sysfs/override-and-bind", BINDING)
def override_and_bind(host: Host) -> None:
    address = _free(host, "edu")
    host.write(host.path("edu", "driver_override"), "vfio-pci")
    host.write(f"{VFIO}/bind", address)
    assert host.driver("edu") == "vfio-pci"
    assert address in host.kernel.tree.list(VFIO)


@behaviour("sysfs/override-and-probe", BINDING)
def override_and_probe(host: Host) -> None:
    address = _free(host, "edu")
    host.write(host.path("edu", "driver_override"), "vfio-pci\n")
    host.write(f"{BUS}/drivers_probe", address + "\n")
    assert host.driver("edu") == "vfio-pci"


@behaviour("sysfs/bind-without-match-is-enodev", BINDING, error=errno.ENODEV)
def bind_no_match(host: Host) -> None:
    address = _free(host, "edu")
    for driver in (VFIO, NVME):
        with host.refuses(errno.ENODEV):
            host.write(f"{driver}/bind", address)


@behaviour("sysfs/bind-of-nothing-is-enodev", BINDING, error=errno.ENODEV)
def bind_nothing(host: Host) -> None:
    for words in ("0000:7f:1f.7", "nonsense", ""):
        if words:
            with host.refuses(errno.ENODEV):
                host.write(f"{VFIO}/bind", words)


@behaviour("sysfs/bind-needs-the-full-address", BINDING, error=errno.ENODEV)
def bind_short(host: Host) -> None:
    address = _free(host, "edu")
    host.write(host.path("edu", "driver_override"), "vfio-pci")
    with host.refuses(errno.ENODEV):
        host.write(f"{VFIO}/bind", address.removeprefix("0000:"))


@behaviour("sysfs/bind-of-a-bound-function-is-ebusy", BINDING, binds="edu", error=errno.EBUSY)
def bind_bound(host: Host) -> None:
    with host.refuses(errno.EBUSY):
        host.write(f"{VFIO}/bind", str(host.roles["edu"]))


@behaviour("sysfs/override-names-the-only-driver", BINDING, error=errno.ENODEV)
def override_only(host: Host) -> None:
    address = _free(host, "nvme")
    host.write(host.path("nvme", "driver_override"), "vfio-pci")
    with host.refuses(errno.ENODEV):
        host.write(f"{NVME}/bind", address)


@behaviour("sysfs/override-to-nobody-keeps-every-driver-away", BINDING)
def override_nobody(host: Host) -> None:
    address = _free(host, "nvme")
    host.write(host.path("nvme", "driver_override"), "no-such-driver")
    host.write(f"{BUS}/drivers_probe", address)
    assert host.driver("nvme") == ""


@behaviour("sysfs/override-of-a-bound-function-changes-nothing-yet", BINDING, native="nvme")
def override_later(host: Host) -> None:
    host.write(host.path("nvme", "driver_override"), "vfio-pci")
    assert host.driver("nvme") == "nvme"


@behaviour("sysfs/unbind-from-another-driver-is-enodev", BINDING, binds="edu", error=errno.ENODEV)
def unbind_other(host: Host) -> None:
    with host.refuses(errno.ENODEV):
        host.write(f"{NVME}/unbind", str(host.roles["edu"]))
    assert host.driver("edu") == "vfio-pci"


@behaviour("sysfs/unbind-of-an-unbound-function-is-enodev", BINDING, error=errno.ENODEV)
def unbind_twice(host: Host) -> None:
    address = _free(host, "edu")
    with host.refuses(errno.ENODEV):
        host.write(f"{VFIO}/unbind", address)


@behaviour("sysfs/unbound-function-has-no-driver-link", BINDING)
def no_link(host: Host) -> None:
    address = _free(host, "edu")
    assert not host.kernel.tree.exists(host.path("edu", "driver"))
    assert address not in host.kernel.tree.list(VFIO)


@behaviour("sysfs/override-reads-back", BINDING)
def override_reads(host: Host) -> None:
    _free(host, "edu")
    path = host.path("edu", "driver_override")
    assert host.read(path) == "(null)"
    host.write(path, "some-driver")
    assert host.read(path) == "some-driver"
    host.write(path, "another\n")
    assert host.read(path) == "another"


@behaviour("sysfs/line-feed-clears-the-override", BINDING)
def override_clears(host: Host) -> None:
    _free(host, "edu")
    path = host.path("edu", "driver_override")
    host.write(path, "some-driver")
    host.write(path, "\n")
    assert host.read(path) == "(null)"


@behaviour("sysfs/override-of-a-page-is-einval", BINDING, error=errno.EINVAL)
def override_long(host: Host) -> None:
    _free(host, "edu")
    with host.refuses(errno.EINVAL):
        host.write(host.path("edu", "driver_override"), "x" * 4095)


@behaviour("sysfs/probe-of-nothing", BINDING, error=errno.ENODEV)
def probe_nothing(host: Host) -> None:
    with host.refuses(errno.ENODEV):
        host.write(f"{BUS}/drivers_probe", "0000:7f:1f.7")


@behaviour("sysfs/probe-without-match-is-no-error", BINDING)
def probe_no_match(host: Host) -> None:
    address = _free(host, "edu")
    host.write(f"{BUS}/drivers_probe", address)
    assert host.driver("edu") == ""


@behaviour("sysfs/native-driver-comes-back", BINDING, binds="nvme")
def native_back(host: Host) -> None:
    address = _free(host, "nvme")
    host.write(f"{BUS}/drivers_probe", address)
    assert host.driver("nvme") == "nvme"


@behaviour("sysfs/new-id-binds-at-once", BINDING)
def new_id(host: Host) -> None:
    _free(host, "edu")
    host.finally_write(f"{VFIO}/remove_id", EDU_ID)
    host.write(f"{VFIO}/new_id", EDU_ID)
    assert host.driver("edu") == "vfio-pci"
    host.write(f"{VFIO}/remove_id", EDU_ID)
    assert host.driver("edu") == "vfio-pci"


@behaviour("sysfs/new-id-twice-is-eexist", BINDING, error=errno.EEXIST)
def new_id_twice(host: Host) -> None:
    host.finally_write(f"{VFIO}/remove_id", "1234 5678")
    host.write(f"{VFIO}/new_id", "1234 5678")
    with host.refuses(errno.EEXIST):
        host.write(f"{VFIO}/new_id", "1234 5678")


@behaviour("sysfs/new-id-of-one-number-is-einval", BINDING, error=errno.EINVAL)
def new_id_short(host: Host) -> None:
    for words in ("1234", "zz", "1234 zz"):
        with host.refuses(errno.EINVAL):
            host.write(f"{VFIO}/new_id", words)


@behaviour("sysfs/new-id-of-a-known-class-is-eexist", BINDING, error=errno.EEXIST)
def new_id_known(host: Host) -> None:
    with host.refuses(errno.EEXIST):
        host.write(f"{NVME}/new_id", "1b36 10 ffffffff ffffffff 10802 ffffff")


@behaviour("sysfs/remove-id-that-was-not-added-is-enodev", BINDING, error=errno.ENODEV)
def remove_id(host: Host) -> None:
    with host.refuses(errno.ENODEV):
        host.write(f"{VFIO}/remove_id", "1234 5678")


@behaviour("sysfs/remove-id-of-one-number-is-einval", BINDING, error=errno.EINVAL)
def remove_id_short(host: Host) -> None:
    with host.refuses(errno.EINVAL):
        host.write(f"{VFIO}/remove_id", "1234")


# --- Reset ---


@behaviour("sysfs/reset-methods-in-order", RESET)
def reset_methods(host: Host) -> None:
    seen = {
        role: host.read(host.path(role, "reset_method"))
        for role in ("edu", "nvme", "second", "nic", "testdev")
    }
    assert seen == {
        "edu": "bus",
        "nvme": "flr bus",
        "second": "flr",
        "nic": "pm bus",
        "testdev": "bus",
    }


@behaviour("sysfs/first-function-was-alone-when-its-resets-were-found", RESET)
def reset_first(host: Host) -> None:
    assert host.read(host.path("first", "reset_method")) == "flr bus"


@behaviour("sysfs/function-on-the-root-bus-has-no-reset", RESET)
def reset_rooted(host: Host) -> None:
    assert not host.kernel.tree.exists(host.path("rooted", "reset"))
    assert not host.kernel.tree.exists(host.path("rooted", "reset_method"))


@behaviour("sysfs/reset", RESET)
def reset(host: Host) -> None:
    _free(host, "nvme")
    host.write(host.path("nvme", "reset"), "1")
    host.write(host.path("nvme", "reset"), "1\n")


@behaviour("sysfs/reset-by-anything-but-1-is-einval", RESET, error=errno.EINVAL)
def reset_value(host: Host) -> None:
    _free(host, "nvme")
    for word in ("0", "2", "yes"):
        with host.refuses(errno.EINVAL):
            host.write(host.path("nvme", "reset"), word)


@behaviour("sysfs/reset-method-can-be-chosen", RESET)
def choose_method(host: Host) -> None:
    _free(host, "nvme")
    path = host.path("nvme", "reset_method")
    host.finally_write(path, "default")
    host.write(path, "bus")
    assert host.read(path) == "bus"
    host.write(path, "bus flr")
    assert host.read(path) == "bus flr"
    host.write(path, "default")
    assert host.read(path) == "flr bus"


@behaviour("sysfs/unknown-reset-method-is-einval", RESET, error=errno.EINVAL)
def unknown_method(host: Host) -> None:
    path = host.path("nvme", "reset_method")
    host.finally_write(path, "default")
    for words in ("pm", "nonsense", "flr nonsense"):
        with host.refuses(errno.EINVAL):
            host.write(path, words)
    assert host.read(path) == "flr bus"


@behaviour("sysfs/reset-methods-are-kept-as-given", RESET)
def method_twice(host: Host) -> None:
    path = host.path("nvme", "reset_method")
    host.finally_write(path, "default")
    host.write(path, "flr bus flr")
    assert host.read(path) == "flr bus flr"


@behaviour("sysfs/reset-without-method-is-enotty", RESET, error=errno.ENOTTY)
def no_method(host: Host) -> None:
    _free(host, "nvme")
    path = host.path("nvme", "reset_method")
    host.finally_write(path, "default")
    host.write(path, "\n")
    assert host.read(path) == ""
    with host.refuses(errno.ENOTTY):
        host.write(host.path("nvme", "reset"), "1")


@behaviour("sysfs/reset-method-that-has-gone-is-einval", RESET, error=errno.EINVAL)
def method_gone(host: Host) -> None:
    with host.refuses(errno.EINVAL):
        host.write(host.path("first", "reset_method"), "bus")


@behaviour("sysfs/default-reset-methods-are-found-anew", RESET)
def method_default(host: Host) -> None:
    path = host.path("first", "reset_method")
    host.write(path, "default")
    assert host.read(path) == "flr"


@behaviour("sysfs/parameters-of-modules-are-checked", "lib/kstrtox.c", error=errno.EINVAL)
def parameters(host: Host) -> None:
    path = "/sys/module/vfio_pci/parameters/enable_sriov"
    host.change(path, "1")
    assert host.read(path) == "Y"
    host.write(path, "off")
    assert host.read(path) == "N"
    with host.refuses(errno.EINVAL):
        host.write(path, "maybe")


@behaviour("sysfs/reset-keeps-bars-and-command", RESET)
def reset_keeps(host: Host) -> None:
    _free(host, "edu")
    before = host.kernel.tree.read(host.path("edu", "config"))[:0x40]
    host.write(host.path("edu", "reset"), "1")
    assert host.kernel.tree.read(host.path("edu", "config"))[:0x40] == before


# --- Groups ---


@behaviour("sysfs/group-lists-its-functions", IOMMU)
def group_devices(host: Host) -> None:
    for role in host.roles:
        listed = host.kernel.tree.list(f"{GROUPS}/{host.group(role)}/devices")
        assert str(host.roles[role]) in listed
    pair = host.kernel.tree.list(f"{GROUPS}/{host.group('first')}/devices")
    assert pair == sorted(str(host.roles[role]) for role in ("first", "second"))


@behaviour("sysfs/functions-alone-behind-acs-have-groups-of-their-own", IOMMU)
def groups_of_their_own(host: Host) -> None:
    alone = ("edu", "nvme", "pf", "shm", "testdev", "nic", "rooted")
    for role in alone:
        assert len(host.kernel.tree.list(f"{GROUPS}/{host.group(role)}/devices")) == 1
    assert len({host.group(role) for role in alone}) == len(alone)


@behaviour("sysfs/port-without-acs-shares-the-group-below", IOMMU)
def group_with_port(host: Host) -> None:
    path = host.kernel.tree.readlink(f"{DEVICES}/{host.roles['below']}")
    port = path.split("/")[-2]
    listed = host.kernel.tree.list(f"{GROUPS}/{host.group('below')}/devices")
    assert listed == sorted([port, str(host.roles["below"])])


@behaviour("sysfs/group-reserves-the-interrupt-range", IOMMU)
def reserved(host: Host) -> None:
    text = host.read(f"{GROUPS}/{host.group('edu')}/reserved_regions")
    assert "0x00000000fee00000 0x00000000feefffff msi" in text.splitlines()


@behaviour("sysfs/unknown-group-type-is-einval", IOMMU, error=errno.EINVAL)
def group_type(host: Host) -> None:
    _free(host, "edu")
    with host.refuses(errno.EINVAL):
        host.write(f"{GROUPS}/{host.group('edu')}/type", "nonsense")


@behaviour(
    "sysfs/group-type-with-a-bound-driver-is-eperm",
    IOMMU,
    native="nvme",
    error=errno.EPERM,
)
def group_type_bound(host: Host) -> None:
    path = f"{GROUPS}/{host.group('nvme')}/type"
    other = "identity" if host.read(path) != "identity" else "DMA"
    with host.refuses(errno.EPERM):
        host.write(path, other)


@behaviour("sysfs/group-type-can-change-without-drivers", IOMMU)
def group_type_free(host: Host) -> None:
    _free(host, "edu")
    path = f"{GROUPS}/{host.group('edu')}/type"
    host.change(path, "identity")
    assert host.read(path) == "identity"
    host.write(path, "DMA")
    assert host.read(path) == "DMA"


# --- Identity ---


@behaviour("sysfs/attributes-agree-with-configuration-space", CONFIG)
def identity(host: Host) -> None:
    for role in host.roles:
        data = host.kernel.tree.read(host.path(role, "config"))
        for name, offset in (
            ("vendor", 0x00),
            ("device", 0x02),
            ("subsystem_vendor", 0x2C),
            ("subsystem_device", 0x2E),
        ):
            value = int.from_bytes(data[offset : offset + 2], "little")
            assert host.read(host.path(role, name)) == f"0x{value:04x}", f"{role} {name}"
        code = int.from_bytes(data[9:12], "little")
        assert host.read(host.path(role, "class")) == f"0x{code:06x}"


@behaviour("sysfs/ids-are-those-of-the-topology", "QEMU")
def ids(host: Host) -> None:
    expected = {
        "edu": ("0x1234", "0x11e8", "0x00ff00", "0x10"),
        "nvme": ("0x1b36", "0x0010", "0x010802", "0x02"),
        "shm": ("0x1af4", "0x1110", "0x050000", "0x01"),
        "testdev": ("0x1b36", "0x0005", "0x00ff00", "0x00"),
        "nic": ("0x8086", "0x10d3", "0x020000", "0x00"),
    }
    names = ("vendor", "device", "class", "revision")
    seen = {role: tuple(host.read(host.path(role, name)) for name in names) for role in expected}
    assert seen == expected


@behaviour("sysfs/configuration-space-is-256-or-4096-bytes", CONFIG)
def config_size(host: Host) -> None:
    seen = {
        role: len(host.kernel.tree.read(host.path(role, "config")))
        for role in ("edu", "nvme", "shm", "nic", "rooted")
    }
    assert seen == {"edu": 256, "nvme": 4096, "shm": 256, "nic": 4096, "rooted": 256}


@behaviour("sysfs/resource-tells-size-and-kind-of-bars", "Documentation/ABI/testing/sysfs-bus-pci")
def resources(host: Host) -> None:
    def rows(role: str) -> dict[int, tuple[int, int]]:
        found = {}
        for index, line in enumerate(host.read(host.path(role, "resource")).splitlines()[:6]):
            start, end, flags = (int(word, 16) for word in line.split())
            if flags:
                found[index] = (end - start + 1, flags)
        return found

    memory, memory_64, memory_64_prefetch, ports = 0x40200, 0x140204, 0x14220C, 0x40101
    assert rows("edu") == {0: (1 << 20, memory)}
    assert rows("nvme") == {0: (16 << 10, memory_64), 2: (1 << 20, memory_64_prefetch)}
    assert rows("shm") == {0: (256, memory), 2: (1 << 20, memory_64_prefetch)}
    assert rows("testdev") == {
        0: (4096, memory),
        1: (256, ports),
        2: (1 << 20, memory_64_prefetch),
    }


# --- SR-IOV ---


def _pf(host: Host, *, autoprobe: bool = False) -> str:
    """The PF on its native driver; path of ``sriov_numvfs``, which is 0 again at the end."""
    host.restore("pf")
    if not autoprobe:
        host.change(host.path("pf", "sriov_drivers_autoprobe"), "0")
    path = host.path("pf", "sriov_numvfs")
    host.finally_write(path, "0")
    return path


@behaviour("sriov/capability-is-told", SRIOV_SOURCE, needs=SRIOV)
def sriov_told(host: Host) -> None:
    seen = {
        name: host.read(host.path("pf", name))
        for name in ("sriov_totalvfs", "sriov_numvfs", "sriov_offset", "sriov_stride")
    }
    assert seen == {
        "sriov_totalvfs": "2",
        "sriov_numvfs": "0",
        "sriov_offset": "1",
        "sriov_stride": "1",
    }
    assert host.read(host.path("pf", "sriov_vf_device")) == "10"


@behaviour("sriov/functions-without-it-have-no-attributes", SRIOV_SOURCE)
def sriov_others(host: Host) -> None:
    assert not host.kernel.tree.exists(host.path("nvme", "sriov_numvfs"))


@behaviour("sriov/enabling-makes-functions", SRIOV_SOURCE, needs=SRIOV)
def sriov_enable(host: Host) -> None:
    path = _pf(host)
    host.write(path, "2")
    assert host.read(path) == "2"
    tree = host.kernel.tree
    for number in range(2):
        link = host.path("pf", f"virtfn{number}")
        address = host.link(link)
        assert int(address[-1]) == number + 1
        assert host.link(f"{DEVICES}/{address}/physfn") == str(host.roles["pf"])
        assert tree.exists(f"{DEVICES}/{address}/iommu_group")
        assert host.read(f"{DEVICES}/{address}/vendor") == "0x1b36"
        assert host.read(f"{DEVICES}/{address}/device") == "0x0010"
    host.write(path, "0")
    assert not tree.exists(host.path("pf", "virtfn0"))
    assert not tree.exists(f"{DEVICES}/{address}")


@behaviour("sriov/functions-have-groups-of-their-own", SRIOV_SOURCE, needs=SRIOV)
def sriov_groups(host: Host) -> None:
    host.write(_pf(host), "2")
    numbers = {
        host.link(host.path("pf", f"{place}iommu_group")) for place in ("", "virtfn0/", "virtfn1/")
    }
    assert len(numbers) == 3


@behaviour("sriov/more-than-there-are-is-erange", SRIOV_SOURCE, needs=SRIOV, error=errno.ERANGE)
def sriov_many(host: Host) -> None:
    path = _pf(host)
    for count in ("3", "65535"):
        with host.refuses(errno.ERANGE):
            host.write(path, count)


@behaviour("sriov/another-number-is-ebusy", SRIOV_SOURCE, needs=SRIOV, error=errno.EBUSY)
def sriov_change(host: Host) -> None:
    path = _pf(host)
    host.write(path, "2")
    with host.refuses(errno.EBUSY):
        host.write(path, "1")
    assert host.read(path) == "2"


@behaviour("sriov/same-number-is-nothing", SRIOV_SOURCE, needs=SRIOV)
def sriov_same(host: Host) -> None:
    path = _pf(host)
    host.write(path, "0")
    host.write(path, "1")
    host.write(path, "1")
    assert host.read(path) == "1"


@behaviour("sriov/no-number-is-einval", SRIOV_SOURCE, needs=SRIOV, error=errno.EINVAL)
def sriov_word(host: Host) -> None:
    path = _pf(host)
    for word in ("x", "-1", "1x"):
        with host.refuses(errno.EINVAL):
            host.write(path, word)


@behaviour("sriov/number-beyond-16-bits-is-einval", SRIOV_SOURCE, needs=SRIOV, error=errno.EINVAL)
def sriov_wide(host: Host) -> None:
    with host.refuses(errno.EINVAL):
        host.write(_pf(host), "65536")


@behaviour("sriov/without-driver-is-enoent", SRIOV_SOURCE, needs=SRIOV, error=errno.ENOENT)
def sriov_unbound(host: Host) -> None:
    path = _pf(host)
    _free(host, "pf")
    with host.refuses(errno.ENOENT):
        host.write(path, "1")
    host.restore("pf")


@behaviour(
    "sriov/vfio-pci-without-enable-sriov-is-enoent",
    SRIOV_SOURCE,
    binds="pf",
    needs=SRIOV,
    error=errno.ENOENT,
)
def sriov_vfio(host: Host) -> None:
    path = host.path("pf", "sriov_numvfs")
    host.finally_write(path, "0")
    with host.refuses(errno.ENOENT):
        host.write(path, "1")


@behaviour("sriov/vfio-pci-captures-the-functions", SRIOV_SOURCE, binds="pf", needs=SRIOV)
def sriov_capture(host: Host) -> None:
    host.change("/sys/module/vfio_pci/parameters/enable_sriov", "Y")
    path = host.path("pf", "sriov_numvfs")
    host.finally_write(path, "0")
    host.write(path, "2")
    for number in range(2):
        place = host.path("pf", f"virtfn{number}")
        assert host.link(f"{place}/driver") == "vfio-pci"
        assert host.read(f"{place}/driver_override") == "vfio-pci"


@behaviour("sriov/unbinding-vfio-pci-removes-the-functions", SRIOV_SOURCE, binds="pf", needs=SRIOV)
def sriov_unbind(host: Host) -> None:
    host.change("/sys/module/vfio_pci/parameters/enable_sriov", "Y")
    path = host.path("pf", "sriov_numvfs")
    host.finally_write(path, "0")
    host.write(path, "1")
    assert host.kernel.tree.exists(host.path("pf", "virtfn0"))
    host.unbind("pf")
    assert not host.kernel.tree.exists(host.path("pf", "virtfn0"))
    assert host.read(path) == "0"


@behaviour("sriov/autoprobe-off-leaves-functions-unbound", SRIOV_SOURCE, needs=SRIOV)
def sriov_autoprobe(host: Host) -> None:
    host.write(_pf(host), "1")
    assert host.link(host.path("pf", "virtfn0/driver")) == ""
