"""A captured host in one file: a ``.tar.zst`` of its small files, and a manifest.

Unpacked, a capture is a folder with ``sys/`` and ``proc/`` in it, so that ``lspci -O
sysfs.path=FOLDER/sys/bus/pci`` and everything else that reads a sysfs tree can use it too.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

from vfiokit.errors import FormatError, SourceError, UnsafeArchiveError
from vfiokit.host import compression, tar
from vfiokit.host.captured import Walk, stays_inside
from vfiokit.host.tree import RecordedTree, Tree

MANIFEST = "/vfiokit.json"
"""Path of the manifest in a capture's tree."""

FORMAT_VERSION = 1
"""Of the manifest. Readers refuse a later one."""

MAX_DEPTH = 64
"""Most folders above a member."""

_LEVEL = 12  # of zstd: within 10 % of the best, at a tenth of its time


class CaptureSummary(NamedTuple):
    """What a capture holds."""

    path: str
    functions: int
    files: int
    links: int
    size: int
    """Bytes of all files, unpacked."""
    archive_size: int
    """Bytes of the archive."""
    unreadable: dict[str, str]
    """Files that are there and could not be read, and why."""
    short_config: tuple[str, ...]
    """Functions of which only 64 bytes of configuration space were shown, as without root."""


def write_capture(
    tree: Tree,
    path: str,
    *,
    host_name: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> CaptureSummary:
    """Write a capture of ``tree`` to ``path``, a ``.tar.zst``.

    ``host_name`` goes into the manifest when given. ``progress`` is called with the functions
    done and their number. The file appears whole or not at all. Raises :class:`SourceError` when
    the tree shows no PCI function, ``OSError`` when the file cannot be written.
    """
    import time

    import zstandard

    now = int(time.time())
    walk = Walk(tree, progress)
    files = links = size = 0
    partial = f"{path}.{os.getpid()}.part"
    try:
        with open(partial, "xb") as file:
            writer = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).stream_writer(file)
            for member in walk.members():
                writer.write(tar.member_blocks(member, now))
                if isinstance(member.content, bytes):
                    files += 1
                    size += len(member.content)
                else:
                    links += 1
            if not walk.functions:
                raise SourceError("there is no PCI function to capture below /sys/bus/pci/devices")
            manifest = tar.Member(MANIFEST[1:], _manifest(tree, walk, now, host_name))
            writer.write(tar.member_blocks(manifest, now) + tar.END_BLOCKS)
            writer.flush(zstandard.FLUSH_FRAME)
            archive_size = file.tell()
        os.replace(partial, path)
    except BaseException:
        if os.path.exists(partial):
            os.unlink(partial)
        raise
    return CaptureSummary(
        path,
        walk.functions,
        files,
        links,
        size,
        archive_size,
        walk.unreadable,
        tuple(walk.short_config),
    )


def _manifest(tree: Tree, walk: Walk, now: int, host_name: str) -> bytes:
    import json
    import time

    import vfiokit

    try:
        release = tree.read("/proc/sys/kernel/osrelease").decode("utf-8", "replace").strip()
    except OSError:
        release = ""
    facts: dict[str, object] = {
        "format": FORMAT_VERSION,
        "tool": f"vfiokit {vfiokit.__version__}",
        "captured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now)),
        "kernel": release or None,
        "functions": walk.functions,
        "unreadable": walk.unreadable,
        "short_config": walk.short_config,
    }
    if host_name:
        facts["host"] = host_name
    return json.dumps(facts, indent=2).encode() + b"\n"


def read_capture(path: str) -> RecordedTree:
    """The tree of the capture at ``path``: a tar, plain or packed with zstd, gzip or xz.

    The format is told by content. Raises :class:`SourceError` when the file cannot be read,
    :class:`FormatError` when it is damaged or no capture, :class:`UnsafeArchiveError` for a
    member that would reach outside the tree, hides another, or is too large.
    """
    return unpack(compression.read_file(path), path)


def unpack(data: bytes, path: str = "") -> RecordedTree:
    """The tree of a capture in memory, decompressed; ``path`` names it in errors."""
    if not tar.is_tar(data):
        raise FormatError("not a tar archive", path=path)
    found: dict[str, bytes | str | None] = {}
    for member in tar.members(data, path):
        name = _checked_name(member.name, path)
        if not name:
            continue
        if name in found and (found[name] is not None or member.content is not None):
            raise UnsafeArchiveError(f"{path}: holds {name!r} twice")
        found[name] = member.content
    top = _top_folder(found)
    files: dict[str, bytes] = {}
    links: dict[str, str] = {}
    for name, content in found.items():
        inside = name[len(top) :]
        if isinstance(content, bytes):
            files["/" + inside] = content
        elif isinstance(content, str):
            if not stays_inside(inside, content):
                raise UnsafeArchiveError(
                    f"{path}: link {inside!r} leads out of the archive, to {content!r}"
                )
            links["/" + inside] = content
    _check_folders(found, path)
    tree = RecordedTree(files, links)
    if not tree.exists("/sys"):
        raise FormatError("an archive, but no capture: there is no sys/ in it", path=path)
    _check_manifest(files.get(MANIFEST), path)
    return tree


def _checked_name(name: str, path: str) -> str:
    """A member's name without leading ``./``; empty for the top folder itself."""
    if name.startswith("/"):
        raise UnsafeArchiveError(f"{path}: {name!r} is an absolute name")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts or "\0" in name:
        raise UnsafeArchiveError(f"{path}: {name!r} leads out of the archive")
    if len(parts) > MAX_DEPTH:
        raise UnsafeArchiveError(f"{path}: {name[:60]!r}... lies deeper than {MAX_DEPTH} folders")
    return "/".join(parts)


def _top_folder(names: dict[str, bytes | str | None]) -> str:
    """The one folder that a re-packed capture was put in, with its slash; or nothing."""
    tops = {name.partition("/")[0] for name in names}
    if len(tops) != 1 or tops & {"sys", "proc"}:
        return ""
    return next(iter(tops)) + "/"


def _check_folders(names: dict[str, bytes | str | None], path: str) -> None:
    """Nothing may lie below a file or a link."""
    checked: set[str] = set()
    for name in names:
        folder = name.rpartition("/")[0]
        while folder and folder not in checked:
            if names.get(folder) is not None:
                raise UnsafeArchiveError(f"{path}: {name!r} lies below {folder!r}, no folder")
            checked.add(folder)
            folder = folder.rpartition("/")[0]


def _check_manifest(content: bytes | None, path: str) -> None:
    """A capture may lack its manifest: any packed copy of a sysfs tree will do."""
    if content is None:
        return
    import json

    try:
        version = json.loads(content)["format"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise FormatError(f"its manifest {MANIFEST[1:]} cannot be read", path=path) from None
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise FormatError(
            f"capture format {version!r} is not known to this version of vfiokit",
            path=path,
            hint="read it with the vfiokit that wrote it, or a later one",
        )
