r"""Records of ``umockdev-record``: a whole host as one text file.

A record is a list of devices separated by blank lines; each line is a letter, a colon, a space
and a value::

    P: /devices/pci0000:00/0000:00:01.0   path below /sys, first line of its device
    E: SUBSYSTEM=pci                      property, a line of uevent
    N: sda  or  N: bus/usb/001/001=1201   device node below /dev, with hex content
    S: disk/by-id/x                       further name of the node
    A: class=0x060400\n                   attribute file; C escapes, octal included
    H: config=86808020                    attribute file in hex
    L: driver=../../../bus/pci/drivers/x  symbolic link

Source: umockdev's README and ``umockdev-record``. What its loader synthesises, and what a kernel
shows besides ``/sys/devices``, is synthesised here: ``uevent``, ``subsystem``, ``/sys/bus``,
``/sys/class``, ``/sys/block``, ``/sys/dev``, ``/sys/kernel/iommu_groups`` and names in ``/dev``.
"""

from __future__ import annotations

import posixpath
import re

from vfiokit.errors import FormatError
from vfiokit.host.tree import Entry, RecordedTree

_PATH = b"P: /devices/"
# Whole records, as many good lines as there are from the start. Possessive throughout, so that it
# is linear; hex is taken 16 digits at a time because that is four times as fast as by pairs.
# udevadm has further letters (priority, device number, sequence, ...) that newer recorders let
# through; they carry nothing that a tree shows.
_GOOD_LINES = re.compile(
    rb"(?:(?:[AEL]: [^=\n]++=[^\n]*+"
    rb"|H: [^=\n]++=(?:[0-9A-Fa-f]{16})*+(?:[0-9A-Fa-f]{2})*+"
    rb"|N: [^=\n]++(?:=(?:[0-9A-Fa-f]{2})*+)?+"
    rb"|[PSMRUTDIQVJ]: [^\n]*+"
    rb"|#[^\n]*+"
    rb"|)\n)*+"
)

_NAMED = frozenset({b"A", b"H", b"L"})

_ESCAPE = re.compile(rb"\\([0-7]{1,3}|.)", re.DOTALL)
_LETTERS = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"b": b"\b", b"f": b"\f", b"v": b"\v"}

# Subsystems that are buses (/sys/bus/NAME/devices); every other one is a class (/sys/class/NAME).
# From the bus_type definitions of Linux 6.x; a record does not say which it was.
_BUSES = frozenset(
    """
    ac97 acpi amba auxiliary bcma cec clockevents clocksource container coreboot cpu css cxl dax
    dfl dsa edac eisa event_source firewire fsl-mc gameport genpd_provider gpio greybus hdaudio hid
    host1x hsi i2c i3c iio ishtp isa machinecheck mdev mdio_bus media mei memory memory_tiering mhi
    mipi-dsi mmc mmc_rpmb most nd node ntb nvmem parport pci pci-epf pci_express pcmcia platform
    pnp rapidio rbd rc rpmsg scmi_protocol scsi sdio sdw serial serial-base serio slimbus soc
    soundwire spi spmi ssb surface_aggregator tee thunderbolt typec ulpi umc usb usb-serial vdpa
    virtio vme vmbus w1 wmi workqueue xen xen-backend
    """.split()  # noqa: SIM905
)


def read(source: str | bytes, path: str = "") -> RecordedTree:
    """The tree that the record ``source`` describes; ``path`` names it in errors.

    Properties, attributes and links are decoded when they are read. Raises
    :class:`FormatError` with the line for anything that is no record; what can only be seen while
    decoding one device (an attribute name that leads out of it) raises it from the tree's methods.
    """
    data = source.encode("utf-8", "replace") if isinstance(source, str) else source
    if not data.isascii():
        data = data.decode("utf-8", "replace").encode()
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n")
    if not data.endswith(b"\n"):
        data += b"\n"
    match = _GOOD_LINES.match(data)
    good = match.end() if match is not None else 0
    if good < len(data):
        line = data[good : data.index(b"\n", good)]
        problem = (
            "malformed hex digits"
            if line[:3] in (b"H: ", b"N: ") and b"=" in line
            else ("not a line of a umockdev record")
        )
        raise FormatError(
            f"{problem}: {_shown(line)}", path=path, line=data.count(b"\n", 0, good) + 1
        )
    return _RecordTree(_devices(data, path), data, path)


