"""Exit codes, the same for every command."""

from __future__ import annotations

import errno

from vfiokit import errors

DONE = 0
"""Done, or the answer is yes."""
FAILED = 1
"""An unexpected error."""
USAGE = 2
"""The command line makes no sense."""
NO = 3
"""Checked, and the answer is no: unsafe or not possible."""
PRIVILEGE = 4
"""More privilege is needed."""
BUSY = 5
"""Someone else uses it."""
ROLLED_BACK = 6
"""Failed, and everything was rolled back."""
NOT_ROLLED_BACK = 7
"""Failed, and not fully rolled back: look at ``vfiokit undo --list``."""
DRIFT = 8
"""The machine is no longer what the plan was made for."""
CHANGES = 9
"""``plan --exit-code``: there is something to do."""
INTERRUPTED = 130
"""Stopped by the user."""


def code_for(error: BaseException) -> int:
    """The exit code that tells a script what kind of error this was."""
    if isinstance(error, errors.PlanBlockedError):
        return NO
    if isinstance(error, errors.DriftError):
        return DRIFT
    if isinstance(error, errors.ApplyError):
        return ROLLED_BACK if error.rolled_back else NOT_ROLLED_BACK
    if isinstance(error, errors.UsageError):
        return USAGE
    if isinstance(error, OSError):
        if error.errno in (errno.EPERM, errno.EACCES):
            return PRIVILEGE
        if error.errno == errno.EBUSY:
            return BUSY
    return FAILED
