#!/usr/bin/env python3
"""Assemble the guest programs in ``src/vfiokit/vmm/guest``: NAME.s → NAME.bin and NAME.lst.

The bytes and their listing are kept in the repository, so that nobody needs an assembler to run
them; ``tests/vmm/test_cpu_programs.py`` assembles again and compares. A program says where it is
loaded in a comment ``# origin: 0x1000`` (default 0) and what it is in ``.code16`` or ``.code64``::

    tools/assemble.py            # write all that are out of date
    tools/assemble.py --check    # exit with 1 if any is
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

PROGRAMS = Path(__file__).resolve().parent.parent / "src" / "vfiokit" / "vmm" / "guest"
_ORIGIN = re.compile(r"^#\s*origin:\s*(\w+)\s*$", re.MULTILINE)


class Assembled(NamedTuple):
    """What a program is turned into."""

    image: bytes
    listing: str


class AssembleError(Exception):
    """The assembler or linker is missing or refuses the program."""


def assemble(source: Path) -> Assembled:
    """Assemble and link one program; raises :class:`AssembleError`."""
    text = source.read_text()
    found = _ORIGIN.search(text)
    origin = int(found.group(1), 0) if found else 0
    with tempfile.TemporaryDirectory() as folder:
        unit, image = Path(folder, "program.o"), Path(folder, "program.bin")
        listing = Path(folder, "program.lst")
        # -almn: no form feeds, no symbol table; the name of the folder must not get in.
        _run(
            ["as", "--64", "-mmnemonic=intel", "-msyntax=intel", "-mnaked-reg",
             "--fatal-warnings", f"-almn={listing}", "-o", str(unit), source.name],
            source.parent,
        )  # fmt: skip
        _run(
            ["ld", "-m", "elf_x86_64", "--oformat", "binary", "--no-warn-rwx-segments",
             "-Ttext", hex(origin), "-e", "0", "-o", str(image), str(unit)],
            source.parent,
        )  # fmt: skip
        return Assembled(image.read_bytes(), listing.read_text())


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssembleError(done.stderr.strip())


def available() -> bool:
    """Whether GNU as and ld are installed."""
    return bool(shutil.which("as") and shutil.which("ld"))


def main() -> int:
    """Assemble, or compare."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="only say what is out of date")
    parser.add_argument("program", nargs="*", type=Path, help="NAME.s; default: all of them")
    arguments = parser.parse_args()
    if not available():
        sys.stderr.write("GNU as and ld are needed (Debian: binutils)\n")
        return 2
    stale = 0
    for source in arguments.program or sorted(PROGRAMS.glob("*.s")):
        try:
            made = assemble(source.resolve())
        except AssembleError as error:
            sys.stderr.write(f"{source}: {error}\n")
            return 1
        image, listing = source.with_suffix(".bin"), source.with_suffix(".lst")
        if (
            image.exists()
            and listing.exists()
            and Assembled(image.read_bytes(), listing.read_text()) == made
        ):
            continue
        stale += 1
        print(f"{source.name}: {'out of date' if arguments.check else f'{len(made.image)} bytes'}")
        if not arguments.check:
            image.write_bytes(made.image)
            listing.write_text(made.listing)
    return 1 if stale and arguments.check else 0


if __name__ == "__main__":
    sys.exit(main())
