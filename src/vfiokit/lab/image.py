"""What a guest holds that cannot see the host's files: an archive of the few it needs.

Every file is at the path it has on the host, with the symbolic links on the way to it, so that
nothing has to be told where its things are: not Python, not its virtual environment, not the
loader. In it are this Python with the standard library, vfiokit and the packages it requires, the
command with its folder, a shell and common tools, and the libraries of all of them.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from vfiokit.errors import UsageError
from vfiokit.lab import guest_agent
from vfiokit.lab.cpio import Archive
from vfiokit.lab.elf import libraries

FOLDER_LIMIT = 64 << 20
"""Bytes up to which the folder of the command comes along."""
FOLDER_COUNT = 20_000
"""Files up to which it does."""
TOOLS = (
    *("sh", "bash", "basename", "cat", "chmod", "cp", "cut", "date", "dd", "dirname", "dmesg"),
    *("echo", "env", "expr", "false", "find", "grep", "head", "hostname", "id", "kill", "ln"),
    *(
        "ls",
        "lspci",
        "mkdir",
        "mktemp",
        "md5sum",
        "modprobe",
        "mount",
        "mv",
        "nproc",
        "od",
        "printf",
        "ps",
    ),
    *(
        "pwd",
        "readlink",
        "realpath",
        "rm",
        "rmdir",
        "sed",
        "seq",
        "setpci",
        "sha256sum",
        "sleep",
        "sort",
    ),
    *("stat", "tail", "tee", "test", "timeout", "touch", "tr", "true", "tty", "uname", "uniq"),
    *("wc", "which", "xargs"),
)
"""Programs that scripts take for granted, as far as the host has them."""
_SYSTEM_FILES = ("/etc/passwd", "/etc/group", "/etc/nsswitch.conf", "/etc/hosts",
                 "/etc/ld.so.cache", "/usr/share/misc/pci.ids")  # fmt: skip
_NOT_NEEDED = frozenset(
    {"test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "lib2to3", "pydoc_data"}
)
"""Parts of the standard library that no test of a driver imports."""
_LARGE_PACKAGES = frozenset({"numpy"})
"""Packages that vfiokit requires for what is not done in a guest: maps of big machines."""
_DULL_SUFFIXES = (".opt-1.pyc", ".opt-2.pyc", ".a", ".la", ".pyi", ".exe")
_DULL_EXTENSIONS = ("_tkinter.", "_test", "_ctypes_test.", "xx", "_cffi.")
"""How the names of extension modules begin that nobody there imports, with what they link to."""
_PYC_HEADER = 16
_MAX_LINKS = 40


class Image:
    """A growing archive of the host's files; :attr:`sizes` tells what made it how large."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._search: list[str] = []
        self.sizes: dict[str, int] = {}
        """Bytes by what they are for."""
        self.left_out: list[str] = []
        """What would have been too much, in words."""

    @property
    def size(self) -> int:
        """Bytes so far."""
        return sum(self.sizes.values())

    # -- single files -----------------------------------------------------------------------------

    def add(self, path: str, purpose: str) -> None:
        """A file or link of the host with what it needs to run; others are left out."""
        real = self._place(path)
        if real in self._archive or not stat.S_ISREG(os.lstat(real).st_mode):
            return
        data = self._store(real, purpose)
        if data is None:
            return
        for library in libraries(real, data, self._search):
            self.add(library, "libraries")
        if data.startswith(b"#!"):
            self._interpreter(data.split(b"\n", 1)[0][2:].decode("utf-8", "replace").split())

    def _interpreter(self, words: list[str]) -> None:
        """What a script starts with; for ``env`` also the program that it looks for."""
        names = words[:1] + [word for word in words[1:2] if words[0].endswith("/env")]
        for name in names:
            found = shutil.which(name)
            if found is not None:
                self.add(found, "programs")

    def _place(self, path: str) -> str:
        """Add the links and folders on the way to ``path``; returns where it really is."""
        wanted = os.path.normpath(path)
        for _attempt in range(_MAX_LINKS):
            at = ""
            for part in wanted.strip("/").split("/"):
                above, at = at, f"{at}/{part}"
                if not os.path.islink(at):
                    continue
                target = os.readlink(at)
                if at not in self._archive:
                    self._archive.link(at, target)
                wanted = os.path.normpath(os.path.join(above or "/", target) + wanted[len(at) :])
                break
            else:
                if os.path.isdir(wanted):
                    self._archive.folder(wanted)
                return wanted
        raise UsageError(f"{path}: too many symbolic links")

    def _store(self, path: str, purpose: str) -> bytes | None:
        try:
            data = Path(path).read_bytes()
        except OSError:
            return None  # what the host's user cannot read, the guest's command need not
        status = os.stat(path)
        if path.endswith(".pyc"):
            data = _lasting(data, path)
        self._archive.file(path, data, stat.S_IMODE(status.st_mode), int(status.st_mtime))
        self.sizes[purpose] = self.sizes.get(purpose, 0) + len(data)
        return data

    # -- folders ----------------------------------------------------------------------------------

    def add_tree(self, folder: str, purpose: str, without: Iterable[str] = ()) -> None:
        """A folder and everything below it, but for folders named in ``without``."""
        for path in files_below(self._place(folder), frozenset(without)):
            self.add(path, purpose)

    def add_working_folder(self, folder: str) -> None:
        """The folder of the command, without hidden folders and virtual environments in it.

        One that is larger than :data:`FOLDER_LIMIT` stays outside; :attr:`left_out` says so.
        """
        place = self._place(folder)
        if place in self._archive and place == "/":
            return
        total, found = 0, []
        for path in files_below(place, frozenset(), own=True):
            total += os.lstat(path).st_size
            found.append(path)
            if total > FOLDER_LIMIT or len(found) > FOLDER_COUNT:
                self.left_out.append(
                    f"{folder} holds more than {FOLDER_LIMIT >> 20} MB or {FOLDER_COUNT} files and "
                    "stays outside: name what the command needs with --include"
                )
                return
        for path in found:
            self.add(path, "folder")

    # -- what every image has -------------------------------------------------------------------

    def add_system(self) -> None:
        """A shell, common tools, and the files that the C library looks for."""
        self._archive.folder("/tmp", 0o1777)
        for name in ("/bin/sh", *(shutil.which(tool) or "" for tool in TOOLS), *_SYSTEM_FILES):
            if name and os.path.exists(name):
                self.add(name, "tools")

    def add_python(self) -> None:
        """The Python at work, its standard library and the settings of its virtual environment."""
        self.add(sys.executable, "python")
        for folder in {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")}:
            skipped = {*_NOT_NEEDED, "site-packages", "dist-packages", *_static_folders(folder)}
            self.add_tree(folder, "python", skipped)
        for settings in (Path(sys.prefix) / "pyvenv.cfg", *_path_files()):
            if settings.exists():
                self.add(str(settings), "python")

    def add_package(self) -> None:
        """vfiokit, and the packages that it requires; the large ones only by their names."""
        self.add_tree(str(Path(__file__).parents[1]), "packages")
        self.add_distribution("vfiokit", _LARGE_PACKAGES)

    def add_distribution(self, name: str, without: frozenset[str] = frozenset()) -> bool:
        """An installed package and what it requires, as far as installed; whether it is there."""
        from importlib.metadata import PackageNotFoundError, distribution

        waiting, done = [name], set[str]()
        while waiting:
            wanted = waiting.pop()
            try:
                package = distribution(wanted)
            except PackageNotFoundError:
                continue
            done.add(wanted)
            for file in package.files or ():
                self._add_installed(str(package.locate_file(file)))
            required = requirements(package.requires or ())
            waiting += [other for other in required if other not in done | without]
        return bool(done)

    def _add_installed(self, path: str) -> None:
        place = os.path.normpath(path)
        if is_wanted(os.path.basename(place)) and os.path.isfile(place):
            self.add(place, "packages")

    # -- the command ------------------------------------------------------------------------------

    def add_command(self, argv: Sequence[str], folder: str, include: Sequence[str]) -> None:
        """The program, files among its arguments, its folder, and what ``include`` names.

        ``include`` are files, folders and installed packages; :class:`UsageError` for others.
        """
        self.add(argv[0], "programs")
        for word in argv[1:]:
            path = os.path.join(folder, word)
            if os.path.isfile(path):
                self.add(path, "folder")
        self.add_working_folder(folder)
        for name in include:
            path = os.path.join(folder, name)
            if os.path.isdir(path):
                self.add_tree(path, "included")
            elif os.path.exists(path):
                self.add(path, "included")
            elif "/" in name or not self.add_distribution(name):
                raise UsageError(f"{name} is no file, folder or installed Python package")

    def add_job(self, job: Mapping[str, object], files: Mapping[str, bytes]) -> None:
        """What :mod:`vfiokit.lab.guest_agent` is to do, and files that only the guest has."""
        self._archive.file(guest_agent.JOB, json.dumps(job).encode())
        for path, content in files.items():
            self._archive.file(path, content)


def files_below(folder: str, without: frozenset[str], *, own: bool = False) -> Iterator[str]:
    """Paths of all files below ``folder``.

    ``own``: of a project, without hidden folders and virtual environments.
    """
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if name not in without
            and not (own and (name.startswith(".") or _is_environment(f"{place}/{name}")))
        )
        links = [name for name in folders if os.path.islink(f"{place}/{name}")]
        for name in sorted([*names, *links]):
            if is_wanted(name):
                yield f"{place}/{name}"


