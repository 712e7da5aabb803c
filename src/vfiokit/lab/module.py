"""Modules of a kernel: which files, in which order.

Sources: ``modules.dep(5)``; Linux ``scripts/mod/modpost.c`` (``depends=``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from vfiokit.errors import VfiokitError
from vfiokit.lab.failure import LabError

_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


class Module(NamedTuple):
    """A module's name, with underscores, and its file."""

    name: str
    path: Path

    def content(self) -> bytes:
        """The module, unpacked; raises :class:`LabError`."""
        from vfiokit.host.compression import decompress

        try:
            return decompress(self.path.read_bytes(), str(self.path))
        except (OSError, VfiokitError) as error:
            raise LabError(f"module {self.name} cannot be read: {error}") from error


class ModuleFolder:
    """``/lib/modules/RELEASE`` or the like; true when there is any module in it.

    Works without ``modules.dep``, which a package unpacked but not installed lacks: modules name
    what they need in their ``.modinfo``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files: dict[str, Path] | None = None
        self._needs: dict[str, tuple[str, ...]] = {}
        self._pending: set[str] = set()

    def _load(self) -> dict[str, Path]:
        if self._files is None:
            self._files = {}
            try:
                self._read_index((self.path / "modules.dep").read_text(encoding="utf-8"))
            except OSError:
                found = self.path.rglob("*.ko*")
                self._files = {module_name(path.name): path for path in found}
        return self._files

    def _read_index(self, text: str) -> None:
        assert self._files is not None
        for line in text.splitlines():
            file, _colon, needed = line.partition(":")
            name = module_name(file)
            self._files[name] = self.path / file
            # All dependencies, the deepest last.
            self._needs[name] = tuple(module_name(path) for path in reversed(needed.split()))

    def __bool__(self) -> bool:
        return bool(self._load())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and module_name(name) in self._load()

    def resolve(self, names: Iterable[str]) -> tuple[Module, ...]:
        """``names`` with everything they need before them; those without a file are left out."""
        ordered: dict[str, Module] = {}
        for name in names:
            self._add(module_name(name), ordered)
        return tuple(ordered.values())

    def _add(self, name: str, ordered: dict[str, Module]) -> None:
        path = self._load().get(name)
        if path is None or name in ordered or name in self._pending:
            return
        self._pending.add(name)
        module = Module(name, path)
        if name not in self._needs:
            found = _DEPENDS.search(module.content())
            listed = found[1].decode("ascii", "replace") if found else ""
            self._needs[name] = tuple(module_name(word) for word in listed.split(",") if word)
        for needed in self._needs[name]:
            self._add(needed, ordered)
        ordered[name] = module
        self._pending.discard(name)


def module_name(path: str) -> str:
    """The name of a module from its file's, as the kernel writes it."""
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def parameters_of(module: str, command_line: Iterable[str]) -> str:
    """What a kernel command line says to ``module``: ``mod.a=1 mod.b=2`` becomes ``a=1 b=2``."""
    found: list[str] = []
    for word in command_line:
        head, dot, rest = word.partition(".")
        if dot and "=" not in head and head.replace("-", "_") == module:
            found.append(rest)
    return " ".join(found)
