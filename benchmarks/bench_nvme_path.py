"""What does the driver's software path cost per NVMe command?

Submission entry, doorbell, completion entry, doorbell, on plain memory: everything but the
device. Completions are put in place outside the timed part. The floors, measured in the same run:
one raw read of a cast memoryview (what no Python code can go below), and a C loop that does the
same work. Absolute times depend on the machine; the ratios hardly do.
"""

from __future__ import annotations

import argparse
import mmap
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from vfiokit.driver.nvme.queue import QueuePair
from vfiokit.kernel.linux import LinuxKernel, LinuxMapping
from vfiokit.vfio.address_space import IovaRange
from vfiokit.vfio.memory import DmaBuffer

ENTRIES = 1024
BATCH = 32
READ = 0x02

GOALS = {"queue depth 1": 750.0, f"batches of {BATCH}": 500.0}
"""ns per command, on a machine whose raw cast read takes RAW_READ ns."""
RAW_READ = 11.0

C_SOURCE = r"""
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <stdlib.h>
#include <time.h>
enum { ENTRIES = 1024 };
struct sqe { uint8_t opc, flags; uint16_t cid; uint32_t nsid; uint64_t cdw2, mptr, prp1, prp2;
             uint32_t cdw10, cdw11, cdw12, cdw13, cdw14, cdw15; };
struct cqe { uint32_t result, reserved; uint16_t head, sqid; volatile uint32_t tail; };
static struct sqe *sq; static struct cqe *cq; static volatile uint32_t *doorbells;
static uint16_t free_ids[ENTRIES]; static unsigned free_count;
static double now(void) {
    struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1e9 + t.tv_nsec;
}
static void fill(unsigned phase, unsigned batch) {
    for (unsigned i = 0; i < ENTRIES; i++) {
        unsigned round = i / batch, k = i % batch;
        cq[i].tail = phase << 16 | (round & 1 ? batch - 1 - k : k);
    }
}
int main(int argc, char **argv) {
    unsigned batch = atoi(argv[1]), rounds = atoi(argv[2]);
    sq = aligned_alloc(4096, ENTRIES * 64); cq = aligned_alloc(4096, ENTRIES * 16);
    doorbells = aligned_alloc(4096, 8192);
    memset(sq, 0, ENTRIES * 64); memset(cq, 0, ENTRIES * 16);
    for (unsigned i = 0; i < ENTRIES - 1; i++) free_ids[free_count++] = ENTRIES - 2 - i;
    unsigned tail = 0, head = 0, phase = 1; uint64_t sum = 0; double best = 1e18;
    for (unsigned r = 0; r < rounds; r++) {
        fill(phase, batch);
        double start = now();
        for (unsigned done = 0; done < ENTRIES; done += batch) {
            for (unsigned i = 0; i < batch; i++) {
                struct sqe *e = &sq[tail];
                *e = (struct sqe){ .opc = 2, .cid = free_ids[--free_count], .nsid = 1,
                    .prp1 = 0x100000 + done, .cdw10 = done, .cdw12 = 7 };
                if (++tail == ENTRIES) tail = 0;
            }
            __asm__ volatile("" ::: "memory");
            doorbells[1026] = tail;
            for (unsigned i = 0; i < batch; i++) {
                uint32_t word = cq[head].tail;
                if ((word >> 16 & 1) != phase) { puts("nan"); return 1; }
                free_ids[free_count++] = word & 0xffff;
                sum += (word >> 17) + cq[head].result;
                if (++head == ENTRIES) { head = 0; phase ^= 1; }
            }
            doorbells[1027] = head;
        }
        double spent = (now() - start) / ENTRIES;
        if (spent < best) best = spent;
    }
    printf("%.3f %llu\n", best, (unsigned long long)sum);
    return 0;
}
"""


class PlainSpace:
    """An address space whose IOVAs are the process's own addresses."""

    page_size = 4096
    iova_ranges = (IovaRange(0, (1 << 48) - 1),)

    def __init__(self) -> None:
        self.kernel = LinuxKernel()
        self.buffers: list[DmaBuffer] = []

    def allocate(self, length: int, **_wishes: object) -> DmaBuffer:
        """Memory under its own address."""
        memory = self.kernel.allocate(length)
        self.buffers.append(DmaBuffer(memory, memory.vaddr, lambda _iova, _length: None))
        return self.buffers[-1]

    def map(self, vaddr: int, length: int, **_wishes: object) -> int:
        """Every address is its own IOVA."""
        del length
        return vaddr

    def unmap(self, iova: int, length: int) -> None:
        """Nothing to take away."""
        del iova, length

    def unmap_all(self) -> None:
        """Nothing to take away."""