def _devices(data: bytes, path: str) -> dict[str, bytes]:
    """Folder in ``/sys`` of each device, and its lines, that of ``P:`` first."""
    found: dict[str, bytes] = {}
    count = 0
    for chunk in data.split(b"\n\n"):
        record = chunk.lstrip(b"\n")
        while record.startswith(b"#"):
            record = record.partition(b"\n")[2]
        if not record:
            continue
        end = record.find(b"\n")
        first = record if end < 0 else record[:end]
        devpath = first[3:].decode()
        if not first.startswith(_PATH) or (
            # Looking for odd parts is far cheaper than normalising every path.
            ("/." in devpath or "//" in devpath or devpath[-1] == "/" or "\0" in devpath)
            and (posixpath.normpath(devpath) != devpath or "\0" in devpath)
        ):
            raise FormatError(
                "a device starts with a line 'P: /devices/...', not with " + _shown(first),
                path=path,
                line=_line_of(data, first),
            )
        found["/sys" + devpath] = record
        count += 1
    if not found:
        raise FormatError("no device in this umockdev record", path=path)
    if data.startswith(b"P: ") + data.count(b"\nP: ") != count:
        start = re.search(rb"[^\n]\n(?=P: )", data)
        raise FormatError(
            "a second P: line in one device; an empty line is missing before it",
            path=path,
            line=data.count(b"\n", 0, start.end()) + 1 if start is not None else 0,
        )
    return found


def _line_of(data: bytes, line: bytes) -> int:
    """1-based number of the first line equal to ``line``; 0 when there is none."""
    position = (b"\n" + data + b"\n").find(b"\n" + line + b"\n")
    return data.count(b"\n", 0, position) + 1 if position >= 0 else 0


def _shown(line: bytes) -> str:
    return repr(line[:60].decode("utf-8", "replace"))


def _value(body: bytes, key: bytes) -> str | None:
    """Value of the first line that starts with ``key`` (a newline and all up to the ``=``)."""
    start = body.find(key)
    if start < 0:
        return None
    start += len(key)
    end = body.find(b"\n", start)
    return body[start : end if end >= 0 else len(body)].decode()


def _unescape(match: re.Match[bytes]) -> bytes:
    code = match[1]
    if code.isdigit() and code < b"8":
        return bytes((int(code, 8) & 0xFF,))
    return _LETTERS.get(code, code)


def _place_of(subsystem: str) -> str:
    return f"/sys/bus/{subsystem}" if subsystem in _BUSES else f"/sys/class/{subsystem}"


class _Surroundings(RecordedTree):
    """What the kernel and udev show of devices besides their folders."""

    def __init__(self) -> None:
        super().__init__({}, {})
        self._add_folder("/sys/devices")

    def add(self, folder: str, subsystem: str, body: bytes) -> None:
        """Add what is shown of the device at ``folder``."""
        name = folder.rpartition("/")[2]
        if subsystem in _BUSES:
            self._link(f"/sys/bus/{subsystem}/devices/{name}", folder)
        elif subsystem:
            self._link(f"/sys/class/{subsystem}/{name}", folder)
        if subsystem == "block" and b"\nE: DEVTYPE=disk" in body:
            self._link(f"/sys/block/{name}", folder)
        for key in (b"\nL: driver=", b"\nL: iommu_group="):
            target = _value(body, key)
            if target is not None:
                place = posixpath.normpath(posixpath.join(folder, target))
                if key == b"\nL: driver=" and place.startswith("/sys/bus/"):
                    self._link(f"{place}/{name}", folder)
                elif place.startswith("/sys/kernel/iommu_groups/"):
                    self._link(f"{place}/devices/{name}", folder)
        major, minor = _value(body, b"\nE: MAJOR="), _value(body, b"\nE: MINOR=")
        if major is not None and minor is not None and f"{major}{minor}".isdigit():
            kind = "block" if subsystem == "block" else "char"
            self._link(f"/sys/dev/{kind}/{major}:{minor}", folder)
        self._add_nodes(body)

    def _link(self, path: str, target: str) -> None:
        """Add a link at ``path`` to ``target``, written as the kernel does."""
        top = path.index("/", 1) + 1
        self._add(path, "../" * path.count("/", top) + target[top:])

    def _add_nodes(self, body: bytes) -> None:
        node = _value(body, b"\nN: ")
        if node is None:
            return
        node, _, digits = node.partition("=")
        place = posixpath.normpath("/dev/" + node)
        if not place.startswith("/dev/"):
            return
        self._add(place, b"H: =" + digits.encode())
        for line in body.split(b"\n"):
            if line.startswith(b"S: "):
                name = posixpath.normpath("/dev/" + line[3:].decode())
                if name.startswith("/dev/") and name != place:
                    self._link(name, place)


