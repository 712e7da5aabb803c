"""Identify data structures, built field by field at their specified offsets.

Source: NVM Express Base Specification 2.0 §5.17.2 (controller, namespace lists, descriptors),
NVM Command Set Specification 1.0 §4.1.5 (namespace, I/O command set specific data).
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass

from vfiokit.errors import UsageError

PAGE = 4096
"""Bytes of every Identify data structure."""

NSID = 1
"""The one namespace of the model."""

ERROR_LOG_ENTRIES = 64
EVENT_REQUEST_LIMIT = 4
ABORT_LIMIT = 4

WARNING_TEMPERATURE = 343
CRITICAL_TEMPERATURE = 353
"""Kelvin."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who the controller says it is, and its fixed limits."""

    vendor_id: int
    subsystem_vendor_id: int
    model: str
    """At most 40 printable ASCII characters."""
    serial: str
    """At most 20."""
    firmware: str
    """At most 8."""
    version: int
    """As in the VS register."""
    mdts: int
    """Largest transfer: ``2 ** mdts`` pages of 4 KiB; 0 means no limit."""
    block_shift: int
    """log2 of the logical block size, 9 to 16."""

    def __post_init__(self) -> None:
        for name, text, size in (
            ("model", self.model, 40),
            ("serial", self.serial, 20),
            ("firmware", self.firmware, 8),
        ):
            if len(text) > size or not text.isascii() or not text.isprintable():
                raise UsageError(
                    f"{name} {text!r} does not fit its Identify field",
                    hint=f"at most {size} printable ASCII characters",
                )
        if not 9 <= self.block_shift <= 16:
            raise UsageError(
                f"logical blocks of 2**{self.block_shift} bytes are not offered",
                hint="use 512 bytes to 64 KiB",
            )
        if not 0 <= self.mdts <= 12:
            raise UsageError(f"MDTS {self.mdts} is out of range", hint="use 0 to 12")

    @property
    def digest(self) -> bytes:
        """16 bytes that differ between devices and are the same in every run."""
        return hashlib.sha256(f"{self.model}/{self.serial}".encode()).digest()[:16]

    @property
    def subsystem_nqn(self) -> str:
        """The NVM subsystem's qualified name, in its UUID form."""
        return f"nqn.2014-08.org.nvmexpress:uuid:{uuid.UUID(bytes=self.digest, version=4)}"

    @property
    def nguid(self) -> bytes:
        """Namespace Globally Unique Identifier, 16 bytes."""
        return hashlib.sha256(self.digest + b"nguid").digest()[:16]

    @property
    def namespace_uuid(self) -> bytes:
        """Namespace UUID, 16 bytes, big endian as RFC 4122 has it."""
        raw = hashlib.sha256(self.digest + b"uuid").digest()[:16]
        return uuid.UUID(bytes=raw, version=4).bytes


class _Page:
    """4096 zero bytes with numbers and texts put in."""

    def __init__(self) -> None:
        self.data = bytearray(PAGE)

    def number(self, offset: int, width: int, value: int) -> None:
        self.data[offset : offset + width] = value.to_bytes(width, "little")

    def text(self, offset: int, width: int, value: str) -> None:
        self.data[offset : offset + width] = value.encode("ascii").ljust(width)


def controller(identity: Identity, *, capacity: int, shadow_doorbells: bool) -> bytearray:
    """Identify Controller (CNS 01h); ``capacity`` is the medium's size in bytes."""
    page = _Page()
    page.number(0, 2, identity.vendor_id)
    page.number(2, 2, identity.subsystem_vendor_id)
    page.text(4, 20, identity.serial)
    page.text(24, 40, identity.model)
    page.text(64, 8, identity.firmware)
    page.number(72, 1, 3)  # RAB: 2**3 commands
    page.number(77, 1, identity.mdts)
    page.number(80, 4, identity.version)
    page.number(84, 4, 500_000)  # RTD3R, microseconds
    page.number(88, 4, 2_000_000)  # RTD3E
    page.number(92, 4, 1 << 8)  # OAES: namespace attribute notices
    page.number(111, 1, 1)  # CNTRLTYPE: I/O controller
    page.number(256, 2, 1 << 8 if shadow_doorbells else 0)  # OACS: doorbell buffer config
    page.number(258, 1, ABORT_LIMIT - 1)
    page.number(259, 1, EVENT_REQUEST_LIMIT - 1)
    page.number(260, 1, 1 << 1 | 1)  # FRMW: one slot, read-only
    page.number(261, 1, 0b111)  # LPA: per-namespace SMART, commands supported, extended data
    page.number(262, 1, ERROR_LOG_ENTRIES - 1)
    page.number(266, 2, WARNING_TEMPERATURE)
    page.number(268, 2, CRITICAL_TEMPERATURE)
    page.number(280, 16, capacity)  # TNVMCAP
    page.number(512, 1, 0x66)  # SQES: 64 bytes, no more, no less
    page.number(513, 1, 0x44)  # CQES: 16 bytes
    page.number(516, 4, 1)  # NN
    page.number(520, 2, 1 << 7 | 1 << 4 | 1 << 3 | 1 << 2 | 1)  # ONCS: verify .. compare
    page.number(525, 1, 0b001 | 0b11 << 1)  # VWC: present; flush takes the broadcast NSID
    nqn = identity.subsystem_nqn.encode()
    page.data[768 : 768 + len(nqn)] = nqn
    page.number(2048, 2, 2500)  # PSD0: MP, in units of 0.01 W
    return page.data


def namespace(
    identity: Identity, *, block_count: int, used_blocks: int, read_only: bool
) -> bytearray:
    """Identify Namespace (CNS 00h) of the active namespace."""
    page = _Page()
    page.number(0, 8, block_count)
    page.number(8, 8, block_count)
    page.number(16, 8, min(used_blocks, block_count))
    page.number(24, 1, 1 << 4)  # NSFEAT: NPWG .. NOWS are valid
    page.number(33, 1, 1 << 3 | 0b001)  # DLFEAT: deallocated blocks read zero; DEAC honoured
    page.number(48, 16, block_count << identity.block_shift)  # NVMCAP
    granularity = max((PAGE >> identity.block_shift) - 1, 0)
    for offset in (64, 66, 68, 70):  # NPWG, NPWA, NPDG, NPDA: 4 KiB, 0-based blocks
        page.number(offset, 2, granularity)
    page.number(99, 1, 1 if read_only else 0)  # NSATTR: write protected
    page.data[104:120] = identity.nguid
    page.number(128, 4, identity.block_shift << 16)  # LBAF0: no metadata
    return page.data


def namespace_descriptors(identity: Identity) -> bytearray:
    """Namespace Identification Descriptor list (CNS 03h): NGUID, UUID, command set."""
    page = _Page()
    at = 0
    for kind, value in ((2, identity.nguid), (3, identity.namespace_uuid), (4, b"\0")):
        page.data[at : at + 4] = bytes((kind, len(value), 0, 0))
        page.data[at + 4 : at + 4 + len(value)] = value
        at += 4 + len(value)
    return page.data


def active_namespaces(after: int) -> bytearray:
    """Active Namespace ID list (CNS 02h): ids greater than ``after``."""
    page = _Page()
    if after < NSID:
        page.number(0, 4, NSID)
    return page.data
