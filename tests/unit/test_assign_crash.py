"""Killed at any point, an assignment can be undone to the last byte."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from assign_host import GPU, MATCHES, NIC, NVME, HostKernel, Killed, build, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st

from vfiokit.assign.apply import apply
from vfiokit.assign.journal import JournalWriter
from vfiokit.assign.plan import plan
from vfiokit.assign.undo import pending, undo
from vfiokit.errors import ApplyError
from vfiokit.pci.address import Bdf

NAMES = [NVME, NIC, GPU]
BDFS = [Bdf.parse(name) for name in NAMES]
STATES = {NVME: ("nvme", "something"), NIC: (None, None), GPU: ("nouveau", "vfio-pci")}


class Bomb:
    """Kills at the n-th call, before or after what is called."""

    def __init__(self, at: int, *, after: bool) -> None:
        self.left = at
        self.after = after

    def before(self, *_: object) -> None:
        if not self.after:
            self._tick()

    def behind(self, *_: object) -> None:
        if self.after:
            self._tick()

    def _tick(self) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1


def assign(root: Path, journals: Path) -> None:
    kernel = HostKernel(root)
    apply(kernel, plan(kernel.tree, BDFS, include_group=True), journals)


def undo_all(root: Path, journals: Path) -> None:
    for record in reversed(pending(journals)):
        undo(HostKernel(root), record.path)


def folders() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        for number in count():
            yield Path(folder, str(number))


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_write_of_apply(after: bool) -> None:
    for number, folder in enumerate(folders()):
        root, journals = folder / "host", folder / "journals"
        tree = build(root, STATES)
        before = snapshot(root)
        bomb = Bomb(number, after=after)
        kernel = HostKernel(root)
        kernel.tree.before_write, kernel.tree.after_write = bomb.before, bomb.behind
        made = plan(tree, BDFS, include_group=True)
        try:
            apply(kernel, made, journals)
        except Killed:
            undo_all(root, journals)
            assert snapshot(root) == before, f"killed at write {number}"
            undo_all(root, journals)
            assert snapshot(root) == before
        else:
            # The override of GPU is there already: one step fewer is written.
            assert number == len(made.steps) - 1
            break


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_line_of_the_journal(after: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = JournalWriter._append
    for number, folder in enumerate(folders()):
        root, journals = folder / "host", folder / "journals"
        build(root, STATES)
        before = snapshot(root)
        bomb = Bomb(number, after=after)

        def dying(self: JournalWriter, body: object, bomb: Bomb = bomb) -> None:
            bomb.before()
            whole(self, body)  # type: ignore[arg-type]
            bomb.behind()

        try:
            with monkeypatch.context() as patch:
                patch.setattr(JournalWriter, "_append", dying)
                assign(root, journals)
        except Killed:
            undo_all(root, journals)
            assert snapshot(root) == before, f"killed at line {number}"
        else:
            assert number > 10
            break


def test_killed_with_a_line_half_written() -> None:
    for number, folder in enumerate(folders()):
        root, journals = folder / "host", folder / "journals"
        build(root, STATES)
        before = snapshot(root)
        kernel = HostKernel(root)
        bomb = Bomb(number, after=True)
        kernel.tree.after_write = bomb.behind
        try:
            apply(kernel, plan(kernel.tree, BDFS, include_group=True), journals)
        except Killed:
            (record,) = pending(journals)
            with record.path.open("ab") as file:
                file.write(b'{"crc32":"0badc0de","detail":{},"kind":"do')
            assert pending(journals)[0].torn
            undo_all(root, journals)
            assert snapshot(root) == before
        else:
            break


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_write_of_undo(after: bool) -> None:
    for number, folder in enumerate(folders()):
        root, journals = folder / "host", folder / "journals"
        build(root, STATES)
        before = snapshot(root)
        assign(root, journals)
        bomb = Bomb(number, after=after)
        kernel = HostKernel(root)
        kernel.tree.before_write, kernel.tree.after_write = bomb.before, bomb.behind
        (record,) = pending(journals)
        try:
            undo(kernel, record.path)
        except Killed:
            undo_all(root, journals)
            assert snapshot(root) == before, f"killed at write {number}"
        else:
            assert number > 10
            break


def test_killed_during_a_rollback() -> None:
    for number, folder in enumerate(folders()):
        root, journals = folder / "host", folder / "journals"
        build(root, STATES)
        before = snapshot(root)
        kernel = HostKernel(root)
        bomb = Bomb(number, after=True)
        failed: list[str] = []

        def hook(path: str, data: bytes, failed: list[str] = failed) -> None:
            if data == GPU.encode() and path.endswith("vfio-pci/bind"):
                failed.append(path)
                raise OSError(5, "Input/output error")

        def die(path: str, data: bytes, failed: list[str] = failed, bomb: Bomb = bomb) -> None:
            if failed:
                bomb.behind()

        kernel.tree.before_write, kernel.tree.after_write = hook, die
        try:
            apply(kernel, plan(kernel.tree, BDFS, include_group=True), journals)
        except Killed:
            undo_all(root, journals)
            assert snapshot(root) == before, f"killed at write {number} of the rollback"
        except ApplyError:
            assert snapshot(root) == before
            assert number > 5
            break


def test_process_that_ends_at_once_is_undone_by_the_next(tmp_path: Path) -> None:
    script = """
