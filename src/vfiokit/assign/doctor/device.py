"""The device itself: will vfio-pci take it, and can a guest use it?

Sources: Linux ``drivers/vfio/pci/vfio_pci.c`` (denylist) and ``vfio_pci_core.c`` (bridges, PFs with
VFs, VF tokens, cards whose INTx cannot be masked), ``drivers/pci/controller/vmd.c``.
"""

from __future__ import annotations

from collections.abc import Iterator

from vfiokit.assign.doctor.facts import DEVICES, Facts
from vfiokit.assign.doctor.finding import Evidence, Finding, Severity
from vfiokit.isolation.quirk import VMD_FIRST_DOMAIN
from vfiokit.pci.bar import IORESOURCE_UNSET, Bar, bars
from vfiokit.pci.capability import resizable_bar
from vfiokit.pci.quantity import size_text
from vfiokit.pci.topology import Function

_INTEL = 0x8086
_DENIED = frozenset({0x0435, 0x0443, 0x19E2, 0x19E3, 0x37C8, 0x37C9})
"""QuickAssist devices that can hang the host."""
_NO_INTX = frozenset(
    {0x1563, 0x1572, 0x1574, 0x1580, 0x1581, *range(0x1583, 0x158C), 0x37D0, 0x37D1, 0x37D2}
)
"""Intel network functions whose INTx mask does not work: VFIO hides their pin."""
_INTERRUPT_PIN = 0x3D
_LARGE = 1 << 32
_MSI, _MSIX, _REBAR = 0x05, 0x11, 0x15


def check(facts: Facts) -> Iterator[Finding]:
    """Every check of each chosen function."""
    for function in facts.devices:
        yield from _refused(facts, function)
        yield from _virtual(facts, function)
        yield from _bars(function)
        yield from _resizable(function)
        yield from _interrupts(facts, function)
        yield from _locality(facts, function)


def _refused(facts: Facts, function: Function) -> Iterator[Finding]:
    bdf, identity = function.bdf, function.identity
    if function.is_bridge:
        yield Finding(
            "assignable",
            Severity.PROBLEM,
            f"{bdf} is a bridge; vfio-pci takes endpoints only",
            (Evidence(f"{bdf} header type", f"{function.header_type}"),),
            "name the functions below it; the bridge keeps its driver",
            bdf,
        )
    if identity.vendor_id == _INTEL and identity.device_id in _DENIED:
        switch = facts.parameter("vfio_pci", "disable_denylist")
        if switch.text != "Y":
            yield Finding(
                "assignable",
                Severity.PROBLEM,
                f"vfio-pci refuses {bdf}: devices of this kind can hang the host",
                (Evidence(f"{bdf} id", f"{_INTEL:04x}:{identity.device_id:04x}"),),
                "for a guest that is trusted: modprobe vfio-pci disable_denylist=1",
                bdf,
            )
    if bdf.domain >= VMD_FIRST_DOMAIN:
        yield Finding(
            "assignable",
            Severity.PROBLEM,
            f"{bdf} sits behind Intel VMD and uses the requester "
            "ID of the VMD controller: the IOMMU cannot tell it from its neighbours",
            (Evidence(f"{bdf} domain", f"{bdf.domain:#x}"),),
            "turn off VMD for its slot in the firmware setup, or assign the VMD controller",
            bdf,
        )


def _virtual(facts: Facts, function: Function) -> Iterator[Finding]:
    bdf = function.bdf
    enabled = facts.attribute(function, "sriov_numvfs")
    if enabled.text and enabled.text.isdecimal() and int(enabled.text):
        yield Finding(
            "sriov",
            Severity.PROBLEM,
            f"{bdf} has {enabled.text} virtual functions, and vfio-pci "
            "refuses such a function (EBUSY)",
            (enabled.evidence,),
            f"echo 0 > {DEVICES}/{bdf}/sriov_numvfs",
            bdf,
        )
    physical = facts.topology.functions.get(function.physfn) if function.physfn else None
    if physical is None:
        return
    driver = physical.recorded.driver
    evidence = (Evidence(f"{DEVICES}/{physical.bdf}/driver", driver or "none"),)
    if driver == "vfio-pci":
        yield Finding(
            "vf-token",
            Severity.NOTE,
            f"the PF of {bdf} is on vfio-pci: whoever opens {bdf} must "
            "name the token of the PF's user",
            evidence,
            "qemu -device vfio-pci,host=…,vf-token=UUID for both",
            bdf,
        )
    elif driver is None:
        yield Finding(
            "sriov",
            Severity.WARNING,
            f"the PF of {bdf} has no driver: nobody sets up its virtual functions",
            evidence,
            f"bind {physical.bdf} to its driver",
            bdf,
        )
    else:
        yield Finding(
            "sriov",
            Severity.OK,
            f"{bdf} is a virtual function of {physical.bdf}, which {driver} drives",
            evidence,
            device=bdf,
        )


def _bars(function: Function) -> Iterator[Finding]:
    bdf, found = function.bdf, bars(function)
    for resource in function.resources:
        if (
            resource.index < 6
            and resource.size
            and (resource.flags & IORESOURCE_UNSET or not resource.start)
        ):
            yield Finding(
                "bar",
                Severity.PROBLEM,
                f"BAR {resource.index} of {bdf} "
                f"({size_text(resource.size)}) has no address: the firmware found no room for it",
                (
                    Evidence(
                        f"{DEVICES}/{bdf}/resource",
                        f"line {resource.index + 1}: flags {resource.flags:#x}",
                    ),
                ),
                "turn on 'Above 4G decoding' in the firmware setup, or boot with pci=realloc",
                bdf,
            )
    large = [bar for bar in found if (bar.size or 0) >= 1 << 28 and bar.kind != "io"]
    if large:
        yield _large(function, large)


