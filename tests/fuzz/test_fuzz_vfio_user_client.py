"""The fuzz target of vfio-user's client, run on answers that are nearly right."""

from __future__ import annotations

import random
import struct

import fuzz_vfio_user_client

ASKED = (4, 5, 6, 7, 9, 9, 10, 8, 3, 16, 17)
"""Commands as the target sends them."""


def answers(source: random.Random) -> bytes:
    """Replies with the right ids, mostly of a right length, and sometimes something else."""
    data = bytes([source.randrange(256)])
    for number, command in enumerate(ASKED, start=1):
        length = source.choice((0, 0, 8, 16, 16, 20, 24, 32, 48))
        body = bytes(source.choice((0, 0, 0, 1, 2, 16, 32, 255)) for _ in range(length))
        if length and source.random() < 0.3:
            body = struct.pack("<I", source.choice((16, 32, 40, 64))) + body[4:]
        size = 16 + length if source.random() < 0.97 else source.randrange(1 << 31)
        flags = source.choice((1, 1, 1, 1, 0x21 if not length else 1, 0))
        head = struct.pack("<HHIII", number, command, size, flags, source.choice((0, 5, 22)))
        data += head + body
        if source.random() < 0.1:
            break
    return data


def test_the_target_stands_answers_that_are_nearly_right() -> None:
    source = random.Random(1)
    for _ in range(600):
        fuzz_vfio_user_client.one_input(answers(source))
    for length in range(60):
        fuzz_vfio_user_client.one_input(source.randbytes(length))