class Completer:
    """Puts the completions of the next ``ENTRIES`` commands in place."""

    def __init__(self, queue: QueuePair, memory: DmaBuffer) -> None:
        offset = queue.cq_iova - memory.iova
        self.words = memory.view[offset : offset + ENTRIES * 16].cast("I")
        self.phase = 1

    def fill(self, batch: int) -> None:
        """Ids come back in the order of submission, so every other batch gets them reversed."""
        for index in range(ENTRIES):
            number, place = divmod(index, batch)
            cid = batch - 1 - place if number & 1 else place
            self.words[index * 4 + 3] = self.phase << 16 | cid
        self.phase ^= 1


def new_queue() -> tuple[QueuePair, Completer]:
    space = PlainSpace()
    doorbells = LinuxMapping(mmap.mmap(-1, 16384))
    queue = QueuePair(space, doorbells, 1, ENTRIES)
    return queue, Completer(queue, space.buffers[0])


def time_depth_one(rounds: int) -> float:
    queue, completer = new_queue()
    submit, ring, poll = queue.submit, queue.ring, queue.poll
    best = float("inf")
    for _ in range(rounds):
        completer.fill(1)
        start = time.perf_counter_ns()
        for lba in range(ENTRIES):
            submit(READ, 1, 0x100000, 0, lba, 0, 7)
            ring()
            poll()
        best = min(best, (time.perf_counter_ns() - start) / ENTRIES)
    return best


def time_batches(rounds: int) -> float:
    queue, completer = new_queue()
    submit_many, reap = queue.submit_many, queue.reap
    commands = [(READ, 1, 0x100000 + 4096 * index, 0, 8 * index, 0, 7) for index in range(BATCH)]
    best = float("inf")
    for _ in range(rounds):
        completer.fill(BATCH)
        start = time.perf_counter_ns()
        for _batch in range(ENTRIES // BATCH):
            submit_many(commands)
            reap(BATCH)
        best = min(best, (time.perf_counter_ns() - start) / ENTRIES)
    return best


def time_raw_read(rounds: int) -> float:
    view = memoryview(bytearray(4096)).cast("I")
    numbers = range(ENTRIES)
    best = empty = float("inf")
    for _ in range(rounds):
        start = time.perf_counter_ns()
        for _number in numbers:
            view[5]
        middle = time.perf_counter_ns()
        for _number in numbers:
            pass
        best = min(best, (middle - start) / ENTRIES)
        empty = min(empty, (time.perf_counter_ns() - middle) / ENTRIES)
    return best - empty


def time_c(batch: int, rounds: int) -> float | None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "path.c"), Path(folder, "path")
        source.write_text(C_SOURCE, encoding="ascii")
        subprocess.run([compiler, "-O2", "-o", program, source], check=True)
        answer = subprocess.run(
            [program, str(batch), str(rounds)], check=True, capture_output=True, text=True
        )
    return float(answer.stdout.split()[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=400, help="windows of 1024 commands each")
    parser.add_argument("--check", action="store_true", help="fail when a goal is missed")
    arguments = parser.parse_args()
    rounds: int = arguments.rounds
    raw = time_raw_read(rounds)
    measured = {
        "queue depth 1": (time_depth_one(rounds), time_c(1, rounds)),
        f"batches of {BATCH}": (time_batches(rounds), time_c(BATCH, rounds)),
    }
    print(f"Python {sys.version.split()[0]}; raw cast read {raw:.1f} ns")
    missed = False
    for name, (spent, floor) in measured.items():
        goal = GOALS[name] / RAW_READ
        against_c = f"{spent / floor:6.0f} x C ({floor:.2f} ns)" if floor else "no C compiler"
        verdict = "ok" if spent / raw <= goal else "MISSED"
        missed |= verdict != "ok"
        print(
            f"{name:16} {spent:6.0f} ns per command {spent / raw:6.1f} x raw read "
            f"(goal {goal:.0f}, {verdict}) {against_c}"
        )
    return int(missed and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
