"""Commands as a user runs them: exit codes, text, JSON, errors."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from vfiokit.cli import exit as exit_code
from vfiokit.cli.main import COMMANDS, build_parser, load, main


def document(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict]:
    code = main([*words, "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "vfiokit " + name in text
    assert load(name).DESCRIPTION.split()[0] in text


def test_without_a_command_the_overview_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == exit_code.USAGE
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


def test_an_unknown_command_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["grops"])
    assert stop.value.code == exit_code.USAGE
    assert "groups" in capsys.readouterr().err


def test_groups_agree_with_the_recorded_ones(capsys: pytest.CaptureFixture[str]) -> None:
    code, body = document(capsys, "groups", "--host", "demo")
    assert code == exit_code.DONE
    assert body["schema"] == "vfiokit/groups/v1"
    assert body["recorded"] == {"total": 106, "agree": 106, "differences": []}
    members = [member for group in body["groups"] for member in group["members"]]
    assert len(members) == len({member["address"] for member in members}) == 226


def test_groups_without_quirks_differ_and_say_so_by_exit_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, body = document(capsys, "groups", "--host", "demo", "--no-quirks")
    assert code == exit_code.NO
    assert body["recorded"]["agree"] == 74
    assert len(body["recorded"]["differences"]) == 32


def test_groups_why_names_the_rule(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["groups", "--host", "demo", "--why", "01:00.1"]) == exit_code.DONE
    out = capsys.readouterr().out
    assert "0000:01:00.1 is in group" in out
    assert "0000:01:00.0" in out


def test_show_lists_every_function(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "--host", "demo"]) == exit_code.DONE
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 227
    assert lines[0].split() == ["ADDRESS", "KIND", "DEVICE", "DRIVER", "GROUP", "NUMA"]


def test_show_keeps_recorded_and_predicted_apart(capsys: pytest.CaptureFixture[str]) -> None:
    code, body = document(capsys, "show", "nvme", "--host", "demo")
    assert code == exit_code.DONE
    (device,) = body["devices"]
    assert device["address"] == "0000:05:00.0"
    assert device["recorded"]["iommu_group"] == 37
    assert device["recorded"]["driver"] == "nvme"
    assert device["predicted"]["members"] == ["0000:05:00.0"]
    (bar,) = device["bars"]
    assert bar["size"] == 0x4000
    assert [window["trapped"] for window in bar["windows"]] == [False, True, True]


def test_show_verbose_prints_registers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "05:00.0", "-v", "--host", "demo"]) == exit_code.DONE
    out = capsys.readouterr().out
    assert "MSI-X at 0xb0" in out
    assert "    control 0x8081: table_size 129, function_mask- enable+" in out


def test_tree_draws_virtual_functions_below_their_physical_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["tree", "--host", "demo"]) == exit_code.DONE
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["GROUP", "DRIVER", "SPEED", "NUMA", "ACS", "KIND", "DEVICE"]
    assert len(lines) == 1 + 226 + 4
    physical = next(line for line in lines if "0000:08:00.0" in line)
    virtual = next(line for line in lines if "0000:08:00.4" in line)
    assert virtual.index("0000") > physical.index("0000")


def test_tree_as_json_nests_every_function(capsys: pytest.CaptureFixture[str]) -> None:
    _code, body = document(capsys, "tree", "--host", "demo")

    def count(functions: list[dict]) -> int:
        return sum(
            1
            + len(function.get("virtual_functions", ()))
            + count(function.get("below", {}).get("functions", []))
            for function in functions
        )

    assert sum(count(bridge["functions"]) for bridge in body["host_bridges"]) == 226


def test_plan_of_a_shared_group_is_blocked(capsys: pytest.CaptureFixture[str]) -> None:
    code, body = document(capsys, "plan", "01:00.1", "--host", "demo")
    assert code == exit_code.NO
    ids = [blocker["id"] for blocker in body["plan"]["blockers"]]
    assert "group-member:0000:01:00.0" in ids


def test_plan_exit_code_says_that_there_is_something_to_do(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["plan", "nvme", "--host", "demo", "--exit-code"]) == exit_code.CHANGES
    assert "the host loses" in capsys.readouterr().out


def test_a_plan_is_saved_and_read_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = tmp_path / "nvme.json"
    assert main(["plan", "nvme", "--host", "demo", "-o", str(saved)]) == exit_code.DONE
    capsys.readouterr()
    _, printed = document(capsys, "plan", "nvme", "--host", "demo")
    assert json.loads(saved.read_text()) == printed
    assert main(["apply", str(saved), "--host", "demo", "--yes"]) != exit_code.DONE
    assert "recorded host cannot be changed" in capsys.readouterr().err


@pytest.mark.parametrize("text", ['{"schema": "vfiokit/plan/v2", "plan": {}}', "[]", "{}", "no"])
def test_what_is_no_saved_plan_is_not_applied(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "x.json").write_text(text)
    words = ["apply", str(tmp_path / "x.json"), "--host", "demo", "--yes"]
    assert main(words) == exit_code.FAILED
    assert "not a saved plan" in capsys.readouterr().err


def test_apply_without_a_terminal_wants_yes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["apply", "nvme", "--host", "demo", "--journal", str(tmp_path)]
    assert main(words) == exit_code.USAGE
    assert "--yes" in capsys.readouterr().err


def test_a_device_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "99:00.0", "--host", "demo"]) == exit_code.USAGE
    assert "0000:99:00.0" in capsys.readouterr().err


def test_a_selector_that_is_none_lists_what_would_be_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["show", "my disk", "--host", "demo"]) == exit_code.USAGE
    assert "nvme" in capsys.readouterr().err


def test_a_file_that_is_no_capture_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    junk = tmp_path / "junk"
    junk.write_text("hello\n")
    assert main(["groups", "--host", str(junk)]) == exit_code.FAILED
    assert str(junk) in capsys.readouterr().err


def test_a_missing_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["groups", "--host", "/nonexistent/capture"]) != exit_code.DONE
    assert "/nonexistent/capture" in capsys.readouterr().err


def test_capture_of_a_recording_reads_back_the_same(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "server.tar.zst"
    assert main(["capture", str(file), "--host", "demo"]) == exit_code.DONE
    assert main(["capture", str(file), "--host", "demo"]) == exit_code.USAGE
    capsys.readouterr()
    _code, once = document(capsys, "show", "--host", "demo")
    _code, twice = document(capsys, "show", "--host", str(file))
    for one, two in zip(once["devices"], twice["devices"], strict=True):
        assert one | {"text": ""} == two | {"text": ""}


def test_undo_with_nothing_to_undo_is_no_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["undo", "--host", "demo", "--journal", str(tmp_path)]) == exit_code.DONE
    assert "nothing to undo" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "tcsh"])
def test_completion_scripts_know_the_commands(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == exit_code.DONE
    out = capsys.readouterr().out
    assert "groups" in out
    assert "machine" in out


def test_the_full_parser_knows_every_command() -> None:
    text = build_parser().format_help()
    assert all(name in text for name in COMMANDS)


def test_piped_output_is_plain_and_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m vfiokit show --host demo | head -1"
    result = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("ADDRESS")
    assert "\x1b" not in result.stdout
    assert result.stderr == ""


def test_output_on_a_terminal_is_drawn_and_addresses_stay_whole() -> None:
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(
        [sys.executable, "-m", "vfiokit", "show", "--host", "demo"],
        stdout=slave,
        env=environment,
    ):
        os.close(slave)
        chunks: list[bytes] = []
        with contextlib.suppress(OSError):  # EIO: the other end is closed
            while chunk := os.read(master, 65536):
                chunks.append(chunk)
        os.close(master)
    text = b"".join(chunks)
    assert b"0000:05:00.0" in text
    assert b"\x1b[1m" in text


def test_no_color_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    from vfiokit.cli.render import wants_colour

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert wants_colour(True)
    assert not wants_colour(False)
    monkeypatch.setenv("TERM", "dumb")
    assert not wants_colour(True)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert wants_colour(False)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_colour(True)
