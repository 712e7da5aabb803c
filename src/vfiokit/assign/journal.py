"""The journal of one assignment: what was about to be done, what was done, what was taken back.

One JSON object per line, each with a sequence number and a checksum, each on stable storage
before the program goes on. An *intent* line precedes every write to the host and a *done* line
follows it, so that after a crash the last intent is the only doubtful step, and the host's own
state settles the doubt. A torn last line is what a crash leaves and is dropped; damage anywhere
else is an error, because a step that is not read cannot be undone.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from vfiokit.assign.document import Plan
from vfiokit.errors import FormatError, JournalError

SCHEMA = "vfiokit/journal/v1"
SUFFIX = ".journal"

INTENT = "intent"
DONE = "done"
FAILED = "failed"
APPLIED = "applied"
UNDO_INTENT = "undo-intent"
UNDO_DONE = "undo-done"
UNDONE = "undone"

_ENTRIES = frozenset({INTENT, DONE, FAILED, APPLIED, UNDO_INTENT, UNDO_DONE, UNDONE})


@dataclass(frozen=True, slots=True)
class Entry:
    """One line after the header."""

    kind: str
    step: str = ""
    """Id of the plan's step."""
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class JournalRecord:
    """A journal as read from its file."""

    path: Path
    plan: Plan
    boot_id: str
    """``/proc/sys/kernel/random/boot_id`` when it was begun; ``""`` where there is none."""
    host: str
    begun: str
    """UTC, ISO 8601."""
    entries: tuple[Entry, ...]
    torn: bool
    """The last line was cut short by a crash."""

    @property
    def is_undone(self) -> bool:
        """Whether the host is back to what it was, or was never changed."""
        return any(entry.kind == UNDONE for entry in self.entries)

    @property
    def is_applied(self) -> bool:
        """Whether every step was done."""
        return any(entry.kind == APPLIED for entry in self.entries)

    @property
    def intended(self) -> frozenset[str]:
        """Ids of the steps that were begun, whether or not they were finished."""
        return frozenset(entry.step for entry in self.entries if entry.kind == INTENT)


def default_folder() -> Path:
    """``/var/lib/vfiokit/journal`` for root, else below ``XDG_STATE_HOME``."""
    if os.geteuid() == 0:
        return Path("/var/lib/vfiokit/journal")
    state = os.environ.get("XDG_STATE_HOME", "")
    # The XDG Base Directory Specification has relative paths ignored.
    base = Path(state) if os.path.isabs(state) else Path.home() / ".local" / "state"
    return base / "vfiokit" / "journal"


class JournalWriter:
    """Appends to a journal; every line is on stable storage when its call returns."""

    def __init__(self, file: IO[bytes], path: Path, sequence: int) -> None:
        self._file = file
        self._sequence = sequence
        self.path = path

    @classmethod
    def create(cls, folder: Path, plan: Plan, *, boot_id: str, host: str) -> JournalWriter:
        """Begin the journal of ``plan`` in ``folder``, which must exist."""
        begun = datetime.now(UTC)
        stem = begun.strftime("%Y%m%dT%H%M%S.%fZ")
        path = folder / f"{stem}{SUFFIX}"
        writer = cls(open(path, "xb", buffering=0), path, 0)  # noqa: SIM115
        header = {
            "schema": SCHEMA,
            "begun": begun.isoformat(),
            "boot_id": boot_id,
            "host": host,
            "plan": plan.to_json(),
        }
        try:
            writer._append(header)
        except BaseException:
            writer.close()
            path.unlink(missing_ok=True)
            raise
        return writer

    @classmethod
    def reopen(cls, path: Path) -> JournalWriter:
        """Continue a journal behind its last whole line."""
        lines, length = _sound_lines(path)
        file = open(path, "r+b", buffering=0)  # noqa: SIM115
        file.truncate(length)
        file.seek(length)
        return cls(file, path, len(lines))

    def append(self, entry: Entry) -> None:
        """Write one line and wait until it is stored."""
        self._append({"kind": entry.kind, "step": entry.step, "detail": entry.detail})

    def _append(self, body: dict[str, Any]) -> None:
        line = _encode({"sequence": self._sequence, **body})
        end = self._file.tell()
        try:
            # One write(2): a crash leaves a prefix of the line, never two halves apart.
            written = self._file.write(line)
            if written != len(line):
                raise JournalError(
                    f"{self.path}: only {written} of {len(line)} bytes could be written",
                    hint="is the file system full?",
                )
            os.fsync(self._file.fileno())
        except (OSError, JournalError):
            # Half a line in the middle would make the journal unreadable.
            self._file.truncate(end)
            self._file.seek(end)
            raise
        self._sequence += 1

    def close(self) -> None:
        """Close the file. Idempotent."""
        self._file.close()

    def __enter__(self) -> JournalWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_journal(path: Path) -> JournalRecord | None:
    """Read a journal; ``None`` when not even its header is whole, so that nothing was done.

    Raises :class:`JournalError` when a line before the last is damaged or missing, or when the
    file is no journal.
    """
    lines, length = _sound_lines(path)
    if not lines:
        return None
    header, *rest = lines
    if header.get("schema") != SCHEMA:
        raise JournalError(f"{path} is no journal: its schema is {header.get('schema')!r}")
    try:
        plan = Plan.from_json(header.get("plan"), path=str(path))
    except FormatError as error:
        raise JournalError(f"{path}: the plan in the header is unreadable: {error}") from error
    return JournalRecord(
        path,
        plan,
        str(header.get("boot_id", "")),
        str(header.get("host", "")),
        str(header.get("begun", "")),
        tuple(_entry(path, number, line) for number, line in enumerate(rest, start=2)),
        length != path.stat().st_size,
    )


def journals(folder: Path) -> Iterator[Path]:
    """Journal files of a folder, oldest first; none when it does not exist."""
    if folder.is_dir():
        yield from sorted(folder.glob(f"*{SUFFIX}"))


def _entry(path: Path, number: int, line: dict[str, Any]) -> Entry:
    kind, step, detail = line.get("kind"), line.get("step"), line.get("detail")
    if kind not in _ENTRIES or not isinstance(step, str) or not isinstance(detail, dict):
        raise JournalError(f"{path}:{number}: unknown entry {kind!r}")
    return Entry(kind, step, detail)


def _encode(body: dict[str, Any]) -> bytes:
    text = _canonical(body)
    return _canonical({**body, "crc32": f"{zlib.crc32(text):08x}"}) + b"\n"


def _canonical(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode("ascii")


def _decode(line: bytes, sequence: int) -> dict[str, Any] | None:
    """The body of a whole, undamaged line; ``None`` otherwise."""
    try:
        body = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(body, dict):
        return None
    stated = body.pop("crc32", None)
    if stated != f"{zlib.crc32(_canonical(body)):08x}" or body.get("sequence") != sequence:
        return None
    return body


def _sound_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Bodies of the whole lines, and how many bytes they fill."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise JournalError(f"cannot read the journal {path}: {error.strerror}") from error
    bodies: list[dict[str, Any]] = []
    length = 0
    # What follows the last line feed was being written when the program died.
    *lines, _torn = content.split(b"\n")
    for number, line in enumerate(lines):
        body = _decode(line, number)
        if body is None:
            raise JournalError(
                f"{path}:{number + 1}: damaged line",
                hint="the plan in its first line still says what every function was bound to",
            )
        bodies.append(body)
        length += len(line) + 1
    return bodies, length