class _RecordTree(RecordedTree):
    """Devices are parsed when something asks for their folder, the rest of /sys likewise.

    ``_folders`` holds complete folders only; ``_skeleton`` the folders and child devices of
    those whose own record has not been parsed yet.
    """

    def __init__(self, devices: dict[str, bytes], data: bytes, path: str) -> None:
        super().__init__({}, {})
        self._folders.clear()
        self._devices = devices
        self._pending = dict(devices)
        self._data = data
        self._path = path
        self._skeleton: dict[str, dict[str, Entry]] = {}
        self._deferred: dict[str, dict[str, Entry]] = {}
        for folder in devices:
            self._add_to_skeleton(folder)
        self._subsystems = {
            folder: subsystem
            for folder, body in devices.items()
            if (subsystem := _value(body, b"\nE: SUBSYSTEM="))
            and "/" not in subsystem
            and subsystem not in (".", "..")
        }
        self._folders["/sys/bus/pci/devices"] = {
            folder.rpartition("/")[2]: "../../.." + folder[4:]
            for folder, subsystem in self._subsystems.items()
            if subsystem == "pci"
        }
        self._synthesised = False

    def _add_to_skeleton(self, folder: str) -> None:
        while True:
            head, _, name = folder.rpartition("/")
            known = self._skeleton.get(head)
            if known is not None:
                known[name] = None
                return
            self._skeleton[head] = {name: None}
            if head == "/sys":
                return
            folder = head

    def _is_folder(self, path: str) -> bool:
        return path in self._folders or path in self._devices or path in self._skeleton

    def _folder(self, path: str) -> dict[str, Entry] | None:
        entries = self._folders.get(path)
        return entries if entries is not None else self._load(path)

    def _load(self, path: str) -> dict[str, Entry] | None:
        if path in self._pending:
            self._parse(path)
        elif path.startswith("/sys/devices"):
            self._load_owner(path)
            if path in self._skeleton:
                self._folders[path] = self._skeleton.pop(path)
        elif not self._synthesised and path.rpartition("/")[0] not in self._folders:
            self._synthesise()
        return self._folders.get(path)

    def _load_owner(self, path: str) -> None:
        """Parse the device that ``path`` may be an attribute folder of, and those folders too."""
        while path and path not in self._devices:
            path = path.rpartition("/")[0]
        if path in self._pending:
            self._parse(path)
        for name, entry in self._deferred.pop(path, {}).items():
            self._place(path, name, entry)

    def _parse(self, folder: str) -> None:
        """Make the entries of a device's own folder; those of its subfolders are deferred."""
        body = self._pending.pop(folder)
        # In comprehensions, because a command that looks at every function pays for every line.
        lines = {
            line[3 : line.index(b"=")].decode(): line
            for line in body.split(b"\n")
            if line[:1] in _NAMED
        }
        entries: dict[str, Entry] = dict(lines)
        for name in [name for name, line in lines.items() if line[:1] == b"L"]:
            entries[name] = lines[name].partition(b"=")[2].decode()
        nested = [name for name in lines if "/" in name or name in (".", "..")]
        if nested:
            self._deferred[folder] = {name: entries.pop(name) for name in nested}
            for name in nested:
                self._check_name(name)
                entries[name.partition("/")[0]] = None
        if b"\nE: " in body:
            entries.setdefault("uevent", body)
        subsystem = self._subsystems.get(folder)
        if subsystem is not None:
            up = "../" * (folder.count("/") - 1)
            entries.setdefault("subsystem", up + _place_of(subsystem)[5:])
        entries.update(self._skeleton.pop(folder, ()))
        self._folders[folder] = entries

    def _check_name(self, name: str) -> None:
        if any(part in ("", ".", "..") for part in name.split("/")):
            start = self._data.find(b": " + name.encode() + b"=")
            raise FormatError(
                f"no such attribute name: {name[:60]!r}",
                path=self._path,
                line=self._data.count(b"\n", 0, start) + 1,
            )

    def _place(self, folder: str, path: str, entry: Entry) -> None:
        """Put an attribute of a subfolder, such as ``power/control``, in its place."""
        *above, name = path.split("/")
        for part in above:
            self._folders.setdefault(folder, {})[part] = None
            folder = f"{folder}/{part}"
            if folder in self._devices:
                return  # a child device speaks for itself
            if folder in self._skeleton:
                self._folders[folder] = self._skeleton.pop(folder)
        self._folders.setdefault(folder, {}).setdefault(name, entry)

    def _synthesise(self) -> None:
        """Everything besides ``/sys/devices``, from the records' properties and links."""
        self._synthesised = True
        made = _Surroundings()
        for folder, body in self._devices.items():
            made.add(folder, self._subsystems.get(folder, ""), body)
        for path, entries in made._folders.items():  # noqa: SLF001
            if path != "/sys/devices":  # a place holder there; the devices themselves know
                self._folders[path] = entries

    def _content(self, entry: bytes) -> bytes:
        kind = entry[:1]
        if kind == b"P":  # uevent, kept as the record it comes from
            lines = entry.split(b"\n")
            return b"".join(line[3:] + b"\n" for line in lines if line[:1] == b"E")
        value = entry[entry.index(b"=") + 1 :]
        if kind == b"H":
            return bytes.fromhex(value.decode("ascii"))
        backslash = value.find(b"\\")
        if backslash < 0:
            return value
        if backslash == len(value) - 2 and value.endswith(b"n"):
            return value[:-2] + b"\n"  # as nearly every attribute ends
        return _ESCAPE.sub(_unescape, value)

    def _load_everything(self) -> None:
        for folder in (*self._devices, *self._skeleton):
            self._folder(folder)
            self._load_owner(folder)
            self._folder(folder)
        self._load("/")
