"""Topologies as text and as trees: every tree survives the way through text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfiokit.pci.blueprint import (
    DEFAULTS,
    EXPRESS_ONLY,
    MIB,
    SIZE_OPTIONS,
    Blueprint,
    BlueprintError,
    Bridge,
    BridgeKind,
    DownstreamPort,
    Endpoint,
    HostBridge,
    Ids,
    Model,
    RootPort,
    Slot,
    Switch,
)


class Names:
    """Unique names, some of which look like the ones given automatically."""

    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw
        self._count = 0

    def next(self, kind: str) -> str:
        self._count += 1
        style = self._draw(st.integers(0, 2))
        return [f"{kind}{self._count}", f"n{self._count}", f"my-{kind}.{self._count}"][style]


numbers = st.integers(0, 0xFFFF)
ids = st.none() | st.builds(Ids, numbers, numbers)
links = st.fixed_dictionaries(
    {"speed": st.sampled_from(["", "2.5", "16"]), "width": st.sampled_from([0, 1, 16])}
)


def draw_endpoint(draw: st.DrawFn, names: Names, *, express: bool = True) -> Endpoint:
    models = [model for model in Model if express or model not in EXPRESS_ONLY]
    model = draw(st.sampled_from(models))
    options = {}
    for option in DEFAULTS[model]:
        if not draw(st.booleans()):
            continue
        if option == "size":
            options[option] = draw(st.integers(1, 1 << 20)) * 4096
        elif option in SIZE_OPTIONS:
            options[option] = 1 << draw(st.integers(12, 34))
        elif option == "dma_bits":
            options[option] = draw(st.integers(12, 64))
        else:
            options[option] = draw(st.integers(1, 127))
    return Endpoint(model, names.next(str(model)), ids=draw(ids), **options)


def draw_slot(draw: st.DrawFn, names: Names, *, express: bool = True) -> Slot:
    count = draw(st.integers(1, 8))
    functions = tuple(draw_endpoint(draw, names, express=express) for _ in range(count))
    return Slot(names.next("slot"), functions)


def draw_child(draw: st.DrawFn, names: Names, depth: int):
    kind = draw(st.sampled_from(["none", "endpoint", "slot", "switch", "bridge"][: 5 - depth]))
    if kind == "none":
        return None
    if kind == "endpoint":
        return draw_endpoint(draw, names)
    if kind == "slot":
        return draw_slot(draw, names)
    if kind == "bridge":
        return draw_bridge(draw, names, BridgeKind.PCIE_TO_PCI, depth + 1)
    switch = names.next("sw")
    ports = []
    for index in range(draw(st.integers(0, 3))):
        usual = draw(st.booleans())
        name = f"{switch}.{index}" if usual else names.next("port")
        child = draw_child(draw, names, depth + 1)
        ports.append(DownstreamPort(name, child, draw(st.booleans()), ids=draw(ids), **draw(links)))
    return Switch(switch, tuple(ports))


def draw_bridge(draw: st.DrawFn, names: Names, kind: BridgeKind, depth: int) -> Bridge:
    items = []
    for _ in range(draw(st.integers(0, 2))):
        choice = draw(st.integers(0, 2 if depth < 3 else 1))
        if choice == 0:
            items.append(draw_endpoint(draw, names, express=False))
        elif choice == 1:
            items.append(draw_slot(draw, names, express=False))
        else:
            items.append(draw_bridge(draw, names, BridgeKind.PCI_TO_PCI, depth + 1))
    return Bridge(kind, names.next(str(kind)), tuple(items))


def draw_root_item(draw: st.DrawFn, names: Names, at: int | None):
    kind = draw(st.sampled_from(["rp", "rp", "endpoint", "bridge"]))
    if kind == "endpoint":
        endpoint = draw_endpoint(draw, names)
        return Endpoint(endpoint.model, endpoint.name, at=at)
    if kind == "bridge":
        bridge = draw_bridge(draw, names, draw(st.sampled_from(BridgeKind)), 2)
        return Bridge(bridge.kind, bridge.name, bridge.items, at)
    child = draw_child(draw, names, 0)
    return RootPort(names.next("rp"), child, draw(st.booleans()), at, ids=draw(ids), **draw(links))


@st.composite
def blueprints(draw: st.DrawFn) -> Blueprint:
    names = Names(draw)
    bridges = []
    for index in range(draw(st.integers(1, 3))):
        fixed = [
            *draw(st.sets(st.integers(2, 28), max_size=2)),
            *draw(st.lists(st.none(), max_size=2)),
        ]
        items = tuple(draw_root_item(draw, names, at) for at in fixed)
        name = "hb0" if index == 0 else names.next("hb")
        bridges.append(HostBridge(name, items, index * 0x40, draw(ids)))
    return Blueprint(tuple(bridges))


@given(blueprints())
def test_every_tree_survives_the_way_through_text(blueprint: Blueprint) -> None:
    assert Blueprint.parse(str(blueprint)) == blueprint


@given(blueprints())
def test_every_function_has_a_place_of_its_own(blueprint: Blueprint) -> None:
    places = blueprint.places()
    assert len({place.bdf for place in places.values()}) == len(places)
    assert {node.name for node in blueprint.endpoints()} <= set(places)
    for place in places.values():
        assert (place.bdf.device, place.bdf.function) == place.path[-1]
        assert place.bdf.bus >= place.bus


@given(st.text(alphabet="rpswnvme edu:=(),#0123acs\nx", max_size=60))
def test_any_text_is_a_topology_or_a_clear_error(text: str) -> None:
    try:
        blueprint = Blueprint.parse(text)
    except BlueprintError:
        return
    assert Blueprint.parse(str(blueprint)) == blueprint


def test_the_short_form_means_what_it_says() -> None:
    blueprint = Blueprint.parse("rp0(sw acs(nvme:a cmb=16, nvme:b)), rp1(edu)")
    assert blueprint == Blueprint(
        (
            HostBridge(
                "hb0",
                (
                    RootPort(
                        "rp0",
                        Switch(
                            "sw0",
                            (
                                DownstreamPort(
                                    "sw0.0", Endpoint(Model.NVME, "a", cmb=16 * MIB), acs=True
                                ),
                                DownstreamPort("sw0.1", Endpoint(Model.NVME, "b"), acs=True),
                            ),
                        ),
                    ),
                    RootPort("rp1", Endpoint(Model.EDU, "edu0")),
                ),
            ),
        )
    )
    assert str(blueprint) == "rp0(sw0 acs(nvme:a cmb=16M, nvme:b)), rp1(edu0)"


def test_places_follow_depth_first_bus_numbers() -> None:
    blueprint = Blueprint.parse("rp0(sw acs(nvme:a, nvme:b)), rp1(edu), hb(rp2(igb))")
    places = blueprint.places()
    assert {name: str(place.bdf)[5:] for name, place in places.items()} == {
        "rp0": "00:02.0",
        "sw0": "01:00.0",
        "sw0.0": "02:00.0",
        "a": "03:00.0",
        "sw0.1": "02:01.0",
        "b": "04:00.0",
        "rp1": "00:03.0",
        "edu0": "05:00.0",
        "rp2": "40:01.0",
        "igb0": "41:00.0",
    }
    assert places["b"].selector == "pci0000:00/02.0/00.0/01.0/00.0"
    assert places["igb0"].selector == "pci0000:40/01.0/00.0"


def test_at_keeps_its_number_and_the_others_go_around_it() -> None:
    places = Blueprint.parse("edu:a, edu:b at=2, slot at=1c(edu:c, edu:d)").places()
    assert [str(places[name].bdf)[5:] for name in "abcd"] == [
        "00:03.0",
        "00:02.0",
        "00:1c.0",
        "00:1c.1",
    ]


def test_names_given_automatically_avoid_those_written() -> None:
    blueprint = Blueprint.parse("edu, edu:edu0, edu, rp(edu)")
    assert [node.name for node in blueprint.endpoints()] == ["edu1", "edu0", "edu2", "edu3"]


def test_comments_and_line_breaks_separate_words() -> None:
    text = "# a switch\nrp0(\n  sw(nvme:a,  # left\n     nvme:b)\n)"
    assert Blueprint.parse(text) == Blueprint.parse("rp0(sw(nvme:a,nvme:b))")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rp0(nvme", "column 9: the parenthesis of rp is not closed"),
        ("rp0(nvme))", "column 10: ')' where the text should end"),
        ("rp0(nvme,)", "column 10: a device or bridge is missing before ')'"),
        ("rp0(\n  gpu)", "line 2, column 3: 'gpu' is none of hb, rp"),
        ("nvme size=x", "'x' is no value for size="),
        ("nvme size=12P", "'12P' is no value for size="),
        ("edu cmb=16", "edu has no option 'cmb'"),
        ("nvme cmb=3", "a BAR is a power of two"),
        ("rp acs noacs", "noacs is given twice"),
        ("rp acs=1", "write acs"),
        ("edu(nvme)", "nothing can be below edu"),
        ("sw(nvme)", "sw cannot sit on a root bus"),
        ("rp(edu, edu)", "a link leads to one device, not 2"),
        ("rp(rp)", "rp cannot be below"),
        ("rp(edu at=3)", "always device 0"),
        ("rp(pci-bridge)", "cannot sit on a PCI Express link"),
        ("rp(pcie-pci-bridge(nvme))", "cannot sit on the conventional bus"),
        ("rp:a, rp:a", "two nodes are named 'a'"),
        ("rp:1a", "is no name"),
        ("edu at=2, edu at=2", "two items at=2"),
        ("edu at=20", "not a free device number"),
        ("slot(edu at=1)", "at= belongs to the slot"),
        ("slot", "holds 1 to 8 functions"),
        ("slot(sw)", "slot holds functions and root ports only"),
        ("hb(hb)", "stands at the top"),
        ("rp, hb bus=0(rp)", "belongs into the parentheses"),
        ("hb bus=100(rp)", "not between 0 and 0xff"),
        ("rp speed=3", "speed=3 is none of"),
        (",".join(["rp"] * 28), "no device number left"),
        (",".join(["rp"] * 4) + ", hb bus=2(rp)", "bus 0x2 is taken"),
        ("rp(" * 70, "nested more than 64 deep"),
    ],
)
def test_a_mistake_is_named(text: str, message: str) -> None:
    with pytest.raises(BlueprintError) as caught:
        Blueprint.parse(text).places()
    assert message in str(caught.value)
