"""``linux/vfio.h``: ioctl numbers, flags and structs of VFIO, C names verbatim.

Requests are ``_IO(';', 100 + n)``: they carry neither size nor direction, and the same number
means different things on a container, a group and a device. Lengths travel in ``argsz``.
Structs hold their fixed part; what C declares as a flexible array follows it in the buffer.
A nested ``struct vfio_info_cap_header header`` is spelled out as ``id``, ``version``, ``next``.

What only POWER machines have is in :mod:`vfiokit.abi.vfio_spapr`.

Source: Linux 7.2 ``include/uapi/linux/vfio.h``; ``tests/abi`` compares every name with it.
"""

from __future__ import annotations

from vfiokit.abi._layout import CStruct, s32, u8, u16, u32, u64

VFIO_API_VERSION = 0

VFIO_TYPE = 0x3B
VFIO_BASE = 100

# Extensions: answers of VFIO_CHECK_EXTENSION, and IOMMU types of VFIO_SET_IOMMU.
VFIO_TYPE1_IOMMU = 1
VFIO_SPAPR_TCE_IOMMU = 2
VFIO_TYPE1v2_IOMMU = 3
VFIO_DMA_CC_IOMMU = 4
VFIO_EEH = 5
VFIO_SPAPR_TCE_v2_IOMMU = 7
VFIO_NOIOMMU_IOMMU = 8
VFIO_UNMAP_ALL = 9
VFIO_UPDATE_VADDR = 10

# Container.
VFIO_GET_API_VERSION = 0x3B64
VFIO_CHECK_EXTENSION = 0x3B65
VFIO_SET_IOMMU = 0x3B66

# Group.
VFIO_GROUP_GET_STATUS = 0x3B67
VFIO_GROUP_SET_CONTAINER = 0x3B68
VFIO_GROUP_UNSET_CONTAINER = 0x3B69
VFIO_GROUP_GET_DEVICE_FD = 0x3B6A

# Device.
VFIO_DEVICE_GET_INFO = 0x3B6B
VFIO_DEVICE_GET_REGION_INFO = 0x3B6C
VFIO_DEVICE_GET_IRQ_INFO = 0x3B6D
VFIO_DEVICE_SET_IRQS = 0x3B6E
VFIO_DEVICE_RESET = 0x3B6F
VFIO_DEVICE_GET_PCI_HOT_RESET_INFO = 0x3B70
VFIO_DEVICE_PCI_HOT_RESET = 0x3B71
VFIO_DEVICE_QUERY_GFX_PLANE = 0x3B72
VFIO_DEVICE_GET_GFX_DMABUF = 0x3B73
VFIO_DEVICE_IOEVENTFD = 0x3B74
VFIO_DEVICE_FEATURE = 0x3B75
VFIO_DEVICE_BIND_IOMMUFD = 0x3B76
VFIO_DEVICE_ATTACH_IOMMUFD_PT = 0x3B77
VFIO_DEVICE_DETACH_IOMMUFD_PT = 0x3B78

# Migration data file.
VFIO_MIG_GET_PRECOPY_INFO = 0x3B79

# Container with a type1 IOMMU.
VFIO_IOMMU_GET_INFO = 0x3B70
VFIO_IOMMU_MAP_DMA = 0x3B71
VFIO_IOMMU_UNMAP_DMA = 0x3B72
VFIO_IOMMU_ENABLE = 0x3B73
VFIO_IOMMU_DISABLE = 0x3B74
VFIO_IOMMU_DIRTY_PAGES = 0x3B75


class vfio_info_cap_header(CStruct):
    """Head of one capability in an info buffer; ``next`` counts from the struct's start."""

    id: u16 = 0
    version: u16 = 0
    next: u32 = 0


# --- Groups ---

VFIO_GROUP_FLAGS_VIABLE = 0x1
VFIO_GROUP_FLAGS_CONTAINER_SET = 0x2


class vfio_group_status(CStruct):
    """Buffer of ``VFIO_GROUP_GET_STATUS``."""

    argsz: u32 = 0
    flags: u32 = 0


# --- Devices ---

VFIO_DEVICE_FLAGS_RESET = 0x001
VFIO_DEVICE_FLAGS_PCI = 0x002
VFIO_DEVICE_FLAGS_PLATFORM = 0x004
VFIO_DEVICE_FLAGS_AMBA = 0x008
VFIO_DEVICE_FLAGS_CCW = 0x010
VFIO_DEVICE_FLAGS_AP = 0x020
VFIO_DEVICE_FLAGS_FSL_MC = 0x040
VFIO_DEVICE_FLAGS_CAPS = 0x080
VFIO_DEVICE_FLAGS_CDX = 0x100

