"""Does a drive answer a program's own driver as fast as the kernel's? 4 KiB reads, one at a time.

In a lab guest, on one emulated drive: ``vfiokit.driver.nvme`` over VFIO against the kernel's nvme
driver with ``O_DIRECT``, measured before and after. Emulation makes absolute times meaningless; the
ratio says what the way through VFIO and Python costs beside a system call and an interrupt.
"""

from __future__ import annotations

import argparse
import mmap
import os
import sys
import time
from pathlib import Path
from random import Random
from statistics import median

from vfiokit.assign.apply import apply
from vfiokit.assign.plan import plan
from vfiokit.assign.undo import undo
from vfiokit.driver.nvme import NvmeController
from vfiokit.kernel.linux import LinuxKernel
from vfiokit.lab import (
    KernelLacksError,
    KernelMissingError,
    Lab,
    QemuMissingError,
    guest_devices,
)
from vfiokit.vfio import open_device

BLOCK = 4096
DRIVE_SIZE = 64 << 20
NODE = "/dev/nvme0n1"
LAB_KERNELS = Path(__file__).resolve().parents[1] / "../shared/kernels"


def _places(reads: int) -> list[int]:
    """Offsets of random blocks."""
    random = Random(1)
    return [random.randrange(DRIVE_SIZE // BLOCK) * BLOCK for _ in range(reads)]


def _wait_for_node() -> None:
    deadline = time.monotonic() + 30
    while not os.path.exists(NODE):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{NODE} did not come")
        time.sleep(0.01)


def _through_the_kernel(places: list[int]) -> float:
    """Seconds for a read, the median."""
    _wait_for_node()
    times = []
    fd = os.open(NODE, os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, BLOCK) as page:
        for place in places:
            begun = time.perf_counter()
            os.preadv(fd, [page], place)
            times.append(time.perf_counter() - begun)
    os.close(fd)
    return median(times)


def _through_vfio(places: list[int]) -> float:
    """Seconds for a read, the median."""
    kernel = LinuxKernel()
    bdf = guest_devices()["drive"]
    done = apply(kernel, plan(kernel.tree, [bdf]), Path("/run/journals"))
    times = []
    with open_device(kernel, bdf) as device, NvmeController(device) as controller:
        namespace = controller.namespace(1)
        blocks = BLOCK // namespace.block_size
        with device.address_space.allocate(BLOCK) as buffer:
            for place in places:
                begun = time.perf_counter()
                namespace.read(place // namespace.block_size, blocks, buffer)
                times.append(time.perf_counter() - begun)
    assert done.journal is not None
    undo(kernel, done.journal)
    return median(times)


def measure(reads: int, rounds: int) -> dict[str, list[float]]:
    """In the guest: seconds for a read by way, one number for each round."""
    places = _places(reads)
    return {
        "kernel": [_through_the_kernel(places) for _ in range(rounds)],
        "vfio": [_through_vfio(places) for _ in range(rounds)],
        "kernel again": [_through_the_kernel(places) for _ in range(rounds)],
    }


def _lab() -> Lab:
    kernel = os.environ.get("VFIOKIT_LAB_KERNEL", "")
    folder = Path(os.environ.get("VFIOKIT_LAB_KERNELS") or LAB_KERNELS)
    if not kernel and (folder / "bzImage-iommufd").exists():
        kernel = str(folder / "bzImage-iommufd")
    return Lab(topology=f"rp0(nvme:drive size={DRIVE_SIZE >> 20})", kernel=kernel, timeout_s=300)


def main() -> int:
    """Exit status 0, also where there is no QEMU or kernel to measure with."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--reads", type=int, default=1000, help="in each round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    try:
        found = _lab().run_python(measure, options.reads, options.rounds)
    except (QemuMissingError, KernelMissingError, KernelLacksError) as error:
        print(f"not measured: {error}")
        return 0
    kernel = median([*found["kernel"], *found["kernel again"]])
    vfio = median(found["vfio"])
    print(f"kernel's driver, O_DIRECT  {kernel * 1e6:8.1f} us a read, emulated")
    print(f"own driver over VFIO       {vfio * 1e6:8.1f} us a read, emulated")
    print(f"ratio {vfio / kernel:.2f} (own driver / kernel's)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
