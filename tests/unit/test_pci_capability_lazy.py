"""Walking a machine's capabilities loads no description that nobody asked for."""

from __future__ import annotations

import subprocess
import sys

ALWAYS = {"acs", "catalog", "express", "register", "walk"}
"""The topology itself reads port types and ACS."""


def families(code: str) -> set[str]:
    """Modules of ``vfiokit.pci.capability`` that running ``code`` loads."""
    code += (
        "\nimport sys\nprint(*(name for name in sys.modules"
        " if name.startswith('vfiokit.pci.capability.')))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return {name.rpartition(".")[2] for name in result.stdout.split()}


def test_topology_loads_only_what_it_reads():
    assert families("import vfiokit.pci.topology") == ALWAYS


def test_the_groups_of_a_machine_load_nothing_more():
    code = (
        "from vfiokit.host.source import open_tree\n"
        "from vfiokit.host.sysfs import read_topology\n"
        "from vfiokit.isolation.group import predict\n"
        "topology = read_topology(open_tree('demo'))\n"
        "predict(topology)\n"
        "assert sum(len(each.capabilities) for each in topology) > 400\n"
    )
    assert families(code) == ALWAYS


def test_a_question_loads_its_family_only():
    code = (
        "from vfiokit.pci.capability import capabilities\n"
        "from vfiokit.pci.config import ConfigSpace\n"
        "data = bytearray(256)\n"
        "data[6], data[0x34], data[0x40] = 0x10, 0x40, 0x05\n"
        "found = capabilities(ConfigSpace(data)).find(5)\n"
        "assert found.name == 'msi'\n"
    )
    assert families(code) == {"catalog", "register", "walk", "msi"}
