from __future__ import annotations

from device_host import plug

from vfiokit.machine.build import MsixLayout, endpoint_config
from vfiokit.machine.device.passive import PassiveFunction
from vfiokit.machine.function import BarModel
from vfiokit.machine.reset import ResetKind
from vfiokit.pci.address import Bdf

BDF = Bdf(0, 3, 0, 0)


def passive(*, memory_bars: frozenset[int] = frozenset()) -> PassiveFunction:
    config = endpoint_config(
        0x10DE, 0x25B6, 0x030200, msix=MsixLayout(6, 0, 0x1000), no_soft_reset=False
    )
    bars = (BarModel(0, 1 << 16), BarModel(2, 1 << 34, wide=True, prefetchable=True))
    function = PassiveFunction(BDF, config, bars, memory_bars=memory_bars)
    plug(function)
    return function


def test_configuration_answers_and_registers_are_idle() -> None:
    function = passive()
    assert function.config_read(0, 4) == 0x25B610DE
    for width in (1, 2, 4, 8):
        assert function.bar_read(0, 0, width) == 0
    function.bar_write(0, 0, 4, 0x1234)
    assert function.bar_read(0, 0, 4) == 0
    assert function.bar_read(2, 0, 8) == 0
    assert function.bar_view(2, 0, 8) is None


def test_bars_can_be_sized() -> None:
    function = passive()
    for offset in (0x10, 0x18, 0x1C):
        function.config_write(offset, 4, 0xFFFFFFFF)
    assert function.config_read(0x10, 4) == 0xFFFF0000
    assert function.config_read(0x18, 4) == 0x0000000C
    assert function.config_read(0x1C, 4) == 0xFFFFFFFC


def test_function_level_reset_reads_back_zero_and_clears_the_command_register() -> None:
    function = passive()
    express = function.capabilities().find(0x10)
    assert express is not None
    function.config_write(express.offset + 8, 2, 0x8010)
    assert function.config_read(express.offset + 8, 2) & 0x8000 == 0
    assert function.command == 0


def test_power_state_is_writable_and_leaving_d3_resets() -> None:
    function = passive()
    power = function.capabilities().find(0x01)
    assert power is not None
    function.config_write(power.offset + 4, 2, 3)
    assert function.config_read(power.offset + 4, 2) & 3 == 3
    function.config_write(power.offset + 4, 2, 0)
    assert function.config_read(power.offset + 4, 2) & 3 == 0
    assert function.command == 0


def test_msix_registers_belong_to_the_function() -> None:
    function = passive()
    function.bar_write(0, 0x1008, 4, 0x55)
    assert function.bar_read(0, 0x1008, 4) == 0x55
    assert function.bar_read(0, 0x100C, 4) == 1


def test_a_memory_bar_holds_what_is_written_even_far_out() -> None:
    function = passive(memory_bars=frozenset({2}))
    far = (1 << 34) - 8
    function.bar_write(2, far, 8, 0x1122334455667788)
    assert function.bar_read(2, far, 8) == 0x1122334455667788
    assert function.bar_read(2, far, 2) == 0x7788
    assert function.bar_read(2, 0, 8) == 0
    view = function.bar_view(2, 1 << 21, 1 << 21)
    assert view is not None
    view[:4] = b"data"
    assert function.bar_read(2, 1 << 21, 4) == int.from_bytes(b"data", "little")
    assert function.bar_view(2, (1 << 21) - 4, 8) is None
    assert function.bar_view(2, (1 << 34) - 4, 8) is None


def test_memory_survives_power_states_only() -> None:
    function = passive(memory_bars=frozenset({2}))
    for kind in ResetKind:
        function.config_write(4, 2, 6)
        function.bar_write(2, 64, 4, 7)
        function.reset(kind)
        function.config_write(4, 2, 6)
        assert function.bar_read(2, 64, 4) == (7 if kind is ResetKind.POWER else 0)
