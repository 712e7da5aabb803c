"""A host in perfect order, and what the doctor says when single files of it are different."""

from __future__ import annotations

from collections.abc import Mapping

from vfiokit.assign.doctor import Finding, Severity, examine
from vfiokit.host.sysfs import read_topology
from vfiokit.host.tree import RecordedTree
from vfiokit.machine.assembly import assemble
from vfiokit.pci.topology import Topology

DEVICES = "/sys/bus/pci/devices"
TEXT = "rp0(nvme:drive), rp1(slot(edu:one, edu:two)), rp2(sw(nvme:left, nvme:right)), rp3(igb:net)"
RELEASE = "6.12.0-test"
IOMMU = "/sys/class/iommu/dmar0/intel-iommu"

HEALTHY: dict[str, bytes] = {
    "/proc/cmdline": b"BOOT_IMAGE=/vmlinuz root=/dev/sda1 ro intel_iommu=on quiet\n",
    "/proc/cpuinfo": b"vendor_id\t: GenuineIntel\naddress sizes\t: 46 bits physical, 48 virtual\n",
    "/proc/meminfo": b"MemTotal:       131072000 kB\nMemAvailable:   100000000 kB\n",
    "/proc/modules": b"vfio_pci 16384 0 - Live 0x0\n",
    "/proc/mounts": b"",
    "/proc/swaps": b"Filename\tType\tSize\tUsed\tPriority\n",
    "/proc/net/route": b"Iface\tDestination\tGateway \tFlags\n",
    "/proc/self/limits": b"Limit Soft Hard\nMax locked memory  unlimited  unlimited  bytes\n",
    "/proc/self/status": b"CapEff:\t0000000000000000\n",
    "/proc/self/cgroup": b"0::/user.slice\n",
    "/proc/sys/kernel/osrelease": RELEASE.encode(),
    "/proc/sys/kernel/modules_disabled": b"0\n",
    "/sys/firmware/acpi/tables/DMAR": b"DMAR".ljust(36, b"\0") + bytes((45, 0x01)),
    "/sys/kernel/irq/24/chip_name": b"IR-PCI-MSI-0000:01:00.0\n",
    "/sys/kernel/irq/25/chip_name": b"DMAR-MSI\n",
    "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages": b"0\n",
    "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": b"0\n",
    "/sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages": b"16\n",
    "/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages": b"16\n",
    "/sys/kernel/security/lockdown": b"[none] integrity confidentiality\n",
    "/sys/devices/system/node/online": b"0\n",
    f"{IOMMU}/cap": b"8d2078c106f0466\n",
    f"{IOMMU}/ecap": b"f020df\n",
}
"""Files besides those of the software machine, as a server shows them."""


def _machine() -> tuple[dict[str, bytes], dict[str, str], dict[str, str]]:
    made = assemble(TEXT, ram=1 << 30)
    names = ("drive", "one", "two", "left", "right", "net")
    addresses = {name: str(made[name]) for name in names}
    files: dict[str, bytes] = {}
    links: dict[str, str] = {}
    for path, content in made.kernel.snapshot().items():
        if isinstance(content, bytes):
            files[path] = content
        elif path.startswith("/dev/"):
            files[path] = b""
        else:
            links[path] = content
    for path in files:
        if path.startswith("/sys/kernel/iommu_groups/") and path.endswith("/type"):
            files[path] = b"DMA\n"
    return files, links, addresses


_FILES, _LINKS, ADDRESS = _machine()
"""Addresses by the names in :data:`TEXT`."""


class Host:
    """The healthy host with changes: a path to new bytes, a link (``str``), or ``None``: gone.

    ``{drive}`` in a path stands for the address of that function; what a path of
    ``/sys/bus/pci/devices`` names is found through its link.
    """

    def __init__(self, changes: Mapping[str, bytes | str | None] | None = None) -> None:
        files, links = dict(_FILES), dict(_LINKS)
        real = RecordedTree(files, links)

        def place(path: str) -> str:
            head, slash, name = path.format(**ADDRESS).rpartition("/")
            rest = f"{slash}{name}"
            while head and not real.exists(head):
                head, slash, name = head.rpartition("/")
                rest = f"{slash}{name}{rest}"
            return f"{real.real_path(head or '/').rstrip('/')}{rest}"

        for path, content in {**HEALTHY, **(changes or {})}.items():
            at = place(path)
            for table in (files, links):
                for known in [each for each in table if each == at or each.startswith(f"{at}/")]:
                    del table[known]
            if isinstance(content, bytes):
                files[at] = content
            elif content is not None:
                links[at] = content
        self.tree = RecordedTree(files, links)
        self.topology: Topology = read_topology(self.tree)

    def examine(
        self, *names: str, memory_size: int | None = None, complete: bool = True
    ) -> tuple[Finding, ...]:
        chosen = [next(f for f in self.topology if str(f.bdf) == ADDRESS[name]) for name in names]
        return examine(self.tree, self.topology, chosen, memory_size=memory_size, complete=complete)


def of(findings: tuple[Finding, ...], name: str) -> list[Finding]:
    """The findings of one question."""
    return [finding for finding in findings if finding.id == name]


def worst(findings: tuple[Finding, ...], name: str) -> Severity | None:
    """The worst severity of one question; ``None`` when nothing was said."""
    found = of(findings, name)
    return found[0].severity if found else None
