"""The part of ``linux/vfio.h`` for POWER machines: SPAPR TCE IOMMUs and EEH error handling.

C names verbatim; see :mod:`vfiokit.abi.vfio` for the conventions.

Source: Linux 7.2 ``include/uapi/linux/vfio.h``; ``tests/abi`` compares every name with it.
"""

from __future__ import annotations

from vfiokit.abi._layout import CStruct, u32, u64

VFIO_IOMMU_SPAPR_TCE_GET_INFO = 0x3B70
VFIO_IOMMU_SPAPR_REGISTER_MEMORY = 0x3B75
VFIO_IOMMU_SPAPR_UNREGISTER_MEMORY = 0x3B76
VFIO_IOMMU_SPAPR_TCE_CREATE = 0x3B77
VFIO_IOMMU_SPAPR_TCE_REMOVE = 0x3B78
VFIO_EEH_PE_OP = 0x3B79

VFIO_IOMMU_SPAPR_INFO_DDW = 0x1

VFIO_EEH_PE_DISABLE = 0
VFIO_EEH_PE_ENABLE = 1
VFIO_EEH_PE_UNFREEZE_IO = 2
VFIO_EEH_PE_UNFREEZE_DMA = 3
VFIO_EEH_PE_GET_STATE = 4
VFIO_EEH_PE_RESET_DEACTIVATE = 5
VFIO_EEH_PE_RESET_HOT = 6
VFIO_EEH_PE_RESET_FUNDAMENTAL = 7
VFIO_EEH_PE_CONFIGURE = 8
VFIO_EEH_PE_INJECT_ERR = 9

VFIO_EEH_PE_STATE_NORMAL = 0
VFIO_EEH_PE_STATE_RESET = 1
VFIO_EEH_PE_STATE_STOPPED = 2
VFIO_EEH_PE_STATE_STOPPED_DMA = 4
VFIO_EEH_PE_STATE_UNAVAIL = 5


class vfio_iommu_spapr_tce_ddw_info(CStruct):
    """Dynamic DMA windows that can be created."""

    pgsizes: u64 = 0
    max_dynamic_windows_supported: u32 = 0
    levels: u32 = 0


class vfio_iommu_spapr_tce_info(CStruct):
    """Buffer of ``VFIO_IOMMU_SPAPR_TCE_GET_INFO``; kernels accept ``argsz`` from 16.

    The last three fields are C's nested ``ddw``.
    """

    argsz: u32 = 0
    flags: u32 = 0
    dma32_window_start: u32 = 0
    dma32_window_size: u32 = 0
    pgsizes: u64 = 0
    max_dynamic_windows_supported: u32 = 0
    levels: u32 = 0


class vfio_eeh_pe_err(CStruct):
    """What ``VFIO_EEH_PE_INJECT_ERR`` injects."""

    type: u32 = 0
    func: u32 = 0
    addr: u64 = 0
    mask: u64 = 0


class vfio_eeh_pe_op(CStruct):
    """Buffer of ``VFIO_EEH_PE_OP``; kernels accept ``argsz`` from 12. C nests ``err``."""

    argsz: u32 = 0
    flags: u32 = 0
    op: u32 = 0
    padding: u32 = 0
    type: u32 = 0
    func: u32 = 0
    addr: u64 = 0
    mask: u64 = 0


class vfio_iommu_spapr_register_memory(CStruct):
    """Memory that may be mapped later; ``size`` in bytes."""

    argsz: u32 = 0
    flags: u32 = 0
    vaddr: u64 = 0
    size: u64 = 0


class vfio_iommu_spapr_tce_create(CStruct):
    """A DMA window to create; ``start_addr`` comes back as a bus address."""

    argsz: u32 = 0
    flags: u32 = 0
    page_shift: u32 = 0
    resv1: u32 = 0
    window_size: u64 = 0
    levels: u32 = 0
    resv2: u32 = 0
    start_addr: u64 = 0


class vfio_iommu_spapr_tce_remove(CStruct):
    """A DMA window to remove."""

    argsz: u32 = 0
    flags: u32 = 0
    start_addr: u64 = 0
