"""Whatever a host calls its devices: three formats that their readers can read."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

from hypothesis import given, settings
from hypothesis import strategies as st
from servers import function

from vfiokit.pci.topology import Topology
from vfiokit.web import dot, svg
from vfiokit.web.inventory import Inventory, collect
from vfiokit.web.report import describe, render

# Surrogates too: bytes that are no UTF-8 arrive as such.
PUNCTUATION = "<>&\"'\\{}[];-/!\n\x00"
TEXT = st.text(st.characters(codec=None), max_size=60) | st.text(PUNCTUATION, max_size=30)


def _machine(name: str, driver: str) -> Topology:
    names = {"vendor": name, "device": name, "class": name}
    return Topology(
        [function("00:02.0", ids=(1, 2), class_code=0x030000, driver=driver, names=names)]
    )


def _inventory(name: str, driver: str) -> Inventory:
    return collect(_machine(name, driver))


@settings(deadline=None)
@given(TEXT, TEXT, TEXT)
def test_svg_is_well_formed_and_has_the_same_elements(name: str, driver: str, title: str) -> None:
    text = svg.document(_inventory(name, driver), title)
    root = ElementTree.fromstring(text.encode("utf-8"))
    assert len(list(root.iter("{http://www.w3.org/2000/svg}g"))) == 3


@settings(deadline=None)
@given(TEXT, TEXT, TEXT)
def test_dot_has_the_same_statements(name: str, driver: str, title: str) -> None:
    text = dot.document(_inventory(name, driver), title)
    text.encode("utf-8")
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "S", text, flags=re.DOTALL)
    assert bare.startswith("digraph S {\n")
    assert bare.endswith("}\n")
    assert bare.count(";") == 7
    assert bare.count("{") == bare.count("}") == 1


@settings(max_examples=25, deadline=None)
@given(TEXT, TEXT, TEXT)
def test_page_has_two_scripts_and_its_data_is_json(name: str, driver: str, title: str) -> None:
    page = render("html", describe(_machine(name, driver), host=title))
    page.encode("utf-8")
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 2
    data = json.loads(scripts[0])
    assert data["words"][data["functions"][0][3]] == driver