VFIO_DEVICE_API_PCI_STRING = "vfio-pci"

VFIO_DEVICE_INFO_CAP_ZPCI_BASE = 1
VFIO_DEVICE_INFO_CAP_ZPCI_GROUP = 2
VFIO_DEVICE_INFO_CAP_ZPCI_UTIL = 3
VFIO_DEVICE_INFO_CAP_ZPCI_PFIP = 4
VFIO_DEVICE_INFO_CAP_PCI_ATOMIC_COMP = 5

VFIO_PCI_ATOMIC_COMP32 = 0x1
VFIO_PCI_ATOMIC_COMP64 = 0x2
VFIO_PCI_ATOMIC_COMP128 = 0x4


class vfio_device_info(CStruct):
    """Buffer of ``VFIO_DEVICE_GET_INFO``; kernels accept ``argsz`` from 16."""

    argsz: u32 = 0
    flags: u32 = 0
    num_regions: u32 = 0
    num_irqs: u32 = 0
    cap_offset: u32 = 0
    pad: u32 = 0


class vfio_device_info_cap_pci_atomic_comp(CStruct):
    """AtomicOp completer widths of the root port: ``VFIO_PCI_ATOMIC_COMP*``."""

    id: u16 = 0
    version: u16 = 0
    next: u32 = 0
    flags: u32 = 0
    reserved: u32 = 0


# --- Regions ---

VFIO_REGION_INFO_FLAG_READ = 0x1
VFIO_REGION_INFO_FLAG_WRITE = 0x2
VFIO_REGION_INFO_FLAG_MMAP = 0x4
VFIO_REGION_INFO_FLAG_CAPS = 0x8

VFIO_REGION_INFO_CAP_SPARSE_MMAP = 1
VFIO_REGION_INFO_CAP_TYPE = 2
VFIO_REGION_INFO_CAP_MSIX_MAPPABLE = 3
VFIO_REGION_INFO_CAP_NVLINK2_SSATGT = 4
VFIO_REGION_INFO_CAP_NVLINK2_LNKSPD = 5

VFIO_REGION_TYPE_PCI_VENDOR_TYPE = 0x8000_0000
VFIO_REGION_TYPE_PCI_VENDOR_MASK = 0xFFFF
VFIO_REGION_TYPE_GFX = 1
VFIO_REGION_TYPE_CCW = 2
VFIO_REGION_TYPE_MIGRATION_DEPRECATED = 3

VFIO_REGION_SUBTYPE_INTEL_IGD_OPREGION = 1
VFIO_REGION_SUBTYPE_INTEL_IGD_HOST_CFG = 2
VFIO_REGION_SUBTYPE_INTEL_IGD_LPC_CFG = 3
VFIO_REGION_SUBTYPE_NVIDIA_NVLINK2_RAM = 1
VFIO_REGION_SUBTYPE_IBM_NVLINK2_ATSD = 1
VFIO_REGION_SUBTYPE_GFX_EDID = 1

VFIO_PCI_BAR0_REGION_INDEX = 0
VFIO_PCI_BAR1_REGION_INDEX = 1
VFIO_PCI_BAR2_REGION_INDEX = 2
VFIO_PCI_BAR3_REGION_INDEX = 3
VFIO_PCI_BAR4_REGION_INDEX = 4
VFIO_PCI_BAR5_REGION_INDEX = 5
VFIO_PCI_ROM_REGION_INDEX = 6
VFIO_PCI_CONFIG_REGION_INDEX = 7
VFIO_PCI_VGA_REGION_INDEX = 8
VFIO_PCI_NUM_REGIONS = 9

# Not in the header: vfio-pci places region ``index`` at file offset ``index << 40``
# (include/linux/vfio_pci_core.h). Portable programs use vfio_region_info.offset.
VFIO_PCI_OFFSET_SHIFT = 40
VFIO_PCI_OFFSET_MASK = (1 << VFIO_PCI_OFFSET_SHIFT) - 1


class vfio_region_info(CStruct):
    """Buffer of ``VFIO_DEVICE_GET_REGION_INFO``; ``size`` and ``offset`` in bytes."""

    argsz: u32 = 0
    flags: u32 = 0
    index: u32 = 0
    cap_offset: u32 = 0
    size: u64 = 0
    offset: u64 = 0


