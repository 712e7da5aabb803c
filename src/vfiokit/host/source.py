"""Where a host description comes from, told by what it is rather than by its name."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from vfiokit.errors import FormatError, SourceError
from vfiokit.host.tree import FolderTree, RecordedTree, Tree
from vfiokit.pci.quantity import counted

if TYPE_CHECKING:
    from vfiokit.host.lspci import LspciHost
    from vfiokit.pci.topology import Topology

_HINT = (
    "give a capture, a umockdev record, output of lspci, an NCCL topology, "
    "a folder with sys/ in it, 'live' or 'demo'"
)
_SNIFFED_BYTES = 1 << 16


class Host:
    """A host description, opened."""

    def __init__(
        self,
        kind: str,
        tree: Tree | None = None,
        topology: Topology | None = None,
        limits: tuple[str, ...] = (),
        name: str = "",
    ) -> None:
        self.kind = kind
        """``live``, ``folder``, ``record``, ``capture``, ``lspci`` or ``nccl``."""
        self.tree = tree
        """The host's files; ``None`` where the source holds none."""
        self._topology = topology
        self._limits = limits
        self._name = name

    def __repr__(self) -> str:
        return f"<Host {self._name or self.kind}>"

    def topology(self) -> Topology:
        """The PCI functions: of a live host as they are now."""
        if self._topology is not None:
            return self._topology
        from vfiokit.host.sysfs import read_topology

        return read_topology(self.files())

    @property
    def limits(self) -> tuple[str, ...]:
        """What this source cannot tell, a sentence without a full stop each."""
        if self._topology is not None:
            return self._limits
        cut = sum(1 for function in self.topology() if len(function.config) < 0x100)
        if not cut:
            return ()
        return (
            f"{counted(cut, 'function')} cut before the capabilities: "
            "what keeps devices apart is unknown without root",
        )

    def files(self) -> Tree:
        """The tree; :class:`SourceError` where there is none."""
        if self.tree is None:
            raise SourceError(
                f"{self._name}: {_WITHOUT_FILES[self.kind]}: it describes PCI functions, "
                "and has none of the host's files",
                hint="'vfiokit capture FILE' on the host records what this needs",
            )
        return self.tree


_WITHOUT_FILES = {"lspci": "the output of lspci", "nccl": "an NCCL topology"}


def open_tree(source: str) -> Tree:
    """The files of the host that ``source`` names.

    ``live`` is this machine, ``demo`` the recorded server that ships with vfiokit. Otherwise a
    path: a folder with ``sys/`` in it (an unpacked capture) or a copy of sysfs itself, a capture
    archive, or a umockdev record, the latter two also packed with zstd, gzip or xz. Raises
    :class:`SourceError` when there is nothing to read, or a description without files (see
    :func:`open_host`), and :class:`FormatError` when it is nothing known.
    """
    return open_host(source).files()


def open_host(source: str) -> Host:
    """The host that ``source`` names: what :func:`open_tree` takes, and descriptions without files.

    Those are the output of lspci, as bytes (``-x`` to ``-xxxx``), as text (``-v`` to ``-vvv``), or
    both, with anything around it; and NCCL topology files. Each may be packed with zstd, gzip or
    xz. Raises as :func:`open_tree` does.
    """
    if source == "live":
        return Host("live", FolderTree("/"))
    if source == "demo":
        from vfiokit import data

        return _file(data.path_of(data.DEMO_RECORD))
    if os.path.isdir(source):
        return Host("folder", _folder(source), name=source)
    return _file(source)


def _folder(path: str) -> FolderTree:
    for marker, prefix in (("sys", ""), (os.path.join("bus", "pci"), "/sys")):
        if os.path.isdir(os.path.join(path, marker)):
            return FolderTree(path, prefix)
    raise SourceError(f"{path}: a folder without sys/ in it", hint=_HINT)


def _file(path: str) -> Host:
    from vfiokit.host.compression import read_file

    streamed = _streamed(path)
    if streamed is not None:
        return _lspci(streamed, path)
    data = read_file(path)
    if not data.strip():
        raise FormatError("the file is empty", path=path, hint=_HINT)
    lines = data[:4096].splitlines()
    first = next((line for line in lines if line.strip() and not line.startswith(b"#")), b"")
    if first.startswith((b"P: ", b"E: ")):
        return Host("record", _record(data, path), name=path)
    from vfiokit.host import archive, tar

    if tar.is_tar(data):
        return Host("capture", archive.unpack(data, path), name=path)
    return _description(data, first, path)


def _record(data: bytes, path: str) -> RecordedTree:
    from vfiokit.host import umockdev

    return umockdev.read(data, path)


def _streamed(path: str) -> LspciHost | None:
    """A plain dump, read piece by piece: ten thousand functions are 50 to 140 MB of text.

    ``None`` for any other file, a bad one too: those who read it whole say what is wrong.
    """
    from vfiokit.host.compression import MAX_FILE_BYTES

    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
            return None
        with open(path, "rb") as file:
            start = file.read(_SNIFFED_BYTES)
            if b"\n00: " not in start or b"\0" in start or start.startswith((b"P: ", b"E: ", b"<")):
                return None
            from vfiokit.host import lspci, lspci_listing

            if not lspci_listing.is_listing(start):
                return None
            file.seek(0)
            return lspci.read(lspci_listing.pieces(file), path)
    except OSError:
        return None


def _description(data: bytes, first: bytes, path: str) -> Host:
    """A description without files; :class:`FormatError` when it is none."""
    text = data.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith(b"<"):
        from vfiokit.host import nccl

        found = nccl.read(data, path)
        return Host("nccl", topology=found.topology(), limits=found.limits, name=path)
    from vfiokit.host import lspci, lspci_listing

    if lspci_listing.is_listing(data):
        return _lspci(lspci.read([data], path), path)
    raise FormatError(_described(data, first), path=path, hint=_HINT)


def _lspci(found: LspciHost, path: str) -> Host:
    return Host("lspci", topology=found.topology, limits=found.limits, name=path)


def _described(data: bytes, first: bytes) -> str:
    """What the content looks like, for one who expected something else."""
    if data.startswith(b"PK\x03\x04"):
        return "a zip archive: captures are tar archives"
    if first.startswith(b"Slot:\t"):
        return "output of lspci -m: it has no tree; take it without -m and with -vvv"
    shown = first[:40].decode("utf-8", "replace")
    if not shown.isprintable():
        return "a binary file of unknown format"
    return f"neither a capture nor a umockdev record: it starts with {shown!r}"
