"""The table of what a real kernel decides about peer-to-peer DMA, and a plain model of its rule."""

from __future__ import annotations

from collections import Counter
from typing import Any

import p2p_boots
import p2p_format
import pytest
from p2p_format import Json

from vfiokit.isolation import compare, predict
from vfiokit.lab import Lab
from vfiokit.p2p import Cpu, Peers
from vfiokit.p2p.matrix import KINDS
from vfiokit.pci.address import Bdf

SCENARIOS: list[Json] = p2p_format.load()["scenarios"]

# -- the rule, as drivers/pci/p2pdma.c of Linux 7.2 has it

REQUEST_REDIRECT, COMPLETION_REDIRECT, EGRESS_CONTROL = 0x04, 0x08, 0x20
SAME_BRIDGE_ONLY = {0x3C00, 0x3C01, 0x2F00, 0x2F01}
ANYWHERE = {
    *(0x2030, 0x2031, 0x2032, 0x2033, 0x2020, 0x09A2, 0x0B25, 0x0CFE, 0x11FB, 0x1212, 0x1216),
    *(0x4940, 0x4942, 0x4944, 0x4946, 0x4948),
}
INTEL, GOOGLE = 0x8086, 0x1AE0
MESSAGE_ROOM = 127


class Model:
    """Map type, distance and messages from configuration bytes, ids and the CPU."""

    def __init__(self, scenario: Json) -> None:
        self.functions: Json = scenario["functions"]
        self.cpu = scenario["cpu"]
        self.owners = {
            config[0x19]: bdf
            for bdf, config in ((bdf, each["config"]) for bdf, each in self.functions.items())
            if config[0x0E] & 0x7F == 1
        }

    def chain(self, bdf: str) -> list[str]:
        found = []
        at: str | None = bdf
        while at is not None:
            found.append(at)
            physical = self.functions[at]["physfn"] or at
            at = self.owners.get(int(physical[5:7], 16))
        return found

    def redirects(self, bdf: str) -> bool:
        registers = p2p_format.acs(self.functions[bdf]["config"])
        wanted = REQUEST_REDIRECT | COMPLETION_REDIRECT | EGRESS_CONTROL
        return registers is not None and bool(registers[1] & wanted)

    def host_bridge(self, bdf: str) -> str | None:
        """The first function of the root bus, where it is 00.0 or a root port."""
        bus = self.chain(bdf)[-1][:7]
        first = min(each for each in self.functions if each[:7] == bus)
        return first if first.endswith("00.0") or self.is_root_port(first) else None

    def is_root_port(self, bdf: str) -> bool:
        config = self.functions[bdf]["config"]
        offset = config[0x34]
        while offset and config[offset] != 0x10:
            offset = config[offset + 1]
        return bool(offset) and config[offset + 2] >> 4 == 4

    def is_approved(self, host_bridge: str | None, *, same: bool) -> bool:
        if host_bridge is None:
            return False
        function = self.functions[host_bridge]
        vendor, device = int(function["vendor"], 16), int(function["device"], 16)
        if vendor == INTEL and device in SAME_BRIDGE_ONLY:
            return same
        return vendor == GOOGLE or (vendor == INTEL and device in ANYWHERE)

    def decide(self, provider: str, client: str) -> Json:
        ours, theirs = self.chain(provider), self.chain(client)
        common = next((bdf for bdf in ours if bdf in theirs), None)
        redirecting: list[str] = []
        if common is None:
            distance = len(ours) + len(theirs)
        else:
            distance = ours.index(common) + theirs.index(common)
            passed = [*ours[: ours.index(common) + 1], *theirs[: theirs.index(common)]]
            redirecting = [bdf for bdf in passed if self.redirects(bdf)]
            if not redirecting:
                return {"map_type": "BUS_ADDR", "distance": distance, "messages": []}
        messages = self.acs_messages(provider, redirecting) if redirecting else []
        approved = self.cpu["vendor"] == "AuthenticAMD" and self.cpu["family"] >= 0x17
        if not approved:
            bridges = {self.host_bridge(provider), self.host_bridge(client)}
            same = ours[-1][:7] == theirs[-1][:7]
            approved = all(self.is_approved(each, same=same) for each in bridges)
            if redirecting and not approved:
                (bridge,) = bridges
                if bridge is not None:
                    ids = f"{self.functions[bridge]['vendor']}:{self.functions[bridge]['device']}"
                    words = ids.replace("0x", "")
                    messages.append(f"{bridge}: Host bridge not in P2PDMA whitelist: {words}")
        if approved:
            kind = "THRU_HOST_BRIDGE"
        else:
            kind = "NOT_SUPPORTED"
            messages.append(
                "cannot be used for peer-to-peer DMA as the client and provider "
                f"({provider}) do not share an upstream bridge or whitelisted host bridge"
            )
        return {"map_type": kind, "distance": distance, "messages": messages}

    @staticmethod
    def acs_messages(provider: str, redirecting: list[str]) -> list[str]:
        listed = ";".join(redirecting)[:MESSAGE_ROOM]
        return [
            f"ACS redirect is set between the client and provider ({provider})",
            "to disable ACS redirect for this path, add the kernel parameter: "
            f"pci=disable_acs_redir={listed}",
        ]


