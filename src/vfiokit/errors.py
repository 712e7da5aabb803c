"""The error tree of vfiokit.

Every error that a user can meet derives from :class:`VfiokitError` and says what was
wrong, with which object, and what to do::

    VfiokitError
    ├── UsageError                     the request itself makes no sense
    │   ├── AddressError               text is no PCI address
    │   ├── BlueprintError             text is no topology (pci.blueprint)
    │   └── DeviceNotFoundError        no (or more than one) function answers to a selector
    ├── ConfigRangeError               read outside the captured configuration space
    ├── SourceError                    a host description cannot be read
    │   ├── FormatError                not in the format it claims; carries path and line
    │   └── UnsafeArchiveError         an archive that would write or read outside its tree
    ├── KernelError (also OSError)     an operation of the kernel failed; carries errno
    │   ├── GroupNotViableError        a group member is bound to a host driver
    │   ├── IovaConflictError          an IOVA range is already mapped
    │   └── DeviceBusyError            someone else holds the device or its group
    ├── MachineError                   a software machine was described or used wrongly
    ├── ProtocolError                  a vfio-user peer broke the protocol; carries errno
    ├── LabError                       a guest could not be started, or did not answer (lab)
    ├── AssignError
    │   ├── PlanBlockedError           the plan has blockers that were not forced by name
    │   ├── DriftError                 the host is no longer what the plan was made for
    │   ├── ApplyError                 a step failed; says whether it was rolled back
    │   └── JournalError               the journal is damaged or belongs to another host
    └── DriverError
        ├── DeviceTimeoutError         a device did not answer in time
        ├── ControllerFatalError       an NVMe controller reports a fatal status
        └── NvmeCommandError           a command completed with an error status
"""

from __future__ import annotations

import errno as _errno
import os


class VfiokitError(Exception):
    """Base of every error raised by vfiokit on purpose."""

    hint: str = ""
    """What to do next, one sentence; empty when the message already says it."""

    def __init__(self, message: str = "", *, hint: str = "") -> None:
        super().__init__(message)
        if hint:
            self.hint = hint


class UsageError(VfiokitError):
    """The request itself makes no sense: a bad argument, an impossible combination."""


class AddressError(UsageError, ValueError):
    """A text or number is not a PCI address."""


class DeviceNotFoundError(UsageError, LookupError):
    """No function, or more than one, answers to a selector."""


class ConfigRangeError(VfiokitError, IndexError):
    """A register lies outside the configuration bytes at hand.

    Captures made without privilege hold 64 bytes, conventional functions 256.
    """

    def __init__(self, offset: int, width: int, size: int) -> None:
        super().__init__(
            f"{width}-byte register at {offset:#x} lies outside the {size} bytes of "
            "configuration space at hand"
        )
        self.offset = offset
        self.width = width
        self.size = size


class SourceError(VfiokitError):
    """A host description (live, capture, record, dump) cannot be read."""


class FormatError(SourceError, ValueError):
    """A file is not in the format it claims to be.

    ``path`` names the file, ``line`` the 1-based line (0 when it has none).
    """

    def __init__(self, message: str, *, path: str = "", line: int = 0, hint: str = "") -> None:
        where = f"{path}:{line}: " if line else f"{path}: " if path else ""
        super().__init__(where + message, hint=hint)
        self.path = path
        self.line = line


class UnsafeArchiveError(SourceError):
    """An archive holds something that could reach outside its own tree, or is a bomb."""


class KernelError(VfiokitError, OSError):
    """An operation of the kernel failed.

    ``operation`` is what was asked (``VFIO_IOMMU_MAP_DMA``), ``subject`` what it was asked
    of, ``errno`` the kernel's answer.
    """

    def __init__(
        self, operation: str, subject: str, errno: int, *, detail: str = "", hint: str = ""
    ) -> None:
        name = _errno.errorcode.get(errno, str(errno))
        text = f"{operation} on {subject}: {name} ({os.strerror(errno)})"
        if detail:
            text += f": {detail}"
        OSError.__init__(self, errno, text)
        self.operation = operation
        self.subject = subject
        self.detail = detail
        if hint:
            self.hint = hint

    def __str__(self) -> str:
        return str(self.args[1])


class GroupNotViableError(KernelError):
    """A member of the IOMMU group is bound to a driver of the host.

    ``blockers`` maps the address of each such function to its driver.
    """

    def __init__(self, group: int, blockers: dict[str, str], *, errno: int = _errno.EPERM) -> None:
        listed = ", ".join(f"{bdf} ({driver})" for bdf, driver in blockers.items())
        super().__init__(
            "VFIO_GROUP_GET_STATUS",
            f"group {group}",
            errno,
            detail=f"not viable; bound to host drivers: {listed or 'unknown'}",
            hint="unbind these functions, or bind all of them to vfio-pci",
        )
        self.group = group
        self.blockers = blockers


class IovaConflictError(KernelError):
    """An IOVA range overlaps one that is already mapped."""


class DeviceBusyError(KernelError):
    """Someone else holds the device or its group."""


class MachineError(VfiokitError):
    """A software machine was described or used wrongly."""


class ProtocolError(VfiokitError):
    """A vfio-user peer broke the protocol.

    ``errno`` is what the protocol answers to it. ``fatal`` says whether the stream is lost, so that
    only closing the connection is left; otherwise the next message can be read.
    """

    def __init__(
        self, message: str, *, errno: int = _errno.EINVAL, fatal: bool = False, hint: str = ""
    ) -> None:
        super().__init__(message, hint=hint)
        self.errno = errno
        self.fatal = fatal


class AssignError(VfiokitError):
    """An assignment cannot be planned, applied or undone."""


class PlanBlockedError(AssignError):
    """The plan has blockers that were not forced by name; ``blockers`` lists their ids."""

    def __init__(self, message: str, blockers: tuple[str, ...], *, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.blockers = blockers


class DriftError(AssignError):
    """The host is no longer what the plan was made for."""


class ApplyError(AssignError):
    """A step of a plan failed; ``rolled_back`` says whether every earlier step was undone."""

    def __init__(self, message: str, *, rolled_back: bool, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.rolled_back = rolled_back


class JournalError(AssignError):
    """A journal is damaged, or belongs to another host or boot."""


class DriverError(VfiokitError):
    """A user-space driver met a device that does not do what its specification says."""


class DeviceTimeoutError(DriverError, TimeoutError):
    """A device did not answer in time."""


class ControllerFatalError(DriverError):
    """An NVMe controller reports CSTS.CFS."""


class NvmeCommandError(DriverError):
    """An NVMe command completed with an error.

    ``status_type`` and ``status_code`` are SCT and SC of the completion entry, ``do_not_retry``
    its DNR bit, ``opcode`` the command's.
    """

    def __init__(
        self,
        operation: str,
        opcode: int,
        status_type: int,
        status_code: int,
        do_not_retry: bool,
        *,
        name: str = "",
    ) -> None:
        label = f" ({name})" if name else ""
        super().__init__(
            f"NVMe {operation} (opcode {opcode:#04x}) failed: status type {status_type:#x} "
            f"code {status_code:#04x}{label}{', do not retry' if do_not_retry else ''}"
        )
        self.operation = operation
        self.opcode = opcode
        self.status_type = status_type
        self.status_code = status_code
        self.do_not_retry = do_not_retry
