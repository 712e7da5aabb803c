"""This host's kernel: mappings against a model in bytes, memory, descriptors, ioctls, writes."""

from __future__ import annotations

import array
import errno
import fcntl
import mmap
import os
import resource
import struct
import sys
import termios
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfiokit.kernel import linux
from vfiokit.kernel.linux import LinuxKernel, LinuxMapping, LinuxTree, anonymous_memory
from vfiokit.kernel.port import EFD_SEMAPHORE, PROT_READ, Kernel

PAGE = mmap.PAGESIZE
WIDTHS = (1, 2, 4, 8)


@pytest.fixture
def kernel() -> Kernel:
    return LinuxKernel()


def mapped(content: bytes, length: int) -> LinuxMapping:
    """The first ``length`` bytes of a memory file that holds ``content``."""
    fd = os.memfd_create("registers")
    try:
        os.write(fd, content)
        return LinuxKernel().mmap(fd, length, 0)
    finally:
        os.close(fd)


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(1, 70))
def test_mapping_behaves_like_bytes(source: st.DataObject, length: int) -> None:
    model = bytearray(source.draw(st.binary(min_size=length, max_size=length)))
    mapping = mapped(bytes(model), length)
    assert mapping.length == length
    for _ in range(source.draw(st.integers(1, 20))):
        width = source.draw(st.sampled_from(WIDTHS))
        offset = source.draw(st.integers(-9, length + 9))
        write = source.draw(st.booleans())
        good = offset >= 0 and offset % width == 0 and offset + width <= length
        value = source.draw(st.integers(0, (1 << 8 * width) - 1))
        call = getattr(mapping, f"{'write' if write else 'read'}{8 * width}")
        arguments = (offset, value) if write else (offset,)
        if not good:
            with pytest.raises(IndexError):
                call(*arguments)
        elif write:
            call(*arguments)
            model[offset : offset + width] = value.to_bytes(width, sys.byteorder)
        else:
            assert call(offset) == int.from_bytes(model[offset : offset + width], sys.byteorder)
    assert mapping.view == model
    mapping.close()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("offset", [1 << 30, 1 << 31, 1 << 40, 1 << 64, -(1 << 40), -(1 << 64)])
def test_offsets_far_away_are_index_errors(width: int, offset: int) -> None:
    mapping = mapped(bytes(PAGE), PAGE)
    with pytest.raises(IndexError):
        getattr(mapping, f"read{8 * width}")(offset)
    with pytest.raises(IndexError):
        getattr(mapping, f"write{8 * width}")(offset, 0)


@pytest.mark.parametrize("width", WIDTHS)
def test_values_that_do_not_fit_are_value_errors(width: int) -> None:
    mapping = mapped(bytes(PAGE), PAGE)
    for value in (-1, 1 << 8 * width):
        with pytest.raises(ValueError, match="invalid value"):
            getattr(mapping, f"write{8 * width}")(0, value)
    assert mapping.read64(0) == 0


def test_access_after_close_is_a_value_error_and_close_is_idempotent() -> None:
    mapping = mapped(bytes(PAGE), PAGE)
    mapping.close()
    mapping.close()
    for width in WIDTHS:
        with pytest.raises(ValueError, match="released"):
            getattr(mapping, f"read{8 * width}")(0)


def test_close_refuses_while_the_view_is_in_use_and_works_after() -> None:
    mapping = mapped(b"\x11" * PAGE, PAGE)
    assert mapping.view is not None
    part = mapping.view[4:8]
    with pytest.raises(BufferError):
        mapping.close()
    assert mapping.read32(4) == 0x11111111
    assert bytes(part) == b"\x11" * 4
    part.release()
    mapping.close()


def test_close_refuses_while_an_array_lies_over_the_view() -> None:
    memory = anonymous_memory(PAGE)
    lying = struct.Struct("I").iter_unpack(memory.view)
    with pytest.raises(BufferError):
        memory.close()
    memory.view[0] = 1
    del lying
    memory.close()


def test_read_only_mapping_refuses_writes(kernel: Kernel) -> None:
    fd = os.memfd_create("registers")
    os.truncate(fd, PAGE)
    mapping = kernel.mmap(fd, PAGE, 0, PROT_READ)
    os.close(fd)
    assert mapping.read32(0) == 0
    with pytest.raises(TypeError):
        mapping.write32(0, 1)


