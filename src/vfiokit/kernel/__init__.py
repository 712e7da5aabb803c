"""The seam to the kernel: one protocol, and its backends."""