class vfio_region_sparse_mmap_area(CStruct):
    """One part of a region that can be mapped; bytes within the region."""

    offset: u64 = 0
    size: u64 = 0


class vfio_region_info_cap_sparse_mmap(CStruct):
    """``nr_areas`` times :class:`vfio_region_sparse_mmap_area` follow."""

    id: u16 = 0
    version: u16 = 0
    next: u32 = 0
    nr_areas: u32 = 0
    reserved: u32 = 0


class vfio_region_info_cap_type(CStruct):
    """What a device-specific region is."""

    id: u16 = 0
    version: u16 = 0
    next: u32 = 0
    type: u32 = 0
    subtype: u32 = 0


# --- Interrupts ---

VFIO_IRQ_INFO_EVENTFD = 0x1
VFIO_IRQ_INFO_MASKABLE = 0x2
VFIO_IRQ_INFO_AUTOMASKED = 0x4
VFIO_IRQ_INFO_NORESIZE = 0x8

VFIO_IRQ_SET_DATA_NONE = 0x01
VFIO_IRQ_SET_DATA_BOOL = 0x02
VFIO_IRQ_SET_DATA_EVENTFD = 0x04
VFIO_IRQ_SET_ACTION_MASK = 0x08
VFIO_IRQ_SET_ACTION_UNMASK = 0x10
VFIO_IRQ_SET_ACTION_TRIGGER = 0x20
VFIO_IRQ_SET_DATA_TYPE_MASK = 0x07
VFIO_IRQ_SET_ACTION_TYPE_MASK = 0x38

VFIO_PCI_INTX_IRQ_INDEX = 0
VFIO_PCI_MSI_IRQ_INDEX = 1
VFIO_PCI_MSIX_IRQ_INDEX = 2
VFIO_PCI_ERR_IRQ_INDEX = 3
VFIO_PCI_REQ_IRQ_INDEX = 4
VFIO_PCI_NUM_IRQS = 5


class vfio_irq_info(CStruct):
    """Buffer of ``VFIO_DEVICE_GET_IRQ_INFO``."""

    argsz: u32 = 0
    flags: u32 = 0
    index: u32 = 0
    count: u32 = 0


class vfio_irq_set(CStruct):
    """Head of ``VFIO_DEVICE_SET_IRQS``; ``count`` times u8 (BOOL) or s32 (EVENTFD) follow."""

    argsz: u32 = 0
    flags: u32 = 0
    index: u32 = 0
    start: u32 = 0
    count: u32 = 0


# --- Hot reset ---

VFIO_PCI_HOT_RESET_FLAG_DEV_ID = 0x1
VFIO_PCI_HOT_RESET_FLAG_DEV_ID_OWNED = 0x2
VFIO_PCI_DEVID_OWNED = 0
VFIO_PCI_DEVID_NOT_OWNED = -1


class vfio_pci_dependent_device(CStruct):
    """A function that a hot reset takes along.

    C unites ``group_id`` with ``devid``: the latter when ``VFIO_PCI_HOT_RESET_FLAG_DEV_ID``.
    """

    group_id: u32 = 0
    segment: u16 = 0
    bus: u8 = 0
    devfn: u8 = 0


class vfio_pci_hot_reset_info(CStruct):
    """``count`` times :class:`vfio_pci_dependent_device` follow."""

    argsz: u32 = 0
    flags: u32 = 0
    count: u32 = 0


class vfio_pci_hot_reset(CStruct):
    """``count`` group descriptors (s32) follow; none for a device opened by its own node."""

    argsz: u32 = 0
    flags: u32 = 0
    count: u32 = 0


# --- Other device requests ---

VFIO_DEVICE_IOEVENTFD_8 = 0x1
VFIO_DEVICE_IOEVENTFD_16 = 0x2
VFIO_DEVICE_IOEVENTFD_32 = 0x4
VFIO_DEVICE_IOEVENTFD_64 = 0x8
VFIO_DEVICE_IOEVENTFD_SIZE_MASK = 0xF


class vfio_device_ioeventfd(CStruct):
    """Write ``data`` at file ``offset`` when ``fd`` fires; ``fd`` -1 removes. Minimum 28 bytes."""

    argsz: u32 = 0
    flags: u32 = 0
    offset: u64 = 0
    data: u64 = 0
    fd: s32 = 0
    reserved: u32 = 0


