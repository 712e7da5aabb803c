"""How long does `vfiokit groups --host FILE` take, as a multiple of starting Python?

Whole processes, interleaved, best of many. Goal: at most 8 times `python -c pass` on the capture
of the 226-function server.

    python benchmarks/bench_groups.py [--check]
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GOAL = 8.0
_OURS = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED")
ROUNDS = 25


def best_of(commands: dict[str, list[str]], rounds: int = ROUNDS) -> dict[str, float]:
    """Best wall time of each command in seconds; the commands take turns."""
    # Compiled modules are kept, as they are for an installed package.
    environment = {name: value for name, value in os.environ.items() if name not in _OURS}
    best = dict.fromkeys(commands, float("inf"))
    for _ in range(rounds):
        for name, command in commands.items():
            start = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def main() -> int:
    """Measure and print."""
    import zstandard

    import vfiokit.data

    packed = Path(vfiokit.data.__file__).parent / "hpe-gen9-vgpu-node.umockdev.zst"
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "server.umockdev"
        plain.write_bytes(zstandard.ZstdDecompressor().stream_reader(packed.read_bytes()).read())
        groups = [sys.executable, "-m", "vfiokit", "groups", "--host"]
        best = best_of(
            {
                "python -c pass": [sys.executable, "-c", "pass"],
                "groups, record": [*groups, str(plain)],
                "groups, packed record": [*groups, "demo"],
            }
        )
    floor = best["python -c pass"]
    print(f"python -c pass          {floor * 1e3:7.1f} ms")
    failed = False
    for name in ("groups, record", "groups, packed record"):
        ratio = best[name] / floor
        failed |= name == "groups, record" and ratio > GOAL
        print(f"{name:<23} {best[name] * 1e3:7.1f} ms   {ratio:4.1f}x (goal <= {GOAL:.0f}x)")
    return 1 if failed and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
