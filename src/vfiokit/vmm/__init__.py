"""A small hypervisor on :mod:`vfiokit.vfio`: guest memory, processors, trap map, interrupts.

It knows devices only through VFIO, so it runs on a software twin as on live hardware.
"""