def test_device_mapping_has_no_view(kernel: Kernel) -> None:
    fd = kernel.open("/dev/zero")
    mapping = kernel.mmap(fd, PAGE, 0)
    kernel.close(fd)
    assert mapping.view is None
    mapping.write32(8, 7)
    assert mapping.read32(8) == 7
    mapping.close()


@pytest.mark.parametrize(
    ("length", "offset"), [(0, 0), (-1, 0), (PAGE, 1), (PAGE, -PAGE), (1 << 70, 0)]
)
def test_impossible_maps_are_einval(kernel: Kernel, length: int, offset: int) -> None:
    fd = kernel.open("/dev/zero")
    with pytest.raises(OSError, match=f"Errno {errno.EINVAL}]"):
        kernel.mmap(fd, length, offset)
    kernel.close(fd)


def test_mapping_of_an_offset_sees_that_part_of_the_file(kernel: Kernel) -> None:
    fd = os.memfd_create("registers")
    os.truncate(fd, 2 * PAGE)
    os.pwrite(fd, b"abcd", PAGE)
    mapping = kernel.mmap(fd, PAGE, PAGE)
    assert mapping.read32(0) == int.from_bytes(b"abcd", sys.byteorder)
    os.close(fd)


def test_memory_is_zeroed_aligned_and_named_by_its_vaddr(kernel: Kernel) -> None:
    memory = kernel.allocate(PAGE + 1)
    assert memory.length == len(memory.view) == 2 * PAGE
    assert memory.vaddr % PAGE == 0
    assert memory.view == bytes(2 * PAGE)
    memory.view[5] = 0xA5
    with Path("/proc/self/mem").open("rb", buffering=0) as file:
        file.seek(memory.vaddr + 5)
        assert file.read(1) == b"\xa5"
    memory.close()
    memory.close()


def test_memory_is_not_inherited_by_a_child(kernel: Kernel) -> None:
    memory = kernel.allocate(PAGE)
    start = f"{memory.vaddr:x}-"
    block = Path("/proc/self/smaps").read_text().partition(start)[2].partition("VmFlags:")[2]
    assert "dc" in block.splitlines()[0].split()
    memory.close()


@pytest.mark.parametrize("length", [0, -1])
def test_memory_of_no_length_is_einval(kernel: Kernel, length: int) -> None:
    with pytest.raises(OSError, match=f"Errno {errno.EINVAL}]"):
        kernel.allocate(length)


def test_more_memory_than_there_is_addresses_is_enomem(kernel: Kernel) -> None:
    for length in (1 << 62, 1 << 70):
        with pytest.raises(OSError, match=f"Errno {errno.ENOMEM}]"):
            kernel.allocate(length)


@pytest.mark.parametrize("size", [3, 1, 5 << 20])
def test_huge_page_size_must_be_one(kernel: Kernel, size: int) -> None:
    with pytest.raises(ValueError, match="huge page"):
        kernel.allocate(PAGE, huge_page_size=size)


def test_huge_pages_are_had_or_refused_with_the_kernels_errno(kernel: Kernel) -> None:
    for size in (2 << 20, 1 << 30, 16 << 30):
        try:
            memory = kernel.allocate(1, huge_page_size=size)
        except OSError as failure:
            refusal = failure.errno
        else:
            refusal = 0
            assert memory.length == size
            memory.close()
        assert refusal in (0, errno.ENOMEM, errno.EINVAL)  # EINVAL: no pages of that size exist


def test_sixty_four_gib_cost_nothing_until_touched() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE

    before = resident()
    memory = anonymous_memory(64 << 30)
    memory.view[63 << 30] = 1
    assert memory.view[63 << 30] == 1
    assert memory.view[17 << 30] == 0
    assert resident() - before < 64 << 20
    memory.close()


def test_every_descriptor_is_close_on_exec(kernel: Kernel) -> None:
    for fd in (kernel.open("/dev/null"), kernel.eventfd(), kernel.eventfd(flags=0)):
        assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        kernel.close(fd)


def test_eventfd_counts_and_does_not_wait(kernel: Kernel) -> None:
    fd = kernel.eventfd(2)
    kernel.eventfd_write(fd, 3)
    assert kernel.eventfd_read(fd) == 5
    with pytest.raises(BlockingIOError):
        kernel.eventfd_read(fd)
    kernel.close(fd)
    with pytest.raises(OSError, match=f"Errno {errno.EBADF}]"):
        kernel.close(fd)


