"""Apply a plan: check again, journal, write, verify; roll back when something fails."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from vfiokit.assign.binding import explain, perform
from vfiokit.assign.document import Blocker, Plan, Role, Step
from vfiokit.assign.journal import (
    APPLIED,
    DONE,
    FAILED,
    INTENT,
    UNDONE,
    Entry,
    JournalWriter,
    default_folder,
)
from vfiokit.assign.lock import JournalLock
from vfiokit.assign.plan import plan as make_plan
from vfiokit.assign.progress import Observer, observed
from vfiokit.assign.survey import boot_id
from vfiokit.assign.undo import Replay
from vfiokit.errors import (
    ApplyError,
    AssignError,
    DeviceNotFoundError,
    DriftError,
    PlanBlockedError,
    UsageError,
    VfiokitError,
)
from vfiokit.kernel.port import Kernel, WritableTree
from vfiokit.kernel.recording import ReadOnlyTree


@dataclass(frozen=True, slots=True)
class Applied:
    """A plan that was carried out."""

    plan: Plan
    journal: Path | None
    """What ``undo`` needs; ``None`` when there was nothing to do."""
    steps: tuple[Step, ...]
    elapsed_s: float


def apply(
    kernel: Kernel,
    plan: Plan,
    journal_dir: Path | None = None,
    *,
    force: Iterable[str] = (),
    observer: Observer | None = None,
) -> Applied:
    """Carry out ``plan``, each step journaled in ``journal_dir`` before it is done.

    Nothing is written when the host is a recording (:class:`UsageError`), a blocker is not
    forced (:class:`PlanBlockedError`), the host is no longer what the plan was made for
    (:class:`DriftError`), or another process applies or undoes a plan
    (:class:`DeviceBusyError`). A step that fails, and an interrupt, take back every step before
    it; then :class:`ApplyError`, or the interrupt, is raised.
    """
    if isinstance(kernel.tree, ReadOnlyTree):
        raise UsageError(
            "a recorded host cannot be changed",
            hint="apply the plan on the host itself, or on a software machine built from it",
        )
    forced = frozenset(force) | plan.forced
    _refuse(plan.open_blockers(forced))
    folder = journal_dir or default_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    begun = time.monotonic()
    with JournalLock(folder):
        check(kernel.tree, plan, force=forced)
        if plan.changes_nothing:
            return Applied(plan, None, (), time.monotonic() - begun)
        boot = boot_id(kernel.tree)
        with JournalWriter.create(folder, plan, boot_id=boot, host=plan.host) as writer:
            _run(kernel.tree, plan, writer, observer)
    return Applied(plan, writer.path, plan.steps, time.monotonic() - begun)


def check(tree: WritableTree, plan: Plan, *, force: Iterable[str] = ()) -> None:
    """Whether ``plan`` still fits the host: make it again and compare.

    Raises :class:`DriftError` with every difference, and :class:`PlanBlockedError` for a blocker
    that has appeared since.
    """
    wanted = [target.bdf for target in plan.targets if target.role is Role.ASSIGN]
    try:
        fresh = make_plan(
            tree, wanted, driver=plan.driver, include_group=plan.include_group, force=force
        )
    except DeviceNotFoundError as error:
        raise DriftError(str(error), hint=_REPLAN) from error
    if plan.host and fresh.host and plan.host != fresh.host:
        raise DriftError("the plan was made on another host", hint=_REPLAN)
    before, now = plan.preconditions(), fresh.preconditions()
    changed = [
        f"{name} was {before.get(name, 'not part of it')}, is {now.get(name, 'not part of it')}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
    if changed:
        raise DriftError("the host has changed: " + "; ".join(changed), hint=_REPLAN)
    if plan.steps != fresh.steps:
        raise DriftError("the plan's steps are not those that this host needs", hint=_REPLAN)
    _refuse(fresh.open_blockers(force))


_REPLAN = "look at the host and plan again"


def _refuse(blockers: tuple[Blocker, ...]) -> None:
    if not blockers:
        return
    raise PlanBlockedError(
        "the plan is blocked: " + "; ".join(blocker.text for blocker in blockers),
        tuple(blocker.id for blocker in blockers),
        hint=_way_out(blockers),
    )


def _way_out(blockers: tuple[Blocker, ...]) -> str:
    firm = [blocker for blocker in blockers if not blocker.forcible]
    if firm:
        return firm[0].hint
    force = " ".join(f"--force={blocker.id}" for blocker in blockers)
    return f"if that is meant: {force}"


def _run(tree: WritableTree, plan: Plan, writer: JournalWriter, observer: Observer | None) -> None:
    step = plan.steps[0]
    try:
        for step in plan.steps:
            with observed(observer, step.do):
                detail = {"path": step.do.path, "data": step.do.data.decode()}
                writer.append(Entry(INTENT, step.id, detail))
                perform(tree, step.do)
                writer.append(Entry(DONE, step.id))
        writer.append(Entry(APPLIED))
    except (OSError, VfiokitError) as error:
        _roll_back(tree, plan, writer, observer, step, error)
        hint = explain(step.do, error) if isinstance(error, OSError) else ""
        message = f"{step.description} failed: {error}; everything was rolled back"
        raise ApplyError(message, rolled_back=True, hint=hint) from error
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        # An interrupt, or a fault of the observer, which is not asked again.
        _roll_back(tree, plan, writer, None, step, error)
        raise


def _roll_back(
    tree: WritableTree,
    plan: Plan,
    writer: JournalWriter,
    observer: Observer | None,
    failed: Step,
    error: BaseException,
) -> None:
    """Take back everything up to ``failed``; :class:`ApplyError` when that fails too."""
    begun = {step.do.bdf for step in plan.steps[: plan.steps.index(failed) + 1]}
    touched = tuple(target for target in plan.targets if target.bdf in begun)
    replay = Replay(tree, plan, touched, writer, observer)
    # A rollback goes on when the journal cannot be written: the host's state guides it.
    with suppress(OSError, AssignError):
        writer.append(Entry(FAILED, failed.id, {"error": str(error)}))
    replay.run()
    replay.raise_failures(f"{failed.description} failed: {error}; the rollback")
    with suppress(OSError, AssignError):
        writer.append(Entry(UNDONE, detail={"by": "rollback"}))
