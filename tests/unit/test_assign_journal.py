"""The journal keeps what was written, drops what a crash tore, and refuses what is damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from assign_host import NVME, build

from vfiokit.assign.document import Plan
from vfiokit.assign.journal import (
    APPLIED,
    DONE,
    INTENT,
    UNDONE,
    Entry,
    JournalWriter,
    default_folder,
    journals,
    read_journal,
)
from vfiokit.assign.lock import JournalLock
from vfiokit.assign.plan import plan
from vfiokit.errors import DeviceBusyError, JournalError
from vfiokit.pci.address import Bdf

ENTRIES = [Entry(INTENT, "a", {"path": "/x"}), Entry(DONE, "a"), Entry(INTENT, "b"), Entry(APPLIED)]


@pytest.fixture
def made(tmp_path: Path) -> Plan:
    return plan(build(tmp_path / "host"), [Bdf.parse(NVME)])


@pytest.fixture
def path(tmp_path: Path, made: Plan) -> Path:
    with JournalWriter.create(tmp_path, made, boot_id="boot", host="host") as writer:
        for entry in ENTRIES:
            writer.append(entry)
    return writer.path


def test_what_was_written_is_read(path: Path, made: Plan) -> None:
    record = read_journal(path)
    assert record is not None
    assert (record.plan, record.boot_id, record.host) == (made, "boot", "host")
    assert list(record.entries) == ENTRIES
    assert record.intended == {"a", "b"}
    assert record.is_applied
    assert not record.is_undone
    assert not record.torn


def test_cut_at_any_byte_gives_the_whole_lines_before_it(path: Path) -> None:
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        record = read_journal(path)
        whole = content[:length].count(b"\n")
        if whole == 0:
            assert record is None
        else:
            assert record is not None
            assert list(record.entries) == ENTRIES[: whole - 1]
            assert record.torn == (not content[:length].endswith(b"\n"))


def test_damaged_byte_in_any_whole_line_is_an_error(path: Path) -> None:
    content = path.read_bytes()
    for at in range(0, len(content), 7):
        if content[at : at + 1] == b"\n":
            continue
        changed = bytearray(content)
        changed[at] ^= 0x02
        path.write_bytes(changed)
        with pytest.raises(JournalError, match=path.name):
            read_journal(path)


def test_missing_and_repeated_lines_are_errors(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:1] + lines[2:]))
    with pytest.raises(JournalError, match=":2: damaged"):
        read_journal(path)
    path.write_bytes(b"".join(lines[:2] + lines[1:]))
    with pytest.raises(JournalError, match=":3: damaged"):
        read_journal(path)


def test_other_files_are_no_journals(tmp_path: Path) -> None:
    path = tmp_path / "x.journal"
    for content in (b"\n", b"hello\n", b"[]\n", b"{}\n", b"\xff\n", b"[" * 100_000 + b"\n"):
        path.write_bytes(content)
        with pytest.raises(JournalError):
            read_journal(path)
    with pytest.raises(JournalError, match="cannot read"):
        read_journal(tmp_path / "absent.journal")


def test_reopening_continues_behind_a_torn_line(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b'{"crc32":"00')
    with JournalWriter.reopen(path) as writer:
        writer.append(Entry(UNDONE))
    record = read_journal(path)
    assert record is not None
    assert record.entries[-1].kind == UNDONE
    assert not record.torn


def test_failed_write_leaves_no_half_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = JournalWriter.reopen(path)
    before = path.read_bytes()

    def no_space(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(OSError, match="No space"):
            writer.append(Entry(DONE, "b"))
    assert path.read_bytes() == before
    writer.append(Entry(DONE, "b"))
    writer.close()
    record = read_journal(path)
    assert record is not None
    assert record.entries[-1] == Entry(DONE, "b")


def test_every_line_is_stored_before_append_returns(
    tmp_path: Path, made: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: stored.append(os.fstat(fd).st_size))
    with JournalWriter.create(tmp_path, made, boot_id="", host="") as writer:
        assert stored == [writer.path.stat().st_size]
        writer.append(Entry(INTENT, "a"))
        assert stored[1:] == [writer.path.stat().st_size]


def test_journals_are_listed_oldest_first(tmp_path: Path, made: Plan) -> None:
    folder = tmp_path / "journals"
    assert list(journals(folder)) == []
    folder.mkdir()
    paths = []
    for _ in range(3):
        with JournalWriter.create(folder, made, boot_id="", host="") as writer:
            paths.append(writer.path)
    assert list(journals(folder)) == paths


def test_default_folder_follows_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_folder() == Path("/var/lib/vfiokit/journal")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_folder() == tmp_path / "vfiokit/journal"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert default_folder() == tmp_path / ".local/state/vfiokit/journal"


def test_lock_is_exclusive_and_given_back(tmp_path: Path) -> None:
    with JournalLock(tmp_path):
        with pytest.raises(DeviceBusyError, match=str(os.getpid())), JournalLock(tmp_path):
            pass
        assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    with JournalLock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_lock_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from vfiokit.assign.lock import JournalLock\n"
        "JournalLock(Path(sys.argv[1])).__enter__(); os._exit(9)"
    )
    assert (
        subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == 9
    )
    assert (tmp_path / "lock").exists()
    with JournalLock(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_lock_of_a_reused_process_id_is_taken_over(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(json.dumps({"pid": os.getpid(), "start": "1"}))
    with JournalLock(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_two_takeovers_at_once_do_not_both_win(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text(json.dumps({"pid": os.getpid(), "start": "1"}))
    (tmp_path / "lock.evict").touch()
    with pytest.raises(JournalError, match="taking over"), JournalLock(tmp_path):
        pass
    assert (tmp_path / "lock").exists()


def test_lock_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("mine")
    with pytest.raises(JournalError, match="no lock file"), JournalLock(tmp_path):
        pass
    assert (tmp_path / "lock").read_text() == "mine"


def test_many_processes_never_hold_the_lock_together(tmp_path: Path) -> None:
    script = """
import os, sys, time
from pathlib import Path
from vfiokit.assign.lock import JournalLock
from vfiokit.errors import VfiokitError
folder, taken = Path(sys.argv[1]), 0
end = time.monotonic() + 20
while taken < 25 and time.monotonic() < end:
    try:
        with JournalLock(folder):
            open(folder / "inside", "x").close()
            os.unlink(folder / "inside")
            taken += 1
    except VfiokitError:
        pass
sys.exit(taken != 25)
"""
    (tmp_path / "lock").write_text(json.dumps({"pid": os.getpid(), "start": "1"}))
    running = [subprocess.Popen([sys.executable, "-c", script, str(tmp_path)]) for _ in range(3)]
    assert [each.wait() for each in running] == [0, 0, 0]
