"""Undo an assignment from its journal, whatever point it had reached.

The journal says which functions were touched; what is left to do follows from their present
state. So it does not matter between which two lines a crash came, and doing it twice changes
nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from vfiokit.assign.binding import (
    DRIVERS,
    Action,
    Binding,
    Change,
    explain,
    perform,
    read_binding,
)
from vfiokit.assign.document import Plan, Step, Target
from vfiokit.assign.journal import (
    UNDO_DONE,
    UNDO_INTENT,
    UNDONE,
    Entry,
    JournalRecord,
    JournalWriter,
    default_folder,
    journals,
    read_journal,
)
from vfiokit.assign.lock import JournalLock
from vfiokit.assign.progress import Observer, observed
from vfiokit.assign.survey import boot_id, examine_openers, host_fingerprint, vfio_nodes
from vfiokit.errors import (
    ApplyError,
    AssignError,
    DeviceNotFoundError,
    DriftError,
    JournalError,
    PlanBlockedError,
    VfiokitError,
)
from vfiokit.host.sysfs import read_topology
from vfiokit.kernel.port import Kernel, WritableTree
from vfiokit.pci.address import Bdf

_T = TypeVar("_T")

OTHER_BOOT = "other-boot"
"""The id that forces undoing a journal of an earlier boot."""


@dataclass(frozen=True, slots=True)
class Undone:
    """What an undo did."""

    journal: Path
    changes: tuple[Change, ...]
    """Writes made, in order; none when the host was already as before."""
    gone: tuple[Bdf, ...] = ()
    """Functions that are no longer on the host."""
    already: bool = False
    """The journal had been undone before, or nothing had ever been done."""
    rebooted: bool = False
    """A reboot had undone it."""


def pending(journal_dir: Path | None = None) -> tuple[JournalRecord, ...]:
    """Journals that are not undone, oldest first: applied plans and interrupted ones.

    Raises :class:`JournalError` when one of them is damaged.
    """
    records = (read_journal(path) for path in journals(journal_dir or default_folder()))
    return tuple(record for record in records if record is not None and not record.is_undone)


def undo(
    kernel: Kernel, journal: Path, *, force: Iterable[str] = (), observer: Observer | None = None
) -> Undone:
    """Take back what ``journal`` records, last step first.

    Refused before anything is written: a journal that is damaged or of another host or boot
    (:class:`JournalError`), a function that someone else bound or overrode since
    (:class:`DriftError`, forced by ``drift:BDF``), a device that a program holds open
    (:class:`PlanBlockedError`, forced by its id), a former driver that is not loaded
    (:class:`AssignError`). Raises :class:`ApplyError` when the kernel refuses a write; calling
    again goes on from there.
    """
    forced = frozenset(force)
    if not journal.is_file():
        raise JournalError(f"there is no journal {journal}")
    with JournalLock(journal.parent):
        record = read_journal(journal)
        if record is None or record.is_undone:
            return Undone(journal, (), already=True)
        touched, gone = _touched(kernel.tree, record)
        rebooted = _check_origin(kernel.tree, record, touched, forced)
        with JournalWriter.reopen(journal) as writer:
            if rebooted:
                writer.append(Entry(UNDONE, detail={"by": "reboot"}))
                return Undone(journal, (), gone, rebooted=True)
            _check_drift(kernel.tree, record.plan, touched, forced)
            _check_open(kernel.tree, record.plan, touched, forced)
            _check_drivers(kernel.tree, touched)
            replay = Replay(kernel.tree, record.plan, touched, writer, observer)
            replay.run()
            replay.raise_failures(f"undoing {journal.name}")
            writer.append(Entry(UNDONE, detail={"by": "undo"}))
    return Undone(journal, tuple(replay.changes), gone)


class Replay:
    """Takes the steps of a plan back, last first, as far as the present state needs it."""

    def __init__(
        self,
        tree: WritableTree,
        plan: Plan,
        touched: tuple[Target, ...],
        writer: JournalWriter,
        observer: Observer | None,
    ) -> None:
        self._tree = tree
        self._plan = plan
        self._touched = touched
        self._writer = writer
        self._observer = observer
        self.changes: list[Change] = []
        self.failures: list[str] = []
        self._hints: list[str] = []

    def run(self) -> None:
        """Do it; what fails is noted, and the rest goes on.

        An interrupt is not caught: it leaves the rest for a later undo.
        """
        bdfs = {target.bdf for target in self._touched}
        for target in self._touched:
            self._attempt(f"free {target.bdf}", self._free, target)
        for step in reversed(self._plan.steps):
            if step.do.bdf in bdfs:
                self._attempt(f"take back {step.id}", self._take_back, step)
        for target in self._touched:
            self._attempt(f"look at {target.bdf}", self._verify, target)

    def raise_failures(self, what: str) -> None:
        """Raise :class:`ApplyError` with everything that failed, if anything did."""
        if self.failures:
            raise ApplyError(
                f"{what} is incomplete: " + "; ".join(self.failures),
                rolled_back=False,
                hint=self._hints[0] if self._hints else "undo it again when the cause is removed",
            )

    def _attempt(self, what: str, act: Callable[[_T], None], subject: _T) -> None:
        try:
            act(subject)
        except (OSError, VfiokitError) as error:
            self.failures.append(f"{what}: {error}")

    def _free(self, target: Target) -> None:
        """Unbind from a driver that neither the plan nor the time before it knows."""
        now = read_binding(self._tree, target.bdf).driver
        if now not in (None, self._plan.driver, target.driver):
            self._make(f"{target.bdf}/free", Change(Action.UNBIND, target.bdf, now))

    def _take_back(self, step: Step) -> None:
        # The last write of an inverse is its purpose; the others only prepare it.
        if step.undo[-1].needed(read_binding(self._tree, step.do.bdf)):
            for change in step.undo:
                self._make(step.id, change)

    def _verify(self, target: Target) -> None:
        now = read_binding(self._tree, target.bdf)
        if now != former(target):
            raise AssignError(f"it is left on {_words(now)}")

    def _make(self, step: str, change: Change) -> None:
        with observed(self._observer, change, undoing=True):
            self._note(UNDO_INTENT, step, change)
            try:
                if perform(self._tree, change):
                    self.changes.append(change)
            except OSError as error:
                self._hints += filter(None, [explain(change, error)])
                raise
            self._note(UNDO_DONE, step, change)

    def _note(self, kind: str, step: str, change: Change) -> None:
        # The state of the host decides, not these lines: a full disk must not stop an undo.
        with suppress(OSError, JournalError):
            detail = {"path": change.path, "data": change.data.decode()}
            self._writer.append(Entry(kind, step, detail))


def former(target: Target) -> Binding:
    """The state that ``target`` had before its plan."""
    return Binding(target.driver, target.driver_override)


def _touched(
    tree: WritableTree, record: JournalRecord
) -> tuple[tuple[Target, ...], tuple[Bdf, ...]]:
    """Functions whose first step was at least begun: those on the host, and those gone."""
    begun = {step.do.bdf for step in record.plan.steps if step.id in record.intended}
    present: list[Target] = []
    gone: list[Bdf] = []
    for target in record.plan.targets:
        if target.bdf not in begun:
            continue
        try:
            read_binding(tree, target.bdf)
        except DeviceNotFoundError:
            gone.append(target.bdf)
        else:
            present.append(target)
    return tuple(present), tuple(gone)


def _check_origin(
    tree: WritableTree,
    record: JournalRecord,
    touched: tuple[Target, ...],
    forced: frozenset[str],
) -> bool:
    """Whether a reboot has undone the journal already; raise when it is none of ours."""
    host = host_fingerprint(tree)
    if record.host and host and record.host != host:
        raise JournalError(f"{record.path} was written on another host")
    boot = boot_id(tree)
    if not (record.boot_id and boot) or record.boot_id == boot or OTHER_BOOT in forced:
        return False
    if all(read_binding(tree, target.bdf) == former(target) for target in touched):
        return True
    raise JournalError(
        f"{record.path} was written before the last reboot, which undid it, and its devices "
        "are not as they were either: something else has set them up since",
        hint=f"undo it all the same with --force={OTHER_BOOT}",
    )


def _check_drift(
    tree: WritableTree, plan: Plan, touched: tuple[Target, ...], forced: frozenset[str]
) -> None:
    for target in touched:
        now = read_binding(tree, target.bdf)
        ours = {None, plan.driver, target.driver}
        if now.driver in ours and now.driver_override in ours | {target.driver_override}:
            continue
        if f"drift:{target.bdf}" not in forced:
            raise DriftError(
                f"{target.bdf} is on {_words(now)}; neither the plan nor its undo does that",
                hint=f"bring it back all the same with --force=drift:{target.bdf}",
            )


def _check_open(
    tree: WritableTree, plan: Plan, touched: tuple[Target, ...], forced: frozenset[str]
) -> None:
    """Unbinding from VFIO waits until the last user of the device is gone."""
    topology = read_topology(tree)
    nodes = [
        node
        for target in touched
        if target.driver != plan.driver and target.bdf in topology
        for node in vfio_nodes(tree, topology[target.bdf])
    ]
    held = [each for each in examine_openers(tree, nodes) if each.id not in forced]
    if held:
        raise PlanBlockedError(
            "; ".join(blocker.text for blocker in held),
            tuple(blocker.id for blocker in held),
            hint=held[0].hint,
        )


def _check_drivers(tree: WritableTree, touched: tuple[Target, ...]) -> None:
    for target in touched:
        name = target.driver
        if name is None or read_binding(tree, target.bdf).driver == name:
            continue
        if not tree.exists(f"{DRIVERS}/{name}"):
            raise AssignError(
                f"{target.bdf} was bound to {name}, which the kernel no longer has",
                hint=f"load it, then undo again: modprobe {name}",
            )


def _words(now: Binding) -> str:
    override = now.driver_override or "none"
    return f"driver {now.driver or 'none'} with driver_override {override}"
