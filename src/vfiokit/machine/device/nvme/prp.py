"""Physical Region Pages: from PRP1 and PRP2 to the memory extents of a transfer.

Source: NVM Express Base Specification 2.0 §4.1.1 and §4.1.2. Pure: the list pages are read
through a callable, so the walk needs no device.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import unpack
from typing import NamedTuple

from vfiokit.machine.device.nvme.status import CommandFailedError, Status

PRP1_LOCATION = 24
PRP2_LOCATION = 32

Reader = Callable[[int, int], bytes]
"""``read(iova, length) -> bytes``."""


class Extent(NamedTuple):
    """``length`` contiguous bytes of host memory at ``iova``."""

    iova: int
    length: int


def extents(prp1: int, prp2: int, length: int, page_size: int, read: Reader) -> list[Extent]:
    """The host memory of a ``length``-byte transfer (at least 1), neighbours joined.

    ``page_size`` is the memory page size of CC.MPS. Raises :class:`CommandFailedError` with
    Invalid PRP Offset when PRP1 is not dword aligned, PRP2 as a list pointer not qword aligned,
    or any further page or list not page aligned. Whatever ``read`` raises passes through.
    """
    if prp1 & 3:
        raise _bad_offset(PRP1_LOCATION)
    first = min(length, page_size - (prp1 & page_size - 1))
    rest = length - first
    if not rest:
        return [Extent(prp1, first)]
    joined = [Extent(prp1, first)]
    if rest <= page_size:
        _append_pages(joined, (prp2,), rest, page_size)
        return joined
    _walk_list(joined, prp2, rest, page_size, read)
    return joined


def _walk_list(joined: list[Extent], pointer: int, rest: int, page_size: int, read: Reader) -> None:
    if pointer & 7:
        raise _bad_offset(PRP2_LOCATION)
    while rest > 0:
        slots = (page_size - (pointer & page_size - 1)) // 8
        needed = (rest + page_size - 1) // page_size
        # The last slot of a list page is a chain pointer only if pages remain beyond it.
        chained = needed > slots
        count = slots if chained else needed
        entries: tuple[int, ...] = unpack(f"<{count}Q", read(pointer, 8 * count))
        if chained:
            pointer = entries[-1]
            entries = entries[:-1]
            # Only the first list may start inside a page; this also makes every chain end.
            if pointer & page_size - 1:
                raise _bad_offset(PRP2_LOCATION)
        step = min(rest, len(entries) * page_size)
        _append_pages(joined, entries, step, page_size)
        rest -= step


def _append_pages(
    joined: list[Extent], pages: tuple[int, ...], length: int, page_size: int
) -> None:
    """Append ``length`` bytes that lie in ``pages``, joining what is contiguous."""
    if not pages:
        return
    last = joined[-1]
    run_start, run_length = last
    if pages == tuple(range(pages[0], pages[0] + len(pages) * page_size, page_size)):
        # One contiguous run, the common case: checked in C instead of page by page.
        if pages[0] & page_size - 1:
            raise _bad_offset(PRP2_LOCATION)
        if run_start + run_length == pages[0]:
            joined[-1] = Extent(run_start, run_length + length)
        else:
            joined.append(Extent(pages[0], length))
        return
    for page in pages:
        if page & page_size - 1:
            raise _bad_offset(PRP2_LOCATION)
        step = min(length, page_size)
        if run_start + run_length == page:
            run_length += step
        else:
            joined[-1] = Extent(run_start, run_length)
            run_start, run_length = page, step
            joined.append(Extent(page, step))
        length -= step
    joined[-1] = Extent(run_start, run_length)


def _bad_offset(location: int) -> CommandFailedError:
    return CommandFailedError(Status.INVALID_PRP_OFFSET, location=location)
