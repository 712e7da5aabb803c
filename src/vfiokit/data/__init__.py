"""Recorded machines that ship with the package; see ``NOTICE`` for where they come from."""

from __future__ import annotations

import os

DEMO_RECORD = "hpe-gen9-vgpu-node.umockdev.zst"
"""The machine that ``demo`` names: 226 PCI functions, 106 IOMMU groups, a GPU with 16 VFs."""


def path_of(name: str) -> str:
    """Where the packaged file ``name`` lies on this machine."""
    return os.path.join(os.path.dirname(__file__), name)
