"""Where a topology comes from: live sysfs, an unpacked or packed capture, a umockdev record."""
