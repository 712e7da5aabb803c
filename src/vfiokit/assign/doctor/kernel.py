"""Has the kernel what VFIO needs, and is it there now?

Sources: Linux ``drivers/vfio/Kconfig``, ``drivers/vfio/vfio_main.c``, ``drivers/iommu/iommufd``;
nodes: ``/dev/vfio/vfio`` (container), ``/dev/iommu`` (iommufd), ``/dev/vfio/devices`` (per device).
Features are looked for, versions are only told.
"""

from __future__ import annotations

from collections.abc import Iterator

from vfiokit.assign.doctor.facts import MODULES, Facts
from vfiokit.assign.doctor.finding import Evidence, Finding, Severity

_DRIVER = "/sys/bus/pci/drivers/vfio-pci"
_CONTAINER, _IOMMUFD, _DEVICE_NODES = "/dev/vfio/vfio", "/dev/iommu", "/dev/vfio/devices"
_RELEASE = "/proc/sys/kernel/osrelease"
_ENTRY_LIMIT = 65535


def check(facts: Facts) -> Iterator[Finding]:
    """vfio-pci, the container, iommufd, and per-device nodes."""
    yield _driver(facts)
    yield _address_spaces(facts)
    yield from _device_nodes(facts)
    yield from _mapping_limit(facts)


def _driver(facts: Facts) -> Finding:
    if facts.tree.exists(_DRIVER) or _loaded(facts, "vfio_pci"):
        return Finding(
            "vfio-pci", Severity.OK, "the driver vfio-pci is loaded", (Evidence(_DRIVER, "there"),)
        )
    blocked = _modules_blocked(facts)
    offered, source = _offered(facts, "vfio-pci")
    if offered is False:
        return Finding(
            "vfio-pci",
            Severity.PROBLEM,
            "this kernel has no vfio-pci",
            (source,),
            "install a kernel that is built with CONFIG_VFIO_PCI",
        )
    if not facts.complete and not _knows_modules(facts):
        return Finding(
            "vfio-pci",
            Severity.UNKNOWN,
            "whether vfio-pci was loaded is not recorded",
            (Evidence("/proc/modules", "(not in this description of the host)"),),
            "modprobe vfio-pci",
        )
    if blocked is not None:
        return Finding(
            "vfio-pci",
            Severity.PROBLEM,
            "vfio-pci is not loaded, and this kernel loads no more modules",
            (blocked,),
            "reboot without that restriction, or load vfio-pci before it takes effect",
        )
    return Finding(
        "vfio-pci",
        Severity.WARNING,
        "vfio-pci is not loaded"
        + (" yet" if offered else "; whether this kernel has it is not known"),
        (Evidence(_DRIVER, "no such folder"), source),
        "modprobe vfio-pci",
    )


def _address_spaces(facts: Facts) -> Finding:
    """One of the two ways to an address space must be there; both is usual."""
    container = facts.exists(_CONTAINER)
    iommufd = facts.exists(_IOMMUFD)
    evidence = (
        Evidence(_CONTAINER, _presence(container)),
        Evidence(_IOMMUFD, _presence(iommufd)),
    )
    if container and iommufd:
        return Finding(
            "address-spaces", Severity.OK, "both the container and iommufd are there", evidence
        )
    if container:
        return Finding(
            "address-spaces",
            Severity.OK if iommufd is None else Severity.NOTE,
            "the container is there"
            + (
                ""
                if iommufd is None
                else ", iommufd is not: programs that ask for it (qemu -object iommufd) fail"
            ),
            evidence,
            "" if iommufd is None else "modprobe iommufd (Linux 6.2 and later)",
        )
    if iommufd:
        return Finding(
            "address-spaces",
            Severity.NOTE,
            "iommufd is there, the container is not: programs that know only groups fail",
            evidence,
            "modprobe vfio_iommu_type1",
        )
    if container is None or iommufd is None:
        return Finding(
            "address-spaces",
            Severity.UNKNOWN,
            "whether the host has a container or iommufd is not recorded",
            evidence,
            f"ls {_CONTAINER} {_IOMMUFD}",
        )
    return Finding(
        "address-spaces",
        Severity.WARNING,
        "neither the container nor iommufd is there yet",
        evidence,
        "modprobe vfio-pci vfio_iommu_type1; modprobe iommufd",
    )


