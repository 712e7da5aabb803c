"""The SVG file: well-formed, complete in itself, and true."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest
from hostile import HOSTILE
from servers import function, gpu_server

from vfiokit.pci.capability.express import PortType
from vfiokit.pci.topology import Topology
from vfiokit.web.inventory import collect
from vfiokit.web.svg import document, escape

SVG = "{http://www.w3.org/2000/svg}"


def _parse(topology: Topology, title: str = "host") -> ElementTree.Element:
    return ElementTree.fromstring(document(collect(topology), title))


def test_every_function_has_an_element_with_a_tooltip(demo: Topology) -> None:
    root = _parse(demo)
    titles = {
        element.get("id"): element.findtext(f"{SVG}title")
        for element in root.iter(f"{SVG}g")
        if element.get("role") == "treeitem"
    }
    assert len(titles) == len(demo)
    for number, bdf in enumerate(demo.functions):
        assert str(bdf) in str(titles[f"f{number}"])


def test_file_stands_alone() -> None:
    text = document(collect(gpu_server()), "host")
    assert set(re.findall(r"[a-z]+://[^\"' <]+", text)) == {"http://www.w3.org/2000/svg"}
    assert "href" not in text
    assert "url(" not in text
    assert "<script" not in text
    assert set(re.findall(r"var\(--([a-z0-9-]+)\)", text)) <= set(
        re.findall(r"--([a-z0-9-]+):", text)
    )


def test_members_of_one_group_have_one_colour_and_others_none(demo: Topology) -> None:
    inventory = collect(demo)
    hue_of: dict[int, set[str]] = {}
    for element in _parse(demo).iter(f"{SVG}g"):
        if element.get("role") == "treeitem":
            item = inventory.items[int(str(element.get("id"))[1:])]
            hue = re.search(r"hue\d", str(element.get("class")))
            hue_of.setdefault(item.group, set()).add(hue[0] if hue else "")
    for group in inventory.groups:
        hues = hue_of[group.id]
        assert len(hues) == 1
        assert (hues == {""}) == (len(group.members) == 1)


def test_acs_badges_say_what_the_port_does() -> None:
    inventory = collect(gpu_server())
    badges = {}
    for element in _parse(gpu_server()).iter(f"{SVG}g"):
        for text in element.findall(f"{SVG}text"):
            if "badge" in str(text.get("class")):
                number = int(str(element.get("id"))[1:])
                badges[str(inventory.items[number].bdf)] = text.text
    assert badges["0000:08:00.0"] == "no ACS"
    assert badges["0000:09:00.0"] == "ACS"
    assert badges["0000:83:00.0"] == "ACS off"


def test_a_slow_link_is_marked(demo: Topology) -> None:
    slow = [
        text.text for text in _parse(demo).iter(f"{SVG}text") if text.get("class") == "link slow"
    ]
    assert "2.5 GT/s ×1" in slow
    assert "8 GT/s ×8" not in slow


def test_unknown_groups_are_not_coloured() -> None:
    port = function(
        "00:01.0", ids=(1, 2), class_code=0x060400, port=PortType.ROOT_PORT, secondary=1
    )
    short = port.config.data[:64]
    port.config = type(port.config)(short)
    topology = Topology([port, function("01:00.0", ids=(1, 2), class_code=0x030000)])
    classes = [str(element.get("class")) for element in _parse(topology).iter(f"{SVG}g")]
    assert any("uncertain" in name for name in classes)
    assert not any("hue" in name for name in classes)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_stay_text(text: str) -> None:
    names = {"vendor": text, "device": text, "class": text}
    odd = function("00:02.0", ids=(1, 2), class_code=0x030000, driver=text, names=names)
    root = _parse(Topology([odd]), title=text)
    known = {"svg", "g", "title", "style", "rect", "text", "path"}
    assert {element.tag.removeprefix(SVG) for element in root.iter()} <= known
    names = {name for element in root.iter() for name in element.attrib}
    assert not [name for name in names if name.startswith("on")]


def test_characters_that_xml_cannot_hold_are_replaced() -> None:
    assert escape("a\x00b\x1b[1m\ud800<&>\"'") == "a\ufffdb\ufffd[1m\ufffd&lt;&amp;&gt;&quot;&#x27;"
