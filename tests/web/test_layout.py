"""Where things are drawn: nothing twice, nothing on top of something else."""

from __future__ import annotations

import random

import pytest
from servers import function, gpu_server, repeated

from vfiokit.pci.capability.express import PortType
from vfiokit.pci.topology import Function, Topology
from vfiokit.web.inventory import Inventory, collect
from vfiokit.web.layout import CHIP_HEIGHT, CHIP_WIDTH, Drawing, Placed, chip_place, draw


def _numbers(drawing: Drawing) -> list[int]:
    return [item.number for box in drawing.boxes for item in box.node.items]


def _overlap(one: Placed, other: Placed) -> bool:
    return (
        one.x < other.x + other.width
        and other.x < one.x + one.width
        and one.y < other.y + other.height
        and other.y < one.y + one.height
    )


def _assert_well_drawn(inventory: Inventory) -> Drawing:
    drawing = draw(inventory)
    assert sorted(_numbers(drawing)) == list(range(len(inventory.items)))
    for box in drawing.boxes:
        assert box.x >= 0
        assert box.y >= 0
        assert box.x + box.width <= drawing.width
        assert box.y + box.height <= drawing.height
    ordered = sorted(drawing.boxes, key=lambda box: box.y)
    for index, box in enumerate(ordered):
        for other in ordered[index + 1 :]:
            if other.y >= box.y + box.height:
                break
            assert not _overlap(box, other), (box.node, other.node)
    return drawing


def _random_machine(seed: int) -> Topology:
    """Ports, switches and cards at random, every bus number once."""
    source = random.Random(seed)
    functions: list[Function] = []
    free = iter(range(1, 256))

    def card(bus: int) -> None:
        for number in range(source.choice((1, 1, 2, 8))):
            functions.append(
                function(f"{bus:02x}:00.{number}", ids=(1, 2),
                         class_code=source.choice((0x030200, 0x020000, 0x088000)))
            )  # fmt: skip

    def below(bus: int, depth: int) -> None:
        if depth == 0 or source.random() < 0.4:
            card(bus)
            return
        middle = next(free, None)
        if middle is None:
            return
        functions.append(function(f"{bus:02x}:00.0", ids=(3, 4), class_code=0x060400,
                                  port=PortType.UPSTREAM, secondary=middle))  # fmt: skip
        for slot in range(source.randint(0, 4)):
            last = next(free, None)
            if last is None:
                return
            functions.append(
                function(
                    f"{middle:02x}:{slot:02x}.0",
                    ids=(3, 5),
                    class_code=0x060400,
                    port=PortType.DOWNSTREAM,
                    secondary=last,
                    acs=source.choice((None, 0, 0x1D)),
                    link=("8 GT/s", 4),
                )
            )
            below(last, depth - 1)

    for slot in range(source.randint(0, 12)):
        bus = next(free, None)
        if bus is None:
            break
        functions.append(function(f"00:{slot:02x}.0", ids=(6, 7), class_code=0x060400,
                                  port=PortType.ROOT_PORT, secondary=bus))  # fmt: skip
        if source.random() < 0.8:
            below(bus, 3)
    for slot in range(source.randint(0, 18)):
        functions.append(function(f"00:{slot + 12:02x}.0", ids=(8, 9), class_code=0x088000))
    return Topology(functions)


@pytest.mark.parametrize("seed", range(60))
def test_any_machine_is_drawn_whole_and_without_overlap(seed: int) -> None:
    _assert_well_drawn(collect(_random_machine(seed)))


def test_server_and_gpu_server_are_drawn_whole(demo: Topology) -> None:
    _assert_well_drawn(collect(demo))
    _assert_well_drawn(collect(gpu_server()))


def test_nothing_to_draw_is_an_empty_drawing() -> None:
    drawing = draw(collect(Topology([])))
    assert drawing.boxes == ()
    assert drawing.width > 0
    assert drawing.height > 0


def test_children_stand_to_the_right_of_their_parents(demo: Topology) -> None:
    for wire in draw(collect(demo)).wires:
        assert wire.child.x > wire.parent.x
        assert wire.child.y >= wire.parent.y


def test_chips_keep_inside_their_box(demo: Topology) -> None:
    for box in draw(collect(demo)).boxes:
        if box.node.kind == "chips":
            places = [chip_place(index) for index in range(len(box.node.items))]
            assert len(set(places)) == len(places)
            assert max(x for x, _y in places) + CHIP_WIDTH <= box.width
            assert max(y for _x, y in places) + CHIP_HEIGHT <= box.height


def test_numa_nodes_have_bands_in_order() -> None:
    drawing = draw(collect(gpu_server()))
    assert [band.title for band in drawing.bands] == ["NUMA node 0", "NUMA node 1"]
    first, second = drawing.bands
    assert first.y + first.height <= second.y


def test_cards_have_rows_and_the_root_complex_has_chips(demo: Topology) -> None:
    inventory = collect(demo)
    kinds = {item.number: box.node.kind for box in draw(inventory).boxes for item in box.node.items}
    for item in inventory.items:
        if item.kind in ("gpu", "nic", "nvme") and item.physfn is None:
            assert kinds[item.number] == "function"
    assert sum(kind == "chips" for kind in kinds.values()) > 150


def test_height_of_a_large_host_is_a_multiple_of_the_small_one(demo: Topology) -> None:
    once, often = draw(collect(demo)), draw(collect(repeated(demo, 9)))
    assert often.height < 9.5 * once.height