def _device_nodes(facts: Facts) -> Iterator[Finding]:
    """Per-device nodes exist once a function is bound; before that the configuration tells."""
    built, source = configured(facts, "CONFIG_VFIO_DEVICE_CDEV")
    if built is False and facts.exists(_IOMMUFD):
        yield Finding(
            "device-nodes",
            Severity.NOTE,
            f"this kernel makes no nodes of devices ({_DEVICE_NODES}): programs that use iommufd "
            "itself, and not through groups, fail",
            (source,),
            "a kernel that is built with CONFIG_VFIO_DEVICE_CDEV (Linux 6.6 and later)",
        )
    for function in facts.devices:
        if function.recorded.driver != "vfio-pci":
            continue
        group = f"/dev/vfio/{function.recorded.iommu_group}"
        names = facts.names(f"/sys/bus/pci/devices/{function.bdf}/vfio-dev") or []
        nodes = [f"{_DEVICE_NODES}/{name}" for name in names]
        there = [node for node in (group, *nodes) if facts.tree.exists(node)]
        if there:
            yield Finding(
                "device-node",
                Severity.OK,
                f"{function.bdf} can be opened: {', '.join(there)}",
                tuple(Evidence(node, "there") for node in there),
                device=function.bdf,
            )
        elif facts.complete:
            yield Finding(
                "device-node",
                Severity.PROBLEM,
                f"{function.bdf} is bound to vfio-pci and has no device node here",
                (Evidence(group, "no such file"),),
                "in a container, pass the node in (docker run --device /dev/vfio/N)",
                function.bdf,
            )


def _mapping_limit(facts: Facts) -> Iterator[Finding]:
    reading = facts.parameter("vfio_iommu_type1", "dma_entry_limit")
    if reading.text and reading.text.isdecimal() and int(reading.text) < _ENTRY_LIMIT:
        yield Finding(
            "mapping-limit",
            Severity.NOTE,
            f"a container takes {reading.text} mappings, fewer than the usual {_ENTRY_LIMIT}: a "
            "guest with a virtual IOMMU may run out (ENOSPC)",
            (reading.evidence,),
            f"echo {_ENTRY_LIMIT} > {reading.path}",
        )


def _presence(there: bool | None) -> str:
    return {True: "there", False: "no such file", None: "(not in this description of the host)"}[
        there
    ]


def _knows_modules(facts: Facts) -> bool:
    return facts.read("/proc/modules").text is not None


def _loaded(facts: Facts, module: str) -> bool:
    if facts.tree.exists(f"{MODULES}/{module}"):
        return True
    lines = (facts.read("/proc/modules").text or "").splitlines()
    return any(line.split(" ", 1)[0] == module for line in lines)


def _offered(facts: Facts, module: str) -> tuple[bool | None, Evidence]:
    """Whether the running kernel has ``module``, by its module index, and where that was read."""
    release = facts.read(_RELEASE).text
    if release is None:
        return None, Evidence(_RELEASE, "(not in this description of the host)")
    known = False
    for name in ("modules.builtin", "modules.dep"):
        path = f"/lib/modules/{release}/{name}"
        text = facts.read(path).text
        if text is None:
            continue
        known = True
        for line in text.splitlines():
            file = line.partition(":")[0]
            if file.rpartition("/")[2].partition(".ko")[0].replace("_", "-") == module:
                return True, Evidence(path, file)
    path = f"/lib/modules/{release}/modules.dep"
    if known:
        return False, Evidence(path, f"does not list {module}")
    return configured(facts, f"CONFIG_{module.replace('-', '_').upper()}")


def configured(facts: Facts, option: str) -> tuple[bool | None, Evidence]:
    """Whether the running kernel was built with ``CONFIG_…``, and where that was read."""
    release = facts.read(_RELEASE).text
    path = f"/boot/config-{release}"
    text = None if release is None else facts.read(path).text
    if text is None:
        path = "/proc/config.gz"
        text = _unpacked(facts, path)
    if text is None:
        return None, Evidence(f"/boot/config-{release or '…'}", "(not there, nor /proc/config.gz)")
    for line in text.splitlines():
        if line in (f"{option}=y", f"{option}=m"):
            return True, Evidence(path, line)
    return False, Evidence(path, f"{option} is not set")


def _unpacked(facts: Facts, path: str) -> str | None:
    import gzip
    import zlib

    try:
        return gzip.decompress(facts.tree.read(path)).decode("utf-8", "replace")
    except (OSError, EOFError, zlib.error):
        return None


def _modules_blocked(facts: Facts) -> Evidence | None:
    disabled = facts.read("/proc/sys/kernel/modules_disabled")
    if disabled.text == "1":
        return disabled.evidence
    if any(facts.options("nomodule")):
        return Evidence("/proc/cmdline", "nomodule")
    return None