def test_semaphore_eventfd_counts_down() -> None:
    fd = linux.eventfd(2, EFD_SEMAPHORE)
    assert [linux.eventfd_read(fd), linux.eventfd_read(fd)] == [1, 1]
    linux.close(fd)


def test_open_failures_carry_errno_and_path(kernel: Kernel) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        kernel.open("/dev/vfio/no-such-group")
    assert caught.value.filename == "/dev/vfio/no-such-group"


def test_pread_and_pwrite_take_offsets(kernel: Kernel) -> None:
    fd = os.memfd_create("region")
    assert kernel.pwrite(fd, memoryview(b"abcdef"), 2) == 6
    assert kernel.pread(fd, 4, 4) == b"cdef"
    os.close(fd)


def test_ioctl_updates_a_writable_buffer_in_place(kernel: Kernel) -> None:
    read_end, write_end = os.pipe()
    os.write(write_end, b"12345")
    for buffer in (bytearray(4), memoryview(bytearray(4)), memoryview(array.array("I", [0]))):
        assert kernel.ioctl(read_end, termios.FIONREAD, buffer) == 0
        assert int.from_bytes(bytes(buffer), sys.byteorder) == 5
    os.close(read_end)
    os.close(write_end)


def test_ioctl_refuses_buffers_that_cannot_carry_the_answer(kernel: Kernel) -> None:
    read_end, write_end = os.pipe()
    for buffer in (b"1234", memoryview(b"1234")):
        with pytest.raises(TypeError, match="writable"):
            kernel.ioctl(read_end, termios.FIONREAD, buffer)  # type: ignore[arg-type]
    os.close(read_end)
    os.close(write_end)


def test_ioctl_passes_integers_beyond_a_c_int(kernel: Kernel) -> None:
    """FIONREAD writes through the pointer it is given: a number as good as a buffer."""
    memory = anonymous_memory(PAGE)
    read_end, write_end = os.pipe()
    os.write(write_end, b"123")
    assert memory.vaddr > 1 << 32
    assert kernel.ioctl(read_end, termios.FIONREAD, memory.vaddr) == 0
    assert memory.view[0] == 3
    with pytest.raises(OSError, match=f"Errno {errno.EFAULT}]"):
        kernel.ioctl(read_end, termios.FIONREAD, 1 << 62)
    os.close(read_end)
    os.close(write_end)
    memory.close()


def test_ioctl_failures_carry_the_errno(kernel: Kernel) -> None:
    fd = kernel.open("/dev/null")
    with pytest.raises(OSError, match=f"Errno {errno.ENOTTY}]"):
        kernel.ioctl(fd, termios.FIONREAD, bytearray(4))
    kernel.close(fd)
    with pytest.raises(OSError, match=f"Errno {errno.EBADF}]"):
        kernel.ioctl(fd, termios.FIONREAD, 0)


def test_tree_writes_existing_files_without_truncating(tmp_path: Path) -> None:
    (tmp_path / "driver_override").write_bytes(b"vfio-pci\nrest")
    tree = LinuxTree(str(tmp_path))
    tree.write("/driver_override", b"xhci_hcd")
    assert tree.read("/driver_override") == b"xhci_hcd\nrest"
    with pytest.raises(FileNotFoundError):
        tree.write("/absent", b"1")
    assert not (tmp_path / "absent").exists()
    with pytest.raises(IsADirectoryError):
        tree.write("/", b"1")


def test_tree_write_that_is_taken_in_part_is_eio(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, limits[1]))
    try:
        with pytest.raises(OSError, match="only 5 of 8 bytes") as caught:
            LinuxTree(str(tmp_path)).write("/file", b"vfio-pci")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EIO


def test_tree_write_failures_carry_the_errno() -> None:
    with pytest.raises(OSError, match=f"Errno {errno.ENOSPC}]"):
        LinuxTree().write("/dev/full", b"1")


def test_tree_write_stays_inside_its_root(tmp_path: Path) -> None:
    (tmp_path / "victim").write_bytes(b"safe")
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "link").symlink_to("../victim")
    with pytest.raises(FileNotFoundError):
        LinuxTree(str(tmp_path / "host")).write("/link", b"gone")
    assert (tmp_path / "victim").read_bytes() == b"safe"


def test_kernel_shows_the_live_tree_and_page_size(kernel: Kernel) -> None:
    assert kernel.tree.read("/proc/self/comm") == Path("/proc/self/comm").read_bytes()
    assert kernel.page_size == os.sysconf("SC_PAGESIZE")