VFIO_DEVICE_FEATURE_MASK = 0xFFFF
VFIO_DEVICE_FEATURE_GET = 0x10000
VFIO_DEVICE_FEATURE_SET = 0x20000
VFIO_DEVICE_FEATURE_PROBE = 0x40000


class vfio_device_feature(CStruct):
    """Head of ``VFIO_DEVICE_FEATURE``; the feature's own struct follows."""

    argsz: u32 = 0
    flags: u32 = 0


VFIO_DEVICE_BIND_FLAG_TOKEN = 0x1
VFIO_DEVICE_ATTACH_PASID = 0x1
VFIO_DEVICE_DETACH_PASID = 0x1


class vfio_device_bind_iommufd(CStruct):
    """Buffer of ``VFIO_DEVICE_BIND_IOMMUFD``; kernels accept ``argsz`` from 16."""

    argsz: u32 = 0
    flags: u32 = 0
    iommufd: s32 = 0
    out_devid: u32 = 0
    token_uuid_ptr: u64 = 0


class vfio_device_attach_iommufd_pt(CStruct):
    """Buffer of ``VFIO_DEVICE_ATTACH_IOMMUFD_PT``; kernels accept ``argsz`` from 12."""

    argsz: u32 = 0
    flags: u32 = 0
    pt_id: u32 = 0
    pasid: u32 = 0


class vfio_device_detach_iommufd_pt(CStruct):
    """Buffer of ``VFIO_DEVICE_DETACH_IOMMUFD_PT``; kernels accept ``argsz`` from 8."""

    argsz: u32 = 0
    flags: u32 = 0
    pasid: u32 = 0


# --- Device features ---

VFIO_DEVICE_FEATURE_PCI_VF_TOKEN = 0
VFIO_DEVICE_FEATURE_MIGRATION = 1
VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE = 2
VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY = 3
VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP = 4
VFIO_DEVICE_FEATURE_LOW_POWER_EXIT = 5
VFIO_DEVICE_FEATURE_DMA_LOGGING_START = 6
VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP = 7
VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT = 8
VFIO_DEVICE_FEATURE_MIG_DATA_SIZE = 9
VFIO_DEVICE_FEATURE_BUS_MASTER = 10
VFIO_DEVICE_FEATURE_DMA_BUF = 11
VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2 = 12

VFIO_DEVICE_FEATURE_CLEAR_MASTER = 0
VFIO_DEVICE_FEATURE_SET_MASTER = 1

VFIO_MIGRATION_STOP_COPY = 0x1
VFIO_MIGRATION_P2P = 0x2
VFIO_MIGRATION_PRE_COPY = 0x4

VFIO_PRECOPY_INFO_REINIT = 0x1

VFIO_DEVICE_STATE_ERROR = 0
VFIO_DEVICE_STATE_STOP = 1
VFIO_DEVICE_STATE_RUNNING = 2
VFIO_DEVICE_STATE_STOP_COPY = 3
VFIO_DEVICE_STATE_RESUMING = 4
VFIO_DEVICE_STATE_RUNNING_P2P = 5
VFIO_DEVICE_STATE_PRE_COPY = 6
VFIO_DEVICE_STATE_PRE_COPY_P2P = 7


class vfio_device_feature_migration(CStruct):
    """``VFIO_MIGRATION_*`` flags."""

    flags: u64 = 0


class vfio_device_feature_mig_state(CStruct):
    """A migration state, and the data file that comes with entering some of them."""

    device_state: u32 = 0
    data_fd: s32 = 0


class vfio_precopy_info(CStruct):
    """Buffer of ``VFIO_MIG_GET_PRECOPY_INFO``; bytes still to transfer."""

    argsz: u32 = 0
    flags: u32 = 0
    initial_bytes: u64 = 0
    dirty_bytes: u64 = 0


class vfio_device_low_power_entry_with_wakeup(CStruct):
    """Low power until the eventfd fires."""

    wakeup_eventfd: s32 = 0
    reserved: u32 = 0


class vfio_device_feature_dma_logging_control(CStruct):
    """``ranges`` is the vaddr of :class:`vfio_device_feature_dma_logging_range` entries."""

    page_size: u64 = 0
    num_ranges: u32 = 0
    reserved: u32 = 0
    ranges: u64 = 0


class vfio_device_feature_dma_logging_range(CStruct):
    """One IOVA range to watch, in bytes."""

    iova: u64 = 0
    length: u64 = 0


class vfio_device_feature_dma_logging_report(CStruct):
    """Dirty bitmap of one IOVA range; ``bitmap`` is a vaddr, one bit per ``page_size``."""

    iova: u64 = 0
    length: u64 = 0
    page_size: u64 = 0
    bitmap: u64 = 0


