cloud-hypervisor \
  --cpus boot=16 \
  --memory size=64G,hugepages=on,hugepage_size=1G \
  --device \
    path=/sys/bus/pci/devices/0000:03:00.0/,id=fn0,iommu=on,x_nv_gpudirect_clique=0 \
    path=/sys/bus/pci/devices/0000:04:00.0/,id=fn1,iommu=on,x_nv_gpudirect_clique=0 \
    path=/sys/bus/pci/devices/0000:05:00.0/,id=fn2,iommu=on \
    path=/sys/bus/pci/devices/0000:05:00.1/,id=fn3,iommu=on \
    path=/sys/bus/pci/devices/0000:43:00.0/,id=fn4,iommu=on
