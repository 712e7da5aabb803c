"""What ``--json`` prints is what its published schema says, for every command."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from vfiokit.cli import exit as exit_code
from vfiokit.cli.main import main
from vfiokit.cli.schema import text
from vfiokit.cli.schema_source import kinds, schema
from vfiokit.pci.capability import catalog

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "docs" / "schema"
FACES = sorted((ROOT / "src/vfiokit/cli").glob("*.py"))
DOCUMENT = re.compile(r'\.document\(\s*"([a-z0-9-]+)"')

ON_THE_DEMO_HOST = {
    "show": ["show"],
    "tree": ["tree"],
    "groups": ["groups"],
    "groups-why": ["groups", "--why", "all"],
    "plan": ["plan", "01:00.1"],
    "explain": ["explain", "all"],
    "diff": ["diff", "demo", "demo"],
    "doctor": ["doctor", "gpu", "nvme"],
    "schema": ["schema"],
    "undo-list": ["undo", "--list", "--journal", "{folder}"],
    "undo": ["undo", "--journal", "{folder}"],
    "capture": ["capture", "{folder}/server.tar.zst"],
    "bandwidth": ["bandwidth", "nvme > memory"],
    "p2p": ["p2p"],
    "p2p-pair": ["p2p", "04:00.0", "04:00.1"],
    "p2p-clients": ["p2p", "05:00.0", "nic"],
    "p2p-remedy": ["p2p", "--remedy"],
    "p2p-what-if": ["p2p", "--what-if", "move=05:00.0@80:01.0", "--what-if", "acs=0x11@00:02.2"],
    "report": ["report", "{folder}/server.html", "--svg", "{folder}/server.svg"],
    "vm-plan": ["vm", "plan", "gpu", "nic", "--p2p", "--viommu", "intel", "--vmm", "qemu"],
    "bandwidth-parameters": ["bandwidth", "--parameters"],
    "vmm-mtree": ["vmm", "mtree", "nvme"],
    "vmm-demo": ["vmm", "demo2"],
    "vmm-walks": ["vmm", "walks"],
    "vmm-plans": ["vmm", "plans", "--reads", "2"],
    "vmm-run": ["vmm", "run", "--reads", "2"],
    "vmm-trace": ["vmm", "trace", "--mistake", "no-queue"],
    "vmm-p2p": ["vmm", "p2p", "nvme", "nic"],
}
"""A command line for each kind of document."""

ELSEWHERE = {
    "apply": "of a twin, below",
    "demo": "by the tests of the demonstration",
    "lab-run": "needs a kernel and QEMU",
    "watch-event": "by the tests of watch",
    "serve-event": "by the tests of serve",
    "lab-check": "needs a kernel and QEMU",
}


def errors(kind: str, document: Any) -> list[str]:
    validator = Draft202012Validator(schema(kind))
    return [
        f"{error.json_path}: {error.message[:200]}" for error in validator.iter_errors(document)
    ]


def kinds_printed() -> set[str]:
    return {kind for path in FACES for kind in DOCUMENT.findall(path.read_text(encoding="utf-8"))}


def test_every_document_that_a_command_prints_has_a_schema() -> None:
    missing = sorted(kinds_printed() - set(kinds()))
    assert not missing, f"describe them in src/vfiokit/data/schema/<kind>.json: {missing}"


def test_no_schema_is_left_over() -> None:
    assert set(kinds()) - kinds_printed() == set()


def test_every_schema_is_tried_on_a_document() -> None:
    assert set(kinds()) - set(ON_THE_DEMO_HOST) - set(ELSEWHERE) == set()


@pytest.mark.parametrize("kind", kinds())
def test_schemas_are_schemas(kind: str) -> None:
    found = schema(kind)
    Draft202012Validator.check_schema(found)
    top = found["$defs"]["document"] if "oneOf" in found else found
    assert top["additionalProperties"] is False
    assert top["properties"]["schema"] == {
        "const": f"vfiokit/{kind}/v1",
        "description": "Which document this is, with its version.",
    }


@pytest.mark.parametrize("kind", kinds())
def test_the_published_file_is_up_to_date(kind: str) -> None:
    file = PUBLISHED / f"{kind}-v1.json"
    assert file.read_text(encoding="utf-8") == text(kind), "vfiokit schema --write docs/schema"


def test_nothing_else_is_published() -> None:
    assert {path.name for path in PUBLISHED.iterdir()} == {f"{kind}-v1.json" for kind in kinds()}


@pytest.mark.parametrize("kind", ON_THE_DEMO_HOST)
def test_documents_are_as_published(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [word.format(folder=tmp_path) for word in ON_THE_DEMO_HOST[kind]]
    host = [] if words[0] == "diff" else ["--host", "demo"]
    assert main([*words, *host, "--json"]) in (exit_code.DONE, exit_code.NO)
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == f"vfiokit/{kind}/v1"
    assert errors(kind, document) == []


def test_a_plan_in_a_file_is_as_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "plan.json"
    assert main(["plan", "nvme", "--host", "demo", "-o", str(file)]) == exit_code.DONE
    capsys.readouterr()
    assert errors("plan", json.loads(file.read_text())) == []


def test_documents_of_a_twin_that_changes_are_as_published(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = [part for line in ("apply nvme --yes", "undo --list", "undo") for part in ("-c", line)]
    assert main(["machine", "--json", *lines]) == exit_code.DONE
    out, decoder = capsys.readouterr().out, json.JSONDecoder()
    seen = []
    while out.strip():
        document, end = decoder.raw_decode(out.lstrip())
        out = out.lstrip()[end:]
        kind = document["schema"].split("/")[1]
        assert errors(kind, document) == []
        seen.append(kind)
    assert seen == ["apply", "undo-list", "undo"]


def test_a_description_without_groups_or_names_is_as_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dump = tmp_path / "machine.txt"
    assert main(["show", "-vvv", "--host", "demo"]) == exit_code.DONE
    dump.write_text(capsys.readouterr().out, encoding="utf-8")
    for kind in ("show", "tree", "groups", "explain"):
        words = [kind, "all"] if kind == "explain" else [kind]
        main([*words, "--host", str(dump), "--json"])
        assert errors(kind, json.loads(capsys.readouterr().out)) == []


def test_a_key_too_many_or_too_few_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "00:02.0", "--host", "demo", "--json"]) == exit_code.DONE
    document = json.loads(capsys.readouterr().out)
    assert errors("show", document) == []
    assert errors("show", document | {"more": 1})
    device = document["devices"][0]
    registers = next(item for item in device["capabilities"] if item["name"] == "acs")["registers"]
    for change, undo in (
        (lambda: device.pop("path"), lambda value: device.update(path=value)),
        (lambda: registers["control"].pop("request_redirect"), None),
    ):
        value = change()
        assert errors("show", document)
        if undo is not None:
            undo(value)
            assert errors("show", document) == []


def test_a_field_wider_than_its_bits_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    main(["show", "00:02.0", "--host", "demo", "--json"])
    document = json.loads(capsys.readouterr().out)
    express = next(
        item for item in document["devices"][0]["capabilities"] if item["name"] == "express"
    )
    express["registers"]["link_status"]["speed"] = 16
    (error,) = errors("show", document)
    assert "16 is greater than the maximum of 15" in error


def test_every_layout_is_in_the_schema_of_show() -> None:
    rules = schema("show")["$defs"]["capability"]["allOf"]
    described = {rule["if"]["properties"]["name"]["const"]: rule for rule in rules}
    for layout in catalog.layouts():
        registers = described[layout.name]["then"]["properties"]["registers"]
        assert set(registers["properties"]) == {register.name for register in layout.registers}


def test_schema_is_printed_listed_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["schema", "groups"]) == exit_code.DONE
    assert json.loads(capsys.readouterr().out) == schema("groups")
    assert main(["schema"]) == exit_code.DONE
    listed = capsys.readouterr().out
    assert all(f"vfiokit/{kind}/v1" in listed for kind in kinds())
    assert main(["schema", "--write", str(tmp_path / "all")]) == exit_code.DONE
    assert {path.name for path in (tmp_path / "all").iterdir()} == {
        f"{kind}-v1.json" for kind in kinds()
    }


def test_an_unknown_kind_is_named_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "grops"]) == exit_code.USAGE
    err = capsys.readouterr().err
    assert "grops" in err
    assert "groups-why" in err
