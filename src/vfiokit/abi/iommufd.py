"""``linux/iommufd.h``: ioctl numbers, flags and structs of ``/dev/iommu``, C names verbatim.

Requests are ``_IO(';', 0x80 + n)``: they carry neither size nor direction. Every command starts
with ``size``, the bytes the caller knows of; a kernel that knows more reads the rest as zero,
one that knows less refuses nonzero bytes beyond with ``E2BIG``. :data:`COMMANDS` has the least
``size`` of each. The same numbers behind :mod:`vfiokit.abi.vfio` work on this node, too, where
the kernel has the VFIO compatibility.

Lengths and offsets are bytes, ranges end with their last byte, pointers are vaddrs. ``__reserved``
is ``reserved`` here and must be 0. Arrays of fixed length are spelled out: ``ste[2]`` is ``ste0``
and ``ste1``. The enum ``IOMMUFD_CMD_*`` is left out: it is the low byte of each request.

Source: Linux 7.2 ``include/uapi/linux/iommufd.h``; ``tests/abi`` compares every name with it.
"""

from __future__ import annotations

from vfiokit.abi._layout import CStruct, s32, u8, u16, u32, u64

IOMMUFD_TYPE = 0x3B
IOMMUFD_CMD_BASE = 0x80

IOMMU_DESTROY = 0x3B80
IOMMU_IOAS_ALLOC = 0x3B81
IOMMU_IOAS_ALLOW_IOVAS = 0x3B82
IOMMU_IOAS_COPY = 0x3B83
IOMMU_IOAS_IOVA_RANGES = 0x3B84
IOMMU_IOAS_MAP = 0x3B85
IOMMU_IOAS_UNMAP = 0x3B86
IOMMU_OPTION = 0x3B87
IOMMU_VFIO_IOAS = 0x3B88
IOMMU_HWPT_ALLOC = 0x3B89
IOMMU_GET_HW_INFO = 0x3B8A
IOMMU_HWPT_SET_DIRTY_TRACKING = 0x3B8B
IOMMU_HWPT_GET_DIRTY_BITMAP = 0x3B8C
IOMMU_HWPT_INVALIDATE = 0x3B8D
IOMMU_FAULT_QUEUE_ALLOC = 0x3B8E
IOMMU_IOAS_MAP_FILE = 0x3B8F
IOMMU_VIOMMU_ALLOC = 0x3B90
IOMMU_VDEVICE_ALLOC = 0x3B91
IOMMU_IOAS_CHANGE_PROCESS = 0x3B92
IOMMU_VEVENTQ_ALLOC = 0x3B93
IOMMU_HW_QUEUE_ALLOC = 0x3B94


class iommu_destroy(CStruct):
    """Buffer of ``IOMMU_DESTROY``: any object that nothing uses any more."""

    size: u32 = 0
    id: u32 = 0


# --- I/O address spaces ---

IOMMU_IOAS_MAP_FIXED_IOVA = 0x1
IOMMU_IOAS_MAP_WRITEABLE = 0x2
IOMMU_IOAS_MAP_READABLE = 0x4


class iommu_ioas_alloc(CStruct):
    """Buffer of ``IOMMU_IOAS_ALLOC``; ``flags`` is 0."""

    size: u32 = 0
    flags: u32 = 0
    out_ioas_id: u32 = 0


class iommu_iova_range(CStruct):
    """An IOVA range; ``last`` is its last byte, inclusive."""

    start: u64 = 0
    last: u64 = 0


class iommu_ioas_iova_ranges(CStruct):
    """Buffer of ``IOMMU_IOAS_IOVA_RANGES``: where the IOAS can map.

    ``allowed_iovas`` is the vaddr of ``num_iovas`` times :class:`iommu_iova_range` to fill.
    With too few the call is ``EMSGSIZE``; ``num_iovas`` returns how many there are either way.
    """

    size: u32 = 0
    ioas_id: u32 = 0
    num_iovas: u32 = 0
    reserved: u32 = 0
    allowed_iovas: u64 = 0
    out_iova_alignment: u64 = 0


