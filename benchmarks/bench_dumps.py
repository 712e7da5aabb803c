"""How long do `vfiokit groups` and `vfiokit show -vvv` of a dump take, as multiples of lspci?

The dumps hold copies of the 226-function server, one PCI domain a copy. Whole processes that take
turns, best of several. `groups` against `lspci -F DUMP -n`: lspci reads the dump and prints a line
a function; vfiokit also predicts every IOMMU group. `show -vvv` against `lspci -F DUMP -vvv`:
every register in words; vfiokit also prints reserved bits, sections of the specification, findings,
groups with their reasons, and the configuration space in hexadecimal.

Copies are alike, and texts already made are remembered, so the last line measures the other end:
a dump whose capabilities hold random bits, so that hardly any register repeats. It has no goal.

    python benchmarks/bench_dumps.py [--check]
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from vfiokit.pci.topology import Function

ROUNDS = {226: 15, 1_000: 11, 10_000: 5}
MEMORY_GOAL = 8.0
"""Kilobytes a function, at the largest size."""
_OURS = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")


class Race(NamedTuple):
    """One command of ours against one of lspci."""

    words: tuple[str, ...]
    option: str
    goals: dict[int, float]
    """Most that the ratio may be, by functions."""


RACES = (
    Race(("groups",), "-n", {226: 6.0, 1_000: 1.5, 10_000: 1.0}),
    Race(("show", "-vvv"), "-vvv", {226: 6.0, 10_000: 4.0}),
)


def write_dump(path: Path, count: int, *, shaken: bool = False) -> None:
    """What ``lspci -Dnxxxx`` prints of ``count`` functions of copies of the server.

    ``shaken``: with random bits in every capability, except in its first four bytes.
    """
    from vfiokit.host.source import open_host
    from vfiokit.pci.hex_dump import rows

    functions = list(open_host("demo").topology())
    chance = random.Random(226)
    with path.open("w") as file:
        for number in range(count):
            function = functions[number % len(functions)]
            identity, data = function.identity, function.config.data
            if shaken:
                data = _shaken(function, chance)
            file.write(
                f"{function.bdf._replace(domain=number // len(functions))} "
                f"{identity.class_code >> 8:04x}: {identity.vendor_id:04x}:{identity.device_id:04x}"
            )
            file.writelines(f"\n{row}" for row in rows(data))
            file.write("\n\n")


def _shaken(function: Function, chance: random.Random) -> bytes:
    data = bytearray(function.config.data)
    places = sorted(each.offset for each in function.capabilities)
    for capability in function.capabilities:
        start = capability.offset + 4
        later = [place for place in places if place > capability.offset]
        end = min(capability.offset + capability.size, len(data), *later)
        if capability.id != 0x10 and start < end:  # the port's type decides what the tree is
            data[start:end] = chance.randbytes(end - start)
    return bytes(data)


def run(command: list[str]) -> tuple[float, int]:
    """Wall time in seconds and peak resident memory in KB of one process."""
    environment = {name: value for name, value in os.environ.items() if name not in _OURS}
    quiet = [(os.POSIX_SPAWN_OPEN, descriptor, os.devnull, os.O_WRONLY, 0) for descriptor in (1, 2)]
    start = time.perf_counter()
    pid = os.posix_spawn(command[0], command, environment, file_actions=quiet)
    _, status, usage = os.wait4(pid, 0)
    elapsed = time.perf_counter() - start
    if status:
        raise SystemExit(f"{' '.join(command)}: wait status {status}")
    return elapsed, usage.ru_maxrss


def race(lspci: str, dump: Path, rounds: int, race: Race) -> tuple[float, float, int]:
    """Best seconds of lspci, best of ours, and our peak memory in KB."""
    commands = (
        [lspci, "-F", str(dump), race.option],
        [sys.executable, "-m", "vfiokit", *race.words, "--host", str(dump)],
    )
    results: tuple[list[tuple[float, int]], ...] = ([], [])
    for _ in range(rounds):
        for command, found in zip(commands, results, strict=True):
            found.append(run(command))
    theirs, ours = results
    return min(theirs)[0], min(ours)[0], max(memory for _, memory in ours)


def measure(lspci: str, folder: Path) -> bool:
    """Print every race; whether a goal was missed."""
    failed = False
    for count, rounds in ROUNDS.items():
        dump = folder / f"{count}.lspci"
        write_dump(dump, count)
        print(f"{count} functions, {dump.stat().st_size / 1e6:.1f} MB:")
        for each in RACES:
            failed |= _report(lspci, dump, rounds, each, count, each.goals.get(count))
    dump = folder / "shaken.lspci"
    write_dump(dump, count, shaken=True)
    print(f"{count} functions with random registers, {dump.stat().st_size / 1e6:.1f} MB:")
    _report(lspci, dump, 3, RACES[1], count, None)
    return failed


def _report(
    lspci: str, dump: Path, rounds: int, each: Race, count: int, goal: float | None
) -> bool:
    theirs, ours, memory = race(lspci, dump, rounds, each)
    ratio = ours / theirs
    text = f" (goal <= {goal:.1f}x)" if goal is not None else ""
    kilobytes = memory / count
    if count == max(ROUNDS):
        text += f", {kilobytes:.1f} KB a function (goal <= {MEMORY_GOAL:.0f})"
    print(
        f"  lspci {each.option:4} {theirs * 1e3:7.1f} ms, "
        f"{' '.join(each.words):9} {ours * 1e3:7.1f} ms: {ratio:5.2f}x{text}"
    )
    too_big = count == max(ROUNDS) and kilobytes > MEMORY_GOAL
    return too_big or (goal is not None and ratio > goal)


def main() -> int:
    """Measure and print."""
    lspci = shutil.which("lspci")
    if lspci is None:
        print("lspci is not installed (pciutils): nothing to compare with")
        return 1 if "--check" in sys.argv else 0
    with tempfile.TemporaryDirectory() as folder:
        failed = measure(lspci, Path(folder))
    return 1 if failed and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