class vfio_device_feature_mig_data_size(CStruct):
    """Estimated bytes of a stop-copy."""

    stop_copy_length: u64 = 0


class vfio_device_feature_bus_master(CStruct):
    """``VFIO_DEVICE_FEATURE_CLEAR_MASTER`` or ``VFIO_DEVICE_FEATURE_SET_MASTER``."""

    op: u32 = 0


class vfio_region_dma_range(CStruct):
    """One part of a region in a dma-buf, in bytes."""

    offset: u64 = 0
    length: u64 = 0


class vfio_device_feature_dma_buf(CStruct):
    """``nr_ranges`` times :class:`vfio_region_dma_range` follow; the ioctl returns the new fd."""

    region_index: u32 = 0
    open_flags: u32 = 0
    flags: u32 = 0
    nr_ranges: u32 = 0


# --- type1 IOMMU ---

VFIO_IOMMU_INFO_PGSIZES = 0x1
VFIO_IOMMU_INFO_CAPS = 0x2

VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE = 1
VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION = 2
VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL = 3

VFIO_DMA_MAP_FLAG_READ = 0x1
VFIO_DMA_MAP_FLAG_WRITE = 0x2
VFIO_DMA_MAP_FLAG_VADDR = 0x4

VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP = 0x1
VFIO_DMA_UNMAP_FLAG_ALL = 0x2
VFIO_DMA_UNMAP_FLAG_VADDR = 0x4

VFIO_IOMMU_DIRTY_PAGES_FLAG_START = 0x1
VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP = 0x2
VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP = 0x4


class vfio_iommu_type1_info(CStruct):
    """Buffer of ``VFIO_IOMMU_GET_INFO``; kernels accept ``argsz`` from 16."""

    argsz: u32 = 0
    flags: u32 = 0
    iova_pgsizes: u64 = 0
    cap_offset: u32 = 0
    pad: u32 = 0


class vfio_iova_range(CStruct):
    """An IOVA range that can be mapped; ``end`` is its last byte, inclusive."""

    start: u64 = 0
    end: u64 = 0


class vfio_iommu_type1_info_cap_iova_range(CStruct):
    """``nr_iovas`` times :class:`vfio_iova_range` follow."""

    id: u16 = 0
    version: u16 = 0
    next: u32 = 0
    nr_iovas: u32 = 0
    reserved: u32 = 0


class vfio_iommu_type1_info_cap_migration(CStruct):
    """Dirty page tracking; ``max_dirty_bitmap_size`` in bytes."""

    id: u16 = 0
    version: u16 = 0
    next: u32 = 0
    flags: u32 = 0
    pgsize_bitmap: u64 = 0
    max_dirty_bitmap_size: u64 = 0


class vfio_iommu_type1_info_dma_avail(CStruct):
    """How many more mappings the container may hold."""

    id: u16 = 0
    version: u16 = 0
    next: u32 = 0
    avail: u32 = 0


class vfio_iommu_type1_dma_map(CStruct):
    """Buffer of ``VFIO_IOMMU_MAP_DMA``; ``size`` in bytes."""

    argsz: u32 = 0
    flags: u32 = 0
    vaddr: u64 = 0
    iova: u64 = 0
    size: u64 = 0


class vfio_iommu_type1_dma_unmap(CStruct):
    """Head of ``VFIO_IOMMU_UNMAP_DMA``; :class:`vfio_bitmap` follows when a bitmap is asked."""

    argsz: u32 = 0
    flags: u32 = 0
    iova: u64 = 0
    size: u64 = 0


class vfio_bitmap(CStruct):
    """``data`` is the vaddr of ``size`` bytes, one bit per ``pgsize`` bytes of IOVA."""

    pgsize: u64 = 0
    size: u64 = 0
    data: u64 = 0


class vfio_iommu_type1_dirty_bitmap(CStruct):
    """Head of ``VFIO_IOMMU_DIRTY_PAGES``; ``_get`` follows for ``FLAG_GET_BITMAP``."""

    argsz: u32 = 0
    flags: u32 = 0


class vfio_iommu_type1_dirty_bitmap_get(CStruct):
    """The IOVA range asked for; :class:`vfio_bitmap` (nested in C as ``bitmap``) follows."""

    iova: u64 = 0
    size: u64 = 0
    pgsize: u64 = 0
    bitmap_size: u64 = 0
    data: u64 = 0