class iommu_ioas_allow_iovas(CStruct):
    """Buffer of ``IOMMU_IOAS_ALLOW_IOVAS``: ranges that devices attached later must leave usable.

    ``allowed_iovas`` is the vaddr of ``num_iovas`` times :class:`iommu_iova_range`; they replace
    those of the last call.
    """

    size: u32 = 0
    ioas_id: u32 = 0
    num_iovas: u32 = 0
    reserved: u32 = 0
    allowed_iovas: u64 = 0


class iommu_ioas_map(CStruct):
    """Buffer of ``IOMMU_IOAS_MAP``; ``iova`` is returned unless ``FIXED_IOVA`` gives it."""

    size: u32 = 0
    flags: u32 = 0
    ioas_id: u32 = 0
    reserved: u32 = 0
    user_va: u64 = 0
    length: u64 = 0
    iova: u64 = 0


class iommu_ioas_map_file(CStruct):
    """Buffer of ``IOMMU_IOAS_MAP_FILE``: bytes of a memfd or of a device's dma-buf."""

    size: u32 = 0
    flags: u32 = 0
    ioas_id: u32 = 0
    fd: s32 = 0
    start: u64 = 0
    length: u64 = 0
    iova: u64 = 0


class iommu_ioas_copy(CStruct):
    """Buffer of ``IOMMU_IOAS_COPY``: map in one IOAS what another has mapped, pinned once."""

    size: u32 = 0
    flags: u32 = 0
    dst_ioas_id: u32 = 0
    src_ioas_id: u32 = 0
    length: u64 = 0
    dst_iova: u64 = 0
    src_iova: u64 = 0


class iommu_ioas_unmap(CStruct):
    """Buffer of ``IOMMU_IOAS_UNMAP``; ``length`` returns the bytes unmapped.

    ``iova`` 0 with ``length`` 2**64 - 1 unmaps everything.
    """

    size: u32 = 0
    ioas_id: u32 = 0
    iova: u64 = 0
    length: u64 = 0


class iommu_ioas_change_process(CStruct):
    """Buffer of ``IOMMU_IOAS_CHANGE_PROCESS``: count the pinned memory to the calling process."""

    size: u32 = 0
    reserved: u32 = 0


# --- Options and VFIO compatibility ---

IOMMU_OPTION_RLIMIT_MODE = 0
IOMMU_OPTION_HUGE_PAGES = 1

IOMMU_OPTION_OP_SET = 0
IOMMU_OPTION_OP_GET = 1

IOMMU_VFIO_IOAS_GET = 0
IOMMU_VFIO_IOAS_SET = 1
IOMMU_VFIO_IOAS_CLEAR = 2


class iommu_option(CStruct):
    """Buffer of ``IOMMU_OPTION``; ``object_id`` is 0 for an option of the whole descriptor."""

    size: u32 = 0
    option_id: u32 = 0
    op: u16 = 0
    reserved: u16 = 0
    object_id: u32 = 0
    val64: u64 = 0


class iommu_vfio_ioas(CStruct):
    """Buffer of ``IOMMU_VFIO_IOAS``: the IOAS that VFIO's container requests act on."""

    size: u32 = 0
    ioas_id: u32 = 0
    op: u16 = 0
    reserved: u16 = 0


# --- Hardware page tables ---

IOMMU_HWPT_ALLOC_NEST_PARENT = 0x1
IOMMU_HWPT_ALLOC_DIRTY_TRACKING = 0x2
IOMMU_HWPT_FAULT_ID_VALID = 0x4
IOMMU_HWPT_ALLOC_PASID = 0x8

IOMMU_HWPT_DATA_NONE = 0
IOMMU_HWPT_DATA_VTD_S1 = 1
IOMMU_HWPT_DATA_ARM_SMMUV3 = 2
IOMMU_HWPT_DATA_AMD_GUEST = 3

