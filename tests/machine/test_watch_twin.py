"""``watch`` on software machines: what changes is told, once, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vfiokit.host.observation import Event
from vfiokit.host.source import open_tree
from vfiokit.host.tree import Tree
from vfiokit.host.uevent import Received, Uevent, build, parse
from vfiokit.host.watch import Watcher
from vfiokit.machine.assembly import assemble
from vfiokit.machine.twin import build_twin
from vfiokit.pci.address import Bdf

DEVICES = "/sys/bus/pci/devices"
DRIVE = "0000:05:00.0"


class Script:
    """A source of uevents that says what it is told to; ``before`` runs as soon as it is asked."""

    def __init__(self) -> None:
        self.queue: list[Received] = []
        self.before: list[Callable[[], None]] = []

    def tell(self, action: str, bdf: str, **properties: str) -> None:
        path = f"/devices/pci0000:00/{bdf}"
        message = build(action, path, SUBSYSTEM="pci", PCI_SLOT_NAME=bdf, **properties)
        self.queue.append(Received((parse(message),)))

    def tell_node(self, action: str, name: str) -> None:
        path = f"/devices/virtual/{name}"
        message = build(action, path, SUBSYSTEM="vfio", DEVNAME=name)
        self.queue.append(Received((parse(message),)))

    def wait(self, timeout_s: float) -> Received:
        if self.before:
            self.before.pop(0)()
        found, self.queue = self.queue, []
        uevents: tuple[Uevent, ...] = tuple(each for one in found for each in one.uevents)
        return Received(uevents, any(one.lost for one in found))

    def close(self) -> None:
        pass


def told(events: list[Event]) -> list[tuple[str, str]]:
    return [(event.kind, event.subject) for event in events]


def to_vfio(tree: Tree, bdf: str) -> None:
    write = tree.write  # type: ignore[attr-defined]
    write(f"{DEVICES}/{bdf}/driver/unbind", bdf.encode())
    write(f"{DEVICES}/{bdf}/driver_override", b"vfio-pci")
    write("/sys/bus/pci/drivers_probe", bdf.encode())


def test_binding_on_the_twin_of_a_server_is_seen_by_looking() -> None:
    twin = build_twin(open_tree("demo"))
    watcher = Watcher(twin.kernel.tree, Script())
    assert len(watcher.state.functions) == 226
    assert watcher.look() == []
    to_vfio(twin.kernel.tree, DRIVE)
    events = watcher.look()
    assert told(events)[:2] == [("unbound", DRIVE), ("bound", DRIVE)]
    assert (events[0].was, events[1].now) == ("nvme", "vfio-pci")
    assert ("node-added", "/dev/vfio/37") in told(events)
    assert {event.source for event in events} == {"sysfs"}
    assert watcher.look() == []
    twin.kernel.tree.write(f"{DEVICES}/{DRIVE}/driver/unbind", DRIVE.encode())
    assert ("node-removed", "/dev/vfio/37") in told(watcher.look())


def test_only_the_chosen_functions_are_followed() -> None:
    twin = build_twin(open_tree("demo"))
    other = Watcher(twin.kernel.tree, Script(), [Bdf.parse("0000:04:00.0")])
    drive = Watcher(twin.kernel.tree, Script(), [Bdf.parse(DRIVE)])
    to_vfio(twin.kernel.tree, DRIVE)
    assert other.look() == []
    assert ("node-added", "/dev/vfio/37") in told(drive.look())


def test_virtual_functions_come_and_go() -> None:
    machine = assemble("rp(nvme:pf vfs=2)", ram=1 << 30)
    tree, bdf = machine.kernel.tree, str(machine["pf"])
    watcher = Watcher(tree, Script())
    tree.write(f"{DEVICES}/{bdf}/sriov_numvfs", b"2\n")
    events = watcher.look()
    assert [kind for kind, _ in told(events)].count("appeared") == 2
    (sriov,) = [event for event in events if event.kind == "sriov"]
    assert (sriov.subject, sriov.was, sriov.now) == (bdf, "0", "2")
    tree.write(f"{DEVICES}/{bdf}/sriov_numvfs", b"0\n")
    assert [kind for kind, _ in told(watcher.look())].count("removed") == 2


def test_one_change_is_told_once_whoever_tells_it_first() -> None:
    machine = assemble("rp(nvme:drive)", ram=1 << 30)
    tree, bdf = machine.kernel.tree, str(machine["drive"])
    source = Script()
    watcher = Watcher(tree, source)
    # The kernel first: looking finds nothing new but the node.
    to_vfio(tree, bdf)
    source.tell("unbind", bdf)
    source.tell("bind", bdf, DRIVER="vfio-pci")
    events = watcher.wait(0)
    assert told(events) == [("unbound", bdf), ("bound", bdf)]
    assert {event.source for event in events} == {"uevent"}
    assert {kind for kind, _ in told(watcher.look())} == {"power", "node-added"}
    # A message that says what is known already says nothing.
    source.tell("bind", bdf, DRIVER="vfio-pci")
    assert watcher.wait(0) == []


def test_a_message_that_arrives_during_a_look_is_not_told_twice() -> None:
    machine = assemble("rp(nvme:drive)", ram=1 << 30)
    tree, bdf = machine.kernel.tree, str(machine["drive"])
    source = Script()
    watcher = Watcher(tree, source)
    tree.write(f"{DEVICES}/{bdf}/driver/unbind", bdf.encode())
    source.before.append(lambda: source.tell("unbind", bdf))
    assert told(watcher.look()) == [("unbound", bdf)]
    assert watcher.look() == []


def test_quick_changes_between_two_looks_are_told_by_the_kernel() -> None:
    machine = assemble("rp(nvme:drive)", ram=1 << 30)
    bdf, source = str(machine["drive"]), Script()
    watcher = Watcher(machine.kernel.tree, source)
    source.tell("unbind", bdf)
    source.tell("bind", bdf, DRIVER="nvme")
    assert told(watcher.wait(0)) == [("unbound", bdf), ("bound", bdf)]
    assert watcher.look() == []


def test_recovery_from_errors_is_told() -> None:
    machine = assemble("rp(nvme:drive)", ram=1 << 30)
    bdf, source = str(machine["drive"]), Script()
    watcher = Watcher(machine.kernel.tree, source)
    source.tell("change", bdf, ERROR_EVENT="BEGIN_RECOVERY", DEVICE_ONLINE="0")
    source.tell("change", bdf, ERROR_EVENT="FAILED_RECOVERY", DEVICE_ONLINE="0")
    events = watcher.wait(0)
    assert [event.now for event in events] == ["BEGIN_RECOVERY", "FAILED_RECOVERY"]


def test_lost_messages_make_it_look_again_and_say_so() -> None:
    machine = assemble("rp(nvme:drive)", ram=1 << 30)
    tree, bdf, source = machine.kernel.tree, str(machine["drive"]), Script()
    watcher = Watcher(tree, source)
    tree.write(f"{DEVICES}/{bdf}/driver/unbind", bdf.encode())
    source.queue.append(Received((), lost=True))
    assert told(watcher.wait(0)) == [("lost", "host"), ("unbound", bdf)]


def test_hotplug_by_message_needs_no_look() -> None:
    machine = assemble("rp(nvme:pf vfs=1)", ram=1 << 30)
    tree, pf, source = machine.kernel.tree, str(machine["pf"]), Script()
    watcher = Watcher(tree, source)
    tree.write(f"{DEVICES}/{pf}/sriov_numvfs", b"1\n")
    virtual = tree.readlink(f"{DEVICES}/{pf}/virtfn0").rpartition("/")[2]
    source.tell("add", virtual)
    source.tell("bind", virtual, DRIVER="nvme")
    assert told(watcher.wait(0)) == [("appeared", virtual), ("bound", virtual)]
    source.tell("remove", virtual)
    assert told(watcher.wait(0)) == [("removed", virtual)]
    # Messages about functions that are gone again before anyone looks.
    source.tell("add", "0000:77:00.0")
    assert watcher.wait(0) == []


def test_device_nodes_by_message() -> None:
    machine = assemble("rp(nvme:drive)", ram=1 << 30)
    source = Script()
    watcher = Watcher(machine.kernel.tree, source)
    source.tell_node("add", "vfio/99")
    assert told(watcher.wait(0)) == [("node-added", "/dev/vfio/99")]
    assert told(watcher.look()) == [("node-removed", "/dev/vfio/99")]  # it was not there


class Files:
    """A tree that tests change under the watcher's feet."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self.changed: dict[str, bytes] = {}
        self.vanish = ""

    def read(self, path: str) -> bytes:
        if self.vanish and self.vanish in path:
            raise OSError(19, "No such device")
        return self.changed.get(path) or self._tree.read(path)

    def list(self, path: str) -> list[str]:
        return self._tree.list(path)

    def readlink(self, path: str) -> str:
        return self._tree.readlink(path)

    def exists(self, path: str) -> bool:
        return not (self.vanish and self.vanish in path) and self._tree.exists(path)


