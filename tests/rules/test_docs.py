"""The documentation is run: commands print what the pages show, Python blocks work.

In a console block, a line with ``$ vfiokit …`` is run and the lines below it must appear in its
output in that order; ``…`` stands for anything, within a line or as a line of its own.
"""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfiokit.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for number, (kind, text) in enumerate(BLOCK.findall(page.read_text(encoding="utf-8"))):
            if kind == language:
                yield f"{page.name}-{number}", text


def sessions() -> Iterator[tuple[str, str, list[str]]]:
    for name, text in blocks("console"):
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            command, *shown = part.rstrip("\n").split("\n")
            if re.match(r"vfiokit (.* --host demo|diff demo demo)", command):
                yield name, command, shown


SESSIONS = list(sessions())
PYTHON = list(blocks("python"))


def matches(shown: str, line: str) -> bool:
    pattern = ".*".join(re.escape(part) for part in shown.split("…"))
    return re.fullmatch(pattern, line) is not None


def test_there_are_sessions_to_check() -> None:
    assert len(SESSIONS) >= 8
    assert len(PYTHON) >= 5


@pytest.mark.parametrize(
    ("command", "shown"), [session[1:] for session in SESSIONS], ids=[s[0] for s in SESSIONS]
)
def test_a_shown_session_prints_what_the_page_says(
    command: str,
    shown: list[str],
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    main(shlex.split(command)[1:])
    captured = capfd.readouterr()
    lines = captured.out.splitlines()
    notes = captured.err.splitlines()
    for expected in shown:
        if expected.strip() == "…":
            continue
        if any(matches(expected, note) for note in notes):
            continue
        while lines and not matches(expected, lines[0]):
            lines.pop(0)
        assert lines, f"{command}: nothing prints {expected!r} (in this order)"
        lines.pop(0)


@pytest.mark.parametrize(("name", "text"), PYTHON, ids=[block[0] for block in PYTHON])
def test_python_on_a_page_is_python(name: str, text: str) -> None:
    ast.parse(text, name)


def test_the_machine_page_s_program_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (text,) = [text for name, text in PYTHON if name.startswith("machine.md")]
    exec(compile(text, "machine.md", "exec"), {})
    assert capsys.readouterr().out == "True\n"


def test_links_between_pages_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
