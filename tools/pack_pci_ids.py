"""Write the package's own copy of pci.ids: vendors and devices, without subsystems and classes.

``python tools/pack_pci_ids.py [/usr/share/misc/pci.ids]``. The licence header stays.
"""

from __future__ import annotations

import sys
from pathlib import Path

import zstandard

TARGET = Path(__file__).resolve().parents[1] / "src/vfiokit/data/pci.ids.zst"


def compact(text: str) -> str:
    """The header comment, vendors and devices of a pci.ids file."""
    lines: list[str] = []
    in_header = True
    for line in text.splitlines():
        if line.startswith("C "):
            break
        in_header = in_header and (line.startswith("#") or not line)
        if in_header or (line and not line.startswith(("#", "\t\t"))):
            lines.append(line)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Pack the file named, or Debian's."""
    source = Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/share/misc/pci.ids")
    packed = compact(source.read_text(encoding="utf-8")).encode()
    TARGET.write_bytes(zstandard.ZstdCompressor(level=22).compress(packed))
    print(f"{TARGET}: {TARGET.stat().st_size >> 10} KiB of {len(packed) >> 10}")


if __name__ == "__main__":
    main()