IOMMU_VTD_S1_SRE = 0x1
IOMMU_VTD_S1_EAFE = 0x2
IOMMU_VTD_S1_WPE = 0x4


class iommu_hwpt_alloc(CStruct):
    """Buffer of ``IOMMU_HWPT_ALLOC``; kernels accept ``size`` from 24.

    ``pt_id`` is an IOAS for a page table of the kernel's making; a nesting parent or a vIOMMU
    for one that the guest keeps. The latter has ``data_len`` bytes of ``data_type`` at
    ``data_uptr``: :class:`iommu_hwpt_vtd_s1`, :class:`iommu_hwpt_arm_smmuv3` or
    :class:`iommu_hwpt_amd_guest`.
    """

    size: u32 = 0
    flags: u32 = 0
    dev_id: u32 = 0
    pt_id: u32 = 0
    out_hwpt_id: u32 = 0
    reserved: u32 = 0
    data_type: u32 = 0
    data_len: u32 = 0
    data_uptr: u64 = 0
    fault_id: u32 = 0
    reserved2: u32 = 0


class iommu_hwpt_vtd_s1(CStruct):
    """Data of ``IOMMU_HWPT_DATA_VTD_S1``: a guest's first-stage table of Intel VT-d.

    ``pgtbl_addr`` is a gpa, ``addr_width`` counts bits, ``flags`` are ``IOMMU_VTD_S1_*``.
    """

    flags: u64 = 0
    pgtbl_addr: u64 = 0
    addr_width: u32 = 0
    reserved: u32 = 0


class iommu_hwpt_arm_smmuv3(CStruct):
    """Data of ``IOMMU_HWPT_DATA_ARM_SMMUV3``: the first words of a Stream Table Entry."""

    ste0: u64 = 0
    ste1: u64 = 0


class iommu_hwpt_amd_guest(CStruct):
    """Data of ``IOMMU_HWPT_DATA_AMD_GUEST``: a guest's Device Table Entry."""

    dte0: u64 = 0
    dte1: u64 = 0
    dte2: u64 = 0
    dte3: u64 = 0


# --- What the hardware can do ---

IOMMU_HW_INFO_FLAG_INPUT_TYPE = 0x1

IOMMU_HW_INFO_TYPE_NONE = 0
IOMMU_HW_INFO_TYPE_DEFAULT = 0
IOMMU_HW_INFO_TYPE_INTEL_VTD = 1
IOMMU_HW_INFO_TYPE_ARM_SMMUV3 = 2
IOMMU_HW_INFO_TYPE_TEGRA241_CMDQV = 3
IOMMU_HW_INFO_TYPE_AMD = 4

IOMMU_HW_INFO_VTD_ERRATA_772415_SPR17 = 0x1

IOMMU_HW_CAP_DIRTY_TRACKING = 0x1
IOMMU_HW_CAP_PCI_PASID_EXEC = 0x2
IOMMU_HW_CAP_PCI_PASID_PRIV = 0x4
IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED = 0x8


class iommu_hw_info(CStruct):
    """Buffer of ``IOMMU_GET_HW_INFO``; kernels accept ``size`` from 32.

    Fills ``data_len`` bytes at ``data_uptr`` with a struct that ``out_data_type`` names, and
    returns in ``data_len`` how many bytes the kernel has. C unites ``out_data_type`` with
    ``in_data_type``: the type asked for when ``IOMMU_HW_INFO_FLAG_INPUT_TYPE``.
    ``out_max_pasid_log2`` is the width of PASIDs in bits, 0 for no PASID support.
    """

    size: u32 = 0
    flags: u32 = 0
    dev_id: u32 = 0
    data_len: u32 = 0
    data_uptr: u64 = 0
    out_data_type: u32 = 0
    out_max_pasid_log2: u8 = 0
    reserved0: u8 = 0
    reserved1: u8 = 0
    reserved2: u8 = 0
    out_capabilities: u64 = 0


