"""The constants of the bandwidth model, each with its unit and where it comes from.

Nothing is hidden in the code: what a machine's registers do not tell is a parameter here, with a
default that can be overridden (``--set name=value``, ``--params FILE.toml``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from vfiokit.errors import FormatError, UsageError


class Parameter(NamedTuple):
    """One constant."""

    name: str
    default: float
    unit: str
    meaning: str
    source: str
    minimum: float = 0.0
    maximum: float = 1e12


_SPEC = "PCI Express Base Specification 6.0"
_PCIE_BENCH = "Neugebauer et al., Understanding PCIe performance, SIGCOMM 2018 (pcie-model)"
_CPAYNE = "voipmonitor/rtx6kpro, hardware/wrx90-cpayne-microchip-switches.md"

PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        "mps",
        256,
        "bytes",
        "payload of one packet at most, where Device Control was not captured",
        f"{_SPEC} §7.5.3.4; 256 is what servers program",
        128,
        4096,
    ),
    Parameter(
        "mrrs",
        512,
        "bytes",
        "size of one read request at most, where Device Control was not captured",
        f"{_SPEC} §7.5.3.4; 512 is the value after reset",
        128,
        4096,
    ),
    Parameter(
        "tags",
        256,
        "requests",
        "reads a function keeps in flight, where Device Control was not captured",
        f"{_SPEC} §2.2.6.2: 32, with extended tags 256, with 10-bit tags 768",
        1,
        16384,
    ),
    Parameter(
        "request_header",
        16,
        "bytes",
        "header of a memory request: 16 with 64-bit addresses, 12 with 32-bit ones",
        f"{_SPEC} §2.2.4.1",
        12,
        32,
    ),
    Parameter(
        "completion_header", 12, "bytes", "header of a completion", f"{_SPEC} §2.2.9", 12, 32
    ),
    Parameter(
        "framing",
        8,
        "bytes",
        "around each packet below 64 GT/s: start token with sequence number, and LCRC",
        f"{_SPEC} §3.6.2, §4.2.2 (4 + 4; below 8 GT/s 1 + 2 + 4 + 1); as {_PCIE_BENCH}",
        0,
        64,
    ),
    Parameter("ecrc", 0, "bytes", "end-to-end CRC of each packet: 4 where used", f"{_SPEC} §2.7.1"),
    Parameter(
        "completion_payload",
        0,
        "bytes",
        "payload of one completion; 0: as much as the completer's Max_Payload_Size allows, "
        "64: a completer that splits at the read completion boundary",
        f"{_SPEC} §2.3.1.1",
        0,
        4096,
    ),
    Parameter(
        "dllp_share",
        0.02,
        "of the bytes",
        "acknowledgements and credits that bytes of one direction cause in the other",
        "calibrated: RTX PRO 6000 peer writes at 32 GT/s x16 lose 1.6 % when both directions are "
        "busy; the update rates of the specification's tables (pcie-model) give 8 % at 8 GT/s x8 "
        "and are too pessimistic here",
        0,
        0.5,
    ),
    Parameter(
        "skp_share",
        4 / 1538,
        "of the symbols",
        "SKP ordered sets that compensate for clock differences",
        f"{_SPEC}, clock tolerance compensation; as {_PCIE_BENCH}",
        0,
        0.5,
    ),
    Parameter(
        "link_speed",
        16,
        "GT/s",
        "of a link about which nothing was captured",
        "assumption",
        2.5,
        64,
    ),
    Parameter(
        "link_width", 16, "lanes", "of a link about which nothing was captured", "assumption", 1, 32
    ),
    Parameter(
        "conventional_gbps",
        1.064,
        "Gb/s",
        "of a conventional bus, both directions and all functions together",
        "PCI Local Bus Specification 3.0: 32 bits at 33 MHz",
        0.001,
    ),
    Parameter(
        "switch_ns", 100, "ns", "through a switch, one way", f"{_CPAYNE} and topology.md: ~100 ns"
    ),
    Parameter(
        "root_complex_ns",
        400,
        "ns",
        "through a root complex, one way",
        "assumption: 300 to 500 ns are usual",
    ),
    Parameter(
        "endpoint_ns",
        500,
        "ns",
        "in requester and completer together",
        f"calibrated: a remote read of 128 bytes below one switch takes 710 ns ({_CPAYNE})",
    ),
    Parameter(
        "socket_ns",
        300,
        "ns",
        "from one socket to the other, one way",
        "derived: 0.73 us within, 1.3 us across the sockets of a dual EPYC 9575F "
        "(voipmonitor/rtx6kpro, hardware/asus-esc8000a-e13p-broadcom-switches.md)",
    ),
    Parameter(
        "posted_credit_bytes",
        0,
        "bytes",
        "posted data credits that a flow of writes can have outstanding; 0: never what limits",
        "unknown: 16 bytes a credit, not visible in registers",
    ),
    Parameter(
        "rc_p2p_allowed",
        1,
        "0 or 1",
        "whether the root complex forwards between devices at all",
        "unknown: 'vfiokit p2p' says what Linux believes; a root complex that does not drops "
        "writes and answers reads with all ones (intel/compute-runtime 935)",
        0,
        1,
    ),
    Parameter(
        "rc_p2p_gbps",
        0,
        "Gb/s",
        "that the root complex forwards from one root port to devices; 0: no limit",
        "unknown: 57 Gb/s on a Xeon E5-2650 v4 (NVIDIA forum 55564)",
    ),
    Parameter(
        "socket_gbps",
        0,
        "Gb/s",
        "that devices get from one socket to the other, each direction; 0: no limit",
        "unknown: 408 Gb/s on a dual EPYC Turin, 312 on a dual EPYC 9374F "
        "(voipmonitor/rtx6kpro, hardware/pcie-bandwidth.md)",
    ),
    Parameter(
        "relaxed_ordering",
        0,
        "0 or 1",
        "whether read completions carry Relaxed Ordering, which Completion Redirect spares",
        f"{_SPEC} §6.12.1.1; a device decides by itself",
        0,
        1,
    ),
    Parameter(
        "iommu",
        1,
        "0 or 1",
        "whether what reaches the root complex untranslated is translated there",
        "assumption",
        0,
        1,
    ),
    Parameter(
        "working_set",
        0,
        "bytes",
        "that a flow spreads its DMA over; 0: the IOTLB holds it",
        "assumption",
    ),
    Parameter(
        "transfer",
        0,
        "bytes",
        "accessed in one go before going elsewhere in the working set; 0: whole pages",
        "assumption",
    ),
    Parameter(
        "iommu_page",
        4096,
        "bytes",
        "that one entry of the IOTLB covers",
        "4 KiB, 2 MiB or 1 GiB: VT-d and AMD-Vi page sizes",
        4096,
    ),
    Parameter(
        "iotlb_entries", 64, "entries", "of the IOTLB", "as reported of " + _PCIE_BENCH + " §6.5", 1
    ),
    Parameter(
        "iotlb_miss_ns", 330, "ns", "for one miss", "as reported of " + _PCIE_BENCH + " §6.5", 1
    ),
    Parameter(
        "iotlb_walkers",
        4,
        "misses",
        "served at the same time",
        "fitted: with it reads of 64 bytes suffer and reads of 512 bytes do not, as in "
        + _PCIE_BENCH
        + " §6.5",
        1,
    ),
)
"""Every constant, in the order of the listing."""

_BY_NAME = {parameter.name: parameter for parameter in PARAMETERS}


class Parameters:
    """Values of the constants; immutable. ``given`` are the names that were set on purpose.

    A value set on purpose also wins over what a capture says (``mps``, ``mrrs``, ``tags``).
    """

    __slots__ = ("_values", "given")

    def __init__(self, given: Mapping[str, float] | None = None) -> None:
        """``given`` overrides defaults; :class:`UsageError` for a name or value that cannot be."""
        values = {parameter.name: parameter.default for parameter in PARAMETERS}
        for name, value in (given or {}).items():
            values[name] = _checked(name, value)
        self._values = values
        self.given = frozenset(given or {})

    def __getitem__(self, name: str) -> float:
        return self._values[name]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Parameters) and (self._values, self.given) == (
            other._values,
            other.given,
        )

    def __hash__(self) -> int:
        return hash(tuple(sorted(self._values.items())))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={self._values[name]:g}" for name in sorted(self.given))
        return f"Parameters({shown})"

    def replace(self, **given: float) -> Parameters:
        """The same with some values set."""
        kept = {name: self._values[name] for name in self.given}
        return Parameters({**kept, **given})

    def items(self) -> Iterable[tuple[Parameter, float]]:
        """Every parameter with its value."""
        return [(parameter, self._values[parameter.name]) for parameter in PARAMETERS]


def _checked(name: str, value: object) -> float:
    parameter = _BY_NAME.get(name)
    if parameter is None:
        raise UsageError(
            f"the bandwidth model has no parameter {name!r}",
            hint="'vfiokit bandwidth --parameters' lists them",
        )
    if isinstance(value, bool):
        value = int(value)
    if not isinstance(value, int | float) or value != value:
        raise UsageError(f"{name}={value!r} is no number")
    if not parameter.minimum <= value <= parameter.maximum:
        raise UsageError(
            f"{name}={value:g} is not between {parameter.minimum:g} and {parameter.maximum:g} "
            f"({parameter.unit})"
        )
    return float(value)


def parse_settings(texts: Iterable[str]) -> dict[str, float]:
    """``name=value`` texts; :class:`UsageError` for anything else."""
    found: dict[str, float] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not equals or number != number:
            raise UsageError(f"{text!r} is no name=number")
        found[name.strip()] = _checked(name.strip(), number)
    return found


def read_parameters(path: str) -> dict[str, float]:
    """``name = number`` lines of a TOML file, at top level or below ``[bandwidth]``.

    Raises ``OSError`` when it cannot be read, :class:`FormatError` when it is no such file, and
    :class:`UsageError` for a parameter that is none.
    """
    import tomllib

    try:
        with open(path, "rb") as file:
            document = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as failure:
        raise FormatError(f"not TOML: {failure}", path=path) from None
    section = document.get("bandwidth", document)
    if not isinstance(section, dict):
        raise FormatError("'bandwidth' is no table", path=path)
    return {name: _checked(name, value) for name, value in section.items()}
