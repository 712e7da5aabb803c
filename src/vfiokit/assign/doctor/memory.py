"""Can a guest's memory be pinned, and can the IOMMU and the processor address it?

Every page of a guest with an assigned device stays in memory. Sources: Linux
``drivers/vfio/vfio_iommu_type1.c`` (``vfio_lock_acct``: RLIMIT_MEMLOCK unless CAP_IPC_LOCK),
``Documentation/admin-guide/mm/hugetlbpage.rst``, proc(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from vfiokit.assign.doctor.facts import Facts
from vfiokit.assign.doctor.finding import Evidence, Finding, Severity
from vfiokit.assign.doctor.unit import units
from vfiokit.pci.quantity import size_text

_LIMITS, _STATUS = "/proc/self/limits", "/proc/self/status"
_NODES = "/sys/devices/system/node"
_RAISE = (
    "systemd: LimitMEMLOCK=infinity in the unit; a login: 'USER - memlock unlimited' in "
    "/etc/security/limits.d/vfio.conf; libvirt raises the limit of its guests by itself"
)
_CAP_IPC_LOCK = 14
_GIB = 1 << 30
_BESIDES = _GIB
"""For ROMs, video memory and what else a hypervisor maps: as much as libvirt grants."""
_BELOW_4G = 4 * _GIB
"""Where a PC guest's memory goes on after the hole below 4 GiB; it costs no more than that."""


def check(facts: Facts) -> Iterator[Finding]:
    """Locked memory, memory itself, cgroup, huge pages, address width."""
    yield _locked(facts)
    if facts.memory is not None:
        yield from _amount(facts, facts.memory)
        yield from _cgroup(facts, facts.memory)
    yield from _huge_pages(facts)
    yield from _address_width(facts)


def _locked(facts: Facts) -> Finding:
    limits = facts.read(_LIMITS)
    match = re.search(r"^Max locked memory\s+(\S+)\s+(\S+)", limits.text or "", re.MULTILINE)
    if match is None:
        return Finding(
            "memlock",
            Severity.UNKNOWN,
            "how much memory a program may lock is not recorded",
            (limits.evidence,),
            "as the user who runs the guest: ulimit -l",
        )
    evidence = Evidence(_LIMITS, " ".join(match[0].split()))
    if match[1] == "unlimited":
        return Finding(
            "memlock", Severity.OK, "this user may lock any amount of memory", (evidence,)
        )
    limit = int(match[1]) if match[1].isdecimal() else 0
    size = facts.memory
    if _is_capable(facts):
        short = size is not None and limit < size + _BESIDES
        return Finding(
            "memlock",
            Severity.NOTE if short else Severity.OK,
            f"this user has CAP_IPC_LOCK and may lock any amount; others are held to "
            f"{size_text(limit)}",
            (evidence, Evidence(_STATUS, "CapEff has CAP_IPC_LOCK")),
            _RAISE if short else "",
        )
    if size is None:
        return Finding(
            "memlock",
            Severity.NOTE,
            f"this user may lock {size_text(limit)}; a guest needs its whole memory and some more "
            "(name it with --memory SIZE)",
            (evidence,),
            _RAISE,
        )
    severity, words = Severity.PROBLEM, "too little for"
    if limit >= size:
        severity, words = Severity.WARNING, "hardly enough for"
    if limit >= size + _BESIDES:
        severity, words = Severity.OK, "enough for"
    return Finding(
        "memlock",
        severity,
        f"this user may lock {size_text(limit)}, {words} a guest of {size_text(size)}"
        + ("" if severity is Severity.OK else ": mapping its memory fails with ENOMEM"),
        (evidence,),
        "" if severity is Severity.OK else _RAISE,
    )


def _is_capable(facts: Facts) -> bool:
    match = re.search(r"^CapEff:\s*([0-9a-f]+)$", facts.read(_STATUS).text or "", re.MULTILINE)
    return match is not None and bool(int(match[1], 16) >> _CAP_IPC_LOCK & 1)


def _kilobytes(text: str, key: str) -> int | None:
    match = re.search(rf"^(?:Node \d+ )?{key}:\s+(\d+)(?: kB)?$", text, re.MULTILINE)
    return None if match is None else int(match[1]) * 1024


def _amount(facts: Facts, memory: int) -> Iterator[Finding]:
    reading = facts.read("/proc/meminfo")
    total = _kilobytes(reading.text or "", "MemTotal")
    available = _kilobytes(reading.text or "", "MemAvailable")
    if total is None:
        yield Finding(
            "memory",
            Severity.UNKNOWN,
            "how much memory the host has is not recorded",
            (reading.evidence,),
            "cat /proc/meminfo",
        )
        return
    evidence = (
        Evidence(
            reading.path,
            f"MemTotal {size_text(total)}, MemAvailable "
            f"{'?' if available is None else size_text(available)}",
        ),
    )
    # Huge pages are set aside already, and do not count as available.
    available = None if available is None else available + _free_huge(facts)
    if memory >= total:
        yield Finding(
            "memory",
            Severity.PROBLEM,
            f"a guest of {size_text(memory)} does not fit in a host of "
            f"{size_text(total)}: all of it stays in memory",
            evidence,
            "give the guest less memory",
        )
    elif available is not None and memory > available:
        yield Finding(
            "memory",
            Severity.WARNING,
            f"a guest of {size_text(memory)} needs more than the "
            f"{size_text(available)} that are available now",
            evidence,
            "stop other programs, or give the guest less memory: pinned memory is never swapped",
        )
    else:
        yield Finding(
            "memory", Severity.OK, f"there is room for a guest of {size_text(memory)}", evidence
        )


