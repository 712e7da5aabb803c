"""A few facts about a host as a whole that bear on assignment, as words.

Source: Linux ``Documentation/filesystems/proc.rst`` and ``drivers/firmware/dmi-id.c``.
"""

from __future__ import annotations

from vfiokit.host.tree import Tree, read_text

_FILES = {
    "kernel command line": "/proc/cmdline",
    "kernel release": "/proc/sys/kernel/osrelease",
    "machine model": "/sys/class/dmi/id/product_name",
    "firmware version": "/sys/class/dmi/id/bios_version",
    "firmware date": "/sys/class/dmi/id/bios_date",
    "processors online": "/sys/devices/system/cpu/online",
    "memory nodes online": "/sys/devices/system/node/online",
}


def host_facts(tree: Tree | None) -> dict[str, str]:
    """The facts that ``tree`` tells, by what they are; none without a tree."""
    found: dict[str, str] = {}
    for name, path in _FILES.items():
        try:
            text = read_text(tree, path).strip() if tree is not None else ""
        except OSError:
            continue
        if text:
            found[name] = text
    return found
