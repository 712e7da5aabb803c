"""A processor with a little memory and a bus that records, for tests."""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from types import ModuleType

import pytest

from vfiokit.vmm.boot import enter_long_mode, enter_real_mode
from vfiokit.vmm.cpu import Interpreter
from vfiokit.vmm.ept import Ept
from vfiokit.vmm.exit import Exit, ExitReason

ROOT = Path(__file__).resolve().parents[2]
CODE = 0x1000
STACK = 0x9000
TABLES = 0x10000
RAM = 0x40000
MAPPED = 0xE000_0000
"""The bus answers here itself."""
TRAPPED = 0xF000_0000
"""It leaves these to the hypervisor."""


class RecordingBus:
    """Registers at MAPPED; everything else traps."""

    def __init__(self) -> None:
        self.accesses: list[tuple[str, int, int, int]] = []
        self.values: dict[int, int] = {}
        self.on_write = lambda gpa, value: None

    def read(self, gpa: int, width: int) -> int | None:
        if not MAPPED <= gpa < TRAPPED:
            return None
        value = self.values.get(gpa, 0)
        self.accesses.append(("read", gpa, width, value))
        return value

    def write(self, gpa: int, width: int, value: int) -> bool:
        if not MAPPED <= gpa < TRAPPED:
            return False
        self.accesses.append(("write", gpa, width, value))
        self.on_write(gpa, value)
        return True


@lru_cache(maxsize=1)
def assembler() -> ModuleType:
    """``tools/assemble.py`` as a module."""
    spec = importlib.util.spec_from_file_location("assemble", ROOT / "tools" / "assemble.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@lru_cache(maxsize=256)
def assemble(text: str, bits: int = 64, origin: int = CODE) -> bytes:
    """Machine code of ``text`` (Intel syntax); skips where there is no assembler."""
    if not (shutil.which("as") and shutil.which("ld")):
        assert not os.environ.get("CI"), "CI has an assembler"
        pytest.skip("GNU as is not installed")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "test.s")
        source.write_text(f"# origin: {origin:#x}\n.code{bits}\n{text}\n")
        try:
            image: bytes = assembler().assemble(source).image
        except assembler().AssembleError as error:
            raise AssertionError(f"{error}\n{text}") from None
    return image


class Rig:
    """One processor that is about to run ``text``."""

    def __init__(self, text: str, bits: int = 64, *, ept: Ept | None = None) -> None:
        self.ram = bytearray(RAM)
        self.view = memoryview(self.ram)
        self.code = assemble(text, bits)
        self.ram[CODE : CODE + len(self.code)] = self.code
        self.bus = RecordingBus()
        self.cpu = Interpreter([(0, self.view)], self.bus, ept=ept)
        if bits == 64:
            enter_long_mode(self.cpu, self.view, CODE, tables=TABLES, stack=STACK)
        else:
            enter_real_mode(self.cpu, CODE, stack=STACK)

    def __getitem__(self, name: str) -> int:
        return self.cpu.read_register(name)

    def __setitem__(self, name: str, value: int) -> None:
        self.cpu.write_register(name, value)

    def run(self, budget: int = 100_000) -> Exit:
        return self.cpu.run(budget)

    def until(self, reason: ExitReason, budget: int = 100_000) -> Exit:
        """Run; the exit has to be for ``reason``."""
        leaving = self.cpu.run(budget)
        assert leaving.reason is reason, leaving
        return leaving

    def number(self, address: int, width: int = 8) -> int:
        """Little-endian in memory."""
        return int.from_bytes(self.ram[address : address + width], "little")

    def store(self, address: int, value: int, width: int = 8) -> None:
        """Little-endian to memory."""
        self.ram[address : address + width] = value.to_bytes(width, "little")

    def gate(self, vector: int, handler: int, *, ist: int = 0, kind: int = 0x8E) -> None:
        """A 64-bit interrupt gate in the IDT at 0x3000."""
        place = 0x3000 + 16 * vector
        self.store(
            place,
            handler & 0xFFFF | 8 << 16 | ist << 32 | kind << 40 | (handler >> 16 & 0xFFFF) << 48,
        )
        self.store(place + 8, handler >> 32)
        self["idt.base"], self["idt.limit"] = 0x3000, 0xFFF

    def label(self, marker: int) -> int:
        """Address behind an 8-byte marker in the code."""
        return CODE + self.code.index(marker.to_bytes(8, "little")) + 8
