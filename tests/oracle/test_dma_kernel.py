"""The software machine against a real kernel: DMA that is allowed, and DMA that is not.

What is expected is written down once, and both are held to it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dma_attempts
import pytest

from vfiokit.lab import Lab, Scenario
from vfiokit.machine.assembly import assemble

BACKENDS = ("group", "cdev")
ZEROS = "\0" * 8
DEVICE = "0000:01:00.0"


def write_fault(iova: int) -> str:
    return (
        f"DMAR: [DMA Write NO_PASID] Request device [{DEVICE}] fault addr {iova:#x} "
        "[fault reason 0x05] PTE Write access is not set"
    )


def read_fault(iova: int) -> str:
    return (
        f"DMAR: [DMA Read NO_PASID] Request device [{DEVICE}] fault addr {iova:#x} "
        "[fault reason 0x06] PTE Read access is not set"
    )


EXPECTED: dict[str, tuple[Any, list[str]]] = {
    "write_where_memory_is_mapped": (["original", "changed!"], []),
    "read_where_memory_is_mapped": ("original", []),
    "write_where_nothing_is_mapped": ("original", [write_fault(0x200000)]),
    "read_where_nothing_is_mapped": (ZEROS, [read_fault(0x200000)]),
    # Fault registers have no room for the offset in the page.
    "write_inside_a_page_where_nothing_is_mapped": (None, [write_fault(0x200000)]),
    "write_to_memory_mapped_for_reading": (["original", "original"], [write_fault(0x100000)]),
    "read_of_memory_mapped_for_writing": (["changed!", ZEROS], [read_fault(0x100000)]),
    "write_across_the_end_of_a_mapping": ("changed!", [write_fault(0x101000)]),
    "read_across_the_end_of_a_mapping": ("original" + ZEROS, [read_fault(0x101000)]),
    "write_across_two_mappings_of_separate_memory": (["changed!", "changed!"], []),
    "write_to_memory_of_another_device": ("original", [write_fault(0x200000)]),
    "write_where_both_devices_have_memory": (["changed!", "original"], []),
    "write_to_a_mapping_that_was_taken_away": ("original", [write_fault(0x101000)]),
    "write_to_a_mapping_that_became_writable": ("changed!", []),
    "write_with_bus_mastering_off": ("original", []),
    "write_beyond_the_address_bits_of_the_device": (["changed!", "original"], []),
}


def outcomes(answer: dict[str, Any]) -> dict[str, tuple[Any, list[str]]]:
    return {name: (each["held"], each["faults"]) for name, each in answer.items()}


def test_every_attempt_has_an_expectation() -> None:
    assert [attempt.__name__ for attempt in dma_attempts.ATTEMPTS] == list(EXPECTED)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_software_machine_lets_through_and_stops_what_is_expected(
    backend: str, tmp_path: Path
) -> None:
    assembly = assemble(dma_attempts.TOPOLOGY)
    addresses = {name: assembly[name] for name in ("a", "b")}
    iommu = assembly.machine.iommu_of(addresses["a"])
    assert iommu is not None

    def faults() -> list[str]:
        return [str(record) for record in iommu.faults.drain()]

    answer = dma_attempts.attempt_all(assembly.kernel, addresses, tmp_path, backend, faults)
    assert outcomes(answer) == EXPECTED


@pytest.mark.slow
def test_a_real_kernel_lets_through_and_stops_the_same(lab: Lab) -> None:
    changed = lab.with_changes(topology=dma_attempts.TOPOLOGY)
    answers = changed.run_batch(
        [
            Scenario(dma_attempts.attempt_all_on_this_kernel, (backend,), timeout_s=100)
            for backend in BACKENDS
        ]
    )
    for answer in answers:
        assert outcomes(answer.require()) == EXPECTED, answer.output