class iommu_hw_info_vtd(CStruct):
    """Data of ``IOMMU_HW_INFO_TYPE_INTEL_VTD``: raw capability registers."""

    flags: u32 = 0
    reserved: u32 = 0
    cap_reg: u64 = 0
    ecap_reg: u64 = 0


class iommu_hw_info_arm_smmuv3(CStruct):
    """Data of ``IOMMU_HW_INFO_TYPE_ARM_SMMUV3``: raw identification registers."""

    flags: u32 = 0
    reserved: u32 = 0
    idr0: u32 = 0
    idr1: u32 = 0
    idr2: u32 = 0
    idr3: u32 = 0
    idr4: u32 = 0
    idr5: u32 = 0
    iidr: u32 = 0
    aidr: u32 = 0


class iommu_hw_info_tegra241_cmdqv(CStruct):
    """Data of ``IOMMU_HW_INFO_TYPE_TEGRA241_CMDQV``; counts as binary logarithms."""

    flags: u32 = 0
    version: u8 = 0
    log2vcmdqs: u8 = 0
    log2vsids: u8 = 0
    reserved: u8 = 0


class iommu_hw_info_amd(CStruct):
    """Data of ``IOMMU_HW_INFO_TYPE_AMD``: raw extended feature registers."""

    efr: u64 = 0
    efr2: u64 = 0


# --- Dirty tracking ---

IOMMU_HWPT_DIRTY_TRACKING_ENABLE = 0x1
IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR = 0x1


class iommu_hwpt_set_dirty_tracking(CStruct):
    """Buffer of ``IOMMU_HWPT_SET_DIRTY_TRACKING``; ``flags`` 0 stops."""

    size: u32 = 0
    flags: u32 = 0
    hwpt_id: u32 = 0
    reserved: u32 = 0


class iommu_hwpt_get_dirty_bitmap(CStruct):
    """Buffer of ``IOMMU_HWPT_GET_DIRTY_BITMAP``; ``data`` is a vaddr, one bit per ``page_size``."""

    size: u32 = 0
    hwpt_id: u32 = 0
    flags: u32 = 0
    reserved: u32 = 0
    iova: u64 = 0
    length: u64 = 0
    page_size: u64 = 0
    data: u64 = 0


# --- Invalidation of nested translation ---

IOMMU_HWPT_INVALIDATE_DATA_VTD_S1 = 0
IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3 = 1

IOMMU_VTD_INV_FLAGS_LEAF = 0x1


class iommu_hwpt_invalidate(CStruct):
    """Buffer of ``IOMMU_HWPT_INVALIDATE`` for a nested HWPT or a vIOMMU.

    ``data_uptr`` is the vaddr of ``entry_num`` entries of ``entry_len`` bytes;
    ``entry_num`` returns how many were handled, on failure too.
    """

    size: u32 = 0
    hwpt_id: u32 = 0
    data_uptr: u64 = 0
    data_type: u32 = 0
    entry_len: u32 = 0
    entry_num: u32 = 0
    reserved: u32 = 0


class iommu_hwpt_vtd_s1_invalidate(CStruct):
    """Entry of ``IOMMU_HWPT_INVALIDATE_DATA_VTD_S1``; ``npages`` counts 4 KiB pages.

    ``addr`` 0 with ``npages`` 2**64 - 1 invalidates everything of the table.
    """

    addr: u64 = 0
    npages: u64 = 0
    flags: u32 = 0
    reserved: u32 = 0


class iommu_viommu_arm_smmuv3_invalidate(CStruct):
    """Entry of ``IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3``: one command of the guest's queue."""

    cmd0: u64 = 0
    cmd1: u64 = 0


# --- I/O page faults: records read from a fault queue, responses written to it ---

