"""The main job from end to end: every claim of every chapter, from the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vfiokit.cli import exit as exit_code
from vfiokit.cli.main import main
from vfiokit.demo.story import Story


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    story = Story(tmp_path_factory.mktemp("journal"), mebibytes=64)
    chapters = list(story.run())
    assert [chapter.number for chapter in chapters] == [1, 2, 3, 4, 5, 6, 7]
    assert all(chapter.ok for chapter in chapters)
    assert all(chapter.lines for chapter in chapters)
    return {chapter.number: chapter.facts for chapter in chapters}


def test_the_server_is_read_and_its_groups_predicted(facts: dict[int, dict[str, Any]]) -> None:
    assert facts[1]["functions"] == 226
    assert facts[1]["groups_recorded"] == facts[1]["groups_agree"] == 106
    assert facts[1]["groups_agree_without_quirks"] < 90


def test_the_drive_is_found_with_what_may_be_mapped(facts: dict[int, dict[str, Any]]) -> None:
    assert facts[2]["address"] == "0000:05:00.0"
    assert facts[2]["shares_group_with"] == []
    assert facts[2]["ports_above"][0]["acs_control"] == 0x1D
    (bar,) = facts[2]["bars"]
    trapped = [window for window in bar["windows"] if window["trapped"]]
    assert trapped[0]["offset"] == 0x3000  # the MSI-X table of the captured capability


def test_the_twin_has_every_function(facts: dict[int, dict[str, Any]]) -> None:
    assert facts[3]["functions"] == facts[3]["same_configuration"] == 226
    assert facts[3]["models"]["NvmeFunction"] == 1


def test_the_driver_changes_hands(facts: dict[int, dict[str, Any]]) -> None:
    assert facts[4]["driver_before"] == "nvme"
    assert facts[4]["driver_after"] == "vfio-pci"


def test_data_comes_back_as_written(facts: dict[int, dict[str, Any]]) -> None:
    assert facts[5]["bytes"] == 64 << 20
    assert facts[5]["sha256_written"] == facts[5]["sha256_read"]
    assert facts[5]["interrupts"] > 100
    assert facts[5]["translations"] > 500
    assert facts[5]["faults"] == 0
    moved = facts[5]["counters"]
    assert moved["bytes_read"] > 64 << 20
    assert moved["bytes_written"] > 64 << 20


def test_an_unmapped_address_is_faulted_and_named(facts: dict[int, dict[str, Any]]) -> None:
    (fault,) = facts[6]["faults"]
    assert fault["requester_id"] == 0x0500
    assert fault["iova"] == facts[6]["iova"]
    assert fault["reason"] == 0x06
    assert "Data Transfer Error" in facts[6]["answer"]
    assert facts[6]["untouched"]


def test_the_host_is_byte_for_byte_what_it_was(facts: dict[int, dict[str, Any]]) -> None:
    assert facts[7]["files_compared"] > 30_000
    assert facts[7]["files_differing"] == []


def test_the_command_gives_the_same_as_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--json", "--mebibytes", "2"]) == exit_code.DONE
    body = json.loads(capsys.readouterr().out)
    assert body["schema"] == "vfiokit/demo/v1"
    assert [chapter["ok"] for chapter in body["chapters"]] == [True] * 7
    assert body["chapters"][4]["facts"]["bytes"] == 2 << 20


def test_the_command_tells_it_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--mebibytes", "1"]) == exit_code.DONE
    out = capsys.readouterr().out
    assert "106 of 106 agree" in out
    assert "byte for byte equal" in out
    assert "everything as claimed" in out


def test_a_host_without_such_a_device_is_told_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    del tmp_path
    assert main(["demo", "--device", "accelerator"]) == exit_code.USAGE
    assert "accelerator" in capsys.readouterr().err