@pytest.fixture
def server() -> Files:
    return Files(open_tree("demo"))


@pytest.mark.parametrize(
    ("name", "content", "kind", "text"),
    [
        ("current_link_width", b"2\n", "link", "link 8.0 GT/s PCIe x4 → 8.0 GT/s PCIe x2 (slower)"),
        ("current_link_speed", b"16.0 GT/s PCIe\n", "link",
         "link 8.0 GT/s PCIe x4 → 16.0 GT/s PCIe x4"),
        ("current_link_speed", b"Unknown\n", "link", "link down"),
        ("power_state", b"D3hot\n", "power", "power D0 → D3hot"),
        ("aer_dev_correctable", b"RxErr 0\nBadTLP 3\nTOTAL_ERR_COR 3\n", "aer",
         "correctable BadTLP +3 (3 in all)"),
        ("aer_dev_fatal", b"Data Link Protocol 1\nTOTAL_ERR_FATAL 1\n", "aer",
         "fatal Data Link Protocol +1 (1 in all)"),
    ],
)  # fmt: skip
def test_what_has_no_uevent_is_found_by_looking(
    server: Files, name: str, content: bytes, kind: str, text: str
) -> None:
    watcher = Watcher(server, Script(), [Bdf.parse(DRIVE)])
    server.changed[f"{DEVICES}/{DRIVE}/{name}"] = content
    (event,) = watcher.look()
    assert (event.kind, event.subject, event.text) == (kind, DRIVE, text)
    assert watcher.look() == []


