"""What kind of processor a host has, as far as a PCI rule of its kernel asks.

Source: Linux ``arch/x86/kernel/cpu/proc.c`` (``/proc/cpuinfo``).
"""

from __future__ import annotations

from typing import NamedTuple

from vfiokit.host.tree import Tree

CPUINFO = "/proc/cpuinfo"


class Cpu(NamedTuple):
    """The first processor of a host."""

    vendor: str
    """``GenuineIntel``, ``AuthenticAMD``; what the kernel prints of other architectures."""
    family: int
    """As the kernel counts, the extended family added: 0x17 is the first Zen. 0 off x86."""
    model: int
    """As the kernel counts. 0 off x86."""

    @classmethod
    def from_cpuinfo(cls, text: str) -> Cpu | None:
        """The first processor in the text of ``/proc/cpuinfo``; ``None`` if there is none."""
        facts: dict[str, str] = {}
        for line in text.splitlines():
            name, colon, value = line.partition(":")
            # The first processor's value stands: the kernel asks processor 0.
            if colon:
                facts.setdefault(name.strip(), value.strip())
        vendor = facts.get("vendor_id") or facts.get("CPU implementer") or facts.get("cpu")
        if vendor is None:
            # Some architectures name no vendor, and none of those is x86.
            return cls("other", 0, 0) if "processor" in facts else None
        return cls(vendor, _number(facts.get("cpu family")), _number(facts.get("model")))

    @property
    def is_zen(self) -> bool:
        """AMD, family 0x17 or above (Hygon reports a vendor of its own)."""
        return self.vendor == "AuthenticAMD" and self.family >= 0x17

    def __str__(self) -> str:
        return f"{self.vendor} family {self.family:#x} model {self.model:#x}"


def read_cpu(tree: Tree) -> Cpu | None:
    """The host's processor; ``None`` where the tree does not hold ``/proc/cpuinfo``."""
    try:
        content = tree.read(CPUINFO)
    except OSError:
        return None
    return Cpu.from_cpuinfo(content.decode("utf-8", "replace"))


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isdecimal() else 0
