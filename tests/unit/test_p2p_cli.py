"""``vfiokit p2p`` on the packaged capture and on descriptions that tell less."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vfiokit.cli import exit as exit_code
from vfiokit.cli.main import main

DEMO = ("--host", "demo")
TREE = """\
<system version="1">
  <cpu numaid="0" arch="x86_64" vendor="GenuineIntel" affinity="ff" familyid="6" modelid="85">
    <pci busid="0000:10:00.0" class="0x060400" vendor="0x1000" device="0xc010">
      <pci busid="0000:11:00.0" class="0x030200" vendor="0x10de" device="0x2330"/>
      <pci busid="0000:12:00.0" class="0x020700" vendor="0x15b3" device="0x1021"/>
    </pci>
  </cpu>
  <cpu numaid="1" arch="x86_64" vendor="GenuineIntel" affinity="ff" familyid="6" modelid="85">
    <pci busid="0000:90:00.0" class="0x030200" vendor="0x10de" device="0x2330"/>
  </cpu>
</system>
"""


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    code = main(["p2p", *words])
    return code, capsys.readouterr().out


def document(capsys: pytest.CaptureFixture[str], *words: str) -> dict:
    return json.loads(run(capsys, *words, *DEMO, "--json")[1])


@pytest.fixture
def nccl(tmp_path: Path) -> str:
    file = tmp_path / "topology.xml"
    file.write_text(TREE, encoding="utf-8")
    return str(file)


def test_gpus_nics_and_drives_are_shown_with_vfs_folded(capsys):
    code, out = run(capsys, *DEMO)
    assert code == exit_code.DONE
    lines = out.splitlines()
    assert lines[0].split()[:4] == ["ADDRESS", "CLASS", "NUMA", "#0"]
    (virtual,) = [line for line in lines if "+ 15 VFs" in line]
    # Two different VFs meet below their root port, which redirects.
    assert virtual.split()[-2:] == ["PIX", "host"]
    assert any(line.startswith("PHB   a host bridge") for line in lines)
    assert not any(line.startswith("SYS") for line in lines), "only what is used is explained"
    assert "taken for GenuineIntel, by the host bridge 0000:00:00.0" in lines[-1]


def test_on_a_narrow_terminal_columns_come_in_parts_and_nothing_is_cut(monkeypatch, capsys):
    from vfiokit.cli.render import Output

    monkeypatch.setattr(Output, "terminal", True)
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.setenv("NO_COLOR", "1")
    _, out = run(capsys, *DEMO)
    assert "…" not in out
    assert out.count("ADDRESS") == out.count("0000:08:00.4 + 15 VFs") == 1
    # Six columns in two tables: every number heads one column and starts a row of each.
    assert [out.count(f"#{number}") for number in range(6)] == [3] * 6
    assert max(map(len, out.splitlines()[:10])) <= 70


def test_every_vf_has_a_row_when_asked_for(capsys):
    _, out = run(capsys, *DEMO, "--vfs")
    assert sum(line.startswith("#") for line in out.splitlines()) == 21


@pytest.mark.parametrize(
    ("option", "cell"), [("--codes", "PIX"), ("--types", "host"), ("--distance", "2")]
)
def test_one_kind_of_answer_alone(capsys, option, cell):
    _, out = run(capsys, *DEMO, option, "--from", "04:00.0", "--to", "04:00.1")
    row = next(line for line in out.splitlines() if "0000:04:00.0" in line)
    assert row.split() == ["#1", "0000:04:00.0", "nic", "0", cell]
    assert "#0  0000:04:00.1" in out, "a column that is no row is named below"


def test_codes_types_and_distances_exclude_each_other(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["p2p", "--codes", "--types", *DEMO])
    assert stopped.value.code == exit_code.USAGE


def test_selectors_may_be_several(capsys):
    found = document(capsys, "--from", "nvme,nic", "--to", "nic")
    assert {pair["provider"] for pair in found["pairs"]} == {
        "0000:04:00.0",
        "0000:04:00.1",
        "0000:05:00.0",
    }
    assert len(found["pairs"]) == 6
    assert found["cpu"] == {"vendor": "GenuineIntel", "family": 6, "deduced_from": "0000:00:00.0"}


def test_one_side_chosen_leaves_the_other_as_it_is(capsys):
    assert len(document(capsys, "--from", "nvme")["pairs"]) == 21
    assert len(document(capsys, "--to", "nvme")["pairs"]) == 21


def test_the_story_of_a_pair_holds_way_messages_reverse_and_remedies(capsys):
    code, out = run(capsys, "04:00.0", "04:00.1", *DEMO)
    assert code == exit_code.DONE
    for words in (
        "provider 0000:04:00.0, client 0000:04:00.1: thru-host-bridge, PIX, distance 2",
        "0000:00:02.2 root port, where they meet; ACS can 0x1f does 0x1d: P2P Request Redirect",
        "0000:04:00.1: ACS redirect is set between the client and provider (0000:04:00.0)",
        "the kernel logs on 0000:04:00.0",
        "pci=config_acs=xx10001@0000:00:02.2",
        "pci=disable_acs_redir=0000:00:02.2",
        "setpci -s 0000:00:02.2 116.w=0:c",
        "3 groups would be one: {0000:00:02.2} and {0000:04:00.0} and {0000:04:00.1}",
        "no Direct Translated P2P in 0000:00:02.2",
        "not possible on this machine",
    ):
        assert words in out


def test_a_pair_across_sockets_is_refused_with_exit_code_3(capsys):
    code, out = run(capsys, "80:01.0", "05:00.0", *DEMO)
    assert code == exit_code.NO
    assert "not-supported, SYS" in out
    assert "only for peers below the same host bridge" in out
    assert "no remedy by ACS for 0000:05:00.0 to 0000:80:01.0" in out
    assert "across the host bridge of pci0000:80 and pci0000:00" in out
    found = document(capsys, "80:01.0", "05:00.0")
    assert found["answer"]["rule"] == "same-bridge-only"
    assert found["reverse"]["provider"] == "0000:05:00.0"
    assert found["advice"]["hopeless"]


def test_another_processor_may_be_given(capsys):
    code, out = run(capsys, "80:01.0", "05:00.0", "--cpu", "amd:0x17", *DEMO)
    assert code == exit_code.DONE
    assert "AMD Zen" in out
    assert "is taken for" not in out


def test_one_provider_serves_several_clients(capsys):
    code, out = run(capsys, "05:00.0", "nic", "08:00.0", *DEMO)
    assert code == exit_code.DONE
    assert "0000:05:00.0 can serve all of these; the sum of the distances is 12" in out
    code, out = run(capsys, "05:00.0", "nic", "80:01.0", *DEMO)
    assert code == exit_code.NO
    assert "cannot serve all of these" in out


def test_remedies_for_all_chosen_pairs_name_each_port_once(capsys):
    _, out = run(capsys, "--remedy", *DEMO)
    assert out.startswith(
        "420 pairs: 0 pass below the host bridge already, 274 could, 146 cannot by any ACS setting"
    )
    assert "pci=config_acs=xx10001@0000:00:02.2;xx10001@0000:00:03.0" in out
    assert "18 groups would be one" in out
    assert "(and 145 more pairs)" in out


def test_what_if_shows_only_what_differs(capsys):
    code, out = run(capsys, "--what-if", "acs=0x11@00:02.2", *DEMO)
    assert code == exit_code.DONE
    assert "PIX thru-host-bridge 2  PIX bus-addr 2" in out
    assert "pairs: 2 of 441 answers differ" in out
    assert "0000:08:00.0" not in out
    _, out = run(capsys, "--what-if", "acs=0x1d@00:02.2", *DEMO)
    assert "groups: IOMMU groups stay as they are" in out
    assert "pairs: all 441 answers stay as they are" in out


def test_a_moved_card_is_shown_with_its_new_address(capsys):
    _, out = run(capsys, "05:00.0", "nic", "--what-if", "move=05:00.0@80:01.0", *DEMO)
    assert "address: 0000:05:00.0 → 0000:81:00.0" in out
    assert "PHB thru-host-bridge 4  SYS not-supported 4" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("04:00.0",), "a pair has two devices"),
        (("04:00.0", "05:00.0", "--from", "nic"), "not both"),
        (("nic", "05:00.0"), "names 2 functions"),
        (("04:00.0", "42:00.0"), "there is no PCI function 0000:42:00.0"),
        (("--cpu", "arm"), "'arm' is no vendor"),
        (("--what-if", "acs"), "is no change of a machine"),
        (("--from", "accelerator"), "answers to 'accelerator'"),
    ],
)
def test_a_request_that_makes_no_sense_is_a_usage_error(capsys, words, said):
    assert main(["p2p", *words, *DEMO]) == exit_code.USAGE
    assert said in capsys.readouterr().err


def test_a_description_without_acs_says_what_it_cannot_tell(capsys, nccl):
    code, out = run(capsys, "--host", nccl)
    assert code == exit_code.DONE
    rows = {line.split()[1]: line.split()[4:] for line in out.splitlines() if line[0] == "#"}
    assert rows["0000:11:00.0"] == ["X", "?", "PIX", "?", "SYS", "?"]
    assert "the processor is not known" in out
    code, out = run(capsys, "11:00.0", "12:00.0", "--host", nccl)
    assert code == exit_code.NO
    assert "ACS not known" in out
    code, out = run(capsys, "11:00.0", "12:00.0", "90:00.0", "--host", nccl)
    assert code == exit_code.NO
    assert "cannot be told" in out


def test_zen_decides_what_the_description_does_not_tell(capsys, nccl):
    _, out = run(capsys, "--host", nccl, "--cpu", "amd", "--types")
    rows = {line.split()[1]: line.split()[4:] for line in out.splitlines() if line[0] == "#"}
    assert rows["0000:11:00.0"] == ["?", "?", "host"]


def test_the_prompt_of_a_twin_knows_the_command(capsys):
    lines = ("p2p 04:00.0 04:00.1", "p2p 05:00.0 nic")
    words = [part for line in lines for part in ("-c", line)]
    assert main(["machine", *DEMO, *words]) == exit_code.DONE
    out = capsys.readouterr().out
    assert "thru-host-bridge, PIX, distance 2" in out
    assert "the sum of the distances is 8" in out


def test_a_host_without_such_devices_says_so(capsys, tmp_path):
    folder = tmp_path / "sys/bus/pci/devices"
    folder.mkdir(parents=True)
    code, out = run(capsys, "--host", str(tmp_path))
    assert code == exit_code.DONE
    assert "no GPU, NIC, NVMe drive or accelerator" in out


def test_the_matrix_needs_no_numpy():
    """Starting numpy costs more than the whole answer."""
    program = (
        "import sys; from vfiokit.cli.main import main; "
        "code = main(['p2p', '--host', 'demo']); "
        "sys.exit(code or 'numpy' in sys.modules or 'json' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