import os, sys
from pathlib import Path
import test_assign_crash as crash
from assign_host import HostKernel
from vfiokit.assign.apply import apply
from vfiokit.assign.plan import plan
root, journals, left = Path(sys.argv[1]), Path(sys.argv[2]), [int(sys.argv[3])]
kernel = HostKernel(root)
def die(path, data):
    if left[0] == 0:
        os._exit(137)
    left[0] -= 1
kernel.tree.after_write = die
apply(kernel, plan(kernel.tree, crash.BDFS, include_group=True), journals)
"""
    root, journals = tmp_path / "host", tmp_path / "journals"
    build(root, STATES)
    before = snapshot(root)
    here = str(Path(__file__).parent)
    for number in (0, 2, 4, 7):
        command = [sys.executable, "-c", script, str(root), str(journals), str(number)]
        ended = subprocess.run(command, check=False, env={"PYTHONPATH": f"{here}:{SOURCE}"})
        assert ended.returncode == 137
        assert snapshot(root) != before or number == 0
        undo_all(root, journals)
        assert snapshot(root) == before, f"ended after write {number}"


SOURCE = Path(__file__).resolve().parents[2] / "src"

drivers = st.sampled_from([None, *sorted(set(MATCHES) - {"pcieport"})])
states = st.fixed_dictionaries(
    {name: st.tuples(drivers, st.sampled_from([None, "vfio-pci", "nvme", "x"])) for name in NAMES}
)


@settings(max_examples=40, deadline=None)
@given(
    states=states,
    chosen=st.lists(st.sampled_from(BDFS), min_size=1, max_size=3, unique=True),
    driver=st.sampled_from(["vfio-pci", "uio_pci_generic"]),
    include_group=st.booleans(),
)
def test_undo_after_apply_is_identity_from_any_state(
    states: dict[str, tuple[str | None, str | None]],
    chosen: list[Bdf],
    driver: str,
    include_group: bool,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, journals = Path(folder, "host"), Path(folder, "journals")
        build(root, states)
        before = snapshot(root)
        kernel = HostKernel(root)
        made = plan(kernel.tree, chosen, driver=driver, include_group=include_group)
        applied = apply(kernel, made, journals, force=[each.id for each in made.blockers])
        assert all(kernel.tree.driver(str(bdf)) == driver for bdf in chosen)
        if applied.journal is None:
            assert made.changes_nothing
        else:
            undo(HostKernel(root), applied.journal)
        assert snapshot(root) == before
