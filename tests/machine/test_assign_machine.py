"""Assignment against the software machine's kernel, which knows nothing of assignment."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from vfiokit.abi import vfio as abi
from vfiokit.assign.apply import apply
from vfiokit.assign.plan import plan
from vfiokit.assign.undo import pending, undo
from vfiokit.errors import ApplyError
from vfiokit.machine.build import endpoint_config
from vfiokit.machine.function import BarModel, Function
from vfiokit.machine.kernel.surface import SoftwareKernel
from vfiokit.machine.machine import Machine
from vfiokit.pci.address import Bdf

NVME = Bdf.parse("0000:00:03.0")
FIRST, SECOND = Bdf.parse("0000:00:04.0"), Bdf.parse("0000:00:04.1")


class Killed(BaseException):
    """The process died here."""


def build() -> SoftwareKernel:
    """An NVMe controller of its own, and two NVMe functions of one slot in one group."""
    machine = Machine(ram=64 << 20)
    machine.add_host_bridge(iommu=machine.add_iommu())
    for bdf in (NVME, FIRST, SECOND):
        config = endpoint_config(0x144D, 0xA808, 0x010802, multifunction=bdf != NVME)
        machine.add(Function(bdf, config, (BarModel(0, 0x4000),)))
    return SoftwareKernel(machine)


def driver(kernel: SoftwareKernel, bdf: Bdf) -> str | None:
    return kernel.device(bdf).driver


def test_applied_plan_opens_the_group_and_undo_restores_every_byte(tmp_path: Path) -> None:
    kernel = build()
    before = kernel.snapshot()
    made = plan(kernel.tree, [NVME])
    assert made.blockers == ()
    applied = apply(kernel, made, tmp_path)
    assert driver(kernel, NVME) == "vfio-pci"
    assert kernel.tree.exists(f"/dev/vfio/{made.targets[0].group}")
    assert kernel.snapshot() != before
    assert applied.journal is not None
    undo(kernel, applied.journal)
    assert kernel.snapshot() == before


def test_the_functions_of_a_slot_block_each_other_and_can_be_released(tmp_path: Path) -> None:
    kernel = build()
    before = kernel.snapshot()
    assert {each.id for each in plan(kernel.tree, [FIRST]).blockers} == {f"group-member:{SECOND}"}
    made = plan(kernel.tree, [FIRST], include_group=True)
    assert made.blockers == ()
    applied = apply(kernel, made, tmp_path)
    assert (driver(kernel, FIRST), driver(kernel, SECOND)) == ("vfio-pci", None)
    assert applied.journal is not None
    undo(kernel, applied.journal)
    assert kernel.snapshot() == before


@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_write_is_undone_to_the_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    kernel = build()
    before = kernel.snapshot()
    write = kernel.tree.write
    for number in count():
        left = [number]

        def dying(path: str, data: bytes, left: list[int] = left) -> None:
            if left[0] == 0 and not after:
                raise Killed
            write(path, data)
            if left[0] == 0:
                raise Killed
            left[0] -= 1

        try:
            with monkeypatch.context() as patch:
                patch.setattr(kernel.tree, "write", dying)
                apply(kernel, plan(kernel.tree, [NVME, FIRST], include_group=True), tmp_path)
        except Killed:
            (record,) = pending(tmp_path)
            undo(kernel, record.path)
            assert kernel.snapshot() == before, f"killed at write {number}"
        else:
            assert number == 8
            break


def test_host_driver_refused_by_a_group_in_use_is_rolled_back_to_the_byte(tmp_path: Path) -> None:
    kernel = build()
    made = plan(kernel.tree, [FIRST], include_group=True)
    apply(kernel, made, tmp_path)
    group = kernel.open(f"/dev/vfio/{made.members[0].group}")
    container = kernel.open("/dev/vfio/vfio")
    argument = bytearray(container.to_bytes(4, "little"))
    assert kernel.ioctl(group, abi.VFIO_GROUP_SET_CONTAINER, argument) == 0
    before = kernel.snapshot()
    with pytest.raises(ApplyError, match=r"EBUSY|busy|in use") as caught:
        apply(kernel, plan(kernel.tree, [SECOND], driver="nvme"), tmp_path)
    assert caught.value.rolled_back
    assert kernel.snapshot() == before


def test_driver_that_the_kernel_does_not_have_blocks() -> None:
    made = plan(build().tree, [NVME], driver="nvme-none")
    assert [each.id for each in made.blockers] == ["no-driver:nvme-none"]
