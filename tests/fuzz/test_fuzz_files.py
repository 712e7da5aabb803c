"""The fuzz targets of file formats on mutations of real files, so that none can rot."""

from __future__ import annotations

import io
import json
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import fuzz_archive
import fuzz_plan
import fuzz_umockdev
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vfiokit.assign.plan import plan
from vfiokit.data import DEMO_RECORD, path_of
from vfiokit.host.source import open_tree
from vfiokit.pci.address import Bdf

TARGETS = [fuzz_archive, fuzz_plan, fuzz_umockdev]


def record() -> bytes:
    import zstandard

    packed = Path(path_of(DEMO_RECORD)).read_bytes()
    text = zstandard.ZstdDecompressor().stream_reader(packed).read()
    start = text.index(b"P: /devices/pci0000:00/0000:00:02.0\n")
    return text[start : start + 6000]


def archive() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as made:
        for name, content in {
            "vfiokit.json": b'{"format": 1}',
            "sys/devices/pci0000:00/0000:00:01.0/config": bytes(range(64)),
            "sys/devices/pci0000:00/0000:00:01.0/vendor": b"0x8086\n",
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            made.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("sys/bus/pci/devices/0000:00:01.0")
        link.type, link.linkname = tarfile.SYMTYPE, "../../../devices/pci0000:00/0000:00:01.0"
        made.addfile(link)
    return buffer.getvalue()


def saved_plan() -> bytes:
    made = plan(open_tree("demo"), [Bdf.parse("01:00.1")], include_group=True)
    return json.dumps(made.to_json()).encode()


SEEDS: list[tuple[Callable[[bytes], None], Callable[[], bytes]]] = [
    (fuzz_archive.one_input, archive),
    (fuzz_plan.one_input, saved_plan),
    (fuzz_umockdev.one_input, record),
]


def mutate(data: bytes, noise: random.Random) -> bytes:
    """A few bytes changed, cut out, doubled or moved."""
    made = bytearray(data)
    for _ in range(noise.randint(1, 6)):
        at = noise.randrange(len(made) + 1)
        length = noise.choice((1, 1, 2, 4, 16, 512))
        match noise.randrange(4):
            case 0:
                made[at : at + length] = noise.randbytes(length)
            case 1:
                del made[at : at + length]
            case 2:
                made[at:at] = made[at : at + length]
            case _:
                made[at:at] = noise.choice((b"/../", b"\n\n", b"P: ", b"null", b"\0", b"-1", b'"'))
    return bytes(made)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.__name__)
@given(data=st.binary(max_size=1024))
def test_any_bytes_keep_the_invariant(target: object, data: bytes) -> None:
    target.one_input(data)


@pytest.mark.parametrize(("one_input", "seed"), SEEDS, ids=["archive", "plan", "record"])
def test_mutations_of_a_real_file_keep_the_invariant(
    one_input: Callable[[bytes], None], seed: Callable[[], bytes]
) -> None:
    noise = random.Random(1)
    original = seed()
    one_input(original)
    for _ in range(400):
        one_input(mutate(original, noise))
