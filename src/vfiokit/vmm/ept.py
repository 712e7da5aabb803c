"""The second stage: guest-physical to host-physical addresses, with permissions.

Tables of 512 entries, 9 address bits a level, as Intel's EPT has them (SDM volume 3, 29.3): bits
0 to 2 permit read, write and execute, bit 7 of an entry above the last level says that it maps a
large page.
"""

from __future__ import annotations

from typing import Final

from vfiokit.errors import UsageError

READ: Final = 1
WRITE: Final = 2
EXECUTE: Final = 4
ALL: Final = READ | WRITE | EXECUTE
_LARGE: Final = 1 << 7
_ADDRESS: Final = 0x000F_FFFF_FFFF_F000
_NAMES: Final = {READ: "read", WRITE: "write", EXECUTE: "execute"}


def permission_text(permissions: int) -> str:
    """``rwx``, with ``-`` for what is not permitted."""
    return "".join(
        letter if permissions & bit else "-"
        for bit, letter in ((READ, "r"), (WRITE, "w"), (EXECUTE, "x"))
    )


class EptViolation(Exception):  # noqa: N818 - the hypervisor's event, not an error
    """The second stage does not permit an access, or maps nothing there."""

    def __init__(self, gpa: int, access: int, permissions: int | None) -> None:
        found = "not mapped" if permissions is None else f"mapped {permission_text(permissions)}"
        self.detail = f"EPT violation: {_NAMES[access]} of gpa {gpa:#x}, which is {found}"
        super().__init__(self.detail)
        self.gpa = gpa
        self.access = access
        self.permissions = permissions
        """What the tables permit; ``None`` where nothing is mapped."""


class Ept:
    """The second-stage tables of one guest.

    ``levels`` are 1 to 5; ``references`` counts the entries read by :meth:`translate` so far.
    """

    def __init__(self, levels: int = 4) -> None:
        if not 1 <= levels <= 5:
            raise UsageError(f"second-stage tables have 1 to 5 levels, not {levels}")
        self.levels = levels
        self.references = 0
        self.generation = 0
        """Goes up with every change: whoever keeps translations drops them (INVEPT)."""
        self._tables: list[list[int]] = [[0] * 512]
        self._shifts = tuple(12 + 9 * level for level in reversed(range(levels)))

    @property
    def limit(self) -> int:
        """One past the last guest-physical address that the tables can map."""
        return 1 << 12 + 9 * self.levels

    def translate(self, gpa: int, access: int) -> tuple[int, int]:
        """Host-physical address of ``gpa``, and the size of its page.

        ``access`` is one of :data:`READ`, :data:`WRITE`, :data:`EXECUTE`. Raises
        :class:`EptViolation`.
        """
        if gpa >= self.limit:
            raise EptViolation(gpa, access, None)
        table = self._tables[0]
        permitted = ALL
        for shift in self._shifts:
            self.references += 1
            entry = table[gpa >> shift & 511]
            if not entry & ALL:
                raise EptViolation(gpa, access, 0 if entry else None)
            permitted &= entry
            if shift == 12 or entry & _LARGE:
                break
            table = self._tables[entry >> 12]
        if not permitted & access:
            raise EptViolation(gpa, access, permitted)
        size = 1 << shift
        return entry & _ADDRESS & -size | gpa & size - 1, size

    def map(
        self, gpa: int, hpa: int, length: int, permissions: int = ALL, page_size: int = 4096
    ) -> None:
        """Map ``length`` bytes; :class:`UsageError` for what pages of ``page_size`` cannot map.

        What was mapped there before is replaced.
        """
        shift = page_size.bit_length() - 1
        if 1 << shift != page_size or shift not in self._shifts or shift > 30:
            raise UsageError(f"{self.levels} levels have no pages of {page_size:#x} bytes")
        if (gpa | hpa | length) % page_size or gpa + length > self.limit:
            raise UsageError(
                f"gpa {gpa:#x} → hpa {hpa:#x}, {length:#x} bytes, cannot be mapped by pages of "
                f"{page_size:#x} in {self.levels} levels"
            )
        large = _LARGE if shift != 12 else 0
        for offset in range(0, length, page_size):
            table, index = self._slot(gpa + offset, shift)
            table[index] = hpa + offset | large | permissions
        self.generation += 1

    def protect(self, gpa: int, length: int, permissions: int) -> None:
        """Change what is permitted; 0 traps everything. Large pages are split where needed.

        :class:`UsageError` where nothing is mapped, or for parts of pages.
        """
        if (gpa | length) % 4096:
            raise UsageError(f"gpa {gpa:#x}, {length:#x} bytes: not whole pages")
        for page in range(gpa, gpa + length, 4096):
            table, index = self._slot(page, 12, split=True)
            if not table[index]:
                raise UsageError(f"gpa {page:#x} is not mapped")
            # An entry that permits nothing keeps its address: bit 8 is the processor's to ignore.
            table[index] = table[index] & ~ALL | permissions | 1 << 8
        self.generation += 1

    def unmap(self, gpa: int, length: int) -> None:
        """Map nothing at ``[gpa, gpa + length)``, whole pages. Nothing where nothing was."""
        if (gpa | length) % 4096:
            raise UsageError(f"gpa {gpa:#x}, {length:#x} bytes: not whole pages")
        for page in range(gpa, gpa + length, 4096):
            table, index = self._slot(page, 12, split=True)
            table[index] = 0
        self.generation += 1

    def _slot(self, gpa: int, wanted: int, *, split: bool = False) -> tuple[list[int], int]:
        table = self._tables[0]
        for shift in self._shifts:
            index = gpa >> shift & 511
            if shift == wanted:
                return table, index
            entry = table[index]
            if entry & _LARGE and split:
                table[index] = entry = self._split(entry, shift)
            elif not entry & ALL or entry & _LARGE:
                self._tables.append([0] * 512)
                table[index] = entry = len(self._tables) - 1 << 12 | ALL
            table = self._tables[entry >> 12]
        raise AssertionError("the last level is always wanted")

    def _split(self, entry: int, shift: int) -> int:
        below = shift - 9
        kind = (_LARGE if below > 12 else 0) | entry & (ALL | 1 << 8)
        base = entry & _ADDRESS & -(1 << shift)
        self._tables.append([base + (number << below) | kind for number in range(512)])
        return len(self._tables) - 1 << 12 | ALL
