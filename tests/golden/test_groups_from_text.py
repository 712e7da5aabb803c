"""The groups of the recorded server, from what lspci prints of it instead of its files.

Every form of the output is held against the groups that the server's kernel made. Of a group that
the text cannot decide, the analysis must say so; of one that it calls decided, it must be right.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import NamedTuple

import pytest

from vfiokit.host.archive import write_capture
from vfiokit.host.compression import read_file
from vfiokit.host.source import open_host, open_tree
from vfiokit.host.sysfs import read_topology
from vfiokit.isolation import compare, predict
from vfiokit.pci.address import Bdf
from vfiokit.pci.topology import Function, Topology

GROUPS = 106


class Result(NamedTuple):
    agree: int
    """Of the server's groups, those predicted with exactly their members."""
    decided: int
    """Predicted groups of which no function is uncertain."""
    wrong: tuple[tuple[Bdf, ...], ...]
    """Decided groups that the server does not have."""


@pytest.fixture(scope="module")
def server() -> Topology:
    return read_topology(open_tree("demo"))


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("lspci") is None:
        if os.environ.get("CI"):
            pytest.fail("lspci is not installed; apt-get install pciutils")
        pytest.skip("lspci is not installed (pciutils)")
    folder = tmp_path_factory.mktemp("server")
    write_capture(open_tree("demo"), str(folder / "host.tar.zst"))
    (folder / "host.tar").write_bytes(read_file(str(folder / "host.tar.zst")))
    with tarfile.open(folder / "host.tar") as archive:
        archive.extractall(folder, filter="data")
    return folder


def printed(unpacked: Path, *options: str) -> Path:
    path = unpacked / ("".join(options) + ".txt")
    result = subprocess.run(
        ["lspci", "-O", f"sysfs.path={unpacked}/sys/bus/pci", *options],
        capture_output=True,
        check=True,
    )
    path.write_bytes(result.stdout)
    return path


def hex_dump(topology: Topology) -> str:
    """What ``lspci -Dnxxxx`` prints, without lspci."""
    text = ""
    for function in topology:
        identity, data = function.identity, function.config.data
        text += f"{function.bdf} {identity.class_code >> 8:04x}: "
        text += f"{identity.vendor_id:04x}:{identity.device_id:04x} (rev {identity.revision:02x})\n"
        for offset in range(0, len(data), 16):
            text += f"{offset:02x}: {data[offset : offset + 16].hex(' ')}\n"
        text += "\n"
    return text


def judged(path: Path, server: Topology) -> Result:
    topology = open_host(str(path)).topology()
    assert [item.bdf for item in topology] == [item.bdf for item in server]
    grouping = predict(topology)
    told = Topology(
        Function(item.bdf, item.config, item.identity, recorded=server[item.bdf].recorded)
        for item in topology
    )
    comparison = compare(grouping, told)
    assert comparison.total == GROUPS
    recorded = {members(server, number) for number in range(GROUPS)}
    uncertain = set(grouping.uncertain)
    decided = [group.members for group in grouping.groups if not uncertain & set(group.members)]
    wrong = tuple(group for group in decided if group not in recorded)
    return Result(comparison.agree, len(decided), wrong)


def members(server: Topology, number: int) -> tuple[Bdf, ...]:
    return tuple(item.bdf for item in server if item.recorded.iommu_group == number)


def test_a_hex_dump_gives_every_group(server: Topology, tmp_path: Path) -> None:
    path = tmp_path / "server.lspci"
    path.write_text(hex_dump(server))
    assert judged(path, server) == (106, 106, ())
    topology = open_host(str(path)).topology()
    assert {item.bdf: (item.identity, item.physfn) for item in topology} == {
        item.bdf: (item.identity, item.physfn) for item in server
    }
    assert [item.config for item in topology] == [item.config for item in server]


@pytest.mark.parametrize("options", [("-xxxx",), ("-nnvvvxxxx",)], ids=" ".join)
def test_dumps_that_lspci_prints_give_every_group(
    server: Topology, unpacked: Path, options: tuple[str, ...]
) -> None:
    assert judged(printed(unpacked, *options), server) == (106, 106, ())


@pytest.mark.parametrize("options", [("-nvv",), ("-nvvv",)], ids=" ".join)
def test_decoded_text_with_ids_gives_every_group(
    server: Topology, unpacked: Path, options: tuple[str, ...]
) -> None:
    path = printed(unpacked, *options)
    assert judged(path, server) == (106, 106, ())
    topology = open_host(str(path)).topology()
    assert compare(predict(topology), topology)[:2] == (106, 106)  # the text has the groups, too
    assert {item.bdf: item.identity for item in topology} == {
        item.bdf: item.identity for item in server
    }
    for ours in topology:
        theirs = server[ours.bdf]
        assert (ours.recorded.driver, ours.recorded.numa_node, ours.physfn) == (
            theirs.recorded.driver,
            theirs.recorded.numa_node,
            theirs.physfn,
        )


@pytest.mark.parametrize(
    ("options", "decided"),
    [
        (("-nnvvv",), 102),  # lspci cuts the ids of 8 functions short in this one
        (("-nnv",), 60),
        (("-vvv",), 4),
        (("-nnk",), 0),
        (("-n",), 0),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else str(value),
)
def test_what_a_text_cannot_decide_is_said_and_nothing_else_is_wrong(
    server: Topology, unpacked: Path, options: tuple[str, ...], decided: int
) -> None:
    path = printed(unpacked, *options)
    result = judged(path, server)
    assert result.wrong == ()
    assert result.decided >= decided
    assert decided or result.decided == 0
    assert open_host(str(path)).limits


def test_registers_of_the_text_are_those_of_the_server(server: Topology, unpacked: Path) -> None:
    topology = open_host(str(printed(unpacked, "-nvvv"))).topology()
    known = 0
    for function in topology:
        theirs = server[function.bdf].config
        for offset in range(4096):
            if not function.config.has(offset, 1) or (function.is_virtual and offset < 4):
                continue  # lspci prints the ids of VFs as the kernel has them
            known += 1
            mask = 0x7F if offset == 0x0E else 0xFF  # the multifunction bit is not printed
            assert function.config.u8(offset) & mask == theirs.u8(offset) & mask, (
                f"{function.bdf} at {offset:#x}"
            )
    assert known > 5000


def test_bars_and_links_of_the_text_are_those_of_the_server(
    server: Topology, unpacked: Path
) -> None:
    topology = open_host(str(printed(unpacked, "-nvvv"))).topology()
    for function in topology:
        theirs = [
            (item.index, item.start, item.end)
            for item in server[function.bdf].resources
            if item.index < 6 and item.flags
        ]
        ours = [(item.index, item.start, item.end) for item in function.resources if item.index < 6]
        assert ours == theirs, function.bdf
        recorded = server[function.bdf].recorded
        if recorded.current_link_width is not None and not function.is_virtual:
            assert function.recorded.current_link_speed == recorded.current_link_speed
            assert function.recorded.current_link_width == recorded.current_link_width
