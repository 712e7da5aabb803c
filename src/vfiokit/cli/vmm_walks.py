"""``vfiokit vmm walks``: memory references of two-dimensional page walks."""

from __future__ import annotations

import argparse

from vfiokit.cli import exit as exit_code
from vfiokit.cli.render import Output
from vfiokit.cli.session import Session

DESCRIPTION = """\
Count the memory references of a guest's address translation: its page tables times the
second stage, with nothing cached. Built, walked and counted, not computed.
"""
EPILOG = """\
examples:
  vfiokit vmm walks
  vfiokit vmm walks --json | jq '.walks[] | select(.guest_levels == 4)'
"""
_SIZES = {4096: "4K", 1 << 21: "2M", 1 << 30: "1G"}
ANSWER = """\
With four levels on both sides a TLB miss reads 24 entries before the access itself:
  4   entries of the guest's tables, each at a guest-physical address, and so
  4×4 entries of the second stage to find them: this is the 16 one hears of, then
  4   entries of the second stage for the address they lead to.
The access makes it (4+1)×(4+1) = 25 references: the other number one hears of.
In general g guest and h host levels take (g+1)×(h+1) - 1. Processors cache upper levels and whole
translations, which these walks do not; PAE's four uppermost entries are registers in practice."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare arguments: there are none."""
    del parser


def run(arguments: argparse.Namespace, session: Session) -> int:
    """Measure and print."""
    from vfiokit.vmm.walks import GUEST_FORMATS, HOST_LEVELS, large_pages, table

    output = Output(json=arguments.json)
    walks, larger = table(), large_pages()
    if output.json:
        body = {
            "walks": [each.document() for each in walks],
            "large_pages": [
                {"guest_page": guest, "host_page": host, **each.document()}
                for guest, host, each in larger
            ],
        }
        output.document("vmm-walks", session.host, body)
        return exit_code.DONE
    found = {(each.guest_levels, each.host_levels): each.references for each in walks}
    output.heading("Memory references to translate one address (guest levels down, host across)")
    output.table(
        ["levels", *(f"host {levels}" if levels else "no host" for levels in HOST_LEVELS)],
        [
            [f"guest {guest}" if guest else "no guest"]
            + [str(found[guest, host]) for host in HOST_LEVELS]
            for guest in GUEST_FORMATS
        ],
    )
    output.line()
    output.heading("4 × 4 levels with larger pages (guest's page down, host's across)")
    output.table(
        ["page", *_SIZES.values()],
        [
            [name, *(str(each.references) for guest, _host, each in larger if guest == size)]
            for size, name in _SIZES.items()
        ],
    )
    output.line()
    output.line(ANSWER)
    return exit_code.DONE