def _large(function: Function, large: list[Bar]) -> Finding:
    total = sum(bar.size or 0 for bar in large)
    window = 1 << max(total - 1, 1).bit_length()
    if total < _LARGE // 4:
        severity, remedy = Severity.OK, ""
    else:
        severity = Severity.NOTE
        remedy = (
            f"qemu -global q35-pcihost.pci-hole64-size={max(window >> 30, 1) * 2}G; OVMF: "
            f"-fw_cfg name=opt/ovmf/X-PciMmio64Mb,string={max(window >> 20, 1024) * 2}"
        )
    listed = ", ".join(f"BAR {bar.index} {size_text(bar.size or 0)}" for bar in large)
    return Finding(
        "large-bars",
        severity,
        f"{function.bdf} has large BARs ({listed}): the guest needs a "
        f"64-bit window of {size_text(window)}",
        (Evidence(f"{DEVICES}/{function.bdf}/resource", listed),),
        remedy,
        function.bdf,
    )


def _resizable(function: Function) -> Iterator[Finding]:
    capability = function.capabilities.find_extended(_REBAR)
    if capability is None:
        return
    for number in range(
        resizable_bar.count(capability) if _has(capability.offset + 8, function) else 0
    ):
        offset = 4 + 8 * number
        if not _has(capability.offset + offset + 4, function):
            return
        offered, control = capability.raw(offset, 4), capability.raw(offset + 4, 4)
        sizes = [1 << 20 + bit for bit in range(28) if offered >> 4 >> bit & 1]
        size = 1 << 20 + resizable_bar.CONTROL.field("size").extract(control)
        index = resizable_bar.CONTROL.field("bar").extract(control)
        if sizes and max(sizes) > size:
            yield Finding(
                "resizable-bar",
                Severity.NOTE,
                f"BAR {index} of {function.bdf} is "
                f"{size_text(size)} and could be {size_text(max(sizes))}; a guest cannot change it",
                (Evidence(f"{function.bdf} Resizable BAR Control", f"{control:#010x}"),),
                f"before binding: echo {(max(sizes) >> 20).bit_length() - 1} > "
                f"{DEVICES}/{function.bdf}/resource{index}_resize",
                function.bdf,
            )


def _has(offset: int, function: Function) -> bool:
    return function.config.has(offset, 4)


def _interrupts(facts: Facts, function: Function) -> Iterator[Finding]:
    bdf, identity = function.bdf, function.identity
    if len(function.config) < 0x100 or function.is_bridge:
        return
    message = function.capabilities.find(_MSI) or function.capabilities.find(_MSIX)
    pin = function.config.u8(_INTERRUPT_PIN)
    if identity.vendor_id == _INTEL and identity.device_id in _NO_INTX:
        pin = 0
    if message is None and not pin:
        if not function.is_virtual:
            yield Finding(
                "interrupts",
                Severity.NOTE,
                f"{bdf} raises no interrupts: neither MSI nor INTx",
                (Evidence(f"{bdf} Interrupt Pin", f"{pin:#04x}"),),
                device=bdf,
            )
        return
    sharers = [
        str(each.bdf)
        for each in facts.topology
        if each.bdf != bdf
        and function.recorded.irq
        and each.recorded.irq == function.recorded.irq
        and not each.is_bridge
    ]
    if message is None and sharers:
        yield Finding(
            "interrupts",
            Severity.WARNING,
            f"{bdf} has INTx only and shares its line with "
            f"{', '.join(sharers[:4])}: unless it has a working DisINTx bit, vfio-pci must have "
            "the line for itself",
            (Evidence(f"{DEVICES}/{bdf}/irq", f"{function.recorded.irq}"),),
            "if binding fails with EBUSY: another slot, or unbind the others",
            bdf,
        )
    else:
        kind = "message signalled interrupts" if message else "an INTx line of its own"
        yield Finding(
            "interrupts",
            Severity.OK,
            f"{bdf} has {kind}",
            (Evidence(f"{bdf} Interrupt Pin", f"{pin:#04x}"),),
            device=bdf,
        )


def _locality(facts: Facts, function: Function) -> Iterator[Finding]:
    nodes = facts.read("/sys/devices/system/node/online")
    several = "-" in (nodes.text or "") or "," in (nodes.text or "")
    node = function.recorded.numa_node
    if not several:
        return
    if node is None:
        yield Finding(
            "numa",
            Severity.NOTE,
            f"the firmware does not say to which NUMA node {function.bdf} is close",
            (nodes.evidence, facts.attribute(function, "numa_node").evidence),
            "the board's manual tells which processor feeds the slot",
            function.bdf,
        )
        return
    processors = facts.attribute(function, "local_cpulist")
    yield Finding(
        "numa",
        Severity.OK,
        f"{function.bdf} is on NUMA node {node}: keep the guest's memory and "
        f"processors there ({processors.text or 'processors not recorded'})",
        (nodes.evidence, processors.evidence),
        device=function.bdf,
    )