def is_wanted(name: str) -> bool:
    """Whether a file of this name may be of use in a guest."""
    if name.endswith(_DULL_SUFFIXES):
        return False
    return not (name.startswith(_DULL_EXTENSIONS) and ".so" in name)


def requirements(lines: Iterable[str]) -> Iterator[str]:
    """Names of distributions in ``Requires-Dist`` lines; extras are not asked for."""
    for line in lines:
        requirement, _semicolon, marker = line.partition(";")
        if "extra" in marker:
            continue
        end = next(
            (at for at, character in enumerate(requirement)
             if not (character.isalnum() or character in "-_.")),
            len(requirement),
        )  # fmt: skip
        yield requirement[:end]


def _is_environment(folder: str) -> bool:
    return os.path.exists(f"{folder}/pyvenv.cfg")


def _static_folders(library: str) -> list[str]:
    """Folders with what is needed to build against this Python only."""
    return [name for name in os.listdir(library) if name.startswith("config-")]


def _path_files() -> list[Path]:
    """``.pth`` files that lead to packages installed in place; others run code of packages."""
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    found = sorted(path for folder in folders for path in Path(folder).glob("*.pth"))
    return [path for path in found if b"import" not in path.read_bytes()]


def _lasting(data: bytes, path: str) -> bytes:
    """A ``.pyc`` that is right for its source, marked so that nobody checks again (PEP 552).

    Not every kernel keeps the time stamps of an initial RAM file system, and with wrong ones
    Python would compile everything anew, in an emulated guest.
    """
    folder, name = os.path.split(path)
    source = f"{os.path.dirname(folder)}/{name.partition('.')[0]}.py"
    flags = int.from_bytes(data[4:8], "little")
    if len(data) < _PYC_HEADER or flags or not os.path.exists(source):
        return data
    status = os.stat(source)
    recorded = [int.from_bytes(data[at : at + 4], "little") for at in (8, 12)]
    if recorded != [int(status.st_mtime) & 0xFFFFFFFF, status.st_size & 0xFFFFFFFF]:
        return data
    unchecked_hash = (1).to_bytes(4, "little")
    return data[:4] + unchecked_hash + bytes(8) + data[_PYC_HEADER:]
