"""``vfiokit bandwidth`` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vfiokit.cli import exit as exit_code
from vfiokit.cli.bandwidth import _Text
from vfiokit.cli.main import main
from vfiokit.cli.render import Output
from vfiokit.p2p import Peers
from vfiokit.p2p.bandwidth import PARAMETERS, lifts, parse_flows, predict
from vfiokit.p2p.bandwidth.sketch import sketch
from vfiokit.p2p.remedy import advise

BOX = "rp(sw acs(nvme:gpu0, nvme:gpu1, nvme:nic0, nvme:nic1))"


def document(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict]:
    code = main(["bandwidth", *words, "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_captured_link_limits_and_the_text_says_where(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["bandwidth", "nvme > memory", "--host", "demo"]) == exit_code.DONE
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["FLOW", "Gb/s", "GB/s", "LIMITED", "BY"]
    assert lines[1].startswith("0000:05:00.0 > memory")
    assert lines[1].endswith("link 0000:00:02.0 up, 8 GT/s x4")


def test_the_document_adds_up(capsys: pytest.CaptureFixture[str]) -> None:
    code, body = document(capsys, "nic <> gpu @392", "--topology", BOX)
    assert code == exit_code.DONE
    assert body["schema"] == "vfiokit/bandwidth/v1"
    assert body["host"] == "topology"
    assert [flow["kind"] for flow in body["flows"]] == ["write", "read"] * 2
    assert body["total_gbps"] == pytest.approx(sum(flow["gbps"] for flow in body["flows"]))
    full = [load for load in body["loads"] if load["used_gbps"] >= 0.999 * load["capacity_gbps"]]
    assert {load["resource"] for load in full} == {flow["bottleneck"] for flow in body["flows"]} | {
        "link 0000:00:02.0 down"
    }
    assert all(flow["request"]["root_complex"] == "0000:00:02.0" for flow in body["flows"])
    best = body["lifts"][0]
    assert best["kind"] == "acs"
    assert best["gbps"] == pytest.approx([392] * 4)
    assert best["gain"] == pytest.approx(best["total_gbps"] / body["total_gbps"])


def test_redirect_off_ats_and_settings_change_the_answer(
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = ("nic <> gpu @392", "--topology", BOX)
    plain = document(capsys, *asked)[1]["total_gbps"]
    off = document(capsys, *asked, "--redirect", "off")[1]
    assert off["total_gbps"] == pytest.approx(4 * 392)
    assert off["what_if"]["redirect"] is False
    ats = document(capsys, *asked, "--ats", "on")[1]["total_gbps"]
    assert ats == pytest.approx(plain)  # without Direct Translated nothing is gained
    smaller = document(capsys, *asked, "--set", "completion_payload=64")[1]
    assert smaller["total_gbps"] < plain
    assert smaller["parameters"]["completion_payload"] == 64


def test_acs_of_single_ports_can_be_asked_about(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("nic0 > gpu0", "gpu0 > nic0", "--topology", BOX)
    plain = document(capsys, *asked)[1]
    one = document(capsys, *asked, "--acs", "0@sw0.2")[1]
    both = document(capsys, *asked, "--acs", "0@02:00.0", "--acs", "0x11@02:02.0")[1]
    assert both["what_if"]["acs"] == {"0000:02:00.0": 0, "0000:02:02.0": 0x11}
    assert [len(body["flows"][0]["redirecting"]) for body in (plain, one, both)] == [1, 0, 0]
    assert [len(body["flows"][1]["redirecting"]) for body in (plain, one, both)] == [1, 1, 0]
    assert plain["total_gbps"] < one["total_gbps"] < both["total_gbps"] * 1.001
    assert plain["names"]["nic0"] == plain["flows"][0]["source"]


def test_a_parameter_file_is_read_and_the_command_line_wins(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "given.toml"
    file.write_text("mps = 128\ntags = 7\n")
    words = ("nvme > memory", "--host", "demo", "--params", str(file), "--set", "mps=512")
    given = document(capsys, *words)[1]["parameters"]
    assert (given["mps"], given["tags"]) == (512, 7)


def test_a_topology_may_be_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "box.txt"
    file.write_text(BOX + "  # a quarter of it\n")
    code, body = document(capsys, "nic0 > gpu0", "--topology", str(file))
    assert code == exit_code.DONE
    assert body["flows"][0]["source"] == "0000:05:00.0"


def test_what_does_not_get_through_has_an_exit_code_of_its_own(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["nic0 > gpu0", "--topology", BOX, "--set", "rc_p2p_allowed=0"]
    assert main(["bandwidth", *words]) == exit_code.NO
    out = capsys.readouterr().out
    assert "the root complex does not forward between devices" in out
    assert "from nothing" in out


def test_dma_of_the_root_complex_itself_does_not_stay_inside_a_device(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["bandwidth", "00:04.0 > memory", "--host", "demo"]) == exit_code.DONE
    assert "stays inside the root complex: no link is crossed" in capsys.readouterr().out


def test_a_remedy_by_acs_says_what_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    drawn = sketch(BOX)
    flows = parse_flows(drawn.topology, ["nic <> gpu @392"], names=drawn.names)
    prediction = predict(drawn.topology, flows)
    _Text(Output(), {}).print(prediction, lifts(drawn.topology, flows, prediction), verbose=False)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    pairs = [(flow.source, flow.destination) for flow in flows]
    remedy = advise(Peers(drawn.topology), pairs).remedies[0]
    start = lines.index(remedy.config_acs)
    assert lines[start - 1].startswith("1568.0 Gb/s in all, 3.53 times: ACS Request")
    assert tuple(lines[start + 1 : start + 1 + len(remedy.setpci)]) == remedy.setpci
    lift = document(capsys, "nic <> gpu @392", "--topology", BOX)[1]["lifts"][0]
    assert (lift["config_acs"], lift["setpci"]) == (remedy.config_acs, list(remedy.setpci))


def test_a_flow_inside_a_device_has_no_number_in_text_or_document(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["08:00.4 > 08:00.5", "--host", "demo"]
    assert main(["bandwidth", *words]) == exit_code.DONE
    assert "stays inside the device" in capsys.readouterr().out
    body = document(capsys, *words)[1]
    assert body["flows"][0]["gbps"] is None
    assert body["total_gbps"] is None


def test_flows_that_are_alike_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bandwidth", "nvme > memory x4", "--host", "demo"]) == exit_code.DONE
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:6] == ["0000:05:00.0", ">", "memory", "x4,", "each", "7.2"]
    assert lines[2].split()[:4] == ["all", "4", "flows", "28.7"]


def test_details_show_the_way_and_the_load(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bandwidth", "nic0 < gpu0", "--topology", BOX, "-v"]) == exit_code.DONE
    out = capsys.readouterr().out
    assert "  way        up sw0.2, up rp0, down rp0, down sw0.0" in out
    assert "  data come  up sw0.0, up rp0, down rp0, down sw0.2" in out
    assert "100%" in out


def test_every_parameter_is_listed_with_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bandwidth", "--parameters"]) == exit_code.DONE
    out = capsys.readouterr().out
    assert all(f"{parameter.name} = " in out for parameter in PARAMETERS)
    assert out.count("  source: ") == len(PARAMETERS)
    _, body = document(capsys, "--parameters", "--set", "mps=512")
    listed = {row["name"]: row for row in body["parameters"]}
    assert (listed["mps"]["value"], listed["mps"]["default"]) == (512, 256)
    assert all(row["source"] and row["meaning"] and row["unit"] for row in listed.values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no flow"),
        (("nvme",), "no flow"),
        (("nvme > nothing",), "names no device"),
        (("nvme > memory", "--set", "mps"), "name=number"),
        (("nvme > memory", "--set", "speed=3"), "no parameter 'speed'"),
        (("nvme > memory", "--topology", "rp0("), "topology"),
        (("nvme > memory", "--acs", "0x80@00:02.0"), "BITS@PORT"),
        (("nvme > memory", "--acs", "off@00:02.0"), "BITS@PORT"),
        (("nvme > memory", "--acs", "0x5d"), "BITS@PORT"),
        (("nvme > memory", "--acs", "0x5d@ff:00.0"), "ff:00.0"),
    ],
)
def test_a_bad_question_is_a_usage_error_with_a_hint(
    words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bandwidth", *words, "--host", "demo"]) == exit_code.USAGE
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err


def test_files_that_cannot_be_read_are_errors(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    missing = ["--params", str(tmp_path / "nowhere.toml")]
    assert main(["bandwidth", "nvme > memory", "--host", "demo", *missing]) == exit_code.FAILED
    assert "nowhere.toml" in capsys.readouterr().err
