"""The tracer: what was mapped, trapped or dropped, by name; and the command that shows it."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nvme_rig import BAR, CONTENT, Guest, booted, job

from vfiokit.cli import exit as exit_code
from vfiokit.cli.main import main
from vfiokit.errors import UsageError
from vfiokit.machine.device.nvme import registers as model_registers
from vfiokit.pci.capability.msix import Structure
from vfiokit.vmm.nvme_guest import PAGE, Action, Moment, Space
from vfiokit.vmm.plan import find_plans
from vfiokit.vmm.trace import Kind, Tracer
from vfiokit.vmm.trace_mistake import MISTAKES, find_mistake, parse_write
from vfiokit.vmm.trace_register import (
    NVME_REGISTERS,
    Doorbell,
    apic_name,
    doorbell,
    msix_entry_name,
    nvme_name,
    plausible_entry,
    value_text,
)

EXPECTED = {
    "not-a-doorbell": "there is no register at 0x120",
    "no-queue": "SQ3 does not exist: it was never created",
    "stride": "with a stride of 8 it would be the SQ1 tail doorbell",
    "out-of-range": "64 is no entry of SQ1",
    "nothing-new": "nothing is submitted",
    "narrow": "written with 4 bytes, not 2",
    "not-enabled": "CC.EN is 0",
    "decoding-off": "memory decoding of 0000:01:00.0 is off",
    "mastering-off": "bus mastering is off",
    "msix-page": "lies in the MSI-X table",
    "not-mapped": "nothing is mapped at",
    "read-only": "VS is read-only",
    "too-late": "it is 1 already",
}


def trace(*actions: Action, letter: str = "D", reads: int = 1) -> Guest:
    """A guest that ran; its machine is closed, what was traced is left."""
    with booted(job(reads, actions=actions), policy=find_plans([letter])[0].policy) as guest:
        guest.run()
        return guest


def mistake(name: str) -> tuple[Action, ...]:
    with booted(job(0)) as guest:
        place = guest.function.msix_place
        assert place is not None
        return find_mistake(name).build(place.table, BAR + guest.function.bars[0].size)


# -- kinds and names --------------------------------------------------------------------------


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.parametrize("letter", ["A", "D"])
def test_every_mistake_is_explained_once(name: str, letter: str) -> None:
    found = trace(*mistake(name), letter=letter)
    (reason,) = found.reasons
    assert EXPECTED[name] in reason


def test_a_driver_without_mistakes_has_no_findings() -> None:
    found = trace(reads=3)
    assert found.reasons == []
    names = [each.name for each in found.tracer.accesses if each.write]
    assert names.count("SQ1 tail doorbell") == names.count("CQ1 head doorbell") == 3
    assert names.count("SQ0 tail doorbell") == names.count("CQ0 head doorbell") == 3
    for expected in ("CC", "AQA", "ASQ", "ACQ", "bar0", "command, status"):
        assert expected in names
    for field in ("address", "upper address", "data", "vector control"):
        assert names.count(f"MSI-X entry 1 {field}") == 1


@pytest.mark.parametrize(
    ("letter", "doorbells", "table"),
    [
        ("A", Kind.TRAPPED, Kind.TRAPPED),
        ("B", Kind.MAPPED, Kind.MAPPED),
        ("D", Kind.MAPPED, Kind.TRAPPED),
    ],
)
def test_kinds_are_those_of_the_plan(letter: str, doorbells: Kind, table: Kind) -> None:
    found = trace(letter=letter)
    kinds = {name: kind for kind, name, _write in found.tracer.counts}
    assert kinds["SQ0 tail doorbell"] is doorbells
    assert kinds["CC"] is doorbells
    assert kinds["MSI-X entry 0 address"] is table
    assert kinds["command, status"] is Kind.TRAPPED


def test_counts_agree_with_the_exits() -> None:
    with booted(job(3), policy=find_plans(["A"])[0].policy) as guest:
        guest.run()
        exits, trapped = guest.machine.exits, 0
        for (kind, _name, _write), count in guest.tracer.counts.items():
            trapped += count if kind is Kind.TRAPPED else 0
        # An OUT that writes 0xcf8 is an exit of its own, and no access to a register.
        config = sum(each.place.startswith("config") for each in guest.tracer.accesses)
        without_ports = sum(exits[name] for name in ("bar", "msix", "apic", "eoi"))
        assert trapped == without_ports + config
        assert exits["config"] == 26
        assert config == 14  # twelve of them reached a register by its address first


def test_what_nobody_answers_is_dropped() -> None:
    found = trace(
        Action(Moment.QUEUES, Space.MEMORY, 0xD000_0000, 1),
        Action(Moment.QUEUES, Space.MEMORY, BAR - 4, 1),
    )
    dropped = [each for each in found.tracer.accesses if each.kind is Kind.DROPPED]
    assert [each.place for each in dropped] == ["0xd0000000", f"{BAR - 4:#x}"]
    assert "further up" in dropped[0].reason
    assert f"BAR 0 is at {BAR:#x}" in dropped[1].reason


def test_a_bar_that_moved_is_traced_where_it_is() -> None:
    with booted(job(1)) as guest:
        guest.run()
        guest.function.config.write(0x10, 4, 0xF000_0000)
        before = len(guest.tracer.findings)
        guest.machine.bus.trapped_write(BAR + 0x1008, 4, 2)
        assert "nothing is mapped" in guest.tracer.findings[before].reason
        assert guest.machine.bus.write(0xF000_1008, 4, 1) or True
        assert guest.tracer.accesses[-1].name == "SQ1 tail doorbell"


def test_registers_that_the_guest_cannot_write_are_told() -> None:
    found = trace(
        Action(Moment.END, Space.CONFIG, 0x34, 0x1234),
        Action(Moment.END, Space.CONFIG, 0x00, 0x1234_5678),
        Action(Moment.END, Space.CONFIG, 0x3C, 0x0B),
    )
    assert [each.name for each in found.tracer.findings] == [
        "capabilities pointer",
        "vendor id, device id",
    ]
    assert found.reasons[0] == "the guest cannot set these bits: it reads 0x40 as before"


def test_a_function_that_is_not_there() -> None:
    with booted(job(0)) as guest:
        guest.run()
        guest.machine.pci.config_write(0, 9 << 3, 4, 2, 7)
        last = guest.tracer.findings[-1]
        assert (last.kind, last.reason) == (Kind.DROPPED, "there is no function at 00:09.0")
        guest.machine.pci.config_read(0, 9 << 3, 0, 4)
        assert guest.tracer.accesses[-1].kind is Kind.DROPPED
        assert guest.tracer.findings[-1] is last


def test_configuration_space_in_memory_is_seen_once() -> None:
    with booted(job(0)) as guest:
        guest.run()
        before = guest.tracer.total
        guest.machine.bus.trapped_read(0xE000_0000 | 1 << 15 | 4, 2)
        (last,) = guest.tracer.accesses[before:]
        assert (last.place, last.name) == ("config 00:01.0 + 0x4", "command")


def test_ports_have_names() -> None:
    with booted(job(0)) as guest:
        guest.machine.port_bus.trapped_write(0xE9, 1, ord("x"))
        guest.machine.port_bus.trapped_write(0x80, 1, 0)
        kinds = [(each.kind, each.place, each.name) for each in guest.tracer.accesses]
        assert kinds == [
            (Kind.TRAPPED, "port 0xe9", "debug console"),
            (Kind.DROPPED, "port 0x80", "nothing"),
        ]


def test_pending_bits_and_narrow_table_writes() -> None:
    with booted(job(0)) as guest:
        guest.run()
        place = guest.function.msix_place
        assert place is not None
        guest.store(place.pending.offset, 1)
        assert guest.reasons[-1] == "the pending bits are read-only"
        guest.store(place.table.offset, 1, 1)
        assert guest.reasons[-1] == "the MSI-X table takes aligned accesses of 4 or 8 bytes"
        guest.read(place.table.offset)
        assert len(guest.reasons) == 2


def test_a_mapped_table_hears_no_doorbell_either() -> None:
    found = trace(*mistake("msix-page"), letter="B")
    # The guest of plan B never gets so far; the write is made for it.
    assert found.reasons == []
    with booted(job(0), policy=find_plans(["B"])[0].policy) as guest:
        place = guest.function.msix_place
        assert place is not None
        guest.run()
        watcher = guest.tracer.watcher(guest.function)
        assert watcher is not None
        assert watcher.enabled
        guest.store(place.table.offset, 1)
        assert guest.tracer.findings[-1].kind is Kind.MAPPED
        assert "no queue hears of it" in guest.reasons[-1]
        assert "hypervisor keeps" not in guest.reasons[-1]


# -- the tracer -------------------------------------------------------------------------------


def test_a_stopped_tracer_hears_nothing() -> None:
    with booted(job(2)) as guest:
        guest.tracer.stop()
        guest.tracer.stop()
        guest.run()
        assert guest.outcome.done
        assert guest.tracer.total == 0


def test_accesses_beyond_the_limit_are_counted() -> None:
    with booted(job(5)) as guest:
        small = Tracer(guest.machine, limit=10)
        guest.run()
        assert small.total == guest.tracer.total > 10
        assert len(small.accesses) == 10
        assert small.counts == guest.tracer.counts


def test_tracing_changes_no_count_and_no_data() -> None:
    results = []
    for traced in (True, False):
        with booted(job(4), policy=find_plans(["A"])[0].policy) as guest:
            if not traced:
                guest.tracer.stop()
            guest.run()
            results.append((dict(guest.machine.exits), guest.outcome))
    assert results[0] == results[1]
    assert results[0][1].checksum == sum(
        int.from_bytes(CONTENT[at : at + 8], "little")
        + int.from_bytes(CONTENT[at + PAGE - 8 : at + PAGE], "little")
        for at in range(0, 4 * PAGE, PAGE)
    ) & ((1 << 64) - 1)


def test_a_line_says_it_all() -> None:
    found = trace()
    line = next(str(each) for each in found.tracer.accesses if each.name == "CC" and each.value)
    for word in ("mapped", "write", "BAR 0 + 0x14", "CC = 0x460001", "EN 1", "IOSQES 6"):
        assert word in line


# -- names ------------------------------------------------------------------------------------


def test_registers_are_those_of_the_controller_model() -> None:
    """Two descriptions of the same table of the specification, made apart."""
    known = {
        each.name.upper(): (each.offset, each.width)
        for each in vars(model_registers).values()
        if isinstance(each, model_registers.Register)
    }
    ours = {each.name: (each.offset, each.width) for each in NVME_REGISTERS}
    assert len(known) >= 9
    for name, place in known.items():
        assert ours[name] == place


@given(queue=st.integers(0, 65535), completion=st.booleans(), shift=st.integers(0, 15))
def test_doorbells_are_found_where_they_are(queue: int, completion: bool, shift: int) -> None:
    wanted = Doorbell(queue, completion)
    stride = 4 << shift
    offset = wanted.offset(stride)
    assert offset == 0x1000 + (2 * queue + completion) * stride
    assert doorbell(offset, stride) == wanted
    if stride > 4:
        assert doorbell(offset + 4, stride) is None
    assert nvme_name(offset, 4, stride) == str(wanted)


@pytest.mark.parametrize(
    ("offset", "width", "name"),
    [
        (0x00, 8, "CAP"),
        (0x04, 4, "CAP upper half"),
        (0x28, 4, "ASQ lower half"),
        (0x15, 1, "CC byte 1"),
        (0x2A, 2, "ASQ byte 2 to 3"),
        (0x200, 4, "reserved (0x200)"),
        (0x1002, 2, "between two doorbells (0x1002)"),
        (0x1000, 4, "SQ0 tail doorbell"),
        (0x1004, 4, "CQ0 head doorbell"),
    ],
)
def test_names_of_parts_of_registers(offset: int, width: int, name: str) -> None:
    assert nvme_name(offset, width) == name


def test_other_names() -> None:
    assert msix_entry_name(0x2C) == "MSI-X entry 2 vector control"
    assert apic_name(0xB0) == "local APIC EOI"
    assert apic_name(0x240) == "local APIC register 0x240"
    assert value_text("CSTS", 0x5) == "RDY 1, CFS 0, SHST 1"
    assert value_text("SQ1 tail doorbell", 5) == ""


@pytest.mark.parametrize(
    ("offset", "value", "fits"),
    [
        (0x00, 0xFEE0_1000, True),
        (0x00, 5, False),
        (0x14, 1, False),
        (0x18, 0x51, True),
        (0x18, 0x1_0000, False),
        (0x1C, 1, True),
        (0x1C, 2, False),
    ],
)
def test_what_an_entry_of_the_table_may_hold(offset: int, value: int, fits: bool) -> None:
    assert plausible_entry(offset, value) is fits


# -- writes by name ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "action"),
    [
        ("bar0+0x120=1", Action(Moment.QUEUES, Space.BAR, 0x120, 1)),
        ("BAR0 + 0x1008 = 5/2@end", Action(Moment.END, Space.BAR, 0x1008, 5, 2)),
        ("config+4=2@placed", Action(Moment.PLACED, Space.CONFIG, 4, 2)),
        ("gpa+0xfeb00000=0xff/1@Enabled", Action(Moment.ENABLED, Space.MEMORY, BAR, 255, 1)),
    ],
)
def test_writes_are_named(text: str, action: Action) -> None:
    assert parse_write(text) == action


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bar1+0=1",
        "bar0+0x120",
        "bar0+zz=1",
        "bar0+0=1@never",
        "bar0+0=0x100/1",
        "bar0+0=0/8",
        "config+2=1",
        "config+0x100=1",
        "config+4=1/2",
        "bar0+0x100000000=1",
    ],
)
def test_writes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_write(text)


@given(st.text(max_size=40))
def test_any_text_is_a_write_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert parse_write(text).width in (1, 2, 4)


def test_an_unknown_mistake_is_refused() -> None:
    with pytest.raises(UsageError, match="no mistake"):
        find_mistake("typo")
    assert set(EXPECTED) == set(MISTAKES)
    assert find_mistake("not-mapped").build(Structure(0, 0, 16), 77)[0].address == 77


# -- the command ------------------------------------------------------------------------------


def test_the_command_explains_the_doorbell_of_the_talk(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["vmm", "trace", "--write", "bar0+0x120=1", "--mistake", "no-queue"]
    assert main(words) == exit_code.NO
    out = capsys.readouterr().out
    assert "reserved (0x120) = 0x1" in out
    assert "so that of queue 3 at 0x1018" in out
    assert "SQ3 does not exist" in out
    assert "mapped" in out
    assert "trapped" in out


def test_the_command_without_mistakes_is_content(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vmm", "trace", "--reads", "1", "--findings"]) == exit_code.DONE
    assert capsys.readouterr().out == "the guest's driver did all it was asked for\n"


def test_the_document_lists_every_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vmm", "trace", "--mistake", "all", "--json"]) == exit_code.NO
    found = json.loads(capsys.readouterr().out)
    assert len(found["without_effect"]) == len(MISTAKES)
    assert sum(each["count"] for each in found["counts"]) == found["total"]


def test_the_command_lists_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["vmm", "trace", "--list"]) == exit_code.DONE
    out = capsys.readouterr().out
    assert all(name in out for name in MISTAKES)


@pytest.mark.parametrize(
    "words",
    [
        ["--mistake", "typo"],
        ["--write", "x"],
        ["--plan", "Z"],
        ["--reads", "-1"],
        ["--host", "live"],
        ["--list", "--json"],
    ],
)
def test_what_cannot_be_traced_is_said(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["vmm", "trace", *words]) == exit_code.USAGE
    assert "error" in capsys.readouterr().err
