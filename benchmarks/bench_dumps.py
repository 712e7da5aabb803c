"""How long does `vfiokit groups --host DUMP` take, as a multiple of `lspci -F DUMP -n`?

The dumps hold copies of the 226-function server, one PCI domain a copy. Whole processes that take
turns, best of several. lspci reads the dump and prints a line a function; vfiokit also predicts
every IOMMU group. Goals: at most 1.5 times lspci at 1,000 functions, 1.0 at 10,000, and 8 KB of
memory a function there, all of Python included.

    python benchmarks/bench_dumps.py [--check]
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = {226: 15, 1_000: 11, 10_000: 5}
GOALS = {1_000: 1.5, 10_000: 1.0}
MEMORY_GOAL = 8.0
"""Kilobytes a function, at the largest size."""
_OURS = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")


def write_dump(path: Path, count: int) -> None:
    """What ``lspci -Dnxxxx`` prints of ``count`` functions of copies of the server."""
    from vfiokit.host.source import open_host

    blocks = []
    for function in open_host("demo").topology():
        identity, data = function.identity, function.config.data
        head = f"{identity.class_code >> 8:04x}: {identity.vendor_id:04x}:{identity.device_id:04x}"
        rows = "".join(
            f"{at:02x}: {data[at : at + 16].hex(' ')}\n" for at in range(0, len(data), 16)
        )
        blocks.append((function.bdf, f" {head}\n{rows}\n"))
    with path.open("w") as file:
        for number in range(count):
            bdf, block = blocks[number % len(blocks)]
            file.write(f"{bdf._replace(domain=number // len(blocks))}{block}")


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


def main() -> int:
    """Measure and print."""
    lspci = shutil.which("lspci")
    if lspci is None:
        print("lspci is not installed (pciutils): nothing to compare with")
        return 1 if "--check" in sys.argv else 0
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for count, rounds in ROUNDS.items():
            dump = Path(folder) / f"{count}.lspci"
            write_dump(dump, count)
            commands = {
                "lspci": [lspci, "-F", str(dump), "-n"],
                "vfiokit": [sys.executable, "-m", "vfiokit", "groups", "--host", str(dump)],
            }
            best = dict.fromkeys(commands, (float("inf"), 0))
            for _ in range(rounds):
                for name, command in commands.items():
                    best[name] = min(best[name], run(command))
            ratio = best["vfiokit"][0] / best["lspci"][0]
            kilobytes = best["vfiokit"][1] / count
            goal = GOALS.get(count)
            text = f"(goal <= {goal:.1f}x)" if goal is not None else ""
            print(
                f"{count:6} functions, {dump.stat().st_size / 1e6:5.1f} MB: "
                f"lspci -n {best['lspci'][0] * 1e3:6.1f} ms, "
                f"groups {best['vfiokit'][0] * 1e3:6.1f} ms: {ratio:4.2f}x {text}"
            )
            failed |= goal is not None and ratio > goal
    print(f"memory of groups: {kilobytes:.1f} KB a function (goal <= {MEMORY_GOAL:.0f})")
    failed |= kilobytes > MEMORY_GOAL
    return 1 if failed and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
