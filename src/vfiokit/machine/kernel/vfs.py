"""A small file system in memory: files backed by bytes or by functions, folders, links, nodes.

Behaves as kernfs does for root: reading a write-only attribute, or writing a read-only one, is
EACCES (``fs/kernfs/file.c:kernfs_fop_open``). A folder may lie over a folder of another tree,
whose entries show through until they are replaced or hidden; this is how a twin wears the files
of the host that it was built from.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import TypeAlias

from vfiokit.host.tree import Tree
from vfiokit.machine.kernel.failure import failure

MAX_LINKS = 40
"""``MAXSYMLINKS`` of the kernel."""


class File:
    """An attribute. ``content`` is bytes, or a function that makes them, or ``None`` (write-only).

    ``on_write`` takes the bytes of one ``write(2)``; ``None`` makes the file read-only.
    """

    __slots__ = ("content", "on_write")

    def __init__(
        self,
        content: bytes | Callable[[], bytes] | None = b"",
        on_write: Callable[[bytes], None] | None = None,
    ) -> None:
        self.content = content
        self.on_write = on_write

    def read(self) -> bytes:
        """The bytes a reader gets now."""
        if self.content is None:
            raise failure(errno.EACCES, "this attribute can only be written")
        return self.content if isinstance(self.content, bytes) else self.content()


class Link:
    """A symbolic link; ``target`` is its text."""

    __slots__ = ("target",)

    def __init__(self, target: str) -> None:
        self.target = target


class DeviceNode:
    """A character device: ``opener`` makes the object behind a new file descriptor."""

    __slots__ = ("opener",)

    def __init__(self, opener: Callable[[], object]) -> None:
        self.opener = opener


class Dir:
    """A folder, over the folder ``path`` of ``base`` where one is given."""

    __slots__ = ("_base", "_children", "_hidden", "_path")

    def __init__(self, base: Tree | None = None, path: str = "/") -> None:
        self._base = base
        self._path = path
        self._children: dict[str, Node] = {}
        self._hidden: set[str] = set()

    def get(self, name: str) -> Node | None:
        """The entry called ``name``."""
        node = self._children.get(name)
        if node is None and self._base is not None and name not in self._hidden:
            node = self._from_base(name)
            if node is not None:
                self._children[name] = node
        return node

    def set(self, name: str, node: Node) -> None:
        """Put ``node`` under ``name``, in place of anything there."""
        self._children[name] = node

    def pop(self, name: str) -> Node | None:
        """Take the entry called ``name`` away."""
        node = self.get(name)
        self._children.pop(name, None)
        if self._base is not None:
            self._hidden.add(name)
        return node

    def names(self) -> list[str]:
        """Sorted names of all entries."""
        found = set(self._children)
        if self._base is not None:
            try:
                found.update(set(self._base.list(self._path)) - self._hidden)
            except OSError:
                self._base = None
        return sorted(found)

    def _from_base(self, name: str) -> Node | None:
        base, path = self._base, f"{self._path.rstrip('/')}/{name}"
        assert base is not None
        try:
            return Link(base.readlink(path))
        except OSError as error:
            if error.errno != errno.EINVAL:
                return None
        try:
            base.list(path)
        except NotADirectoryError:
            return File(_Recorded(base, path))
        except OSError:
            return None
        return Dir(base, path)


class _Recorded:
    """Content of a file of the tree below, read once."""

    __slots__ = ("_base", "_data", "_path")

    def __init__(self, base: Tree, path: str) -> None:
        self._base: Tree | None = base
        self._path = path
        self._data = b""

    def __call__(self) -> bytes:
        if self._base is not None:
            self._data = self._base.read(self._path)
            self._base = None
        return self._data


Node: TypeAlias = "File | Link | Dir | DeviceNode"


class FileSystem:
    """Files by absolute path; implements :class:`vfiokit.kernel.port.WritableTree`."""

    def __init__(self, base: Tree | None = None) -> None:
        self.root = Dir(base)

    # -- what a program sees ------------------------------------------------------------------

    def read(self, path: str) -> bytes:
        """Content of the file at ``path``, links followed."""
        node = self.lookup(path)
        if isinstance(node, Dir):
            raise failure(errno.EISDIR, path=path)
        if not isinstance(node, File):
            raise failure(errno.EINVAL, "a device node is opened, not read", path)
        return _with_path(node.read, path)

    def write(self, path: str, data: bytes) -> None:
        """One ``write(2)`` to the attribute at ``path``."""
        node = self.lookup(path)
        if isinstance(node, Dir):
            raise failure(errno.EISDIR, path=path)
        if not isinstance(node, File):
            raise failure(errno.EINVAL, "a device node is opened, not written", path)
        action = node.on_write
        if action is None:
            raise failure(errno.EACCES, "this attribute can only be read", path)
        _with_path(lambda: action(bytes(data)), path)

    def list(self, path: str) -> list[str]:
        """Sorted names in the folder at ``path``."""
        node = self.lookup(path)
        if not isinstance(node, Dir):
            raise failure(errno.ENOTDIR, path=path)
        return node.names()

    def readlink(self, path: str) -> str:
        """Target text of the link at ``path``."""
        node = self.lookup(path, follow=False)
        if not isinstance(node, Link):
            raise failure(errno.EINVAL, "no symbolic link", path)
        return node.target

    def exists(self, path: str) -> bool:
        """Whether ``path`` names something, links followed."""
        try:
            self.lookup(path)
        except OSError:
            return False
        return True

    def real_path(self, path: str) -> str:
        """``path`` with every symbolic link followed."""
        return self._walk(path, follow=True)[0]

    def lookup(self, path: str, *, follow: bool = True) -> Node:
        """The node at ``path``: ENOENT, ENOTDIR or ELOOP when there is none."""
        return self._walk(path, follow=follow)[1]

    def _walk(self, path: str, *, follow: bool) -> tuple[str, Node]:
        if not path.startswith("/"):
            raise failure(errno.ENOENT, "not an absolute path", path)
        pending = [part for part in reversed(path.split("/")) if part not in ("", ".")]
        trail: list[tuple[str, Dir]] = []
        here: Node = self.root
        name, hops = "", 0
        while pending:
            part = pending.pop()
            if not isinstance(here, Dir):
                raise failure(errno.ENOTDIR, path=path)
            if part == "..":
                if trail:
                    name, here = trail.pop()
                continue
            node = here.get(part)
            if node is None:
                raise failure(errno.ENOENT, path=path)
            if isinstance(node, Link) and (pending or follow):
                hops += 1
                if hops > MAX_LINKS:
                    raise failure(errno.ELOOP, path=path)
                if node.target.startswith("/"):
                    trail, name, here = [], "", self.root
                pending += [p for p in reversed(node.target.split("/")) if p not in ("", ".")]
                continue
            trail.append((name, here))
            name, here = part, node
        names = [known for known, _folder in trail[1:]] + ([name] if name else [])
        return "/" + "/".join(names), here

    # -- what the kernel does -----------------------------------------------------------------

    def folder(self, path: str) -> Dir:
        """The folder at ``path``, made with its parents where missing; links are followed."""
        here = self.root
        for index, part in enumerate(parts := [p for p in path.split("/") if p]):
            node = here.get(part)
            if node is None:
                node = Dir()
                here.set(part, node)
            elif isinstance(node, Link):
                target = self.lookup("/" + "/".join(parts[: index + 1]))
                node = target
            if not isinstance(node, Dir):
                raise failure(errno.ENOTDIR, path=path)
            here = node
        return here

    def add(self, path: str, node: Node) -> None:
        """Put ``node`` at ``path``, making folders as needed, in place of anything there."""
        parent, _, name = path.rstrip("/").rpartition("/")
        self.folder(parent).set(name, node)

    def remove(self, path: str) -> Node | None:
        """Take the node at ``path`` away and return it; ``None`` when there was none."""
        parent, _, name = path.rstrip("/").rpartition("/")
        try:
            folder = self.lookup(parent or "/")
        except OSError:
            return None
        return folder.pop(name) if isinstance(folder, Dir) else None

    def walk(self, path: str = "/") -> Iterator[tuple[str, Node]]:
        """Every node below the folder at ``path``, links not followed, folders first."""
        start = self.lookup(path)
        pending: list[tuple[str, Node]] = [("" if path == "/" else path.rstrip("/"), start)]
        while pending:
            here, node = pending.pop()
            if not isinstance(node, Dir):
                continue
            for name in node.names():
                child = node.get(name)
                if child is not None:
                    yield f"{here}/{name}", child
                    pending.append((f"{here}/{name}", child))

    def snapshot(self, path: str = "/") -> dict[str, bytes | str]:
        """Every file's bytes and every link's target, by path.

        Files that cannot be read now (write-only, or refused by their device) show as an empty
        string of bytes, device nodes as ``"device node"``, empty folders not at all.
        """
        taken: dict[str, bytes | str] = {}
        for where, node in self.walk(path):
            if isinstance(node, Link):
                taken[where] = node.target
            elif isinstance(node, DeviceNode):
                taken[where] = "device node"
            elif isinstance(node, File):
                try:
                    taken[where] = node.read()
                except OSError:
                    taken[where] = b""
        return taken


def _with_path(action: Callable[[], bytes] | Callable[[], None], path: str) -> bytes:
    """Run a file's action; an ``OSError`` without a file name gets this one."""
    try:
        return action() or b""
    except OSError as error:
        if error.filename is None:
            error.filename = path
        raise
