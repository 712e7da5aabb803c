"""``lspci -vvv -xxxx`` dumps of other people's machines: bytes, and what lspci says of them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from vfiokit.pci.config import ConfigSpace

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("VFIOKIT_SHARED", REPOSITORY / "../shared"))

_HEAD = re.compile(r"((?:[0-9a-f]{4,8}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]) ")
_ROW = re.compile(r"[0-9a-f]{2,3}: ((?:[0-9a-f]{2} ?){16})\s*")
_CAPABILITY = re.compile(r"\s+Capabilities: \[([0-9a-f]+)[^\]]*\] ")


class Dump(NamedTuple):
    file: str
    bdf: str
    config: ConfigSpace
    text: str
    """Everything lspci wrote about the function, bytes aside."""

    def about(self, offset: int) -> str:
        """What lspci wrote about the capability at ``offset``."""
        lines: list[str] = []
        for line in self.text.splitlines():
            match = _CAPABILITY.match(line)
            if match:
                if lines:
                    break
                if int(match[1], 16) == offset:
                    lines.append(line)
            elif lines:
                lines.append(line)
        return "\n".join(lines)


def dumps() -> list[Dump]:
    folder = SHARED / "data" / "lspci"
    if not folder.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"{folder} is missing")
        pytest.skip(f"{folder} is not here")
    found: list[Dump] = []
    for path in sorted(folder.iterdir()):
        for block in re.split(r"\n\s*\n", path.read_text(errors="replace")):
            head = _HEAD.match(block.lstrip("\n"))
            rows = [match[1] for line in block.splitlines() if (match := _ROW.fullmatch(line))]
            if head and rows:
                text = "\n".join(line for line in block.splitlines() if not _ROW.fullmatch(line))
                data = bytes.fromhex("".join(rows))
                found.append(Dump(path.name, head[1], ConfigSpace(data), text))
    return found
