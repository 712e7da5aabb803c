"""Rebuild the machine code of :mod:`vfiokit.lab.interpreter` from ``init.S``.

``python -m vfiokit.lab.assemble`` needs GNU as, ld and objcopy, writes ``interpreter.py`` anew and
says whether it changed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

SOURCE = Path(__file__).with_name("init.S")
OUTPUT = Path(__file__).with_name("interpreter.py")

_HEADER = '''\
"""Machine code of the lab guest's first process, made from ``init.S``; do not edit.

Rebuild: ``python -m vfiokit.lab.assemble``.
"""

from __future__ import annotations

CODE_ADDRESS = {code:#x}
TABLE_ADDRESS = {table:#x}
CODE = bytes.fromhex(
    """
{digits}
    """
)
'''

CODE_ADDRESS = 0x401000
TABLE_ADDRESS = 0x402000


def assemble(source: Path = SOURCE) -> bytes:
    """The bytes of ``source``, linked at :data:`CODE_ADDRESS`."""
    with tempfile.TemporaryDirectory(prefix="vfiokit-init-") as folder:
        objects, linked, flat = (f"{folder}/{name}" for name in ("init.o", "init.elf", "init.bin"))
        link = ["ld", "-N", "--no-warn-rwx-segments", "-Ttext", hex(CODE_ADDRESS)]
        flatten = ["objcopy", "-O", "binary", "-j", ".text", "-j", ".data"]
        subprocess.run(["as", "-o", objects, str(source)], check=True)
        subprocess.run([*link, "-o", linked, objects], check=True)
        subprocess.run([*flatten, linked, flat], check=True)
        return Path(flat).read_bytes()


def render(code: bytes) -> str:
    """The text of ``interpreter.py`` for ``code``."""
    digits = textwrap.fill(code.hex(), 88, initial_indent="    ", subsequent_indent="    ")
    return _HEADER.format(code=CODE_ADDRESS, table=TABLE_ADDRESS, digits=digits)


def main() -> int:
    """Write the module; exit status 0."""
    text = render(assemble())
    changed = not OUTPUT.exists() or OUTPUT.read_text(encoding="utf-8") != text
    OUTPUT.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{OUTPUT.name}: {'changed' if changed else 'as it was'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
