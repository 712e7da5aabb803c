"""The HTML file: complete in itself, and text of the host stays text."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser

import pytest
from hostile import HOSTILE
from servers import function, gpu_server, repeated

from vfiokit.assign.doctor import Evidence, Finding, Severity
from vfiokit.host.source import open_host
from vfiokit.pci.topology import Topology
from vfiokit.web.report import describe, render

_VOID = {"meta", "input", "br"}


class _Reader(HTMLParser):
    """Elements with their text, and whether every one is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str | None]] = []
        self.text: dict[str, list[str]] = {}
        self.ids: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attributes
        self.ids += [str(value) for name, value in attributes if name == "id"]
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attributes

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)


def _page(topology: Topology, **more: object) -> str:
    return render("html", describe(topology, host=str(more.get("host", "a host"))))


def _script(page: str, index: int = -1) -> str:
    return re.findall(r"<script[^>]*>(.*?)</script>", page, re.DOTALL)[index]


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


@pytest.fixture(scope="module")
def page(demo: Topology) -> str:
    tree = open_host("demo").files()
    return render("html", describe(demo, host="demo", tree=tree))


def test_markup_is_balanced_and_ids_are_unique(page: str) -> None:
    reader = _Reader(page)
    assert len(reader.ids) == len(set(reader.ids))


def test_page_names_no_other_address(page: str) -> None:
    reader = _Reader(page)
    loading = {"src", "srcset", "href", "action", "poster", "data", "xlink:href", "style"}
    assert {value for name, value in reader.attributes if name in loading} == {"#detail"}
    assert not re.findall(r"@import|url\(|fetch\(|XMLHttp|WebSocket|import\(|sendBeacon", page)
    addresses = set(re.findall(r"(?:https?|wss?|ftp)://[^\s\"'<]+", page))
    assert addresses == {"http://www.w3.org/2000/svg"}


def test_policy_allows_this_script_and_style_and_nothing_else(page: str) -> None:
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].replace("&#39;", "'").split(";"))
    style = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    assert len(style) == 1
    assert rules == {
        "default-src": "'none'",
        "style-src": _hash(style[0]),
        "script-src": _hash(_script(page)),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert page.index("Content-Security-Policy") < page.index("<style>")


def test_data_is_json_without_a_character_that_html_knows(page: str) -> None:
    text = _script(page, 0)
    assert not set("<>&") & set(text)
    data = json.loads(text)
    assert len(data["functions"]) == 226
    assert all(len(row) == 13 for row in data["functions"])


def test_page_can_be_read_without_a_script(page: str) -> None:
    reader = _Reader(page)
    assert "noscript" in reader.tags
    words = " ".join(part for parts in reader.text.values() for part in parts)
    for expected in (
        "NUMA node 0",
        "opens group 32",
        "0000:08:00.0 has 16 virtual functions",
        "PHB",
    ):
        assert expected in words


def test_findings_of_doctor_are_there_and_what_is_in_order_is_not() -> None:
    content = describe(gpu_server(), host="x")
    findings = (
        Finding("a", Severity.PROBLEM, "it is <bad>", (Evidence("/proc/x", "1"),), "do & this"),
        Finding("b", Severity.OK, "all is well"),
    )
    page = render("html", content._replace(findings=findings))
    assert "it is &lt;bad&gt;." in page
    assert "do &amp; this" in page
    assert "/proc/x: 1" in page
    assert "all is well" not in page


def test_limits_of_a_description_are_told() -> None:
    content = describe(gpu_server(), host="x", limits=("ACS is <unknown>",))
    assert "ACS is &lt;unknown&gt;." in render("html", content)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_become_no_markup(text: str) -> None:
    names = {"vendor": text, "device": text, "class": text}
    odd = function("00:02.0", ids=(1, 2), class_code=0x030000, driver=text, names=names)
    plain = function("00:02.0", ids=(1, 2), class_code=0x030000, driver="d")
    content = describe(Topology([odd]), host=text, limits=(text,))
    finding = Finding(text, Severity.PROBLEM, text, (Evidence(text, text),), text)
    page = render("html", content._replace(findings=(finding,)))
    other = describe(Topology([plain]), host="h", limits=("l",))
    known = Finding("i", Severity.PROBLEM, "w", (Evidence("s", "c"),), "r")
    reader = _Reader(page)
    expected = _Reader(render("html", other._replace(findings=(known,))))
    assert reader.tags == expected.tags
    assert {name for name, _value in reader.attributes} == {
        name for name, _value in expected.attributes
    }
    assert page.count("<script") == 2
    json.loads(_script(page, 0))
    page.encode("utf-8")


def test_nothing_to_show_is_a_page_all_the_same() -> None:
    _Reader(_page(Topology([])))


def test_size_of_the_page_stays_reasonable(page: str, demo: Topology) -> None:
    assert len(page) < 400 * 1024
    big = _page(repeated(demo, 9))
    assert len(big) < 2.5 * 1024 * 1024


def test_two_runs_give_the_same_page(demo: Topology) -> None:
    assert _page(demo) == _page(demo)


def test_reasons_that_differ_in_the_function_only_are_told_once(page: str) -> None:
    row = page[page.index('id="g42"') : page.index('id="g43"')]
    assert row.count("<p>") == 2
    assert "0000:7f:0c.1 shares group 42 with 0000:7f:0c.0" in row
    assert "The same holds for 6 more." in row
