"""A real Linux kernel in QEMU."""
