"""DOT: what graphviz reads back is what was meant."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
from equipment import missing
from hostile import HOSTILE
from servers import function, gpu_server

from vfiokit.pci.topology import Topology
from vfiokit.web.dot import document, quoted
from vfiokit.web.inventory import collect

_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')


def _graphviz(text: str) -> str:
    if shutil.which("dot") is None:
        missing("graphviz")
    # The plain format lists the nodes and edges that graphviz understood.
    run = subprocess.run(["dot", "-Tplain"], input=text.encode(), capture_output=True, timeout=60)
    assert run.returncode == 0, run.stderr.decode()
    assert not run.stderr, run.stderr.decode()
    return run.stdout.decode()


def test_graphviz_finds_every_function_below_its_bridge() -> None:
    topology = gpu_server()
    plain = _graphviz(document(collect(topology), "gpu server"))
    nodes = re.findall(r'^node "?([0-9a-f:.pci]+)"? ', plain, re.MULTILINE)
    edges = set(
        re.findall(r'^edge "?([0-9a-f:.pci]+)"? "?([0-9a-f:.pci]+)"? ', plain, re.MULTILINE)
    )
    bridges = {str(bridge) for bridge in topology.host_bridges}
    assert sorted(nodes) == sorted(bridges | {str(bdf) for bdf in topology.functions})
    expected = set()
    for one in topology:
        above = topology.upstream_bridge(one)
        expected.add((str(above.bdf if above else topology.host_bridge_of(one)), str(one.bdf)))
    assert edges == expected


def test_numa_nodes_are_clusters() -> None:
    text = document(collect(gpu_server()), "x")
    assert "subgraph cluster_0" in text
    assert "subgraph cluster_1" in text


def test_virtual_functions_hang_from_their_physical_one(demo: Topology) -> None:
    text = document(collect(demo), "demo")
    assert '"0000:08:00.0" -> "0000:08:00.4" [style=dashed, label="VF"];' in text
    assert text.count("{") == text.count("}")


def test_links_label_their_edges() -> None:
    assert '"0000:09:01.0" -> "0000:0b:00.0" [label="32 GT/s ×16"];' in document(
        collect(gpu_server()), "x"
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_end_no_string(text: str) -> None:
    whole = quoted(text)
    assert _STRING.fullmatch(whole)
    odd = function("00:02.0", ids=(1, 2), class_code=0x030000, driver=text, names={"device": text})
    graph = document(collect(Topology([odd])), text)
    outside = _STRING.sub("", graph)
    assert "hacked" not in outside
    assert "example" not in outside
    assert graph.count("\n") == 9


@pytest.mark.parametrize("text", HOSTILE[:-1])
def test_graphviz_takes_hostile_names(text: str) -> None:
    odd = function("00:02.0", ids=(1, 2), class_code=0x030000, driver=text, names={"device": text})
    plain = _graphviz(document(collect(Topology([odd])), text))
    assert len(re.findall("^node ", plain, re.MULTILINE)) == 2
