"""The software machine: PCI fabric, IOMMU, interrupts, devices, and a kernel on top."""
