"""Write the table of capabilities in ``docs/capabilities.md`` from their descriptions.

``python tools/capability_table.py`` rewrites what stands between the two markers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vfiokit.pci.capability import Layout, Register, catalog

PAGE = Path(__file__).resolve().parents[1] / "docs/capabilities.md"
BEGIN = "<!-- begin: written by tools/capability_table.py -->"
END = "<!-- end -->"

LSPCI_SILENT = {
    "alternate-protocol",
    "amd-iommu",
    "compact-hot-swap",
    "configuration-access",
    "data-link-feature",
    "dynamic-power",
    "flattening-portal",
    "flit-performance",
    "frs-queueing",
    "hierarchy-id",
    "hot-plug",
    "hypertransport-gen3",
    "hypertransport-power",
    "intel-siov",
    "ln-requester",
    "m-phy",
    "multifunction-virtual-channel",
    "nop-flit",
    "npem",
    "power-budgeting",
    "protocol-multiplexing",
    "rcrb",
    "readiness-time",
    "root-complex-internal-link",
    "shadow-functions",
    "siov",
    "streamlined-virtual-channel",
    "system-firmware",
}
"""Described here, and by lspci 3.14 at most named."""


def registers(layout: Layout) -> Iterator[Register]:
    """Every register of a layout, those of repeated parts once."""
    yield from layout.registers
    for repeated in layout.repeated:
        yield from repeated.registers


def row(layout: Layout, *, variant: bool) -> str:
    """One line of the table."""
    described = list(registers(layout))
    fields = sum(len(register.fields) for register in described)
    number = "" if variant else f"`{layout.cap_id:#0{6 if layout.extended else 4}x}`"
    parts = ", ".join(sorted({repeated.label for repeated in layout.repeated}))
    if not described:
        remark = "by name only"
    elif layout.name in LSPCI_SILENT:
        remark = "lspci: name at most"
    else:
        remark = ""
    cells = (
        number,
        f"`{layout.name}`",
        layout.title,
        str(len(described)),
        str(fields),
        parts,
        layout.spec,
        remark,
    )
    return f"| {' | '.join(cells)} |"


def table(*, extended: bool) -> str:
    """The standard or the extended capabilities, variants below the one they refine."""
    lines = [
        "| id | name | title | registers | fields | repeated for each | source | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for cap_id in catalog.EXTENDED if extended else catalog.STANDARD:
        layout = catalog.layout(cap_id, extended=extended)
        assert layout is not None
        lines.append(row(layout, variant=False))
        lines += [row(variant.layout, variant=True) for variant in layout.variants]
    return "\n".join(lines)


def section() -> str:
    """Everything between the markers."""
    every = list(catalog.layouts())
    described = [list(registers(layout)) for layout in every]
    counts = (
        len(every),
        sum(len(each) for each in described),
        sum(len(register.fields) for each in described for register in each),
    )
    return "\n\n".join(
        (
            BEGIN,
            "{} layouts, {} registers, {} fields.".format(*counts),
            "### Standard capabilities",
            table(extended=False),
            "### Extended capabilities",
            table(extended=True),
            END,
        )
    )


def written(page: str) -> str:
    """``page`` with its section as it should be."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + section() + after


def main() -> None:
    """Rewrite the page."""
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
