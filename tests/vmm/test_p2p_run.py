"""The comparison: which way tells the truth, at how many exits, and what else it costs."""

from __future__ import annotations

import json

import pytest

from vfiokit.cli import exit as exit_code
from vfiokit.cli.main import main
from vfiokit.errors import UsageError
from vfiokit.p2p import Cpu
from vfiokit.pci.address import Bdf
from vfiokit.vmm.p2p_host import on_machine
from vfiokit.vmm.p2p_run import WAYS, Comparison, Result

TEXT = """
hb bus=0x20 ids=8086:2020 (rp0(sw(nvme:a, nvme:b)), rp1(sw acs(nvme:c, nvme:d)))
"""
COUNT = 4 * 3


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    comparison = on_machine(TEXT, "abcd")
    return {way.name: comparison.run(way) for way in WAYS}


def test_every_ordered_pair_is_asked_for(results):
    for each in results.values():
        pairs = [(told.provider, told.client) for told in each.told]
        assert len(pairs) == len(set(pairs)) == COUNT


def test_host_truth_is_linux_rule_by_hand(results):
    # a and b meet in a switch without ACS; c and d in one that redirects; others at the host
    # bridge, which is a trusted one.
    told = results["hypercall"].told
    a, b = Bdf(0, 0x23, 0, 0), Bdf(0, 0x24, 0, 0)
    assert {str(each.provider) for each in told} == {
        "0000:23:00.0", "0000:24:00.0", "0000:27:00.0", "0000:28:00.0",
    }  # fmt: skip
    kinds = {}
    for each in told:
        pair = frozenset((each.provider, each.client))
        kinds.setdefault(each.text(), set()).add(pair)
    assert kinds["bus-addr 4"] == {frozenset((a, b))}
    assert len(kinds["thru-host-bridge 4"]) == 1
    assert len(kinds["thru-host-bridge 8"]) == 4
    assert len(kinds) == 3


@pytest.mark.parametrize("name", ["seed", "hypercall", "virtio"])
def test_way_tells_the_whole_truth(results, name):
    assert results[name].correct == results[name].correct_types == COUNT


def test_guest_left_alone_misses_what_works(results):
    assert results["alone"].correct_types == 0
    assert {told.text() for told in results["alone"].told} == {"not-supported 4"}


def test_emulated_ports_tell_half_of_it(results):
    right = [told for told in results["replicated"].told if told.same]
    assert {told.text() for told in right} == {"bus-addr 4"}
    # A guest without an IOMMU leaves redirection off, so it believes in c and d, too.
    assert results["replicated"].correct_types == 2


def test_exits_are_one_a_question_or_all_before(results):
    for name in ("hypercall", "virtio"):
        found = results[name]
        assert found.exits == {name: found.questions}
        assert found.exits_each == 1
    assert results["hypercall"].exits_before == {}
    assert set(results["virtio"].exits_before) == {"config", "virtio"}
    assert sum(results["virtio"].exits_before.values()) < 100
    for name in ("alone", "replicated", "seed"):
        assert results[name].exits == {}
        assert set(results[name].exits_before) == {"config"}


def test_price_beyond_exits_is_told(results):
    assert results["alone"].changed == results["hypercall"].changed == ()
    assert results["virtio"].changed == ("one more device: virtio-p2p",)
    changed = "; ".join(results["seed"].changed)
    assert "1 instead of 0 of expander bridges" in changed
    assert "2 instead of 0 of switches" in changed
    assert "4 of 4 functions at other addresses" in changed
    assert "no released QEMU" in changed
    assert results["hypercall"].exposed == results["virtio"].exposed == ("what it asks for",)
    assert results["alone"].exposed == ("nothing",)
    # Two root ports, two upstream ports, four downstream ports; those of one switch have ACS, and
    # so have both root ports.
    exposed = results["seed"].exposed
    assert "where 8 ports and switches are" in exposed
    assert "ACS registers of 4 ports, 4 of them redirecting" in exposed


def test_processor_decides_for_host_and_guest_alike():
    zen = Cpu("AuthenticAMD", 0x19, 1)
    comparison = on_machine("rp0(nvme:a), rp1(nvme:b)", "ab", cpu=zen)
    by_name = {way.name: way for way in WAYS}
    for name in ("alone", "seed", "hypercall", "virtio"):
        found = comparison.run(by_name[name])
        assert {told.text() for told in found.told} == {"thru-host-bridge 4"}
        assert found.correct == 2


@pytest.mark.parametrize("names", ["a", ["rp0"], ["nobody"]])
def test_what_makes_no_table_is_refused(names):
    with pytest.raises(UsageError):
        on_machine("rp0(nvme:a), rp1(nvme:b)", names)


def test_too_many_functions_are_refused():
    with pytest.raises(UsageError, match="17 functions"):
        Comparison(None, None, [None] * 17)


# -- the command


def test_command_compares_on_the_demo_host(capsys):
    assert main(["vmm", "p2p", "--way", "alone", "--way", "virtio", "--pairs"]) == exit_code.DONE
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines()]
    assert next(row for row in rows if row[:1] == ["virtio"])[2:4] == ["6/6", "6/6"]
    assert next(row for row in rows if row[:1] == ["alone"])[2:4] == ["0/6", "0/6"]
    assert "one more device: virtio-p2p" in out
    assert ["0000:05:00.0", "0000:04:00.0", "thru-host-bridge", "4", "not-supported", "4",
            "thru-host-bridge", "4"] in rows  # fmt: skip


def test_command_takes_a_machine_made_to_order(capsys):
    words = ["vmm", "p2p", "a", "b", "--machine", "rp0(sw(nvme:a, nvme:b))", "--json"]
    assert main([*words, "--way", "hypercall"]) == exit_code.DONE
    document = json.loads(capsys.readouterr().out)
    (way,) = document["ways"]
    assert [each["map_type"] for each in way["answers"]] == ["bus-addr", "bus-addr"]
    assert way["exits_each"] == 1


@pytest.mark.parametrize(
    "words", [["--way", "magic"], ["05:00.0"], ["--host", "live"], ["--machine", "rp0("]]
)
def test_command_refuses_what_makes_no_sense(words, capsys):
    assert main(["vmm", "p2p", *words]) == exit_code.USAGE
    assert "error:" in capsys.readouterr().err
