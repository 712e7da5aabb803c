crosvm run \
  --cpus num-cores=2 \
  --mem size=4096 \
  --vfio /sys/bus/pci/devices/0000:03:00.0,iommu=off,guest-address=00:10.0 \
  --vfio /sys/bus/pci/devices/0000:04:00.0,iommu=off,guest-address=00:11.0 \
  --vfio /sys/bus/pci/devices/0000:05:00.0,iommu=off,guest-address=00:12.0 \
  --vfio /sys/bus/pci/devices/0000:05:00.1,iommu=off,guest-address=00:13.0 \
  --vfio /sys/bus/pci/devices/0000:43:00.0,iommu=off,guest-address=00:14.0 \
  KERNEL