IOMMU_PGFAULT_FLAGS_PASID_VALID = 0x1
IOMMU_PGFAULT_FLAGS_LAST_PAGE = 0x2

IOMMU_PGFAULT_PERM_READ = 0x1
IOMMU_PGFAULT_PERM_WRITE = 0x2
IOMMU_PGFAULT_PERM_EXEC = 0x4
IOMMU_PGFAULT_PERM_PRIV = 0x8

IOMMUFD_PAGE_RESP_SUCCESS = 0
IOMMUFD_PAGE_RESP_INVALID = 1


class iommu_fault_alloc(CStruct):
    """Buffer of ``IOMMU_FAULT_QUEUE_ALLOC``; ``flags`` is 0."""

    size: u32 = 0
    flags: u32 = 0
    out_fault_id: u32 = 0
    out_fault_fd: u32 = 0


class iommu_hwpt_pgfault(CStruct):
    """One fault; a response echoes the ``cookie`` of its group's last one.

    ``length`` hints at the bytes that the device will want, 0 for no hint.
    """

    flags: u32 = 0
    dev_id: u32 = 0
    pasid: u32 = 0
    grpid: u32 = 0
    perm: u32 = 0
    reserved: u32 = 0
    addr: u64 = 0
    length: u32 = 0
    cookie: u32 = 0


class iommu_hwpt_page_response(CStruct):
    """Answer to a group of faults; ``code`` is ``IOMMUFD_PAGE_RESP_*``."""

    cookie: u32 = 0
    code: u32 = 0


# --- Virtual IOMMUs ---

IOMMU_VIOMMU_TYPE_DEFAULT = 0
IOMMU_VIOMMU_TYPE_ARM_SMMUV3 = 1
IOMMU_VIOMMU_TYPE_TEGRA241_CMDQV = 2

IOMMU_HW_QUEUE_TYPE_DEFAULT = 0
IOMMU_HW_QUEUE_TYPE_TEGRA241_CMDQV = 1


class iommu_viommu_alloc(CStruct):
    """Buffer of ``IOMMU_VIOMMU_ALLOC``; kernels accept ``size`` from 24.

    ``hwpt_id`` is the nesting parent; ``data_len`` bytes at ``data_uptr`` depend on ``type``.
    """

    size: u32 = 0
    flags: u32 = 0
    type: u32 = 0
    dev_id: u32 = 0
    hwpt_id: u32 = 0
    out_viommu_id: u32 = 0
    data_len: u32 = 0
    reserved: u32 = 0
    data_uptr: u64 = 0


class iommu_viommu_tegra241_cmdqv(CStruct):
    """Data of ``IOMMU_VIOMMU_TYPE_TEGRA241_CMDQV``: what to map of the iommufd descriptor."""

    out_vintf_mmap_offset: u64 = 0
    out_vintf_mmap_length: u64 = 0


class iommu_vdevice_alloc(CStruct):
    """Buffer of ``IOMMU_VDEVICE_ALLOC``; ``virt_id`` is the guest's name for the device.

    That is a stream ID (SMMUv3), a device ID (AMD) or a requester ID (VT-d).
    """

    size: u32 = 0
    viommu_id: u32 = 0
    dev_id: u32 = 0
    out_vdevice_id: u32 = 0
    virt_id: u64 = 0


class iommu_hw_queue_alloc(CStruct):
    """Buffer of ``IOMMU_HW_QUEUE_ALLOC``: a guest's command queue that hardware reads itself.

    ``nesting_parent_iova`` is the queue's gpa, ``length`` its bytes.
    """

    size: u32 = 0
    flags: u32 = 0
    viommu_id: u32 = 0
    type: u32 = 0
    index: u32 = 0
    out_hw_queue_id: u32 = 0
    nesting_parent_iova: u64 = 0
    length: u64 = 0


# --- Events of virtual IOMMUs, read from an event queue ---

IOMMU_VEVENTQ_FLAG_LOST_EVENTS = 0x1