# -- the table


def pairs() -> list[tuple[Json, Json]]:
    return [(scenario, pair) for scenario in SCENARIOS for pair in scenario["pairs"]]


def test_every_scenario_of_the_tool_is_in_the_table_once() -> None:
    names = [scenario["name"] for scenario in SCENARIOS]
    assert len(names) >= 40
    assert names == [
        p2p_format.name_of(boot, phase) for boot in p2p_boots.BOOTS for phase in boot.phases
    ]
    assert len(set(names)) == len(names)


def test_the_table_holds_every_kind_of_answer_often() -> None:
    kinds = Counter(pair["map_type"] for _, pair in pairs())
    assert set(kinds) == {"BUS_ADDR", "THRU_HOST_BRIDGE", "NOT_SUPPORTED"}
    assert min(kinds.values()) >= 200, kinds
    assert {scenario["iommu"] for scenario in SCENARIOS} >= {"none", "intel", "intel-pt", "virtio"}
    assert max(len(scenario["host_bridges"]) for scenario in SCENARIOS) == 3
    assert {scenario["cpu"]["vendor"] for scenario in SCENARIOS} == {
        "AuthenticAMD",
        "GenuineIntel",
        "HygonGenuine",
    }


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario["name"])
def test_a_scenario_is_complete_and_agrees_with_its_bytes(scenario: Json) -> None:
    functions = scenario["functions"]
    drives = [bdf for bdf, each in functions.items() if each["class"] == "0x010802"]
    assert set(drives) <= set(scenario["names"].values())
    providers = {pair["provider"] for pair in scenario["pairs"]}
    listed = [(pair["provider"], pair["client"]) for pair in scenario["pairs"]]
    assert sorted(listed) == sorted((one, other) for one in providers for other in drives)
    model = Model(scenario)
    changed = {scenario["names"].get(name, name) for name in scenario["writes"]["ids"]}
    for bdf, each in functions.items():
        assert each["parent"] in functions or each["parent"] in scenario["host_bridges"]
        if each["physfn"] is None:
            above = model.chain(bdf)[1:2]
            assert [each["parent"]] == (above or [f"pci{bdf[:7]}"])
            ids = [int.from_bytes(each["config"][at : at + 2], "little") for at in (0, 2)]
            told = [int(each["vendor"], 16), int(each["device"], 16)]
            assert (ids == told) == (bdf not in changed)
    for name, value in scenario["writes"]["acs_control"].items():
        registers = p2p_format.acs(functions[scenario["names"][name]]["config"])
        assert registers is not None
        assert registers[1] == value & registers[0]


def test_a_plain_model_of_the_rule_says_the_same_for_every_pair() -> None:
    wrong: list[Any] = []
    for scenario, pair in pairs():
        expected = Model(scenario).decide(pair["provider"], pair["client"])
        found = {
            "map_type": pair["map_type"],
            "distance": pair["distance"],
            "messages": [unsigned(message) for message in pair["messages"]],
        }
        if found != expected:
            wrong.append((scenario["name"], pair, expected))
    assert not wrong


