"""Record what a real kernel decides about peer-to-peer DMA: ``tests/oracle/p2p-linux-7.2.json``.

::

    VFIOKIT_LAB_KERNEL=bzImage python tools/p2p_table.py            # record everything anew
    VFIOKIT_LAB_KERNEL=bzImage python tools/p2p_table.py --check    # compare, write nothing
    VFIOKIT_LAB_KERNEL=bzImage python tools/p2p_table.py --check --only "virtual functions"

Each boot of ``tests/oracle/p2p_boots.py`` is a guest with NVMe drives; in it, every ordered pair
of them transfers a page from the client's namespace into the provider's controller memory buffer,
while probes tell the kernel's own map type and distance. Takes four minutes; no privilege needed.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests" / "oracle")]

import p2p_boots  # noqa: E402
import p2p_format  # noqa: E402

from vfiokit.lab import Lab, LabError  # noqa: E402


def record(lab: Lab, only: str) -> tuple[list[p2p_format.Json], dict[str, str]]:
    """Every scenario of the boots whose title holds ``only``, and their configuration spaces."""
    scenarios: list[p2p_format.Json] = []
    configs: dict[str, str] = {}
    for boot in p2p_boots.BOOTS:
        if only not in boot.title:
            continue
        begun = time.monotonic()
        for phase, answer in zip(boot.phases, p2p_boots.run(lab, boot), strict=True):
            scenarios.append(p2p_format.scenario(boot, phase, answer, configs))
        seconds = time.monotonic() - begun
        print(f"{seconds:5.1f} s  {boot.title}, {boot.cpu}, {boot.iommu}", flush=True)
    return scenarios, configs


def differences(scenarios: list[p2p_format.Json], configs: dict[str, str]) -> list[str]:
    """One line for each scenario that is not as in the table."""
    known = {each["name"]: p2p_format.comparable(each) for each in p2p_format.load()["scenarios"]}
    lines: list[str] = []
    for each in scenarios:
        p2p_format.resolve(each, configs)
        was: dict[str, Any] = known.get(each["name"], {})
        now = p2p_format.comparable(each)
        changed = [key for key in now if was.get(key) != now[key]]
        if changed:
            lines.append(f"{each['name']}: {', '.join(changed)}")
    return lines


def main() -> int:
    """Exit status 1 when ``--check`` finds a difference, 2 when there is no lab."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--kernel", default="", help="default: $VFIOKIT_LAB_KERNEL")
    parser.add_argument("--check", action="store_true", help="compare with the table")
    parser.add_argument("--only", default="", help="boots whose title holds this; with --check")
    options = parser.parse_args()
    if options.only and not options.check:
        parser.error("--only goes with --check: the table is written whole")
    try:
        scenarios, configs = record(Lab(kernel=options.kernel, timeout_s=300), options.only)
    except LabError as error:
        print(error, error.hint, sep="\n", file=sys.stderr)
        return 2
    if not options.check:
        p2p_format.PATH.write_text(p2p_format.render(scenarios, configs), encoding="utf-8")
        print(f"{len(scenarios)} scenarios in {p2p_format.PATH}")
        return 0
    lines = differences(scenarios, configs)
    print("\n".join(lines) or f"{len(scenarios)} scenarios are as in the table")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
