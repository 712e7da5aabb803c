"""Each readN and writeN of a mapping is one access of its width, counted by the processor.

``access_trace.c`` logs every access to two pages. A register at the end of the first page shows
its width: a wider access would fault on the second page too, a narrower one could not move all
bytes at once.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import ctypes, os, sys
from vfiokit.kernel.linux import LinuxKernel

trace = ctypes.CDLL(sys.argv[1])
for name in ("trace_begin", "trace_offset"):
    getattr(trace, name).restype = ctypes.c_ulong
trace.trace_begin.argtypes = (ctypes.c_ulong, ctypes.c_ulong)

PAGE = 4096
fd = os.memfd_create("registers")
os.truncate(fd, 2 * PAGE)
kernel = LinuxKernel()
mapping = kernel.mmap(fd, 2 * PAGE, 0)
view = mapping.view
address = ctypes.addressof(ctypes.c_char.from_buffer(view))

def traced(call, *arguments):
    trace.trace_begin(address, 2 * PAGE)
    result = call(*arguments)
    count = trace.trace_end()
    return result, [(trace.trace_offset(i), "RW"[trace.trace_is_write(i)]) for i in range(count)]

for width in (1, 2, 4, 8):
    for offset in (PAGE - width, PAGE):  # its end, and its start, at the edge of a page
        read, write = (getattr(mapping, f"{verb}{8 * width}") for verb in ("read", "write"))
        value = int.from_bytes(bytes(range(0xA1, 0xA1 + width)), sys.byteorder)
        os.pwrite(fd, bytes(range(0xA1, 0xA1 + width)), offset)
        result, events = traced(read, offset)
        assert result == value, (width, hex(result))
        assert events == [(offset, "R")], (width, offset, events)
        os.pwrite(fd, bytes(width), offset)
        _, events = traced(write, offset, value)
        assert events == [(offset, "W")], (width, offset, events)
        assert os.pread(fd, width, offset) == bytes(range(0xA1, 0xA1 + width))

# The tracer is not blind: two narrow accesses count as two, and a wide one shows its width.
_, events = traced(lambda: (mapping.read8(64), mapping.read8(65)))
assert events == [(64, "R"), (65, "R")], events
_, events = traced(view[PAGE - 4 : PAGE + 4].cast("Q").__getitem__, 0)
assert [offset & -PAGE for offset, _ in events] == [0, PAGE], events
print("ok")
"""


def test_every_access_is_one_load_or_store_of_its_width(tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if platform.machine() != "x86_64":
        pytest.skip("the tracer single-steps x86-64 instructions")
    if compiler is None:
        if os.environ.get("CI"):
            pytest.fail("no C compiler; apt-get install gcc")
        pytest.skip("no C compiler")
    library = tmp_path / "access_trace.so"
    source = Path(__file__).with_name("access_trace.c")
    subprocess.run(
        [compiler, "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", library, source],
        check=True,
    )
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, library], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "ok\n"