def peers_of(scenario: Json) -> Peers:
    cpu = scenario["cpu"]
    return Peers(p2p_format.topology(scenario), cpu=Cpu(cpu["vendor"], cpu["family"], 0))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario["name"])
def test_p2p_says_what_the_kernel_said_message_by_message(scenario: Json) -> None:
    peers = peers_of(scenario)
    assert scenario["pairs"]
    for pair in scenario["pairs"]:
        answer = peers.map_type(Bdf.parse(pair["provider"]), Bdf.parse(pair["client"]))
        assert answer.map_type.name == pair["map_type"]
        assert answer.distance == pair["distance"]
        # The kernel puts the driver's name in front, which no configuration space tells.
        assert list(answer.messages) == [said.partition(" ")[2] for said in pair["messages"]]
        assert answer.unknown == ()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario["name"])
def test_the_matrix_says_what_the_kernel_said(scenario: Json) -> None:
    providers = list(dict.fromkeys(Bdf.parse(pair["provider"]) for pair in scenario["pairs"]))
    clients = list(dict.fromkeys(Bdf.parse(pair["client"]) for pair in scenario["pairs"]))
    matrix = peers_of(scenario).matrix(providers, clients)
    for pair in scenario["pairs"]:
        row = providers.index(Bdf.parse(pair["provider"]))
        column = clients.index(Bdf.parse(pair["client"]))
        assert KINDS[matrix.map_types[row, column]].name == pair["map_type"]
        assert matrix.distances[row, column] == pair["distance"]


def unsigned(message: str) -> str:
    """Without the driver and address in front, unless a host bridge is told of."""
    driver_and_address, _, words = message.partition(": ")
    if words.startswith("Host bridge"):
        return f"{driver_and_address.split()[1]}: {words}"
    return words


def test_messages_are_said_about_the_client() -> None:
    for _, pair in pairs():
        for message in pair["messages"]:
            if "Host bridge not in" not in message:
                assert message.startswith(f"nvme {pair['client']}: ")


def test_data_arrives_where_the_kernel_says_that_it_can() -> None:
    for scenario, pair in pairs():
        translated = scenario["iommu"] in ("intel", "virtio")
        crossing = pair["provider"] != pair["client"]
        if pair["map_type"] == "NOT_SUPPORTED":
            assert (pair["errno"], pair["data"]) == ("EINVAL", "wrong")
        elif pair["map_type"] == "BUS_ADDR" and crossing and translated:
            # QEMU has no switch that routes between its ports: the IOMMU stops the transfer.
            assert (pair["errno"], pair["data"]) == ("", "wrong")
        else:
            assert (pair["errno"], pair["data"]) == ("", "right")


@pytest.mark.parametrize(
    "scenario",
    [
        scenario
        for scenario in SCENARIOS
        if scenario["iommu"] != "none" and not any(scenario["writes"].values())
    ],
    ids=lambda scenario: scenario["name"],
)
def test_groups_are_predicted_from_the_table_s_bytes(scenario: Json) -> None:
    topology = p2p_format.topology(scenario)
    comparison = compare(predict(topology), topology)
    assert comparison.differences == ()
    assert comparison.total == comparison.agree > 5


# -- the table against the kernel

AGAIN = ("acs of an IOMMU", "nested", "virtual functions", "ten redirects in a row")
"""Titles of the boots that are recorded anew, those with an Intel CPU: they have most to say."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "boot",
    [boot for boot in p2p_boots.BOOTS if boot.title in AGAIN and boot.cpu == "intel"],
    ids=lambda boot: f"{boot.title}, {boot.iommu}",
)
def test_a_real_kernel_decides_as_the_table_says(lab: Lab, boot: p2p_boots.Boot) -> None:
    known = {scenario["name"]: p2p_format.comparable(scenario) for scenario in SCENARIOS}
    for phase, answer in zip(boot.phases, p2p_boots.run(lab, boot), strict=True):
        configs: dict[str, str] = {}
        recorded = p2p_format.scenario(boot, phase, answer, configs)
        p2p_format.resolve(recorded, configs)
        assert p2p_format.comparable(recorded) == known[recorded["name"]]
