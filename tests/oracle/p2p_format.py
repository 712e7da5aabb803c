"""The P2P table as a file: ``p2p-linux-7.2.json``.

``configs`` holds configuration spaces by a short name, in hex, trailing zeros left off;
``scenarios`` refer to them. docs/oracles.md describes every field.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypeAlias

from p2p_boots import Boot, Phase

from vfiokit.pci.address import Bdf
from vfiokit.pci.config import ConfigSpace
from vfiokit.pci.topology import Function, Identity, Recorded, Topology

Json: TypeAlias = dict[str, Any]

PATH = Path(__file__).with_name("p2p-linux-7.2.json")
FORMAT = 1
ABOUT = "Recorded from Linux 7.2.12 in QEMU 7.2 by tools/p2p_table.py; docs/oracles.md explains it."


def name_of(boot: Boot, phase: Phase) -> str:
    """One for each scenario."""
    return f"{boot.title} / {boot.cpu} / {boot.iommu} / {phase.title}"


def scenario(boot: Boot, phase: Phase, record: Json, configs: dict[str, str]) -> Json:
    """One scenario; its configuration spaces go into ``configs``."""
    functions = {}
    for bdf, function in record["functions"].items():
        content = function["config"]
        name = hashlib.sha256(content.encode()).hexdigest()[:10]
        shown = content.rstrip("0")
        configs[name] = shown + "0" * (len(shown) % 2)
        functions[bdf] = {**function, "config": name, "config_size": len(content) // 2}
    parents = {function["parent"] for function in functions.values()}
    return {
        "name": name_of(boot, phase),
        "topology": boot.topology,
        "cpu": {"model": boot.cpu, **record["cpu"]},
        "iommu": boot.iommu,
        "parameters": boot.command_line(),
        "writes": {"acs_control": dict(phase.acs), "ids": dict(phase.ids), "remove": phase.remove},
        "names": record["names"],
        "host_bridges": sorted(each for each in parents if each.startswith("pci")),
        "functions": functions,
        "pairs": record["pairs"],
    }


def render(scenarios: list[Json], configs: dict[str, str]) -> str:
    """The file's text: a line for each function, pair and configuration space."""
    lines = ["{", f'"about": {json.dumps(ABOUT)},', f'"format": {FORMAT},', '"scenarios": [']
    for number, each in enumerate(scenarios):
        lines.append("{")
        for key, value in each.items():
            comma = "" if key == "pairs" else ","
            if key == "functions":
                entries = [f"{json.dumps(bdf)}: {json.dumps(item)}" for bdf, item in value.items()]
                lines += [f'"{key}": {{', ",\n".join(entries), f"}}{comma}"]
            elif key == "pairs":
                lines += [f'"{key}": [', ",\n".join(map(json.dumps, value)), f"]{comma}"]
            else:
                lines.append(f'"{key}": {json.dumps(value)}{comma}')
        lines.append("}" if number == len(scenarios) - 1 else "},")
    lines += ["],", '"configs": {']
    lines.append(",\n".join(f'"{name}": "{configs[name]}"' for name in sorted(configs)))
    return "\n".join([*lines, "}", "}"]) + "\n"


def load(path: Path = PATH) -> Json:
    """The table, each function's ``config`` as bytes in place of its name."""
    table: Json = json.loads(path.read_text(encoding="utf-8"))
    for each in table["scenarios"]:
        resolve(each, table["configs"])
    return table


def resolve(each: Json, configs: dict[str, str]) -> None:
    """Replace the names of configuration spaces by their bytes."""
    for function in each["functions"].values():
        content = bytes.fromhex(configs[function["config"]])
        function["config"] = content.ljust(function["config_size"], b"\0")


def topology(each: Json) -> Topology:
    """A scenario as a value, identities as the kernel remembers them."""
    functions = []
    for address, function in each["functions"].items():
        ids = (int(function[name], 16) for name in ("vendor", "device", "class"))
        physfn = function["physfn"]
        functions.append(
            Function(
                Bdf.parse(address),
                ConfigSpace(function["config"]),
                Identity(*ids),
                physfn=None if physfn is None else Bdf.parse(physfn),
                recorded=Recorded(iommu_group=function["iommu_group"]),
            )
        )
    roots = [
        tuple(int(number, 16) for number in name[3:].split(":")) for name in each["host_bridges"]
    ]
    return Topology(functions, [(domain, bus) for domain, bus in roots])


def comparable(each: Json) -> Json:
    """What must be the same when a scenario is recorded again: all but volatile registers."""
    functions = {}
    for bdf, function in each["functions"].items():
        config = function["config"]
        bridge = config[0x0E] & 0x7F == 1
        lasting = {
            "header": config[:4] + config[8:0x10],
            "buses": config[0x18:0x1B] if bridge else b"",
            "acs": acs(config),
        }
        functions[bdf] = {**function, "config": lasting}
    return {**each, "functions": functions, "writes": json.loads(json.dumps(each["writes"]))}


def acs(config: bytes) -> tuple[int, int] | None:
    """ACS Capability and ACS Control; ``None`` without the extended capability."""
    offset = 0x100 if len(config) > 0x100 else 0
    while offset:
        header = int.from_bytes(config[offset : offset + 4], "little")
        if header & 0xFFFF == 0x000D:
            return tuple(  # type: ignore[return-value]
                int.from_bytes(config[at : at + 2], "little") for at in (offset + 4, offset + 6)
            )
        offset = header >> 20
    return None
