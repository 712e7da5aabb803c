"""A lab with time: oracles ask many questions in one boot."""

from __future__ import annotations

import pytest

from vfiokit.lab import Lab


@pytest.fixture(scope="session")
def lab(lab: Lab) -> Lab:
    return lab.with_changes(timeout_s=240)
