"""PCI device assignment for Linux: see, assign, drive, emulate, prove."""

__version__ = "0.1.0"
