"""``vfiokit report`` as typed."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from vfiokit.cli.main import main
from vfiokit.cli.schema_source import schema
from vfiokit.web.report import format_of


@pytest.mark.parametrize(
    ("name", "start"),
    [("a.html", "<!DOCTYPE html>"), ("a.svg", "<?xml"), ("a.dot", "digraph"), ("a", "<!DOCTYPE")],
)
def test_ending_of_the_file_tells_the_format(tmp_path: Path, name: str, start: str) -> None:
    path = tmp_path / name
    assert main(["report", str(path), "--host", "demo"]) == 0
    assert path.read_text(encoding="utf-8").startswith(start)


def test_format_of_file_names() -> None:
    assert [format_of(name) for name in ("x.SVG", "x.gv", "x.htm", "-", "dir.svg/x")] == [
        "svg", "dot", "html", "html", "html",
    ]  # fmt: skip


def test_one_run_writes_all_three(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / name for name in ("a.html", "b.svg", "c.dot")]
    words = ["report", str(paths[0]), "--svg", str(paths[1]), "--dot", str(paths[2])]
    assert main([*words, "--host", "demo"]) == 0
    assert all(path.stat().st_size > 1000 for path in paths)
    ElementTree.parse(paths[1])
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "226 functions" in printed.err


def test_dash_is_standard_output(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main(["report", "-", "--format", "dot", "--host", "demo"]) == 0
    assert capfdbinary.readouterr().out.startswith(b"digraph")


def test_json_says_what_was_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.svg"
    assert main(["report", "--svg", str(path), "--host", "demo", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == "vfiokit/report/v1"
    assert document["functions"] == 226
    assert document["files"] == [{"format": "svg", "file": str(path), "size": path.stat().st_size}]


@pytest.mark.parametrize(
    "words", [["report"], ["report", "-", "--svg", "-"], ["report", "-", "--json"]]
)
def test_nowhere_or_twice_to_the_same_place_is_a_usage_error(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--host", "demo"]) == 2
    assert "error:" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path / "no" / "a.html"), "--host", "demo"]) == 1
    assert "No such file" in capsys.readouterr().err


def test_a_description_without_files_has_no_findings_and_says_its_limits(tmp_path: Path) -> None:
    listing = tmp_path / "lspci.txt"
    listing.write_text("00:00.0 0600: 8086:2f00 (rev 02)\n00: 86 80 00 2f\n", encoding="utf-8")
    path = tmp_path / "a.html"
    assert main(["report", str(path), "--host", str(listing)]) == 0
    text = path.read_text(encoding="utf-8")
    assert 'class="limits"' in text
    assert 'id="findings"' not in text


def test_json_document_is_the_published_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import jsonschema

    assert main(["report", str(tmp_path / "a.html"), "--host", "demo", "--json"]) == 0
    jsonschema.validate(json.loads(capsys.readouterr().out), schema("report"))