def _cgroup(facts: Facts, memory: int) -> Iterator[Finding]:
    match = re.search(r"^0::(/.*)$", facts.read("/proc/self/cgroup").text or "", re.MULTILINE)
    folder = match[1].rstrip("/") if match is not None else None
    while folder:
        reading = facts.read(f"/sys/fs/cgroup{folder}/memory.max")
        if reading.text and reading.text.isdecimal() and int(reading.text) < memory:
            yield Finding(
                "memory-cgroup",
                Severity.PROBLEM,
                f"this control group may use {size_text(int(reading.text))}, less than a guest of "
                f"{size_text(memory)}",
                (reading.evidence,),
                "systemd: MemoryMax=infinity in the unit of the guest",
            )
        folder = folder.rpartition("/")[0]


def _pages(facts: Facts, folder: str) -> dict[int, tuple[int, int]]:
    """Size of a huge page in bytes → number free, number in all, of those that are set aside."""
    found: dict[int, tuple[int, int]] = {}
    for name in facts.names(folder) or ():
        match = re.fullmatch(r"hugepages-(\d+)kB", name)
        free = facts.read(f"{folder}/{name}/free_hugepages").text or ""
        total = facts.read(f"{folder}/{name}/nr_hugepages").text or ""
        if match is not None and free.isdecimal() and total.isdecimal():
            found[int(match[1]) * 1024] = (int(free), int(total))
    return found


_HUGE = "/sys/kernel/mm/hugepages"


def _free_huge(facts: Facts) -> int:
    return sum(size * free for size, (free, _) in _pages(facts, _HUGE).items())


def _huge_pages(facts: Facts) -> Iterator[Finding]:
    nodes = {each.recorded.numa_node for each in facts.devices} - {None}
    places = [f"{_NODES}/node{node}/hugepages" for node in nodes if node is not None] or [_HUGE]
    for folder in places:
        pages = _pages(facts, folder)
        if not pages:
            yield Finding(
                "hugepages",
                Severity.UNKNOWN,
                "the host's huge pages are not recorded",
                (Evidence(folder, "(not in this description of the host)"),),
                f"grep . {folder}/*/*_hugepages",
            )
            continue
        yield _huge_pages_at(facts, folder, pages)


def _huge_pages_at(facts: Facts, folder: str, pages: dict[int, tuple[int, int]]) -> Finding:
    listed = ", ".join(
        f"{free} of {total} × {size_text(size)} free"
        for size, (free, total) in sorted(pages.items())
    )
    evidence = (Evidence(folder, listed),)
    where = re.search(r"node(\d+)", folder)
    at = f" on NUMA node {where[1]}, where the device is" if where else ""
    if facts.memory is None:
        return Finding("hugepages", Severity.OK, f"huge pages{at}: {listed}", evidence)
    enough = [size for size, (free, _) in pages.items() if free * size >= facts.memory]
    if enough:
        return Finding(
            "hugepages",
            Severity.OK,
            f"a guest of {size_text(facts.memory)} fits in free pages of "
            f"{size_text(max(enough))}{at}",
            evidence,
        )
    size = max((each for each in pages if each <= facts.memory), default=min(pages))
    free, total = pages[size]
    count = total - free + -(-facts.memory // size)
    file = f"{folder}/hugepages-{size // 1024}kB/nr_hugepages"
    return Finding(
        "hugepages",
        Severity.NOTE,
        f"too few huge pages for a guest of {size_text(facts.memory)}{at}: its memory is pinned "
        "page by page, which makes its start slow and its IOMMU tables large",
        evidence,
        f"echo {count} > {file}",
    )


def _address_width(facts: Facts) -> Iterator[Finding]:
    text = facts.read("/proc/cpuinfo").text or ""
    match = re.search(r"^address sizes\s*:\s*(\d+) bits physical", text, re.MULTILINE)
    processor = int(match[1]) if match is not None else None
    known = [unit for unit in units(facts) if unit.address_bits is not None]
    for unit in known:
        bits = unit.address_bits or 0
        evidence = (
            *unit.evidence[:1],
            Evidence(
                "/proc/cpuinfo", f"{processor} bits physical" if processor else "(no address sizes)"
            ),
        )
        if facts.memory is not None and facts.memory + _BELOW_4G > 1 << bits:
            yield Finding(
                "address-width",
                Severity.PROBLEM,
                f"{unit.name} translates {bits}-bit addresses: "
                f"a guest of {size_text(facts.memory)} is larger",
                evidence,
                "give the guest less memory, or use a slot behind another IOMMU",
            )
        elif processor is not None and bits < processor:
            yield Finding(
                "address-width",
                Severity.WARNING,
                f"{unit.name} translates {bits}-bit addresses, "
                f"the processor has {processor}: a guest's firmware may put BARs where the IOMMU "
                "does not reach, and mapping them fails with EINVAL",
                evidence,
                f"qemu -cpu host,host-phys-bits-limit={bits}",
            )
        elif processor is not None:
            yield Finding(
                "address-width",
                Severity.OK,
                f"{unit.name} translates {bits}-bit addresses, "
                f"all that the processor has ({processor})",
                evidence,
            )
    if known and processor is None:
        yield Finding(
            "address-width",
            Severity.UNKNOWN,
            "the processor's physical address width is not "
            f"recorded; {known[0].name} translates {known[0].address_bits} bits",
            (Evidence("/proc/cpuinfo", "(no address sizes)"),),
            "grep -m1 'address sizes' /proc/cpuinfo",
        )
