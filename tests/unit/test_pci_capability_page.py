"""The page on capabilities shows what the descriptions say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from vfiokit.pci.capability import catalog

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def tool():
    path = REPOSITORY / "tools/capability_table.py"
    spec = importlib.util.spec_from_file_location("capability_table", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_is_as_the_tool_writes_it(tool):
    page = tool.PAGE.read_text(encoding="utf-8")
    assert tool.written(page) == page, "run python tools/capability_table.py"


def test_every_capability_has_a_line(tool):
    page = tool.PAGE.read_text(encoding="utf-8")
    for layout in catalog.layouts():
        assert f"| `{layout.name}` | {layout.title} |" in page


def test_what_lspci_only_names_is_described_here(tool):
    described = {layout.name: [*tool.registers(layout)] for layout in catalog.layouts()}
    assert all(described[name] for name in tool.LSPCI_SILENT)
