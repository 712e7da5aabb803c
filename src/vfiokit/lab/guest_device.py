"""For programs in a guest: where are the devices that the topology names?"""

from __future__ import annotations

import os

from vfiokit.errors import UsageError
from vfiokit.pci.address import Bdf

DEVICES_VARIABLE = "VFIOKIT_LAB_DEVICES"
OUTPUT_VARIABLE = "VFIOKIT_LAB_OUTPUT"


def guest_devices() -> dict[str, Bdf]:
    """Address of each function by the name it has in the topology.

    Raises :class:`UsageError` outside a guest.
    """
    text = os.environ.get(DEVICES_VARIABLE)
    if text is None:
        raise UsageError(f"{DEVICES_VARIABLE} is not set: this is no guest of the lab")
    pairs = (word.partition("=") for word in text.split())
    return {name: Bdf.parse(address) for name, _equals, address in pairs}