def test_counters_that_start_again_are_no_negative_errors(server: Files) -> None:
    path = f"{DEVICES}/{DRIVE}/aer_dev_correctable"
    server.changed[path] = b"RxErr 9\n"
    watcher = Watcher(server, Script(), [Bdf.parse(DRIVE)])
    server.changed[path] = b"RxErr 2\n"
    (event,) = watcher.look()
    assert event.text == "correctable RxErr starts again: 9 → 2"


def test_a_function_without_power_is_not_asked_for_its_link(server: Files) -> None:
    watcher = Watcher(server, Script(), [Bdf.parse(DRIVE)])
    server.changed[f"{DEVICES}/{DRIVE}/power_state"] = b"D3cold\n"
    server.changed[f"{DEVICES}/{DRIVE}/current_link_speed"] = b"Unknown\n"
    assert told(watcher.look()) == [("power", DRIVE)]


def test_a_function_that_vanishes_while_it_is_read_is_gone_not_changed(server: Files) -> None:
    watcher = Watcher(server, Script())
    server.vanish = DRIVE
    assert told(watcher.look()) == [("removed", DRIVE)]
    server.vanish = ""
    assert told(watcher.look()) == [("appeared", DRIVE)]


def test_following_stops_at_its_deadline(server: Files) -> None:
    import time

    begun = time.monotonic()

    class Idle(Script):
        def wait(self, timeout_s: float) -> Received:
            time.sleep(timeout_s)
            return Received()

    watcher = Watcher(server, Idle(), [Bdf.parse(DRIVE)])
    batches = list(watcher.follow(0.02, begun + 0.1))
    assert 0.1 <= time.monotonic() - begun < 2
    assert len(batches) >= 4
    assert not any(batches)


def test_device_nodes_of_chosen_functions_only() -> None:
    machine = assemble("rp(nvme:drive), rp(nvme:other)", ram=1 << 30)
    tree, source = machine.kernel.tree, Script()
    watcher = Watcher(tree, source, [machine["drive"]])
    group = watcher.state.functions[machine["drive"]].group
    source.tell_node("add", "vfio/99")
    source.tell_node("add", f"vfio/{group}")
    assert told(watcher.wait(0)) == [("node-added", f"/dev/vfio/{group}")]
    source.tell_node("remove", "vfio/99")
    source.tell_node("remove", f"vfio/{group}")
    assert told(watcher.wait(0)) == [("node-removed", f"/dev/vfio/{group}")]
    source.tell("unbind", str(machine["other"]))
    assert watcher.wait(0) == []


def test_a_group_that_changes_is_told() -> None:
    machine = assemble("rp(nvme:drive)", ram=1 << 30)
    watcher = Watcher(machine.kernel.tree, Script())
    bdf = machine["drive"]
    known = watcher.state.functions[bdf]
    watcher.state.functions[bdf] = known._replace(group="77")
    (event,) = watcher.look()
    assert (event.kind, event.was, event.now) == ("group", "77", known.group)


def test_other_messages_about_a_function_are_passed_on() -> None:
    machine = assemble("rp(nvme:drive)", ram=1 << 30)
    bdf, source = str(machine["drive"]), Script()
    watcher = Watcher(machine.kernel.tree, source)
    source.tell("change", bdf)
    source.tell("add", bdf)  # known already
    assert [event.text for event in watcher.wait(0)] == ["change"]