IOMMU_VEVENTQ_TYPE_DEFAULT = 0
IOMMU_VEVENTQ_TYPE_ARM_SMMUV3 = 1
IOMMU_VEVENTQ_TYPE_TEGRA241_CMDQV = 2


class iommu_veventq_alloc(CStruct):
    """Buffer of ``IOMMU_VEVENTQ_ALLOC``; kernels accept ``size`` from 28."""

    size: u32 = 0
    flags: u32 = 0
    viommu_id: u32 = 0
    type: u32 = 0
    veventq_depth: u32 = 0
    out_veventq_id: u32 = 0
    out_veventq_fd: u32 = 0
    reserved: u32 = 0


class iommufd_vevent_header(CStruct):
    """Head of one event; ``sequence`` runs to 2**31 - 1, then 0.

    The event's data follows, unless ``IOMMU_VEVENTQ_FLAG_LOST_EVENTS``.
    """

    flags: u32 = 0
    sequence: u32 = 0


class iommu_vevent_arm_smmuv3(CStruct):
    """Event of ``IOMMU_VEVENTQ_TYPE_ARM_SMMUV3``: the SMMU's record, with virtual stream ID."""

    evt0: u64 = 0
    evt1: u64 = 0
    evt2: u64 = 0
    evt3: u64 = 0


class iommu_vevent_tegra241_cmdqv(CStruct):
    """Event of ``IOMMU_VEVENTQ_TYPE_TEGRA241_CMDQV``: one bit for each queue in error."""

    lvcmdq_err_map0: u64 = 0
    lvcmdq_err_map1: u64 = 0


COMMANDS: dict[int, tuple[type[CStruct], int]] = {
    IOMMU_DESTROY: (iommu_destroy, 8),
    IOMMU_IOAS_ALLOC: (iommu_ioas_alloc, 12),
    IOMMU_IOAS_ALLOW_IOVAS: (iommu_ioas_allow_iovas, 24),
    IOMMU_IOAS_COPY: (iommu_ioas_copy, 40),
    IOMMU_IOAS_IOVA_RANGES: (iommu_ioas_iova_ranges, 32),
    IOMMU_IOAS_MAP: (iommu_ioas_map, 40),
    IOMMU_IOAS_UNMAP: (iommu_ioas_unmap, 24),
    IOMMU_OPTION: (iommu_option, 24),
    IOMMU_VFIO_IOAS: (iommu_vfio_ioas, 12),
    IOMMU_HWPT_ALLOC: (iommu_hwpt_alloc, 24),
    IOMMU_GET_HW_INFO: (iommu_hw_info, 32),
    IOMMU_HWPT_SET_DIRTY_TRACKING: (iommu_hwpt_set_dirty_tracking, 16),
    IOMMU_HWPT_GET_DIRTY_BITMAP: (iommu_hwpt_get_dirty_bitmap, 48),
    IOMMU_HWPT_INVALIDATE: (iommu_hwpt_invalidate, 32),
    IOMMU_FAULT_QUEUE_ALLOC: (iommu_fault_alloc, 16),
    IOMMU_IOAS_MAP_FILE: (iommu_ioas_map_file, 40),
    IOMMU_VIOMMU_ALLOC: (iommu_viommu_alloc, 24),
    IOMMU_VDEVICE_ALLOC: (iommu_vdevice_alloc, 24),
    IOMMU_IOAS_CHANGE_PROCESS: (iommu_ioas_change_process, 8),
    IOMMU_VEVENTQ_ALLOC: (iommu_veventq_alloc, 28),
    IOMMU_HW_QUEUE_ALLOC: (iommu_hw_queue_alloc, 40),
}
"""Request → its struct, and the least ``size`` in bytes that kernels accept for it.

A smaller ``size`` is ``EINVAL``. Not in the header: ``iommufd_ioctl_ops`` in
``drivers/iommu/iommufd/main.c`` names the last field that a caller must have.
"""
