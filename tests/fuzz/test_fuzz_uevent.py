"""The fuzz target of uevents on mutations of a real message."""

from __future__ import annotations

import random

import fuzz_uevent
from hypothesis import given
from hypothesis import strategies as st
from test_fuzz_files import mutate

from vfiokit.host.uevent import build

PLACE = "/devices/pci0000:00/0000:00:1c.0/0000:01:00.0"
SEEDS = [
    build("bind", PLACE, SUBSYSTEM="pci", DRIVER="vfio-pci", PCI_SLOT_NAME="0000:01:00.0"),
    build("change", PLACE, SUBSYSTEM="pci", ERROR_EVENT="FAILED_RECOVERY", DEVICE_ONLINE="0"),
    build("add", "/devices/virtual/vfio/37", SUBSYSTEM="vfio", DEVNAME="vfio/37"),
]


@given(data=st.binary(max_size=300))
def test_any_bytes_keep_the_invariant(data: bytes) -> None:
    fuzz_uevent.one_input(data)


def test_mutations_of_messages_keep_the_invariant() -> None:
    noise = random.Random(7)
    for seed in SEEDS:
        fuzz_uevent.one_input(seed)
        for cut in range(len(seed)):
            fuzz_uevent.one_input(seed[:cut])
        for _ in range(1500):
            fuzz_uevent.one_input(mutate(seed, noise))
