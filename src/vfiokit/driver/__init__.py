"""Drivers in user space, written against :mod:`vfiokit.vfio` alone."""
