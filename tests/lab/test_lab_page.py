"""docs/lab.md as a stranger would follow it: its program, its script and its tests, run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lab_equipment import ROOT

PAGE = ROOT / "docs/lab.md"
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NAMES = {"c": "edu.c", "sh": "test-edu.sh", "python": "test_edu.py"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which("gcc") and not os.environ.get("CI"), reason="no gcc for the page's program"
    ),
]


def blocks() -> list[tuple[str, str]]:
    return _BLOCK.findall(PAGE.read_text(encoding="utf-8"))


def session(command: str) -> list[str]:
    """What the page shows below the command that begins so."""
    for language, text in blocks():
        lines = text.splitlines()
        for number, line in enumerate(lines):
            if language == "console" and line.startswith(f"$ {command}"):
                rest = lines[number + 1 :]
                end = next((at for at, each in enumerate(rest) if each.startswith("$")), len(rest))
                return rest[:end]
    raise AssertionError(f"the page has no session of {command}")


@pytest.fixture
def folder(tmp_path: Path, lab_kernel: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page's files, and an environment with this Python first."""
    monkeypatch.setenv("VFIOKIT_LAB_KERNEL", str(lab_kernel))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    for language, text in blocks():
        name = _NAMES.get(language)
        if name and name in text.splitlines()[0] + text.splitlines()[1]:
            (tmp_path / name).write_text(text)
    (tmp_path / "test-edu.sh").chmod(0o755)
    subprocess.run(["gcc", "-Wall", "-Werror", "-o", "edu", "edu.c"], cwd=tmp_path, check=True)
    return tmp_path


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("root", ["host", "image"])
def test_the_program_of_the_page_reads_the_device(folder: Path, root: str) -> None:
    vfiokit = (sys.executable, "-m", "vfiokit")
    done = run(folder, *vfiokit, "lab", "run", "--root", root, "--topology", "rp0(edu:dev)", "--",
               "./test-edu.sh")  # fmt: skip
    shown = session("vfiokit lab run -v --topology")[0]
    assert (done.returncode, done.stdout) == (0, shown + "\n"), done.stderr
    assert (folder / "report.txt").read_text().splitlines() == session("cat report.txt")


def test_the_tests_of_the_page_pass(folder: Path) -> None:
    done = run(
        folder, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_edu.py"
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr
