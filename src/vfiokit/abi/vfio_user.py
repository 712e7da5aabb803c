"""The vfio-user protocol: command numbers, flags and structs, C names verbatim.

A message is a header of 16 bytes and a payload, in host byte order. Where the protocol carries
what VFIO's ioctls carry, the structs are those of :mod:`vfiokit.abi.vfio`; only what is vfio-user's
own is here. Arrays, data and JSON follow the struct in the payload.

Source: QEMU ``docs/interop/vfio-user.rst``; names of libvfio-user ``include/vfio-user.h``.
"""

from __future__ import annotations

from vfiokit.abi._layout import CStruct, u16, u32, u64

VFIO_USER_MAJOR = 0
VFIO_USER_MINOR = 2

# Commands. 14 was DIRTY_PAGES, which is gone and must not be used again.
VFIO_USER_VERSION = 1
VFIO_USER_DMA_MAP = 2
VFIO_USER_DMA_UNMAP = 3
VFIO_USER_DEVICE_GET_INFO = 4
VFIO_USER_DEVICE_GET_REGION_INFO = 5
VFIO_USER_DEVICE_GET_REGION_IO_FDS = 6
VFIO_USER_DEVICE_GET_IRQ_INFO = 7
VFIO_USER_DEVICE_SET_IRQS = 8
VFIO_USER_REGION_READ = 9
VFIO_USER_REGION_WRITE = 10
VFIO_USER_DMA_READ = 11
VFIO_USER_DMA_WRITE = 12
VFIO_USER_DEVICE_RESET = 13
VFIO_USER_REGION_WRITE_MULTI = 15
VFIO_USER_DEVICE_FEATURE = 16
VFIO_USER_MIG_DATA_READ = 17
VFIO_USER_MIG_DATA_WRITE = 18

# Header flags: the type in bits 0 to 3, then single bits.
VFIO_USER_F_TYPE_MASK = 0xF
VFIO_USER_F_TYPE_COMMAND = 0
VFIO_USER_F_TYPE_REPLY = 1
VFIO_USER_F_NO_REPLY = 0x10
VFIO_USER_F_ERROR = 0x20

# DMA_MAP.
VFIO_USER_F_DMA_REGION_READ = 0x1
VFIO_USER_F_DMA_REGION_WRITE = 0x2
VFIO_USER_F_DMA_REGION_MMAP = 0x4
VFIO_USER_F_DMA_REGION_FILE_IO = 0x8

# DMA_UNMAP.
VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP = 0x1
VFIO_DMA_UNMAP_FLAG_ALL = 0x2

# DEVICE_GET_REGION_IO_FDS.
VFIO_USER_IO_FD_TYPE_IOEVENTFD = 0
VFIO_USER_IO_FD_TYPE_IOREGIONFD = 1
VFIO_USER_IO_FD_TYPE_IOEVENTFD_SHADOW = 2


class vfio_user_header(CStruct):
    """Head of every message; ``msg_size`` counts it too, ``error_no`` only with the error flag."""

    msg_id: u16 = 0
    cmd: u16 = 0
    msg_size: u32 = 0
    flags: u32 = 0
    error_no: u32 = 0


class vfio_user_version(CStruct):
    """Payload of ``VERSION``; a NUL-terminated JSON text may follow."""

    major: u16 = 0
    minor: u16 = 0


class vfio_user_dma_map(CStruct):
    """Payload of ``DMA_MAP``; none or one descriptor comes along."""

    argsz: u32 = 0
    flags: u32 = 0
    offset: u64 = 0
    addr: u64 = 0
    size: u64 = 0


class vfio_user_dma_unmap(CStruct):
    """Payload of ``DMA_UNMAP`` and of its reply."""

    argsz: u32 = 0
    flags: u32 = 0
    addr: u64 = 0
    size: u64 = 0


class vfio_user_device_info(CStruct):
    """Payload of ``DEVICE_GET_INFO`` and of its reply."""

    argsz: u32 = 0
    flags: u32 = 0
    num_regions: u32 = 0
    num_irqs: u32 = 0


class vfio_user_region_access(CStruct):
    """Head of ``REGION_READ`` and ``REGION_WRITE``, command and reply; data may follow."""

    offset: u64 = 0
    region: u32 = 0
    count: u32 = 0


class vfio_user_dma_region_access(CStruct):
    """Head of ``DMA_READ`` and ``DMA_WRITE``, command and reply; data may follow."""

    addr: u64 = 0
    count: u64 = 0


class vfio_user_region_io_fds(CStruct):
    """Head of ``DEVICE_GET_REGION_IO_FDS``; entries follow in the reply."""

    argsz: u32 = 0
    flags: u32 = 0
    index: u32 = 0
    count: u32 = 0


class vfio_user_sub_region_io_fd(CStruct):
    """One entry of the reply to ``DEVICE_GET_REGION_IO_FDS``.

    The last field is a ``datamatch`` for an ioeventfd, ``user_data`` for an ioregionfd.
    libvfio-user appends eight bytes for its shadow kind.
    """

    offset: u64 = 0
    size: u64 = 0
    fd_index: u32 = 0
    type: u32 = 0
    flags: u32 = 0
    padding: u32 = 0
    datamatch: u64 = 0


class vfio_user_write_multi(CStruct):
    """Head of ``REGION_WRITE_MULTI``; as many :class:`vfio_user_write_multi_entry` follow."""

    wr_cnt: u64 = 0


class vfio_user_write_multi_entry(CStruct):
    """One write of at most 8 bytes; ``data`` holds them from its lowest byte on."""

    offset: u64 = 0
    region: u32 = 0
    count: u32 = 0
    data: u64 = 0


class vfio_user_mig_data(CStruct):
    """Head of ``MIG_DATA_READ`` and ``MIG_DATA_WRITE``; data follows."""

    argsz: u32 = 0
    size: u32 = 0


class vfio_user_device_feature(CStruct):
    """Head of ``DEVICE_FEATURE``, command and reply; the feature's data follows."""

    argsz: u32 = 0
    flags: u32 = 0


class vfio_user_irq_set(CStruct):
    """Payload of ``DEVICE_SET_IRQS``; with the BOOL flag ``count`` bytes follow."""

    argsz: u32 = 0
    flags: u32 = 0
    index: u32 = 0
    start: u32 = 0
    count: u32 = 0
