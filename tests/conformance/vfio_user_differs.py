"""Where a device on a socket is not what vfio-pci makes of one, and why.

vfio-pci stands between a program and a real function: it emulates configuration space, saves and
restores, and refuses what would harm the host. A vfio-user server gives the function itself; what
a guest may do is for its hypervisor to emulate.
"""

from __future__ import annotations

from collections.abc import Iterable

VFIO_USER_AREAS = frozenset({"config", "device", "feature", "irq", "region"})
"""What concerns a device alone: the protocol has no groups, containers and address spaces."""

_OWN_CONFIG = "configuration space is the function's own; a hypervisor emulates what it wants"
_AT_CLOSE = "the device keeps its state when a client leaves"
_EINVAL = "the server refuses it with EINVAL, as libvfio-user does"
_ACCEPTED = "the server accepts it and nothing happens, as with libvfio-user"
_INDICES = "interrupt indices know nothing of each other"
_EVERY_INDEX = "every device has all five indices and nine regions, some of them empty"
_MESSAGES = "registers are reached by message: the model has no memory to map"
_TABLE = "the MSI-X table is the client's to emulate, and the server's reads as it is"
_IOEVENTFD = "the protocol has no such request; GET_REGION_IO_FDS goes the other way"
_OTHER_FEATURES = "a served device can be moved and logs its DMA; it has no dma-buf and no token"


def _each(area: str, reason: str, names: Iterable[str]) -> dict[str, str]:
    return {f"{area}/{name}": reason for name in names}


VFIO_USER_DIFFERS = {
    **_each(
        "config",
        _OWN_CONFIG,
        (
            *("interrupt-line-is-only-shown", "bar-written-stays-where-it-is"),
            *("msix-control-cannot-be-written", "msi-cannot-be-enabled-by-a-write"),
            *("msi-address-and-data-are-only-shown", "express-device-control-is-partly-shown"),
            *("express-link-control-cannot-be-written", "function-level-reset-by-a-write"),
            "virtual-functions-cannot-be-enabled-by-a-write",
            *("power-state-follows-a-write", "pme-is-hidden"),
            "bars-lost-to-a-reset-are-restored",
        ),
    ),
    **_each(
        "config",
        _AT_CLOSE,
        ("bus-mastering-ends-with-the-last-close", "bars-are-as-before-after-reopening"),
    ),
    "device/closing-gives-the-function-back-as-it-was": _AT_CLOSE,
    "device/without-reset-says-so": "every served device can be reset",
    "device/reset-keeps-mappings": _MESSAGES,
    **_each(
        "feature",
        _OTHER_FEATURES,
        (
            *("dirty-logging-without-driver-is-enotty", "precopy-without-migration-is-einval"),
            *("probe-tells-what-is-there", "probe-without-operation", "wrong-operation-is-einval"),
        ),
    ),
    **_each(
        "irq",
        _EVERY_INDEX,
        (
            *("counts-of-conventional-pci", "flags-of-error-and-request"),
            "set-of-an-index-without-interrupts-is-einval",
        ),
    ),
    "irq/flags-of-msix-with-vectors-to-add": "NORESIZE: a set that grows is given anew",
    **_each(
        "irq",
        _EINVAL,
        (
            *("set-without-action-is-enotty", "set-with-two-actions-is-enotty"),
            *("mask-of-msi-is-enotty", "mask-of-request-notification-is-enotty"),
            "intx-eventfd-that-is-none",
        ),
    ),
    **_each(
        "irq",
        _ACCEPTED,
        (
            *("second-unmasking-eventfd-is-ebusy", "masking-eventfd-is-enotty"),
            *("intx-requests-without-intx-are-einval", "intx-disabled-twice", "msi-loops-back"),
            *("msi-disabled-that-is-not-enabled-is-einval", "request-notification-loops-back"),
            *("msi-eventfd-that-is-none-enables-nothing", "request-eventfd-can-be-taken-away"),
        ),
    ),
    **_each(
        "irq",
        _INDICES,
        ("msi-while-intx-is-active-is-einval", "intx-while-msi-is-active-is-einval"),
    ),
    "irq/msi-enable-is-shown-once-it-is-written": _OWN_CONFIG,
    **_each(
        "region",
        _MESSAGES,
        (
            *("bar-of-registers", "aligned-bar-smaller-than-a-page-can-be-mapped"),
            *("mapped-registers-answer", "part-of-a-bar-can-be-mapped", "msix-table-can-be-mapped"),
            *("small-bar-is-mapped-as-a-page", "mapping-keeps-the-device-open"),
            "access-to-mapped-bar-without-memory-enable-is-a-bus-error",
        ),
    ),
    "region/vga-of-another-device-is-einval": _EVERY_INDEX,
    "region/memory-bar-without-memory-enable-is-eio": _OWN_CONFIG,
    **_each(
        "region",
        _TABLE,
        (
            "bar-with-the-msix-table-says-that-it-can-be-mapped",
            *(
                "msix-table-reads-as-ones-and-drops-writes",
                "read-across-the-start-of-the-msix-table",
            ),
        ),
    ),
    **_each(
        "region",
        _IOEVENTFD,
        (
            *("ioeventfd-writes-its-value", "ioeventfd-that-is-removed-writes-nothing"),
            *("same-ioeventfd-again-is-eexist", "ioeventfd-of-8-bytes-is-einval"),
            *("ioeventfd-wants-exactly-one-width", "ioeventfd-outside-bars-is-einval"),
            *("ioeventfd-on-the-msix-table-is-einval", "ioeventfd-with-bad-descriptor"),
            "ioeventfd-with-short-argsz-is-einval",
        ),
    ),
}
"""Behaviours of vfio-pci that such a device does not share."""
