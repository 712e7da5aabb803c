"""Programs that the tests of the report need."""

from __future__ import annotations

import os

import pytest


def missing(what: str) -> None:
    """Fail where everything must be there, skip elsewhere."""
    reason = f"{what} is not installed; tools/setup.sh dev installs it"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
