"""``vfiokit vm plan``: the comparison, the files, the errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vfiokit.cli import exit as exit_code
from vfiokit.cli.main import main
from vfiokit.cli.session import Session
from vfiokit.host.nccl import read
from vfiokit.machine.assembly import assemble
from vfiokit.pci.blueprint import Blueprint

CARDS = ("08:00.0", "05:00.0", "04:00.0", "04:00.1")


def run(
    capsys: pytest.CaptureFixture[str], *words: str, session: Session | None = None
) -> tuple[int, str, str]:
    code = main(["vm", "plan", *words, *([] if session else ["--host", "demo"])], session)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def document(capsys: pytest.CaptureFixture[str], *words: str, **extra: Any) -> dict[str, Any]:
    code, out, _ = run(capsys, *words, "--json", **extra)
    assert code == exit_code.DONE
    found: dict[str, Any] = json.loads(out)
    assert found["schema"] == "vfiokit/vm-plan/v1"
    return found


def test_the_comparison_names_every_pair_and_what_to_heed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out, err = run(capsys, *CARDS, "--p2p")
    assert (code, err) == (exit_code.DONE, "")
    lines = out.splitlines()
    (pair,) = [line for line in lines if line.startswith("0000:04:00.0 0000:04:00.1")]
    assert pair.split("  ")[1:] != []
    assert "bus-addr (PIX): agrees" in pair
    assert "not-supported (PHB): misses" in pair
    assert "recommended: islands, because it misses P2P that works in 0 of 6 pairs, not 6" in out
    assert "misses: misses P2P that works (lost bandwidth)" in lines


def test_the_document_has_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    body = document(capsys, *CARDS, "--p2p", "--viommu", "intel")
    assert body["recommended"] == "flat"  # the others go around the guest's IOMMU
    assert [each["variant"] for each in body["variants"]] == [
        "flat",
        "replicated",
        "islands",
        "seed",
    ]
    assert len(body["pairs"]) == 6
    assert body["pairs"][0]["host"]["map_type"] == "thru-host-bridge"
    assert body["pairs"][0]["guest"]["seed"]["verdict"] == "agrees"
    assert all(len(group) >= 1 for group in body["variants"][0]["groups"])
    for variant in body["variants"]:
        # The text is one that the software machine and the lab take.
        assert assemble(Blueprint.parse(variant["topology"])).topology()


def test_many_pairs_are_folded_in_text_and_listed_in_json(
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, out, _ = run(capsys, "gpu")
    assert sum(line.startswith("0000:") and " and " in line for line in out.splitlines()) == 2
    body = document(capsys, "gpu")
    assert len(body["pairs"]) == 17 * 18 // 2
    assert any("physical function" in each for each in body["prerequisites"])


@pytest.mark.parametrize(
    ("vmm", "sign"),
    [
        ("qemu", "-device vfio-pci,id=fn0,bus=rp0,addr=00.0,host=0000:08:00.0"),
        ("libvirt", "<hostdev mode='subsystem' type='pci' managed='yes'>"),
        ("cloud-hypervisor", "path=/sys/bus/pci/devices/0000:08:00.0/"),
        ("crosvm", "--vfio /sys/bus/pci/devices/0000:08:00.0"),
        ("xl", '"0000:08:00.0@10,seize=1"'),
        ("nccl", 'busid="0000:01:00.0" class="0x030200" vendor="0x10de"'),
    ],
)
def test_each_target_is_printed(vmm: str, sign: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, *CARDS, "--vmm", vmm)
    assert code == exit_code.DONE
    assert sign in out
    assert "lost bandwidth" in err


def test_a_file_is_written_and_the_output_stays_empty(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "topo.xml"
    code, out, err = run(capsys, *CARDS, "--p2p", "--vmm", "nccl", "-o", str(path))
    assert (code, out) == (exit_code.DONE, "")
    assert f"nccl (islands) written to {path}" in err
    system = read(path.read_bytes())
    busids = [node.attributes["busid"] for node in system.root.walk() if node.tag == "pci"]
    assert busids == ["0000:23:00.0", "0000:25:00.0", "0000:26:00.0"]


def test_the_variant_asked_for_is_the_one_written(capsys: pytest.CaptureFixture[str]) -> None:
    _, flat, _ = run(capsys, *CARDS, "--vmm", "qemu")
    _, seed, _ = run(capsys, *CARDS, "--vmm", "qemu", "--variant", "seed")
    _, best, _ = run(capsys, *CARDS, "--vmm", "qemu", "--p2p")
    assert "pxb-pcie" not in flat
    assert "pcie-root-port-p2p,id=rp0,bus=pxb0,addr=01.0,chassis=1,slot=1,host=0000:00:03.0" in seed
    assert "pxb-pcie" in best
    assert "pcie-root-port-p2p" not in best


def test_the_machine_s_size_is_the_one_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--memory", "64G", "--cpus", "4", "--hugepages", "1G", "--iommufd", "--name", "train")
    _, out, _ = run(capsys, *CARDS, "--vmm", "qemu", *words)
    for sign in ("-name train", "-m 64G", "-smp 4", "hugetlbsize=1G", "iommufd,id=iommufd0"):
        assert sign in out
    _, out, _ = run(capsys, *CARDS, "--vmm", "qemu", "--variant", "replicated", "--no-numa")
    assert "numa" not in out
    body = document(capsys, *CARDS, *words)
    assert body["machine"] == {
        "memory": 64 << 30,
        "cpus": 4,
        "hugepages": 1 << 30,
        "iommufd": True,
        "pci_hole64": 64 << 30,
    }


def test_groups_that_are_torn_apart_are_told_of(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "01:00.1")
    assert code == exit_code.DONE
    assert "IOMMU group 33 of 0000:01:00.1 also holds 0000:01:00.0, 0000:01:00.2" in out


def test_a_guest_that_would_corrupt_data_is_a_no(capsys: pytest.CaptureFixture[str]) -> None:
    assembly = assemble("rp0(sw0 acs(nvme:a, nvme:b))")
    session = Session(kernel=assembly.kernel)
    words = (str(assembly["a"]), str(assembly["b"]), "--variant", "replicated")
    code, out, _ = run(capsys, *words, session=session)
    # Whoever has no processor in its files cannot tell.
    assert code == exit_code.DONE
    assert "unknown" in out
    code, out, _ = run(capsys, *words, "--cpu", "intel", session=session)
    assert code == exit_code.NO
    assert "bus-addr (PIX): CORRUPTS" in out
    assert "CORRUPTS: believes P2P that the host forbids (data corruption)" in out
    assert "on the host, for direct P2P by ATS:" in out
    assert "pci=config_acs=1x11101@" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("00:03.0",), "is a bridge"),
        (("08:00.0", "-o", "x"), "-o goes with --vmm"),
        (("08:00.0", "--memory", "lots"), "'lots' is no size"),
        (("08:00.0", "--memory", "1G", "--hugepages", "3M"), "huge pages are of 2 MiB or 1 GiB"),
        (("08:00.0", "--cpus", "0"), "at least one processor"),
        (("08:00.0", "--vmm", "libvirt", "--variant", "seed"), "seed variant"),
        (("08:00.0", "--vmm", "xl", "--viommu", "virtio"), "xl has no IOMMU"),
        (("05:00.0", "--vmm", "nccl"), "no GPU and no network card"),
        (("ff:00.0",), "no PCI function"),
        (("08:00.0", "--cpu", "z80"), "'z80' is no vendor of processors"),
    ],
)
def test_what_makes_no_sense_is_a_usage_error(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, *words)
    assert (code, out) == (exit_code.USAGE, "")
    assert message in err
    assert "Traceback" not in err


def test_a_description_without_registers_is_judged_as_far_as_it_goes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "node.xml"
    path.write_text(
        '<system version="1"><cpu numaid="1" arch="x86_64">'
        '<pci busid="0000:01:00.0" class="0x060400">'
        '<pci busid="0000:02:00.0" class="0x030200"/><pci busid="0000:03:00.0" class="0x020000"/>'
        "</pci></cpu></system>"
    )
    code = main(["vm", "plan", "gpu", "nic", "--p2p", "--host", str(path)])
    out = capsys.readouterr().out
    assert code == exit_code.DONE
    assert "unknown (PIX)" in out
    assert "sizes of BARs are not in this description" in out
