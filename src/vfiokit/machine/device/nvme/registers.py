"""The controller registers of BAR 0, as data, and the rules for accessing them.

Source: NVM Express Base Specification 2.0 §3.1.3 (controller properties of the PCIe transport),
§3.1.2.1 (doorbells).

Access rules. The specification leaves the effect of other accesses undefined; the model chooses:

- writes: a 4-byte register takes aligned 4-byte stores; an 8-byte register takes one aligned
  8-byte store or aligned 4-byte stores to its halves; anything else is dropped;
- reads: any aligned 1, 2, 4 or 8-byte load is answered from the register bytes, reserved space
  as zeros.
"""

from __future__ import annotations

from vfiokit.pci.capability.register import Field, Register, flag

CAP = Register(
    "cap",
    0x00,
    8,
    (
        Field("mqes", 15, 0, doc="largest I/O queue, 0-based"),
        flag("cqr", 16, doc="queues must be contiguous"),
        Field("ams", 18, 17),
        Field("to", 31, 24, unit="500 ms"),
        Field("dstrd", 35, 32, doc="doorbell stride 4 << n bytes"),
        flag("nssrs", 36),
        Field("css", 44, 37),
        flag("bps", 45),
        Field("mpsmin", 51, 48, doc="2 ** (12 + n) bytes"),
        Field("mpsmax", 55, 52, doc="2 ** (12 + n) bytes"),
        flag("pmrs", 56),
        flag("cmbs", 57),
    ),
    "§3.1.3.1",
)
VS = Register("vs", 0x08, 4, (), "§3.1.3.2")
INTMS = Register("intms", 0x0C, 4, (Field("set", 31, 0, "rw1s"),), "§3.1.3.3")
INTMC = Register("intmc", 0x10, 4, (Field("clear", 31, 0, "rw1c"),), "§3.1.3.4")
CC = Register(
    "cc",
    0x14,
    4,
    (
        flag("en", 0, "rw"),
        Field("css", 6, 4, "rw"),
        Field("mps", 10, 7, "rw"),
        Field("ams", 13, 11, "rw"),
        Field("shn", 15, 14, "rw"),
        Field("iosqes", 19, 16, "rw"),
        Field("iocqes", 23, 20, "rw"),
    ),
    "§3.1.3.5",
)
CSTS = Register(
    "csts",
    0x1C,
    4,
    (flag("rdy", 0), flag("cfs", 1), Field("shst", 3, 2), flag("nssro", 4), flag("pp", 5)),
    "§3.1.3.6",
)
NSSR = Register("nssr", 0x20, 4, (), "§3.1.3.7")
AQA = Register(
    "aqa", 0x24, 4, (Field("asqs", 11, 0, "rw"), Field("acqs", 27, 16, "rw")), "§3.1.3.8"
)
_LOW_BITS = Field(
    "low", 11, 0, "rw", doc="reserved; kept, so that enabling refuses a misaligned base"
)
ASQ = Register("asq", 0x28, 8, (Field("asqb", 63, 12, "rw"), _LOW_BITS), "§3.1.3.9")
ACQ = Register("acq", 0x30, 8, (Field("acqb", 63, 12, "rw"), _LOW_BITS), "§3.1.3.10")
CMBLOC = Register(
    "cmbloc",
    0x38,
    4,
    (
        Field("bir", 2, 0),
        flag("cqmms", 3, doc="queues may mix host and controller memory"),
        flag("cqpds", 4, doc="queues need not be physically contiguous in the buffer"),
        flag("cdpmls", 5, doc="PRP lists and data may lie in different memories"),
        flag("cdpcils", 6, doc="PRP lists of one command may lie in different memories"),
        flag("cdmmms", 7, doc="data of one command may lie in different memories"),
        Field("ofst", 31, 12, unit="CMBSZ.SZU"),
    ),
    "§3.1.3.11",
)
CMBSZ = Register(
    "cmbsz",
    0x3C,
    4,
    (
        flag("sqs", 0),
        flag("cqs", 1),
        flag("lists", 2),
        flag("rds", 3),
        flag("wds", 4),
        Field("szu", 11, 8, doc="4 KiB * 16 ** n"),
        Field("sz", 31, 12, doc="in units of szu"),
    ),
    "§3.1.3.12",
)
CMBMSC = Register(
    "cmbmsc",
    0x50,
    8,
    (flag("cre", 0, "rw"), flag("cmse", 1, "rw"), Field("cba", 63, 12, "rw")),
    "§3.1.3.16",
)
CMBSTS = Register("cmbsts", 0x58, 4, (flag("cbai", 0),), "§3.1.3.17")

REGISTERS = (
    CAP,
    VS,
    INTMS,
    INTMC,
    CC,
    CSTS,
    NSSR,
    AQA,
    ASQ,
    ACQ,
    CMBLOC,
    CMBSZ,
    CMBMSC,
    CMBSTS,
)
"""The registers the model has; everything else below the doorbells reads zero."""

DOORBELLS = 0x1000
"""Offset of the first doorbell."""

_BY_DWORD = {
    register.offset + step: register
    for register in REGISTERS
    for step in range(0, register.width, 4)
}


def compose(register: Register, **values: int) -> int:
    """The raw value of ``register`` with the named fields set; the rest is zero."""
    raw = 0
    for name, value in values.items():
        field = register.field(name)
        raw |= value << field.low & field.mask
    return raw


def extract(register: Register, raw: int, name: str) -> int:
    """One field of a raw register value."""
    return register.field(name).extract(raw)


class RegisterFile:
    """The bytes behind the registers, with the access rules of this module."""

    def __init__(self) -> None:
        self._data = bytearray(DOORBELLS)

    def clear(self, *, keep: tuple[Register, ...] = ()) -> None:
        """Zero every register except ``keep``."""
        kept = [(register, self.get(register)) for register in keep]
        self._data[:] = bytes(DOORBELLS)
        for register, value in kept:
            self.set(register, value)

    def get(self, register: Register) -> int:
        """The register's value."""
        return int.from_bytes(
            self._data[register.offset : register.offset + register.width], "little"
        )

    def set(self, register: Register, value: int) -> None:
        """Hardware changes a register by itself."""
        end = register.offset + register.width
        self._data[register.offset : end] = value.to_bytes(register.width, "little")

    def field(self, register: Register, name: str) -> int:
        """One field of a register."""
        return extract(register, self.get(register), name)

    def read(self, offset: int, width: int) -> int:
        """A load by software, ``offset`` below the doorbells."""
        if offset % width:
            return 0
        return int.from_bytes(self._data[offset : offset + width], "little")

    def write(self, offset: int, width: int, value: int) -> Register | None:
        """A store by software: the register that it addressed, or ``None`` if it is dropped.

        Bits that are ``rw`` change here; what a write of another kind does is the caller's.
        """
        register = _BY_DWORD.get(offset)
        if (
            register is None
            or width not in (4, 8)
            or offset + width > register.offset + register.width
        ):
            return None
        shift = 8 * (offset - register.offset)
        mask = register.writable("rw") & ((1 << 8 * width) - 1) << shift
        if mask:
            self.set(register, self.get(register) & ~mask | value << shift & mask)
        return register

    def dump(self) -> bytes:
        """The register bytes, for snapshots."""
        return bytes(self._data)

    def restore(self, data: bytes) -> None:
        """Take back what :meth:`dump` gave."""
        self._data[:] = data
